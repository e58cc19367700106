//! An index of a data set: its pictures are read when they are needed, so a set may be larger than
//! memory.
//!
//! Opening a set reads and decodes every picture once: this finds damaged pictures, the sizes of
//! the others and the fingerprint of the set. Then only captions and the places of pictures are in
//! memory: about 400 bytes for a sample with one caption of 50 characters.

use std::borrow::Cow;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use super::{MAKE_SOME, add_sample, read_splits};
use crate::fingerprint::Fingerprint;
use crate::picture::decode;
use crate::place::Place;
use crate::shard::{Sample, Split, TarSample, list_samples, read_meta, some_shards};
use crate::skipped::Skipped;

/// The number of pictures that are decoded in parallel when a set is opened.
const BATCH: usize = 64;

/// Both splits of a data set, whose pictures are in files.
#[derive(Debug)]
pub struct DatasetIndex {
    /// The training samples. Never empty.
    pub train: Vec<IndexedSample>,
    /// The validation samples. Empty if the folder has no `val`.
    pub val: Vec<IndexedSample>,
    /// The items that were skipped in both splits.
    pub skipped: Skipped,
    fingerprint: String,
}

/// A sample whose picture is in a file.
#[derive(Debug, Clone)]
pub struct IndexedSample {
    /// The sample's name in the set.
    pub key: String,
    /// The captions of the sample that is read. Never empty.
    pub captions: Vec<String>,
    split: Split,
    /// Width and height of the picture in pixels.
    size: (u32, u32),
    image: Place,
    image_crc32: u32,
    json: Option<Place>,
}

/// A sample in memory or in a file.
pub trait ReadSample: Sync {
    /// Returns the sample's name in the set.
    fn key(&self) -> &str;

    /// Returns width and height of the picture in pixels.
    fn size(&self) -> (u32, u32);

    /// Returns the sample, which may be read from a file.
    ///
    /// # Errors
    /// If the file cannot be read or was changed after the set was opened.
    fn sample(&self) -> Result<Cow<'_, Sample>>;
}

impl ReadSample for Sample {
    fn key(&self) -> &str {
        &self.key
    }

    fn size(&self) -> (u32, u32) {
        self.image.dimensions()
    }

    fn sample(&self) -> Result<Cow<'_, Sample>> {
        Ok(Cow::Borrowed(self))
    }
}

impl ReadSample for IndexedSample {
    fn key(&self) -> &str {
        &self.key
    }

    fn size(&self) -> (u32, u32) {
        self.size
    }

    fn sample(&self) -> Result<Cow<'_, Sample>> {
        let read = || {
            let bytes = self.image.read_picture()?;
            ensure!(
                crc32fast::hash(&bytes) == self.image_crc32,
                "{} was changed after the data set was opened; run the command again",
                self.image.file().display()
            );
            decode(&bytes)
        };
        let image = read().with_context(|| format!("cannot read picture {}", self.key))?;
        let mut meta = read_meta(self.json.as_ref());
        meta.split = self.split;
        Ok(Cow::Owned(Sample { key: self.key.clone(), image, captions: self.captions.clone(), meta }))
    }
}

impl DatasetIndex {
    /// Indexes `dir/train` and, if it exists, `dir/val`.
    ///
    /// # Errors
    /// As for [`Dataset::open`](super::Dataset::open).
    pub fn open(dir: &Path) -> Result<Self> {
        let mut fingerprint = Fingerprint::new();
        let index = |dir: &Path, split, skipped: &mut Skipped| {
            let (samples, hash) = index_split(dir, split, skipped)?;
            fingerprint.number(samples.len());
            fingerprint.append(&hash);
            Ok(samples)
        };
        let ([train, val], skipped) = read_splits(dir, index)?;
        if !dir.join(Split::Val.name()).is_dir() {
            fingerprint.number(val.len());
        }
        Ok(Self { train, val, skipped, fingerprint: fingerprint.finish() })
    }

    /// Returns a hash of the complete content when the set was opened, equal to that of
    /// [`Dataset::fingerprint`](super::Dataset::fingerprint).
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Returns the samples of one split.
    pub fn split(&self, split: Split) -> &[IndexedSample] {
        match split {
            Split::Train => &self.train,
            Split::Val => &self.val,
        }
    }
}

/// Returns the samples of a folder of tars and the hash of all of them.
fn index_split(dir: &Path, split: Split, skipped: &mut Skipped) -> Result<(Vec<IndexedSample>, Fingerprint)> {
    let (mut samples, mut hash) = (Vec::new(), Fingerprint::new());
    for path in some_shards(dir).with_context(|| MAKE_SOME)? {
        for batch in list_samples(&path, skipped)?.chunks(BATCH) {
            let indexed = batch.par_iter().map(|sample| index_sample(sample, split));
            for (indexed, passed) in indexed.collect::<Vec<_>>() {
                skipped.absorb(passed);
                if let Some((sample, part)) = indexed {
                    samples.push(sample);
                    hash.append(&part);
                }
            }
        }
    }
    Ok((samples, hash))
}

