//! Builds a set from the user's pictures (png, jpg, jpeg or webp) at any depth of folders, or in
//! tars as img2dataset and WebDataset write them.
//!
//! The captions of a picture come from the first of these places that has any: a table
//! (`--captions`, or a `metadata.jsonl`, `metadata.csv` or `metadata.tsv` in the folder),
//! `NAME.txt` or `NAME.caption` with one caption per line, `NAME.json` of img2dataset, or, if
//! requested, the name of its folder.
//!
//! Pictures are stored uncropped, so that the random crops of training (listings 1 and 2 of the
//! paper) can use the complete picture.

mod find;
mod names;
mod table;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use image::RgbImage;
use rand_chacha::rand_core::Rng;
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use tessera_text::text_lines;

use super::Counts;
use super::output::{self, Fingerprints, Opened};
use crate::fingerprint::Fingerprint;
use crate::picture::{self, MAX_PIXELS, ResizeFilter};
use crate::pictures::{MAX_IMAGE_BYTES, MAX_TEXT_BYTES};
use crate::place::Place;
use crate::shard::{Meta, Packed, Sample, Split};
use crate::share::Share;
use crate::skipped::{SkipKind, Skipped};
use find::find_entries;
use table::captions_of;
use tessera_base::fnv1a;
use tessera_base::random::{Purpose, item_rng};

/// The style of every picture of a folder.
const STYLE: &str = "own";
/// The number of pictures that are read in parallel.
const BATCH: usize = 64;

/// The options of [`build_folder`].
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// The sources of captions.
    pub captions: CaptionOptions,
}

/// The sources of captions besides the files next to the pictures.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaptionOptions {
    /// A table of captions: CSV, TSV or JSON Lines.
    pub table: Option<PathBuf>,
    /// The column of the table with the pictures' file names. `None` stands for a customary name.
    pub image_column: Option<String>,
    /// The column of the table with the captions. `None` stands for a customary name.
    pub text_column: Option<String>,
    /// Whether the name of the folder is the caption of a picture without any other.
    pub folder_names: bool,
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
/// If the options are invalid, a table of captions cannot be read, `dir` contains no usable pair of
/// picture and caption, or `out` cannot be written.
pub fn build_folder(dir: &Path, out: &Path, options: &FolderOptions) -> Result<(Counts, Skipped)> {
    let FolderOptions { size, least, small, val_share, seed, captions } = options;
    ensure!((8..=4096).contains(size), "--size {size}: wanted 8 to 4096 pixels");
    ensure!((1..=*size).contains(least), "the least size is {least}, wanted 1 to {size} pixels");
    ensure!(*val_share < Share::percent(100), "--holdout {val_share}: wanted less than 100%");
    let (entries, mut skipped) = find_entries(dir, out, captions)?;
    let recipe = json!({ "folder": {
        "size": size, "least": least, "enlarge": *small == Small::Enlarged, "val_percent": val_share, "seed": seed
    } });
    let files = fingerprints(&entries);
    if let Some(complete) = output::find(out, &recipe, &files)? {
        return Ok(complete);
    }
    check_any(&entries, options, skipped.clone())?;
    let mut output = match output::open(out, recipe, &files)? {
        Opened::Complete(counts, skipped) => return Ok((counts, skipped)),
        Opened::Ready(output) => output,
    };
    let splits = splits(&entries, options);
    let mut counts = Counts::default();
    for (batch_idx, batch) in entries.chunks(BATCH).enumerate() {
        let number = |n: usize| batch_idx * BATCH + n;
        let read: Vec<_> = batch
            .par_iter()
            .enumerate()
            .map(|(n, entry)| entry.pack(number(n), splits[number(n)], options))
            .collect();
        for (entry, packed) in batch.iter().zip(read) {
            match packed {
                Ok(PackedEntry { packed, split, n_captions, is_enlarged }) => {
                    output.write(split, &packed)?;
                    counts.add_picture(STYLE, split, n_captions);
                    counts.concepts += 1;
                    counts.enlarged += u64::from(is_enlarged);
                }
                Err((kind, why)) => skipped.note(kind, format!("{}: {why}", entry.name.display())),
            }
        }
    }
    output.finish(&counts, &skipped)?;
    Ok((counts, skipped))
}

