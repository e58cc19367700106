//! The description of the model for clients, and the sheet with a tile for each of its codes.

use std::sync::OnceLock;

use anyhow::Result;
use image::{RgbImage, imageops};
use serde::Serialize;
use tessera_model::Tessera;
use tessera_model::sample::tiles;

/// The description of a model for users, except its sizes.
#[derive(Debug, Clone)]
pub struct About {
    /// A short name: that of the model file, or `embedded`.
    pub name: String,
    /// The model file's fingerprint.
    pub id: String,
    /// What the model can and cannot do, in one or two sentences; may be empty.
    pub text: String,
    /// Example prompts; may be empty.
    pub examples: Vec<String>,
}

/// The model, as `/v1/models` describes it.
#[derive(Debug, Clone, Serialize)]
pub struct Model {
    /// `tessera-` and the fingerprint. Requests may name it as their `model`.
    pub id: String,
    /// The model file's fingerprint.
    pub fingerprint: String,
    /// The short name of the model.
    pub name: String,
    /// What the model can and cannot do; may be empty.
    pub about: String,
    /// Example prompts; may be empty.
    pub examples: Vec<String>,
    /// The side of a picture in pixels before it is enlarged.
    pub side: usize,
    /// The number of cells along a side.
    pub grid: usize,
    /// The size of the codebook.
    pub codes: usize,
    /// The maximum number of tokens of a prompt that the model reads.
    pub prompt_tokens: usize,
    /// Whether the model has a reranker, which chooses the best of several candidates.
    pub ranks: bool,
    /// The default guidance; 1 if the model was not trained for guidance.
    pub guidance: f64,
    #[serde(skip)]
    tiles: OnceLock<RgbImage>,
}

impl Model {
    /// Describes a loaded model.
    pub fn new(tessera: &Tessera, about: About) -> Model {
        let config = tessera.prior.config();
        Model {
            id: format!("tessera-{}", about.id),
            fingerprint: about.id,
            name: about.name,
            about: about.text,
            examples: about.examples,
            side: tessera.image_size,
            grid: config.grid,
            codes: config.image_vocab,
            prompt_tokens: config.max_caption(),
            ranks: tessera.reranker.is_some(),
            guidance: tessera.sampling().guidance,
            tiles: OnceLock::new(),
        }
    }

    /// Whether `name` refers to this model. OpenAI's model names do, because its clients send them.
    pub fn is_meant_by(&self, name: &str) -> bool {
        let openai = ["dall-e", "gpt-image", "chatgpt-image"].iter().any(|family| name.starts_with(family));
        openai || [self.id.as_str(), "tessera"].contains(&name)
    }

    /// Returns a sheet with each code as a tile, in rows of [`Model::tile_columns`]. It is made at
    /// the first call.
    ///
    /// # Errors
    /// If the tiles cannot be decoded.
    pub fn tiles(&self, tessera: &Tessera) -> Result<&RgbImage> {
        if let Some(tiles) = self.tiles.get() {
            return Ok(tiles);
        }
        let tiles = self.make_tiles(tessera)?;
        Ok(self.tiles.get_or_init(|| tiles))
    }

    /// The number of tiles in a row of the sheet.
    fn tile_columns(&self) -> u32 {
        (self.codes as f64).sqrt().ceil() as u32
    }

    fn make_tiles(&self, tessera: &Tessera) -> Result<RgbImage> {
        let (cell, columns) = ((self.side / self.grid) as u32, self.tile_columns());
        let codes: Vec<u32> = (0..self.codes as u32).collect();
        let mut sheet = RgbImage::new(columns * cell, (self.codes as u32).div_ceil(columns) * cell);
        for (code, tile) in codes.iter().zip(tiles(&tessera.dvae, &codes)?) {
            let (x, y) = (code % columns * cell, code / columns * cell);
            imageops::replace(&mut sheet, &tile, x.into(), y.into());
        }
        Ok(sheet)
    }
}
