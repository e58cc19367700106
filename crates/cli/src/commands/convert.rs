//! `tessera convert`: published weights as a model file.

use anyhow::{Context, Result};
use tessera_model::weights::read_openai_dvae;

use super::say;
use crate::args::Convert;

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
