//! The paper's two random crops of training pictures, generalised to any target size.
//!
//! Listing 1 (§A.2, stage 1) and listing 2 (§B.2, stage 2) are written for 256 pixels. Here the
//! bounds on `t` are scaled with the target (288 = 9/8, 384 = 12/8 of the target). The source may
//! have any size whose shorter side `s` is at least the target. Stage 2 does not flip, because a
//! flip would make text and "left of" wrong.

use anyhow::{Result, ensure};
use image::{RgbImage, imageops};
use rand_chacha::rand_core::Rng;
use serde::{Deserialize, Serialize};

use crate::picture::{ResizeFilter, Square, resize};
use tessera_base::random::below;

/// The method that crops a picture to a square of the model's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Augment {
    /// Listing 1: a random square, scaled to between 9/8 and 12/8 of the target, then a random crop
    /// and a random flip.
    Stage1,
    /// Listing 2: a random square near the middle, scaled to between 8/8 and 9/8 of the target,
    /// then a random crop without a flip.
    Stage2,
    /// A random square, scaled to the target, without a flip, as in CLIP (Radford et al. 2021).
    RandomSquare,
    /// The middle square, scaled to the target. Used for validation.
    CentreOnly,
}

/// Crops `image` to `target` x `target` pixels.
///
/// # Errors
/// If the shorter side of `image` is less than `target`.
pub fn augment(image: &RgbImage, target: u32, kind: Augment, rng: &mut impl Rng) -> Result<RgbImage> {
    let Some(crop) = Crop::draw(image.dimensions(), target, kind, rng)? else {
        return resize(image, Square::centre(image), target, ResizeFilter::Area);
    };
    let scaled = resize(image, crop.from, crop.scaled, ResizeFilter::Area)?;
    let mut cropped = imageops::crop_imm(&scaled, crop.left, crop.top, target, target).to_image();
    if crop.is_mirrored {
        imageops::flip_horizontal_in_place(&mut cropped);
    }
    Ok(cropped)
}

/// The random values that the listings draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Crop {
    /// The square of the source that is cut out and scaled.
    from: Square,
    /// The side of the square after scaling: `t` in the listings.
    scaled: u32,
    /// The left offset of the target in the scaled square.
    left: u32,
    /// The top offset of the target in the scaled square.
    top: u32,
    is_mirrored: bool,
}

impl Crop {
    /// Draws the crop for a picture of `width` x `height`. Returns `None` for
    /// [`Augment::CentreOnly`].
    fn draw(
        (width, height): (u32, u32),
        target: u32,
        kind: Augment,
        rng: &mut impl Rng,
    ) -> Result<Option<Crop>> {
        let side = width.min(height);
        ensure!(target > 0, "the target size of a crop must be at least 1 pixel");
        ensure!(
            side >= target,
            "a picture of {width}x{height} is too small for a crop of {target}; store the pictures at a larger size"
        );
        let slack = [width - side, height - side];
        let limit = |n: u64| side.min(eighths(n, target));
        let ([left, top], scaled) = match kind {
            Augment::Stage1 => (slack.map(|slack| between(rng, 0, slack)), between(rng, limit(9), limit(12))),
            Augment::Stage2 => {
                (slack.map(|slack| in_middle_quarter(rng, slack)), between(rng, target, limit(9)))
            }
            Augment::RandomSquare => (slack.map(|slack| between(rng, 0, slack)), target),
            Augment::CentreOnly => return Ok(None),
        };
        let within = [0; 2].map(|zero| between(rng, zero, scaled - target));
        let is_mirrored = kind == Augment::Stage1 && below(rng, 2) == 1;
        let from = Square { left, top, side };
        Ok(Some(Crop { from, scaled, left: within[0], top: within[1], is_mirrored }))
    }
}

/// Returns `n` eighths of the target, rounded half to even like `round` in the listings.
fn eighths(n: u64, target: u32) -> u32 {
    (f64::from(target) * n as f64 / 8.0).round_ties_even() as u32
}

/// Draws the offset of listing 2, uniform over the middle quarter of the slack:
/// `[3s/8, max(3s/8 + 1, 5s/8))`.
fn in_middle_quarter(rng: &mut impl Rng, slack: u32) -> u32 {
    let slack = u64::from(slack);
    let (low, high) = (3 * slack / 8, 5 * slack / 8);
    (low + below(rng, high.max(low + 1) - low)) as u32
}

