//! The embedded model, which the program uses if `--model` is not given. `CARD.md` in this crate
//! says how it was trained.

#![forbid(unsafe_code)]

use tessera_pretrained_tail::TAIL;

/// The bytes of the complete model file.
pub static MODEL: &[u8] = &JOINED;

/// The file is split over two crates, because crates.io accepts at most 10 MB per crate.
static JOINED: [u8; HEAD.len() + TAIL.len()] = {
    let mut joined = [0; HEAD.len() + TAIL.len()];
    let (head, tail) = joined.split_at_mut(HEAD.len());
    head.copy_from_slice(HEAD);
    tail.copy_from_slice(TAIL);
    joined
};

static HEAD: &[u8] = include_bytes!("../emoji.tessera.safetensors.1");

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_make_the_complete_file() {
        assert_eq!(MODEL.len(), 12_443_822);
        assert_eq!(crc32fast::hash(MODEL), 0x6ae8f7d7);
    }
}
