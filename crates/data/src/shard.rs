//! Samples on disk: WebDataset tars, the form large caption sets are handed around in.
//!
//! A folder `DIR/train/00000.tar`, `DIR/val/00000.tar`; in a tar, a sample is the run of members that share a key:
//! `KEY.png` (or `.jpg`, `.jpeg`, `.webp`), `KEY.txt` with one caption a line, `KEY.json` with a [`Meta`]. Written tars are
//! the same bytes for the same samples. Reading is forgiving about single samples and strict about whole files: a
//! damaged picture is skipped and counted, a tar that breaks off is an error.

mod read;
mod write;

use std::fmt;

use image::RgbImage;
use serde::{Deserialize, Serialize};

pub use read::{ShardReader, read_shards};
pub use write::{Packed, ShardWriter};

/// A picture with its captions.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Its name in the set: nine digits, unique over both splits.
    pub key: String,
    /// The picture, at the size it was stored.
    pub image: RgbImage,
    /// What it shows, in several wordings; the first is the canonical one. Never empty.
    pub captions: Vec<String>,
    /// Where it is from.
    pub meta: Meta,
}

/// Where a picture is from and what may be done with it. Tars of other makers may lack any of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Meta {
    /// The package or folder.
    pub source: String,
    /// SPDX name of the licence, where known.
    pub licence: String,
    /// What is drawn: "red apple".
    pub concept: String,
    /// How it is drawn: "flat".
    pub style: String,
    /// Trained on or held out.
    pub split: Split,
    /// Who made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// Where to find it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// Which part of a set a sample belongs to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Trained on.
    #[default]
    Train,
    /// Held out for validation.
    Val,
}

impl Split {
    /// Both, in the order they are listed.
    pub const ALL: [Split; 2] = [Split::Train, Split::Val];

    /// The name of its folder.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Val => "val",
        }
    }
}

/// How many names a [`Skipped`] keeps.
const NAMED: usize = 8;

/// What was passed over while reading, and the first few names of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Pictures that do not decode, are too large, or have no usable caption text.
    pub corrupt: u64,
    /// Pictures without a caption.
    pub orphan_image: u64,
    /// Captions without a picture.
    pub orphan_caption: u64,
    /// The first few, each with its reason.
    pub names: Vec<String>,
}

/// Why something was passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SkipReason {
    Corrupt,
    OrphanImage,
    OrphanCaption,
}

impl Skipped {
    /// How many samples were passed over.
    pub fn total(&self) -> u64 {
        self.corrupt + self.orphan_image + self.orphan_caption
    }

    pub(crate) fn note(&mut self, reason: SkipReason, name: impl fmt::Display) {
        match reason {
            SkipReason::Corrupt => self.corrupt += 1,
            SkipReason::OrphanImage => self.orphan_image += 1,
            SkipReason::OrphanCaption => self.orphan_caption += 1,
        }
        if self.names.len() < NAMED {
            self.names.push(name.to_string());
        }
    }

    pub(crate) fn absorb(&mut self, other: Skipped) {
        self.corrupt += other.corrupt;
        self.orphan_image += other.orphan_image;
        self.orphan_caption += other.orphan_caption;
        let room = NAMED.saturating_sub(self.names.len());
        self.names.extend(other.names.into_iter().take(room));
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.total() == 0 {
            return write!(f, "nothing skipped");
        }
        write!(
            f,
            "skipped {}: {} damaged, {} pictures without a caption, {} captions without a picture",
            self.total(),
            self.corrupt,
            self.orphan_image,
            self.orphan_caption
        )?;
        for name in &self.names {
            write!(f, "\n  {name}")?;
        }
        let unnamed = self.total() - self.names.len() as u64;
        if unnamed > 0 { write!(f, "\n  and {unnamed} more") } else { Ok(()) }
    }
}

#[cfg(test)]
pub(crate) fn test_sample(number: u64, split: Split) -> Sample {
    let shade = (number % 256) as u8;
    Sample {
        key: format!("{number:09}"),
        image: RgbImage::from_pixel(8, 8, image::Rgb([shade, 10, 200])),
        captions: vec![format!("square {number}"), "a square".to_string()],
        meta: Meta { concept: format!("square {number}"), style: "plain".into(), split, ..Meta::default() },
    }
}
