//! The pictures of a folder, one after another, for measurements: files in any depth of folders, or the tars of a data set.
//!
//! Nothing but a few pictures is in memory at a time. Their order is that of their names, so that a measurement which was interrupted
//! can go on behind those that it has seen.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use rayon::prelude::*;
use tessera_text::text_lines;

use crate::picture::decode;
use crate::shard::{Split, read_shards};
use crate::sources::list_files;
use crate::text_file::{read_at_most, read_text_of_at_most};

/// Files that are decoded together.
const BATCH: usize = 16;
/// The largest picture file that is read.
const MAX_IMAGE_BYTES: u64 = 256 << 20;
/// The largest caption file that is read.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// A set of pictures that is read as it is asked for.
#[derive(Debug, Clone)]
pub struct Pictures {
    path: PathBuf,
    kind: Kind,
    /// Files that are no pictures.
    other_files: usize,
}

#[derive(Debug, Clone)]
enum Kind {
    Files(Vec<PathBuf>),
    /// Folders of tars.
    Shards(Vec<PathBuf>),
}

/// A picture and, where there is one, its first caption: the first line of the `.txt` beside the file.
#[derive(Debug, Clone)]
pub struct Captioned {
    /// Pixels.
    pub image: RgbImage,
    /// What it shows.
    pub caption: Option<String>,
}

impl Pictures {
    /// The pictures under `path`: a folder of PNG, JPEG or WebP files, a data set with its splits `train` and `val`, or one such split.
    ///
    /// # Errors
    /// If there are none.
    pub fn open(path: &Path) -> Result<Pictures> {
        let shown = path.display();
        ensure!(path.is_dir(), "{shown} is no folder; wanted one of pictures, or a data set");
        let splits = Split::ALL.map(|split| path.join(split.name()));
        let has_tars = |dir: &Path| dir.is_dir() && read_shards(dir).is_ok();
        let shards: Vec<PathBuf> =
            [path.to_path_buf()].into_iter().chain(splits).filter(|dir| has_tars(dir)).collect();
        if !shards.is_empty() {
            return Ok(Pictures { path: path.into(), kind: Kind::Shards(shards), other_files: 0 });
        }
        let mut files = Vec::new();
        list_files(path, &mut files)?;
        files.sort();
        let (files, others): (Vec<PathBuf>, Vec<PathBuf>) =
            files.into_iter().partition(|file| is_picture(file));
        let other_files =
            others.iter().filter(|file| file.extension().is_none_or(|end| end != "txt")).count();
        ensure!(
            !files.is_empty(),
            "no pictures in {shown} ({other_files} other files); wanted .png, .jpg or .webp files, or a data set"
        );
        Ok(Pictures { path: path.into(), kind: Kind::Files(files), other_files })
    }

    /// How many there are, if that is known before they are read.
    pub fn count(&self) -> Option<usize> {
        match &self.kind {
            Kind::Files(files) => Some(files.len()),
            Kind::Shards(_) => None,
        }
    }

    /// Files that are no pictures and no captions of any.
    pub fn other_files(&self) -> usize {
        self.other_files
    }

