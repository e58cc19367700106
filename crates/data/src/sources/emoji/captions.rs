//! What a drawing is called: "a red apple, flat style", and the same in other words.
//!
//! Several wordings of one picture keep the prior from learning one template. The first is the canonical one, the
//! form in which samples and tests ask for pictures.

use super::style::Style;

/// The longest caption, in words; the canonical one may be longer.
const MAX_WORDS: usize = 14;
/// How many keywords a caption of keywords lists.
const MAX_TAGS: usize = 4;

/// Nouns that are not counted: no article.
const MASS_NOUNS: &str = "bread rice popcorn butter salt garlic bacon sushi spaghetti broccoli fire ice lightning fog \
    meat tennis pong badminton hockey soap thread wood coral tea sake mate oden custard fondue cooking bowling voltage \
    camping construction fuji tower confetti money salad ginger falafel milk dna blood paper water hair litter \
    littering smoking curling lacrosse dango laughing tofu yarn zzz";
/// Plurals that do not end in s.
const PLURALS: &str = "people men women children feet teeth mice skis maracas";
/// Ends the part of a phrase that holds its head noun: "slice of ...", "sun behind ...".
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

/// The words for a label of emojibase: lower case, no brackets, no colons.
///
/// "woman running: dark skin tone" becomes "woman running with dark skin tone", "flag: France" "flag of france".
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

/// The phrase with "a" or "an", or as it is if its noun is plural or not counted.
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

/// Whether the last word is plural or not counted, or any word is an irregular plural ("men wrestling").
fn takes_no_article(head: &[&str]) -> bool {
    let noun = head.last().copied().unwrap_or("");
    let ends_like_a_plural = noun.len() > 2 && noun.ends_with('s');
    let is_singular = ["ss", "us", "is", "as"].iter().any(|ending| noun.ends_with(ending));
    let listed = |list: &str, wanted: &str| list.split_whitespace().any(|word| word == wanted);
    (ends_like_a_plural && !is_singular)
        || listed(MASS_NOUNS, noun)
        || head.iter().any(|word| listed(PLURALS, word))
}

/// Whether the phrase is spoken with a vowel first.
fn sounds_like_a_vowel(phrase: &str) -> bool {
    let first = phrase.split([' ', '-']).next().unwrap_or("");
    let mut letters = first.chars();
    match (letters.next(), letters.next()) {
        // A letter by itself is spoken as its name: "an x-ray", "a t-shirt".
        (Some(letter), None) => "aefhilmnorsx8".contains(letter),
        _ if ["uni", "eur", "one", "use", "ute"].iter().any(|start| first.starts_with(start)) => false,
        _ if first.starts_with("hour") => true,
        (Some(letter), _) => "aeiouéáíóú".contains(letter),
        (None, _) => false,
    }
}

/// All captions of a picture, the canonical one first.
///
/// `names` are the phrases it goes by, the best first; `tags` its keywords, the most telling first.
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

/// "apple, red, food, fruit, flat style"; the phrase itself comes first where no keyword is a word of it.
fn keyword_caption(phrase: &str, tags: &[String], style: &str) -> Option<String> {
    let is_named = tags.first().is_some_and(|tag| phrase.split(' ').any(|word| word == tag));
    let phrase = (!is_named).then_some(phrase);
    let words: Vec<&str> = phrase.into_iter().chain(tags.iter().map(String::as_str)).take(MAX_TAGS).collect();
    (tags.len() >= 2).then(|| format!("{}, {style}", words.join(", ")))
}

/// "a flat style", "an emojione style": here the noun is always counted.
fn with_vowel_article(phrase: &str) -> String {
    let article = if sounds_like_a_vowel(phrase) { "an" } else { "a" };
    format!("{article} {phrase}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_become_words() {
        assert_eq!(phrase("T-Rex"), "t-rex");
        assert_eq!(phrase("woman running: dark skin tone"), "woman running with dark skin tone");
        assert_eq!(phrase("person: light skin tone, red hair"), "person with light skin tone and red hair");
        assert_eq!(phrase("flag: France"), "flag of france");
        assert_eq!(phrase("A button (blood type)"), "a button");
        assert_eq!(phrase("Japanese “here” button"), "japanese here button");
        assert_eq!(phrase("man walking: facing right"), "man walking facing right");
    }

    #[test]
    fn articles_follow_sound_and_number() {
        for (phrase, wanted) in [
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
            assert_eq!(with_article(phrase), wanted);
        }
    }

    #[test]
    fn the_first_caption_is_canonical_and_all_differ() {
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
    fn keywords_always_name_the_thing() {
        let tags = ["fruit", "berry"].map(String::from);
        let captions = captions(&["strawberry".into()], &tags, Style::Noto);
        assert_eq!(captions.last().unwrap(), "strawberry, fruit, berry, noto style");
    }

    #[test]
    fn a_face_goes_by_two_names_and_plurals_do_not_repeat() {
        let cat = captions(&["cat face".into(), "cat".into()], &[], Style::EmojiOne);
        assert_eq!(cat[0], "a cat face, emojione style");
        assert!(cat.contains(&"a cat, emojione style".to_string()));
        assert!(cat.contains(&"an emojione style picture of a cat".to_string()));
        let grapes = captions(&["grapes".into()], &[], Style::Noto);
        assert_eq!(grapes.iter().filter(|caption| *caption == "grapes, noto style").count(), 1);
    }

    #[test]
    fn long_captions_are_left_out_but_never_all() {
        let long = vec!["word ".repeat(20).trim().to_string()];
        assert_eq!(captions(&long, &[], Style::Noto).len(), 1);
    }
}
