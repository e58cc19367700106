//! Caption normalisation: the paper lower-cases captions (§2.2); we also collapse white space.
//!
//! The same function serves training captions and a user's prompt, so a model never sees one form in training and
//! another when it draws.

/// Longest prompt that is read, in characters; the rest is dropped before tokenisation and reported.
pub const MAX_PROMPT_CHARS: usize = 2_000;

/// Lower-cases `caption`, drops control characters and joins words by single spaces.
pub fn normalise(caption: &str) -> String {
    let clean: String = caption.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    clean.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A user's prompt, ready for the tokenizer, and what was cut from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The normalised text.
    pub text: String,
    /// Characters dropped because the prompt was longer than [`MAX_PROMPT_CHARS`].
    pub dropped_chars: usize,
}

impl Prompt {
    /// Normalises `raw`, keeping at most [`MAX_PROMPT_CHARS`] of its characters.
    pub fn new(raw: &str) -> Prompt {
        let kept: String = raw.chars().take(MAX_PROMPT_CHARS).collect();
        let dropped_chars = raw.chars().count() - kept.chars().count();
        Prompt { text: normalise(&kept), dropped_chars }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lower_cases_and_joins_words() {
        assert_eq!(normalise("  A Red\tApple,\nFLAT  style "), "a red apple, flat style");
        assert_eq!(normalise("ÉCLAIR 苹果 🍎"), "éclair 苹果 🍎");
        assert_eq!(normalise(" \n"), "");
    }

    #[test]
    fn long_prompts_are_cut_and_counted() {
        let prompt = Prompt::new(&"é".repeat(10_000));
        assert_eq!(prompt.text.chars().count(), MAX_PROMPT_CHARS);
        assert_eq!(prompt.dropped_chars, 10_000 - MAX_PROMPT_CHARS);
    }
}
