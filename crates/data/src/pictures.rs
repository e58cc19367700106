//! Iterates over the pictures of a folder for evaluation: picture files at any depth, or the tars
//! of a data set.
//!
//! Only a few pictures are in memory at a time. They are sorted by name, so an interrupted
//! measurement can continue after the pictures that it has already processed. Damaged pictures are
//! skipped and counted, both in folders and in tars.

use std::collections::VecDeque;
use std::iter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use image::RgbImage;
use rayon::prelude::*;
use tessera_text::text_lines;

use crate::files::{PictureFile, find_pictures};
use crate::fingerprint::{Fingerprint, file_sum};
use crate::picture::decode;
use crate::shard::{ShardReader, Split, list_shards, middle, read_shards};
use crate::skipped::{SkipKind, Skipped};
use crate::text_file::{read_at_most, read_text_of_at_most};

/// The number of files that are decoded in parallel.
const BATCH: usize = 16;
/// The maximum size of a picture file.
pub(crate) const MAX_IMAGE_BYTES: u64 = 256 << 20;
/// The maximum size of a caption file.
pub(crate) const MAX_TEXT_BYTES: u64 = 1 << 20;

/// A set of pictures that is read lazily.
#[derive(Debug, Clone)]
pub struct Pictures {
    path: PathBuf,
    kind: Kind,
    /// Files that are not pictures or are not read.
    skipped: Skipped,
}

#[derive(Debug, Clone)]
enum Kind {
    Files(Vec<PictureFile>),
    /// The folders that contain tars.
    Shards(Vec<PathBuf>),
}

/// A picture and, if it has one, its first caption: the first line of the `.txt` or `.caption` file
/// with the same name.
#[derive(Debug, Clone)]
pub struct Captioned {
    /// The pixels.
    pub image: RgbImage,
    /// The first caption.
    pub caption: Option<String>,
}

impl Pictures {
    /// Opens `path`: a folder of picture files, a data set with the splits `train` and `val`, or a
    /// folder of tars. If there are several, the splits of a data set take precedence over picture
    /// files, and picture files over other tars.
    ///
    /// # Errors
    /// If there are no pictures.
    pub fn open(path: &Path) -> Result<Pictures> {
        let shown = path.display();
        ensure!(path.is_dir(), "{shown} is not a folder; wanted a folder of pictures or a data set");
        let splits = Split::ALL.map(|split| path.join(split.name()));
        let has_tars = |dir: &PathBuf| list_shards(dir).is_ok_and(|tars| !tars.is_empty());
        let is_set = splits.iter().any(has_tars);
        let shards: Vec<PathBuf> = [path.to_path_buf()].into_iter().chain(splits).filter(has_tars).collect();
        let (pictures, mut skipped) = find_pictures(path, &[])?.only_pictures();
        let kind = match (shards.is_empty(), pictures.is_empty()) {
            (true, true) => bail!(
                "no pictures in {shown}: {}; wanted .png, .jpg or .webp files, or a data set",
                skipped.brief()
            ),
            (false, true) => Kind::Shards(shards),
            (false, false) if is_set => Kind::Shards(shards),
            (_, false) => Kind::Files(pictures.clone()),
        };
        if matches!(kind, Kind::Shards(_)) {
            skipped = Skipped::default();
            pictures.iter().for_each(|file| skipped.note(SkipKind::BesideTars, file.image.display()));
        }
        Ok(Pictures { path: path.into(), kind, skipped })
    }

    /// Returns the number of pictures including damaged ones, if it is known before they are read.
    pub fn count(&self) -> Option<usize> {
        match &self.kind {
            Kind::Files(files) => Some(files.len()),
            Kind::Shards(_) => None,
        }
    }

