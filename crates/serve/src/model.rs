//! What clients are told of the model, and its codes as tiles.

use std::sync::OnceLock;

use anyhow::Result;
use image::{RgbImage, imageops};
use serde::Serialize;
use tessera_model::Tessera;
use tessera_model::sample::tiles;

/// What people are told of a model beside its sizes.
#[derive(Debug, Clone)]
pub struct About {
    /// A short name: the file's, or `embedded`.
    pub name: String,
    /// The file's fingerprint.
    pub id: String,
    /// What it can and cannot do, in a sentence or two; may be empty.
    pub text: String,
    /// Prompts to begin with; may be empty.
    pub examples: Vec<String>,
}

/// The model as `/v1/models` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct Model {
    /// `tessera-` and the fingerprint: what requests may name as their `model`.
    pub id: String,
    /// The same, without `tessera-`.
    pub fingerprint: String,
    pub name: String,
    pub about: String,
    pub examples: Vec<String>,
    /// Side of a picture in pixels, as it is drawn.
    pub side: usize,
    /// Cells along a side.
    pub grid: usize,
    /// Kinds of tokens.
    pub codes: usize,
    /// Tokens of a prompt that are read.
    pub prompt_tokens: usize,
    /// Whether the best of several candidates can be chosen.
    pub ranks: bool,
    /// The guidance of a request that says none; 1 if the model was not trained for any other.
    pub guidance: f64,
    #[serde(skip)]
    tiles: OnceLock<RgbImage>,
}

impl Model {
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

    /// Whether a request that names `name` means this model. Clients of OpenAI name one of its own.
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
