//! `tessera pack`: writes a model file for distribution, usually with weights in 8 bits.

use std::path::Path;

use anyhow::{Result, ensure};
use tessera_base::atomic;
use tessera_kernels::Cpu;
use tessera_model::sample::int8_nats_per_token;
use tessera_model::weights::{Int8Change, ModelFile, StorageDtype, model_bytes};

use super::output::{Content, Outputs};
use super::{model_file, model_of};
use crate::args::{Pack, Packing};

/// Runs `tessera pack`.
pub fn run(args: &Pack) -> Result<()> {
    let outputs = Outputs::check(&[(&args.out, Content::Model)], false)?;
    let storage = match args.dtype {
        Packing::Exact => StorageDtype::Exact,
        Packing::F16 => StorageDtype::F16,
        Packing::Int8 => StorageDtype::Int8,
    };
    let before = model_bytes(&args.model)?;
    let mut file = model_of(&before, &args.model)?;
    let was = std::mem::replace(&mut file.storage, storage);
    if let Some(share) = args.caption_drop {
        record_caption_drop(&mut file, share)?;
    }
    if let Some(path) = &args.rerank {
        add_reranker(&mut file, path, &args.model)?;
    }
    if storage == StorageDtype::Int8 && file.config.prior.is_some() {
        measure_int8(&mut file, was, &outputs)?;
    }
    let bytes = file.to_bytes()?;
    atomic::write(&args.out, &bytes)?;
    let [before, after] = [&before[..], &bytes[..]].map(|bytes| bytes.len() as f64 / 1e6);
    outputs.say(format_args!("{before:.1} MB to {after:.1} MB: {}", args.out.display()))
}

/// Measures how much 8-bit weights change predictions, and records it in the file. This cannot be
/// measured if the weights already are in 8 bits; then the file may contain an earlier result.
fn measure_int8(file: &mut ModelFile, was: StorageDtype, outputs: &Outputs) -> Result<()> {
    let changes = "8-bit weights change the distribution of a token by";
    match (file.int8, was) {
        (Int8Change::NatsPerToken(nats), _) => {
            outputs.say(format_args!("{changes} {nats:.4} nats, as the file says"))
        }
        (Int8Change::InCard, _) => {
            outputs.say("how much 8-bit weights change predictions is in the card of the embedded model")
        }
        (Int8Change::Unknown, StorageDtype::Int8) => outputs.say(
            "the weights are in 8 bits already, and the file does not say how much this changes predictions; to measure it, pack the \
             file that they were rounded from",
        ),
        (Int8Change::Unknown, StorageDtype::Exact | StorageDtype::F32 | StorageDtype::F16) => {
            let packed = ModelFile::from_bytes(&file.to_bytes()?)?;
            let cpu = Cpu::best();
            let nats = int8_nats_per_token(&file.prior(cpu)?, packed.prior(cpu)?)?;
            file.int8 = Int8Change::NatsPerToken(nats);
            outputs.say(format_args!("{changes} {nats:.4} nats"))
        }
    }
}

/// Records the fraction of dropped captions in a file that does not contain it yet.
fn record_caption_drop(file: &mut ModelFile, share: f32) -> Result<()> {
    ensure!((0.0..=1.0).contains(&share), "--caption-drop {share}: wanted 0 to 1");
    let previous = file.caption_drop.replace(share);
    ensure!(
        previous.is_none_or(|previous| previous == share),
        "--caption-drop {share}: the file says that it was {}",
        previous.unwrap_or_default()
    );
    Ok(())
}

/// Copies the contrastive model of the file `path` into `file`, which was read from `model`.
fn add_reranker(file: &mut ModelFile, path: &Path, model: &Path) -> Result<()> {
    let theirs = model_file(Some(path))?;
    let shown = path.display();
    ensure!(theirs.config.rerank.is_some(), "{shown} holds no contrastive model; `train rerank` makes one");
    ensure!(
        theirs.tokenizer == file.tokenizer,
        "{shown} was trained with another tokenizer than {}; give both the same --bpe",
        model.display()
    );
    (file.config.rerank, file.rerank) = (theirs.config.rerank, theirs.rerank);
    Ok(())
}
