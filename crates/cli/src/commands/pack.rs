//! `tessera pack`: a model as it is shipped.

use std::path::Path;

use anyhow::{Result, ensure};
use tessera_data::atomic;
use tessera_model::sample::int8_nats_per_token;
use tessera_model::weights::{Int8Change, ModelFile, Storage};

use super::output::{Content, Outputs};
use super::read_model;
use crate::args::{Pack, Packing};

pub fn run(args: &Pack) -> Result<()> {
    let outputs = Outputs::check(&[(&args.out, Content::Model)], false)?;
    let storage = match args.dtype {
        Packing::Exact => Storage::Exact,
        Packing::F16 => Storage::F16,
        Packing::Int8 => Storage::Int8,
    };
    let mut file = ModelFile { storage, ..read_model(&args.model)? };
    if let Some(share) = args.caption_drop {
        record_caption_drop(&mut file, share)?;
    }
    if let Some(path) = &args.rerank {
        add_reranker(&mut file, path, &args.model)?;
    }
    if args.dtype == Packing::Int8 && file.config.prior.is_some() {
        let packed = ModelFile::from_bytes(&file.to_bytes()?)?;
        let device = Default::default();
        let nats = int8_nats_per_token(&file.prior(&device)?, packed.prior(&device)?)?;
        file.int8 = Int8Change::NatsPerToken(nats);
        outputs.say(format_args!("in 8 bits the distribution of a token changes by {nats:.4} nats"))?;
    }
    let bytes = file.to_bytes()?;
    atomic::write(&args.out, &bytes)?;
    let before = std::fs::metadata(&args.model)?.len();
    let [before, after] = [before, bytes.len() as u64].map(|len| len as f64 / 1e6);
    outputs.say(format_args!("{before:.1} MB to {after:.1} MB: {}", args.out.display()))
}

/// Writes down what a file from before this was recorded does not say.
fn record_caption_drop(file: &mut ModelFile, share: f32) -> Result<()> {
    ensure!((0.0..=1.0).contains(&share), "--caption-drop {share}: wanted 0 to 1");
    let said = file.caption_drop.replace(share);
    ensure!(
        said.is_none_or(|said| said == share),
        "--caption-drop {share}: the file says that it was {}",
        said.unwrap_or_default()
    );
    Ok(())
}

/// Puts the contrastive model of the file `path` into `file`, which was read from `model`.
fn add_reranker(file: &mut ModelFile, path: &Path, model: &Path) -> Result<()> {
    let theirs = read_model(path)?;
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
