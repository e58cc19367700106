//! Resizes pictures exactly like Python's Pillow, first horizontally, then vertically. When a
//! picture is reduced, the filter is widened so that every pixel contributes.
//!
//! As in Pillow, the intermediate picture has 8 bits per channel, and the weights are integer
//! multiples of 2⁻²². The result is then the same to the last bit, which makes metrics comparable
//! with those computed with Pillow.

use image::RgbImage;

/// The filter that weights the source pixels around a target pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PilFilter {
    /// Linear interpolation: a triangle.
    Bilinear,
    /// Cubic interpolation with a = −1/2.
    Bicubic,
}

impl PilFilter {
    /// The radius of the filter, in pixels of the coarser of the two pictures.
    fn radius(self) -> f64 {
        match self {
            PilFilter::Bilinear => 1.0,
            PilFilter::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            PilFilter::Bilinear => (1.0 - x).max(0.0),
            PilFilter::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            PilFilter::Bicubic if x < 2.0 => ((5.0 - x) * x - 8.0) * x * 0.5 + 2.0,
            PilFilter::Bicubic => 0.0,
        }
    }
}

/// The number of fractional bits of a fixed-point weight.
const DIGITS: u32 = 32 - 8 - 2;

/// The fixed-point weights of the source pixels from `start` on for one target pixel.
struct Window {
    start: usize,
    weights: Vec<i32>,
}

/// Resizes `picture`.
pub fn resize(picture: &RgbImage, [to_width, to_height]: [u32; 2], filter: PilFilter) -> RgbImage {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let row = 3 * to_width as usize;
    let mut across = Vec::with_capacity(row * height);
    let columns = windows(width, to_width as usize, filter);
    for row in picture.as_raw().chunks_exact(3 * width.max(1)) {
        for column in &columns {
            across.extend((0..3).map(|c| sum(column, |x| row[3 * x + c])));
        }
    }
    let mut down = Vec::with_capacity(row * to_height as usize);
    for window in windows(height, to_height as usize, filter) {
        down.extend((0..row).map(|i| sum(&window, |y| across[row * y + i])));
    }
    RgbImage::from_raw(to_width, to_height, down).unwrap_or_default()
}

fn sum(window: &Window, pixel: impl Fn(usize) -> u8) -> u8 {
    let products =
        window.weights.iter().zip(window.start..).map(|(weight, at)| weight * i32::from(pixel(at)));
    let half = 1 << (DIGITS - 1);
    ((products.sum::<i32>() + half) >> DIGITS).clamp(0, 255) as u8
}

/// The windows of `to` target pixels over `from` source pixels.
fn windows(from: usize, to: usize, filter: PilFilter) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let wide = scale.max(1.0);
    let radius = filter.radius() * wide;
    let window = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        // The casts round toward zero; a negative start becomes 0.
        let start = (centre - radius + 0.5) as usize;
        let end = ((centre + radius + 0.5) as usize).min(from);
        let weight = |at: usize| filter.weight((at as f64 - centre + 0.5) / wide);
        let total: f64 = (start..end).map(weight).sum();
        let fixed = |at| {
            let exact = weight(at) / total * f64::from(1_u32 << DIGITS);
            (exact + 0.5_f64.copysign(exact)) as i32
        };
        Window { start, weights: (start..end).map(fixed).collect() }
    };
    (0..to).map(window).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_size_and_uniform_colour_are_unchanged() {
        let picture = RgbImage::from_fn(9, 5, |x, y| image::Rgb([x as u8 * 20, y as u8 * 40, 7]));
        for filter in [PilFilter::Bilinear, PilFilter::Bicubic] {
            assert_eq!(resize(&picture, [9, 5], filter), picture);
            let grey = RgbImage::from_pixel(13, 40, image::Rgb([200, 3, 77]));
            assert_eq!(resize(&grey, [31, 7], filter), RgbImage::from_pixel(31, 7, image::Rgb([200, 3, 77])));
        }
    }
}