/// A picture and the places that its captions may come from.
#[derive(Debug)]
struct Entry {
    /// The path in the folder without the ending. For a picture in a tar it begins with the tar's
    /// path.
    name: PathBuf,
    /// The path in the folder, or in its tar, without the ending.
    within: PathBuf,
    ending: String,
    image: Place,
    /// Captions in tables. If there are any, the picture has no `text`.
    given: Vec<String>,
    /// The `.txt` or `.caption` file.
    text: Option<Place>,
    /// The metadata of img2dataset, with a caption and the address of the picture.
    json: Option<Place>,
    /// The name of the folder as the caption if there is no other.
    folder: Option<String>,
}

/// A picture that was read and encoded.
struct PackedEntry {
    packed: Packed,
    split: Split,
    n_captions: usize,
    is_enlarged: bool,
}

/// The reason why a picture is skipped.
type SkipReason = (SkipKind, String);

fn damaged(error: anyhow::Error) -> SkipReason {
    (SkipKind::Damaged, format!("{error:#}"))
}

impl Entry {
    /// Reads the picture scaled to its stored size. Returns also whether it was enlarged.
    fn picture(&self, options: &FolderOptions) -> Result<(RgbImage, bool), SkipReason> {
        let bytes = self.image.read_picture().map_err(damaged)?;
        let image = picture::decode(&bytes).map_err(damaged)?;
        let short = image.width().min(image.height());
        let is_enlarged = short < options.least;
        if is_enlarged && options.small == Small::LeftOut {
            let (width, height) = image.dimensions();
            return Err((SkipKind::TooSmall, format!("{width}x{height} pixels, wanted {}", options.least)));
        }
        let image = scaled(image, short.clamp(options.least, options.size)).map_err(damaged)?;
        Ok((image, is_enlarged))
    }

    /// Reads the captions from the first place that has any.
    fn captions(&self) -> Result<Vec<String>, SkipReason> {
        let mut captions = self.given.clone();
        if let (true, Some(text)) = (captions.is_empty(), &self.text) {
            captions = text_lines(&text.read_text().map_err(damaged)?);
        }
        if let (true, Some(_)) = (captions.is_empty(), &self.json) {
            captions = self.metadata().map_err(damaged)?.captions();
        }
        if captions.is_empty() {
            captions.extend(self.folder.clone());
        }
        let n_bytes: u64 = captions.iter().map(|caption| caption.len() as u64 + 1).sum();
        match (captions.is_empty(), n_bytes <= MAX_TEXT_BYTES) {
            (false, true) => Ok(captions),
            (false, false) => Err((
                SkipKind::Damaged,
                format!("its captions have {n_bytes} bytes, more than the {MAX_TEXT_BYTES} allowed"),
            )),
            (true, _) => Err((SkipKind::NoCaption, self.without_caption().to_string())),
        }
    }

    fn without_caption(&self) -> &'static str {
        if self.text.is_some() { "the caption file is empty" } else { "its .json has no caption" }
    }

    /// Reads the JSON of the picture.
    fn metadata(&self) -> Result<PictureJson> {
        let Some(json) = &self.json else { return Ok(PictureJson::default()) };
        let text = json.read_text()?;
        serde_json::from_str(&text).context("its .json is not a JSON object")
    }

    /// Checks that the picture and its captions can be read.
    fn check(&self, options: &FolderOptions) -> Result<(), SkipReason> {
        self.captions()?;
        self.picture(options).map(drop)
    }

    fn pack(&self, number: usize, split: Split, options: &FolderOptions) -> Result<PackedEntry, SkipReason> {
        let captions = self.captions()?;
        let (image, is_enlarged) = self.picture(options)?;
        let meta = Meta {
            source: self.name.to_string_lossy().into_owned(),
            concept: self.name.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            style: STYLE.to_string(),
            split,
            // The caption does not come from damaged JSON, so only the address is unknown.
            url: self.metadata().unwrap_or_default().url(),
            ..Meta::default()
        };
        let n_captions = captions.len();
        let sample = Sample { key: format!("{number:09}"), image, captions, meta };
        let packed = Packed::new(&sample).map_err(damaged)?;
        Ok(PackedEntry { packed, split, n_captions, is_enlarged })
    }
}

