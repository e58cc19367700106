//! Lists the samples in a tar, from this program or others (img2dataset, WebDataset).
//!
//! Only the headers of the tar are read, and their size is limited. Pictures are read when they
//! are needed, so memory does not grow with the size of a tar or of what it claims to contain.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use tar::EntryType;

use crate::files::FileKind;
use crate::place::{Member, Place};
use crate::skipped::{SkipKind, Skipped};

/// The maximum size of a tar.
const MAX_SHARD_BYTES: u64 = 8 << 30;
/// The size of a block of a tar. The content of a member is padded to complete blocks.
const BLOCK_BYTES: u64 = 512;
/// The maximum size of the headers of a member, which contain its name.
const MAX_HEADER_BYTES: u64 = 1 << 20;
/// The maximum size of the list of samples of a tar: about a million.
const MAX_INDEX_BYTES: usize = 256 << 20;
/// The size of a sample in the list, without its name.
const SAMPLE_BYTES: usize = 256;

/// The members of a tar with the same key.
#[derive(Debug)]
pub(crate) struct TarSample {
    tar: Arc<Path>,
    /// The path in the tar up to the first dot of its last component, as in WebDataset.
    pub(crate) key: Vec<u8>,
    /// The picture, and the ending of its name.
    pub(crate) image: Option<(Place, String)>,
    pub(crate) txt: Option<Place>,
    pub(crate) json: Option<Place>,
}

impl TarSample {
    /// Returns the key and its tar, for messages.
    pub(crate) fn name(&self) -> String {
        format!("{} in {}", String::from_utf8_lossy(&self.key), self.tar.display())
    }
}

/// Lists the samples in a tar, in the order of their first members. Members of one key need not be
/// adjacent.
///
/// # Errors
/// If the tar is damaged or too large.
pub(crate) fn list_samples(path: &Path, skipped: &mut Skipped) -> Result<Vec<TarSample>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let size = file.metadata().with_context(|| format!("cannot read {}", path.display()))?.len();
    ensure!(
        size <= MAX_SHARD_BYTES,
        "{} has {size} bytes, more than the {MAX_SHARD_BYTES} allowed; split it into smaller tars",
        path.display()
    );
    let broken = || format!("{} is not a complete tar file; make or download it again", path.display());
    let left = Cell::new(MAX_HEADER_BYTES);
    let mut archive = tar::Archive::new(HeaderReader { file: BufReader::new(file), left: &left });
    let mut index = Index::new(path);
    for entry in archive.entries_with_seek().with_context(broken)? {
        let entry = entry.with_context(broken)?;
        left.set(MAX_HEADER_BYTES);
        let name = entry.path_bytes();
        let (start, size_in_tar) = (entry.raw_file_position(), entry.size());
        let kind = entry.header().entry_type();
        let end = size_in_tar.checked_next_multiple_of(BLOCK_BYTES).and_then(|size| size.checked_add(start));
        ensure!(kind.is_gnu_sparse() || end.is_some_and(|end| end <= size), broken());
        let place = Place::Member(Member { tar: index.tar.clone(), start, size: size_in_tar });
        index.add(&name, content(kind), place, skipped)?;
    }
    Ok(index.samples)
}

/// Reads the headers of a tar. The tar library keeps the headers of a member in memory, so too many
/// of them are an error.
struct HeaderReader<'a> {
    file: BufReader<File>,
    /// How many bytes the headers of the next member may have.
    left: &'a Cell<u64>,
}

impl Read for HeaderReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(into)?;
        let left = self.left.get().checked_sub(n as u64);
        self.left.set(left.ok_or_else(|| {
            io::Error::other(format!("the name of a file in it takes more than {MAX_HEADER_BYTES} bytes"))
        })?);
        Ok(n)
    }
}

impl Seek for HeaderReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// The list of samples while it grows.
struct Index {
    tar: Arc<Path>,
    samples: Vec<TarSample>,
    /// The positions in `samples` by key.
    positions: HashMap<Vec<u8>, usize>,
    /// How many bytes the list may still grow.
    room: usize,
}

impl Index {
    fn new(tar: &Path) -> Index {
        Index { tar: tar.into(), samples: Vec::new(), positions: HashMap::new(), room: MAX_INDEX_BYTES }
    }

