//! What drawings were made with, as their files say it.

use serde::{Deserialize, Serialize};

use super::Sampling;

/// What the pictures of a file were made with: enough to make them again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Parameters {
    /// Program and version.
    pub program: String,
    /// The prompts as the model read them.
    pub prompts: Vec<String>,
    /// What guidance steered away from.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub negative: String,
    /// Number of pictures of each prompt.
    pub n: usize,
    /// Number of candidates that they are the best of, best first, if they were ranked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub of: Option<usize>,
    /// The score of each picture, prompt by prompt: cosines.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub scores: Vec<f32>,
    /// The file whose reranker ranked them, if it is not the model's own.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reranker: Option<String>,
    /// The seed.
    pub seed: u64,
    /// How tokens were picked.
    #[serde(flatten)]
    pub sampling: Sampling,
    /// Cells that were given and not drawn, if there was a picture prompt.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kept: Option<usize>,
    /// The share of them that was drawn anew, if they are variations.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub strength: Option<f64>,
    /// The model file's name, or `embedded`.
    pub model: String,
    /// The model file's fingerprint.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub model_id: Option<String>,
    /// Of a file that holds one picture: which of the candidates of its seed it is, from 0.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub index: Option<usize>,
    /// Of a file that holds one picture: its tokens, so that it can be gone on with exactly.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tokens: Option<Vec<u32>>,
}

impl Parameters {
    /// What a file's text says of it, if the model of this fingerprint has drawn it.
    pub fn claimed(text: &str, model_id: &str) -> Option<Parameters> {
        let made: Parameters = serde_json::from_str(text).ok()?;
        (made.model_id.as_deref() == Some(model_id)).then_some(made)
    }
}
