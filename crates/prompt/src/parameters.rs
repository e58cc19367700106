//! Builds the parameters that are stored with drawings.

use tessera_model::{Parameters, Request};

use crate::PicturePrompt;

/// The model that draws, as its drawings record it.
#[derive(Debug, Clone, Copy)]
pub struct Model<'a> {
    /// The model file's name, or `embedded`.
    pub name: &'a str,
    /// The model file's fingerprint.
    pub id: &'a str,
}

/// Returns the parameters that are stored with the drawings of `request`.
///
/// `asked` contains the prompts as the user wrote them, and `read` the prompts as the model reads
/// them. `shown` is the number of pictures per prompt. `picture` is the picture prompt, if there is
/// one; `variations` is whether its cells are redrawn at random.
///
/// The caller sets the scores, the reranker if it comes from another file, and the index and tokens
/// of a single picture.
pub fn parameters(
    request: &Request,
    [asked, read]: [Vec<String>; 2],
    shown: usize,
    model: Model,
    picture: Option<&PicturePrompt>,
    variations: bool,
) -> Parameters {
    Parameters {
        program: format!("tessera {}", env!("CARGO_PKG_VERSION")),
        asked,
        prompts: read,
        negative: request.negative.clone(),
        n: shown,
        of: request.best.map(|_| request.n),
        scores: Vec::new(),
        reranker: None,
        seed: request.seed,
        sampling: request.sampling.clone(),
        kept: picture.map(|picture| picture.tokens.iter().flatten().count()),
        strength: variations.then_some(request.strength),
        model: model.name.to_string(),
        model_id: Some(model.id.to_string()),
        index: None,
        tokens: None,
    }
}
