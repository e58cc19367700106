//! `train bpe`: the caption vocabulary (paper §2.2), from the training captions of a data set.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tessera_data::Dataset;
use tessera_text::{Bpe, normalise};

use crate::config::Config;
use crate::run_dir::write_whole;

/// Learns the vocabulary and writes `RUN/tokenizer.json`; returns it and its path.
pub fn train_bpe(config: &Config, data: &Path, run: &Path) -> Result<(Bpe, PathBuf)> {
    let dataset = Dataset::open(data)?;
    let captions = dataset.train.iter().flat_map(|sample| &sample.captions).map(|caption| normalise(caption));
    let captions: Vec<String> = captions.collect();
    let bpe = Bpe::train(captions.iter(), config.prior.text_vocab)?;
    std::fs::create_dir_all(run).with_context(|| format!("cannot create {}", run.display()))?;
    let path = run.join("tokenizer.json");
    write_whole(&path, bpe.to_json()?.as_bytes())?;
    Ok((bpe, path))
}
