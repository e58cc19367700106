//! TensorFlow 1's AREA resize with `align_corners = True`, which listings 1 and 2 of the paper use.
//!
//! A target pixel is the mean of the source pixels under it, weighted by the fraction of each that
//! it covers. With aligned corners, the ratio of sizes is `(source - 1) / (target - 1)`, and
//! windows that extend past the last row or column read that row or column again. The sums are
//! computed in f32 in TensorFlow's order, so the results are bit-identical.

use std::ops::Range;

use image::RgbImage;

/// The points at which source and target coordinates are aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Corners {
    /// The centres of the corner pixels are aligned, as in the listings.
    Aligned,
    /// The outer edges are aligned, so that all source pixels have the same weight.
    Edges,
}

/// The source pixels under one target pixel, along one axis.
struct Window {
    pixels: Range<usize>,
    /// The covered fraction of each pixel.
    weights: Vec<f32>,
}

/// Resizes the rectangle `from` of `image`, given as `[left, top, width, height]`, to `to` pixels.
/// The rectangle must be inside the image and not empty.
pub(crate) fn area(image: &RgbImage, from: [u32; 4], to: [u32; 2], corners: Corners) -> RgbImage {
    let bytes = area_f32(image, from, to, corners)
        .into_iter()
        .map(|value| value.clamp(0.0, 255.0).round_ties_even() as u8);
    let bytes: Vec<u8> = bytes.collect();
    RgbImage::from_fn(to[0], to[1], |x, y| {
        let at = 3 * (y as usize * to[0] as usize + x as usize);
        image::Rgb([bytes[at], bytes[at + 1], bytes[at + 2]])
    })
}

/// Like [`area`], but returns the values before rounding, channel-last.
fn area_f32(
    image: &RgbImage,
    [left, top, width, height]: [u32; 4],
    to: [u32; 2],
    corners: Corners,
) -> Vec<f32> {
    let [(columns, x_ratio), (rows, y_ratio)] =
        [(width, to[0]), (height, to[1])].map(|(source, target)| windows(source, target, corners));
    let scale = 1.0 / (y_ratio * x_ratio);
    let row = |y: usize| {
        let first =
            3 * ((top as usize + y.min(height as usize - 1)) * image.width() as usize + left as usize);
        &image.as_raw()[first..first + 3 * width as usize]
    };
    let mut target = Vec::with_capacity(3 * columns.len() * rows.len());
    for window in &rows {
        let mut sums = vec![[0.0_f32; 3]; columns.len()];
        for (y, weight) in window.pixels.clone().zip(&window.weights) {
            add_row(&mut sums, row(y), &columns, *weight);
        }
        target.extend(sums.iter().flatten().map(|sum| sum * scale));
    }
    target
}

/// Computes the weighted sum of a row over each window of columns, and adds it, multiplied by
/// `weight`, to `sums`.
fn add_row(sums: &mut [[f32; 3]], row: &[u8], columns: &[Window], weight: f32) {
    let pixels = row.as_chunks::<3>().0;
    for (sum, window) in sums.iter_mut().zip(columns) {
        let mut across = [0.0_f32; 3];
        for (x, share) in window.pixels.clone().zip(&window.weights) {
            let pixel = pixels[x.min(pixels.len() - 1)];
            across.iter_mut().zip(pixel).for_each(|(across, value)| *across += f32::from(value) * share);
        }
        sum.iter_mut().zip(across).for_each(|(sum, across)| *sum += across * weight);
    }
}

/// Returns the window of each target pixel along one axis, and the ratio of the sizes.
fn windows(source: u32, target: u32, corners: Corners) -> (Vec<Window>, f32) {
    // A single pixel has no corners to align.
    let ratio = match corners {
        Corners::Aligned if source > 1 && target > 1 => (source - 1) as f32 / (target - 1) as f32,
        Corners::Aligned | Corners::Edges => source as f32 / target as f32,
    };
    let window = |at: u32| {
        let (from, to) = (at as f32 * ratio, (at + 1) as f32 * ratio);
        let pixels = from.floor() as usize..to.ceil() as usize;
        let weights = pixels.clone().map(|pixel| share(pixel as f32, from, to, ratio)).collect();
        Window { pixels, weights }
    };
    ((0..target).map(window).collect(), ratio)
}

