//! The parameters of a drawing, as JSON in the PNG's `tessera` text chunk.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result};
use image::RgbImage;
use serde::{Deserialize, Serialize};
use tessera_data::atomic;
use tessera_model::Sampling;

/// The chunk's keyword.
const KEYWORD: &str = "tessera";

/// What a drawing was made with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Parameters {
    /// Program and version.
    pub program: String,
    /// The prompts as the model read them.
    pub prompts: Vec<String>,
    /// Number of pictures of each.
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
    /// The model file's name, or `embedded`.
    pub model: String,
}

/// Writes `image` with its parameters, whole or not at all.
pub fn write_png(path: &Path, image: &RgbImage, parameters: &Parameters) -> Result<()> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.add_itxt_chunk(KEYWORD.into(), serde_json::to_string(parameters)?)?;
    encoder.write_header()?.write_image_data(image)?;
    atomic::write(path, &bytes)
}

/// The parameters in a PNG, if it has any.
pub fn read_png(path: &Path) -> Result<Option<Parameters>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let reader = png::Decoder::new(BufReader::new(file)).read_info();
    let reader = reader.with_context(|| format!("{} is not a whole PNG", path.display()))?;
    let chunk = reader.info().utf8_text.iter().find(|chunk| chunk.keyword == KEYWORD);
    chunk.map(|chunk| Ok(serde_json::from_str(&chunk.get_text()?)?)).transpose()
}
