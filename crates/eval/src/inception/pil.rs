//! Bilinear resizing as Python's Pillow does it: a triangle that widens when a picture shrinks, so that no pixel is
//! passed over, first across and then down, with bytes in between.
//!
//! Bytes and not floats, and weights as whole numbers of 2⁻²², because a figure is to be that of those who resized with
//! Pillow, to its last rounding.

use image::RgbImage;

/// Binary digits of a weight behind the point.
const DIGITS: u32 = 32 - 8 - 2;

/// The weights of the pixels `start..` of a line for one pixel of the new line.
struct Window {
    start: usize,
    weights: Vec<i32>,
}

/// `picture` as bytes `[side, side, 3]`.
pub fn resize(picture: &RgbImage, side: usize) -> Vec<u8> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let bytes = picture.as_raw();
    let mut across = Vec::with_capacity(side * height * 3);
    let columns = windows(width, side);
    for row in bytes.chunks_exact(3 * width) {
        for column in &columns {
            across.extend((0..3).map(|c| sum(column, |x| row[3 * x + c])));
        }
    }
    let mut down = Vec::with_capacity(side * side * 3);
    for row in windows(height, side) {
        down.extend((0..3 * side).map(|i| sum(&row, |y| across[3 * side * y + i])));
    }
    down
}

fn sum(window: &Window, pixel: impl Fn(usize) -> u8) -> u8 {
    let products =
        window.weights.iter().zip(window.start..).map(|(weight, at)| weight * i32::from(pixel(at)));
    let half = 1 << (DIGITS - 1);
    ((products.sum::<i32>() + half) >> DIGITS).clamp(0, 255) as u8
}

/// A window for each of `to` pixels made of `from`.
fn windows(from: usize, to: usize) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let reach = scale.max(1.0);
    let window = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        // Casts cut towards zero and at zero.
        let start = (centre - reach + 0.5) as usize;
        let end = ((centre + reach + 0.5) as usize).min(from);
        let triangle = |at: usize| (1.0 - ((at as f64 - centre + 0.5) / reach).abs()).max(0.0);
        let total: f64 = (start..end).map(triangle).sum();
        let fixed = |at| (triangle(at) / total * f64::from(1_u32 << DIGITS) + 0.5) as i32;
        Window { start, weights: (start..end).map(fixed).collect() }
    };
    (0..to).map(window).collect()
}
