//! Gaussian blur, which removes fine detail from pictures before they are compared (paper §3,
//! figure 9).
//!
//! The filter is a true Gaussian, truncated at four standard deviations. The pixels at the edges
//! are repeated, and the result is rounded once. Other implementations differ: Pillow's is three
//! box blurs (its radius is also a standard deviation), and the `image` crate's is truncated at two
//! standard deviations for radius 1, so that it blurs less than requested.

use image::RgbImage;
use tessera_model::pil;

/// The number of standard deviations at which the filter is truncated, on each side. The weights
/// beyond it sum to 6e-5.
const REACH: f32 = 4.0;
/// The number of values per pixel.
const CHANNELS: usize = 3;

/// Blurs `picture` with a Gaussian whose standard deviation is `radius` pixels. Radius 0 returns it
/// unchanged.
pub fn blur(picture: &RgbImage, radius: f32) -> RgbImage {
    if radius > 0.0 && picture.width() > 0 { convolve(picture, &weights(radius)) } else { picture.clone() }
}

/// Resizes `picture` to `side` × `side` pixels and then blurs it, so that a radius has the same
/// effect for pictures of all sizes. Resizing is that of Inception's input: the complete picture,
/// with Pillow's bilinear filter.
pub fn blur_at(picture: &RgbImage, side: u32, radius: f32) -> RgbImage {
    blur(&pil::resize(picture, [side; 2], pil::PilFilter::Bilinear), radius)
}

/// The weights of the filter from its centre to one end. With both sides they sum to 1.
fn weights(radius: f32) -> Vec<f32> {
    let reach = (REACH * radius).ceil() as i32;
    let bell = |x: i32| (-0.5 * (f64::from(x) / f64::from(radius)).powi(2)).exp();
    let total: f64 = (-reach..=reach).map(bell).sum();
    (0..=reach).map(|x| (bell(x) / total) as f32).collect()
}

/// Convolves along the rows, then along the columns. Both passes add complete rows, which
/// vectorizes well.
fn convolve(picture: &RgbImage, weights: &[f32]) -> RgbImage {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let (row, reach) = (width * CHANNELS, weights.len() - 1);
    let mut across = vec![0.0; row * height];
    for (from, to) in picture.as_raw().chunks_exact(row).zip(across.chunks_exact_mut(row)) {
        let padded = padded(from, reach);
        weighted_sum(to, weights, |x| {
            let [left, right] = [reach - x, reach + x].map(|start| &padded[start * CHANNELS..][..row]);
            (left, right)
        });
    }
    let mut blurred = Vec::with_capacity(row * height);
    for y in 0..height {
        let mut down = vec![0.0; row];
        weighted_sum(&mut down, weights, |x| {
            let rows = [y.saturating_sub(x), (y + x).min(height - 1)];
            let [above, below] = rows.map(|y| &across[y * row..][..row]);
            (above, below)
        });
        blurred.extend(down.iter().map(|&value| value.round() as u8));
    }
    RgbImage::from_vec(picture.width(), picture.height(), blurred).unwrap_or_else(|| picture.clone())
}

/// A row, extended by `reach` copies of its first and its last pixel.
fn padded(row: &[u8], reach: usize) -> Vec<f32> {
    let pixels = row.as_chunks::<CHANNELS>().0;
    let (Some(&first), Some(&last)) = (pixels.first(), pixels.last()) else { return Vec::new() };
    let repeat = |pixel| std::iter::repeat_n(pixel, reach);
    let all = repeat(first).chain(pixels.iter().copied()).chain(repeat(last));
    all.flatten().map(f32::from).collect()
}

