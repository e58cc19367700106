//! Gradient scales of resblocks (paper §2.4, §D.1): what keeps 16-bit gradients in the range of their exponent.
//!
//! Each resblock multiplies the gradient that enters it by a scale of its own, and divides what leaves it. A scale grows slowly
//! while all gradients are finite; where one is not, that scale alone shrinks, and the update is skipped.

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use tessera_kernels::SmallFloat;

/// What a scale is divided by when its resblock overflows (§D.1): √2, as a binary logarithm.
const DROP: f64 = 0.5;
/// Drops in a row after which something else must be wrong: scales have fallen to a sixteenth by then.
const MOST_DROPS: u64 = 8;
/// Bounds of a scale for each replica, as binary logarithms (§D.1).
const LOWEST: f64 = 7.0;
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

/// How scales rise and fall.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rules {
    /// Who shares a scale.
    pub scaling: Scaling,
    /// Binary logarithm of the first scales.
    pub first: f64,
    /// Clean updates that double a scale.
    pub doubling: u64,
    /// Updates within which a scale is divided once at most.
    pub rest: u64,
}

impl Rules {
    /// The paper's (§D.1).
    pub fn paper(scaling: Scaling) -> Rules {
        Rules { scaling, first: 13.0, doubling: 1000, rest: 125 }
    }
}

/// The scales of all resblocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scales {
    rules: Rules,
    /// What bounds are relative to, as a binary logarithm.
    unit: f64,
    /// Binary logarithms, first resblock first.
    log2: Vec<f64>,
    /// The update at which each was last divided.
    dropped: Vec<Option<u64>>,
    /// Updates skipped since the last that counted, and where the first of them was met.
    skipped: u64,
    began: Option<usize>,
}

impl Scales {
    /// The first scales of `n_resblocks` resblocks, times the number of `replicas`, since the loss is divided by the whole batch,
    /// and divided by what `format` has less room above 1 than f16.
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

    /// The scales.
    pub fn values(&self) -> Vec<f32> {
        self.log2.iter().map(|log2| log2.exp2() as f32).collect()
    }

    /// Binary logarithms of the scales, to log.
    pub fn log2(&self) -> &[f64] {
        &self.log2
    }

    /// Follows update `step`, in which gradients of the resblocks of `overflowed` were not finite, the one that was met first
    /// before the others; `finite` says whether all gradients were, those outside of resblocks included. Whether the update
    /// counts: it is skipped if any was not.
    ///
    /// # Errors
    /// If so many updates in a row were skipped that smaller scales do not help; names the resblocks.
    pub fn follow(&mut self, step: u64, overflowed: &[usize], finite: bool) -> Result<bool> {
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
            let skipped = std::mem::take(&mut self.skipped); // whoever goes on from here has as many again
            bail!(
                "step {step}: {skipped} updates in a row were skipped, since gradients were not finite{}",
                self.beginning()
            );
        }
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

    fn new(n_resblocks: usize, replicas: u64) -> Scales {
        Scales::new(Rules::paper(Scaling::Resblock), n_resblocks, SmallFloat::F16, replicas)
    }

    fn follow(scales: &mut Scales, step: u64, overflowed: &[usize]) -> Result<bool> {
        scales.follow(step, overflowed, overflowed.is_empty())
    }

    fn log2(scales: &Scales) -> Vec<f64> {
        scales.log2().to_vec()
    }

    #[test]
    fn scales_start_at_two_to_the_13_for_each_replica() {
        assert_eq!(new(2, 1).values(), [8192.0, 8192.0]);
        assert_eq!(new(1, 1024).log2(), [23.0]);
        let rules = Rules::paper(Scaling::Resblock);
        assert_eq!(Scales::new(rules, 1, SmallFloat::Bf16, 1).log2(), [13.0]); // room enough
        assert_eq!(Scales::new(rules, 1, SmallFloat::OneThreeTwelve, 1).log2(), [1.0]); // 2¹² less
    }

    #[test]
    fn a_thousand_clean_updates_double_a_scale_and_an_overflow_divides_only_its_own() {
        let mut scales = new(3, 1);
        (0..1000).for_each(|step| assert!(follow(&mut scales, step, &[]).unwrap()));
        assert!(log2(&scales).iter().all(|log2| (log2 - 14.0).abs() < 1e-9));
        assert!(!follow(&mut scales, 1000, &[1]).unwrap());
        let after = log2(&scales);
        assert!((after[0] - 14.001).abs() < 1e-9 && (after[1] - 13.5).abs() < 1e-9);
        assert_eq!(after[0], after[2]);
    }

    #[test]
    fn a_scale_is_divided_once_in_125_updates_and_all_such_updates_are_skipped() {
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
    fn when_smaller_scales_do_not_help_the_run_ends_and_names_the_resblock() {
        let mut scales = new(8, 1);
        let mut skip =
            |step| follow(&mut scales, step, if step == 0 { &[5, 3] } else { &[0, 1, 2, 3, 4, 5] });
        (0..999).for_each(|step| assert!(!skip(step).unwrap()));
        let error = skip(1000).unwrap_err().to_string();
        assert!(error.contains("first in resblock 5 of 8"), "{error}");
    }

    #[test]
    fn one_scale_for_all_falls_for_all() {
        let mut scales = Scales::new(Rules::paper(Scaling::Global), 3, SmallFloat::F16, 1);
        follow(&mut scales, 0, &[2]).unwrap();
        assert_eq!(log2(&scales), [12.5; 3]);
    }

    #[test]
    fn a_gradient_outside_of_resblocks_that_is_not_finite_skips_the_update_and_drops_no_scale() {
        let mut scales = new(2, 1);
        assert!(!scales.follow(0, &[], false).unwrap());
        assert!(log2(&scales).iter().all(|log2| *log2 > 13.0));
        (1..999).for_each(|step| assert!(!scales.follow(step, &[], false).unwrap()));
        assert!(scales.follow(999, &[], false).unwrap_err().to_string().contains("1000 updates in a row"));
    }
}
