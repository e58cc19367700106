//! How CLIP cleans captions before it cuts them into tokens (Radford et al. 2021, the released tokenizer).
//!
//! The released code calls a library, ftfy, that repairs text, and Python's `html.unescape` twice. The order of the
//! steps is theirs, because it shows: a curly quote that only the second unescaping makes stays curly.

use tokenizers::NormalizedString;

use super::entities::{unescape, unescape_whole, windows_1252};
use crate::normalise::compose;

/// `caption` as CLIP's tokenizer reads it: repaired, HTML entities resolved, white space runs made one space, ends
/// trimmed, lower case.
///
/// Of ftfy's repairs it makes these: entities that end in `;` (in text without `<`), C1 controls to the characters that
/// Windows means by them, Latin ligatures and fullwidth or halfwidth characters to ordinary ones, curly quotes to
/// straight ones, terminal colours and control characters removed, composed characters (NFC). It does not repair
/// mojibake, text that was decoded by the wrong encoding (`sÃ³` for `só`), which ftfy would.
///
/// Entities with a name are those of HTML 4, `&apos;`, HTML 5's names of ASCII signs, and all-capital spellings as far
/// as ftfy or HTML 5 knows them; the other 1,900 names of HTML 5 stay as they are written.
pub fn clean_for_clip(caption: &str) -> String {
    let text = unescape(&unescape(&repair(caption)));
    text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// Repairs each line by itself. From the first line with a `<` on, text is taken for HTML whose entities are meant.
fn repair(text: &str) -> String {
    let mut entities = true;
    let line = |line: &str| {
        entities &= !line.contains('<');
        repair_line(line, entities)
    };
    text.split_inclusive('\n').map(line).collect()
}

/// Repeats the steps until they change nothing: one step's result may be another's business.
fn repair_line(line: &str, entities: bool) -> String {
    let mut text = line.to_owned();
    loop {
        let unescaped = if entities { unescape_whole(&text) } else { text.clone() };
        let plain: String = unescaped.chars().map(windows_1252).collect::<String>();
        let next = compose(without_controls(&ordinary(&plain)));
        if next == text {
            return next;
        }
        text = next;
    }
}

/// Ligatures, widths, quotes and line ends, in this order.
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

/// The compatibility form (NFKC) of one fullwidth or halfwidth character.
fn of_usual_width(c: char) -> String {
    NormalizedString::from(c.to_string()).nfkc().get().to_owned()
}

/// Without terminal escapes (`ESC [ 31 m`) and characters that neither print nor space.
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

/// Bytes of the terminal escape that `text` begins with.
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
