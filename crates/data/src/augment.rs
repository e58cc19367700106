//! The paper's two ways to crop a training picture, for any target size.
//!
//! Listing 1 (§A.2, stage 1) and listing 2 (§B.2, stage 2) are written for 256 pixels; the bounds on `t` keep their
//! proportions here (288 = 9/8, 384 = 12/8 of the target). The source may be of any size whose short side `s` reaches
//! the target. Stage 2 does not flip, because a flip would make text and "left of" wrong.

use anyhow::{Result, ensure};
use image::{RgbImage, imageops};
use rand_chacha::rand_core::Rng;
use serde::{Deserialize, Serialize};

use crate::loader::below;
use crate::picture::{Filter, Square, resize};

/// How a picture becomes a square of the model's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Augment {
    /// Listing 1: any square, scaled to 9/8 to 12/8 of the target, any crop, either way round.
    Stage1,
    /// Listing 2: a square near the middle, scaled to 8/8 to 9/8 of the target, any crop, never mirrored.
    Stage2,
    /// Any square, scaled to the target, never mirrored: CLIP's (Radford et al. 2021).
    RandomSquare,
    /// The middle square, scaled to the target: for validation.
    CentreOnly,
}

/// One `target` x `target` picture out of `image`; an error if its short side is less than `target`.
pub fn augment(image: &RgbImage, target: u32, kind: Augment, rng: &mut impl Rng) -> Result<RgbImage> {
    let (width, height) = image.dimensions();
    let side = width.min(height);
    ensure!(target > 0, "the target size of a crop must be at least 1 pixel");
    ensure!(
        side >= target,
        "a picture of {width}x{height} is too small for a crop of {target}; store the pictures at a larger size"
    );
    let limit = |eighths: u32| side.min((u64::from(target) * u64::from(eighths) / 8) as u32);
    match kind {
        Augment::Stage1 => {
            let left = between(rng, 0, width - side);
            let top = between(rng, 0, height - side);
            let scaled = between(rng, limit(9), limit(12));
            let mut crop = scale_and_crop(image, Square { left, top, side }, scaled, target, rng)?;
            if below(rng, 2) == 1 {
                imageops::flip_horizontal_in_place(&mut crop);
            }
            Ok(crop)
        }
        Augment::Stage2 => {
            let left = in_middle_quarter(rng, width - side);
            let top = in_middle_quarter(rng, height - side);
            let scaled = between(rng, target, limit(9));
            scale_and_crop(image, Square { left, top, side }, scaled, target, rng)
        }
        Augment::RandomSquare => {
            let left = between(rng, 0, width - side);
            let top = between(rng, 0, height - side);
            resize(image, Square { left, top, side }, target, Filter::Area)
        }
        Augment::CentreOnly => resize(image, Square::centre(image), target, Filter::Area),
    }
}

/// The square `from`, area-resized to `scaled`, then a random crop of `target` out of that.
fn scale_and_crop(
    image: &RgbImage,
    from: Square,
    scaled: u32,
    target: u32,
    rng: &mut impl Rng,
) -> Result<RgbImage> {
    let image = resize(image, from, scaled, Filter::Area)?;
    let left = between(rng, 0, scaled - target);
    let top = between(rng, 0, scaled - target);
    Ok(imageops::crop_imm(&image, left, top, target, target).to_image())
}

/// Listing 2's offset: uniform over the middle quarter of the slack, `[3s/8, max(3s/8 + 1, 5s/8))`.
fn in_middle_quarter(rng: &mut impl Rng, slack: u32) -> u32 {
    let slack = u64::from(slack);
    let (low, high) = (3 * slack / 8, 5 * slack / 8);
    (low + below(rng, high.max(low + 1) - low)) as u32
}

/// A whole number from `low` to `high`, both included.
fn between(rng: &mut impl Rng, low: u32, high: u32) -> u32 {
    low + below(rng, u64::from(high.saturating_sub(low)) + 1) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::{Purpose, item_rng};

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 3) as u8, (y * 3) as u8, 0]))
    }

    fn crop(image: &RgbImage, target: u32, kind: Augment, index: u64) -> RgbImage {
        augment(image, target, kind, &mut item_rng(7, Purpose::Augment, 0, index)).unwrap()
    }

    #[test]
    fn every_kind_gives_the_target_size() {
        for kind in [Augment::Stage1, Augment::Stage2, Augment::RandomSquare, Augment::CentreOnly] {
            for (width, height) in [(32, 32), (33, 80), (64, 64), (72, 40), (200, 32)] {
                for index in 0..20 {
                    assert_eq!(crop(&gradient(width, height), 32, kind, index).dimensions(), (32, 32));
                }
            }
        }
    }

    #[test]
    fn the_same_draws_give_the_same_crop() {
        let image = gradient(72, 72);
        assert_eq!(crop(&image, 64, Augment::Stage1, 5), crop(&image, 64, Augment::Stage1, 5));
        let different =
            (0..50).filter(|&i| crop(&image, 64, Augment::Stage1, i) != crop(&image, 64, Augment::Stage1, 0));
        assert!(different.count() > 40);
    }

    #[test]
    fn stage_1_flips_half_the_time_and_stage_2_never() {
        let image = gradient(64, 64);
        let flipped = |kind| {
            let is_flipped = |crop: RgbImage| crop.get_pixel(0, 0).0[0] > crop.get_pixel(31, 0).0[0];
            (0..200).filter(|&i| is_flipped(crop(&image, 32, kind, i))).count()
        };
        assert!((70..130).contains(&flipped(Augment::Stage1)), "{}", flipped(Augment::Stage1));
        assert_eq!(flipped(Augment::Stage2), 0);
    }

    #[test]
    fn stage_2_stays_in_the_middle_quarter() {
        let mut rng = item_rng(0, Purpose::Augment, 0, 0);
        let offsets: Vec<u32> = (0..500).map(|_| in_middle_quarter(&mut rng, 80)).collect();
        assert_eq!((offsets.iter().min(), offsets.iter().max()), (Some(&30), Some(&49)));
        assert_eq!(in_middle_quarter(&mut rng, 0), 0);
    }

    /// Of 96 x 32 pixels at target 32 nothing is scaled: the crop's first column says where it was cut.
    #[test]
    fn a_random_square_lies_anywhere_and_is_whole() {
        let image = gradient(96, 32);
        let lefts: Vec<u8> =
            (0..500).map(|i| crop(&image, 32, Augment::RandomSquare, i).get_pixel(0, 0).0[0] / 3).collect();
        assert_eq!((lefts.iter().min(), lefts.iter().max()), (Some(&0), Some(&64)));
        let square = gradient(48, 48);
        let centre = crop(&square, 32, Augment::CentreOnly, 0);
        assert!((0..20).all(|i| crop(&square, 32, Augment::RandomSquare, i) == centre));
    }

    #[test]
    fn a_picture_too_small_is_an_error() {
        let error = augment(&gradient(64, 31), 32, Augment::Stage1, &mut item_rng(0, Purpose::Augment, 0, 0));
        assert!(error.unwrap_err().to_string().contains("64x31"));
    }
}
