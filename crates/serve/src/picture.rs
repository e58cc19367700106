//! A drawing as the bytes that clients get: enlarged, a PNG that says how it was made.

use anyhow::Result;
use tessera_data::picture::enlarge;
use tessera_data::png_text::{self, Effort};
use tessera_model::{Parameters, Picture};

/// What all pictures of a request have in common.
#[derive(Clone)]
pub struct Style {
    /// Side in pixels.
    pub size: u32,
    /// As for a file that holds all of them.
    pub parameters: Parameters,
}

impl Style {
    /// The PNG of a finished picture, or of one that is still being drawn.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub fn png(&self, picture: &Picture) -> Result<Vec<u8>> {
        let parameters = Parameters {
            scores: picture.score.into_iter().collect(),
            index: Some(picture.index),
            tokens: Some(picture.tokens.clone()),
            ..self.parameters.clone()
        };
        let text = serde_json::to_string(&parameters)?;
        png_text::encode(&enlarge(&picture.image, [self.size; 2])?, text, Effort::Quick)
    }
}
