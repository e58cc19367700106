//! Extracts the features of a set of pictures. They can be stored in a folder, from which an
//! interrupted extraction continues.

use std::path::Path;

use anyhow::Result;
use image::RgbImage;
use tessera_base::{Progress, Reporter};
use tessera_data::{Pictures, Sample, Skipped};

use crate::features::FeatureExtractor;
use crate::store::Store;
use crate::vectors::Vectors;

/// The batch size of feature extraction.
pub(crate) const BATCH: usize = 32;

/// A transformation of every picture before its features are extracted, such as a blur.
#[derive(Clone, Copy)]
pub struct Change<'a> {
    /// The name of the transformation. It is part of the key under which features are stored, so
    /// that those of different transformations are kept apart.
    pub name: &'a str,
    /// The transformation.
    pub apply: &'a (dyn Fn(RgbImage) -> RgbImage + Sync),
}

impl Change<'_> {
    /// Returns pictures unchanged.
    pub const NONE: Change<'static> = Change { name: "", apply: &|picture| picture };
}

/// The settings of feature extraction.
#[derive(Clone, Copy)]
pub struct Extraction<'a> {
    /// The folder in which features are stored, if any. An interrupted extraction continues from
    /// there.
    pub work: Option<&'a Path>,
    /// Receives the progress and the number of skipped files.
    pub reporter: &'a dyn Reporter,
}

impl Extraction<'_> {
    /// Extracts the features of all pictures under `path`, after applying `change` to each.
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

    /// Extracts the features of a pair of sets, without a transformation.
    ///
    /// # Errors
    /// As for [`Extraction::features`].
    pub fn pair(&self, [real, fake]: [&Path; 2], network: &dyn FeatureExtractor) -> Result<[Vectors; 2]> {
        let vectors = |path: &Path| self.features(path, network, Change::NONE)?.vectors();
        Ok([vectors(real)?, vectors(fake)?])
    }
}

/// Reports the files of a set that were skipped, if any.
pub(crate) fn report_skipped(path: &Path, skipped: &Skipped, reporter: &dyn Reporter) {
    if skipped.total() > 0 {
        reporter.note(&format!("{}: {skipped}", path.display()));
    }
}

/// Extracts the features of the pictures of `samples`.
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
