//! The Inception Score, `exp E KL(p(y|x) ‖ p(y))` (Salimans et al. 2016; paper §3). It is high if
//! each picture clearly belongs to one class and the set covers many classes.
//!
//! Split `i` contains the pictures `⌊i n / splits⌋` to `⌊(i + 1) n / splits⌋` in their given order,
//! as in the original code. torch-fidelity uses the same splits but shuffles the pictures first.
//! The standard deviation over splits divides by their number, as in both. Only sums are stored, so
//! memory does not grow with the number of pictures.

use anyhow::{Result, ensure};

use crate::Report;
use crate::vectors::check;

/// The Inception Score of `n` pictures, accumulated incrementally.
#[derive(Debug, Clone)]
pub struct InceptionScore {
    features: String,
    /// The total number of pictures, which determines the splits.
    n: usize,
    n_classes: usize,
    /// The number of pictures that were added.
    added: usize,
    splits: Vec<Split>,
}

/// Sums over the pictures of a split.
#[derive(Debug, Clone)]
struct Split {
    /// The index after its last picture.
    end: usize,
    /// The number of pictures that were added to it.
    n: usize,
    /// The sum of the class probabilities, `[C]`.
    probabilities: Vec<f64>,
    /// The sum of the negative entropies `Σ p ln p`.
    negentropies: f64,
}

impl InceptionScore {
    /// The usual number of splits.
    pub const SPLITS: usize = 10;

    /// Prepares the score of `n` pictures. Their logits have `n_classes` classes and come from the
    /// network that `features` names.
    ///
    /// # Errors
    /// If a split would be empty or there are fewer than two classes.
    pub fn new(features: &str, n: usize, n_classes: usize, n_splits: usize) -> Result<InceptionScore> {
        ensure!(
            n_splits > 0 && n >= n_splits,
            "{n} pictures in {n_splits} splits; wanted at least one in each"
        );
        ensure!(n_classes > 1, "an inception score of {n_classes} classes; wanted a network with at least 2");
        let split = |i: usize| Split {
            end: (i + 1) * n / n_splits,
            n: 0,
            probabilities: vec![0.0; n_classes],
            negentropies: 0.0,
        };
        let splits = (0..n_splits).map(split).collect();
        Ok(InceptionScore { features: features.into(), n, n_classes, added: 0, splits })
    }

    /// Adds the logits of pictures, `[B, C]`.
    ///
    /// # Errors
    /// If the length is not a multiple of `C`, a logit is not finite, or there are now more than
    /// `n` pictures.
    pub fn push_all(&mut self, logits: &[f32]) -> Result<()> {
        check(logits, self.n_classes)?;
        let n = self.added + logits.len() / self.n_classes;
        ensure!(n <= self.n, "{n} pictures for an inception score; wanted exactly {}", self.n);
        for logits in logits.chunks_exact(self.n_classes) {
            let index = self.added;
            if let Some(split) = self.splits.iter_mut().find(|split| index < split.end) {
                split.add(logits);
            }
            self.added += 1;
        }
        Ok(())
    }

    /// Returns the mean and the standard deviation of the score over the splits.
    ///
    /// # Errors
    /// If fewer than `n` pictures were added.
    pub fn report(&self) -> Result<Report> {
        let (added, n) = (self.added, self.n);
        ensure!(added == n, "{added} pictures for an inception score; wanted exactly {n}");
        let scores: Vec<f64> = self.splits.iter().map(Split::score).collect();
        let mean = scores.iter().sum::<f64>() / scores.len() as f64;
        let variance = scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / scores.len() as f64;
        Ok(Report {
            plus_minus: (scores.len() > 1).then(|| variance.sqrt()),
            features: self.features.clone(),
            ..Report::new("IS", mean, n)
        })
    }
}

impl Split {
    /// Adds the logits of a picture, `[C]`.
    fn add(&mut self, logits: &[f32]) {
        let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let shifted = |logit: &f32| f64::from(*logit) - max;
        let log_sum = logits.iter().map(|logit| shifted(logit).exp()).sum::<f64>().ln();
        for (sum, logit) in self.probabilities.iter_mut().zip(logits) {
            let log_p = shifted(logit) - log_sum;
            let p = log_p.exp();
            *sum += p;
            self.negentropies += p * log_p;
        }
        self.n += 1;
    }

