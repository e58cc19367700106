//! Both splits of a folder that `tessera data` wrote, read completely into memory ([`Dataset`]) or
//! only indexed ([`DatasetIndex`]).

mod index;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use image::RgbImage;

use crate::files::note_beside_tars;
use crate::fingerprint::Fingerprint;
use crate::shard::{Sample, Split, read_shards};
use crate::skipped::Skipped;

pub use index::{DatasetIndex, IndexedSample, ReadSample};

/// Both splits of a data set, in memory. Use an `Arc` to share it between threads.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The training samples. Never empty.
    pub train: Vec<Sample>,
    /// The validation samples. Empty if the folder has no `val`.
    pub val: Vec<Sample>,
    /// The items that were skipped in both splits.
    pub skipped: Skipped,
}

impl Dataset {
    /// Reads `dir/train` and, if it exists, `dir/val`.
    pub fn open(dir: &Path) -> Result<Self> {
        let ([train, val], skipped) = read_splits(dir, read_split)?;
        Ok(Self { train, val, skipped })
    }

    /// Returns a hash of the complete content. Sets with different content have different
    /// fingerprints.
    pub fn fingerprint(&self) -> String {
        let mut fingerprint = Fingerprint::new();
        for split in Split::ALL {
            let samples = self.split(split);
            fingerprint.number(samples.len());
            for Sample { key, captions, image, .. } in samples {
                add_sample(&mut fingerprint, key, captions, image);
            }
        }
        fingerprint.finish()
    }

    /// Returns the samples of one split.
    pub fn split(&self, split: Split) -> &[Sample] {
        match split {
            Split::Train => &self.train,
            Split::Val => &self.val,
        }
    }
}

/// Hashes a sample for the fingerprint of its set.
fn add_sample(fingerprint: &mut Fingerprint, key: &str, captions: &[String], image: &RgbImage) {
    fingerprint.bytes(key.as_bytes());
    fingerprint.texts(captions);
    fingerprint.number(image.width() as usize);
    fingerprint.bytes(image);
}

/// Reads `dir/train` and, if it exists, `dir/val`.
///
/// # Errors
/// If the set is incomplete or has no usable training sample.
fn read_splits<T>(
    dir: &Path,
    mut read: impl FnMut(&Path, Split, &mut Skipped) -> Result<Vec<T>>,
) -> Result<([Vec<T>; 2], Skipped)> {
    let mut skipped = Skipped::default();
    let [train, val] = Split::ALL.map(|split| dir.join(split.name()));
    if !train.is_dir() {
        bail!("no shards in {}; {MAKE_SOME}", train.display());
    }
    let train = read(&train, Split::Train, &mut skipped)?;
    let val = match val.is_dir() {
        true => read(&val, Split::Val, &mut skipped)?,
        false => Vec::new(),
    };
    if train.is_empty() {
        bail!("no usable sample in {}: {}; {MAKE_SOME}", dir.display(), skipped.brief());
    }
    check_complete(dir)?;
    note_beside_tars(dir, &mut skipped)?;
    Ok(([train, val], skipped))
}

const MAKE_SOME: &str = "make them with `tessera data emoji` or `tessera data folder`";

/// Returns an error for a set that `tessera data` did not finish. Sets of other programs have no
/// `dataset.json` and pass.
fn check_complete(dir: &Path) -> Result<()> {
    let Ok(text) = std::fs::read_to_string(dir.join("dataset.json")) else { return Ok(()) };
    let record: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("{}/dataset.json is damaged", dir.display()))?;
    ensure!(!record["counts"].is_null(), "{} is not finished; run its `tessera data` again", dir.display());
    Ok(())
}

