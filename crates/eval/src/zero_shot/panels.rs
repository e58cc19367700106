//! The halves of pictures with two panels, of which the upper one is given and the lower one is
//! drawn (paper §3.3, figure 14).

use image::{RgbImage, imageops};

/// Returns the rows above the middle.
pub(super) fn upper_half(picture: &RgbImage) -> RgbImage {
    imageops::crop_imm(picture, 0, 0, picture.width(), picture.height() / 2).to_image()
}

/// Returns the rows below the middle, the same number as above.
pub(super) fn lower_half(picture: &RgbImage) -> RgbImage {
    let half = picture.height() / 2;
    imageops::crop_imm(picture, 0, picture.height() - half, picture.width(), half).to_image()
}

/// Returns the tokens of the upper half of a `grid` x `grid` picture, and `None` for those that are
/// to be drawn.
pub(super) fn upper_tokens(tokens: &[u32], grid: usize) -> Vec<Option<u32>> {
    let given = grid / 2 * grid;
    tokens.iter().enumerate().map(|(at, &token)| (at < given).then_some(token)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_contain_equally_many_rows() {
        let picture = RgbImage::from_fn(4, 6, |_, y| image::Rgb([y as u8; 3]));
        let [upper, lower] = [upper_half(&picture), lower_half(&picture)];
        assert_eq!((upper.dimensions(), lower.dimensions()), ((4, 3), (4, 3)));
        assert_eq!((upper.get_pixel(0, 2)[0], lower.get_pixel(0, 0)[0]), (2, 3));
        assert_eq!(upper_tokens(&[5, 6, 7, 8], 2), [Some(5), Some(6), None, None]);
    }
}