/// The metadata that img2dataset stores next to a picture.
#[derive(Default, Deserialize)]
#[serde(default)]
struct PictureJson {
    text: Value,
    caption: Value,
    url: Value,
}

impl PictureJson {
    fn captions(&self) -> Vec<String> {
        let captions = [&self.text, &self.caption].map(|value| captions_of(value).unwrap_or_default());
        captions.into_iter().find(|captions| !captions.is_empty()).unwrap_or_default()
    }

    fn url(&self) -> Option<String> {
        self.url.as_str().map(str::to_string)
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
fn splits(entries: &[Entry], options: &FolderOptions) -> Vec<Split> {
    let rng = |entry: &Entry| {
        let index = fnv1a(entry.name.as_os_str().as_encoded_bytes());
        item_rng(options.seed, Purpose::Split, 0, index)
    };
    let is_held = |entry: &Entry| options.val_share.draws(&mut rng(entry));
    let mut splits: Vec<Split> =
        entries.iter().map(|entry| if is_held(entry) { Split::Val } else { Split::Train }).collect();
    if options.val_share > Share::percent(0) {
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_by_cached_key(|&i| rng(&entries[i]).next_u64());
        let can_be_read = |i: &&usize| entries[**i].check(options).is_ok();
        if let (Some(&lowest), Some(&highest)) =
            (order.iter().find(can_be_read), order.iter().rev().find(can_be_read))
        {
            splits[lowest] = Split::Val;
            splits[highest] = Split::Train;
        }
    }
    splits
}

/// Checks that at least one picture can be read, before anything is written.
fn check_any(entries: &[Entry], options: &FolderOptions, mut skipped: Skipped) -> Result<()> {
    for batch in entries.chunks(BATCH) {
        let checked: Vec<_> = batch.par_iter().map(|entry| entry.check(options)).collect();
        for (entry, checked) in batch.iter().zip(checked) {
            match checked {
                Ok(()) => return Ok(()),
                Err((kind, why)) => skipped.note(kind, format!("{}: {why}", entry.name.display())),
            }
        }
    }
    bail!("no picture is left to train on: {}", skipped.brief())
}

/// Returns fingerprints that change when a picture or caption is added, removed, renamed or edited.
/// They do not depend on the location of the folder.
fn fingerprints(entries: &[Entry]) -> Fingerprints {
    let sum = |place: &Option<Place>| place.as_ref().map(Place::sum);
    let sums: Vec<[Option<u32>; 3]> = entries
        .par_iter()
        .map(|entry| [Some(entry.image.sum()), sum(&entry.text), sum(&entry.json)])
        .collect();
    let (mut fingerprint, mut version_1) = (Fingerprint::new(), crc32fast::Hasher::new());
    for (entry, sums) in entries.iter().zip(sums) {
        let name = entry.name.as_os_str().as_encoded_bytes();
        fingerprint.bytes(name);
        sums.into_iter().flatten().for_each(|sum| fingerprint.number(sum as usize));
        if !entry.given.is_empty() {
            fingerprint.texts(&entry.given);
        }
        entry.folder.iter().for_each(|folder| fingerprint.bytes(folder.as_bytes()));
        // Version 1 had only pictures and caption files, and did not read those above this size.
        version_1.update(name);
        for (place, sum) in [Some(&entry.image), entry.text.as_ref()].into_iter().flatten().zip(sums) {
            let sum = sum.filter(|_| place.size() <= MAX_IMAGE_BYTES).unwrap_or(0);
            version_1.update(&sum.to_le_bytes());
        }
    }
    let n = entries.len();
    Fingerprints {
        now: format!("{n} pairs, {}", fingerprint.finish()),
        version_1: format!("{n} pairs, {:08x}", version_1.finalize()),
    }
}

#[cfg(test)]
mod captions_tests;
#[cfg(test)]
mod tests;
