//! Reads the picture prompts of edits and variations.

use std::sync::Arc;

use axum::body::Bytes;
use tessera_data::prompt::{Fit, Keep};
use tessera_model::sample::DEFAULT_STRENGTH;
use tessera_prompt::{KeepSpec, PicturePrompt, PromptError, resolve};

use super::fields::{Fields, shortened};
use super::{ApiError, ImageRequest, Kind};
use crate::App;
use crate::limits::IMAGE_PIXELS;

/// Reads a request with a picture prompt.
pub async fn read(mut fields: Fields, kind: Kind, app: &Arc<App>) -> Result<ImageRequest, ApiError> {
    let image = fields.file("image").ok_or_else(|| no_image(&fields))?;
    let fit = match fields.text("fit")?.as_deref() {
        None | Some("crop") => Fit::Crop,
        Some("pad") => Fit::Pad,
        Some(other) => {
            return Err(ApiError::invalid(
                "fit",
                format!("'fit' is {}: wanted crop or pad.", shortened(other)),
            ));
        }
    };
    let (keep, strength) = match kind {
        Kind::Variation => (KeepSpec::Keep(Keep::All), strength(&mut fields)?),
        Kind::Generation | Kind::Edit => (keep_spec(&mut fields, app.model.grid)?, 0.0),
    };
    let place = app.limits.uploads.acquire().await.map_err(|_| ApiError::ours("The server is stopping."))?;
    let picture = {
        let app = app.clone();
        tokio::task::spawn_blocking(move || picture_prompt(&app, &image, keep, fit))
    };
    let picture = picture.await.map_err(|_| ApiError::ours("The picture could not be read."))??;
    drop(place);
    ImageRequest::read(fields, kind, app, Some((picture, strength)))
}

fn no_image(fields: &Fields) -> ApiError {
    let others: Vec<String> = fields.files().map(|name| format!("'{}'", shortened(name))).collect();
    let instead = if others.is_empty() { String::new() } else { format!(", only {}", others.join(", ")) };
    let message =
        format!("There is no file 'image'{instead}: send one picture, a PNG, JPEG or WebP, as 'image'.");
    ApiError { code: "missing_required_parameter", ..ApiError::invalid("image", message) }
}

fn strength(fields: &mut Fields) -> Result<f64, ApiError> {
    let strength = fields.number("strength")?.unwrap_or(DEFAULT_STRENGTH);
    match (0.0..=1.0).contains(&strength) {
        true => Ok(strength),
        false => Err(ApiError::invalid("strength", format!("'strength' is {strength}: wanted 0 to 1."))),
    }
}

fn keep_spec(fields: &mut Fields, grid: usize) -> Result<KeepSpec, ApiError> {
    let (mask, rows) = (fields.file("mask"), fields.whole("keep_rows", 1, grid as u64 - 1)?);
    let rectangle = fields.text("keep")?.map(|text| rectangle(&text)).transpose()?;
    match (mask, rows, rectangle) {
        (Some(mask), None, None) => Ok(KeepSpec::Mask(mask.to_vec())),
        (None, Some(rows), None) => Ok(KeepSpec::Keep(Keep::Rows(rows as usize))),
        (None, None, Some(rectangle)) => Ok(KeepSpec::Keep(Keep::Rectangle(rectangle))),
        (None, None, None) => Ok(KeepSpec::Unspecified),
        _ => Err(ApiError::invalid(
            "mask",
            "The cells to keep are given twice: wanted one of 'mask', 'keep_rows' and 'keep'.",
        )),
    }
}

fn rectangle(text: &str) -> Result<[usize; 4], ApiError> {
    let numbers: Option<Vec<usize>> = text.split(',').map(|number| number.trim().parse().ok()).collect();
    numbers.and_then(|numbers| numbers.try_into().ok()).ok_or_else(|| {
        ApiError::invalid("keep", format!("'keep' is {}: wanted X,Y,WIDTH,HEIGHT in cells.", shortened(text)))
    })
}

fn picture_prompt(app: &App, image: &Bytes, keep: KeepSpec, fit: Fit) -> Result<PicturePrompt, ApiError> {
    let keep_param = match &keep {
        KeepSpec::Keep(Keep::Rows(_)) => "keep_rows",
        KeepSpec::Keep(_) | KeepSpec::Mask(_) | KeepSpec::Unspecified => "keep",
    };
    let invalid = |param: &str, error| ApiError::invalid(param, format!("'{param}': {error:#}."));
    let invalid_image = |param, error| ApiError { code: "invalid_image", ..invalid(param, error) };
    resolve(&app.tessera, &app.model.fingerprint, image, keep, fit, IMAGE_PIXELS).map_err(|error| match error {
        PromptError::Picture(error) => invalid_image("image", error),
        PromptError::Mask(error) => invalid_image("mask", error),
        PromptError::Keep(error) => invalid(keep_param, error),
        PromptError::Unspecified => {
            let message = "Which cells of the picture are kept? Send a 'mask' (its transparent or white parts are \
                drawn), a picture with transparent parts, 'keep_rows' or 'keep'.";
            ApiError { code: "missing_required_parameter", ..ApiError::invalid("mask", message) }
        }
        PromptError::Model(error) => ApiError::ours(format!("{error:#}")),
    })
}
