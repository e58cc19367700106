//! The picture prompt of `draw` (paper §3.3): which tokens are given.

use std::io::Cursor;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use image::DynamicImage;
use tessera_data::picture::{MAX_PIXELS, decode_any, on_white};
use tessera_data::png_text;
use tessera_data::prompt::{Fit, Keep, is_transparent};
use tessera_model::{Parameters, Tessera};

use crate::args::PicturePrompt;
use crate::stderr::note;

/// What a picture prompt comes to.
#[derive(Default)]
pub struct Given {
    /// Empty if there is none.
    pub tokens: Vec<Option<u32>>,
    pub strength: f64,
    /// What the picture itself was drawn of, if it says so.
    pub prompt: Option<String>,
}

/// Reads the picture and decides what of it is kept; how it was fitted is told.
pub fn read(args: &PicturePrompt, tessera: &Tessera, model_id: &str) -> Result<Given> {
    let Some(path) = &args.image else { return Ok(Given::default()) };
    ensure!((0.0..=1.0).contains(&args.strength), "--strength {}: wanted 0 to 1", args.strength);
    let (shown, fit) = (path.display(), Fit::from(args.fit));
    let (bytes, image) = load(path)?;
    let keep = keep(args, &image)?;
    let kept = keep.of(&image, tessera.prior.config().grid, fit)?;
    let text = png_text::read(Cursor::new(bytes)).ok().flatten();
    let claimed = text.and_then(|text| Parameters::claimed(&text, model_id));
    let side = tessera.image_size as u32;
    let size = (image.width(), image.height());
    let fitted = fit.apply(&on_white(image), side, 255).with_context(|| shown.to_string())?;
    let (tokens, own) = tessera.tokens_of(&fitted, claimed)?;
    match fit.rule(size, side) {
        _ if own.is_some() => note!("{shown}: drawn by this model; its own tokens are used"),
        Some(rule) => note!("{shown}: {rule}"),
        None => {}
    }
    let prompt = own.and_then(|made| made.prompts.into_iter().next());
    let strength = if args.variations { args.strength } else { 0.0 };
    Ok(Given { tokens: kept.of(&tokens), strength, prompt })
}

fn load(path: &Path) -> Result<(Vec<u8>, DynamicImage)> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let image = decode_any(&bytes, MAX_PIXELS).with_context(|| path.display().to_string())?;
    Ok((bytes, image))
}

fn keep(args: &PicturePrompt, image: &DynamicImage) -> Result<Keep> {
    match (args.keep_rows, args.keep, &args.mask) {
        (Some(rows), _, _) => Ok(Keep::Rows(rows)),
        (_, Some(rectangle), _) => Ok(Keep::Rectangle(rectangle)),
        (_, _, Some(path)) => Ok(Keep::Mask(load(path)?.1)),
        _ if args.variations => Ok(Keep::All),
        _ if is_transparent(image) => Ok(Keep::Opaque),
        _ => bail!("--image: what of it is kept? Say --keep-rows, --keep, --mask or --variations"),
    }
}
