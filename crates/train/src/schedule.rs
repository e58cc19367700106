//! Schedules as functions of the update number (paper §A.2, §B.2).

/// From `start` to `end` over `steps` updates by half a cosine, then `end`.
pub fn cosine(start: f64, end: f64, step: u64, steps: u64) -> f64 {
    let progress = (step as f64 / steps.max(1) as f64).min(1.0);
    end + 0.5 * (start - end) * (1.0 + (std::f64::consts::PI * progress).cos())
}

/// A linear rise from 0 over `warmup` updates, times the cosine from `lr` to `lr_end`.
pub fn warmup_cosine(lr: f64, lr_end: f64, step: u64, steps: u64, warmup: u64) -> f64 {
    let rise = ((step + 1) as f64 / warmup.max(1) as f64).min(1.0);
    rise * cosine(lr, lr_end, step, steps)
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
            close(cosine(start, end, 0, steps), start);
            close(cosine(start, end, steps / 2, steps), middle);
            close(cosine(start, end, steps, steps), end);
            close(cosine(start, end, 3 * steps, steps), end);
        }
    }

    #[test]
    fn warm_up_rises_to_the_full_step() {
        close(warmup_cosine(1.0, 1.0, 0, 100, 10), 0.1);
        close(warmup_cosine(1.0, 1.0, 9, 100, 10), 1.0);
        close(warmup_cosine(1.0, 0.0, 100, 100, 10), 0.0);
    }
}
