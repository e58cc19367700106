//! Anyone's own pictures: `name.png` (or jpg, jpeg, webp) beside `name.txt`, one caption a line, in any depth of folders.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use serde_json::json;
use tessera_text::text_lines;

use super::Counts;
use super::output::{self, Opened};
use crate::loader::{Purpose, item_rng, name_index};
use crate::picture::{self, Filter, Square};
use crate::shard::{Meta, Packed, Sample, SkipReason, Skipped, Split};
use crate::share::Share;
use crate::text_file::{read_at_most, read_text_of_at_most};

/// The style of every picture of a folder.
const STYLE: &str = "own";
/// Pictures that are read at once.
const BATCH: usize = 64;
/// The largest picture file that is read.
const MAX_IMAGE_BYTES: u64 = 256 << 20;
/// The largest caption file that is read.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// Stores the captioned pictures under `dir` in `out`, each as the middle square of `size` x `size` pixels.
///
/// About `val_share` of them are held out, by their names, so that adding pictures does not move the others. What
/// is damaged or has no partner is skipped and named; a folder without a single usable pair is an error.
pub fn build_folder(
    dir: &Path,
    out: &Path,
    size: u32,
    val_share: Share,
    seed: u64,
) -> Result<(Counts, Skipped)> {
    ensure!((8..=4096).contains(&size), "size is {size}, wanted 8 to 4096 pixels");
    ensure!(val_share < Share::percent(100), "{val_share} is held out, wanted less than 100%");
    let (pairs, mut skipped) = find_pairs(dir)?;
    ensure!(
        !pairs.is_empty(),
        "no captioned pictures under {} ({skipped}); wanted NAME.png (or jpg, jpeg, webp) beside NAME.txt",
        dir.display()
    );
    let recipe = json!({
        "folder": { "size": size, "val_percent": val_share, "seed": seed, "files": fingerprint(&pairs)? }
    });
    let mut output = match output::open(out, recipe)? {
        Opened::Complete(counts, skipped) => return Ok((counts, skipped)),
        Opened::Ready(output) => output,
    };
    let mut counts = Counts::default();
    for (batch_idx, batch) in pairs.chunks(BATCH).enumerate() {
        let read: Vec<_> = batch
            .par_iter()
            .enumerate()
            .map(|(n, pair)| pair.read(batch_idx * BATCH + n, size, split_of(&pair.name, val_share, seed)))
            .collect();
        for (pair, taken) in batch.iter().zip(read) {
            match taken {
                Ok(taken) => {
                    output.write(taken.split, &taken.packed)?;
                    counts.add_picture(STYLE, taken.split, taken.n_captions);
                    counts.concepts += 1;
                    counts.enlarged += u64::from(taken.is_enlarged);
                }
                Err((reason, why)) => skipped.note(reason, format!("{}: {why}", pair.name.display())),
            }
        }
    }
    ensure!(
        counts.in_split(Split::Train) > 0,
        "no picture is left to train on: {} held out; {skipped}",
        counts.in_split(Split::Val)
    );
    output.finish(&counts, &skipped)?;
    Ok((counts, skipped))
}

/// A picture and its captions, by the path they share.
struct Pair {
    name: PathBuf,
    image: PathBuf,
    text: PathBuf,
}

/// A pair, read and packed.
struct Taken {
    packed: Packed,
    split: Split,
    n_captions: usize,
    is_enlarged: bool,
}

impl Pair {
    fn read(&self, number: usize, size: u32, split: Split) -> Result<Taken, (SkipReason, String)> {
        let damaged = |error: anyhow::Error| (SkipReason::Corrupt, format!("{error:#}"));
        let captions = text_lines(&read_text_of_at_most(&self.text, MAX_TEXT_BYTES).map_err(damaged)?);
        if captions.is_empty() {
            return Err((SkipReason::OrphanImage, "the caption file is empty".to_string()));
        }
        let bytes = read_at_most(&self.image, MAX_IMAGE_BYTES).map_err(damaged)?;
        let image = picture::decode(&bytes).map_err(damaged)?;
        let square = Square::centre(&image);
        let image = picture::resize(&image, square, size, Filter::Lanczos).map_err(damaged)?;
        let stem = self.image.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let meta = Meta {
            source: self.name.to_string_lossy().into_owned(),
            concept: stem,
            style: STYLE.to_string(),
            split,
            ..Meta::default()
        };
        let n_captions = captions.len();
        let sample = Sample { key: format!("{number:09}"), image, captions, meta };
        let packed = Packed::new(&sample).map_err(damaged)?;
        Ok(Taken { packed, split, n_captions, is_enlarged: square.side < size })
    }
}