/// Returns the fraction of a pixel that is in the window from `from` to `to`, whose length is
/// `ratio`.
fn share(pixel: f32, from: f32, to: f32, ratio: f32) -> f32 {
    match (pixel < from, pixel + 1.0 > to) {
        (true, true) => ratio,
        (true, false) => pixel + 1.0 - from,
        (false, true) => to - pixel,
        (false, false) => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the test picture that `fixtures/area/make.py` also computes.
    fn picture(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([0, 1, 2].map(|c: u64| {
                let (x, y) = (u64::from(x), u64::from(y));
                let noise = ((x * 7919 + y * 104_729 + c * 1_299_709) * 2_654_435_761) as u32 >> 24;
                (u64::from(noise) + x * 3 + y * 5) as u8
            }))
        })
    }

    #[test]
    fn area_is_bit_identical_to_tensorflow() {
        const SIZES: &str = include_str!("../../../../fixtures/area/sizes.json");
        const EXPECTED: &[u8] = include_bytes!("../../../../fixtures/area/expected.f32");
        let sizes: Vec<[[u32; 2]; 2]> = serde_json::from_str(SIZES).unwrap();
        let mut all_expected = EXPECTED.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        for [[height, width], [to_height, to_width]] in sizes {
            let found = area_f32(
                &picture(width, height),
                [0, 0, width, height],
                [to_width, to_height],
                Corners::Aligned,
            );
            let expected: Vec<f32> = all_expected.by_ref().take(found.len()).collect();
            assert_eq!(found, expected, "{width}x{height} to {to_width}x{to_height}");
        }
        assert_eq!(all_expected.next(), None);
    }

    #[test]
    fn rectangle_is_resized_like_a_separate_picture() {
        let large = picture(40, 30);
        let part = image::imageops::crop_imm(&large, 5, 7, 20, 11).to_image();
        assert_eq!(
            area(&large, [5, 7, 20, 11], [13, 9], Corners::Aligned),
            area(&part, [0, 0, 20, 11], [13, 9], Corners::Aligned)
        );
    }

    #[test]
    fn aligned_edges_weight_all_pixels_equally() {
        let image = RgbImage::from_fn(4, 4, |x, y| image::Rgb([((x + 4 * y) * 10) as u8; 3]));
        let grey = |image: RgbImage| image.pixels().map(|pixel| pixel.0[0]).collect::<Vec<_>>();
        assert_eq!(grey(area(&image, [0, 0, 4, 4], [2, 2], Corners::Edges)), [25, 45, 105, 125]);
        // Each of the two target pixels covers one and a half of the three source pixels.
        let row = RgbImage::from_fn(3, 1, |x, _| image::Rgb([(x * 90) as u8; 3]));
        assert_eq!(grey(area(&row, [0, 0, 3, 1], [2, 1], Corners::Edges)), [30, 150]);
        // With aligned corners, the ratio is two. The last target pixel covers the third source
        // pixel twice, because there is no fourth one.
        assert_eq!(grey(area(&row, [0, 0, 3, 1], [2, 1], Corners::Aligned)), [45, 180]);
    }

    #[test]
    fn half_is_rounded_to_even() {
        let pair = |a, b| RgbImage::from_fn(2, 1, |x, _| image::Rgb([if x == 0 { a } else { b }; 3]));
        let one = |image: RgbImage| area(&image, [0, 0, 2, 1], [1, 1], Corners::Aligned).get_pixel(0, 0).0[0];
        assert_eq!([one(pair(2, 3)), one(pair(3, 4)), one(pair(255, 255))], [2, 4, 255]);
    }
}
