//! Text in and under pictures, in the bitmap glyphs of GNU Unifont (SIL Open Font License 1.1).

use image::{Rgb, RgbImage, imageops};
use unifont::{Glyph, get_glyph};

use crate::pixels::contact_sheet;

/// The height of a line in pixels.
pub const LINE: u32 = 16;
/// The width of a Latin letter in pixels. Chinese characters have twice this width.
const LETTER: u32 = 8;
/// The space around the text in pixels.
const MARGIN: u32 = 2;
/// The colour of text.
const INK: Rgb<u8> = Rgb([60; 3]);
/// The colour behind text.
const PAPER: Rgb<u8> = Rgb([255; 3]);

/// Returns a picture of this width with `text` in dark letters on white.
///
/// The text wraps at spaces, and inside words that are too long for a line. It has at most
/// `max_lines` lines; the last one ends in `…` if text is cut.
pub fn text_strip(text: &str, width: u32, max_lines: usize) -> RgbImage {
    let lines = wrap(text, width.saturating_sub(2 * MARGIN), max_lines);
    let mut strip = RgbImage::from_pixel(width.max(1), lines.len() as u32 * LINE + 2 * MARGIN, PAPER);
    for (row, line) in lines.iter().enumerate() {
        let y = MARGIN + row as u32 * LINE;
        let mut x = width.saturating_sub(line_width(line)) / 2;
        for glyph in line.chars().map(glyph_of) {
            draw_glyph(&mut strip, glyph, [x, y]);
            x += glyph.get_width() as u32;
        }
    }
    strip
}

/// Returns `picture` above a strip with `text`.
pub fn with_text_below(picture: &RgbImage, text: &str, max_lines: usize) -> RgbImage {
    stack(&[picture.clone(), text_strip(text, picture.width(), max_lines)])
}

/// Returns a contact sheet of groups of pictures of equal size, `columns` per row, with the text of
/// each group above it.
pub fn labelled_sheet<'a>(
    groups: impl IntoIterator<Item = (&'a str, &'a [RgbImage])>,
    columns: usize,
    max_lines: usize,
) -> RgbImage {
    let parts = groups.into_iter().flat_map(|(text, pictures)| {
        let sheet = contact_sheet(pictures, columns);
        [text_strip(text, sheet.width(), max_lines), sheet]
    });
    stack(&parts.collect::<Vec<_>>())
}

/// Returns the pictures below each other, on white.
fn stack(pictures: &[RgbImage]) -> RgbImage {
    let width = pictures.iter().map(RgbImage::width).max().unwrap_or(1);
    let height = pictures.iter().map(RgbImage::height).sum::<u32>().max(1);
    let mut stacked = RgbImage::from_pixel(width, height, PAPER);
    let mut y = 0;
    for picture in pictures {
        imageops::replace(&mut stacked, picture, 0, i64::from(y));
        y += picture.height();
    }
    stacked
}

/// Splits `text` into lines of at most `width` pixels.
fn wrap(text: &str, width: u32, max_lines: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        for (i, piece) in pieces(word, width).into_iter().enumerate() {
            let line = lines.last().map_or("", String::as_str);
            let space = if i == 0 && !line.is_empty() { " " } else { "" };
            let extended = format!("{line}{space}{piece}");
            match line_width(&extended) <= width || line.is_empty() {
                true => *lines.last_mut().unwrap_or(&mut String::new()) = extended,
                false => lines.push(piece),
            }
        }
    }
    if lines.len() > max_lines.max(1) {
        lines.truncate(max_lines.max(1));
        if let Some(last) = lines.last_mut() {
            while !last.is_empty() && line_width(last) + LETTER > width {
                last.pop();
            }
            last.push('…');
        }
    }
    lines
}

/// Splits a word into pieces that each fit in a line: single characters for Chinese, otherwise as
/// long as possible.
fn pieces(word: &str, width: u32) -> Vec<String> {
    let mut pieces = vec![String::new()];
    for c in word.chars() {
        let last = pieces.last_mut();
        match last {
            Some(last) if last.is_empty() || (!is_wide(c) && line_width(last) + glyph_width(c) <= width) => {
                last.push(c);
            }
            _ => pieces.push(c.to_string()),
        }
    }
    pieces
}

fn is_wide(c: char) -> bool {
    glyph_of(c).is_fullwidth()
}

fn line_width(line: &str) -> u32 {
    line.chars().map(glyph_width).sum()
}

fn glyph_width(c: char) -> u32 {
    glyph_of(c).get_width() as u32
}

/// Returns the glyph of `c`, or of the replacement character if the font has none.
fn glyph_of(c: char) -> &'static Glyph {
    static EMPTY: Glyph = Glyph::Halfwidth([0; 16]);
    get_glyph(c).or_else(|| get_glyph(char::REPLACEMENT_CHARACTER)).unwrap_or(&EMPTY)
}

fn draw_glyph(picture: &mut RgbImage, glyph: &Glyph, [left, top]: [u32; 2]) {
    for (x, y) in (0..glyph.get_width()).flat_map(|x| (0..LINE as usize).map(move |y| (x, y))) {
        let at = [left + x as u32, top + y as u32];
        if glyph.get_pixel(x, y) && at[0] < picture.width() && at[1] < picture.height() {
            picture.put_pixel(at[0], at[1], INK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_wraps_at_spaces_and_inside_long_words() {
        assert_eq!(wrap("a red apple", 5 * LETTER, 9), ["a red", "apple"]);
        assert_eq!(wrap("pineapples", 4 * LETTER, 9), ["pine", "appl", "es"]);
        assert_eq!(wrap("孔雀橡皮", 6 * LETTER, 9), ["孔雀橡", "皮"]);
        assert_eq!(wrap("a very long caption", 6 * LETTER, 2), ["a very", "long…"]);
        assert_eq!(wrap("", 10, 3), [""]);
    }

    #[test]
    fn each_group_of_a_sheet_has_its_text_above() {
        let cell = |value| RgbImage::from_pixel(50, 20, Rgb([value; 3]));
        let groups = [("a cat", [cell(1), cell(2)]), ("a dog", [cell(3), cell(4)])];
        let sheet = labelled_sheet(groups.iter().map(|(text, cells)| (*text, &cells[..])), 2, 1);
        let strip = LINE + 2 * MARGIN;
        assert_eq!(sheet.dimensions(), (102, 2 * (strip + 20)));
        assert_eq!(sheet.get_pixel(0, strip)[0], 1);
        assert_eq!(sheet.get_pixel(101, 2 * strip + 39)[0], 4);
    }

    #[test]
    fn text_is_below_the_picture_and_leaves_it_unchanged() {
        let picture = RgbImage::from_pixel(60, 10, Rgb([9; 3]));
        let labelled = with_text_below(&picture, "cat 1", 1);
        assert_eq!(labelled.dimensions(), (60, 10 + LINE + 2 * MARGIN));
        assert_eq!(imageops::crop_imm(&labelled, 0, 0, 60, 10).to_image(), picture);
        let ink = |picture: &RgbImage| picture.pixels().filter(|pixel| **pixel == INK).count();
        assert!(ink(&labelled) > 40, "{}", ink(&labelled));
        assert!(with_text_below(&picture, "cat 2", 1) != labelled);
        assert_eq!(ink(&with_text_below(&picture, "", 1)), 0);
        assert_eq!(with_text_below(&RgbImage::new(3, 3), "0.123", 1).width(), 3);
    }
}