    /// A name of what there is: another one is another set.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hasher = crc32fast::Hasher::new();
        let mut add = |file: &Path| -> Result<()> {
            hasher.update(file.strip_prefix(&self.path).unwrap_or(file).to_string_lossy().as_bytes());
            let meta = fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?;
            hasher.update(&meta.len().to_le_bytes());
            let changed =
                meta.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
            hasher.update(&changed.map_or(0, |time| time.as_nanos()).to_le_bytes());
            Ok(())
        };
        match &self.kind {
            Kind::Files(files) => files.iter().try_for_each(|file| add(file))?,
            Kind::Shards(dirs) => {
                let mut files = Vec::new();
                dirs.iter().try_for_each(|dir| list_files(dir, &mut files))?;
                files.sort();
                files.iter().try_for_each(|file| add(file))?;
            }
        }
        Ok(format!("{:08x}", hasher.finalize()))
    }

    /// All of them but the first `skip`, in the order of their names. A file that is damaged is an error that names it.
    pub fn from(&self, skip: usize) -> Box<dyn Iterator<Item = Result<Captioned>> + '_> {
        match &self.kind {
            Kind::Files(files) => Box::new(
                files[skip.min(files.len())..]
                    .chunks(BATCH)
                    .flat_map(|files| files.par_iter().map(|file| read_file(file)).collect::<Vec<_>>()),
            ),
            Kind::Shards(dirs) => {
                let readers = dirs.iter().map(|dir| read_shards(dir));
                let samples = readers.flat_map(|reader| -> Box<dyn Iterator<Item = Result<_>>> {
                    match reader {
                        Ok(reader) => Box::new(reader),
                        Err(error) => Box::new(std::iter::once(Err(error))),
                    }
                });
                Box::new(samples.skip(skip).map(|sample| {
                    let sample = sample?;
                    Ok(Captioned { caption: sample.captions.first().cloned(), image: sample.image })
                }))
            }
        }
    }
}

fn is_picture(file: &Path) -> bool {
    let extension = file.extension().unwrap_or_default().to_ascii_lowercase();
    ["png", "jpg", "jpeg", "webp"].iter().any(|known| extension == *known)
}

fn read_file(file: &Path) -> Result<Captioned> {
    let image = decode(&read_at_most(file, MAX_IMAGE_BYTES)?).with_context(|| file.display().to_string())?;
    let text = file.with_extension("txt");
    let caption = match text.is_file() {
        true => text_lines(&read_text_of_at_most(&text, MAX_TEXT_BYTES)?).into_iter().next(),
        false => None,
    };
    Ok(Captioned { image, caption })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::encode_png;

    /// A folder of `n` pictures, each of another grey, the odd ones with captions, and two other files.
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
    fn pictures_come_in_the_order_of_their_names_whatever_their_size_and_from_anywhere() {
        let dir = folder(100);
        let pictures = Pictures::open(dir.path()).unwrap();
        assert_eq!((pictures.count(), pictures.other_files()), (Some(100), 1));
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
    fn another_file_is_another_fingerprint() {
        let dir = folder(4);
        let of = || Pictures::open(dir.path()).unwrap().fingerprint().unwrap();
        let before = of();
        assert_eq!(before, of());
        fs::remove_file(dir.path().join("003.png")).unwrap();
        assert_ne!(before, of());
    }

    #[test]
    fn a_damaged_picture_is_named_and_a_folder_without_pictures_says_what_was_wanted() {
        let dir = folder(4);
        fs::write(dir.path().join("000.png"), "no picture").unwrap();
        let error = Pictures::open(dir.path()).unwrap().from(0).find_map(Result::err).unwrap();
        assert!(format!("{error:#}").contains("000.png: "), "{error:#}");
        let empty = tempfile::tempdir().unwrap();
        fs::write(empty.path().join("notes.md"), "").unwrap();
        let error = Pictures::open(empty.path()).unwrap_err().to_string();
        assert!(
            error.contains("(1 other files); wanted .png, .jpg or .webp files, or a data set"),
            "{error}"
        );
        assert!(Pictures::open(&dir.path().join("no")).unwrap_err().to_string().contains("is no folder"));
    }

    #[test]
    fn a_data_set_is_read_like_a_folder() {
        let set = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/emoji");
        let count = |path: &Path| Pictures::open(path).unwrap().from(0).map(Result::unwrap).count();
        let (train, val) = (count(&set.join("train")), count(&set.join("val")));
        assert!(train > 100 && val > 0);
        assert_eq!(count(&set), train + val);
        let first = Pictures::open(&set).unwrap().from(0).next().unwrap().unwrap();
        assert!(first.caption.is_some() && first.image.width() > 8);
    }
}
