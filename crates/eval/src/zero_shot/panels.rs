//! Pictures of two panels: how well the lower half is drawn when the upper half is given (paper §3.3, figure 14).

use image::{RgbImage, imageops};

/// The rows above the middle.
pub(super) fn upper_half(picture: &RgbImage) -> RgbImage {
    imageops::crop_imm(picture, 0, 0, picture.width(), picture.height() / 2).to_image()
}

/// The rows below the middle, as many as above.
pub(super) fn lower_half(picture: &RgbImage) -> RgbImage {
    let half = picture.height() / 2;
    imageops::crop_imm(picture, 0, picture.height() - half, picture.width(), half).to_image()
}

/// Tokens of the upper half of a `grid` x `grid` picture; the rest is to be drawn.
pub(super) fn upper_tokens(tokens: &[u32], grid: usize) -> Vec<Option<u32>> {
    let given = grid / 2 * grid;
    tokens.iter().enumerate().map(|(at, &token)| (at < given).then_some(token)).collect()
}

/// Mean squared difference of two pictures of one size, of 255².
pub(super) fn mean_squared_error(a: &RgbImage, b: &RgbImage) -> f64 {
    let squares = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
    squares.sum::<f64>() / a.as_raw().len().max(1) as f64
}

/// Peak signal-to-noise ratio in dB; 100 if the pictures are the same.
pub(super) fn psnr_db(a: &RgbImage, b: &RgbImage) -> f64 {
    let share = mean_squared_error(a, b) / 255.0_f64.powi(2);
    -10.0 * share.max(1e-10).log10()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_share_the_rows() {
        let picture = RgbImage::from_fn(4, 6, |_, y| image::Rgb([y as u8; 3]));
        let [upper, lower] = [upper_half(&picture), lower_half(&picture)];
        assert_eq!((upper.dimensions(), lower.dimensions()), ((4, 3), (4, 3)));
        assert_eq!((upper.get_pixel(0, 2)[0], lower.get_pixel(0, 0)[0]), (2, 3));
        assert_eq!(upper_tokens(&[5, 6, 7, 8], 2), [Some(5), Some(6), None, None]);
    }

    #[test]
    fn psnr_of_known_differences() {
        let grey = |value| RgbImage::from_pixel(3, 3, image::Rgb([value; 3]));
        assert_eq!(psnr_db(&grey(9), &grey(9)), 100.0);
        assert!(psnr_db(&grey(0), &grey(255)).abs() < 1e-9);
        assert!((psnr_db(&grey(0), &grey(51)) - 13.979).abs() < 1e-3); // a fifth of the range: 20 log10 5
    }
}