/// Reads a sample once and returns its entry and its hash, or why it is skipped.
fn index_sample(sample: &TarSample, split: Split) -> (Option<(IndexedSample, Fingerprint)>, Skipped) {
    let mut skipped = Skipped::default();
    let mut index = || {
        let captions = sample.some_captions(&mut skipped)?;
        let (place, _) = sample.image.as_ref()?;
        let read = place.read_picture().and_then(|bytes| Ok((crc32fast::hash(&bytes), decode(&bytes)?)));
        let (image_crc32, image) = sample.unless_damaged(read, &mut skipped)?;
        let (key, size, mut hash) = (sample.key(), image.dimensions(), Fingerprint::new());
        add_sample(&mut hash, &key, &captions, &image);
        let (image, json) = (place.clone(), sample.json.clone());
        Some((IndexedSample { key, captions, split, size, image, image_crc32, json }, hash))
    };
    let indexed = index();
    (indexed, skipped)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Dataset;
    use super::*;
    use crate::shard::{Packed, ShardWriter, test_sample};
    use crate::skipped::SkipKind;

    /// Writes a set of seven pictures, of which the third is damaged, in tars of two.
    fn damaged_set(dir: &Path) {
        for (split, numbers) in [(Split::Train, 0..5), (Split::Val, 5..7)] {
            let mut writer = ShardWriter::new(&dir.join(split.name()), 2);
            for number in numbers {
                writer.write(&Packed::new(&test_sample(number, split)).unwrap()).unwrap();
            }
            writer.finish().unwrap();
        }
        overwrite_picture(&dir.join("train/00001.tar"));
    }

    /// Overwrites the end of the signature of the first picture in a tar.
    fn overwrite_picture(tar: &Path) {
        let mut bytes = fs::read(tar).unwrap();
        let at = bytes.windows(4).position(|window| window == b"IHDR").unwrap();
        bytes[at..at + 4].copy_from_slice(b"ihdr");
        fs::write(tar, bytes).unwrap();
    }

    #[test]
    fn indexed_set_equals_the_set_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        damaged_set(dir.path());
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/emoji");
        for path in [dir.path(), &fixture] {
            let (index, set) = (DatasetIndex::open(path).unwrap(), Dataset::open(path).unwrap());
            assert_eq!((index.fingerprint(), &index.skipped), (set.fingerprint().as_str(), &set.skipped));
            for split in Split::ALL {
                let samples: Vec<Sample> =
                    index.split(split).iter().map(|entry| entry.sample().unwrap().into_owned()).collect();
                assert!(samples == set.split(split), "{} of {}", split.name(), path.display());
                let same = |(entry, sample): (&IndexedSample, &Sample)| {
                    (entry.key(), entry.size()) == (sample.key(), sample.size())
                };
                assert!(index.split(split).iter().zip(set.split(split)).all(same));
            }
        }
        assert_eq!(DatasetIndex::open(dir.path()).unwrap().skipped.count(&SkipKind::Damaged), 1);
        fs::remove_dir_all(dir.path().join("val")).unwrap();
        let index = DatasetIndex::open(dir.path()).unwrap();
        assert_eq!(index.fingerprint(), Dataset::open(dir.path()).unwrap().fingerprint());
    }

    /// An index has no copy of the pictures: damage to a file after it was opened is an error.
    #[test]
    fn pictures_are_read_from_the_file_when_they_are_needed() {
        let dir = tempfile::tempdir().unwrap();
        damaged_set(dir.path());
        let index = DatasetIndex::open(dir.path()).unwrap();
        let error = || format!("{:#}", index.train[0].sample().unwrap_err());
        overwrite_picture(&dir.path().join("train/00000.tar"));
        assert!(error().starts_with("cannot read picture 000000000: "), "{}", error());
        assert!(error().contains("00000.tar was changed after the data set was opened"), "{}", error());
        assert!(index.train[1].sample().is_ok());
        fs::remove_file(dir.path().join("train/00000.tar")).unwrap();
        assert!(error().contains("cannot read") && error().contains("00000.tar"), "{}", error());
    }

    #[test]
    fn changed_captions_are_those_of_the_sample() {
        let dir = tempfile::tempdir().unwrap();
        damaged_set(dir.path());
        let mut index = DatasetIndex::open(dir.path()).unwrap();
        index.val[1].captions = vec!["short".to_string()];
        assert_eq!(index.val[1].sample().unwrap().captions, ["short"]);
    }

    #[test]
    fn missing_and_truncated_sets_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let error = || format!("{:#}", DatasetIndex::open(dir.path()).unwrap_err());
        assert!(error().contains("tessera data emoji"), "{}", error());
        fs::create_dir(dir.path().join("train")).unwrap();
        assert!(error().contains("no .tar files") && error().contains("tessera data emoji"), "{}", error());
        fs::remove_dir(dir.path().join("train")).unwrap();
        damaged_set(dir.path());
        let tar = dir.path().join("train/00002.tar");
        fs::write(&tar, &fs::read(&tar).unwrap()[..700]).unwrap();
        assert!(error().contains("not a complete tar"), "{}", error());
    }
}
