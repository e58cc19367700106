//! Bytes in, plain batches out: where pictures and captions come from, how they are stored, in which order they are read.
//!
//! Paper §2.3 (data) and appendix A.1, B.2 (augmentation). Nothing here knows a tensor: a batch leaves this crate as
//! pixels, strings and code numbers, so that any source can be tested without a model and any model without a source.
//!
//! The path of a picture: [`sources`] make WebDataset tars ([`shard`]), [`dataset`] reads them into memory, [`loader`]
//! says which items make a step, [`augment`] crops them; once a dVAE has encoded them they are kept as [`codes`].

pub mod atomic;
pub mod augment;
pub mod codes;
pub mod dataset;
mod files;
mod fingerprint;
pub mod loader;
mod permutation;
pub mod picture;
pub mod pictures;
pub mod png_text;
pub mod prompt;
pub mod shard;
mod share;
pub mod skipped;
pub mod sources;
mod text_file;

pub use augment::{Augment, augment};
pub use codes::{CodeItem, CodeSet};
pub use dataset::Dataset;
pub use fingerprint::{fnv1a, is_older_fingerprint};
pub use loader::{Purpose, batch_indices, evenly, item_rng};
pub use pictures::{Captioned, PictureReader, Pictures};
pub use shard::{Meta, Sample, Split};
pub use share::Share;
pub use skipped::{SkipKind, Skipped};
pub use tessera_text::{decode_text, text_lines};
pub use text_file::read_text;