fn split_of(name: &Path, val_share: Share, seed: u64) -> Split {
    let mut rng = item_rng(seed, Purpose::Split, 0, name_index(name.as_os_str().as_encoded_bytes()));
    if val_share.draws(&mut rng) { Split::Val } else { Split::Train }
}

/// Pairs pictures with captions, in the order of their names; what has no partner is noted.
fn find_pairs(dir: &Path) -> Result<(Vec<Pair>, Skipped)> {
    let mut files = Vec::new();
    list_files(dir, &mut files)?;
    files.sort();
    let (mut images, mut texts, mut skipped) = (BTreeMap::new(), BTreeMap::new(), Skipped::default());
    for file in files {
        let extension = file.extension().unwrap_or_default().to_ascii_lowercase();
        let name = file.with_extension("");
        let name = name.strip_prefix(dir).unwrap_or(&name).to_path_buf();
        match extension.to_str() {
            Some("png" | "jpg" | "jpeg" | "webp") => {
                if let Some(second) = images.insert(name, file) {
                    skipped.note(
                        SkipReason::OrphanImage,
                        format!("{}: a second picture of this name", second.display()),
                    );
                }
            }
            Some("txt") => drop(texts.insert(name, file)),
            _ => (),
        }
    }
    let mut pairs = Vec::new();
    for (name, image) in images {
        match texts.remove(&name) {
            Some(text) => pairs.push(Pair { name, image, text }),
            None => skipped.note(SkipReason::OrphanImage, format!("{}: no caption file", image.display())),
        }
    }
    for text in texts.values() {
        skipped.note(SkipReason::OrphanCaption, format!("{}: no picture", text.display()));
    }
    Ok((pairs, skipped))
}

