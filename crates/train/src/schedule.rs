//! Schedules as functions of the update number (paper §A.2, §B.2), and the one that listens to the loss.

use serde::{Deserialize, Serialize};

use crate::config::FitConfig;

/// From `start` to `end` over `steps` updates by half a cosine, then `end`.
pub fn cosine_decay(start: f64, end: f64, step: u64, steps: u64) -> f64 {
    let progress = (step as f64 / steps.max(1) as f64).min(1.0);
    end + 0.5 * (start - end) * (1.0 + (std::f64::consts::PI * progress).cos())
}

/// A linear rise to 1 over `warmup` updates.
pub fn rise(step: u64, warmup: u64) -> f64 {
    ((step + 1) as f64 / warmup.max(1) as f64).min(1.0)
}

/// How the step size falls after its rise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// By half a cosine from `lr` to `lr_end`.
    Cosine,
    /// By half each time that the training loss has stopped falling, down to `lr_end` ([`Plateau`]).
    Plateau,
}

/// The step size of update `step`.
pub fn learning_rate(config: &FitConfig, step: u64, plateau: &Plateau) -> f64 {
    let fallen = match config.schedule {
        Schedule::Cosine => cosine_decay(config.lr, config.lr_end, step, config.lr_steps),
        Schedule::Plateau => config.lr * plateau.factor(),
    };
    rise(step, config.warmup) * fallen
}

/// Share by which a loss has to be below the best before to count as falling.
const GAIN: f64 = 1e-3;
/// Windows without a gain after which the step size is halved.
const PATIENCE: u32 = 3;

/// Halving on a plateau (paper §B.2: "the training loss appeared to plateau", five times). The paper leaves the rule open.
/// Ours: the mean training loss of windows of `eval_every` updates; after three windows in a row that are not 0.1 % below
/// the best one before, the step size is halved and counting starts again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Plateau {
    /// Times halved.
    halvings: u32,
    best: Option<f64>,
    stale: u32,
    /// Of the window so far.
    sum: f64,
    n: u64,
}

impl Plateau {
    /// What the step size is multiplied by.
    pub fn factor(&self) -> f64 {
        0.5_f64.powi(self.halvings.cast_signed())
    }

    /// Follows the loss of an update; every `window` of them are judged together. Never halves below `lowest`, as a factor.
    pub fn follow(&mut self, loss: f64, window: u64, lowest: f64) {
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
    fn the_papers_three_schedules_at_start_middle_and_end() {
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
    fn warm_up_rises_to_the_full_step() {
        close(rise(0, 10), 0.1);
        close(rise(9, 10), 1.0);
        close(rise(100, 10), 1.0);
        close(rise(0, 0), 1.0);
    }

    #[test]
    fn a_loss_that_stays_halves_the_step_and_one_that_falls_does_not() {
        let mut plateau = Plateau::default();
        let mut follow = |losses: &mut dyn Iterator<Item = f64>| {
            losses.for_each(|loss| plateau.follow(loss, 10, 1.0 / 32.0));
            plateau.factor()
        };
        close(follow(&mut (0..1000).map(|step| 5.0 * 0.999_f64.powi(step))), 1.0);
        close(follow(&mut [2.0; 30].into_iter()), 0.5); // three windows above the best
        close(follow(&mut [2.0; 29].into_iter()), 0.5);
        close(follow(&mut [2.0; 1].into_iter()), 0.25);
        close(follow(&mut [1.5; 10].into_iter()), 0.25);
        close(follow(&mut [2.0; 10_000].into_iter()), 1.0 / 32.0);
    }
}
