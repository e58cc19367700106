//! How drawings were made, as recorded in their files.

use serde::{Deserialize, Serialize};

use super::{Picture, Sampling};

/// How the pictures of a file were made: enough to make them again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Parameters {
    /// Program and version.
    pub program: String,
    /// The prompts as the user wrote them. Files from before this was recorded have none.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub asked: Vec<String>,
    /// The prompts as the model read them: normalised, and cut to its text positions.
    pub prompts: Vec<String>,
    /// The prompt that guidance moves away from.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub negative: String,
    /// The number of pictures of each prompt.
    pub n: usize,
    /// The number of candidates of which these pictures are the best, if they were ranked. The best
    /// picture is first.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub of: Option<usize>,
    /// The score of each picture, prompt by prompt: cosine similarities.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub scores: Vec<f32>,
    /// The file whose reranker was used, if it is not the model's own.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reranker: Option<String>,
    /// The seed.
    pub seed: u64,
    /// How tokens were sampled.
    #[serde(flatten)]
    pub sampling: Sampling,
    /// The number of cells that were given instead of drawn, if there was a picture prompt.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kept: Option<usize>,
    /// The fraction of cells that were redrawn, if these are variations of a picture.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub strength: Option<f64>,
    /// The model file's name, or `embedded`.
    pub model: String,
    /// The model file's fingerprint.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub model_id: Option<String>,
    /// In a file with one picture: its index among the candidates of its seed, from 0.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub index: Option<usize>,
    /// In a file with one picture: its tokens, so that it can be continued exactly.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tokens: Option<Vec<u32>>,
}

impl Parameters {
    /// The parameters in a file's text, if the model with this fingerprint drew the file.
    pub fn claimed(text: &str, model_id: &str) -> Option<Parameters> {
        let made: Parameters = serde_json::from_str(text).ok()?;
        (made.model_id.as_deref() == Some(model_id)).then_some(made)
    }

    /// The parameters of a file that holds `picture` alone, drawn from prompt number `prompt`.
    pub fn of_picture(&self, picture: &Picture, prompt: usize) -> Parameters {
        Parameters {
            asked: self.asked.get(prompt).cloned().into_iter().collect(),
            prompts: self.prompts.get(prompt).cloned().into_iter().collect(),
            scores: picture.score.into_iter().collect(),
            index: Some(picture.index),
            tokens: Some(picture.tokens.clone()),
            ..self.clone()
        }
    }
}
