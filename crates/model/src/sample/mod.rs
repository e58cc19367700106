//! Drawing (paper §2.6): a caption in, a stream of events out: tokens, previews, pictures.
//!
//! Library, command and tests all consume the same iterator.

mod decode;
mod generate;
mod logits;
mod rank;

pub use decode::{Captions, Decoder, Lanes};
pub use generate::{DEFAULT_GUIDANCE, DEFAULT_TOP_P, Drawing, Event, Picture, Request, Sampling};
pub use logits::choose;
pub use rank::Ranking;

#[cfg(test)]
mod tests;