    /// The score of the split: `E KL(p(y|x) ‖ p(y)) = E Σ p ln p − Σ q ln q`, with `q = E p`.
    fn score(&self) -> f64 {
        let n = self.n as f64;
        let mean = self.probabilities.iter().map(|sum| sum / n).filter(|&q| q > 0.0);
        let mean_negentropy: f64 = mean.map(|q| q * q.ln()).sum();
        (self.negentropies / n - mean_negentropy).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mean and the standard deviation of the score.
    fn score(logits: &[f32], n_classes: usize, n_splits: usize) -> (f64, Option<f64>) {
        let mut score =
            InceptionScore::new("a network", logits.len() / n_classes, n_classes, n_splits).unwrap();
        score.push_all(logits).unwrap();
        let report = score.report().unwrap();
        (report.value, report.plus_minus)
    }

    /// The logits of a picture that certainly belongs to class `i` of 4.
    fn certain(i: usize) -> [f32; 4] {
        std::array::from_fn(|j| if i == j { 100.0 } else { 0.0 })
    }

    #[test]
    fn score_of_certain_pictures_is_the_number_of_classes() {
        let logits = |classes: &[usize]| classes.iter().flat_map(|&i| certain(i)).collect::<Vec<f32>>();
        assert!((score(&logits(&[0, 1, 2, 3]), 4, 1).0 - 4.0).abs() < 1e-9);
        assert!((score(&logits(&[2, 2, 2]), 4, 1).0 - 1.0).abs() < 1e-9);
        assert!((score(&[0.7; 40], 4, 10).0 - 1.0).abs() < 1e-9, "uniform probabilities");
        // Two classes in the first split, one in the second: 1.5 ± 0.5. Another order of the
        // pictures gives other splits.
        let (mean, deviation) = score(&logits(&[0, 1, 3, 3]), 4, 2);
        assert!((mean - 1.5).abs() < 1e-9 && (deviation.unwrap() - 0.5).abs() < 1e-9);
        assert!((score(&logits(&[0, 3, 1, 3]), 4, 2).0 - 2.0).abs() < 1e-9);
    }

    #[test]
    fn score_of_uncertain_pictures_matches_the_formula() {
        // p = (¾, ¼) and (¼, ¾): the KL to (½, ½) is ¾ ln 1.5 + ¼ ln 0.5 for both.
        let three = 3.0_f32.ln();
        let expected = (0.75 * 1.5_f64.ln() + 0.25 * 0.5_f64.ln()).exp();
        assert!((score(&[three, 0.0, 0.0, three], 2, 1).0 - expected).abs() < 1e-7);
        // Adding a constant to all logits has no effect.
        let shifted = [three + 80.0, 80.0, 80.0, three + 80.0];
        assert!((score(&shifted, 2, 1).0 - expected).abs() < 1e-5);
    }

    #[test]
    fn splits_do_not_depend_on_the_batch_size() {
        // 23 pictures in 10 splits of 2 or 3 pictures, which end at ⌊23 i / 10⌋.
        let logits: Vec<f32> = (0..23 * 5).map(|i| (i as f32 * 1.7).sin() * 3.0).collect();
        let gather = |batch: usize| {
            let mut score = InceptionScore::new("", 23, 5, 10).unwrap();
            logits.chunks(batch * 5).for_each(|batch| score.push_all(batch).unwrap());
            score
        };
        let complete = gather(23);
        assert_eq!(
            complete.splits.iter().map(|split| split.n).collect::<Vec<_>>(),
            [2, 2, 2, 3, 2, 2, 3, 2, 2, 3]
        );
        for batch in [1, 4, 22] {
            assert_eq!(gather(batch).report().unwrap(), complete.report().unwrap());
        }
    }

    #[test]
    fn invalid_sizes_and_logits_are_refused() {
        let error = |n, classes| InceptionScore::new("", n, classes, 10).unwrap_err().to_string();
        assert!(error(9, 4).contains("9 pictures in 10 splits"));
        assert!(error(10, 1).contains("1 classes"));
        let mut score = InceptionScore::new("", 10, 2, 10).unwrap();
        assert!(score.push_all(&[1.0; 3]).is_err());
        assert!(score.push_all(&[f32::NAN; 2]).unwrap_err().to_string().contains("not finite"));
        score.push_all(&[1.0; 18]).unwrap();
        assert!(score.report().unwrap_err().to_string().contains("9 pictures"));
        assert!(score.push_all(&[1.0; 4]).unwrap_err().to_string().contains("11 pictures"));
    }
}