    /// Adds a member, or records it as skipped.
    fn add(&mut self, name: &[u8], content: Content, place: Place, skipped: &mut Skipped) -> Result<()> {
        let tar = self.tar.clone();
        let display_name = || format!("{} in {}", String::from_utf8_lossy(name), tar.display());
        let (key, part, ending) = match (content, member(name)) {
            (Content::Nothing, _) | (_, NameKind::Hidden) => return Ok(()),
            (Content::Skipped(kind), _) => {
                skipped.note(kind, display_name());
                return Ok(());
            }
            (Content::File, NameKind::Other(ending)) => {
                skipped.note(SkipKind::Ending(ending), display_name());
                return Ok(());
            }
            (Content::File, NameKind::Part(key, part, ending)) => (key, part, ending),
        };
        let position = match self.positions.get(key) {
            Some(&position) => position,
            None => self.insert(key)?,
        };
        let sample = &mut self.samples[position];
        let is_first = match part {
            Part::Image => set_first(&mut sample.image, (place, ending)),
            Part::Txt => set_first(&mut sample.txt, place),
            Part::Json => set_first(&mut sample.json, place),
        };
        if !is_first {
            skipped.note(SkipKind::SameName, display_name());
        }
        Ok(())
    }

    /// Adds a sample without members and returns its position.
    fn insert(&mut self, key: &[u8]) -> Result<usize> {
        let Some(room) = self.room.checked_sub(SAMPLE_BYTES + 2 * key.len()) else {
            bail!(
                "{} has more than {} files; split it into smaller tars",
                self.tar.display(),
                self.samples.len()
            );
        };
        self.room = room;
        let (tar, key) = (self.tar.clone(), key.to_vec());
        self.positions.insert(key.clone(), self.samples.len());
        self.samples.push(TarSample { tar, key, image: None, txt: None, json: None });
        Ok(self.samples.len() - 1)
    }
}

/// Sets `slot` if it is empty, and returns whether it was.
fn set_first<T>(slot: &mut Option<T>, value: T) -> bool {
    let is_first = slot.is_none();
    slot.get_or_insert(value);
    is_first
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
        EntryType::Regular | EntryType::Continuous => Content::File,
        EntryType::Link | EntryType::Symlink => Content::Skipped(SkipKind::LinkInTar),
        EntryType::Directory | EntryType::XGlobalHeader => Content::Nothing,
        // A few bytes of a sparse file can claim any size.
        _ => Content::Skipped(SkipKind::Unreadable),
    }
}

