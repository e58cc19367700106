//! Reads tars of samples, from this program or others (img2dataset, WebDataset).
//!
//! One tar at a time is read into memory. Its pictures are decoded when the caller requests them.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use tar::EntryType;
use tessera_text::{decode_text, text_lines};

use super::{Meta, Sample};
use crate::files::FileKind;
use crate::picture;
use crate::skipped::{SkipKind, Skipped};

/// The maximum size of a tar.
const MAX_SHARD_BYTES: u64 = 8 << 30;
/// The maximum size of a member. A larger one is skipped as damaged.
const MAX_MEMBER_BYTES: u64 = 64 << 20;

/// Reads the samples of all tars in `dir`, with the tars sorted by name.
///
/// # Errors
/// If `dir` cannot be read or contains no tar.
pub fn read_shards(dir: &Path) -> Result<ShardReader> {
    let shards = list_shards(dir)?;
    ensure!(!shards.is_empty(), "no .tar files in {}", dir.display());
    Ok(ShardReader { shards: shards.into(), waiting: VecDeque::new(), skipped: Skipped::default() })
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
    waiting: VecDeque<Group>,
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
        self.next_value(Group::into_picture)
    }

    /// Returns the next value that `take` returns for a group. `take` returns `None` for groups
    /// that it records as skipped.
    fn next_value<T>(&mut self, take: fn(Group, &mut Skipped) -> Option<T>) -> Option<Result<T>> {
        loop {
            while let Some(group) = self.waiting.pop_front() {
                if let Some(taken) = take(group, &mut self.skipped) {
                    return Some(Ok(taken));
                }
            }
            let path = self.shards.pop_front()?;
            match read_groups(&path, &mut self.skipped) {
                Ok(groups) => self.waiting = groups,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Iterator for ShardReader {
    type Item = Result<Sample>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_value(Group::into_sample)
    }
}

/// The members with the same key.
struct Group {
    /// The key and its tar, for messages.
    name: String,
    key: String,
    image: Option<Vec<u8>>,
    txt: Option<Vec<u8>>,
    json: Option<Vec<u8>>,
}

impl Group {
    fn into_sample(self, skipped: &mut Skipped) -> Option<Sample> {
        let orphan = match (&self.image, &self.txt) {
            (Some(_), Some(_)) => None,
            (Some(_), None) => Some(SkipKind::NoCaption),
            (None, _) => Some(SkipKind::NoPicture),
        };
        if let Some(kind) = orphan {
            skipped.note(kind, self.name);
            return None;
        }
        let captions = self.captions(skipped)?;
        if captions.is_empty() {
            skipped.note(SkipKind::NoCaption, format!("{}: the caption is empty", self.name));
            return None;
        }
        let image = self.picture(skipped)?;
        // The JSON of other programs may have other types in these fields. The origin is then
        // unknown, but the sample is valid.
        let meta = self.json.and_then(|json| serde_json::from_slice::<Meta>(&json).ok()).unwrap_or_default();
        Some(Sample { key: self.key, image, captions, meta })
    }

    fn into_picture(self, skipped: &mut Skipped) -> Option<(RgbImage, Vec<String>)> {
        if self.image.is_none() {
            skipped.note(SkipKind::NoPicture, self.name);
            return None;
        }
        let image = self.picture(skipped)?;
        Some((image, self.captions(skipped).unwrap_or_default()))
    }

    fn captions(&self, skipped: &mut Skipped) -> Option<Vec<String>> {
        match decode_text(self.txt.as_deref().unwrap_or_default()) {
            Ok(text) => Some(text_lines(&text)),
            Err(error) => {
                skipped.note(SkipKind::Damaged, format!("the caption of {}: {error:#}", self.name));
                None
            }
        }
    }

    fn picture(&self, skipped: &mut Skipped) -> Option<RgbImage> {
        match picture::decode(self.image.as_deref().unwrap_or_default()) {
            Ok(image) => Some(image),
            Err(error) => {
                skipped.note(SkipKind::Damaged, format!("{}: {error:#}", self.name));
                None
            }
        }
    }
}

/// Reads a complete tar and groups its members by key. Members of one key need not be adjacent.
/// Groups are in the order of their first member.
fn read_groups(path: &Path, skipped: &mut Skipped) -> Result<VecDeque<Group>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let size = file.metadata().with_context(|| format!("cannot read {}", path.display()))?.len();
    ensure!(
        size <= MAX_SHARD_BYTES,
        "{} has {size} bytes, more than the {MAX_SHARD_BYTES} allowed; split it into smaller tars",
        path.display()
    );
    let broken = || format!("{} is not a complete tar file; make or download it again", path.display());
    let mut archive = tar::Archive::new(BufReader::new(file));
    let mut groups: VecDeque<Group> = VecDeque::new();
    let mut places: HashMap<Vec<u8>, usize> = HashMap::new();
    for entry in archive.entries().with_context(broken)? {
        let mut entry = entry.with_context(broken)?;
        let name = entry.path_bytes().into_owned();
        let display_name = format!("{} in {}", String::from_utf8_lossy(&name), path.display());
        let member = member(&name);
        match content(entry.header().entry_type()) {
            Content::File => {}
            Content::Skipped(kind) if !matches!(member, Member::Hidden) => {
                skipped.note(kind, display_name);
                continue;
            }
            Content::Skipped(_) | Content::Nothing => continue,
        }
        let (key, part) = match member {
            Member::Part(key, part) => (key, part),
            Member::Hidden => continue,
            Member::Other(ending) => {
                skipped.note(SkipKind::Ending(ending), display_name);
                continue;
            }
        };
        let mut bytes = Vec::new();
        // A member over the limit stays empty and fails to decode.
        if entry.size() <= MAX_MEMBER_BYTES {
            entry.read_to_end(&mut bytes).with_context(broken)?;
            ensure!(bytes.len() as u64 == entry.size(), broken());
        }
        let place = *places.entry(key.to_vec()).or_insert_with(|| {
            let key = String::from_utf8_lossy(key).into_owned();
            let name = format!("{key} in {}", path.display());
            groups.push_back(Group { name, key, image: None, txt: None, json: None });
            groups.len() - 1
        });
        let slot = match part {
            Part::Image => &mut groups[place].image,
            Part::Txt => &mut groups[place].txt,
            Part::Json => &mut groups[place].json,
        };
        match slot {
            Some(_) => skipped.note(SkipKind::SameName, display_name),
            None => *slot = Some(bytes),
        }
    }
    Ok(groups)
}

/// The content of a tar member, by its entry type.
enum Content {
    File,
    /// An entry that cannot be read, with the reason.
    Skipped(SkipKind),
    /// A folder or a global header, which needs no report.
    Nothing,
}

fn content(kind: EntryType) -> Content {
    match kind {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Content::File,
        EntryType::Link | EntryType::Symlink => Content::Skipped(SkipKind::LinkInTar),
        EntryType::Directory | EntryType::XGlobalHeader => Content::Nothing,
        _ => Content::Skipped(SkipKind::Unreadable),
    }
}

/// The kind of a tar member, by its name.
enum Member<'a> {
    /// A part of the sample with this key.
    Part(&'a [u8], Part),
    /// Another file, with its ending.
    Other(String),
    Hidden,
}

enum Part {
    Image,
    Txt,
    Json,
}

/// Splits a member's name at the first dot of its last path component, as WebDataset does.
fn member(name: &[u8]) -> Member<'_> {
    let file_start = name.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let file = &name[file_start..];
    let Some(dot) = file.iter().position(|&byte| byte == b'.') else { return Member::Other(String::new()) };
    let key = &name[..file_start + dot];
    let ending = String::from_utf8_lossy(&file[dot + 1..]).into_owned();
    match FileKind::of_ending(OsStr::new(&ending)) {
        _ if dot == 0 => Member::Hidden,
        FileKind::Picture => Member::Part(key, Part::Image),
        FileKind::Text => Member::Part(key, Part::Txt),
        FileKind::Other(ending) if ending == "json" => Member::Part(key, Part::Json),
        FileKind::Other(ending) => Member::Other(ending),
    }
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
    fn keys_that_are_not_utf8_stay_distinct() {
        let key = |name: &'static [u8]| match member(name) {
            Member::Part(key, _) => key,
            Member::Other(_) | Member::Hidden => panic!("no part"),
        };
        assert_eq!(key(b"a/K\xf6ln.png"), b"a/K\xf6ln");
        assert_ne!(key(b"K\xf6ln.png"), key(b"K\xe4ln.txt"));
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
