//! Picture prompts that are sent: which tokens are given.

use std::io::Cursor;
use std::sync::Arc;

use axum::body::Bytes;
use axum::http::StatusCode;
use tessera_data::picture::{decode_any, on_white};
use tessera_data::png_text;
use tessera_data::prompt::{Fit, Kept, is_transparent};
use tessera_model::Parameters;

use super::fields::{Fields, shortened};
use super::{ApiError, Kind, Wanted};
use crate::App;
use crate::limits::IMAGE_PIXELS;

/// The share of cells that variations draw anew unless told otherwise.
const STRENGTH: f64 = 0.7;

/// Which part of the picture is kept, as it is said.
enum Said {
    Rows(u64),
    Rectangle([usize; 4]),
    Mask(Bytes),
    /// What is transparent is drawn.
    Transparent,
    /// All of it, but for a share.
    Variation(f64),
}

/// Reads a request with a picture.
pub async fn read(mut fields: Fields, kind: Kind, app: &Arc<App>) -> Result<Wanted, ApiError> {
    let image = fields.file("image").ok_or_else(|| ApiError {
        code: "missing_required_parameter",
        ..ApiError::invalid("image", "There is no file 'image': send a PNG, JPEG or WebP.")
    })?;
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
    let said = said(&mut fields, kind, app)?;
    let place = app.gates.uploads.acquire().await.map_err(|_| ApiError::ours("The server is stopping."))?;
    let sent = {
        let app = app.clone();
        tokio::task::spawn_blocking(move || look(&app, &image, &said, fit))
    };
    let sent = sent.await.map_err(|_| ApiError::ours("The picture could not be looked at."))??;
    drop(place);
    let wanted = Wanted::read(fields, kind, app, sent.drawn_of)?;
    Ok(wanted.given(sent.given, sent.strength))
}

/// What comes of a picture that was sent.
struct Sent {
    given: Vec<Option<u32>>,
    strength: f64,
    /// The prompt that it was drawn of by this model, if it says so.
    drawn_of: Option<String>,
}

fn said(fields: &mut Fields, kind: Kind, app: &App) -> Result<Said, ApiError> {
    if kind == Kind::Variation {
        let strength = fields.number("strength")?.unwrap_or(STRENGTH);
        return match (0.0..=1.0).contains(&strength) {
            true => Ok(Said::Variation(strength)),
            false => Err(ApiError::invalid("strength", format!("'strength' is {strength}: wanted 0 to 1."))),
        };
    }
    let (mask, rows) = (fields.file("mask"), fields.whole("keep_rows", 1, app.model.grid as u64 - 1)?);
    let rectangle = fields.text("keep")?.map(|text| rectangle(&text)).transpose()?;
    match (mask, rows, rectangle) {
        (Some(mask), None, None) => Ok(Said::Mask(mask)),
        (None, Some(rows), None) => Ok(Said::Rows(rows)),
        (None, None, Some(rectangle)) => Ok(Said::Rectangle(rectangle)),
        (None, None, None) => Ok(Said::Transparent),
        _ => Err(ApiError::invalid(
            "mask",
            "What is kept is said twice: wanted one of 'mask', 'keep_rows' and 'keep'.",
        )),
    }
}

fn rectangle(text: &str) -> Result<[usize; 4], ApiError> {
    let numbers: Option<Vec<usize>> = text.split(',').map(|number| number.trim().parse().ok()).collect();
    numbers.and_then(|numbers| numbers.try_into().ok()).ok_or_else(|| {
        ApiError::invalid("keep", format!("'keep' is {}: wanted X,Y,WIDTH,HEIGHT in cells.", shortened(text)))
    })
}

fn look(app: &App, image: &Bytes, said: &Said, fit: Fit) -> Result<Sent, ApiError> {
    let unreadable = |param: &str, error: anyhow::Error| ApiError {
        code: "invalid_image",
        ..ApiError::invalid(param, format!("'{param}': {error:#}."))
    };
    let picture = decode_any(image, IMAGE_PIXELS).map_err(|error| unreadable("image", error))?;
    let grid = app.model.grid;
    let (kept, strength) = match said {
        Said::Rows(rows) => {
            (Kept::rows(grid, *rows as usize).map_err(|error| unreadable("keep_rows", error))?, 0.0)
        }
        Said::Rectangle(rectangle) => {
            (Kept::rectangle(grid, *rectangle).map_err(|error| unreadable("keep", error))?, 0.0)
        }
        Said::Mask(mask) => {
            let mask = decode_any(mask, IMAGE_PIXELS).map_err(|error| unreadable("mask", error))?;
            let [got, wanted] = [&mask, &picture].map(|image| (image.width(), image.height()));
            if got != wanted {
                let message = format!(
                    "The mask has {}x{} pixels: wanted {}x{}, as large as the picture.",
                    got.0, got.1, wanted.0, wanted.1
                );
                return Err(ApiError::invalid("mask", message));
            }
            (Kept::under(&mask, grid, fit).map_err(|error| unreadable("mask", error))?, 0.0)
        }
        Said::Transparent if is_transparent(&picture) => {
            (Kept::under(&picture, grid, fit).map_err(|error| unreadable("image", error))?, 0.0)
        }
        Said::Transparent => {
            let message = "What of the picture is kept? Send a 'mask' (transparent or white is drawn anew), a picture \
                with transparent parts, 'keep_rows' or 'keep'.";
            return Err(ApiError {
                code: "missing_required_parameter",
                ..ApiError::invalid("mask", message)
            });
        }
        Said::Variation(strength) => (Kept::all(grid), *strength),
    };
    let fitted = fit.apply(&on_white(picture), app.model.side as u32, 255);
    let fitted = fitted.map_err(|error| unreadable("image", error))?;
    let claimed = claimed(app, image);
    let tokens = claimed.as_ref().and_then(|made| made.tokens.as_deref());
    let (tokens, own) = app.tessera.tokens_of(&fitted, tokens).map_err(|error| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", format!("{error:#}"))
    })?;
    let drawn_of = claimed.filter(|_| own).and_then(|made| made.prompts.into_iter().next());
    Ok(Sent { given: kept.of(&tokens), strength, drawn_of })
}

/// What the picture says of itself, if it was drawn by this very model.
fn claimed(app: &App, image: &Bytes) -> Option<Parameters> {
    let text = png_text::read(Cursor::new(image)).ok()??;
    let made: Parameters = serde_json::from_str(&text).ok()?;
    (made.model_id.as_ref() == Some(&app.model.fingerprint)).then_some(made)
}
