//! A data set that is read completely into memory: both splits of a folder that `tessera data`
//! wrote.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::files::note_beside_tars;
use crate::fingerprint::Fingerprint;
use crate::shard::{Sample, Split, read_shards};
use crate::skipped::Skipped;

/// Both splits of a data set. Use an `Arc` to share it between threads.
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
        let mut skipped = Skipped::default();
        if !dir.join(Split::Train.name()).is_dir() {
            bail!("no shards in {}; {MAKE_SOME}", dir.join(Split::Train.name()).display());
        }
        let train = read_split(dir, Split::Train, &mut skipped)?;
        let has_val = dir.join(Split::Val.name()).is_dir();
        let val = if has_val { read_split(dir, Split::Val, &mut skipped)? } else { Vec::new() };
        if train.is_empty() {
            bail!("no usable sample in {}: {}; {MAKE_SOME}", dir.display(), skipped.brief());
        }
        check_complete(dir)?;
        note_beside_tars(dir, &mut skipped)?;
        Ok(Self { train, val, skipped })
    }

    /// Returns a hash of the complete content. Sets with different content have different
    /// fingerprints.
    pub fn fingerprint(&self) -> String {
        let mut fingerprint = Fingerprint::new();
        for split in Split::ALL {
            let samples = self.split(split);
            fingerprint.number(samples.len());
            for sample in samples {
                fingerprint.bytes(sample.key.as_bytes());
                fingerprint.texts(&sample.captions);
                fingerprint.number(sample.image.width() as usize);
                fingerprint.bytes(&sample.image);
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
    let mut reader = read_shards(&dir.join(split.name())).with_context(|| MAKE_SOME)?;
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
