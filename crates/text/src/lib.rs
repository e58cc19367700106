//! Text from outside, captions and their tokens (paper §2.2 "tokenisation"): normalisation and byte-level BPE, ids ↔ text, and words.
//!
//! Everything here is text in, integers out; no tensor library is visible from this crate.

mod bpe;
mod clip;
mod decode;
mod normalise;
mod words;

pub use bpe::{Bpe, Readable};
pub use clip::{clean_for_clip, clip_tokenizer};
pub use decode::{decode_text, text_lines};
pub use normalise::{MAX_PROMPT_CHARS, Prompt, normalise};
pub use words::{Unknown, caption_words, unknown_words};
