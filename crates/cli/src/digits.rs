//! Numbers under pictures: eleven signs of 3 × 5 points, which need no font.

use image::{Rgb, RgbImage, imageops};

/// Rows of a sign from the top, three bits each.
const SIGNS: [(char, [u8; 5]); 12] = [
    ('0', [7, 5, 5, 5, 7]),
    ('1', [2, 6, 2, 2, 7]),
    ('2', [7, 1, 7, 4, 7]),
    ('3', [7, 1, 7, 1, 7]),
    ('4', [5, 5, 7, 1, 1]),
    ('5', [7, 4, 7, 1, 7]),
    ('6', [7, 4, 7, 5, 7]),
    ('7', [7, 1, 2, 2, 2]),
    ('8', [7, 5, 7, 5, 7]),
    ('9', [7, 5, 7, 1, 7]),
    ('.', [0, 0, 0, 0, 2]),
    ('-', [0, 0, 7, 0, 0]),
];
const INK: Rgb<u8> = Rgb([60, 60, 60]);

/// `picture` above a white strip with `number` in its middle; signs that are not part of numbers are left out.
pub fn labelled(picture: &RgbImage, number: &str) -> RgbImage {
    let dot = (picture.width() / 64).max(1);
    let (width, height) = (picture.width(), picture.height() + 9 * dot);
    let mut labelled = RgbImage::from_pixel(width, height, Rgb([255; 3]));
    imageops::replace(&mut labelled, picture, 0, 0);
    let signs: Vec<[u8; 5]> = number
        .chars()
        .filter_map(|c| SIGNS.iter().find(|(sign, _)| *sign == c))
        .map(|(_, rows)| *rows)
        .collect();
    let left = width.saturating_sub(signs.len() as u32 * 4 * dot) / 2;
    for (i, rows) in signs.iter().enumerate() {
        for (row, bits) in rows.iter().enumerate() {
            for column in (0..3).filter(|column| bits >> (2 - column) & 1 == 1) {
                let (x, y) =
                    (left + (4 * i as u32 + column) * dot, picture.height() + (2 + row as u32) * dot);
                for (x, y) in (0..dot).flat_map(|dx| (0..dot).map(move |dy| (x + dx, y + dy))) {
                    if x < width {
                        labelled.put_pixel(x, y, INK);
                    }
                }
            }
        }
    }
    labelled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_stands_under_its_picture_and_leaves_it_as_it_was() {
        let picture = RgbImage::from_pixel(64, 10, Rgb([9, 9, 9]));
        let with = labelled(&picture, "-0.1");
        assert_eq!(with.dimensions(), (64, 19));
        assert_eq!(imageops::crop_imm(&with, 0, 0, 64, 10).to_image(), picture);
        let ink = with.pixels().filter(|pixel| **pixel == INK).count();
        assert_eq!(ink, 3 + 12 + 1 + 8);
        assert_eq!(labelled(&picture, "").pixels().filter(|pixel| **pixel == INK).count(), 0);
        assert_eq!(labelled(&RgbImage::new(3, 3), "0.123456").width(), 3);
    }
}
