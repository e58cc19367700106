//! Reads the picture prompt of `draw` (paper §3.3) from its flags.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use tessera_data::picture::MAX_PIXELS;
use tessera_data::prompt::{Fit, Keep};
use tessera_model::Tessera;
use tessera_prompt::{KeepSpec, PicturePrompt, PromptError, resolve};

use crate::args;
use crate::stderr::note;

/// Reads the picture prompt, if the flags name one, and prints how the picture was fitted.
pub fn read(args: &args::PicturePrompt, tessera: &Tessera, model_id: &str) -> Result<Option<PicturePrompt>> {
    let Some(path) = &args.image else { return Ok(None) };
    ensure!((0.0..=1.0).contains(&args.strength), "--strength {}: wanted 0 to 1", args.strength);
    let (shown, fit) = (path.display(), Fit::from(args.fit));
    let prompt = resolve(tessera, model_id, &bytes(path)?, keep(args)?, fit, MAX_PIXELS);
    let prompt = prompt.map_err(|error| match error {
        PromptError::Picture(error) => error.context(shown.to_string()),
        PromptError::Mask(error) => match &args.mask {
            Some(mask) => error.context(mask.display().to_string()),
            None => error,
        },
        PromptError::Keep(error) | PromptError::Model(error) => error,
        PromptError::Unspecified => {
            anyhow!("--image needs one of --keep-rows, --keep, --mask, --variations")
        }
    })?;
    match fit.rule(prompt.size, tessera.image_size as u32) {
        _ if prompt.is_own => note!("{shown}: drawn by this model; its own tokens are used"),
        Some(rule) => note!("{shown}: {rule}"),
        None => {}
    }
    Ok(Some(prompt))
}

fn bytes(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn keep(args: &args::PicturePrompt) -> Result<KeepSpec> {
    Ok(match (args.keep_rows, args.keep, &args.mask) {
        (Some(rows), _, _) => KeepSpec::Keep(Keep::Rows(rows)),
        (_, Some(rectangle), _) => KeepSpec::Keep(Keep::Rectangle(rectangle)),
        (_, _, Some(path)) => KeepSpec::Mask(bytes(path)?),
        _ if args.variations => KeepSpec::Keep(Keep::All),
        _ => KeepSpec::Unspecified,
    })
}
