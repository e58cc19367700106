//! Reads the samples of tars, from this program or others (img2dataset, WebDataset), one by one.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use tessera_text::text_lines;

use super::index::{TarSample, list_samples};
use super::{Meta, Sample};
use crate::picture;
use crate::place::Place;
use crate::skipped::{SkipKind, Skipped};

/// Reads the samples of all tars in `dir`, with the tars sorted by name.
///
/// # Errors
/// If `dir` cannot be read or contains no tar.
pub fn read_shards(dir: &Path) -> Result<ShardReader> {
    let shards = some_shards(dir)?.into();
    Ok(ShardReader { shards, waiting: VecDeque::new(), skipped: Skipped::default() })
}

/// Returns the paths of the tars in `dir`, sorted by name.
///
/// # Errors
/// If `dir` cannot be read or contains no tar.
pub(crate) fn some_shards(dir: &Path) -> Result<Vec<PathBuf>> {
    let shards = list_shards(dir)?;
    ensure!(!shards.is_empty(), "no .tar files in {}", dir.display());
    Ok(shards)
}

/// Returns the paths of the tars in `dir`, sorted by name.
pub(crate) fn list_shards(dir: &Path) -> Result<Vec<PathBuf>> {
    let read_error = || format!("cannot read the folder {}", dir.display());
    let mut shards = Vec::new();
    for entry in fs::read_dir(dir).with_context(read_error)? {
        let path = entry.with_context(read_error)?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if path.extension().is_some_and(|extension| extension == "tar") && !is_hidden {
            shards.push(path);
        }
    }
    shards.sort();
    Ok(shards)
}

/// An iterator over the samples of a folder of tars; see [`read_shards`].
pub struct ShardReader {
    shards: VecDeque<PathBuf>,
    waiting: VecDeque<TarSample>,
    skipped: Skipped,
}

impl ShardReader {
    /// Returns what was skipped so far.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// Returns the next picture that can be decoded, with its captions. The captions are empty if
    /// it has none or they cannot be decoded.
    pub(crate) fn next_picture(&mut self) -> Option<Result<(RgbImage, Vec<String>)>> {
        self.next_value(TarSample::into_picture)
    }

