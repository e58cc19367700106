//! `tessera reconstruct`: a picture beside what a dVAE's tokens keep of it (paper §2.1, figure 1).

use anyhow::{Context, Result};
use burn::tensor::Device;
use serde_json::json;
use tessera_data::picture::decode;
use tessera_train::{grid, reconstruct};

use super::draw::enlarge;
use super::{check_writable, model_file, say};
use crate::args::Reconstruct;

pub fn run(args: &Reconstruct) -> Result<()> {
    check_writable(&args.out)?;
    let file = model_file(args.model.as_deref())?;
    let config = file.config.dvae.as_ref().context("the file holds no dVAE")?;
    let dvae = file.dvae(&Device::default())?;
    let shown = args.image.display();
    let bytes = std::fs::read(&args.image).with_context(|| format!("cannot read {shown}"))?;
    let image = decode(&bytes).with_context(|| shown.to_string())?;
    let found = reconstruct(&dvae, config, &image).with_context(|| shown.to_string())?;
    let sheet = [found.original, found.restored].map(|picture| enlarge(&picture, args.scale));
    grid(&sheet, 2).save(&args.out).with_context(|| format!("cannot write {}", args.out.display()))?;
    match args.json {
        true => say(json!({ "psnr_db": found.psnr_db, "grid": config.grid(), "tokens": found.tokens })),
        false => say(format_args!(
            "{}: original and reconstruction from {} tokens, {:.2} dB",
            args.out.display(),
            config.grid().pow(2),
            found.psnr_db
        )),
    }
}
