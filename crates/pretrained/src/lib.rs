//! The bytes of the model that the program draws with when no `--model` is given. `CARD.md` beside it says how it was made.

/// A whole model file.
pub static MODEL: &[u8] = include_bytes!("../emoji.tessera.safetensors");

/// The share of captions that were dropped in training its prior (`data.caption_drop` of configs/emoji.toml). The file is older than
/// the entry that says so.
pub const CAPTION_DROP: f32 = 0.1;

/// What it can and cannot draw, for people; the card says it with figures.
pub const ABOUT: &str = "A small world: it knows 331 everyday things, each in up to six styles of emoji. It knows no people, faces, \
    hands, flags or letters, cannot count, and draws things together less well than alone.";

/// Prompts to begin with.
pub const EXAMPLES: [&str; 6] = [
    "a red apple",
    "a blue heart, glossy style",
    "a cat, noto style",
    "a sunflower",
    "a rocket, flat style",
    "a pizza, twemoji style",
];
