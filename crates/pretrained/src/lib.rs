//! The embedded model, which the program uses if `--model` is not given. `CARD.md` in this crate
//! says how it was trained.

#![forbid(unsafe_code)]

/// The bytes of the complete model file.
pub static MODEL: &[u8] = include_bytes!("../emoji.tessera.safetensors");

/// The fraction of captions that were dropped in training its prior (`data.caption_drop` of
/// configs/emoji.toml). The file itself does not say it, because it is older than the entry for it.
pub const CAPTION_DROP: f32 = 0.1;

/// What the model can and cannot draw, for users. The card has the metrics.
pub const ABOUT: &str = "A small world: it knows 331 everyday things, each in up to six styles of emoji. It knows no people, faces, \
    hands, flags or letters, cannot count, and draws several things in one picture less well than a single thing.";

/// Example prompts.
pub const EXAMPLES: [&str; 6] = [
    "a red apple",
    "a blue heart, glossy style",
    "a cat, noto style",
    "a sunflower",
    "a rocket, flat style",
    "a pizza, twemoji style",
];
