//! The words of captions, and those of a prompt that no caption has.
//!
//! A word is a run of letters of a script that puts spaces between words. Chinese, Japanese or Thai texts have none here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use strsim::osa_distance;

use crate::normalise;

/// Words of a set of captions that are kept, the most frequent ones: a model file carries them.
const MOST_WORDS: usize = 32_768;
/// Unknown words of a prompt that are named; each is compared with all that are known.
const MOST_UNKNOWN: usize = 16;

/// Endings of plurals, and what their singulars have instead.
const PLURALS: [(&str, &str); 3] = [("s", ""), ("es", ""), ("ies", "y")];

/// A word of a prompt that no caption has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unknown {
    /// The word, in lower case.
    pub word: String,
    /// The known word that is spelt most like it, if one is near.
    pub suggestion: Option<String>,
}

/// The words of captions, at most 32,768 and then the most frequent.
pub fn caption_words(captions: impl Iterator<Item = impl AsRef<str>>) -> BTreeSet<String> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for caption in captions {
        for word in words(&clean(caption.as_ref())) {
            match counts.get_mut(word) {
                Some(count) => *count += 1,
                None => drop(counts.insert(word.to_string(), 1)),
            }
        }
    }
    let mut counted: Vec<(String, u64)> = counts.into_iter().collect();
    counted.sort_by_key(|(_, count)| Reverse(*count));
    counted.into_iter().take(MOST_WORDS).map(|(word, _)| word).collect()
}

/// The words of `prompt` that are not `known`, in their order, each once and at most 16. A plural is known if its singular is.
pub fn unknown_words(prompt: &str, known: &BTreeSet<String>) -> Vec<Unknown> {
    let text = clean(prompt);
    let mut seen = BTreeSet::new();
    let unknown = words(&text).filter(|word| !is_known(word, known) && seen.insert(*word));
    let unknown = unknown.take(MOST_UNKNOWN);
    unknown.map(|word| Unknown { word: word.to_string(), suggestion: suggestion(word, known) }).collect()
}

/// The normalised text with one kind of apostrophe.
fn clean(text: &str) -> String {
    normalise(text).replace('’', "'")
}

/// The words of a clean text: without the 's of a possessive, and none that has a digit.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let parts = text.split(|c: char| !(is_letter(c) || c.is_numeric() || c == '\''));
    let bare = parts.map(|part| part.trim_matches('\'')).map(|part| part.strip_suffix("'s").unwrap_or(part));
    bare.filter(|word| word.chars().any(char::is_alphabetic) && !word.chars().any(char::is_numeric))
}

/// Whether `c` is a letter, or an accent of one, in Latin, Greek, Cyrillic, Armenian, Hebrew, Arabic or Georgian script.
fn is_letter(c: char) -> bool {
    let is_accent = matches!(c, '\u{300}'..='\u{36f}');
    let is_spaced =
        matches!(c, 'a'..='z' | '\u{aa}'..='\u{6ff}' | '\u{10a0}'..='\u{10ff}' | '\u{1e00}'..='\u{1fff}');
    is_accent || is_spaced && c.is_alphabetic()
}

fn is_known(word: &str, known: &BTreeSet<String>) -> bool {
    let singular = |(ending, instead): &(&str, &str)| Some(word.strip_suffix(ending)?.to_string() + instead);
    known.contains(word) || PLURALS.iter().filter_map(singular).any(|singular| known.contains(&singular))
}

