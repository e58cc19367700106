//! Data sets of captioned pictures: how they are built, stored, ordered and augmented.
//!
//! This crate implements paper §2.3 (data) and appendix A.1, B.2 (augmentation). It does not depend
//! on a tensor library: a batch consists of pixels, strings and codes, so data sources can be
//! tested without a model and models without a data source.
//!
//! The path of a picture: [`sources`] write WebDataset tars ([`shard`]), [`dataset`] reads them
//! into memory or indexes them, [`loader`] chooses the items of each step, and [`augment`] crops them. After a dVAE
//! has encoded the pictures, their tokens are stored as [`codes`].

#![forbid(unsafe_code)]

pub mod augment;
pub mod codes;
pub mod dataset;
mod files;
mod fingerprint;
pub mod loader;
mod permutation;
pub mod picture;
pub mod pictures;
mod place;
pub mod png_text;
pub mod prompt;
pub mod shard;
mod share;
pub mod skipped;
pub mod sources;
mod text_file;

pub use augment::{Augment, augment};
pub use codes::{CodeItem, CodeLayout, CodeSet, CodeWriter};
pub use dataset::{Dataset, DatasetIndex, IndexedSample, ReadSample};
pub use fingerprint::is_older_fingerprint;
pub use loader::{batch_indices, evenly};
pub use pictures::{Captioned, PictureReader, Pictures};
pub use shard::{Meta, Sample, Split};
pub use share::Share;
pub use skipped::{SkipKind, Skipped};
pub use sources::counted;
pub use tessera_text::{decode_text, text_lines};
pub use text_file::read_text;
