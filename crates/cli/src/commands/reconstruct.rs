//! `tessera reconstruct`: encodes a picture into a dVAE's tokens, decodes them, and shows both
//! pictures side by side (paper §2.1, figure 1).

use anyhow::{Context, Result};
use serde_json::json;
use tessera_base::pixels::contact_sheet;
use tessera_data::picture::decode;
use tessera_eval::reconstruct;

use super::draw::enlarge;
use super::output::{Content, Outputs, write_picture};
use super::{compute, dvae_config, model_file, say};
use crate::args::{PrecisionFlag, Reconstruct};

/// Runs `tessera reconstruct`.
pub fn run(args: &Reconstruct) -> Result<()> {
    let outputs = Outputs::check(&[(&args.out, Content::Picture)], args.json)?;
    let file = model_file(args.model.as_deref())?;
    let config = dvae_config(&file, args.model.as_deref())?;
    let dvae = file.dvae(compute(args.on, None, PrecisionFlag::Auto)?)?;
    let shown = args.image.display();
    let bytes = std::fs::read(&args.image).with_context(|| format!("cannot read {shown}"))?;
    let image = decode(&bytes).with_context(|| shown.to_string())?;
    let found = reconstruct(&dvae, config, &image).with_context(|| shown.to_string())?;
    let sheet = [enlarge(&found.original, args.scale)?, enlarge(&found.restored, args.scale)?];
    write_picture(&args.out, &contact_sheet(&sheet, 2), None)?;
    match args.json {
        true => say(json!({ "psnr_db": found.psnr_db, "grid": config.grid(), "tokens": found.tokens })),
        false => outputs.say(format_args!(
            "{}: original and reconstruction from {} tokens, {:.2} dB",
            args.out.display(),
            config.grid().pow(2),
            found.psnr_db
        )),
    }
}
