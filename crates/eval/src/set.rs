//! The features of a set of pictures: extracted once, kept on disk if asked, resumed if interrupted.

use std::path::Path;

use anyhow::Result;
use image::RgbImage;
use tessera_base::{Progress, Reporter};
use tessera_data::{Pictures, Sample, Skipped};

use crate::features::FeatureExtractor;
use crate::store::Store;
use crate::vectors::Vectors;

/// Pictures whose features are extracted together.
pub(crate) const BATCH: usize = 32;

/// A change of every picture of a set before its features are extracted, such as a blur.
#[derive(Clone, Copy)]
pub struct Change<'a> {
    /// Names the change; kept features of differently changed pictures are not confused.
    pub name: &'a str,
    /// The change.
    pub apply: &'a (dyn Fn(RgbImage) -> RgbImage + Sync),
}

impl Change<'_> {
    /// Pictures stay as they are.
    pub const NONE: Change<'static> = Change { name: "", apply: &|picture| picture };
}

/// How the features of sets are extracted.
#[derive(Clone, Copy)]
pub struct Extraction<'a> {
    /// A folder that keeps features, so that an interrupted extraction goes on.
    pub work: Option<&'a Path>,
    /// Receives progress and what was skipped.
    pub reporter: &'a dyn Reporter,
}

impl Extraction<'_> {
    /// The features of all pictures under `path`, each changed first.
    ///
    /// # Errors
    /// If the set cannot be read or the network fails.
    pub fn features(&self, path: &Path, network: &dyn FeatureExtractor, change: Change<'_>) -> Result<Store> {
        let pictures = Pictures::open(path)?;
        let source = format!("{} {}", pictures.fingerprint()?, change.name);
        let mut store = Store::open(self.work, &source, network)?;
        let (task, total) = (path.display().to_string(), pictures.count().unwrap_or_default() as u64);
        let mut rest = pictures.from(store.len());
        let changed = rest.by_ref().map(|picture| Ok((change.apply)(picture?.image)));
        store.extract(network, changed, |done| {
            self.reporter.progress(Progress { task: &task, done: done as u64, total, detail: "" });
        })?;
        report_skipped(path, rest.skipped(), self.reporter);
        Ok(store)
    }

    /// The features of both sets of a pair, unchanged.
    ///
    /// # Errors
    /// As for [`Extraction::features`].
    pub fn pair(&self, [real, fake]: [&Path; 2], network: &dyn FeatureExtractor) -> Result<[Vectors; 2]> {
        let vectors = |path: &Path| self.features(path, network, Change::NONE)?.vectors();
        Ok([vectors(real)?, vectors(fake)?])
    }
}

/// Reports the members of a set that were not measured.
pub(crate) fn report_skipped(path: &Path, skipped: &Skipped, reporter: &dyn Reporter) {
    if skipped.total() > 0 {
        reporter.note(&format!("{}: {skipped}", path.display()));
    }
}

/// The features of the pictures of `samples`.
///
/// # Errors
/// If the network fails.
pub(crate) fn features_of(network: &dyn FeatureExtractor, samples: &[Sample]) -> Result<Vectors> {
    let mut vectors = Vectors::new(&network.name(), network.dims());
    for samples in samples.chunks(BATCH) {
        let pictures: Vec<RgbImage> = samples.iter().map(Sample::middle).collect();
        vectors.push_all(&network.extract(&pictures)?.features)?;
    }
    Ok(vectors)
}
