//! A metric of how well drawings match their captions that needs no other model: of eight real
//! pictures of one style, is the one whose caption was drawn the nearest to the drawing?
//!
//! The pictures are held out, so the model was not trained on them. The distance is the squared
//! difference of the mean colours of cells of 4×4 pixels. It therefore measures layout and colour,
//! not detail. Chance is 1 in 8. The metric is coarse, but sufficient to compare settings.

use anyhow::{Result, ensure};
use image::RgbImage;
use serde::Serialize;
use tessera_model::dvae::Dvae;
use tessera_model::{Drawing, Event, Request, Sampler};

use crate::recon::mean_se;

/// The number of real pictures that a drawing is compared with.
const CHOICES: usize = 8;
/// The side of the cells whose colour is averaged, in pixels.
const CELL: u32 = 4;

/// A held-out picture and its caption.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The BPE tokens of the caption.
    pub caption: Vec<u32>,
    /// The style of the picture. It is compared with pictures of the same style.
    pub style: String,
    /// The real picture, at the model's size.
    pub image: RgbImage,
}

/// How often the right picture is the nearest.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DrawingReport {
    /// The number of captions that were drawn.
    pub captions: usize,
    /// The number of captions that were not drawn, because fewer than eight pictures have their
    /// style.
    pub left_out: usize,
    /// The number of drawings per caption.
    pub drawings_each: usize,
    /// The fraction of drawings for which the right picture is the nearest of eight.
    pub right: f64,
    /// The standard error of `right` over captions.
    pub right_se: f64,
    /// The expected value of `right` for a random choice.
    pub chance: f64,
}

/// Draws the caption of every subject with the settings of `request` (its prompt is ignored),
/// compares the drawings with the real pictures, and passes each subject's index and drawings to
/// `show`. Subjects whose style has fewer than eight pictures are left out.
///
/// # Errors
/// If all subjects are left out, or a caption cannot be drawn.
pub fn drawing(
    sampler: &Sampler,
    dvae: &Dvae,
    subjects: &[Subject],
    request: &Request,
    mut show: impl FnMut(usize, Vec<RgbImage>),
) -> Result<DrawingReport> {
    let mut shares = Vec::new();
    for (index, subject) in subjects.iter().enumerate() {
        let Some(choices) = choices(subjects, index) else { continue };
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
    ensure!(
        !shares.is_empty(),
        "no style has {CHOICES} of these {} pictures; a drawing is compared with {CHOICES} pictures of one style",
        subjects.len()
    );
    let (right, right_se) = mean_se(&shares);
    Ok(DrawingReport {
        captions: shares.len(),
        left_out: subjects.len() - shares.len(),
        drawings_each: request.n,
        right,
        right_se,
        chance: 1.0 / CHOICES as f64,
    })
}

/// Returns the subject's own picture and the next seven of its style. `None` if there are fewer.
fn choices(subjects: &[Subject], index: usize) -> Option<Vec<&RgbImage>> {
    let style = &subjects[index].style;
    let from_here = (0..subjects.len()).map(|i| &subjects[(index + i) % subjects.len()]);
    let choices: Vec<_> = from_here.filter(|s| s.style == *style).map(|s| &s.image).take(CHOICES).collect();
    (choices.len() == CHOICES).then_some(choices)
}

/// Returns the index of the choice that is nearer than every other. `None` if there is a tie.
fn nearest(image: &RgbImage, choices: &[&RgbImage]) -> Option<usize> {
    let drawn = cells(image);
    let distance =
        |choice: &&RgbImage| cells(choice).iter().zip(&drawn).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    let distances: Vec<f64> = choices.iter().map(distance).collect();
    let best = (0..choices.len()).min_by(|&a, &b| distances[a].total_cmp(&distances[b]))?;
    (distances.iter().filter(|&&distance| distance <= distances[best]).count() == 1).then_some(best)
}

/// The mean colour of each cell. The cells at the right and the bottom may be smaller.
fn cells(image: &RgbImage) -> Vec<f64> {
    let (width, height) = image.dimensions();
    let columns = width.div_ceil(CELL);
    let mut means = vec![0.0; (columns * height.div_ceil(CELL) * 3) as usize];
    let side = |at: u32, end: u32| CELL.min(end - at / CELL * CELL);
    for (x, y, pixel) in image.enumerate_pixels() {
        let cell = ((y / CELL * columns + x / CELL) * 3) as usize;
        let area = f64::from(side(x, width) * side(y, height));
        (0..3).for_each(|channel| means[cell + channel] += f64::from(pixel[channel]) / area);
    }
    means
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
    fn nearest_is_chosen_from_eight_pictures_of_the_same_style() {
        let subjects: Vec<_> = (0..18).map(|i| subject(["a", "b"][i % 2], i as u8 * 10)).collect();
        let choices = choices(&subjects, 4).unwrap();
        assert_eq!(choices.len(), CHOICES);
        assert!(choices.iter().all(|image| image.get_pixel(0, 0)[0] % 20 == 0)); // style "a" only
        let near = |grey| nearest(&subject("a", grey).image, &choices);
        assert_eq!((near(41), near(62), near(50)), (Some(0), Some(1), None)); // 50 is a tie
    }

    #[test]
    fn style_with_fewer_than_eight_pictures_has_no_choices() {
        let subjects: Vec<_> = (0..15).map(|i| subject(["a", "b"][i % 2], i as u8)).collect();
        assert!(choices(&subjects, 0).is_some()); // 8 of style "a"
        assert!(choices(&subjects, 1).is_none()); // 7 of style "b"
    }

    #[test]
    fn cells_at_the_edge_have_their_own_mean_colour() {
        let image = RgbImage::from_pixel(6, 5, image::Rgb([10, 20, 30]));
        assert_eq!(cells(&image), [10.0, 20.0, 30.0].repeat(4));
    }
}
