//! CLIPScore (Hessel et al. 2021): how well drawings fit their captions by a contrastive model. Not one to report by the model that
//! chose the drawings (paper §2.6), which likes what it chose.

use anyhow::{Result, ensure};

use crate::vectors::{dot, unit};
use crate::{Report, Vectors};

/// What spreads the cosines that occur to about 0 to 1 (§3 there).
const WEIGHT: f64 = 2.5;

/// Mean of `2.5 max(cos, 0)` over pairs of picture and caption, with its standard error; pair `i` is `images` and `texts` number `i`.
/// The captions are as the caller embedded them: the authors put "A photo depicts" before each.
///
/// # Errors
/// If the sets differ in size or are empty, the embeddings are of two models, or one is 0.
pub fn clip_score(images: &Vectors, texts: &Vectors) -> Result<Report> {
    images.comparable(texts, 1)?;
    let (n, dims) = (images.len(), images.dims());
    ensure!(n == texts.len(), "{n} pictures and {} captions; wanted one caption a picture", texts.len());
    let (pictures, captions) = (unit(images.values(), dims)?, unit(texts.values(), dims)?);
    let both = pictures.chunks_exact(dims).zip(captions.chunks_exact(dims));
    let scores: Vec<f64> = both.map(|(picture, caption)| WEIGHT * dot(picture, caption).max(0.0)).collect();
    let mean = scores.iter().sum::<f64>() / n as f64;
    let variance = || scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / (n as f64 - 1.0);
    Ok(Report {
        plus_minus: (n > 1).then(|| (variance() / n as f64).sqrt()),
        features: images.features().into(),
        ..Report::new("CLIPScore", mean, n)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(features: &str, values: &[f32]) -> Vectors {
        let mut set = Vectors::new(features, 2);
        set.push_all(values).unwrap();
        set
    }

    #[test]
    fn what_points_away_counts_nothing_and_lengths_do_not_count() {
        // Cosines of 0.6, 1, and −1.
        let images = [1.0, 0.0, 0.0, 5.0, 1.0, 1.0];
        let texts = [3.0, 4.0, 0.0, 0.1, -1.0, -1.0];
        let report = clip_score(&set("a model", &images), &set("a model", &texts)).unwrap();
        assert!((report.value - 4.0 / 3.0).abs() < 1e-6, "{}", report.value);
        // Deviation of {1.5, 2.5, 0} is √(19/12), by √3 for the mean.
        assert!((report.plus_minus.unwrap() - (19.0_f64 / 36.0).sqrt()).abs() < 1e-6);
        assert_eq!((&*report.name, report.n, &*report.features), ("CLIPScore", 3, "a model"));
        assert_eq!(clip_score(&set("", &[1.0; 2]), &set("", &[1.0; 2])).unwrap().plus_minus, None);
    }

    #[test]
    fn pairs_that_do_not_fit_are_refused() {
        let error = |images: &Vectors, texts: &Vectors| clip_score(images, texts).unwrap_err().to_string();
        assert!(error(&set("", &[1.0; 4]), &set("", &[1.0; 2])).contains("2 pictures and 1 captions"));
        assert!(error(&set("", &[]), &set("", &[])).contains("wanted at least 1"));
        assert!(error(&set("one", &[1.0; 2]), &set("other", &[1.0; 2])).contains("of one and of other"));
        assert!(error(&set("", &[1.0; 2]), &set("", &[0.0; 2])).contains("a length of 0"));
    }
}
