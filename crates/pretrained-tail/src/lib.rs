//! The second part of the embedded model, in a crate of its own because crates.io accepts at most
//! 10 MB per crate. Use `tessera-pretrained`, which has the complete file.

#![forbid(unsafe_code)]

/// The bytes of the model file from its first 8-bit matrix of the reranker to its end.
pub static TAIL: &[u8] = include_bytes!("../emoji.tessera.safetensors.2");
