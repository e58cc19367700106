//! Reading tars of samples, ours or anyone's (img2dataset, WebDataset).
//!
//! One tar at a time is read into memory and its pictures are decoded as they are asked for.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tessera_text::{decode_text, text_lines};

use super::{Meta, Sample, SkipReason, Skipped};
use crate::picture;

/// The largest tar that is read.
const MAX_SHARD_BYTES: u64 = 8 << 30;
/// The largest member that is read; a larger one is skipped like a damaged one.
const MAX_MEMBER_BYTES: u64 = 64 << 20;

/// The samples of all tars of `dir` in the order of their names; an error if there is no tar.
pub fn read_shards(dir: &Path) -> Result<ShardReader> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read the folder {}", dir.display()))?;
    let mut shards = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read the folder {}", dir.display()))?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.extension().is_some_and(|extension| extension == "tar") && !is_hidden {
            shards.push(path);
        }
    }
    ensure!(!shards.is_empty(), "no .tar files in {}", dir.display());
    shards.sort();
    Ok(ShardReader { shards: shards.into(), waiting: VecDeque::new(), skipped: Skipped::default() })
}

/// An iterator over the samples of a folder of tars; see [`read_shards`].
pub struct ShardReader {
    shards: VecDeque<PathBuf>,
    waiting: VecDeque<Group>,
    skipped: Skipped,
}

impl ShardReader {
    /// What was passed over so far.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }
}

impl Iterator for ShardReader {
    type Item = Result<Sample>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            while let Some(group) = self.waiting.pop_front() {
                match group.into_sample() {
                    Ok(sample) => return Some(Ok(sample)),
                    Err((reason, name)) => self.skipped.note(reason, name),
                }
            }
            let path = self.shards.pop_front()?;
            match read_groups(&path) {
                Ok(groups) => self.waiting = groups,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// The members of one key.
struct Group {
    shard: PathBuf,
    key: String,
    image: Option<Vec<u8>>,
    txt: Option<Vec<u8>>,
    json: Option<Vec<u8>>,
}

impl Group {
    fn into_sample(self) -> Result<Sample, (SkipReason, String)> {
        let name = format!("{} in {}", self.key, self.shard.display());
        let damaged = |why: String| (SkipReason::Corrupt, format!("{name}: {why}"));
        let (image, txt) = match (self.image, self.txt) {
            (Some(image), Some(txt)) => (image, txt),
            (Some(_), None) => return Err((SkipReason::OrphanImage, format!("{name}: no caption"))),
            (None, _) => return Err((SkipReason::OrphanCaption, format!("{name}: no picture"))),
        };
        let text = decode_text(&txt).map_err(|error| damaged(format!("the caption is {error:#}")))?;
        let captions = text_lines(&text);
        if captions.is_empty() {
            return Err((SkipReason::OrphanImage, format!("{name}: the caption is empty")));
        }
        let image = picture::decode(&image).map_err(|error| damaged(format!("{error:#}")))?;
        // Other makers' json may have anything under these names: then the origin is unknown, the sample still good.
        let meta = self.json.and_then(|json| serde_json::from_slice::<Meta>(&json).ok()).unwrap_or_default();
        Ok(Sample { key: self.key, image, captions, meta })
    }
}

/// Reads a whole tar and gathers neighbouring members by key.
fn read_groups(path: &Path) -> Result<VecDeque<Group>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let size = file.metadata().with_context(|| format!("cannot read {}", path.display()))?.len();
    ensure!(
        size <= MAX_SHARD_BYTES,
        "{} has {size} bytes, more than the {MAX_SHARD_BYTES} allowed; split it into smaller tars",
        path.display()
    );
    let broken = || format!("{} is not a whole tar file; make or download it again", path.display());
    let mut archive = tar::Archive::new(BufReader::new(file));
    let mut groups: VecDeque<Group> = VecDeque::new();
    for entry in archive.entries().with_context(broken)? {
        let mut entry = entry.with_context(broken)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some((key, kind)) = key_and_kind(&name) else { continue };
        let mut bytes = Vec::new();
        // A member over the limit stays empty, which no decoder takes for a picture.
        if entry.size() <= MAX_MEMBER_BYTES {
            entry.read_to_end(&mut bytes).with_context(broken)?;
            ensure!(bytes.len() as u64 == entry.size(), broken());
        }
        if groups.back().is_none_or(|group| group.key != key) {
            let (shard, key) = (path.to_path_buf(), key.to_string());
            groups.push_back(Group { shard, key, image: None, txt: None, json: None });
        }
        if let Some(group) = groups.back_mut() {
            let slot = match kind {
                Kind::Image => &mut group.image,
                Kind::Txt => &mut group.txt,
                Kind::Json => &mut group.json,
            };
            *slot = Some(bytes);
        }
    }
    Ok(groups)
}

enum Kind {
    Image,
    Txt,
    Json,
}

/// Splits a member's name at the first dot of its last part, as WebDataset does.
fn key_and_kind(name: &str) -> Option<(&str, Kind)> {
    let file_start = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = file_start + name[file_start..].find('.')?;
    let kind = match name[dot + 1..].to_ascii_lowercase().as_str() {
        "png" | "jpg" | "jpeg" | "webp" => Kind::Image,
        "txt" => Kind::Txt,
        "json" => Kind::Json,
        _ => return None,
    };
    Some((&name[..dot], kind))
}

#[cfg(test)]
mod tests {
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
    fn the_same_samples_make_the_same_bytes() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write_shards(a.path(), 3, 1000);
        write_shards(b.path(), 3, 1000);
        assert_eq!(
            fs::read(a.path().join("00000.tar")).unwrap(),
            fs::read(b.path().join("00000.tar")).unwrap()
        );
    }

    #[test]
    fn damaged_samples_are_skipped_and_named() {
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
        assert_eq!((skipped.corrupt, skipped.orphan_image, skipped.orphan_caption), (1, 2, 1));
        assert!(skipped.to_string().contains("a/2 in"), "{skipped}");
    }

    #[test]
    fn a_tar_that_breaks_off_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        write_shards(dir.path(), 3, 1000);
        let path = dir.path().join("00000.tar");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..700]).unwrap();
        let error = read_shards(dir.path()).unwrap().next().unwrap().unwrap_err();
        assert!(format!("{error:#}").contains("not a whole tar"), "{error:#}");
    }

    #[test]
    fn a_folder_without_tars_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_shards(dir.path()).err().unwrap().to_string().contains("no .tar files"));
    }
}
