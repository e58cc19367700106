//! The inception score, `exp E KL(p(y|x) ‖ p(y))` (Salimans et al. 2016; paper §3): pictures that each show one thing, and many
//! things together.
//!
//! The splits are runs of pictures in the order they came in, `⌊i n / splits⌋` to `⌊(i + 1) n / splits⌋`, as in the first published
//! code, which others copied; torch-fidelity has the same splits but shuffles the pictures first. The deviation over splits is the
//! population's, as in both. Only sums are kept, so memory does not grow with the pictures.

use anyhow::{Result, ensure};

use crate::Report;
use crate::vectors::check;

/// The score of `n` pictures, gathered as they come.
#[derive(Debug, Clone)]
pub struct InceptionScore {
    features: String,
    n: usize,
    n_classes: usize,
    seen: usize,
    splits: Vec<Split>,
}

/// Sums over the pictures of a split.
#[derive(Debug, Clone)]
struct Split {
    /// The first picture behind it.
    end: usize,
    n: usize,
    /// Of probabilities, `[C]`
    probabilities: Vec<f64>,
    /// Of `Σ p ln p`
    negentropies: f64,
}

impl InceptionScore {
    /// Splits of a report, by custom.
    pub const SPLITS: usize = 10;

    /// Of `n` pictures that are to come, whose `n_classes` scores are from the network that `features` names.
    ///
    /// # Errors
    /// If a split would be empty or there are fewer than two classes.
    pub fn new(features: &str, n: usize, n_classes: usize, n_splits: usize) -> Result<InceptionScore> {
        ensure!(
            n_splits > 0 && n >= n_splits,
            "{n} pictures in {n_splits} splits; wanted at least one in each"
        );
        ensure!(
            n_classes > 1,
            "an inception score of {n_classes} classes; wanted a network that tells several"
        );
        let split = |i: usize| Split {
            end: (i + 1) * n / n_splits,
            n: 0,
            probabilities: vec![0.0; n_classes],
            negentropies: 0.0,
        };
        let splits = (0..n_splits).map(split).collect();
        Ok(InceptionScore { features: features.into(), n, n_classes, seen: 0, splits })
    }

    /// Adds pictures by the logits of their classes, `[B, C]`.
    ///
    /// # Errors
    /// If they are no whole number of pictures, a logit is not finite, or more pictures come than were announced.
    pub fn push_all(&mut self, logits: &[f32]) -> Result<()> {
        check(logits, self.n_classes)?;
        let n = self.seen + logits.len() / self.n_classes;
        ensure!(
            n <= self.n,
            "{n} pictures for an inception score; wanted the {} that were announced",
            self.n
        );
        for logits in logits.chunks_exact(self.n_classes) {
            let seen = self.seen;
            if let Some(split) = self.splits.iter_mut().find(|split| seen < split.end) {
                split.add(logits);
            }
            self.seen += 1;
        }
        Ok(())
    }

    /// Mean and deviation of the score over the splits.
    ///
    /// # Errors
    /// If fewer pictures came than were announced.
    pub fn report(&self) -> Result<Report> {
        let (seen, n) = (self.seen, self.n);
        ensure!(seen == n, "{seen} pictures for an inception score; wanted the {n} that were announced");
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
    /// Adds a picture by its logits, `[C]`.
    fn add(&mut self, logits: &[f32]) {
        let top = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let below = |logit: &f32| f64::from(*logit) - top;
        let log_total = logits.iter().map(|logit| below(logit).exp()).sum::<f64>().ln();
        for (sum, logit) in self.probabilities.iter_mut().zip(logits) {
            let log_p = below(logit) - log_total;
            let p = log_p.exp();
            *sum += p;
            self.negentropies += p * log_p;
        }
        self.n += 1;
    }

    /// `E KL(p(y|x) ‖ p(y)) = E Σ p ln p − Σ q ln q`, for `q = E p`.
    fn score(&self) -> f64 {
        let n = self.n as f64;
        let mean = self.probabilities.iter().map(|sum| sum / n).filter(|&q| q > 0.0);
        let of_mean: f64 = mean.map(|q| q * q.ln()).sum();
        (self.negentropies / n - of_mean).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The score of pictures of `n_classes`, as mean and deviation.
    fn score(logits: &[f32], n_classes: usize, n_splits: usize) -> (f64, Option<f64>) {
        let mut score =
            InceptionScore::new("a network", logits.len() / n_classes, n_classes, n_splits).unwrap();
        score.push_all(logits).unwrap();
        let report = score.report().unwrap();
        (report.value, report.plus_minus)
    }

    /// A picture that is surely of class `i` of 4.
    fn sure(i: usize) -> [f32; 4] {
        std::array::from_fn(|j| if i == j { 100.0 } else { 0.0 })
    }

    #[test]
    fn it_counts_classes_that_are_surely_seen() {
        let of = |classes: &[usize]| classes.iter().flat_map(|&i| sure(i)).collect::<Vec<f32>>();
        assert!((score(&of(&[0, 1, 2, 3]), 4, 1).0 - 4.0).abs() < 1e-9);
        assert!((score(&of(&[2, 2, 2]), 4, 1).0 - 1.0).abs() < 1e-9);
        assert!((score(&[0.7; 40], 4, 10).0 - 1.0).abs() < 1e-9, "nothing is seen in any picture");
        // Two classes in the first split, one in the second: 1.5 ± 0.5, and another order gives other splits.
        let (mean, deviation) = score(&of(&[0, 1, 3, 3]), 4, 2);
        assert!((mean - 1.5).abs() < 1e-9 && (deviation.unwrap() - 0.5).abs() < 1e-9);
        assert!((score(&of(&[0, 3, 1, 3]), 4, 2).0 - 2.0).abs() < 1e-9);
    }

    #[test]
    fn a_half_sure_picture_by_hand() {
        // p = (¾, ¼) and (¼, ¾): KL from (½, ½) is ¾ ln 1.5 + ¼ ln 0.5 for both.
        let three = 3.0_f32.ln();
        let wanted = (0.75 * 1.5_f64.ln() + 0.25 * 0.5_f64.ln()).exp();
        assert!((score(&[three, 0.0, 0.0, three], 2, 1).0 - wanted).abs() < 1e-7);
        // A constant on all logits changes nothing, however large.
        let moved = [three + 80.0, 80.0, 80.0, three + 80.0];
        assert!((score(&moved, 2, 1).0 - wanted).abs() < 1e-5);
    }

    #[test]
    fn batches_of_any_size_fall_into_the_same_splits() {
        // 23 pictures in 10 splits: of 2 and 3, cut where ⌊23 i / 10⌋ says.
        let logits: Vec<f32> = (0..23 * 5).map(|i| (i as f32 * 1.7).sin() * 3.0).collect();
        let gather = |batch: usize| {
            let mut score = InceptionScore::new("", 23, 5, 10).unwrap();
            logits.chunks(batch * 5).for_each(|batch| score.push_all(batch).unwrap());
            score
        };
        let whole = gather(23);
        assert_eq!(
            whole.splits.iter().map(|split| split.n).collect::<Vec<_>>(),
            [2, 2, 2, 3, 2, 2, 3, 2, 2, 3]
        );
        for batch in [1, 4, 22] {
            assert_eq!(gather(batch).report().unwrap(), whole.report().unwrap());
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
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
