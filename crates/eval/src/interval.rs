//! 95 % intervals: Wilson's for shares, the bootstrap for everything else.

use serde::Serialize;
use tessera_base::random::below;
use tessera_base::{random::Purpose, random::item_rng};

/// Quantile of the normal distribution that leaves 2.5 % above it.
const Z: f64 = 1.959_964;
/// Samples with replacement that the bootstrap takes.
const RESAMPLES: u64 = 2000;

/// A figure with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

impl Estimate {
    /// The share of `count` among `n` in percent, with Wilson's interval; `n` is at least 1.
    pub(crate) fn percent(count: usize, n: usize) -> Estimate {
        let (low, high) = wilson(count, n);
        Estimate { value: 100.0 * count as f64 / n as f64, low: 100.0 * low, high: 100.0 * high }
    }

    /// `figure` of `items`, with the interval that holds it in 95 % of samples of `items` with replacement. The same items give the
    /// same interval.
    pub(crate) fn bootstrap<T: Copy>(items: &[T], figure: impl Fn(&[T]) -> f64) -> Estimate {
        let mut rng = item_rng(0, Purpose::Subset, 0, 0);
        let n = items.len() as u64;
        let mut resample = || -> Vec<T> { (0..n).map(|_| items[below(&mut rng, n) as usize]).collect() };
        let mut figures: Vec<f64> = (0..RESAMPLES).map(|_| figure(&resample())).collect();
        figures.sort_by(f64::total_cmp);
        let quantile = |share: f64| figures[(share * (RESAMPLES - 1) as f64).round() as usize];
        Estimate { value: figure(items), low: quantile(0.025), high: quantile(0.975) }
    }

    /// The mean of `values` with its bootstrap interval; there is at least 1 value.
    pub(crate) fn mean(values: &[f64]) -> Estimate {
        Estimate::bootstrap(values, mean)
    }
}

/// The mean of at least 1 value.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Wilson's 95 % interval of `count` among `n`.
pub(crate) fn wilson(count: usize, n: usize) -> (f64, f64) {
    let (z, n) = (Z, n as f64);
    let share = count as f64 / n;
    let middle = (share + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let half = z / (1.0 + z * z / n) * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    // Rounding may leave an end a hair outside.
    ((middle - half).max(0.0), (middle + half).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilsons_interval_is_what_tables_say() {
        let (low, high) = wilson(8, 10);
        assert!((low - 0.4902).abs() < 1e-4 && (high - 0.9433).abs() < 1e-4, "{low} {high}");
        assert!(wilson(0, 20).0.abs() < 1e-9);
        let none = Estimate::percent(0, 20);
        assert!(none.value == 0.0 && (none.high - 16.113).abs() < 1e-3, "{none:?}");
    }

    /// Of many values the interval of the mean is 1.96 standard errors to both sides.
    #[test]
    fn a_bootstrapped_mean_has_the_interval_of_a_normal_distribution() {
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
