//! `tessera convert` and `tessera reconstruct`: published weights as a model file, and a picture through any dVAE.

use anyhow::{Context, Result};
use burn::tensor::Device;
use serde_json::json;
use tessera_data::picture::decode;
use tessera_model::weights::read_openai_dvae;
use tessera_train::{grid, reconstruct};

use super::draw::{check_writable, enlarge};
use super::{model_file, say};
use crate::args::{Convert, Reconstruct};

pub fn run(convert: Convert) -> Result<()> {
    match convert {
        Convert::OpenaiDvae { encoder, decoder, out } => {
            let read = |path: &std::path::Path| {
                std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
            };
            let file = read_openai_dvae(&read(&encoder)?, &read(&decoder)?)?;
            file.write(&out)?;
            let weights: usize = file.dvae.iter().map(|tensor| tensor.values.len()).sum();
            say(format_args!("{weights} weights in {}", out.display()))
        }
    }
}

pub fn reconstruct_picture(args: &Reconstruct) -> Result<()> {
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
