//! Pictures as image tokens: `encode` writes them once, and training of the prior reads them every
//! step.
//!
//! §2.2 trains the prior on the dVAE's argmax codes. Each picture is stored in several augmented
//! copies, because cropping has to happen before the encoder. There are two files:
//! `STEM.safetensors` with the tensor `codes` (u16, `[n, copies, grid, grid]`, raster order), and
//! `STEM.jsonl` with one [`CodeItem`] per line. The first file contains a checksum of itself
//! (`tessera_container`) and one of the second file.

mod file;
mod write;

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tessera_container::{Kind, Newer, Origin};

use crate::fingerprint::{Fingerprint, checksum};
use file::{CodeFile, Opened, Summary};

pub use write::{CodeLayout, CodeWriter};

/// The image tokens of one split of a dataset, in an open file.
///
/// Tokens are read when they are needed: 2 KiB for a picture of the paper's grid, usually from the
/// page cache of the operating system. Only the items are in memory: about 300 bytes for a picture
/// with one caption of 50 characters, so about 3 GB for ten million pictures.
#[derive(Debug)]
pub struct CodeSet {
    /// The side of the token grid (32 in the paper).
    pub grid: usize,
    /// The size of the codebook (8192 in the paper). Every code is less than it.
    pub vocab: usize,
    /// The number of encoded copies of each picture.
    pub copies: usize,
    /// The description of each picture.
    pub items: Vec<CodeItem>,
    /// The fingerprint of the dVAE's weights. Codes of different dVAEs are not comparable.
    pub dvae: String,
    /// The hashes of the config and the data set that the codes were made from. `None` for older
    /// files, which do not record them.
    pub origin: Option<Origin>,
    /// Whether the file was read and has no checksum, so that damage to it may go unnoticed.
    pub unverified: bool,
    codes: CodeFile,
    summary: Summary,
}

/// The description of one picture of a [`CodeSet`]: everything except its tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodeItem {
    /// The picture's name in the dataset.
    pub key: String,
    /// The captions: several wordings for the same picture.
    pub captions: Vec<String>,
    /// The concept that the picture shows.
    pub concept: String,
    /// The style of the picture.
    pub style: String,
}

/// The kind of the tensor file. Format version 2 added the checksum and the origin.
const KIND: Kind = Kind { key: "tessera.codes", name: "a set of codes", format: 2, checked: 2 };

#[derive(Serialize, Deserialize)]
struct Header {
    vocab: usize,
    dvae: String,
    items_crc32: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    origin: Option<Origin>,
}

impl CodeSet {
    /// Returns the number of pictures.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether the set has no pictures.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Reads the `grid * grid` tokens of one copy of one picture, in raster order.
    ///
    /// # Errors
    /// If the item or copy does not exist, or the file has become shorter or has other than valid codes
    /// since it was opened.
    pub fn tokens(&self, item: usize, copy: usize) -> Result<Vec<u16>> {
        self.read(item, copy, 0..self.grid * self.grid)
    }

    /// Reads the token at one raster position of one copy of one picture.
    ///
    /// # Errors
    /// As for [`CodeSet::tokens`], and if the position does not exist.
    pub fn token(&self, item: usize, copy: usize, place: usize) -> Result<u16> {
        ensure!(place < self.grid * self.grid, "no token {place} in a grid of {}", self.grid);
        let read = self.read(item, copy, place..place + 1)?;
        Ok(read[0])
    }

    /// Reads the tokens at a range of raster positions.
    fn read(&self, item: usize, copy: usize, places: Range<usize>) -> Result<Vec<u16>> {
        let shown = self.codes.shown();
        ensure!(
            item < self.len() && copy < self.copies,
            "no copy {copy} of picture {item} in {shown}: it has {} copies of {} pictures",
            self.copies,
            self.len()
        );
        let first = (item * self.copies + copy) * self.grid * self.grid + places.start;
        let codes = self.codes.read(first, places.len())?;
        let highest = codes.iter().max().map_or(0, |&code| usize::from(code));
        ensure!(
            highest < self.vocab,
            "code {highest} is outside a codebook of {}: {shown} was changed after it was opened; make it again with \
             `tessera encode`",
            self.vocab
        );
        Ok(codes)
    }

    /// Returns a hash of the complete content. Sets with different content have different
    /// fingerprints.
    pub fn fingerprint(&self) -> String {
        let mut fingerprint = Fingerprint::new();
        for number in [self.grid, self.vocab, self.copies, self.items.len()] {
            fingerprint.number(number);
        }
        fingerprint.hashed_bytes(self.summary.n_bytes, &self.summary.crc32);
        for CodeItem { key, captions, concept, style } in &self.items {
            [key, concept, style].into_iter().for_each(|text| fingerprint.bytes(text.as_bytes()));
            fingerprint.texts(captions);
        }
        fingerprint.finish()
    }

    /// Opens the files that a [`CodeWriter`] wrote. The codes are read once, a few MiB at a time, to
    /// verify them.
    ///
    /// # Errors
    /// If a file is missing, damaged or of a newer format version.
    pub fn open(path_stem: &Path) -> Result<Self> {
        let (tensor_path, items_path) = paths(path_stem)?;
        let path = tensor_path.display();
        let file = File::open(&tensor_path)
            .with_context(|| format!("no codes at {path}; make them with `tessera encode`"))?;
        Self::of_files(file, &tensor_path, &items_path).map_err(|error| match error.is::<Newer>() {
            true => error.context(path.to_string()),
            false => error.context(format!("{path} cannot be used; make it again with `tessera encode`")),
        })
    }

    fn of_files(file: File, tensor_path: &Path, items_path: &Path) -> Result<Self> {
        let Opened { codes, header, shape, summary, verified } = CodeFile::open(KIND, file, tensor_path)?;
        let Header { vocab, dvae, items_crc32, origin } = header;
        let [n_items, copies, grid, _] = shape;
        let items = read_items(items_path, items_crc32)?;
        ensure!(
            items.len() == n_items,
            "it has {n_items} items, {} has {}",
            items_path.display(),
            items.len()
        );
        summary.check(vocab)?;
        Ok(Self { grid, vocab, copies, items, dvae, origin, unverified: !verified, codes, summary })
    }
}

/// Returns the paths of `STEM.safetensors` and `STEM.jsonl`.
fn paths(path_stem: &Path) -> Result<(PathBuf, PathBuf)> {
    let name = path_stem.file_name().with_context(|| format!("{} names no file", path_stem.display()))?;
    let name = name.to_string_lossy();
    Ok((
        path_stem.with_file_name(format!("{name}.safetensors")),
        path_stem.with_file_name(format!("{name}.jsonl")),
    ))
}

fn read_items(path: &Path, expected_crc32: u32) -> Result<Vec<CodeItem>> {
    let open = || File::open(path).with_context(|| format!("its items are missing: {}", path.display()));
    ensure!(
        checksum(open()?)? == expected_crc32,
        "{} is cut short or belongs to other codes (its checksum is wrong)",
        path.display()
    );
    let lines = BufReader::new(open()?).split(b'\n').enumerate();
    let item = |(n, line): (usize, io::Result<Vec<u8>>)| {
        let line = line.and_then(|line| Ok(serde_json::from_slice(&line)?));
        line.with_context(|| format!("line {} of {}", n + 1, path.display()))
    };
    lines.map(item).collect()
}

#[cfg(test)]
mod tests;