fn read_split(dir: &Path, split: Split, skipped: &mut Skipped) -> Result<Vec<Sample>> {
    let mut reader = read_shards(dir).with_context(|| MAKE_SOME)?;
    let mut samples = Vec::new();
    for sample in reader.by_ref() {
        let mut sample = sample?;
        sample.meta.split = split;
        samples.push(sample);
    }
    skipped.absorb(reader.skipped().clone());
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::{Packed, ShardWriter, test_sample};

    fn write_split(dir: &Path, split: Split, numbers: std::ops::Range<u64>) {
        let mut writer = ShardWriter::new(&dir.join(split.name()), 1000);
        for number in numbers {
            writer.write(&Packed::new(&test_sample(number, split)).unwrap()).unwrap();
        }
        writer.finish().unwrap();
    }

    #[test]
    fn both_splits_are_read() {
        let dir = tempfile::tempdir().unwrap();
        write_split(dir.path(), Split::Train, 0..5);
        write_split(dir.path(), Split::Val, 5..7);
        let set = Dataset::open(dir.path()).unwrap();
        assert_eq!((set.train.len(), set.val.len(), set.skipped.total()), (5, 2, 0));
        assert_eq!(set.val[1], test_sample(6, Split::Val));
    }

    #[test]
    fn committed_emoji_set_opens_and_holds_out_combinations() {
        let set = Dataset::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/emoji")).unwrap();
        assert!(set.train.len() >= 150 && !set.val.is_empty() && set.skipped.total() == 0);
        assert!(set.train.iter().any(|sample| sample.captions[0] == "a red apple, flat style"));
        for held in &set.val {
            let pair = |sample: &Sample| (sample.meta.concept.clone(), sample.meta.style.clone());
            assert!(set.train.iter().all(|sample| pair(sample) != pair(held)));
            assert!(set.train.iter().any(|sample| sample.meta.concept == held.meta.concept));
        }
    }

    #[test]
    fn missing_set_is_an_error_with_advice() {
        let dir = tempfile::tempdir().unwrap();
        let error = Dataset::open(&dir.path().join("nowhere")).unwrap_err().to_string();
        assert!(error.contains("nowhere") && error.contains("tessera data emoji"), "{error}");
    }

    #[test]
    fn unfinished_set_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        write_split(dir.path(), Split::Train, 0..2);
        std::fs::write(dir.path().join("dataset.json"), r#"{"recipe":{},"counts":null}"#).unwrap();
        assert!(Dataset::open(dir.path()).unwrap_err().to_string().contains("not finished"));
    }

    #[test]
    fn any_difference_changes_the_fingerprint() {
        let dir = tempfile::tempdir().unwrap();
        write_split(dir.path(), Split::Train, 0..3);
        write_split(dir.path(), Split::Val, 3..4);
        let set = Dataset::open(dir.path()).unwrap();
        assert_eq!(set.fingerprint(), Dataset::open(dir.path()).unwrap().fingerprint());
        let with = |change: &dyn Fn(&mut Dataset)| {
            let mut other = set.clone();
            change(&mut other);
            other.fingerprint()
        };
        let captions = |captions: &[&str]| {
            let captions: Vec<String> = captions.iter().map(ToString::to_string).collect();
            with(&|set| set.train[1].captions = captions.clone())
        };
        let all = [
            set.fingerprint(),
            captions(&["ab", "c"]),
            captions(&["a", "bc"]),
            captions(&["abc"]),
            with(&|set| {
                // The last sample of one split becomes the first of the next.
                let moved = set.train.pop().unwrap();
                set.val.insert(0, moved);
            }),
            with(&|set| {
                let bytes = set.train[0].image.as_raw().clone();
                set.train[0].image = image::RgbImage::from_raw(4, 16, bytes).unwrap();
            }),
        ];
        let different: std::collections::HashSet<&String> = all.iter().collect();
        assert_eq!(different.len(), all.len(), "{all:?}");
    }

    #[test]
    fn validation_is_optional() {
        let dir = tempfile::tempdir().unwrap();
        write_split(dir.path(), Split::Train, 0..2);
        assert!(Dataset::open(dir.path()).unwrap().val.is_empty());
    }
}
