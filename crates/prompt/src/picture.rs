//! Picture prompts (paper §3.3): turns a picture and a choice of cells into the given tokens.

use std::io::Cursor;

use anyhow::Error;
use image::DynamicImage;
use tessera_data::picture::{decode_any, on_white};
use tessera_data::png_text;
use tessera_data::prompt::{Fit, Keep, is_transparent};
use tessera_model::{Parameters, Tessera};

/// The user's choice of the cells of a picture that are kept.
#[derive(Debug, Clone)]
pub enum KeepSpec {
    /// An explicit choice.
    Keep(Keep),
    /// The cells under the dark or opaque parts of a mask, which is the bytes of a picture file.
    Mask(Vec<u8>),
    /// No choice: the transparent parts of the picture are drawn, if it has any.
    Unspecified,
}

/// A picture prompt, resolved for a model.
#[derive(Debug, Clone, PartialEq)]
pub struct PicturePrompt {
    /// The given token of each cell, in raster order; `None` for cells to draw.
    pub tokens: Vec<Option<u32>>,
    /// The prompt that the picture was drawn from, if this model drew it.
    pub drawn_from: Option<String>,
    /// Whether this model drew the picture. Its recorded tokens are then used.
    pub is_own: bool,
    /// Width and height of the picture before it was fitted, in pixels.
    pub size: (u32, u32),
}

/// Why a picture prompt could not be resolved. Each variant names the cause.
#[derive(Debug)]
pub enum PromptError {
    /// The picture cannot be read or fitted.
    Picture(Error),
    /// The mask cannot be read, or does not fit the picture.
    Mask(Error),
    /// The rows or the rectangle do not fit the grid.
    Keep(Error),
    /// There is no choice of cells, and the picture has no transparent parts.
    Unspecified,
    /// The model failed to encode the picture.
    Model(Error),
}

/// Resolves the picture prompt of the picture file `bytes`, which may have at most `max_pixels`
/// pixels. `model_id` is the model file's fingerprint: a picture that this model drew keeps its
/// exact tokens.
///
/// # Errors
/// See [`PromptError`].
pub fn resolve(
    tessera: &Tessera,
    model_id: &str,
    bytes: &[u8],
    keep: KeepSpec,
    fit: Fit,
    max_pixels: u64,
) -> Result<PicturePrompt, PromptError> {
    let picture = decode_any(bytes, max_pixels).map_err(PromptError::Picture)?;
    let grid = tessera.prior.config().grid;
    let kept = match keep {
        KeepSpec::Keep(keep) => keep.of(&picture, grid, fit).map_err(PromptError::Keep),
        KeepSpec::Mask(mask) => {
            let mask = decode_any(&mask, max_pixels).map_err(PromptError::Mask)?;
            Keep::Mask(mask).of(&picture, grid, fit).map_err(PromptError::Mask)
        }
        KeepSpec::Unspecified if is_transparent(&picture) => {
            Keep::Opaque.of(&picture, grid, fit).map_err(PromptError::Picture)
        }
        KeepSpec::Unspecified => Err(PromptError::Unspecified),
    }?;
    let size = (picture.width(), picture.height());
    let (tokens, own) = tokens_of(tessera, model_id, bytes, picture, fit)?;
    Ok(PicturePrompt {
        tokens: kept.of(&tokens),
        is_own: own.is_some(),
        drawn_from: own.and_then(|made| made.asked.into_iter().chain(made.prompts).next()),
        size,
    })
}

/// Returns the tokens of a picture, and its parameters if this model drew it.
fn tokens_of(
    tessera: &Tessera,
    model_id: &str,
    bytes: &[u8],
    picture: DynamicImage,
    fit: Fit,
) -> Result<(Vec<u32>, Option<Parameters>), PromptError> {
    let fitted = fit.apply(&on_white(picture), tessera.image_size as u32, 255);
    let text = png_text::read(Cursor::new(bytes)).ok().flatten();
    let claimed = text.and_then(|text| Parameters::claimed(&text, model_id));
    tessera.tokens_of(&fitted.map_err(PromptError::Picture)?, claimed).map_err(PromptError::Model)
}
