//! How CLIP cleans captions before it cuts them into tokens (Radford et al. 2021, the released tokenizer).

/// White space runs become one space, ends are trimmed, letters are lower case.
pub fn clean_for_clip(caption: &str) -> String {
    caption.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}
