//! Gradient scales of resblocks (paper §2.4, §D.1): what keeps 16-bit gradients in the range of their exponent.
//!
//! Each resblock multiplies the gradient that enters it by a scale of its own, and divides what leaves it. A scale grows slowly
//! while all gradients are finite; where one is not, that scale alone shrinks, and the update is skipped.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// Clean updates that double a scale (§D.1).
const DOUBLING: f64 = 1000.0;
/// What a scale is divided by when its resblock overflows (§D.1): √2, as a binary logarithm.
const DROP: f64 = 0.5;
/// Updates within which a scale is divided once at most (§D.1).
const DROP_EVERY: u64 = 125;
/// Updates skipped in a row after which something else must be wrong: scales have fallen to a sixteenth by then.
const MOST_SKIPPED: u64 = 8 * DROP_EVERY;
/// Bounds and start of a scale for each replica, as binary logarithms (§D.1).
const LOWEST: f64 = 7.0;
const FIRST: f64 = 13.0;
const HIGHEST: f64 = 24.0;

/// Who shares a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scaling {
    /// Nobody: each resblock has its own.
    Resblock,
    /// All resblocks, as in ordinary loss scaling.
    Global,
}

/// The scales of all resblocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scales {
    scaling: Scaling,
    /// Binary logarithms, first resblock first.
    log2: Vec<f64>,
    /// The update at which each was last divided.
    dropped: Vec<Option<u64>>,
    /// Data-parallel replicas: the loss is divided by the whole batch, so scales carry their number.
    replicas: u64,
    /// Updates skipped since the last that counted, and where the first of them was met.
    skipped: u64,
    began: Option<usize>,
}

impl Scales {
    /// The first scales of `n_resblocks` resblocks: 2¹³ for each of `replicas`.
    pub fn new(scaling: Scaling, n_resblocks: usize, replicas: u64) -> Scales {
        let first = FIRST + (replicas as f64).log2();
        Scales {
            scaling,
            log2: vec![first; n_resblocks],
            dropped: vec![None; n_resblocks],
            replicas,
            skipped: 0,
            began: None,
        }
    }

    /// The scales.
    pub fn values(&self) -> Vec<f32> {
        self.log2.iter().map(|log2| log2.exp2() as f32).collect()
    }

    /// Binary logarithms of the scales, to log.
    pub fn log2(&self) -> &[f64] {
        &self.log2
    }

    /// Follows update `step`, in which the parameter gradients of the resblocks of `overflowed` were not finite, the one that
    /// was met first before the others. Whether the update counts: it is skipped if there was any.
    ///
    /// # Errors
    /// If so many updates in a row were skipped that smaller scales do not help; names the resblocks.
    pub fn follow(&mut self, step: u64, overflowed: &[usize]) -> Result<bool> {
        let bounds = (self.replicas as f64).log2();
        for i in 0..self.log2.len() {
            let over = match self.scaling {
                Scaling::Resblock => overflowed.contains(&i),
                Scaling::Global => !overflowed.is_empty(),
            };
            let rested = self.dropped[i].is_none_or(|last| step >= last + DROP_EVERY);
            if !over {
                self.log2[i] += 1.0 / DOUBLING;
            } else if rested {
                self.log2[i] -= DROP;
                self.dropped[i] = Some(step);
            }
            self.log2[i] = self.log2[i].clamp(LOWEST + bounds, HIGHEST + bounds);
        }
        if overflowed.is_empty() {
            self.skipped = 0;
            return Ok(true);
        }
        if self.skipped == 0 {
            self.began = overflowed.first().copied();
        }
        self.skipped += 1;
        ensure!(
            self.skipped < MOST_SKIPPED,
            "step {step}: {} updates in a row were skipped, since gradients were not finite{}; try a smaller lr",
            self.skipped,
            self.beginning()
        );
        Ok(false)
    }

    /// Where it began, if there is more than one place.
    fn beginning(&self) -> String {
        match (self.log2.len(), self.began) {
            (0 | 1, _) | (_, None) => String::new(),
            (n, Some(i)) => format!(", first in resblock {i} of {n} (from 0, attention and MLP in turn)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log2(scales: &Scales) -> Vec<f64> {
        scales.log2().to_vec()
    }

    #[test]
    fn scales_start_at_two_to_the_13_for_each_replica() {
        assert_eq!(Scales::new(Scaling::Resblock, 2, 1).values(), [8192.0, 8192.0]);
        assert_eq!(Scales::new(Scaling::Resblock, 1, 1024).log2(), [23.0]);
    }

    #[test]
    fn a_thousand_clean_updates_double_a_scale_and_an_overflow_divides_only_its_own() {
        let mut scales = Scales::new(Scaling::Resblock, 3, 1);
        (0..1000).for_each(|step| assert!(scales.follow(step, &[]).unwrap()));
        assert!(log2(&scales).iter().all(|log2| (log2 - 14.0).abs() < 1e-9));
        assert!(!scales.follow(1000, &[1]).unwrap());
        let after = log2(&scales);
        assert!((after[0] - 14.001).abs() < 1e-9 && (after[1] - 13.5).abs() < 1e-9);
        assert_eq!(after[0], after[2]);
    }

    #[test]
    fn a_scale_is_divided_once_in_125_updates_and_all_such_updates_are_skipped() {
        let mut scales = Scales::new(Scaling::Resblock, 1, 1);
        (0..125).for_each(|step| assert!(!scales.follow(step, &[0]).unwrap()));
        assert_eq!(log2(&scales), [12.5]);
        scales.follow(125, &[0]).unwrap();
        assert_eq!(log2(&scales), [12.0]);
    }

    #[test]
    fn scales_stay_within_their_bounds() {
        let mut scales = Scales::new(Scaling::Resblock, 2, 4);
        // The second overflows in 124 of 125 updates.
        let overflowed = |step: u64| if step % 125 == 1 { [].as_slice() } else { &[1] };
        for step in 0..40_000 {
            assert_eq!(scales.follow(step, overflowed(step)).unwrap(), step % 125 == 1);
        }
        let [highest, lowest] = [26.0, 9.0];
        assert!(
            log2(&scales)[1] - lowest <= 1.0 / DOUBLING && log2(&scales)[0] == highest,
            "{:?}",
            log2(&scales)
        );
    }

    #[test]
    fn when_smaller_scales_do_not_help_the_run_ends_and_names_the_resblock() {
        let mut scales = Scales::new(Scaling::Resblock, 8, 1);
        let mut skip = |step| scales.follow(step, if step == 0 { &[5, 3] } else { &[0, 1, 2, 3, 4, 5] });
        (0..MOST_SKIPPED - 1).for_each(|step| assert!(!skip(step).unwrap()));
        let error = skip(MOST_SKIPPED).unwrap_err().to_string();
        assert!(error.contains("first in resblock 5 of 8"), "{error}");
    }

    #[test]
    fn one_scale_for_all_falls_for_all() {
        let mut scales = Scales::new(Scaling::Global, 3, 1);
        scales.follow(0, &[2]).unwrap();
        assert_eq!(log2(&scales), [12.5; 3]);
    }
}
