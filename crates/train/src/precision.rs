//! Gradient scales of resblocks, which keep 16-bit gradients in the range of their format (paper
//! §2.4, §D.1).
//!
//! Each resblock multiplies the gradient that enters it by its own scale, and divides the gradient
//! that leaves it by the same scale. A scale grows slowly while all gradients are finite. If a
//! gradient of a resblock is not finite, only the scale of that resblock shrinks, and the update is
//! skipped.

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use tessera_kernels::SmallFloat;

/// The factor √2, as a base-2 logarithm, by which a scale is divided when its resblock overflows
/// (§D.1).
const DROP: f64 = 0.5;
/// The number of consecutive reductions after which the run fails. The scales have then fallen to a
/// sixteenth, so that the cause must be something else.
const MOST_DROPS: u64 = 8;
/// Bounds of a scale for one replica, as base-2 logarithms (§D.1).
const LOWEST: f64 = 7.0;
const HIGHEST: f64 = 24.0;

/// Which resblocks share a gradient scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scaling {
    /// Each resblock has its own scale.
    Resblock,
    /// All resblocks share one scale, as in ordinary loss scaling.
    Global,
}

/// How scales grow and shrink.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rules {
    /// Which resblocks share a scale.
    pub scaling: Scaling,
    /// Base-2 logarithm of the initial scales.
    pub first: f64,
    /// The number of updates without an overflow that double a scale.
    pub doubling: u64,
    /// The minimum number of updates between two reductions of a scale.
    pub rest: u64,
}

impl Rules {
    /// Returns the paper's rules (§D.1).
    pub fn paper(scaling: Scaling) -> Rules {
        Rules { scaling, first: 13.0, doubling: 1000, rest: 125 }
    }
}

/// The gradient scales of all resblocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scales {
    rules: Rules,
    /// The factor on the initial scale and on the bounds for replicas and format, as a base-2
    /// logarithm.
    unit: f64,
    /// Base-2 logarithms of the scales, in the order of the resblocks.
    log2: Vec<f64>,
    /// For each scale: the update of its last reduction.
    dropped: Vec<Option<u64>>,
    /// The number of skipped updates since the last applied one, and the resblock in which the
    /// first of them overflowed.
    skipped: u64,
    began: Option<usize>,
}

impl Scales {
    /// Makes the initial scales of `n_resblocks` resblocks.
    ///
    /// They are multiplied by the number of `replicas`, because the loss is divided by the size of
    /// the batch of all replicas. If the largest value of `format` is less than that of f16, they
    /// are divided by the ratio of the two.
    pub fn new(rules: Rules, n_resblocks: usize, format: SmallFloat, replicas: u64) -> Scales {
        let room = f64::from(format.largest() / SmallFloat::F16.largest()).log2().round().min(0.0);
        let unit = (replicas as f64).log2() + room;
        Scales {
            rules,
            unit,
            log2: vec![rules.first + unit; n_resblocks],
            dropped: vec![None; n_resblocks],
            skipped: 0,
            began: None,
        }
    }

    /// Returns the scales.
    pub fn values(&self) -> Vec<f32> {
        self.log2.iter().map(|log2| log2.exp2() as f32).collect()
    }

    /// Returns the base-2 logarithms of the scales.
    pub fn log2(&self) -> &[f64] {
        &self.log2
    }

    /// Adjusts the scales after the gradient of update `step` was computed, and returns whether the
    /// update may be applied. It is skipped if any gradient is not finite.
    ///
    /// `overflowed` contains the resblocks with non-finite gradients, in the order in which they
    /// were found. `finite` is whether all gradients are finite, including those outside of
    /// resblocks.
    ///
    /// # Errors
    /// If so many updates in a row were skipped that smaller scales do not help. The message names
    /// the resblock in which the first of them overflowed.
    pub fn update(&mut self, step: u64, overflowed: &[usize], finite: bool) -> Result<bool> {
        let Rules { scaling, doubling, rest, .. } = self.rules;
        for i in 0..self.log2.len() {
            let over = match scaling {
                Scaling::Resblock => overflowed.contains(&i),
                Scaling::Global => !overflowed.is_empty(),
            };
            let rested = self.dropped[i].is_none_or(|last| step >= last + rest);
            if !over {
                self.log2[i] += 1.0 / doubling as f64;
            } else if rested {
                self.log2[i] -= DROP;
                self.dropped[i] = Some(step);
            }
            self.log2[i] = self.log2[i].clamp(LOWEST + self.unit, HIGHEST + self.unit);
        }
        if overflowed.is_empty() && finite {
            self.skipped = 0;
            return Ok(true);
        }
        if self.skipped == 0 {
            self.began = overflowed.first().copied();
        }
        self.skipped += 1;
        if self.skipped >= MOST_DROPS * rest {
            let skipped = std::mem::take(&mut self.skipped); // a resumed run starts to count again
            bail!(
                "step {step}: {skipped} updates in a row were skipped, since gradients were not finite{}",
                self.beginning()
            );
        }
        Ok(false)
    }

