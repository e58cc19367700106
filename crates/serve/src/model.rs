//! What clients are told of the model, and its codes as tiles.

use std::sync::OnceLock;

use anyhow::Result;
use image::{RgbImage, imageops};
use serde::Serialize;
use tessera_model::Tessera;

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

    /// Pixels along a side of what a token covers.
    pub fn cell(&self) -> usize {
        self.side / self.grid
    }

    /// Each code as a tile, among others of its kind: as many rows and columns as hold all of them. Made when first asked for.
    ///
    /// # Errors
    /// If they cannot be decoded.
    pub fn tiles(&self, tessera: &Tessera) -> Result<&RgbImage> {
        if let Some(tiles) = self.tiles.get() {
            return Ok(tiles);
        }
        let tiles = self.make_tiles(tessera)?;
        Ok(self.tiles.get_or_init(|| tiles))
    }

    /// Tiles of a row.
    pub fn tile_columns(&self) -> usize {
        (self.codes as f64).sqrt().ceil() as usize
    }

    fn make_tiles(&self, tessera: &Tessera) -> Result<RgbImage> {
        let (grid, cell, columns) = (self.grid, self.cell() as u32, self.tile_columns() as u32);
        let side = self.side as u32;
        // A decoder looks at neighbours: each code is laid on its own into a white picture, away from other codes.
        let white = tessera.encode(&RgbImage::from_pixel(side, side, image::Rgb([255; 3])))?;
        let apart = |along: usize| along % 3 == 1 || grid < 3;
        let places: Vec<usize> = (0..grid * grid).filter(|at| apart(at % grid) && apart(at / grid)).collect();
        let codes: Vec<u32> = (0..self.codes as u32).collect();
        let mut sheet = RgbImage::new(columns * cell, (self.codes as u32).div_ceil(columns) * cell);
        for codes in codes.chunks(places.len()) {
            let mut tokens: Vec<Option<u32>> = white.iter().copied().map(Some).collect();
            places.iter().zip(codes).for_each(|(&at, &code)| tokens[at] = Some(code));
            let picture = tessera.decode(&[tokens])?.remove(0);
            for (&at, &code) in places.iter().zip(codes) {
                let (left, top) = ((at % grid) as u32 * cell, (at / grid) as u32 * cell);
                let tile = imageops::crop_imm(&picture, left, top, cell, cell).to_image();
                let (x, y) = (code % columns * cell, code / columns * cell);
                imageops::replace(&mut sheet, &tile, x.into(), y.into());
            }
        }
        Ok(sheet)
    }
}
