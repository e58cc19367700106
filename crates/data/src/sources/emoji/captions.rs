//! Writes the captions of an emoji picture: "a red apple, flat style", and other wordings of the
//! same.
//!
//! Several wordings per picture keep the prior from learning a single template. The first one is
//! the canonical caption, which samples and tests use as prompt.

use super::style::Style;

/// The maximum number of words of a caption. The canonical caption may be longer.
const MAX_WORDS: usize = 14;
/// The maximum number of keywords in a caption of keywords.
const MAX_TAGS: usize = 4;

/// Uncountable nouns, which take no article.
const MASS_NOUNS: &str = "bread rice popcorn butter salt garlic bacon sushi spaghetti broccoli fire ice lightning fog \
    meat tennis pong badminton hockey soap thread wood coral tea sake mate oden custard fondue cooking bowling voltage \
    camping construction fuji tower confetti money salad ginger falafel milk dna blood paper water hair litter \
    littering smoking curling lacrosse dango laughing tofu yarn zzz";
/// Plurals that [`takes_no_article`] does not recognise by their ending.
const PLURALS: &str = "people men women children feet teeth mice skis maracas";
/// Words that end the part of a phrase with the head noun: "slice of ...", "sun behind ...".
const AFTER_HEAD: [&str; 14] = [
    " with ",
    " of ",
    " on ",
    " in ",
    " at ",
    " behind ",
    " without ",
    " facing ",
    " showing ",
    " tilted ",
    " and ",
    " over ",
    " under ",
    " for ",
];