/// Draws an integer from `low` to `high`, both inclusive.
fn between(rng: &mut impl Rng, low: u32, high: u32) -> u32 {
    low + below(rng, u64::from(high.saturating_sub(low)) + 1) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_base::random::{Purpose, item_rng};

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
    fn same_draws_give_the_same_crop() {
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

    /// Returns the minimum and maximum of a value over 4,000 crops.
    fn range(size: (u32, u32), target: u32, kind: Augment, value: impl Fn(Crop) -> u32) -> [u32; 2] {
        let draw = |index| Crop::draw(size, target, kind, &mut item_rng(3, Purpose::Augment, 0, index));
        let drawn: Vec<u32> = (0..4000).map(|index| value(draw(index).unwrap().unwrap())).collect();
        [*drawn.iter().min().unwrap(), *drawn.iter().max().unwrap()]
    }

    #[test]
    fn scaled_sizes_span_exactly_the_ranges_of_the_listings() {
        let t = |size, target, kind| range(size, target, kind, |crop| crop.scaled);
        // The sizes of the paper: 288 to 384, and 256 to 288.
        assert_eq!(t((400, 500), 256, Augment::Stage1), [288, 384]);
        assert_eq!(t((400, 500), 256, Augment::Stage2), [256, 288]);
        // If the shorter side is below a bound, it replaces the bound.
        assert_eq!(t((300, 500), 256, Augment::Stage1), [288, 300]);
        assert_eq!(t((270, 300), 256, Augment::Stage1), [270, 270]);
        assert_eq!(t((270, 300), 256, Augment::Stage2), [256, 270]);
        assert_eq!(t((108, 108), 48, Augment::Stage1), [54, 72]);
        // 49.5 and 40.5 are rounded to the nearest even number.
        assert_eq!([eighths(9, 44), eighths(9, 36), eighths(9, 30)], [50, 40, 34]);
    }

    #[test]
    fn square_offsets_span_exactly_the_ranges_of_the_listings() {
        let left = |size, kind| range(size, 32, kind, |crop| crop.from.left);
        let top = |size, kind| range(size, 32, kind, |crop| crop.from.top);
        assert_eq!([left((120, 40), Augment::Stage1), top((120, 40), Augment::Stage1)], [[0, 80], [0, 0]]);
        assert_eq!([left((40, 120), Augment::Stage1), top((40, 120), Augment::Stage1)], [[0, 0], [0, 80]]);
        // The offset is 3/8 to 5/8 of the slack, excluding the end. A small slack gives a single
        // offset.
        assert_eq!([left((120, 40), Augment::Stage2), top((120, 40), Augment::Stage2)], [[30, 49], [0, 0]]);
        assert_eq!([left((40, 120), Augment::Stage2), top((40, 120), Augment::Stage2)], [[0, 0], [30, 49]]);
        assert_eq!([left((41, 40), Augment::Stage2), left((43, 40), Augment::Stage2)], [[0, 0], [1, 1]]);
    }

    #[test]
    fn target_offsets_span_the_complete_scaled_square() {
        for (kind, most) in [(Augment::Stage1, 16), (Augment::Stage2, 4)] {
            let [left, top] =
                [|crop: Crop| crop.left, |crop: Crop| crop.top].map(|value| range((80, 60), 32, kind, value));
            assert_eq!([left, top], [[0, most], [0, most]], "{kind:?}");
            assert_eq!(
                range((80, 60), 32, kind, |crop| crop.scaled.saturating_sub(32 + crop.left)),
                [0, most]
            );
            let draw = |index| Crop::draw((80, 60), 32, kind, &mut item_rng(3, Purpose::Augment, 0, index));
            let crops = (0..4000).map(|index| draw(index).unwrap().unwrap());
            assert!(crops.into_iter().all(|crop| crop.left.max(crop.top) + 32 <= crop.scaled), "{kind:?}");
        }
    }

    #[test]
    fn crop_matches_its_random_draws() {
        let image = gradient(72, 50);
        let expected = |index, kind| {
            let crop = Crop::draw((72, 50), 32, kind, &mut item_rng(7, Purpose::Augment, 0, index));
            let Crop { from, scaled, left, top, is_mirrored } = crop.unwrap().unwrap();
            let square = imageops::crop_imm(&image, from.left, from.top, from.side, from.side).to_image();
            let scaled = resize(&square, Square::centre(&square), scaled, ResizeFilter::Area).unwrap();
            let cropped = imageops::crop_imm(&scaled, left, top, 32, 32).to_image();
            if is_mirrored { imageops::flip_horizontal(&cropped) } else { cropped }
        };
        for kind in [Augment::Stage1, Augment::Stage2] {
            (0..20).for_each(|index| assert_eq!(crop(&image, 32, kind, index), expected(index, kind)));
        }
    }

    /// A picture of 96 x 32 pixels with target 32 is not scaled, so the first column of the crop
    /// shows its offset.
    #[test]
    fn random_square_has_any_offset_and_the_full_side() {
        let image = gradient(96, 32);
        let lefts: Vec<u8> =
            (0..500).map(|i| crop(&image, 32, Augment::RandomSquare, i).get_pixel(0, 0).0[0] / 3).collect();
        assert_eq!((lefts.iter().min(), lefts.iter().max()), (Some(&0), Some(&64)));
        let square = gradient(48, 48);
        let centre = crop(&square, 32, Augment::CentreOnly, 0);
        assert!((0..20).all(|i| crop(&square, 32, Augment::RandomSquare, i) == centre));
    }

    #[test]
    fn too_small_picture_is_an_error() {
        let error = augment(&gradient(64, 31), 32, Augment::Stage1, &mut item_rng(0, Purpose::Augment, 0, 0));
        assert!(error.unwrap_err().to_string().contains("64x31"));
    }
}