    /// Returns a description of the resblock in which the overflows began, if there are several
    /// resblocks.
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

    fn new(n_resblocks: usize, replicas: u64) -> Scales {
        Scales::new(Rules::paper(Scaling::Resblock), n_resblocks, SmallFloat::F16, replicas)
    }

    fn follow(scales: &mut Scales, step: u64, overflowed: &[usize]) -> Result<bool> {
        scales.update(step, overflowed, overflowed.is_empty())
    }

    fn log2(scales: &Scales) -> Vec<f64> {
        scales.log2().to_vec()
    }

    #[test]
    fn scales_start_at_two_to_the_13_times_replicas() {
        assert_eq!(new(2, 1).values(), [8192.0, 8192.0]);
        assert_eq!(new(1, 1024).log2(), [23.0]);
        let rules = Rules::paper(Scaling::Resblock);
        // The range of bf16 is larger than that of f16; that of 1-3-12 is smaller by 2¹².
        assert_eq!(Scales::new(rules, 1, SmallFloat::Bf16, 1).log2(), [13.0]);
        assert_eq!(Scales::new(rules, 1, SmallFloat::OneThreeTwelve, 1).log2(), [1.0]);
    }

    #[test]
    fn clean_updates_double_scales_and_overflow_divides_one() {
        let mut scales = new(3, 1);
        (0..1000).for_each(|step| assert!(follow(&mut scales, step, &[]).unwrap()));
        assert!(log2(&scales).iter().all(|log2| (log2 - 14.0).abs() < 1e-9));
        assert!(!follow(&mut scales, 1000, &[1]).unwrap());
        let after = log2(&scales);
        assert!((after[0] - 14.001).abs() < 1e-9 && (after[1] - 13.5).abs() < 1e-9);
        assert_eq!(after[0], after[2]);
    }

    #[test]
    fn scale_is_divided_at_most_once_in_125_skipped_updates() {
        let mut scales = new(1, 1);
        (0..125).for_each(|step| assert!(!follow(&mut scales, step, &[0]).unwrap()));
        assert_eq!(log2(&scales), [12.5]);
        follow(&mut scales, 125, &[0]).unwrap();
        assert_eq!(log2(&scales), [12.0]);
    }

    #[test]
    fn scales_stay_within_their_bounds() {
        let mut scales = new(2, 4);
        // The second overflows in 124 of 125 updates.
        let overflowed = |step: u64| if step % 125 == 1 { [].as_slice() } else { &[1] };
        for step in 0..40_000 {
            assert_eq!(follow(&mut scales, step, overflowed(step)).unwrap(), step % 125 == 1);
        }
        let [first, second] = log2(&scales)[..] else { panic!("two scales") };
        assert!(first == 26.0 && (9.0..=9.001).contains(&second), "{first}, {second}");
    }

    #[test]
    fn repeated_overflow_is_an_error_that_names_the_first_resblock() {
        let mut scales = new(8, 1);
        let mut skip =
            |step| follow(&mut scales, step, if step == 0 { &[5, 3] } else { &[0, 1, 2, 3, 4, 5] });
        (0..999).for_each(|step| assert!(!skip(step).unwrap()));
        let error = skip(1000).unwrap_err().to_string();
        assert!(error.contains("first in resblock 5 of 8"), "{error}");
    }

    #[test]
    fn global_scale_falls_for_all_resblocks() {
        let mut scales = Scales::new(Rules::paper(Scaling::Global), 3, SmallFloat::F16, 1);
        follow(&mut scales, 0, &[2]).unwrap();
        assert_eq!(log2(&scales), [12.5; 3]);
    }

    #[test]
    fn nonfinite_gradient_outside_of_resblocks_lowers_no_scale() {
        let mut scales = new(2, 1);
        assert!(!scales.update(0, &[], false).unwrap());
        assert!(log2(&scales).iter().all(|log2| *log2 > 13.0));
        (1..999).for_each(|step| assert!(!scales.update(step, &[], false).unwrap()));
        assert!(scales.update(999, &[], false).unwrap_err().to_string().contains("1000 updates in a row"));
    }
}