/// The kind of a tar member, by its name.
enum NameKind<'a> {
    /// A part of the sample with this key, and its ending.
    Part(&'a [u8], Part, String),
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
fn member(name: &[u8]) -> NameKind<'_> {
    let file_start = name.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let file = &name[file_start..];
    let Some(dot) = file.iter().position(|&byte| byte == b'.') else {
        return NameKind::Other(String::new());
    };
    let key = &name[..file_start + dot];
    let ending = String::from_utf8_lossy(&file[dot + 1..]).into_owned();
    match FileKind::of_ending(OsStr::new(&ending)) {
        _ if dot == 0 => NameKind::Hidden,
        FileKind::Picture => NameKind::Part(key, Part::Image, ending),
        FileKind::Text => NameKind::Part(key, Part::Txt, ending),
        FileKind::Json => NameKind::Part(key, Part::Json, ending),
        FileKind::Tar => NameKind::Other("tar".to_string()),
        FileKind::Other(ending) => NameKind::Other(ending),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a tar of entries with a type, a name and content. Sizes are those of the content.
    fn write_tar(path: &Path, entries: &[(EntryType, &str, &[u8])]) {
        let mut builder = tar::Builder::new(File::create(path).unwrap());
        for (kind, name, bytes) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_path(name).unwrap();
            header.set_entry_type(*kind);
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            builder.append(&header, *bytes).unwrap();
        }
        builder.into_inner().unwrap();
    }

    fn list(entries: &[(EntryType, &str, &[u8])]) -> Result<(Vec<TarSample>, Skipped)> {
        let dir = tempfile::tempdir().unwrap();
        write_tar(&dir.path().join("x.tar"), entries);
        let mut skipped = Skipped::default();
        Ok((list_samples(&dir.path().join("x.tar"), &mut skipped)?, skipped))
    }

    #[test]
    fn keys_that_are_not_utf8_stay_distinct() {
        let key = |name: &'static [u8]| match member(name) {
            NameKind::Part(key, ..) => key,
            NameKind::Other(_) | NameKind::Hidden => panic!("no part"),
        };
        assert_eq!(key(b"a/K\xf6ln.png"), b"a/K\xf6ln");
        assert_ne!(key(b"K\xf6ln.png"), key(b"K\xe4ln.txt"));
    }

    #[test]
    fn members_are_read_from_their_places() {
        let file = EntryType::Regular;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar");
        write_tar(
            &path,
            &[(file, "a/1.x.png", b""), (file, "a/1.jpg", b"bytes"), (file, "a/1.txt", b"text")],
        );
        let mut skipped = Skipped::default();
        let samples = list_samples(&path, &mut skipped).unwrap();
        assert_eq!((samples.len(), samples[0].key.as_slice()), (1, &b"a/1"[..]));
        let (image, ending) = samples[0].image.as_ref().unwrap();
        assert_eq!((image.read_picture().unwrap().as_slice(), ending.as_str()), (&b"bytes"[..], "jpg"));
        assert_eq!(samples[0].txt.as_ref().unwrap().read_text().unwrap(), "text");
        assert_eq!(image.sum(), crc32fast::hash(b"bytes"));
        assert_eq!(skipped.count(&SkipKind::Ending("x.png".into())), 1);
    }

    #[test]
    fn names_of_any_size_are_refused() {
        let long = vec![b'a'; 2 << 20];
        for kind in [EntryType::GNULongName, EntryType::XHeader] {
            let error = list(&[(kind, "x", &long), (EntryType::Regular, "a.png", b"")]).unwrap_err();
            assert!(format!("{error:#}").contains("more than 1048576 bytes"), "{error:#}");
        }
        // Names within the limit are read.
        let (samples, _) = list(&[
            (EntryType::GNULongName, "x", &[&long[..300], b".png\0"].concat()),
            (EntryType::Regular, "a.txt", b""),
        ])
        .unwrap();
        assert_eq!(samples[0].key.len(), 300);
    }

    #[test]
    fn claimed_sizes_allocate_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar");
        let mut header = tar::Header::new_gnu();
        header.set_path("a.png").unwrap();
        header.set_size(1 << 40);
        header.set_cksum();
        std::fs::write(&path, [header.as_bytes().as_slice(), &[0; 2048]].concat()).unwrap();
        let error = list_samples(&path, &mut Skipped::default()).unwrap_err();
        assert!(error.to_string().contains("not a complete tar"), "{error:#}");
        // A sparse file, which is all holes.
        header.set_entry_type(EntryType::GNUSparse);
        header.set_size(0);
        header.as_gnu_mut().unwrap().set_real_size(0);
        header.set_cksum();
        std::fs::write(&path, [header.as_bytes().as_slice(), &[0; 2048]].concat()).unwrap();
        let mut skipped = Skipped::default();
        assert!(list_samples(&path, &mut skipped).unwrap().is_empty());
        assert_eq!(skipped.count(&SkipKind::Unreadable), 1);
    }

    #[test]
    fn list_of_samples_is_limited() {
        let mut index = Index::new(Path::new("x.tar"));
        index.room = 3 * SAMPLE_BYTES;
        let error = (0..9).find_map(|number| index.insert(&[number]).err()).unwrap().to_string();
        assert!(error.contains("x.tar has more than 2 files; split it"), "{error}");
    }

    #[test]
    fn names_in_the_report_are_limited() {
        let mut skipped = Skipped::default();
        let mut index = Index::new(Path::new("x.tar"));
        for number in 0..1000 {
            let place = Place::File("".into());
            index.add(format!("a.{number}").as_bytes(), Content::File, place, &mut skipped).unwrap();
        }
        assert_eq!(skipped.total(), 1000);
        assert!(skipped.to_string().len() < 10_000, "{}", skipped.to_string().len());
    }
}
