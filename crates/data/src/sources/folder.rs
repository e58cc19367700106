//! Builds a set from the user's pictures: `name.png` (or jpg, jpeg, webp) next to `name.txt` with
//! one caption per line, at any depth of folders.
//!
//! Pictures are stored uncropped, so that the random crops of training (listings 1 and 2 of the
//! paper) can use the complete picture.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use image::RgbImage;
use rand_chacha::rand_core::Rng;
use rayon::prelude::*;
use serde_json::json;
use tessera_text::text_lines;

use super::Counts;
use super::output::{self, Fingerprints, Opened};
use crate::files::{Found, find_pictures};
use crate::fingerprint::{Fingerprint, file_sum};
use crate::picture::{self, MAX_PIXELS, ResizeFilter};
use crate::pictures::{MAX_IMAGE_BYTES, MAX_TEXT_BYTES};
use crate::shard::{Meta, Packed, Sample, Split};
use crate::share::Share;
use crate::skipped::{SkipKind, Skipped};
use crate::text_file::{read_at_most, read_text_of_at_most};
use tessera_base::fnv1a;
use tessera_base::random::{Purpose, item_rng};

/// The style of every picture of a folder.
const STYLE: &str = "own";
/// The number of pictures that are read in parallel.
const BATCH: usize = 64;

/// The options of [`build_folder`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FolderOptions {
    /// The maximum of the shorter side in pixels. Larger pictures are scaled down to it.
    pub size: u32,
    /// The minimum of the shorter side in pixels: the model's image size.
    pub least: u32,
    /// The handling of smaller pictures.
    pub small: Small,
    /// The fraction of pictures that is held out for validation.
    pub val_share: Share,
    /// The seed that, together with a picture's name, determines whether it is held out.
    pub seed: u64,
}

/// The handling of pictures that are smaller than the model's image size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Small {
    /// They are left out and counted, as in the paper.
    LeftOut,
    /// They are enlarged to the model's size.
    Enlarged,
}

/// Stores the captioned pictures under `dir` in `out`, uncropped, with a shorter side of `least` to
/// `size` pixels.
///
/// About `val_share` of them are held out. The choice depends on their names, so adding pictures
/// does not move the others to another split. Of two or more pictures, at least one is held out.
/// Pictures that are damaged, too small or without a caption are skipped and reported.
///
/// # Errors
/// If the options are invalid, `dir` contains no usable pair of picture and caption, or `out`
/// cannot be written.
pub fn build_folder(dir: &Path, out: &Path, options: &FolderOptions) -> Result<(Counts, Skipped)> {
    let FolderOptions { size, least, small, val_share, seed } = *options;
    ensure!((8..=4096).contains(&size), "size is {size}, wanted 8 to 4096 pixels");
    ensure!((1..=size).contains(&least), "the least size is {least}, wanted 1 to {size} pixels");
    ensure!(val_share < Share::percent(100), "{val_share} is held out, wanted less than 100%");
    let (pairs, mut skipped) = find_pairs(dir, out)?;
    ensure!(
        !pairs.is_empty(),
        "no captioned pictures under {}: {}; wanted NAME.png (or jpg, jpeg, webp) next to NAME.txt",
        dir.display(),
        skipped.brief()
    );
    let recipe = json!({ "folder": {
        "size": size, "least": least, "enlarge": small == Small::Enlarged, "val_percent": val_share, "seed": seed
    } });
    let mut output = match output::open(out, recipe, &fingerprints(&pairs))? {
        Opened::Complete(counts, skipped) => return Ok((counts, skipped)),
        Opened::Ready(output) => output,
    };
    let splits = splits(&pairs, options);
    let mut counts = Counts::default();
    for (batch_idx, batch) in pairs.chunks(BATCH).enumerate() {
        let number = |n: usize| batch_idx * BATCH + n;
        let read: Vec<_> = batch
            .par_iter()
            .enumerate()
            .map(|(n, pair)| pair.pack(number(n), splits[number(n)], options))
            .collect();
        for (pair, packed_pair) in batch.iter().zip(read) {
            match packed_pair {
                Ok(packed_pair) => {
                    output.write(packed_pair.split, &packed_pair.packed)?;
                    counts.add_picture(STYLE, packed_pair.split, packed_pair.n_captions);
                    counts.concepts += 1;
                    counts.enlarged += u64::from(packed_pair.is_enlarged);
                }
                Err((kind, why)) => skipped.note(kind, format!("{}: {why}", pair.name.display())),
            }
        }
    }
    ensure!(counts.pictures() > 0, "no picture is left to train on: {}", skipped.brief());
    output.finish(&counts, &skipped)?;
    Ok((counts, skipped))
}

