//! Collects the words of the training captions and finds the words of a prompt that occur in no
//! caption.
//!
//! A word is a run of letters of a script that separates words by spaces. Chinese, Japanese and
//! Thai texts therefore contain no words here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use strsim::osa_distance;

use crate::normalise;

/// The maximum number of caption words that are kept, the most frequent ones. They are stored in
/// the model file.
const MAX_WORDS: usize = 32_768;
/// The maximum number of unknown words that are reported per prompt. Each one is compared with all
/// known words.
const MAX_UNKNOWN: usize = 16;

/// Plural endings, each with the ending of the singular.
const PLURALS: [(&str, &str); 3] = [("s", ""), ("es", ""), ("ies", "y")];

/// A word of a prompt that occurs in no training caption.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unknown {
    /// The word, in lower case.
    pub word: String,
    /// The known word with the most similar spelling, if one is close enough.
    pub suggestion: Option<String>,
}

/// Returns the distinct words of all captions: at most 32,768, the most frequent ones.
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
    counted.into_iter().take(MAX_WORDS).map(|(word, _)| word).collect()
}

/// Returns the distinct words of `prompt` that are not in `known`, in order of appearance and at
/// most 16. A plural counts as known if its singular is known.
pub fn unknown_words(prompt: &str, known: &BTreeSet<String>) -> Vec<Unknown> {
    let text = clean(prompt);
    let mut seen = BTreeSet::new();
    let unknown = words(&text).filter(|word| !is_known(word, known) && seen.insert(*word));
    let unknown = unknown.take(MAX_UNKNOWN);
    unknown.map(|word| Unknown { word: word.to_string(), suggestion: suggestion(word, known) }).collect()
}

/// Normalises `text` and replaces typographic apostrophes by ASCII ones.
fn clean(text: &str) -> String {
    normalise(text).replace('’', "'")
}

/// Splits a clean text into words. The possessive 's is removed, and words with a digit are left
/// out.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let parts = text.split(|c: char| !(is_letter(c) || c.is_numeric() || c == '\''));
    let bare = parts.map(|part| part.trim_matches('\'')).map(|part| part.strip_suffix("'s").unwrap_or(part));
    bare.filter(|word| word.chars().any(char::is_alphabetic) && !word.chars().any(char::is_numeric))
}

/// Whether `c` is a letter or a combining accent in Latin, Greek, Cyrillic, Armenian, Hebrew,
/// Arabic or Georgian script.
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

/// Returns the known word that was probably meant: the one at the smallest Damerau-Levenshtein
/// distance from `word`. The distance may be at most 1 for words of two to four letters and at most
/// 2 for longer ones.
pub fn suggestion(word: &str, known: &BTreeSet<String>) -> Option<String> {
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

    /// Returns the unknown words of a prompt, each followed by a colon and its suggestion if it has
    /// one.
    fn unknown(prompt: &str, words: &str) -> Vec<String> {
        let to_text = |Unknown { word, suggestion }| match suggestion {
            Some(near) => format!("{word}:{near}"),
            None => word,
        };
        unknown_words(prompt, &known(words)).into_iter().map(to_text).collect()
    }

    #[test]
    fn typos_are_reported_with_the_nearest_word() {
        let words = "a apple cat chair red hat elephant the";
        assert_eq!(unknown("A rde  APLPE", words), ["rde:red", "aplpe:apple"]);
        assert_eq!(
            unknown("the elefant on teh cahir", words),
            ["elefant:elephant", "on", "teh:the", "cahir:chair"]
        );
        // Of two words at the same distance, the alphabetically first is suggested; distant words
        // never.
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
    fn numbers_and_punctuation_are_not_words() {
        let words = "a t shirt x ray cat";
        assert!(unknown("3 a T-shirt, (x-ray) 2nd 4x4 -- $%! 1️⃣ ½ cat/cat", words).is_empty());
        assert_eq!(unknown("cat;dig", words), ["dig"]);
    }

    #[test]
    fn apostrophes_are_part_of_words_but_quotes_are_not() {
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
    fn empty_and_very_long_inputs_are_handled() {
        assert!(unknown("", "cat").is_empty() && unknown(" \u{200b} ", "cat").is_empty());
        assert_eq!(unknown_words("cat", &BTreeSet::new())[0].suggestion, None);
        let letters = ('a'..='z').map(|letter| letter.to_string().repeat(9)).collect::<Vec<_>>();
        assert_eq!(unknown(&letters.join(" "), "cat"), letters[..MAX_UNKNOWN]);
        // Numbers in base 26, written in letters. Only the last word occurs twice, so it is kept.
        let digit = |n: usize| char::from(b'a' + (n % 26) as u8);
        let word = |n: usize| [n / 17_576, n / 676, n / 26, n].map(digit).iter().collect::<String>();
        let many: Vec<String> = (0..MAX_WORDS + 2).map(word).chain([word(MAX_WORDS + 1)]).collect();
        let kept = caption_words(many.iter());
        assert_eq!(kept.len(), MAX_WORDS);
        assert!(kept.contains(&many[MAX_WORDS + 1]) && !kept.contains(&many[MAX_WORDS]));
    }

    #[test]
    fn caption_words_are_normalised_and_distinct() {
        let captions = ["A Red apple, flat style", "两个红苹果 x光", "an apple's x-ray"];
        assert_eq!(caption_words(captions.iter()), known("a an apple flat ray red style x"));
    }
}
