//! Pictures as the models' numbers, channel-first in [0, 1], and as sheets for people.

use image::{RgbImage, imageops};

/// Pixels between two cells.
const GAP: u32 = 2;

/// `cells` of equal size, `columns` a row, on white.
pub fn grid(cells: &[RgbImage], columns: usize) -> RgbImage {
    let Some(first) = cells.first() else { return RgbImage::new(1, 1) };
    let columns = columns.clamp(1, cells.len());
    let (w, h) = (first.width() + GAP, first.height() + GAP);
    let rows = cells.len().div_ceil(columns);
    let white = image::Rgb([255; 3]);
    let mut sheet = RgbImage::from_pixel(columns as u32 * w - GAP, rows as u32 * h - GAP, white);
    for (i, cell) in cells.iter().enumerate() {
        let (x, y) = ((i % columns) as u32 * w, (i / columns) as u32 * h);
        imageops::replace(&mut sheet, cell, i64::from(x), i64::from(y));
    }
    sheet
}

/// `[3·S·S]` channel-first values in [0, 1].
pub(crate) fn to_floats(image: &RgbImage) -> Vec<f32> {
    (0..3).flat_map(|channel| image.pixels().map(move |pixel| f32::from(pixel[channel]) / 255.0)).collect()
}

/// The square picture of side `side` with such values.
pub(crate) fn from_floats(values: &[f32], side: u32) -> RgbImage {
    let plane = (side * side) as usize;
    RgbImage::from_fn(side, side, |x, y| {
        let at = (y * side + x) as usize;
        image::Rgb([0, 1, 2].map(|channel| (values[channel * plane + at] * 255.0).round() as u8))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_lie_in_reading_order() {
        let cell = |v| RgbImage::from_pixel(3, 2, image::Rgb([v; 3]));
        let sheet = grid(&[cell(1), cell(2), cell(3)], 2);
        assert_eq!(sheet.dimensions(), (8, 6));
        assert_eq!([sheet.get_pixel(0, 0)[0], sheet.get_pixel(5, 0)[0], sheet.get_pixel(0, 4)[0]], [1, 2, 3]);
        assert_eq!(sheet.get_pixel(7, 5)[0], 255);
    }

    #[test]
    fn floats_round_trip() {
        let image = RgbImage::from_fn(4, 4, |x, y| image::Rgb([x as u8 * 60, y as u8 * 60, 255]));
        assert_eq!(from_floats(&to_floats(&image), 4), image);
    }
}
