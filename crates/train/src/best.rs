//! The best checkpoint: the one with the lowest loss on held-out data.

use serde::{Deserialize, Serialize};

/// The number of validations in a row, all with a higher loss than the best one, after which a run
/// is overfitting.
const PATIENCE: u32 = 3;

/// The validation with the lowest held-out loss so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The step of the validation, which has a checkpoint.
    pub step: u64,
    /// The held-out loss.
    pub loss: f64,
    /// The number of validations since.
    pub since: u32,
}

impl Best {
    /// Returns the best validation after one at `step` with `loss`, given the best one before it.
    pub fn after(best: Option<Best>, step: u64, loss: f64) -> Best {
        match best {
            Some(best) if best.loss <= loss => Best { since: best.since + 1, ..best },
            _ => Best { step, loss, since: 0 },
        }
    }

    /// Returns whether the run overfits: it has become worse on held-out data for a while.
    pub fn overfits(&self) -> bool {
        self.since >= PATIENCE
    }

    /// Returns a warning if the last validation was the one at which overfitting became clear.
    pub fn warning(&self) -> Option<String> {
        (self.since == PATIENCE).then(|| {
            format!(
                "warning: the held-out loss has been higher than at step {} for {PATIENCE} validations: the model is \
                 overfitting. More data, fewer steps or a smaller model would help. Without --last, the model file gets the \
                 weights of step {}; with --last, the last ones",
                self.step, self.step
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_higher_losses_in_a_row_are_overfitting() {
        let follow = |losses: &[f64]| {
            losses.iter().enumerate().fold(None, |best, (i, &loss)| Some(Best::after(best, i as u64, loss)))
        };
        assert!(!follow(&[3.0, 2.0, 2.1, 2.2]).unwrap().overfits());
        let best = follow(&[3.0, 2.0, 2.1, 2.0, 2.5]).unwrap();
        assert_eq!((best.step, best.overfits()), (1, true));
        assert!(best.warning().unwrap().contains("at step 1 for 3 validations"));
        let best = follow(&[3.0, 2.0, 2.1, 2.0, 2.5, 1.9]).unwrap();
        assert_eq!((best.step, best.overfits(), best.warning()), (5, false, None));
        assert_eq!(follow(&[3.0, 2.0, 2.1, 2.0, 2.5, 2.5]).unwrap().warning(), None, "one warning only");
    }
}
