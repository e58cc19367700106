//! Loads the feature extractors that the flags name, and selects the protocol of FID and IS.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tessera_data::{read_text, text_lines};
use tessera_eval::{
    DmGan, Embedding, FeatureExtractor, Gaussian, Inception, Protocol, Resize, Store, read_statistics,
};
use tessera_model::nn::Compute;
use tessera_model::rerank::Reranker;

use crate::args::{self, Network, OnDevice, Resizing, STDIN};
use crate::commands::{compute, model_file};

/// Runs `measure` with the network that the flags name, for metrics without a protocol.
pub fn with_network<T>(
    flags: &Network,
    measure: impl FnOnce(&dyn FeatureExtractor) -> Result<T>,
) -> Result<T> {
    ensure!(flags.protocol.is_none(), "--protocol works only with FID and IS; leave it out here");
    with_one(flags, measure)
}

/// Runs `measure` with the networks and the protocol that the flags name.
pub fn with_protocol<T>(flags: &Network, measure: impl FnOnce(Protocol) -> Result<T>) -> Result<T> {
    match flags.protocol {
        Some(args::Protocol::DmGan) => measure(Protocol::DmGan(&dm_gan(&flags.inception, flags.on)?)),
        None => with_one(flags, |network| measure(Protocol::One(network))),
    }
}

fn with_one<T>(flags: &Network, measure: impl FnOnce(&dyn FeatureExtractor) -> Result<T>) -> Result<T> {
    if let Some(network) = inception(&flags.inception, flags.resize, flags.on)? {
        return measure(&network);
    }
    let classes = match &flags.classes {
        None => Vec::new(),
        Some(path) => text_lines(&read_text(path)?),
    };
    measure(&Embedding::new(&network_of(flags)?, &classes)?)
}

/// Loads the networks of DM-GAN's protocol.
pub fn dm_gan(files: &[PathBuf], on: OnDevice) -> Result<DmGan> {
    let device = on.device.open()?;
    let read = |file: &PathBuf| Inception::read(file, Resize::DmGan, &device);
    DmGan::new(files.iter().map(read).collect::<Result<_>>()?)
}

/// Loads the Inception in `files`, if there is one.
pub fn inception(files: &[PathBuf], resize: Resizing, on: OnDevice) -> Result<Option<Inception>> {
    let resize = match resize {
        Resizing::PytorchFid => Resize::PytorchFid,
        Resizing::TorchFidelity => Resize::TorchFidelity,
    };
    match files {
        [] => Ok(None),
        [file] => Inception::read(file, resize, &on.device.open()?).map(Some),
        _ => bail!("{} files of --inception; wanted one, or two with --protocol dm-gan", files.len()),
    }
}

/// Loads the contrastive model that the flags name, or the embedded one.
pub fn network_of(flags: &Network) -> Result<Reranker> {
    reranker(flags.rerank.as_deref(), &compute(flags.on, None, flags.precision)?)
}

/// Loads the contrastive model in a file, or the embedded one.
pub fn reranker(path: Option<&Path>, compute: &Compute) -> Result<Reranker> {
    let file = model_file(path)?;
    let named = || path.map_or("the embedded model".to_string(), |path| path.display().to_string());
    file.reranker(compute).with_context(named)
}

/// Whether a set is given by its statistics instead of its pictures. Standard input can contain
/// only statistics.
pub fn is_statistics(path: &Path) -> bool {
    path == Path::new(STDIN)
        || path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("npz"))
}

/// Returns the mean and covariance of a set: those in a file of statistics, or those of the
/// features that `extract` returns for its pictures.
pub fn gaussian(
    set: &Path,
    protocol: Protocol,
    extract: impl FnOnce(&Path, &dyn FeatureExtractor) -> Result<Store>,
) -> Result<Gaussian> {
    let network = protocol.distance()?;
    match is_statistics(set) {
        true => read_statistics(set, network),
        false => protocol.gaussian(&extract(set, network)?),
    }
}