    /// Returns a hash of the names and the contents of all files. It does not depend on the
    /// location of the folder. Every file is read.
    ///
    /// # Errors
    /// If a folder of tars cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let files: Vec<PathBuf> = match &self.kind {
            Kind::Files(files) => {
                files.iter().flat_map(|file| iter::once(&file.image).chain(&file.text)).cloned().collect()
            }
            Kind::Shards(dirs) => {
                dirs.iter().map(|dir| list_shards(dir)).collect::<Result<Vec<_>>>()?.concat()
            }
        };
        let sums: Vec<u32> = files.par_iter().map(|file| file_sum(file)).collect();
        let mut fingerprint = Fingerprint::new();
        for (file, sum) in files.iter().zip(sums) {
            let name = file.strip_prefix(&self.path).unwrap_or(file);
            fingerprint.bytes(name.as_os_str().as_encoded_bytes());
            fingerprint.number(sum as usize);
        }
        Ok(fingerprint.finish())
    }

    /// Iterates over the readable pictures, sorted by name, after skipping the first `skip` of
    /// them.
    pub fn from(&self, skip: usize) -> PictureReader<'_> {
        let source = match &self.kind {
            Kind::Files(files) => Source::Files { files, read: VecDeque::new() },
            Kind::Shards(dirs) => Source::Shards { dirs, reader: None },
        };
        let mut reader = PictureReader { source, skipped: self.skipped.clone() };
        reader.by_ref().take(skip).for_each(drop);
        reader
    }
}

/// An iterator over pictures, created by [`Pictures::from`].
pub struct PictureReader<'a> {
    source: Source<'a>,
    skipped: Skipped,
}

enum Source<'a> {
    Files { files: &'a [PictureFile], read: VecDeque<(Option<Captioned>, Skipped)> },
    Shards { dirs: &'a [PathBuf], reader: Option<ShardReader> },
}

impl PictureReader<'_> {
    /// Returns what was skipped so far.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }
}

impl Iterator for PictureReader<'_> {
    type Item = Result<Captioned>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.source {
            Source::Files { files, read } => next_file(files, read, &mut self.skipped).map(Ok),
            Source::Shards { dirs, reader } => next_in_shards(dirs, reader, &mut self.skipped),
        }
    }
}

fn next_file(
    files: &mut &[PictureFile],
    read: &mut VecDeque<(Option<Captioned>, Skipped)>,
    skipped: &mut Skipped,
) -> Option<Captioned> {
    loop {
        while let Some((picture, passed)) = read.pop_front() {
            skipped.absorb(passed);
            if picture.is_some() {
                return picture;
            }
        }
        let (batch, rest) = files.split_at(BATCH.min(files.len()));
        if batch.is_empty() {
            return None;
        }
        *files = rest;
        read.extend(batch.par_iter().map(read_file).collect::<Vec<_>>());
    }
}

fn next_in_shards(
    dirs: &mut &[PathBuf],
    reader: &mut Option<ShardReader>,
    skipped: &mut Skipped,
) -> Option<Result<Captioned>> {
    loop {
        if let Some(current) = reader {
            if let Some(picture) = current.next_picture() {
                return Some(picture.map(|(image, captions)| cropped(&image, captions)));
            }
            skipped.absorb(current.skipped().clone());
            *reader = None;
        }
        let (dir, rest) = dirs.split_first()?;
        *dirs = rest;
        match read_shards(dir) {
            Ok(next) => *reader = Some(next),
            Err(error) => return Some(Err(error)),
        }
    }
}

/// Crops a picture of a data set to its middle square, because models are trained on squares and
/// draw squares.
fn cropped(image: &RgbImage, captions: Vec<String>) -> Captioned {
    Captioned { image: middle(image), caption: captions.into_iter().next() }
}