/// All files under `dir`; links to folders are not followed, so that there is no going round in circles.
/// All files under `dir` that are not hidden.
pub(crate) fn list_files(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let context = || format!("cannot read the folder {}", dir.display());
    for entry in fs::read_dir(dir).with_context(context)? {
        let entry = entry.with_context(context)?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if entry.file_type().with_context(context)?.is_dir() {
            list_files(&entry.path(), files)?;
        } else if entry.path().is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// A number that changes when a file is added, removed, renamed or edited.
fn fingerprint(pairs: &[Pair]) -> Result<String> {
    let mut digest = crc32fast::Hasher::new();
    for path in pairs.iter().flat_map(|pair| [&pair.image, &pair.text]) {
        let metadata = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        let modified =
            metadata.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        let line =
            format!("{} {} {}\n", path.display(), metadata.len(), modified.unwrap_or_default().as_nanos());
        digest.update(line.as_bytes());
    }
    Ok(format!("{} pairs, {:08x}", pairs.len(), digest.finalize()))
}

#[cfg(test)]
mod tests {
    use image::RgbImage;

    use super::*;
    use crate::Dataset;

    fn put(dir: &Path, name: &str, bytes: &[u8]) {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn png(width: u32, height: u32) -> Vec<u8> {
        picture::encode_png(&RgbImage::from_pixel(width, height, image::Rgb([9, 90, 200]))).unwrap()
    }

    #[test]
    fn pairs_are_stored_and_the_rest_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (from, out) = (dir.path().join("mine"), dir.path().join("out"));
        put(&from, "deep/er/boat.png", &png(80, 40));
        put(&from, "deep/er/boat.txt", "a boat\nthe boat\n".as_bytes());
        put(&from, "tiny.PNG", &png(8, 9));
        put(&from, "tiny.txt", b"a tiny thing");
        put(&from, "broken.jpg", b"not a jpeg");
        put(&from, "broken.txt", b"a broken thing");
        put(&from, "alone.webp", &png(8, 8));
        put(&from, "words.txt", b"only words");
        let (counts, skipped) = build_folder(&from, &out, 32, Share::percent(0), 0).unwrap();
        assert_eq!((counts.pictures(), counts.captions, counts.enlarged), (2, 3, 1));
        assert_eq!((skipped.corrupt, skipped.orphan_image, skipped.orphan_caption), (1, 1, 1));
        assert!(skipped.to_string().contains("broken"), "{skipped}");

        let set = Dataset::open(&out).unwrap();
        assert_eq!(set.train[0].captions, ["a boat", "the boat"]);
        assert_eq!((set.train[0].meta.concept.as_str(), set.train[0].meta.style.as_str()), ("boat", "own"));
        assert!(set.train.iter().all(|sample| sample.image.dimensions() == (32, 32)));
        assert_eq!(build_folder(&from, &out, 32, Share::percent(0), 0).unwrap(), (counts, skipped));
        assert!(
            build_folder(&from, &out, 16, Share::percent(0), 0)
                .unwrap_err()
                .to_string()
                .contains("other settings")
        );
    }

    #[test]
    fn captions_that_are_not_text_are_damaged_and_empty_ones_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("in");
        let texts: [(&str, &[u8]); 6] = [
            ("marked", b"\xef\xbb\xbfa fox"),
            ("utf16", b"\xff\xfea\0 \0c\0a\0t\0\n\0"),
            ("windows", b"a cat\x92s ear"),
            ("picture", b"\x89PNG\r\n\x1a\n\0\0"),
            ("nothing", b"\0\0"),
            ("invisible", b"\xe2\x80\x8b\n"),
        ];
        for (name, text) in texts {
            put(&from, &format!("{name}.png"), &png(8, 8));
            put(&from, &format!("{name}.txt"), text);
        }
        let out = dir.path().join("out");
        let (_, skipped) = build_folder(&from, &out, 8, Share::percent(0), 0).unwrap();
        let captions = Dataset::open(&out).unwrap().train.into_iter().map(|sample| sample.captions.concat());
        assert_eq!(captions.collect::<Vec<_>>(), ["a fox", "a cat"]);
        assert_eq!((skipped.corrupt, skipped.orphan_image), (2, 2), "{skipped}");
        assert!(skipped.to_string().contains("windows.txt: not UTF-8: byte 0x92"), "{skipped}");
    }

    #[cfg(unix)]
    #[test]
    fn names_in_other_encodings_are_kept_apart() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("in");
        fs::create_dir(&from).unwrap();
        let write = |name: &[u8], bytes: &[u8]| {
            fs::write(from.join(std::ffi::OsStr::from_bytes(name)), bytes).unwrap();
        };
        write(b"K\xf6ln.png", &png(8, 8));
        write(b"K\xe4ln.txt", b"another town");
        for name in [b"S\xfc\xdf", b"S\xe4\xdf"] {
            write(&[&name[..], b".png"].concat(), &png(8, 8));
            write(
                &[&name[..], b".txt"].concat(),
                &[&b"number "[..], name[1].to_string().as_bytes()].concat(),
            );
        }
        let out = dir.path().join("out");
        let (_, skipped) = build_folder(&from, &out, 8, Share::percent(0), 0).unwrap();
        let captions = Dataset::open(&out).unwrap().train.into_iter().map(|sample| sample.captions.concat());
        assert_eq!(captions.collect::<Vec<_>>(), ["number 228", "number 252"]);
        assert_eq!((skipped.orphan_image, skipped.orphan_caption), (1, 1), "{skipped}");
    }

    #[test]
    fn some_names_are_held_out() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..40 {
            put(dir.path(), &format!("in/{n}.png"), &png(8, 8));
            put(dir.path(), &format!("in/{n}.txt"), b"a thing");
        }
        let (counts, _) =
            build_folder(&dir.path().join("in"), &dir.path().join("out"), 8, Share::percent(25), 0).unwrap();
        assert!((3..20).contains(&counts.in_split(Split::Val)), "{counts}");
    }

    #[test]
    fn an_empty_folder_is_an_error_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let error = build_folder(dir.path(), &dir.path().join("out"), 32, Share::percent(0), 0)
            .unwrap_err()
            .to_string();
        assert!(error.contains("NAME.txt"), "{error}");
        assert!(!dir.path().join("out").exists());
    }
}
