//! Samples on disk as WebDataset tars, the usual format of large caption sets.
//!
//! The shards of a set are `DIR/train/00000.tar`, `DIR/val/00000.tar` and so on. In a tar, the
//! members with the same key form a sample: `KEY.png` (or another picture format), `KEY.txt` with
//! one caption per line, and `KEY.json` with a [`Meta`]. The same samples are always written as the
//! same bytes. A damaged picture is skipped and counted, but a truncated tar is an error.

mod index;
mod read;
mod write;

use anyhow::{Context, Result};
use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::picture::Square;

pub(crate) use index::{TarSample, list_samples};
pub use read::{ShardReader, read_shards};
pub(crate) use read::{list_shards, read_meta, some_shards};
pub use write::{Packed, ShardWriter};

/// A picture with its captions.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The sample's name in the set: nine digits, unique over both splits.
    pub key: String,
    /// The picture at its stored size.
    pub image: RgbImage,
    /// The captions: several wordings, of which the first is the canonical one. Never empty.
    pub captions: Vec<String>,
    /// The origin of the picture.
    pub meta: Meta,
}

impl Sample {
    /// Returns the canonical caption.
    ///
    /// # Errors
    /// If the sample has no caption.
    pub fn caption(&self) -> Result<&str> {
        let first = self.captions.first().map(String::as_str);
        first.with_context(|| format!("picture {} has no caption", self.key))
    }

    /// Returns the middle square of the picture, which evaluation uses because models draw squares.
    pub fn middle(&self) -> RgbImage {
        middle(&self.image)
    }
}

/// Returns the middle square of a picture.
pub(crate) fn middle(image: &RgbImage) -> RgbImage {
    let Square { left, top, side } = Square::centre(image);
    image::imageops::crop_imm(image, left, top, side, side).to_image()
}

/// The origin and licence of a picture. In tars of other programs any field may be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Meta {
    /// The package or folder that the picture comes from.
    pub source: String,
    /// The SPDX name of the licence, if known.
    pub licence: String,
    /// The concept that the picture shows, such as "red apple".
    pub concept: String,
    /// The style of the picture, such as "flat".
    pub style: String,
    /// The split that the picture belongs to.
    pub split: Split,
    /// The author.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// The address of the original picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// The part of a set that a sample belongs to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// The training split.
    #[default]
    Train,
    /// The validation split, which is held out.
    Val,
}

impl Split {
    /// Both splits, in the order in which they are listed.
    pub const ALL: [Split; 2] = [Split::Train, Split::Val];

    /// Returns the name of the split's folder.
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
