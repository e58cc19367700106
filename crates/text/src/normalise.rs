//! Caption normalisation. The paper lower-cases captions (§2.2); we also collapse white space,
//! compose characters (NFC) and drop invisible ones.
//!
//! Training captions and user prompts go through the same function, so training and sampling see
//! the same form. Texts that look the same have the same tokens, however they were typed.

use tokenizers::NormalizedString;

/// The maximum length of a prompt or caption in characters. The rest is dropped before tokenisation
/// and reported.
pub const MAX_PROMPT_CHARS: usize = 2_000;

/// Lower-cases `caption`, drops control characters and invisible characters, composes characters
/// (NFC) and joins words by single spaces.
pub fn normalise(caption: &str) -> String {
    let clean: String =
        drop_invisible(caption).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words = clean.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
    compose(words)
}

/// Converts to NFC.
pub(crate) fn compose(text: String) -> String {
    if text.is_ascii() { text } else { NormalizedString::from(text).nfc().get().to_owned() }
}

/// Removes invisible characters, except those that are part of an emoji.
fn drop_invisible(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if !is_ignorable(c) || in_emoji(c, kept.chars().next_back(), rest.peek().copied()) {
            kept.push(c);
        }
    }
    kept
}

/// Whether `c` has Unicode's property `Default_Ignorable_Code_Point`: soft hyphens, zero-width
/// characters, bidirectional marks, variation selectors, byte order marks and fillers.
fn is_ignorable(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// Whether `c` is part of an emoji at this place: a variation selector, a zero-width joiner or a
/// tag of a flag.
fn in_emoji(c: char, before: Option<char>, after: Option<char>) -> bool {
    const JOINER: char = '\u{200d}';
    const KEYCAP: char = '\u{20e3}';
    const SELECTORS: std::ops::RangeInclusive<char> = '\u{fe0e}'..='\u{fe0f}';
    const TAGS: std::ops::RangeInclusive<char> = '\u{e0020}'..='\u{e007f}';
    let Some(before) = before else { return false };
    if SELECTORS.contains(&c) {
        return is_pictograph(before) || after == Some(KEYCAP);
    }
    if TAGS.contains(&c) {
        return is_pictograph(before) || TAGS.contains(&before);
    }
    let ends_emoji = is_pictograph(before) || SELECTORS.contains(&before) || TAGS.contains(&before);
    c == JOINER && ends_emoji && after.is_some_and(is_pictograph)
}

/// Whether `c` is in a Unicode block with emoji or is one of the single emoji in other blocks.
fn is_pictograph(c: char) -> bool {
    matches!(c,
        '©' | '®' | '‼' | '⁉' | '™' | 'ℹ' | '\u{2190}'..='\u{21ff}' | '\u{2300}'..='\u{23ff}' | 'Ⓜ' | 'ⓜ'
        | '\u{25a0}'..='\u{27bf}' | '\u{2900}'..='\u{297f}' | '\u{2b00}'..='\u{2bff}' | '〰' | '〽' | '㊗' | '㊙'
        | '\u{1f000}'..='\u{1faff}')
}

/// A normalised prompt or caption, with the number of characters that were cut from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The normalised text.
    pub text: String,
    /// The number of characters dropped because the prompt was longer than [`MAX_PROMPT_CHARS`].
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
    fn texts_that_look_the_same_normalise_to_the_same_text() {
        for text in [
            "a red\u{200b} apple",
            "a red\u{ad} apple",
            "\u{200e}a red apple",
            "\u{202b}a red apple\u{202c}",
            "a red apple\u{feff}",
            "a red apple\u{fe0f}",
            "a \u{2060}red \u{200d}apple\u{200c}",
            "\u{feff}A \u{1160}red \u{3164} apple\u{e0061}",
        ] {
            assert_eq!(normalise(text), "a red apple", "{text:?}");
        }
        assert_eq!(normalise("E\u{301}clair"), "éclair");
        assert_eq!(normalise("e\u{34f}\u{301}clair"), "éclair");
        assert_eq!(normalise("\u{200b}\u{feff}\u{ad}\0"), "");
    }

    #[test]
    fn emoji_sequences_are_kept() {
        for emoji in ["❤️", "👩‍🚀", "🏳️‍🌈", "👁️‍🗨️", "1️⃣", "👩🏽‍🤝‍👨🏻", "🏴\u{e0067}\u{e0062}\u{e007f}", "❤︎"]
        {
            let text = format!("an {emoji} here");
            assert_eq!(normalise(&text), text, "{emoji:?}");
        }
        assert_eq!(normalise("👩\u{200d} rocket \u{200d}🚀"), "👩 rocket 🚀");
    }

    #[test]
    fn normalise_is_idempotent() {
        for text in
            ["👩\u{200d}\u{200b}🚀\u{fe0f}\u{fe0f}", "İ\u{301}", "1\u{fe0f}\u{200b}\u{20e3}", "ΑΣ\u{ad} Σ"]
        {
            let once = normalise(text);
            assert_eq!(normalise(&once), once, "{text:?}");
        }
    }

    #[test]
    fn long_prompts_are_cut_and_counted() {
        let prompt = Prompt::new(&"é".repeat(10_000));
        assert_eq!(prompt.text.chars().count(), MAX_PROMPT_CHARS);
        assert_eq!(prompt.dropped_chars, 10_000 - MAX_PROMPT_CHARS);
    }
}
