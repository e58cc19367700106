//! `train bpe`: the caption vocabulary (paper §2.2), from the training captions of a data set.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tessera_data::atomic;
use tessera_text::Bpe;

use crate::captions::bounded_captions;
use crate::config::Config;
use crate::dvae::open_dataset;
use crate::reporter::Reporter;

/// Learns the vocabulary and writes `RUN/tokenizer.json`; returns it and its path.
///
/// # Errors
/// If the folder holds another tokenizer: a model may depend on it.
pub fn train_bpe(
    config: &Config,
    data: &Path,
    run: &Path,
    reporter: &dyn Reporter,
) -> Result<(Bpe, PathBuf)> {
    let dataset = open_dataset(data, reporter)?;
    std::fs::create_dir_all(run).with_context(|| format!("cannot create {}", run.display()))?;
    let captions = bounded_captions(dataset.train.iter().flat_map(|sample| &sample.captions), reporter);
    let bpe = Bpe::train(captions.iter(), config.prior.text_vocab)?;
    let (path, json) = (run.join("tokenizer.json"), bpe.to_json()?);
    let free = std::fs::read_to_string(&path).map_or(true, |old| old == json);
    ensure!(free, "{} is another tokenizer; choose another --run", path.display());
    atomic::write(&path, json.as_bytes())?;
    Ok((bpe, path))
}
