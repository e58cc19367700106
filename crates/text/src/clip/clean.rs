//! Cleans captions as CLIP does before tokenisation (Radford et al. 2021, the released tokenizer).
//!
//! The released code calls the text-repair library ftfy and then Python's `html.unescape` twice.
//! This file keeps that order, because it affects the result: a curly quote that only the second
//! unescaping produces stays curly.

use tokenizers::NormalizedString;

use super::entities::{unescape, unescape_terminated, windows_1252};
use crate::normalise::compose;

/// Cleans `caption` as CLIP's tokenizer does: repairs it, resolves HTML entities, collapses and
/// trims white space, and converts it to lower case.
///
/// The following repairs of ftfy are implemented:
/// - entities that end in `;` are resolved (in text without `<`);
/// - C1 controls become the characters that Windows-1252 has in their place;
/// - Latin ligatures and fullwidth or halfwidth characters become ordinary characters;
/// - curly quotes become straight ones;
/// - terminal colours and control characters are removed;
/// - characters are composed (NFC).
///
/// Unlike ftfy, this function does not repair mojibake: text that was decoded with the wrong
/// encoding (`sÃ³` for `só`).
///
/// The supported named entities are those of HTML 4, `&apos;`, HTML 5's names of ASCII signs, and
/// the all-capital spellings that ftfy or HTML 5 knows. The other 1,900 names of HTML 5 stay
/// unresolved.
pub fn clean_for_clip(caption: &str) -> String {
    let text = unescape(&unescape(&repair(caption)));
    text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// Repairs each line separately. From the first line with a `<` on, the text is treated as HTML,
/// and this step leaves its entities alone.
fn repair(text: &str) -> String {
    let mut entities = true;
    let line = |line: &str| {
        entities &= !line.contains('<');
        repair_line(line, entities)
    };
    text.split_inclusive('\n').map(line).collect()
}

/// Repeats the steps until nothing changes, because the result of one step may need another step.
fn repair_line(line: &str, entities: bool) -> String {
    let mut text = line.to_owned();
    loop {
        let unescaped = if entities { unescape_terminated(&text) } else { text.clone() };
        let plain: String = unescaped.chars().map(windows_1252).collect::<String>();
        let next = compose(without_controls(&ordinary(&plain)));
        if next == text {
            return next;
        }
        text = next;
    }
}

/// Replaces ligatures, fullwidth and halfwidth characters, quotes and line ends, in this order.
fn ordinary(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for c in text.chars() {
        match (ligature(c), c) {
            (Some(letters), _) => result.extend(letters.chars().map(straight)),
            (None, '\u{3000}') => result.push(' '),
            (None, '\u{ff01}'..='\u{ffef}') => result.extend(of_usual_width(c).chars().map(straight)),
            (None, '\r' | '\u{2028}' | '\u{2029}' | '\u{85}') => result.push('\n'),
            (None, c) => result.push(straight(c)),
        }
    }
    result
}

fn straight(c: char) -> char {
    match c {
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => '\'',
        '\u{201c}'..='\u{201f}' => '"',
        c => c,
    }
}

fn ligature(c: char) -> Option<&'static str> {
    Some(match c {
        'Ĳ' => "IJ",
        'ĳ' => "ij",
        'ŉ' => "ʼn",
        'Ǳ' => "DZ",
        'ǲ' => "Dz",
        'ǳ' => "dz",
        'Ǆ' => "DŽ",
        'ǅ' => "Dž",
        'ǆ' => "dž",
        'Ǉ' => "LJ",
        'ǈ' => "Lj",
        'ǉ' => "lj",
        'Ǌ' => "NJ",
        'ǋ' => "Nj",
        'ǌ' => "nj",
        'ﬀ' => "ff",
        'ﬁ' => "fi",
        'ﬂ' => "fl",
        'ﬃ' => "ffi",
        'ﬄ' => "ffl",
        'ﬅ' => "ſt",
        'ﬆ' => "st",
        _ => return None,
    })
}

/// Returns the compatibility form (NFKC) of a fullwidth or halfwidth character.
fn of_usual_width(c: char) -> String {
    NormalizedString::from(c.to_string()).nfkc().get().to_owned()
}

/// Removes terminal escapes (`ESC [ 31 m`) and control characters other than white space.
fn without_controls(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        match escape_len(rest) {
            Some(len) => rest = &rest[len..],
            None => {
                result.extend(Some(c).filter(|c| !is_control(*c)));
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    result
}

/// Returns the length in bytes of the terminal escape at the start of `text`, if there is one.
fn escape_len(text: &str) -> Option<usize> {
    let arguments = text.strip_prefix("\u{1b}[")?;
    let letter = arguments.trim_start_matches(|c: char| c.is_numeric() || c == ';');
    letter.starts_with(|c: char| c.is_ascii_alphabetic()).then(|| text.len() - letter.len() + 1)
}

fn is_control(c: char) -> bool {
    matches!(c,
        '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}'
        | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}')
}
