//! Preprocessing of pictures for the image tower: the short side is resized by cubic interpolation,
//! the middle square is cropped, normalised and cut into patches.

use image::{RgbImage, imageops};
use rayon::prelude::*;

use super::ClipConfig;
use crate::pil;

/// Converts pictures of any sizes to patches `[B, n, 3·P²]`, as a flat array. The values of a patch
/// are ordered by channel, then row, then column.
pub fn patches(pictures: &[RgbImage], config: &ClipConfig) -> Vec<f32> {
    let each: Vec<Vec<f32>> =
        pictures.par_iter().map(|picture| cut(&square(picture, config.image_size as u32), config)).collect();
    each.concat()
}

/// Resizes the short side of `picture` to `side` and crops the middle square.
pub fn square(picture: &RgbImage, side: u32) -> RgbImage {
    let (w, h) = picture.dimensions();
    let short = w.min(h).max(1);
    let scaled = |length: u32| (u64::from(length) * u64::from(side) / u64::from(short)) as u32;
    let (w, h) = (scaled(w).max(side), scaled(h).max(side));
    let resized = match picture.dimensions() == (w, h) {
        true => picture.clone(),
        false => pil::resize(picture, [w, h], pil::PilFilter::Bicubic),
    };
    // Halves are rounded to the even number, as by Python's `round`.
    let middle = |slack: u32| (f64::from(slack) / 2.0).round_ties_even() as u32;
    imageops::crop_imm(&resized, middle(w - side), middle(h - side), side, side).to_image()
}

/// Normalises a square picture and cuts it into patches.
fn cut(picture: &RgbImage, config: &ClipConfig) -> Vec<f32> {
    let (p, across) = (config.patch as u32, (config.image_size / config.patch) as u32);
    let value = |x, y, channel: usize| {
        let level = f32::from(picture.get_pixel(x, y).0[channel]) / 255.0;
        (level - config.mean[channel]) / config.deviation[channel]
    };
    let mut values = Vec::with_capacity(3 * config.image_size * config.image_size);
    for (row, column) in (0..across).flat_map(|row| (0..across).map(move |column| (row, column))) {
        for channel in 0..3 {
            for (y, x) in (0..p).flat_map(|y| (0..p).map(move |x| (y, x))) {
                values.push(value(column * p + x, row * p + y, channel));
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use image::Rgb;

    use super::*;
    use crate::rerank::tests::small;

    #[test]
    fn patches_are_in_raster_order_with_channels_before_rows() {
        let config = ClipConfig { mean: [0.0; 3], deviation: [1.0 / 255.0; 3], ..small() };
        let picture = RgbImage::from_fn(8, 8, |x, y| Rgb([x as u8, y as u8, 100]));
        let values = patches(&[picture], &config);
        assert_eq!(values.len(), 4 * 48);
        let second: Vec<f32> = values[48..96].iter().map(|value| value.round()).collect();
        assert_eq!(second[..5], [4.0, 5.0, 6.0, 7.0, 4.0]);
        assert_eq!((second[16], second[20], second[32]), (0.0, 1.0, 100.0));
    }

    #[test]
    fn square_of_a_wide_picture_is_its_middle() {
        let picture = RgbImage::from_fn(24, 8, |x, _| Rgb([if (8..16).contains(&x) { 255 } else { 0 }; 3]));
        assert_eq!(square(&picture, 8), RgbImage::from_pixel(8, 8, Rgb([255; 3])));
        assert_eq!(square(&picture, 4).dimensions(), (4, 4));
    }

    /// `fixtures/clip/preprocess.py` made the expected pictures with open_clip's transform.
    #[test]
    fn square_equals_open_clips_transform_for_any_shape() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/clip/pictures");
        let open = |name: String| image::open(dir.join(name)).unwrap().into_rgb8();
        for shape in ["small", "large", "wide", "tall", "odd"] {
            let found = square(&open(format!("{shape}.png")), 48);
            let wanted = open(format!("{shape}-48.png"));
            let off = found.as_raw().iter().zip(wanted.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(off <= Some(1) && found.dimensions() == wanted.dimensions(), "{shape}: off by {off:?}");
        }
    }
}