    /// Returns the next value that `take` returns for a sample. `take` returns `None` for samples
    /// that it records as skipped.
    fn next_value<T>(&mut self, take: fn(TarSample, &mut Skipped) -> Option<T>) -> Option<Result<T>> {
        loop {
            while let Some(sample) = self.waiting.pop_front() {
                if let Some(taken) = take(sample, &mut self.skipped) {
                    return Some(Ok(taken));
                }
            }
            let path = self.shards.pop_front()?;
            match list_samples(&path, &mut self.skipped) {
                Ok(samples) => self.waiting = samples.into(),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Iterator for ShardReader {
    type Item = Result<Sample>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_value(TarSample::into_sample)
    }
}

impl TarSample {
    fn into_sample(self, skipped: &mut Skipped) -> Option<Sample> {
        let captions = self.some_captions(skipped)?;
        let image = self.picture(skipped)?;
        Some(Sample { key: self.key(), image, captions, meta: read_meta(self.json.as_ref()) })
    }

    /// Returns the sample's name.
    pub(crate) fn key(&self) -> String {
        String::from_utf8_lossy(&self.key).into_owned()
    }

    /// Returns the captions of a sample that has captions and a picture.
    pub(crate) fn some_captions(&self, skipped: &mut Skipped) -> Option<Vec<String>> {
        let orphan = match (&self.image, &self.txt) {
            (Some(_), Some(_)) => None,
            (Some(_), None) => Some(SkipKind::NoCaption),
            (None, _) => Some(SkipKind::NoPicture),
        };
        if let Some(kind) = orphan {
            skipped.note(kind, self.name());
            return None;
        }
        let captions = self.captions(skipped)?;
        if captions.is_empty() {
            skipped.note(SkipKind::NoCaption, format!("{}: the caption is empty", self.name()));
            return None;
        }
        Some(captions)
    }

    fn into_picture(self, skipped: &mut Skipped) -> Option<(RgbImage, Vec<String>)> {
        if self.image.is_none() {
            skipped.note(SkipKind::NoPicture, self.name());
            return None;
        }
        let image = self.picture(skipped)?;
        Some((image, self.captions(skipped).unwrap_or_default()))
    }

    fn captions(&self, skipped: &mut Skipped) -> Option<Vec<String>> {
        match self.txt.as_ref().map(Place::read_text).transpose() {
            Ok(text) => Some(text_lines(&text.unwrap_or_default())),
            Err(error) => {
                skipped.note(SkipKind::Damaged, format!("the caption of {}: {error:#}", self.name()));
                None
            }
        }
    }

    fn picture(&self, skipped: &mut Skipped) -> Option<RgbImage> {
        let (image, _) = self.image.as_ref()?;
        self.unless_damaged(image.read_picture().and_then(|bytes| picture::decode(&bytes)), skipped)
    }

    /// Returns the value, or records the sample as damaged.
    pub(crate) fn unless_damaged<T>(&self, value: Result<T>, skipped: &mut Skipped) -> Option<T> {
        match value {
            Ok(value) => Some(value),
            Err(error) => {
                skipped.note(SkipKind::Damaged, format!("{}: {error:#}", self.name()));
                None
            }
        }
    }
}

/// Reads the origin of a picture.
pub(crate) fn read_meta(json: Option<&Place>) -> Meta {
    // The JSON of other programs may have other types in these fields. The origin is then unknown,
    // but the sample is valid.
    let json = json.and_then(|json| json.read_text().ok());
    json.and_then(|json| serde_json::from_str::<Meta>(&json).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use tar::EntryType;

    use super::super::{Packed, ShardWriter, Split, test_sample};
    use super::*;

    fn write_shards(dir: &Path, count: u64, per_shard: usize) {
        let mut writer = ShardWriter::new(dir, per_shard);
        for number in 0..count {
            writer.write(&Packed::new(&test_sample(number, Split::Val)).unwrap()).unwrap();
        }
        writer.finish().unwrap();
    }

    fn write_tar(path: &Path, members: &[(&str, &[u8])]) {
        let mut builder = tar::Builder::new(File::create(path).unwrap());
        for (name, bytes) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.into_inner().unwrap();
    }

    #[test]
    fn samples_come_back_in_order() {
        let dir = tempfile::tempdir().unwrap();
        write_shards(dir.path(), 7, 3);
        assert!(dir.path().join("00002.tar").exists() && !dir.path().join("00003.tar").exists());
        let mut reader = read_shards(dir.path()).unwrap();
        let samples: Vec<Sample> = reader.by_ref().map(Result::unwrap).collect();
        assert_eq!(samples, (0..7).map(|number| test_sample(number, Split::Val)).collect::<Vec<_>>());
        assert_eq!(reader.skipped().total(), 0);
    }

    #[test]
    fn same_samples_give_the_same_bytes() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write_shards(a.path(), 3, 1000);
        write_shards(b.path(), 3, 1000);
        assert_eq!(
            fs::read(a.path().join("00000.tar")).unwrap(),
            fs::read(b.path().join("00000.tar")).unwrap()
        );
    }

    #[test]
    fn damaged_samples_are_skipped_and_reported() {
        let dir = tempfile::tempdir().unwrap();
        let png = picture::encode_png(&test_sample(1, Split::Train).image).unwrap();
        let members: &[(&str, &[u8])] = &[
            ("a/1.png", &png),
            ("a/1.txt", b"one\n\n two \n"),
            ("a/1.json", b"{\"width\": 3, \"concept\": \"one\"}"),
            ("a/2.png", &png[..40]),
            ("a/2.txt", b"half a picture"),
            ("a/3.png", &png),
            ("a/4.txt", b"no picture"),
            ("a/5.png", &png),
            ("a/5.txt", b" \n"),
            ("a/readme", b"ignored"),
        ];
        write_tar(&dir.path().join("x.tar"), members);
        let mut reader = read_shards(dir.path()).unwrap();
        let samples: Vec<Sample> = reader.by_ref().map(Result::unwrap).collect();
        assert_eq!(samples.len(), 1);
        assert_eq!(
            (samples[0].captions.join("|").as_str(), samples[0].meta.concept.as_str()),
            ("one|two", "one")
        );
        let skipped = reader.skipped();
        let count = |kind| skipped.count(&kind);
        assert_eq!(
            [SkipKind::Damaged, SkipKind::NoCaption, SkipKind::NoPicture, SkipKind::Ending(String::new())]
                .map(count),
            [1, 2, 1, 1]
        );
        assert!(skipped.to_string().contains("a/2 in"), "{skipped}");
    }

    #[test]
    fn members_are_paired_in_any_order_and_others_counted() {
        let dir = tempfile::tempdir().unwrap();
        let png = picture::encode_png(&test_sample(1, Split::Train).image).unwrap();
        let members: &[(&str, &[u8])] = &[
            ("b.png", &png),
            ("a.jfif", &png),
            ("22.05.png", &png),
            ("c.gif", b"GIF"),
            ("a.txt", b"first"),
            ("b.txt", b"second"),
            ("b.jpg", &png),
            ("._b.png", b"of some other system"),
        ];
        write_tar(&dir.path().join("x.tar"), members);
        let mut reader = read_shards(dir.path()).unwrap();
        let captions: Vec<String> = reader.by_ref().map(|sample| sample.unwrap().captions.concat()).collect();
        assert_eq!(captions, ["second", "first"]);
        let count = |kind| reader.skipped().count(&kind);
        let endings = ["gif", "05.png"].map(|ending| count(SkipKind::Ending(ending.into())));
        assert_eq!((endings, count(SkipKind::SameName), reader.skipped().total()), ([1, 1], 1, 3));
    }

    #[test]
    fn links_and_devices_are_reported_but_folders_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let png = picture::encode_png(&test_sample(1, Split::Train).image).unwrap();
        let mut builder = tar::Builder::new(File::create(dir.path().join("x.tar")).unwrap());
        let mut add = |name: &str, kind: EntryType, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(bytes.len() as u64);
            match kind {
                EntryType::Link | EntryType::Symlink => builder.append_link(&mut header, name, "a.png"),
                _ => builder.append_data(&mut header, name, bytes),
            }
            .unwrap();
        };
        add("deep/", EntryType::Directory, b"");
        add("a.png", EntryType::Regular, &png);
        add("a.txt", EntryType::Continuous, b"a thing");
        add("hard.png", EntryType::Link, b"");
        add("hard.txt", EntryType::Regular, b"the same thing");
        add("deep/symbolic.jpg", EntryType::Symlink, b"");
        add(".hidden.png", EntryType::Symlink, b"");
        add("pipe.png", EntryType::Fifo, b"");
        builder.into_inner().unwrap();
        let mut reader = read_shards(dir.path()).unwrap();
        let captions: Vec<String> = reader.by_ref().map(|sample| sample.unwrap().captions.concat()).collect();
        let skipped = reader.skipped();
        assert_eq!(captions, ["a thing"]);
        let kinds = [SkipKind::LinkInTar, SkipKind::Unreadable, SkipKind::NoPicture];
        assert_eq!(kinds.map(|kind| skipped.count(&kind)), [2, 1, 1], "{skipped}");
        let report = skipped.to_string();
        assert!(
            report.starts_with("skipped 4: 1 unreadable, 1 caption without a picture, 2 links in tars"),
            "{report}"
        );
        assert!(report.contains("--hard-dereference") && report.contains("hard.png in"), "{report}");
    }

    #[test]
    fn truncated_tar_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        write_shards(dir.path(), 3, 1000);
        let path = dir.path().join("00000.tar");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..700]).unwrap();
        let error = read_shards(dir.path()).unwrap().next().unwrap().unwrap_err();
        assert!(format!("{error:#}").contains("not a complete tar"), "{error:#}");
    }

    #[test]
    fn folder_without_tars_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_shards(dir.path()).err().unwrap().to_string().contains("no .tar files"));
    }
}