/// The files of a picture and its captions, with their common name.
struct Pair {
    name: PathBuf,
    image: PathBuf,
    text: PathBuf,
}

/// A pair that was read and encoded.
struct PackedPair {
    packed: Packed,
    split: Split,
    n_captions: usize,
    is_enlarged: bool,
}

/// The reason why a pair is skipped.
type SkipReason = (SkipKind, String);

impl Pair {
    /// Reads the pair. Returns the picture scaled to its stored size, its captions, and whether it
    /// was enlarged.
    fn read(&self, options: &FolderOptions) -> Result<(RgbImage, Vec<String>, bool), SkipReason> {
        let damaged = |error: anyhow::Error| (SkipKind::Damaged, format!("{error:#}"));
        let captions = text_lines(&read_text_of_at_most(&self.text, MAX_TEXT_BYTES).map_err(damaged)?);
        if captions.is_empty() {
            return Err((SkipKind::NoCaption, "the caption file is empty".to_string()));
        }
        let bytes = read_at_most(&self.image, MAX_IMAGE_BYTES).map_err(damaged)?;
        let image = picture::decode(&bytes).map_err(damaged)?;
        let short = image.width().min(image.height());
        let is_enlarged = short < options.least;
        if is_enlarged && options.small == Small::LeftOut {
            let (width, height) = image.dimensions();
            return Err((SkipKind::TooSmall, format!("{width}x{height} pixels, wanted {}", options.least)));
        }
        let image = scaled(image, short.clamp(options.least, options.size)).map_err(damaged)?;
        Ok((image, captions, is_enlarged))
    }

    fn pack(&self, number: usize, split: Split, options: &FolderOptions) -> Result<PackedPair, SkipReason> {
        let (image, captions, is_enlarged) = self.read(options)?;
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
        let packed = Packed::new(&sample).map_err(|error| (SkipKind::Damaged, format!("{error:#}")))?;
        Ok(PackedPair { packed, split, n_captions, is_enlarged })
    }
}

/// Scales the complete picture so that its shorter side has `short` pixels.
fn scaled(image: RgbImage, short: u32) -> Result<RgbImage> {
    let (width, height) = image.dimensions();
    let side = width.min(height);
    if side == short {
        return Ok(image);
    }
    let scaled = |length: u32| {
        let scaled = (u64::from(length) * u64::from(short) + u64::from(side) / 2) / u64::from(side);
        u32::try_from(scaled).unwrap_or(u32::MAX)
    };
    let to = [scaled(width), scaled(height)];
    ensure!(
        u64::from(to[0]) * u64::from(to[1]) <= MAX_PIXELS,
        "a picture of {width}x{height} pixels would become too large when enlarged to {}x{}",
        to[0],
        to[1]
    );
    let filter = if short < side { ResizeFilter::Mean } else { ResizeFilter::Lanczos };
    picture::scale(&image, [0, 0, width, height], to, filter)
}

/// Assigns each picture to a split. Each name determines a random number, and pictures with a
/// number below the share are held out. If the share is not 0, then among the readable pictures the
/// one with the lowest number is always held out and the one with the highest never is.
fn splits(pairs: &[Pair], options: &FolderOptions) -> Vec<Split> {
    let rng = |pair: &Pair| {
        let index = fnv1a(pair.name.as_os_str().as_encoded_bytes());
        item_rng(options.seed, Purpose::Split, 0, index)
    };
    let is_held = |pair: &Pair| options.val_share.draws(&mut rng(pair));
    let mut splits: Vec<Split> =
        pairs.iter().map(|pair| if is_held(pair) { Split::Val } else { Split::Train }).collect();
    if options.val_share > Share::percent(0) {
        let mut order: Vec<usize> = (0..pairs.len()).collect();
        order.sort_by_cached_key(|&i| rng(&pairs[i]).next_u64());
        let can_be_read = |i: &&usize| pairs[**i].read(options).is_ok();
        if let (Some(&lowest), Some(&highest)) =
            (order.iter().find(can_be_read), order.iter().rev().find(can_be_read))
        {
            splits[lowest] = Split::Val;
            splits[highest] = Split::Train;
        }
    }
    splits
}

/// Finds the captioned pictures under `dir`, sorted by name. Pictures without a caption and
/// captions without a picture are recorded as skipped.
fn find_pairs(dir: &Path, out: &Path) -> Result<(Vec<Pair>, Skipped)> {
    let Found { pictures, mut skipped } = find_pictures(dir, Some(out))?;
    let (mut pairs, mut names) = (Vec::new(), HashSet::new());
    for file in pictures {
        if !names.insert(file.name.clone()) {
            skipped.note(SkipKind::SameName, file.image.display());
            continue;
        }
        match file.text {
            Some(text) => pairs.push(Pair { name: file.name, image: file.image, text }),
            None => skipped.note(SkipKind::NoCaption, file.image.display()),
        }
    }
    pairs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((pairs, skipped))
}

