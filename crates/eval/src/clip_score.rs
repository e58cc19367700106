//! CLIPScore (Hessel et al. 2021): how well pictures match their captions, according to a
//! contrastive model. The model that chose the pictures (paper §2.6) must not be used, because it
//! is biased towards its own choice.

use anyhow::{Result, ensure};

use crate::vectors::{dot, unit};
use crate::{Report, Vectors};

/// The factor that scales typical cosines to a range of about 0 to 1 (§3 of their paper).
const WEIGHT: f64 = 2.5;

/// Returns the mean of `2.5 max(cos, 0)` over pairs of a picture and a caption, with its standard
/// error. Pair `i` consists of row `i` of `images` and of `texts`. The original authors put "A
/// photo depicts" before each caption; here this is up to the caller.
///
/// # Errors
/// If the sets differ in size or are empty, the embeddings are of two models, or one is 0.
pub fn clip_score(images: &Vectors, texts: &Vectors) -> Result<Report> {
    images.comparable(texts, 1)?;
    let (n, dims) = (images.len(), images.dims());
    ensure!(n == texts.len(), "{n} pictures and {} captions; wanted one caption per picture", texts.len());
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
    fn negative_cosines_count_as_0_and_lengths_have_no_effect() {
        // The cosines are 0.6, 1 and −1.
        let images = [1.0, 0.0, 0.0, 5.0, 1.0, 1.0];
        let texts = [3.0, 4.0, 0.0, 0.1, -1.0, -1.0];
        let report = clip_score(&set("a model", &images), &set("a model", &texts)).unwrap();
        assert!((report.value - 4.0 / 3.0).abs() < 1e-6, "{}", report.value);
        // The standard deviation of {1.5, 2.5, 0} is √(19/12); divided by √3 it is the error of the
        // mean.
        assert!((report.plus_minus.unwrap() - (19.0_f64 / 36.0).sqrt()).abs() < 1e-6);
        assert_eq!((&*report.name, report.n, &*report.features), ("CLIPScore", 3, "a model"));
        assert_eq!(clip_score(&set("", &[1.0; 2]), &set("", &[1.0; 2])).unwrap().plus_minus, None);
    }

    #[test]
    fn invalid_pairs_are_refused() {
        let error = |images: &Vectors, texts: &Vectors| clip_score(images, texts).unwrap_err().to_string();
        assert!(error(&set("", &[1.0; 4]), &set("", &[1.0; 2])).contains("2 pictures and 1 captions"));
        assert!(error(&set("", &[]), &set("", &[])).contains("wanted at least 1"));
        assert!(error(&set("one", &[1.0; 2]), &set("other", &[1.0; 2])).contains("of one and of other"));
        assert!(error(&set("", &[1.0; 2]), &set("", &[0.0; 2])).contains("a length of 0"));
    }
}
