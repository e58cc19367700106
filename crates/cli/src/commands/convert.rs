//! `tessera convert`: converts published weights, or the checkpoint of a run, to a model file.

use std::path::Path;

use anyhow::{Context, Result};
use tessera_base::atomic;
use tessera_data::read_text;
use tessera_model::rerank::Gelu;
use tessera_model::weights::{ClipHints, HostTensor, ModelFile, StorageDtype, read_clip, read_openai_dvae};
use tessera_text::clip_tokenizer;
use tessera_train::{RunFiles, run_model};

use super::output::{Content, Outputs};
use super::read;
use crate::args::{Convert, Dtype, WhichGelu};
use crate::reporter::Terminal;

/// Runs `tessera convert`.
pub fn run(convert: Convert) -> Result<()> {
    match convert {
        Convert::Run { run, bpe, dvae, out } => {
            let outputs = Outputs::check(&[(&out, Content::Model)], false)?;
            let files = RunFiles { bpe: bpe.as_deref(), dvae: dvae.as_deref() };
            let file = run_model(&run, files, &Terminal::default())?;
            let weights = [&file.prior, &file.rerank, &file.dvae].into_iter().find(|part| !part.is_empty());
            write(&file, weights.map_or(&[], Vec::as_slice), &out, &outputs)
        }
        Convert::OpenaiDvae { encoder, decoder, stored, out } => {
            let outputs = Outputs::check(&[(&out, Content::Model)], false)?;
            let file = read_openai_dvae(&read(&encoder)?, &read(&decoder)?)?;
            let file = ModelFile { storage: storage(stored.dtype), ..file };
            write(&file, &file.dvae, &out, &outputs)
        }
        Convert::Clip { weights, vocab, gelu, image_heads, text_heads, stored, out } => {
            let outputs = Outputs::check(&[(&out, Content::Model)], false)?;
            let tokenizer = clip_tokenizer(&read(&vocab)?).with_context(|| vocab.display().to_string())?;
            let gelu = gelu.map(|gelu| match gelu {
                WhichGelu::Quick => Gelu::Quick,
                WhichGelu::Exact => Gelu::Exact,
            });
            let heads = image_heads.zip(text_heads).map(|(image, text)| [image, text]);
            let hints = ClipHints { gelu, heads, ..hints_beside(&weights)? };
            let file = read_clip(&read(&weights)?, tokenizer, &hints)
                .with_context(|| weights.display().to_string())?;
            let file = ModelFile { storage: storage(stored.dtype), ..file };
            write(&file, &file.rerank, &out, &outputs)
        }
    }
}

fn storage(dtype: Dtype) -> StorageDtype {
    match dtype {
        Dtype::Exact => StorageDtype::Exact,
        Dtype::F32 => StorageDtype::F32,
        Dtype::F16 => StorageDtype::F16,
    }
}

/// Reads the config files in the folder of the weights, if they exist.
fn hints_beside(weights: &Path) -> Result<ClipHints> {
    let read = |name: &str| {
        let path = weights.with_file_name(name);
        path.exists().then(|| read_text(&path)).transpose()
    };
    Ok(ClipHints {
        hugging_face: read("config.json")?,
        preprocessor: read("preprocessor_config.json")?,
        open_clip: read("open_clip_config.json")?,
        ..ClipHints::default()
    })
}

fn write(file: &ModelFile, weights: &[HostTensor], out: &Path, outputs: &Outputs) -> Result<()> {
    atomic::write(out, &file.to_bytes()?)?;
    let n: usize = weights.iter().map(|tensor| tensor.values.len()).sum();
    outputs.say(format_args!("{n} weights in {}", out.display()))
}
