//! The bytes of the model that the program draws with when no `--model` is given. `CARD.md` beside it says how it was made.

/// A whole model file.
pub const MODEL: &[u8] = include_bytes!("../emoji.tessera.safetensors");
