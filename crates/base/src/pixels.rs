//! Pictures as numbers, the error between two pictures, and contact sheets.

use image::{RgbImage, imageops};

/// The number of pixels between two cells of a contact sheet.
const GAP: u32 = 2;

/// The largest PSNR in dB, that of two equal pictures: their error counts as 1e-10.
const LARGEST_PSNR: f64 = 100.0;

/// Returns the values of `image` in [0, 1], channel first: `[3, height, width]`, flat.
pub fn to_floats(image: &RgbImage) -> Vec<f32> {
    (0..3).flat_map(|channel| image.pixels().map(move |pixel| f32::from(pixel[channel]) / 255.0)).collect()
}

/// Returns the picture of the given values: `[3, side, side]`, in [0, 1].
///
/// # Panics
/// If there are fewer than `3 · side²` values.
pub fn from_floats(values: &[f32], side: u32) -> RgbImage {
    let plane = (side * side) as usize;
    RgbImage::from_fn(side, side, |x, y| {
        let at = (y * side + x) as usize;
        image::Rgb([0, 1, 2].map(|channel| (values[channel * plane + at] * 255.0).round() as u8))
    })
}

/// Returns the mean squared difference of the bytes of two pictures of equal size.
pub fn mean_squared_error(a: &RgbImage, b: &RgbImage) -> f64 {
    let squares = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
    squares.sum::<f64>() / a.as_raw().len().max(1) as f64
}

/// Returns the peak signal-to-noise ratio (PSNR) of two pictures of equal size in dB, at most 100.
pub fn psnr(a: &RgbImage, b: &RgbImage) -> f64 {
    psnr_of(mean_squared_error(a, b) / 255.0_f64.powi(2))
}

/// Returns the PSNR in dB for a mean squared error of values in [0, 1], at most 100.
pub fn psnr_of(mean_squared_error: f64) -> f64 {
    (-10.0 * mean_squared_error.log10()).min(LARGEST_PSNR)
}

/// Returns a contact sheet: `cells` of equal size in rows of `columns` cells, on white.
pub fn contact_sheet(cells: &[RgbImage], columns: usize) -> RgbImage {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_a_sheet_are_in_reading_order() {
        let cell = |v| RgbImage::from_pixel(3, 2, image::Rgb([v; 3]));
        let sheet = contact_sheet(&[cell(1), cell(2), cell(3)], 2);
        assert_eq!(sheet.dimensions(), (8, 6));
        assert_eq!([sheet.get_pixel(0, 0)[0], sheet.get_pixel(5, 0)[0], sheet.get_pixel(0, 4)[0]], [1, 2, 3]);
        assert_eq!(sheet.get_pixel(7, 5)[0], 255);
    }

    #[test]
    fn floats_round_trip() {
        let image = RgbImage::from_fn(4, 4, |x, y| image::Rgb([x as u8 * 60, y as u8 * 60, 255]));
        assert_eq!(from_floats(&to_floats(&image), 4), image);
    }

    #[test]
    fn psnr_of_known_differences() {
        let grey = |value| RgbImage::from_pixel(3, 3, image::Rgb([value; 3]));
        assert_eq!(psnr(&grey(9), &grey(9)), 100.0);
        assert!(psnr(&grey(0), &grey(255)).abs() < 1e-9);
        assert!((psnr(&grey(0), &grey(51)) - 13.979).abs() < 1e-3); // a fifth of the range: 20 log10 5
    }
}