/// Converts a label of emojibase to a phrase in lower case without brackets and colons.
///
/// "woman running: dark skin tone" becomes "woman running with dark skin tone", "flag: France"
/// "flag of france".
pub(in crate::sources) fn phrase(label: &str) -> String {
    let mut words = label.to_lowercase().replace(['“', '”'], "").replace('’', "'");
    if let (Some(open), Some(close)) = (words.find('('), words.find(')'))
        && open < close
    {
        words.replace_range(open..=close, "");
    }
    let words = words.replace("flag: ", "flag of ").replace("keycap: ", "keycap ");
    let words =
        words.replace(": facing right", " facing right").replace(": ", " with ").replace(", ", " and ");
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Adds "a" or "an" to a phrase, or nothing if its noun is plural or uncountable.
pub(in crate::sources) fn with_article(phrase: &str) -> String {
    let head_end = AFTER_HEAD.iter().filter_map(|word| phrase.find(word)).min().unwrap_or(phrase.len());
    let head: Vec<&str> = phrase[..head_end].split_whitespace().collect();
    if takes_no_article(&head) {
        phrase.to_string()
    } else if sounds_like_a_vowel(phrase) {
        format!("an {phrase}")
    } else {
        format!("a {phrase}")
    }
}

/// Whether the last word is plural or uncountable, or any word is an irregular plural ("men
/// wrestling").
fn takes_no_article(head: &[&str]) -> bool {
    let noun = head.last().copied().unwrap_or("");
    let ends_like_a_plural = noun.len() > 2 && noun.ends_with('s');
    let is_singular = ["ss", "us", "is", "as"].iter().any(|ending| noun.ends_with(ending));
    let listed = |list: &str, wanted: &str| list.split_whitespace().any(|word| word == wanted);
    (ends_like_a_plural && !is_singular)
        || listed(MASS_NOUNS, noun)
        || head.iter().any(|word| listed(PLURALS, word))
}

/// Whether the pronunciation of the phrase begins with a vowel.
fn sounds_like_a_vowel(phrase: &str) -> bool {
    let first = phrase.split([' ', '-']).next().unwrap_or("");
    let mut letters = first.chars();
    match (letters.next(), letters.next()) {
        // A single letter is pronounced as its name: "an x-ray", "a t-shirt".
        (Some(letter), None) => "aefhilmnorsx8".contains(letter),
        _ if ["uni", "eur", "one", "use", "ute"].iter().any(|start| first.starts_with(start)) => false,
        _ if first.starts_with("hour") => true,
        (Some(letter), _) => "aeiouéáíóú".contains(letter),
        (None, _) => false,
    }
}

/// Returns all captions of a picture, the canonical one first.
///
/// `names` are the names of the picture, the best first, and `tags` are its keywords, the most
/// important first.
pub(super) fn captions(names: &[String], tags: &[String], style: Style) -> Vec<String> {
    let style = format!("{} style", style.name());
    let mut captions = Vec::new();
    for name in names {
        let thing = with_article(name);
        captions.push(format!("{thing}, {style}"));
        captions.push(format!("{name}, {style}"));
        captions.push(format!("an emoji of {thing}"));
        captions.push(thing.clone());
        captions.push(format!("{} picture of {thing}", with_vowel_article(&style)));
    }
    captions.extend(names.first().and_then(|name| keyword_caption(name, tags, &style)));
    let mut kept: Vec<String> = Vec::new();
    for caption in captions {
        let is_short = caption.split_whitespace().count() <= MAX_WORDS;
        if (is_short || kept.is_empty()) && !kept.contains(&caption) {
            kept.push(caption);
        }
    }
    kept
}

/// Returns a caption of keywords such as "apple, red, food, fruit, flat style". It begins with the
/// phrase itself if the first keyword is not a word of the phrase.
fn keyword_caption(phrase: &str, tags: &[String], style: &str) -> Option<String> {
    let is_named = tags.first().is_some_and(|tag| phrase.split(' ').any(|word| word == tag));
    let phrase = (!is_named).then_some(phrase);
    let words: Vec<&str> = phrase.into_iter().chain(tags.iter().map(String::as_str)).take(MAX_TAGS).collect();
    (tags.len() >= 2).then(|| format!("{}, {style}", words.join(", ")))
}

/// Adds "a" or "an" to a phrase with a countable noun: "a flat style", "an emojione style".
fn with_vowel_article(phrase: &str) -> String {
    let article = if sounds_like_a_vowel(phrase) { "an" } else { "a" };
    format!("{article} {phrase}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_become_phrases() {
        assert_eq!(phrase("T-Rex"), "t-rex");
        assert_eq!(phrase("woman running: dark skin tone"), "woman running with dark skin tone");
        assert_eq!(phrase("person: light skin tone, red hair"), "person with light skin tone and red hair");
        assert_eq!(phrase("flag: France"), "flag of france");
        assert_eq!(phrase("A button (blood type)"), "a button");
        assert_eq!(phrase("Japanese “here” button"), "japanese here button");
        assert_eq!(phrase("man walking: facing right"), "man walking facing right");
    }

    #[test]
    fn articles_depend_on_sound_and_number() {
        for (phrase, expected) in [
            ("red apple", "a red apple"),
            ("alien", "an alien"),
            ("unicorn", "a unicorn"),
            ("umbrella", "an umbrella"),
            ("hourglass done", "an hourglass done"),
            ("x-ray", "an x-ray"),
            ("t-shirt", "a t-shirt"),
            ("one-piece swimsuit", "a one-piece swimsuit"),
            ("grapes", "grapes"),
            ("french fries", "french fries"),
            ("cherries", "cherries"),
            ("cactus", "a cactus"),
            ("wine glass", "a wine glass"),
            ("sunglasses", "sunglasses"),
            ("ear of corn", "an ear of corn"),
            ("glass of milk", "a glass of milk"),
            ("cloud with rain", "a cloud with rain"),
            ("crossed swords", "crossed swords"),
            ("bow and arrow", "a bow and arrow"),
            ("house with garden", "a house with garden"),
            ("popcorn", "popcorn"),
            ("men wrestling", "men wrestling"),
            ("woman running with dark skin tone", "a woman running with dark skin tone"),
        ] {
            assert_eq!(with_article(phrase), expected);
        }
    }

    #[test]
    fn first_caption_is_canonical_and_all_are_distinct() {
        let tags = ["apple", "red", "food", "fruit", "ripe"].map(String::from);
        let captions = captions(&["red apple".into()], &tags, Style::Flat);
        assert_eq!(
            captions,
            [
                "a red apple, flat style",
                "red apple, flat style",
                "an emoji of a red apple",
                "a red apple",
                "a flat style picture of a red apple",
                "apple, red, food, fruit, flat style",
            ]
        );
    }

    #[test]
    fn keyword_caption_always_names_the_thing() {
        let tags = ["fruit", "berry"].map(String::from);
        let captions = captions(&["strawberry".into()], &tags, Style::Noto);
        assert_eq!(captions.last().unwrap(), "strawberry, fruit, berry, noto style");
    }

    #[test]
    fn face_has_two_names_and_plurals_do_not_repeat() {
        let cat = captions(&["cat face".into(), "cat".into()], &[], Style::EmojiOne);
        assert_eq!(cat[0], "a cat face, emojione style");
        assert!(cat.contains(&"a cat, emojione style".to_string()));
        assert!(cat.contains(&"an emojione style picture of a cat".to_string()));
        let grapes = captions(&["grapes".into()], &[], Style::Noto);
        assert_eq!(grapes.iter().filter(|caption| *caption == "grapes, noto style").count(), 1);
    }

    #[test]
    fn long_captions_are_left_out_except_the_canonical_one() {
        let long = vec!["word ".repeat(20).trim().to_string()];
        assert_eq!(captions(&long, &[], Style::Noto).len(), 1);
    }
}
