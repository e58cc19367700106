//! `tessera convert`: published weights as a model file.

use std::path::Path;

use anyhow::{Context, Result};
use tessera_data::atomic;
use tessera_model::rerank::Gelu;
use tessera_model::weights::{HostTensor, ModelFile, read_clip, read_openai_dvae};
use tessera_text::clip_tokenizer;

use super::output::{Content, Outputs};
use super::read;
use crate::args::{Convert, WhichGelu};

pub fn run(convert: Convert) -> Result<()> {
    match convert {
        Convert::OpenaiDvae { encoder, decoder, out } => {
            let outputs = Outputs::check(&[(&out, Content::Model)], false)?;
            let file = read_openai_dvae(&read(&encoder)?, &read(&decoder)?)?;
            write(&file, &file.dvae, &out, &outputs)
        }
        Convert::Clip { weights, vocab, gelu, out } => {
            let outputs = Outputs::check(&[(&out, Content::Model)], false)?;
            let tokenizer = clip_tokenizer(&read(&vocab)?).with_context(|| vocab.display().to_string())?;
            let gelu = gelu.map(|gelu| match gelu {
                WhichGelu::Quick => Gelu::Quick,
                WhichGelu::Exact => Gelu::Exact,
            });
            let file = read_clip(&read(&weights)?, tokenizer, gelu)
                .with_context(|| weights.display().to_string())?;
            write(&file, &file.rerank, &out, &outputs)
        }
    }
}

fn write(file: &ModelFile, weights: &[HostTensor], out: &Path, outputs: &Outputs) -> Result<()> {
    atomic::write(out, &file.to_bytes()?)?;
    let n: usize = weights.iter().map(|tensor| tensor.values.len()).sum();
    outputs.say(format_args!("{n} weights in {}", out.display()))
}
