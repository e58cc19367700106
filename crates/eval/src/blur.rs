//! Gaussian blur, which takes the fine detail from pictures before they are compared (paper §3, figure 9).

use image::RgbImage;
use image::imageops;

/// `picture` blurred by a Gaussian with a deviation of `radius` pixels; 0 leaves it as it is.
pub fn blur(picture: &RgbImage, radius: f32) -> RgbImage {
    if radius > 0.0 { imageops::blur(picture, radius) } else { picture.clone() }
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
        assert!((at(16, 16) - 40.6).abs() < 2.0 && (at(17, 16) - 24.6).abs() < 2.0, "{}", at(17, 16));
        assert!((at(16, 18) - 5.5).abs() < 1.5 && at(16, 21) == 0.0);
    }
}
