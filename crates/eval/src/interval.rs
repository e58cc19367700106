//! 95 % confidence intervals: Wilson's for proportions, the bootstrap for everything else.

use serde::Serialize;
use tessera_base::random::below;
use tessera_base::{random::Purpose, random::item_rng};

/// The 97.5 % quantile of the standard normal distribution.
const Z: f64 = 1.959_964;
/// The number of bootstrap samples.
const RESAMPLES: u64 = 2000;

/// A figure with its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// The lower end of the interval.
    pub low: f64,
    /// The upper end of the interval.
    pub high: f64,
}

impl Estimate {
    /// The proportion `count / n` in percent, with Wilson's interval. `n` must be at least 1.
    pub(crate) fn percent(count: usize, n: usize) -> Estimate {
        let (low, high) = wilson(count, n);
        Estimate { value: 100.0 * count as f64 / n as f64, low: 100.0 * low, high: 100.0 * high }
    }

    /// Returns `figure` of `items`, with its percentile bootstrap interval: the range of the figure
    /// in 95 % of the samples of `items` with replacement. Equal items give equal intervals.
    pub(crate) fn bootstrap<T: Copy>(items: &[T], figure: impl Fn(&[T]) -> f64) -> Estimate {
        let mut rng = item_rng(0, Purpose::Subset, 0, 0);
        let n = items.len() as u64;
        let mut resample = || -> Vec<T> { (0..n).map(|_| items[below(&mut rng, n) as usize]).collect() };
        let mut figures: Vec<f64> = (0..RESAMPLES).map(|_| figure(&resample())).collect();
        figures.sort_by(f64::total_cmp);
        let quantile = |share: f64| figures[(share * (RESAMPLES - 1) as f64).round() as usize];
        Estimate { value: figure(items), low: quantile(0.025), high: quantile(0.975) }
    }

    /// The mean of `values` with its bootstrap interval. `values` must not be empty.
    pub(crate) fn mean(values: &[f64]) -> Estimate {
        Estimate::bootstrap(values, mean)
    }
}

/// The mean of `values`, which must not be empty.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Wilson's 95 % interval of the proportion `count / n`, in [0, 1].
pub(crate) fn wilson(count: usize, n: usize) -> (f64, f64) {
    let (z, n) = (Z, n as f64);
    let share = count as f64 / n;
    let middle = (share + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let half = z / (1.0 + z * z / n) * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    // Rounding may move an end slightly outside of [0, 1].
    ((middle - half).max(0.0), (middle + half).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_interval_matches_published_tables() {
        let (low, high) = wilson(8, 10);
        assert!((low - 0.4902).abs() < 1e-4 && (high - 0.9433).abs() < 1e-4, "{low} {high}");
        assert!(wilson(0, 20).0.abs() < 1e-9);
        let none = Estimate::percent(0, 20);
        assert!(none.value == 0.0 && (none.high - 16.113).abs() < 1e-3, "{none:?}");
    }

    /// For many values the interval of the mean extends 1.96 standard errors to both sides.
    #[test]
    fn bootstrap_interval_of_a_mean_matches_the_normal_one() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 20)).collect();
        let found = Estimate::mean(&values);
        let half = Z * (33.25_f64 / 400.0).sqrt(); // the variance of 0 to 19 is 33.25
        assert_eq!((found.value, found), (9.5, Estimate::mean(&values)));
        assert!(
            (found.low - (9.5 - half)).abs() < 0.06 && (found.high - (9.5 + half)).abs() < 0.06,
            "{found:?}"
        );
        let same = Estimate::mean(&[3.0; 5]);
        assert_eq!((same.low, same.value, same.high), (3.0, 3.0, 3.0));
    }
}