/// Sets `to` to the weighted sum of the rows that `at(x)` returns for the distance `x` on both
/// sides.
fn weighted_sum<'a>(to: &mut [f32], weights: &[f32], at: impl Fn(usize) -> (&'a [f32], &'a [f32])) {
    let (middle, _) = at(0);
    to.iter_mut().zip(middle).for_each(|(to, value)| *to = value * weights[0]);
    for (x, weight) in weights.iter().enumerate().skip(1) {
        let (left, right) = at(x);
        for ((to, left), right) in to.iter_mut().zip(left).zip(right) {
            *to += weight * (left + right);
        }
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn radius_0_is_the_identity_and_a_dot_spreads_as_a_gaussian() {
        // The expected values are 255 / 2π at the centre and e^(−r²/2) times that at distance r.
        let dot = RgbImage::from_fn(33, 33, |x, y| Rgb([if (x, y) == (16, 16) { 255 } else { 0 }; 3]));
        assert_eq!(blur(&dot, 0.0), dot);
        let blurred = blur(&dot, 1.0);
        let at = |x: u32, y: u32| f32::from(blurred.get_pixel(x, y).0[0]);
        assert!((at(16, 16) - 40.6).abs() < 1.0 && (at(17, 16) - 24.6).abs() < 1.0, "{}", at(17, 16));
        assert!((at(16, 18) - 5.5).abs() < 1.0 && at(16, 21) == 0.0);
    }

    #[test]
    fn filter_has_the_requested_standard_deviation() {
        for radius in [1.0, 2.0, 4.0, 8.0] {
            let weights = weights(radius);
            let sides = |power: i32| -> f32 {
                weights
                    .iter()
                    .enumerate()
                    .skip(1)
                    .map(|(x, weight)| 2.0 * weight * (x as f32).powi(power))
                    .sum()
            };
            assert!((weights[0] + sides(0) - 1.0).abs() < 1e-6);
            let deviation = sides(2).sqrt();
            assert!((deviation / radius - 1.0).abs() < 2e-3, "{deviation}, expected {radius}");
        }
    }

    /// Radii refer to the resized picture: a picture and its fourfold enlargement are blurred
    /// equally.
    #[test]
    fn blur_at_does_not_depend_on_the_size_of_the_picture() {
        let small = RgbImage::from_fn(32, 32, |x, y| {
            Rgb([(x * 8) as u8, (y * 8) as u8, if x > y { 255 } else { 0 }])
        });
        let large = pil::resize(&small, [128, 128], pil::PilFilter::Bilinear);
        let difference = |a: &RgbImage, b: &RgbImage| {
            let differences = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| f64::from(a.abs_diff(*b)));
            differences.sum::<f64>() / a.as_raw().len() as f64
        };
        let [a, b] = [&small, &large].map(|picture| blur_at(picture, 64, 4.0));
        assert!(difference(&a, &b) < 1.0, "{}", difference(&a, &b));
        // If blurred before resizing, the large picture keeps detail that the small one loses.
        let [a, b] = [&small, &large]
            .map(|picture| pil::resize(&blur(picture, 4.0), [64; 2], pil::PilFilter::Bilinear));
        assert!(difference(&a, &b) > 4.0, "{}", difference(&a, &b));
        assert_eq!(blur_at(&large, 128, 0.0), large);
        assert_eq!(blur_at(&RgbImage::new(30, 20), 16, 1.0).dimensions(), (16, 16));
    }

    #[test]
    fn uniform_small_and_empty_pictures_are_unchanged() {
        for (width, height) in [(1, 1), (1, 7), (40, 2)] {
            let flat = RgbImage::from_pixel(width, height, Rgb([3, 130, 255]));
            assert_eq!(blur(&flat, 8.0), flat);
        }
        let empty = RgbImage::new(0, 4);
        assert_eq!(blur(&empty, 2.0), empty);
    }

    #[test]
    fn channels_are_independent_and_rows_equal_columns() {
        let step = RgbImage::from_fn(9, 5, |x, _| Rgb([if x < 4 { 0 } else { 200 }, 7, 0]));
        let blurred = blur(&step, 2.0);
        assert!(blurred.pixels().all(|pixel| pixel.0[1] == 7 && pixel.0[2] == 0));
        let turned = image::imageops::rotate90(&blur(&image::imageops::rotate270(&step), 2.0));
        assert_eq!(turned, blurred);
    }
}