/// Returns fingerprints that change when a picture or caption is added, removed, renamed or edited.
/// They do not depend on the location of the folder.
fn fingerprints(pairs: &[Pair]) -> Fingerprints {
    let sums: Vec<[u32; 2]> =
        pairs.par_iter().map(|pair| [file_sum(&pair.image), file_sum(&pair.text)]).collect();
    let (mut fingerprint, mut version_1) = (Fingerprint::new(), crc32fast::Hasher::new());
    for (pair, sums) in pairs.iter().zip(sums) {
        let name = pair.name.as_os_str().as_encoded_bytes();
        fingerprint.bytes(name);
        version_1.update(name);
        for (path, sum) in [&pair.image, &pair.text].into_iter().zip(sums) {
            fingerprint.number(sum as usize);
            // Version 1 did not read files above this size.
            let is_larger = fs::metadata(path).is_ok_and(|file| file.len() > MAX_IMAGE_BYTES);
            version_1.update(&if is_larger { 0_u32 } else { sum }.to_le_bytes());
        }
    }
    let n = pairs.len();
    Fingerprints {
        now: format!("{n} pairs, {}", fingerprint.finish()),
        version_1: format!("{n} pairs, {:08x}", version_1.finalize()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::Dataset;

    /// Returns options for shorter sides of 8 to `size` pixels, without held-out pictures.
    fn sized(size: u32) -> FolderOptions {
        FolderOptions { size, least: 8, small: Small::LeftOut, val_share: Share::percent(0), seed: 0 }
    }

    fn write_file(dir: &Path, name: &str, bytes: &[u8]) {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn png(width: u32, height: u32) -> Vec<u8> {
        picture::encode_png(&RgbImage::from_pixel(width, height, image::Rgb([9, 90, 200]))).unwrap()
    }

    #[test]
    fn pairs_are_stored_uncropped_and_others_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        let (from, out) = (dir.path().join("mine"), dir.path().join("out"));
        write_file(&from, "deep/er/boat.png", &png(80, 40));
        write_file(&from, "deep/er/boat.txt", "a boat\nthe boat\n".as_bytes());
        write_file(&from, "mid.PNG", &png(20, 24));
        write_file(&from, "mid.txt", b"a middling thing");
        write_file(&from, "tiny.PNG", &png(8, 7));
        write_file(&from, "tiny.txt", b"a tiny thing");
        write_file(&from, "broken.jpg", b"not a jpeg");
        write_file(&from, "broken.txt", b"a broken thing");
        write_file(&from, "alone.webp", &png(8, 8));
        write_file(&from, "words.txt", b"only words");
        write_file(&from, "boat.caption", b"some boat");
        let (counts, skipped) = build_folder(&from, &out, &sized(32)).unwrap();
        assert_eq!((counts.pictures(), counts.captions, counts.enlarged), (2, 3, 0));
        let kinds = [
            SkipKind::Damaged,
            SkipKind::TooSmall,
            SkipKind::NoCaption,
            SkipKind::NoPicture,
            SkipKind::Ending("caption".into()),
        ];
        assert_eq!(kinds.map(|kind| skipped.count(&kind)), [1; 5], "{skipped}");
        assert!(skipped.to_string().contains("tiny: 8x7 pixels, wanted 8"), "{skipped}");

        let set = Dataset::open(&out).unwrap();
        assert_eq!(set.train[0].captions, ["a boat", "the boat"]);
        assert_eq!((set.train[0].meta.concept.as_str(), set.train[0].meta.style.as_str()), ("boat", "own"));
        let sizes: Vec<(u32, u32)> = set.train.iter().map(|sample| sample.image.dimensions()).collect();
        assert_eq!(sizes, [(64, 32), (20, 24)], "at most 32, and never enlarged");
        assert_eq!(build_folder(&from, &out, &sized(32)).unwrap(), (counts, skipped));
        let error = build_folder(&from, &out, &sized(16)).unwrap_err().to_string();
        assert!(error.contains("other settings"), "{error}");

        let enlarged = FolderOptions { small: Small::Enlarged, ..sized(32) };
        let (counts, _) = build_folder(&from, &dir.path().join("out2"), &enlarged).unwrap();
        assert_eq!((counts.pictures(), counts.enlarged), (3, 1));
        let set = Dataset::open(&dir.path().join("out2")).unwrap();
        assert_eq!(set.train[2].image.dimensions(), (9, 8));
    }

    #[test]
    fn set_does_not_depend_on_the_location_of_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let (from, copy, out) = (dir.path().join("P"), dir.path().join("P2"), dir.path().join("out"));
        for at in [&from, &copy] {
            write_file(at, "deep/a.png", &png(8, 8));
            write_file(at, "deep/a.txt", b"a thing");
        }
        let first = build_folder(&from, &out, &sized(8)).unwrap();
        write_file(&from, "deep/a.png", &png(8, 8)); // the same bytes with a new modification time
        for again in [from.clone(), dir.path().join("./P/"), copy.clone()] {
            assert_eq!(build_folder(&again, &out, &sized(8)).unwrap(), first);
        }
        // A record of version 1 is compared by its fingerprint of version 1.
        let record = out.join("dataset.json");
        let (text, found) =
            (fs::read_to_string(&record).unwrap(), fingerprints(&find_pairs(&from, &out).unwrap().0));
        assert!(text.contains(&found.now), "{text}");
        fs::write(&record, text.replace(&found.now, &found.version_1)).unwrap();
        assert_eq!(build_folder(&from, &out, &sized(8)).unwrap(), first);
        write_file(&copy, "deep/a.txt", b"a think");
        let error = build_folder(&copy, &out, &sized(8)).unwrap_err().to_string();
        assert!(error.contains("have changed since"), "{error}");
    }

    /// Version 1 computed the CRC-32 of each name and of the checksums of its files.
    #[test]
    fn fingerprint_of_version_1_is_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        write_file(dir.path(), "a.png", b"picture");
        write_file(dir.path(), "a.txt", b"words");
        let pairs = find_pairs(dir.path(), &dir.path().join("out")).unwrap().0;
        assert_eq!(fingerprints(&pairs).version_1, "1 pairs, c8db550e");
    }

    #[test]
    fn two_readable_pictures_give_one_of_each_split() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("in");
        for seed in 0..20 {
            let (held, out) =
                (Share::percent(if seed % 2 == 0 { 1 } else { 99 }), dir.path().join(format!("out{seed}")));
            for name in ["a", "b", "damaged"] {
                write_file(
                    &from,
                    &format!("{name}.png"),
                    &if name == "damaged" { Vec::new() } else { png(8, 8) },
                );
                write_file(&from, &format!("{name}.txt"), b"a thing");
            }
            let options = FolderOptions { val_share: held, seed, ..sized(8) };
            let (counts, _) = build_folder(&from, &out, &options).unwrap();
            assert_eq!((counts.in_split(Split::Train), counts.in_split(Split::Val)), (1, 1), "seed {seed}");
        }
    }

    #[test]
    fn non_text_captions_are_damaged_and_empty_ones_missing() {
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
            write_file(&from, &format!("{name}.png"), &png(8, 8));
            write_file(&from, &format!("{name}.txt"), text);
        }
        let out = dir.path().join("out");
        let (_, skipped) = build_folder(&from, &out, &sized(8)).unwrap();
        let captions = Dataset::open(&out).unwrap().train.into_iter().map(|sample| sample.captions.concat());
        assert_eq!(captions.collect::<Vec<_>>(), ["a fox", "a cat"]);
        assert_eq!(
            [SkipKind::Damaged, SkipKind::NoCaption].map(|kind| skipped.count(&kind)),
            [2, 2],
            "{skipped}"
        );
        assert!(skipped.to_string().contains("windows.txt: not UTF-8: byte 0x92"), "{skipped}");
    }

    #[cfg(unix)]
    #[test]
    fn names_in_other_encodings_stay_distinct() {
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
        let (_, skipped) = build_folder(&from, &out, &sized(8)).unwrap();
        let captions = Dataset::open(&out).unwrap().train.into_iter().map(|sample| sample.captions.concat());
        assert_eq!(captions.collect::<Vec<_>>(), ["number 228", "number 252"]);
        assert_eq!(
            [SkipKind::NoCaption, SkipKind::NoPicture].map(|kind| skipped.count(&kind)),
            [1, 1],
            "{skipped}"
        );
    }

    #[test]
    fn about_the_given_share_is_held_out() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..40 {
            write_file(dir.path(), &format!("in/{n}.png"), &png(8, 8));
            write_file(dir.path(), &format!("in/{n}.txt"), b"a thing");
        }
        let options = FolderOptions { val_share: Share::percent(25), ..sized(8) };
        let (counts, _) = build_folder(&dir.path().join("in"), &dir.path().join("out"), &options).unwrap();
        assert!((3..20).contains(&counts.in_split(Split::Val)), "{counts}");
    }

    #[test]
    fn empty_folder_is_an_error_and_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let error = build_folder(dir.path(), &dir.path().join("out"), &sized(32)).unwrap_err().to_string();
        assert!(error.contains("NAME.txt"), "{error}");
        assert!(!dir.path().join("out").exists());
    }
}
