//! Captions and their tokens (paper §2.2 "tokenisation"): normalisation and byte-level BPE, ids ↔ text.
//!
//! Everything here is text in, integers out; no tensor library is visible from this crate.

mod bpe;
mod normalise;

pub use bpe::Bpe;
pub use normalise::{MAX_PROMPT_CHARS, Prompt, normalise};
