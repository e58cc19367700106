//! Schedules as functions of the number of the update (paper §A.2, §B.2), and one that depends on
//! the training loss.

use serde::{Deserialize, Serialize};

use crate::config::FitConfig;

/// Returns the value at `step` of a half cosine from `start` to `end` over `steps` updates. After
/// these it is `end`.
pub fn cosine_decay(start: f64, end: f64, step: u64, steps: u64) -> f64 {
    let progress = (step as f64 / steps.max(1) as f64).min(1.0);
    end + 0.5 * (start - end) * (1.0 + (std::f64::consts::PI * progress).cos())
}

/// Returns the factor at `step` of a linear warm-up to 1 over `warmup` updates.
pub fn rise(step: u64, warmup: u64) -> f64 {
    ((step + 1) as f64 / warmup.max(1) as f64).min(1.0)
}

/// How the learning rate decays after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// A half cosine from `lr` to `lr_end`.
    Cosine,
    /// Halving each time the training loss has stopped falling, down to `lr_end` ([`Plateau`]).
    Plateau,
}

/// Returns the learning rate of update `step`.
pub fn learning_rate(config: &FitConfig, step: u64, plateau: &Plateau) -> f64 {
    let decayed = match config.schedule {
        Schedule::Cosine => cosine_decay(config.lr, config.lr_end, step, config.lr_steps),
        Schedule::Plateau => config.lr * plateau.factor(),
    };
    rise(step, config.warmup) * decayed
}

/// The fraction by which a loss must be below the best one so far to count as falling.
const GAIN: f64 = 1e-3;
/// The number of windows without a gain after which the learning rate is halved.
const PATIENCE: u32 = 3;

/// The state of the schedule that halves the learning rate on a plateau (paper §B.2: "the training
/// loss appeared to plateau", five times).
///
/// The paper does not define the rule. Ours uses the mean training loss of windows of `eval_every`
/// updates. After three windows in a row that are not 0.1 % below the best earlier one, the
/// learning rate is halved, and counting starts again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Plateau {
    /// The number of halvings.
    halvings: u32,
    /// The lowest mean loss of a window.
    best: Option<f64>,
    /// The number of windows in a row without a gain.
    stale: u32,
    /// The sum of the losses of the current window.
    sum: f64,
    /// The number of losses in `sum`.
    n: u64,
}

impl Plateau {
    /// Returns the factor on the learning rate.
    pub fn factor(&self) -> f64 {
        0.5_f64.powi(self.halvings.cast_signed())
    }

    /// Adds the loss of an update. After every `window` losses it decides whether to halve. The
    /// factor never falls below `lowest`.
    pub fn update(&mut self, loss: f64, window: u64, lowest: f64) {
        (self.sum, self.n) = (self.sum + loss, self.n + 1);
        if self.n < window {
            return;
        }
        let mean = self.sum / self.n as f64;
        (self.sum, self.n) = (0.0, 0);
        match self.best {
            Some(best) if mean > best - GAIN * best.abs() => self.stale += 1,
            _ => (self.best, self.stale) = (Some(mean), 0),
        }
        if self.stale >= PATIENCE && 0.5 * self.factor() >= lowest * (1.0 - 1e-9) {
            (self.halvings, self.stale) = (self.halvings + 1, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    #[test]
    fn papers_three_schedules_at_start_middle_and_end() {
        for (start, end, steps, middle) in
            [(0.0, 6.6, 5_000, 3.3), (1.0, 0.0625, 150_000, 0.53125), (1e-4, 1.25e-6, 1_200_000, 5.0625e-5)]
        {
            close(cosine_decay(start, end, 0, steps), start);
            close(cosine_decay(start, end, steps / 2, steps), middle);
            close(cosine_decay(start, end, steps, steps), end);
            close(cosine_decay(start, end, 3 * steps, steps), end);
        }
    }

    #[test]
    fn warm_up_rises_to_the_full_learning_rate() {
        close(rise(0, 10), 0.1);
        close(rise(9, 10), 1.0);
        close(rise(100, 10), 1.0);
        close(rise(0, 0), 1.0);
    }

    #[test]
    fn learning_rate_is_halved_only_when_the_loss_stops_falling() {
        let mut plateau = Plateau::default();
        let mut follow = |losses: &mut dyn Iterator<Item = f64>| {
            losses.for_each(|loss| plateau.update(loss, 10, 1.0 / 32.0));
            plateau.factor()
        };
        close(follow(&mut (0..1000).map(|step| 5.0 * 0.999_f64.powi(step))), 1.0);
        close(follow(&mut [2.0; 30].into_iter()), 0.5); // three windows without a gain
        close(follow(&mut [2.0; 29].into_iter()), 0.5);
        close(follow(&mut [2.0; 1].into_iter()), 0.25);
        close(follow(&mut [1.5; 10].into_iter()), 0.25);
        close(follow(&mut [2.0; 10_000].into_iter()), 1.0 / 32.0);
    }
}
