//! Picture prompts that are sent: which tokens are given.

use std::io::Cursor;
use std::sync::Arc;

use axum::body::Bytes;
use image::DynamicImage;
use tessera_data::picture::{decode_any, on_white};
use tessera_data::png_text;
use tessera_data::prompt::{Fit, Keep, is_transparent};
use tessera_model::Parameters;
use tessera_model::sample::DEFAULT_STRENGTH;

use super::fields::{Fields, shortened};
use super::{ApiError, ImageRequest, Kind};
use crate::App;
use crate::limits::IMAGE_PIXELS;

/// What of the picture is kept, as it is said.
enum KeepSpec {
    /// In so many words.
    Keep(Keep),
    /// By another picture.
    Mask(Bytes),
    /// By none of them: what is transparent is drawn.
    Nothing,
}

/// Reads a request with a picture.
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
    let (said, strength) = match kind {
        Kind::Variation => (KeepSpec::Keep(Keep::All), strength(&mut fields)?),
        Kind::Generation | Kind::Edit => (said(&mut fields, app.model.grid)?, 0.0),
    };
    let place = app.limits.uploads.acquire().await.map_err(|_| ApiError::ours("The server is stopping."))?;
    let sent = {
        let app = app.clone();
        tokio::task::spawn_blocking(move || look(&app, &image, said, fit))
    };
    let sent = sent.await.map_err(|_| ApiError::ours("The picture could not be looked at."))??;
    drop(place);
    let image_request = ImageRequest::read(fields, kind, app, sent.drawn_of)?;
    Ok(image_request.given(sent.given, strength))
}

/// What comes of a picture that was sent.
struct Sent {
    given: Vec<Option<u32>>,
    /// The prompt that it was drawn of by this model, if it says so.
    drawn_of: Option<String>,
}

fn no_image(fields: &Fields) -> ApiError {
    let others: Vec<String> = fields.files().map(|name| format!("'{}'", shortened(name))).collect();
    let instead = if others.is_empty() { String::new() } else { format!(" but {}", others.join(", ")) };
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

fn said(fields: &mut Fields, grid: usize) -> Result<KeepSpec, ApiError> {
    let (mask, rows) = (fields.file("mask"), fields.whole("keep_rows", 1, grid as u64 - 1)?);
    let rectangle = fields.text("keep")?.map(|text| rectangle(&text)).transpose()?;
    match (mask, rows, rectangle) {
        (Some(mask), None, None) => Ok(KeepSpec::Mask(mask)),
        (None, Some(rows), None) => Ok(KeepSpec::Keep(Keep::Rows(rows as usize))),
        (None, None, Some(rectangle)) => Ok(KeepSpec::Keep(Keep::Rectangle(rectangle))),
        (None, None, None) => Ok(KeepSpec::Nothing),
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

fn look(app: &App, image: &Bytes, said: KeepSpec, fit: Fit) -> Result<Sent, ApiError> {
    let picture = decoded("image", image)?;
    let (param, keep) = match said {
        KeepSpec::Keep(keep @ Keep::Rows(_)) => ("keep_rows", keep),
        KeepSpec::Keep(keep) => ("keep", keep),
        KeepSpec::Mask(mask) => ("mask", Keep::Mask(decoded("mask", &mask)?)),
        KeepSpec::Nothing if is_transparent(&picture) => ("image", Keep::Opaque),
        KeepSpec::Nothing => {
            let message = "What of the picture is kept? Send a 'mask' (transparent or white is drawn anew), a picture \
                with transparent parts, 'keep_rows' or 'keep'.";
            return Err(ApiError {
                code: "missing_required_parameter",
                ..ApiError::invalid("mask", message)
            });
        }
    };
    let unfit = |param: &str, error| ApiError::invalid(param, format!("'{param}': {error:#}."));
    let kept = keep.of(&picture, app.model.grid, fit).map_err(|error| unfit(param, error))?;
    let fitted = fit.apply(&on_white(picture), app.model.side as u32, 255);
    let fitted = fitted.map_err(|error| unfit("image", error))?;
    let text = png_text::read(Cursor::new(image)).ok().flatten();
    let claimed = text.and_then(|text| Parameters::claimed(&text, &app.model.fingerprint));
    let (tokens, own) =
        app.tessera.tokens_of(&fitted, claimed).map_err(|error| ApiError::ours(format!("{error:#}")))?;
    let drawn_of = own.and_then(|made| made.prompts.into_iter().next());
    Ok(Sent { given: kept.of(&tokens), drawn_of })
}

fn decoded(param: &str, bytes: &Bytes) -> Result<DynamicImage, ApiError> {
    decode_any(bytes, IMAGE_PIXELS).map_err(|error| ApiError {
        code: "invalid_image",
        ..ApiError::invalid(param, format!("'{param}': {error:#}."))
    })
}
