//! Does a drawing look like what it was asked for? A judge without taste: of eight real pictures of one style, is the
//! nearest to the drawing the one whose caption was drawn?
//!
//! The captions are of held-out combinations, so the right picture was never trained on. Nearness is the squared
//! distance of the pictures averaged over cells of 4×4 pixels, so it measures layout and colour, not detail. Chance is
//! 1 in 8. A blunt figure, but one that needs no other model and that compares settings honestly.

use anyhow::{Result, ensure};
use image::RgbImage;
use serde::Serialize;
use tessera_model::dvae::Dvae;
use tessera_model::{Drawing, Event, Request, Sampler};

use crate::recon::mean_se;

/// Real pictures that a drawing is compared with.
const CHOICES: usize = 8;
/// Side of the cells that are averaged, in pixels.
const CELL: u32 = 4;

/// A held-out picture and its caption.
#[derive(Debug, Clone)]
pub struct Subject {
    /// BPE tokens of the caption.
    pub caption: Vec<u32>,
    /// The picture's style; the other choices are of the same.
    pub style: String,
    /// The real picture, at the model's size.
    pub image: RgbImage,
}

/// How often the judge picks the right picture.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DrawingReport {
    /// Captions drawn.
    pub captions: usize,
    /// Drawings of each.
    pub drawings_each: usize,
    /// Share of drawings whose nearest of eight real pictures is the right one.
    pub right: f64,
    /// Standard error of `right` over captions.
    pub right_se: f64,
    /// What blind choice gives.
    pub chance: f64,
}

/// Draws every subject as `request` says (its prompt is ignored), judges, and hands each subject's drawings to `show`.
///
/// # Errors
/// If some style has fewer than eight subjects.
pub fn drawing(
    sampler: &Sampler,
    dvae: &Dvae,
    subjects: &[Subject],
    request: &Request,
    mut show: impl FnMut(usize, Vec<RgbImage>),
) -> Result<DrawingReport> {
    let mut shares = Vec::new();
    for (index, subject) in subjects.iter().enumerate() {
        let choices = choices(subjects, index)?;
        let mut images = Vec::new();
        for event in Drawing::new(sampler, dvae, &subject.caption, request.clone())? {
            if let Event::Picture(picture) = event? {
                images.push(picture.image);
            }
        }
        let is_right = |image: &&RgbImage| nearest(image, &choices) == Some(0);
        shares.push(images.iter().filter(is_right).count() as f64 / images.len() as f64);
        show(index, images);
    }
    let (right, right_se) = mean_se(&shares);
    let (captions, drawings_each) = (subjects.len(), request.n);
    Ok(DrawingReport { captions, drawings_each, right, right_se, chance: 1.0 / CHOICES as f64 })
}

/// The subject's own picture first, then the next seven of its style.
fn choices(subjects: &[Subject], index: usize) -> Result<Vec<&RgbImage>> {
    let style = &subjects[index].style;
    let from_here = (0..subjects.len()).map(|i| &subjects[(index + i) % subjects.len()]);
    let choices: Vec<_> = from_here.filter(|s| s.style == *style).map(|s| &s.image).take(CHOICES).collect();
    ensure!(
        choices.len() == CHOICES,
        "{style}: {} held-out pictures; wanted {CHOICES} or more",
        choices.len()
    );
    Ok(choices)
}

/// The choice that is strictly nearer than every other, if there is one.
fn nearest(image: &RgbImage, choices: &[&RgbImage]) -> Option<usize> {
    let drawn = cells(image);
    let distance =
        |choice: &&RgbImage| cells(choice).iter().zip(&drawn).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    let distances: Vec<f64> = choices.iter().map(distance).collect();
    let best = (0..choices.len()).min_by(|&a, &b| distances[a].total_cmp(&distances[b]))?;
    (distances.iter().filter(|&&distance| distance <= distances[best]).count() == 1).then_some(best)
}

/// Mean colour of each cell.
fn cells(image: &RgbImage) -> Vec<f64> {
    let (columns, rows) = (image.width().div_ceil(CELL), image.height().div_ceil(CELL));
    let mut sums = vec![0.0; (columns * rows * 3) as usize];
    for (x, y, pixel) in image.enumerate_pixels() {
        let cell = ((y / CELL * columns + x / CELL) * 3) as usize;
        (0..3).for_each(|channel| sums[cell + channel] += f64::from(pixel[channel]) / f64::from(CELL * CELL));
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(style: &str, grey: u8) -> Subject {
        Subject {
            caption: vec![],
            style: style.into(),
            image: RgbImage::from_pixel(8, 8, image::Rgb([grey; 3])),
        }
    }

    #[test]
    fn the_nearest_of_eight_in_the_same_style() {
        let subjects: Vec<_> = (0..18).map(|i| subject(["a", "b"][i % 2], i as u8 * 10)).collect();
        let choices = choices(&subjects, 4).unwrap();
        assert_eq!(choices.len(), CHOICES);
        assert!(choices.iter().all(|image| image.get_pixel(0, 0)[0] % 20 == 0)); // style "a" only
        let near = |grey| nearest(&subject("a", grey).image, &choices);
        assert_eq!((near(41), near(62), near(50)), (Some(0), Some(1), None)); // half-way between two: neither
    }

    #[test]
    fn too_few_pictures_of_a_style_are_refused() {
        let subjects: Vec<_> = (0..7).map(|i| subject("a", i)).collect();
        assert!(choices(&subjects, 0).unwrap_err().to_string().contains("wanted 8"));
    }
}