/// The known word at the smallest Damerau-Levenshtein distance: 1 at most to words of up to four letters, 2 to longer ones.
fn suggestion(word: &str, known: &BTreeSet<String>) -> Option<String> {
    let letters = word.chars().count();
    let most = match letters {
        0..=1 => 0,
        2..=4 => 1,
        _ => 2,
    };
    let is_as_long = |other: &&String| other.chars().count().abs_diff(letters) <= most;
    let compared = known.iter().filter(is_as_long).map(|other| (osa_distance(word, other), other));
    compared.filter(|(distance, _)| *distance <= most).min().map(|(_, other)| other.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(words: &str) -> BTreeSet<String> {
        words.split(' ').map(str::to_string).collect()
    }

    /// The unknown words of a prompt, each with its suggestion behind a colon if there is one.
    fn unknown(prompt: &str, words: &str) -> Vec<String> {
        let told = |Unknown { word, suggestion }| match suggestion {
            Some(near) => format!("{word}:{near}"),
            None => word,
        };
        unknown_words(prompt, &known(words)).into_iter().map(told).collect()
    }

    #[test]
    fn typos_are_named_with_the_nearest_word() {
        let words = "a apple cat chair red hat elephant the";
        assert_eq!(unknown("A rde  APLPE", words), ["rde:red", "aplpe:apple"]);
        assert_eq!(
            unknown("the elefant on teh cahir", words),
            ["elefant:elephant", "on", "teh:the", "cahir:chair"]
        );
        // One of two at the same distance, by the alphabet; far ones not at all.
        assert_eq!(unknown("bat", words), ["bat:cat"]);
        assert_eq!(unknown("a cats armchair", words), ["armchair"]);
        assert_eq!(unknown("zorp zorp", words), ["zorp"]);
        assert_eq!(unknown("q", words), ["q"]);
    }

    #[test]
    fn plurals_of_known_words_are_known() {
        let words = "cat bus berry glasses";
        assert!(unknown("cats buses berries glasses bus", words).is_empty());
        assert_eq!(unknown("glass", words), ["glass:glasses"]);
        assert_eq!(unknown("s", words), ["s"]);
    }

    #[test]
    fn numbers_and_punctuation_are_no_words() {
        let words = "a t shirt x ray cat";
        assert!(unknown("3 a T-shirt, (x-ray) 2nd 4x4 -- $%! 1️⃣ ½ cat/cat", words).is_empty());
        assert_eq!(unknown("cat;dig", words), ["dig"]);
    }

    #[test]
    fn apostrophes_belong_to_words_and_quotes_do_not() {
        let words = "a cat hat don't";
        assert!(unknown("a cat's 'hat' don’t cats' \"cat\" '", words).is_empty());
        assert_eq!(unknown("dog's", words), ["dog"]);
        assert_eq!(known("don't man"), caption_words(["Don’t 'man's'"].iter()));
    }

    #[test]
    fn only_scripts_with_spaces_have_words() {
        let words = "яблоко μήλο éclair";
        assert!(unknown("红苹果 りんご แอปเปิล 🍎🅰 Яблоко ΜΉΛΟ E\u{301}clair", words).is_empty());
        assert_eq!(unknown("яблако 猫cat", words), ["яблако:яблоко", "cat"]);
    }

    #[test]
    fn nothing_and_too_much_are_bounded() {
        assert!(unknown("", "cat").is_empty() && unknown(" \u{200b} ", "cat").is_empty());
        assert_eq!(unknown_words("cat", &BTreeSet::new())[0].suggestion, None);
        let letters = ('a'..='z').map(|letter| letter.to_string().repeat(9)).collect::<Vec<_>>();
        assert_eq!(unknown(&letters.join(" "), "cat"), letters[..MOST_UNKNOWN]);
        // Base 26 in letters; the first comes twice, and so stays.
        let digit = |n: usize| char::from(b'a' + (n % 26) as u8);
        let word = |n: usize| [n / 17_576, n / 676, n / 26, n].map(digit).iter().collect::<String>();
        let many: Vec<String> = (0..MOST_WORDS + 2).map(word).chain([word(MOST_WORDS + 1)]).collect();
        let kept = caption_words(many.iter());
        assert_eq!(kept.len(), MOST_WORDS);
        assert!(kept.contains(&many[MOST_WORDS + 1]) && !kept.contains(&many[MOST_WORDS]));
    }

    #[test]
    fn words_of_captions_are_normalised_and_each_comes_once() {
        let captions = ["A Red apple, flat style", "两个红苹果 x光", "an apple's x-ray"];
        assert_eq!(caption_words(captions.iter()), known("a an apple flat ray red style x"));
    }
}
