//! English plurals, and numerals in captions.

use crate::sources::emoji::captions::with_article;

/// Irregular plurals.
const IRREGULAR: [(&str, &str); 18] = [
    ("mouse", "mice"),
    ("goose", "geese"),
    ("ox", "oxen"),
    ("sheep", "sheep"),
    ("fish", "fish"),
    ("deer", "deer"),
    ("moose", "moose"),
    ("bison", "bison"),
    ("water buffalo", "water buffalo"),
    ("wolf", "wolves"),
    ("leaf", "leaves"),
    ("knife", "knives"),
    ("scarf", "scarves"),
    ("tooth", "teeth"),
    ("squid", "squid"),
    ("shrimp", "shrimp"),
    ("cactus", "cacti"),
    ("die", "dice"),
];
/// Words that end the head of a phrase: "slice of cake" → "slices of cake".
const AFTER_HEAD: [&str; 6] = [" of ", " with ", " on ", " and ", " in ", " behind "];

/// Returns the plural of a phrase, or `None` if it is uncountable or already a plural.
pub(super) fn plural(phrase: &str) -> Option<String> {
    if with_article(phrase) == phrase {
        return None;
    }
    let end = AFTER_HEAD.iter().filter_map(|word| phrase.find(word)).min().unwrap_or(phrase.len());
    let (head, rest) = phrase.split_at(end);
    Some(format!("{}{rest}", plural_noun(head)))
}

fn plural_noun(noun: &str) -> String {
    let irregular = |(one, many): &(&str, &str)| {
        let start = noun.strip_suffix(one)?;
        (start.is_empty() || start.ends_with([' ', '-'])).then(|| format!("{start}{many}"))
    };
    if let Some(plural) = IRREGULAR.iter().find_map(irregular) {
        return plural;
    }
    let after_consonant =
        |ending: char| noun.strip_suffix(ending).filter(|start| !start.ends_with(['a', 'e', 'i', 'o', 'u']));
    let hisses = ["s", "x", "z", "ch", "sh"].iter().any(|ending| noun.ends_with(ending));
    let in_o = ["tomato", "potato", "mango", "volcano", "tornado"].iter().any(|word| noun.ends_with(word));
    match after_consonant('y') {
        Some(start) => format!("{start}ies"),
        None if hisses || in_o => format!("{noun}es"),
        None => format!("{noun}s"),
    }
}

/// Returns an English numeral: "two", "three", "four".
pub(super) fn number(n: usize) -> &'static str {
    ["no", "one", "two", "three", "four"].get(n).copied().unwrap_or("many")
}

/// Returns a Chinese numeral in the form used before a classifier: "两", "三", "四".
pub(super) fn chinese_number(n: usize) -> &'static str {
    ["零", "一", "两", "三", "四"].get(n).copied().unwrap_or("许多")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plurals_follow_english_rules() {
        for (one, many) in [
            ("cat", "cats"),
            ("cat face", "cat faces"),
            ("strawberry", "strawberries"),
            ("monkey", "monkeys"),
            ("peach", "peaches"),
            ("fox", "foxes"),
            ("bus", "buses"),
            ("slice of cake", "slices of cake"),
            ("house with a garden", "houses with a garden"),
            ("computer mouse", "computer mice"),
            ("fallen leaf", "fallen leaves"),
            ("game die", "game dice"),
            ("hippopotamus", "hippopotamuses"),
            ("tomato", "tomatoes"),
            ("giraffe", "giraffes"),
        ] {
            assert_eq!(plural(one).as_deref(), Some(many), "{one}");
        }
        assert_eq!((plural("bacon"), plural("grapes")), (None, None));
    }
}