/// Reads a picture and its caption. Returns `None` if the picture cannot be decoded, and in
/// addition what was skipped.
fn read_file(file: &PictureFile) -> (Option<Captioned>, Skipped) {
    let mut skipped = Skipped::default();
    let image = read_at_most(&file.image, MAX_IMAGE_BYTES)
        .and_then(|bytes| decode(&bytes).with_context(|| file.image.display().to_string()));
    let mut damaged = |error: anyhow::Error| skipped.note(SkipKind::Damaged, format!("{error:#}"));
    let image = image.map_err(&mut damaged).ok();
    let lines = file
        .text
        .as_ref()
        .map(|text| read_text_of_at_most(text, MAX_TEXT_BYTES).map(|text| text_lines(&text)));
    let captions = lines.transpose().map_err(damaged).ok().flatten().unwrap_or_default();
    (image.map(|image| Captioned { image, caption: captions.into_iter().next() }), skipped)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::picture::encode_png;

    /// Creates a folder of `n` pictures with different grey values, captions for the odd ones, and
    /// two other files.
    fn folder(n: u8) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("deeper")).unwrap();
        for i in 0..n {
            let name = if i % 3 == 0 { format!("{i:03}.png") } else { format!("deeper/{i:03}.PNG") };
            let image = RgbImage::from_pixel(2, 2 + u32::from(i), image::Rgb([i; 3]));
            fs::write(dir.path().join(&name), encode_png(&image).unwrap()).unwrap();
            if i % 2 == 1 {
                fs::write(dir.path().join(&name).with_extension("txt"), format!("\nnumber {i}\nanother\n"))
                    .unwrap();
            }
        }
        fs::write(dir.path().join("notes.md"), "").unwrap();
        fs::write(dir.path().join(".hidden.png"), "").unwrap();
        dir
    }

    #[test]
    fn pictures_are_sorted_by_name_and_can_start_at_any_index() {
        let dir = folder(100);
        let pictures = Pictures::open(dir.path()).unwrap();
        assert_eq!(pictures.count(), Some(100));
        assert_eq!(pictures.from(0).skipped().count(&SkipKind::Ending("md".into())), 1);
        let grey = |picture: &Captioned| picture.image.get_pixel(0, 0).0[0];
        let all: Vec<Captioned> = pictures.from(0).map(Result::unwrap).collect();
        assert_eq!(all.len(), 100);
        let again: Vec<u8> = pictures.from(70).map(|picture| grey(&picture.unwrap())).collect();
        assert_eq!(again, all[70..].iter().map(grey).collect::<Vec<_>>());
        assert_eq!(pictures.from(100).count(), 0);
        let odd = all.iter().find(|picture| grey(picture) == 31).unwrap();
        assert_eq!(odd.caption.as_deref(), Some("number 31"));
        assert!(all.iter().all(|picture| picture.caption.is_some() == (grey(picture) % 2 == 1)));
    }

    #[test]
    fn fingerprint_depends_on_the_content_of_picture_files() {
        let (dir, copy) = (folder(4), folder(4));
        let fingerprint =
            |dir: &tempfile::TempDir| Pictures::open(dir.path()).unwrap().fingerprint().unwrap();
        let before = fingerprint(&dir);
        assert_eq!(before, fingerprint(&copy), "the same files, written at another time");
        // Changed content of the same length and modification time changes the fingerprint.
        let path = dir.path().join("003.png");
        let (mut bytes, time) = (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().modified().unwrap());
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        let changed = fingerprint(&dir);
        fs::remove_file(&path).unwrap();
        let fewer = fingerprint(&dir);
        fs::write(copy.path().join("003.txt"), "another caption").unwrap();
        let different = std::collections::HashSet::from([before, changed, fewer, fingerprint(&copy)]);
        assert_eq!(different.len(), 4, "{different:?}");
    }

    #[test]
    fn fingerprint_depends_on_the_content_of_tars() {
        let (dir, tars) = (folder(4), tempfile::tempdir().unwrap());
        let fingerprint = || Pictures::open(tars.path()).unwrap().fingerprint().unwrap();
        write_tar(&tars.path().join("x.tar"), &[dir.path().join("000.png")]);
        let before = fingerprint();
        write_tar(&tars.path().join("x.tar"), &[dir.path().join("003.png")]);
        assert_ne!(before, fingerprint());
    }

    fn write_tar(path: &Path, files: &[PathBuf]) {
        let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
        files.iter().for_each(|file| tar.append_path_with_name(file, file.file_name().unwrap()).unwrap());
        tar.finish().unwrap();
    }

    #[test]
    fn damaged_pictures_are_skipped_in_folders_and_tars() {
        let dir = folder(4);
        fs::write(dir.path().join("000.png"), "no picture").unwrap();
        let tars = tempfile::tempdir().unwrap();
        let files = ["000.png", "deeper/001.PNG", "deeper/001.txt", "003.png", "003.txt"]
            .map(|name| dir.path().join(name));
        write_tar(&tars.path().join("x.tar"), &files);
        fs::remove_file(dir.path().join("deeper/002.PNG")).unwrap();
        for path in [dir.path(), tars.path()] {
            let pictures = Pictures::open(path).unwrap();
            let mut reader = pictures.from(0);
            let captions: Vec<Option<String>> =
                reader.by_ref().map(|picture| picture.unwrap().caption).collect();
            assert_eq!((captions.len(), captions.iter().flatten().count()), (2, 2), "{}", path.display());
            assert_eq!(reader.skipped().count(&SkipKind::Damaged), 1);
            assert!(reader.skipped().to_string().contains("000"), "{}", reader.skipped());
            assert_eq!(pictures.from(1).count(), 1);
        }
    }

    #[test]
    fn folder_without_pictures_is_an_error_with_advice() {
        let empty = tempfile::tempdir().unwrap();
        fs::write(empty.path().join("notes.md"), "").unwrap();
        let error = Pictures::open(empty.path()).unwrap_err().to_string();
        assert!(
            error.contains("1 .md file") && error.contains("wanted .png, .jpg or .webp files, or a data set"),
            "{error}"
        );
        let error = Pictures::open(&empty.path().join("no")).unwrap_err().to_string();
        assert!(error.contains("is not a folder"), "{error}");
    }

    #[test]
    fn folder_with_pictures_and_tars_reports_what_is_not_read() {
        let dir = folder(4);
        let all = |path: &Path| {
            let pictures = Pictures::open(path).unwrap();
            let mut reader = pictures.from(0);
            (reader.by_ref().map(Result::unwrap).count(), reader.skipped().clone())
        };
        let files = ["000.png", "003.png"].map(|name| dir.path().join(name));
        write_tar(&dir.path().join("backup.tar"), &files);
        let (n, skipped) = all(dir.path());
        assert_eq!((n, skipped.count(&SkipKind::Ending("tar".into()))), (4, 1), "{skipped}");
        // A folder with only tars is read, also without captions. A data set takes precedence over
        // pictures next to it.
        fs::create_dir(dir.path().join("train")).unwrap();
        fs::rename(dir.path().join("backup.tar"), dir.path().join("train/x.tar")).unwrap();
        assert_eq!(all(&dir.path().join("train")).0, 2);
        let (n, skipped) = all(dir.path());
        assert_eq!((n, skipped.count(&SkipKind::BesideTars)), (2, 4), "{skipped}");
    }

    #[test]
    fn data_set_yields_middle_squares() {
        let set = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/emoji");
        let count = |path: &Path| Pictures::open(path).unwrap().from(0).map(Result::unwrap).count();
        let (train, val) = (count(&set.join("train")), count(&set.join("val")));
        assert!(train > 100 && val > 0);
        assert_eq!(count(&set), train + val);
        let first = Pictures::open(&set).unwrap().from(0).next().unwrap().unwrap();
        assert!(first.caption.is_some() && first.image.width() > 8);
        let dir = tempfile::tempdir().unwrap();
        let wide = RgbImage::from_fn(40, 20, |x, y| image::Rgb([x as u8, y as u8, 0]));
        fs::write(dir.path().join("wide.png"), encode_png(&wide).unwrap()).unwrap();
        write_tar(&dir.path().join("x.tar"), &[dir.path().join("wide.png")]);
        fs::remove_file(dir.path().join("wide.png")).unwrap();
        let square = Pictures::open(dir.path()).unwrap().from(0).next().unwrap().unwrap().image;
        assert_eq!(square, image::imageops::crop_imm(&wide, 10, 0, 20, 20).to_image());
    }
}
