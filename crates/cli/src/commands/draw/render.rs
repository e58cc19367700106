//! Renders the pictures of `draw`: as the decoder returns them or, with `--mosaic`, as mosaics of
//! one tile per token.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};
use tessera_model::sample::tiles;
use tessera_model::{Picture, Tessera};

use super::enlarge;
use crate::args::Draw;

/// Renders enlarged pictures.
pub struct Renderer<'a> {
    tessera: &'a Tessera,
    scale: u32,
    /// The tiles of all codes that occur, if the pictures are mosaics.
    tiles: Option<BTreeMap<u32, RgbImage>>,
}

impl<'a> Renderer<'a> {
    /// Decodes the tiles that `pictures` and `given` need, if mosaics are wanted.
    pub fn new(
        args: &Draw,
        tessera: &'a Tessera,
        given: &[Option<u32>],
        pictures: &[Picture],
    ) -> Result<Renderer<'a>> {
        let drawn = pictures.iter().flat_map(|picture| picture.tokens.iter().copied());
        let codes = given.iter().copied().flatten().chain(drawn).collect();
        let tiles = args.mosaic.then(|| tiles_of(tessera, codes)).transpose()?;
        Ok(Renderer { tessera, scale: args.scale, tiles })
    }

    /// Renders a finished picture.
    pub fn finished(&self, picture: &Picture) -> Result<RgbImage> {
        let Some(tiles) = &self.tiles else { return enlarge(&picture.image, self.scale) };
        let tokens: Vec<Option<u32>> = picture.tokens.iter().copied().map(Some).collect();
        Ok(self.mosaic(tiles, &tokens))
    }

    /// Renders pictures of which only the tokens in `known` exist yet. Other cells are white.
    pub fn unfinished(&self, known: &[Vec<Option<u32>>]) -> Result<Vec<RgbImage>> {
        match &self.tiles {
            None => self.tessera.decode(known)?.iter().map(|image| enlarge(image, self.scale)).collect(),
            Some(tiles) => Ok(known.iter().map(|tokens| self.mosaic(tiles, tokens)).collect()),
        }
    }

    /// Puts the tiles of `tokens` side by side, without any smoothing.
    fn mosaic(&self, tiles: &BTreeMap<u32, RgbImage>, tokens: &[Option<u32>]) -> RgbImage {
        let (side, grid) = (self.tessera.image_size as u32, self.tessera.prior.config().grid);
        let cell = side / grid as u32;
        let mut mosaic = RgbImage::from_pixel(side, side, Rgb([255; 3]));
        for (at, code) in tokens.iter().enumerate() {
            let Some(tile) = code.and_then(|code| tiles.get(&code)) else { continue };
            let (x, y) = ((at % grid) as u32 * cell, (at / grid) as u32 * cell);
            imageops::replace(&mut mosaic, tile, x.into(), y.into());
        }
        imageops::resize(&mosaic, side * self.scale, side * self.scale, FilterType::Nearest)
    }
}

/// Decodes a tile for each code.
fn tiles_of(tessera: &Tessera, codes: BTreeSet<u32>) -> Result<BTreeMap<u32, RgbImage>> {
    let codes: Vec<u32> = codes.into_iter().collect();
    let decoded = tiles(&tessera.dvae, &codes)?;
    Ok(codes.into_iter().zip(decoded).collect())
}
