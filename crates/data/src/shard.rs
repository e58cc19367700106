//! Samples on disk: WebDataset tars, the form large caption sets are handed around in.
//!
//! A folder `DIR/train/00000.tar`, `DIR/val/00000.tar`; in a tar, a sample is the members that share a key:
//! `KEY.png` (or another picture), `KEY.txt` with one caption a line, `KEY.json` with a [`Meta`]. Written tars are
//! the same bytes for the same samples. Reading is forgiving about single samples and strict about whole files: a
//! damaged picture is skipped and counted, a tar that breaks off is an error.

mod read;
mod write;

use anyhow::{Context, Result};
use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::picture::Square;

pub(crate) use read::list_shards;
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

impl Sample {
    /// The canonical caption.
    ///
    /// # Errors
    /// If there is none.
    pub fn caption(&self) -> Result<&str> {
        let first = self.captions.first().map(String::as_str);
        first.with_context(|| format!("picture {} has no caption", self.key))
    }

    /// The middle square of the picture: what models are measured on, and what they draw.
    pub fn middle(&self) -> RgbImage {
        middle(&self.image)
    }
}

/// The middle square of a picture.
pub(crate) fn middle(image: &RgbImage) -> RgbImage {
    let Square { left, top, side } = Square::centre(image);
    image::imageops::crop_imm(image, left, top, side, side).to_image()
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
