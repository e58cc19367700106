//! Gaussian blur, which takes the fine detail from pictures before they are compared (paper §3, figure 9).
//!
//! A true Gaussian, cut at four deviations, with the picture's edges repeated, and rounded once. What others call a Gaussian blur
//! differs: Pillow's, whose radius is a deviation too, is three box blurs, and the `image` crate's is cut at two deviations when the
//! radius is 1, so that it blurs less than it says.

use image::RgbImage;
use tessera_model::pil;

/// Deviations that the filter reaches on either side; beyond lies a share of 6e-5.
const REACH: f32 = 4.0;
/// Numbers of a pixel.
const CHANNELS: usize = 3;

/// `picture` blurred by a Gaussian with a deviation of `radius` pixels; 0 leaves it as it is.
pub fn blur(picture: &RgbImage, radius: f32) -> RgbImage {
    if radius > 0.0 && picture.width() > 0 { spread(picture, &weights(radius)) } else { picture.clone() }
}

/// `picture` brought to `side` × `side` pixels and then blurred: a radius means the same in pictures of all sizes only then. It is
/// resized as an Inception's pictures are, whole and with Pillow's bilinear filter.
pub fn blur_at(picture: &RgbImage, side: u32, radius: f32) -> RgbImage {
    blur(&pil::resize(picture, [side; 2], pil::PilFilter::Bilinear), radius)
}

/// The filter's middle and what follows on either side; with both sides they add up to 1.
fn weights(radius: f32) -> Vec<f32> {
    let reach = (REACH * radius).ceil() as i32;
    let bell = |x: i32| (-0.5 * (f64::from(x) / f64::from(radius)).powi(2)).exp();
    let total: f64 = (-reach..=reach).map(bell).sum();
    (0..=reach).map(|x| (bell(x) / total) as f32).collect()
}

/// Both passes: along the rows, then along the columns. Whole rows are added to each other, which is what processors do fast.
fn spread(picture: &RgbImage, weights: &[f32]) -> RgbImage {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let (row, reach) = (width * CHANNELS, weights.len() - 1);
    let mut across = vec![0.0; row * height];
    for (from, to) in picture.as_raw().chunks_exact(row).zip(across.chunks_exact_mut(row)) {
        let padded = padded(from, reach);
        add(to, weights, |x| {
            let [left, right] = [reach - x, reach + x].map(|start| &padded[start * CHANNELS..][..row]);
            (left, right)
        });
    }
    let mut blurred = Vec::with_capacity(row * height);
    for y in 0..height {
        let mut down = vec![0.0; row];
        add(&mut down, weights, |x| {
            let rows = [y.saturating_sub(x), (y + x).min(height - 1)];
            let [above, below] = rows.map(|y| &across[y * row..][..row]);
            (above, below)
        });
        blurred.extend(down.iter().map(|&value| value.round() as u8));
    }
    RgbImage::from_vec(picture.width(), picture.height(), blurred).unwrap_or_else(|| picture.clone())
}

/// A row with its first and last pixel repeated `reach` times.
fn padded(row: &[u8], reach: usize) -> Vec<f32> {
    let pixels = row.as_chunks::<CHANNELS>().0;
    let (Some(&first), Some(&last)) = (pixels.first(), pixels.last()) else { return Vec::new() };
    let repeat = |pixel| std::iter::repeat_n(pixel, reach);
    let all = repeat(first).chain(pixels.iter().copied()).chain(repeat(last));
    all.flatten().map(f32::from).collect()
}

/// Sets `to` to the weighted sum of what `at` finds `x` to either side of it.
fn add<'a>(to: &mut [f32], weights: &[f32], at: impl Fn(usize) -> (&'a [f32], &'a [f32])) {
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
        let dot = RgbImage::from_fn(33, 33, |x, y| Rgb([if (x, y) == (16, 16) { 255 } else { 0 }; 3]));
        assert_eq!(blur(&dot, 0.0), dot);
        let blurred = blur(&dot, 1.0);
        let at = |x: u32, y: u32| f32::from(blurred.get_pixel(x, y).0[0]);
        // 255 / 2π at the middle, and e^(−r²/2) of that at a distance of r.
        assert!((at(16, 16) - 40.6).abs() < 1.0 && (at(17, 16) - 24.6).abs() < 1.0, "{}", at(17, 16));
        assert!((at(16, 18) - 5.5).abs() < 1.0 && at(16, 21) == 0.0);
    }

    #[test]
    fn the_filter_has_the_deviation_that_was_asked_for() {
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
            assert!((deviation / radius - 1.0).abs() < 2e-3, "{deviation}, wanted {radius}");
        }
    }

    /// Radii are pixels of one size: a picture and the same at four times its size give the same curve.
    #[test]
    fn pictures_of_any_size_are_blurred_alike() {
        let small = RgbImage::from_fn(32, 32, |x, y| {
            Rgb([(x * 8) as u8, (y * 8) as u8, if x > y { 255 } else { 0 }])
        });
        let large = pil::resize(&small, [128, 128], pil::PilFilter::Bilinear);
        let apart = |a: &RgbImage, b: &RgbImage| {
            let off = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| f64::from(a.abs_diff(*b)));
            off.sum::<f64>() / a.as_raw().len() as f64
        };
        let at = |picture: &RgbImage| blur_at(picture, 64, 4.0);
        assert!(apart(&at(&small), &at(&large)) < 1.0, "{}", apart(&at(&small), &at(&large)));
        // Blurred first, the large one keeps detail that the small one loses.
        let then = |picture: &RgbImage| pil::resize(&blur(picture, 4.0), [64; 2], pil::PilFilter::Bilinear);
        assert!(apart(&then(&small), &then(&large)) > 4.0, "{}", apart(&then(&small), &then(&large)));
        assert_eq!(blur_at(&large, 128, 0.0), large);
        assert_eq!(blur_at(&RgbImage::new(30, 20), 16, 1.0).dimensions(), (16, 16));
    }

    #[test]
    fn one_colour_stays_and_small_pictures_are_blurred_too() {
        for (width, height) in [(1, 1), (1, 7), (40, 2)] {
            let flat = RgbImage::from_pixel(width, height, Rgb([3, 130, 255]));
            assert_eq!(blur(&flat, 8.0), flat);
        }
        let empty = RgbImage::new(0, 4);
        assert_eq!(blur(&empty, 2.0), empty);
        // Colours do not run into each other, and a turned picture is blurred as it was.
        let step = RgbImage::from_fn(9, 5, |x, _| Rgb([if x < 4 { 0 } else { 200 }, 7, 0]));
        let blurred = blur(&step, 2.0);
        assert!(blurred.pixels().all(|pixel| pixel.0[1] == 7 && pixel.0[2] == 0));
        let turned = image::imageops::rotate90(&blur(&image::imageops::rotate270(&step), 2.0));
        assert_eq!(turned, blurred);
    }
}
