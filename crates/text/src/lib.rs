//! Captions and their tokens (paper §2.2 "tokenisation"): text decoding, normalisation, byte-level
//! BPE and detection of unknown words.
//!
//! This crate turns text into integers and back. It does not depend on a tensor library.

#![forbid(unsafe_code)]

mod bpe;
mod clip;
mod decode;
mod normalise;
mod words;

pub use bpe::{Bpe, Readable};
pub use clip::{clean_for_clip, clip_tokenizer};
pub use decode::{decode_text, text_lines};
pub use normalise::{MAX_PROMPT_CHARS, Prompt, normalise};
pub use words::{Unknown, caption_words, suggestion, unknown_words};
