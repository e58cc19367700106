//! The arithmetic of a parameter update on host arrays (paper §A.2, §B.2). AdamW takes one pass over
//! weights, gradients and moments.

use rayon::prelude::*;

use crate::cpu::{Cpu, vectorized};

/// Values that one task updates.
const PART: usize = 1 << 14;

/// The constants of one AdamW update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// The factor of gradients that clips their norm.
    pub gradient_scale: f32,
    /// The decay of the running mean, β₁.
    pub beta1: f32,
    /// The decay of the running variance, β₂.
    pub beta2: f32,
    /// The learning rate, divided by the bias correction of the mean.
    pub step: f32,
    /// The inverse of the variance's bias correction.
    pub inverse_variance: f32,
    /// The factor of weights that decays them: 1 less learning rate times weight decay.
    pub shrink: f32,
    /// The constant added to the square root of the variance, ε.
    pub epsilon: f32,
    /// The maximum of the running variance (paper §B.2); infinite for no maximum.
    pub variance_clip: f32,
}

impl AdamWStep {
    /// Updates weights `w` and moments `m` and `v` with gradients `g`. With `g` multiplied by
    /// `gradient_scale`:
    ///
    /// ```text
    /// m = β₁ m + (1-β₁) g
    /// v = min(β₂ v + (1-β₂) g², variance_clip)
    /// w = shrink · w - step · m / (√(v · inverse_variance) + ε)
    /// ```
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn update(&self, cpu: Cpu, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let n = w.len();
        let lengths = [g.len(), m.len(), v.len()];
        assert!(lengths == [n; 3], "adamw: {lengths:?} gradients, means and variances, wanted {n} each");
        let isa = cpu.supported();
        let parts = w.par_chunks_mut(PART).zip(g.par_chunks(PART));
        let moments = m.par_chunks_mut(PART).zip(v.par_chunks_mut(PART));
        parts.zip(moments).for_each(|((w, g), (m, v))| update_part(isa, *self, w, g, m, v));
    }
}

vectorized! {
    fn update_part(adam: AdamWStep, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * adam.gradient_scale;
            *m = adam.beta1 * *m + (1.0 - adam.beta1) * g;
            *v = (adam.beta2 * *v + (1.0 - adam.beta2) * g * g).min(adam.variance_clip);
            *w = adam.shrink * *w - adam.step * *m / ((*v * adam.inverse_variance).sqrt() + adam.epsilon);
        }
    }
}

/// Returns `Σ v²` as f64, which is finite if all values are.
pub fn sum_of_squares(cpu: Cpu, values: &[f32]) -> f64 {
    let isa = cpu.supported();
    let parts: Vec<f64> = values.par_chunks(PART).map(|part| squares(isa, part)).collect();
    parts.into_iter().sum()
}

vectorized! {
    fn squares(values: &[f32]) -> f64 {
        // Sixteen independent sums, which the compiler turns into vectors.
        let mut sums = [0.0_f64; 16];
        let (rows, rest) = values.as_chunks::<16>();
        let square = |value: f32| f64::from(value) * f64::from(value);
        for row in rows {
            sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += square(value));
        }
        sums.iter().sum::<f64>() + rest.iter().map(|&value| square(value)).sum::<f64>()
    }
}

/// Moves `a` towards `b`: `a += share · (b - a)`.
///
/// # Panics
/// If the lengths differ.
pub fn approach(cpu: Cpu, a: &mut [f32], b: &[f32], share: f32) {
    assert!(a.len() == b.len(), "approach: {} values and {}", a.len(), b.len());
    let isa = cpu.supported();
    a.par_chunks_mut(PART).zip(b.par_chunks(PART)).for_each(|(a, b)| approach_part(isa, a, b, share));
}

vectorized! {
    fn approach_part(a: &mut [f32], b: &[f32], share: f32) {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += share * (b - *a));
    }
}

/// Adds `b` to `a`.
///
/// # Panics
/// If the lengths differ.
pub fn add(cpu: Cpu, a: &mut [f32], b: &[f32]) {
    assert!(a.len() == b.len(), "add: {} values and {}", a.len(), b.len());
    let isa = cpu.supported();
    a.par_chunks_mut(PART).zip(b.par_chunks(PART)).for_each(|(a, b)| add_part(isa, a, b));
}

vectorized! {
    fn add_part(a: &mut [f32], b: &[f32]) {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    }
}

/// Divides `a` by `divisor`.
pub fn divide(cpu: Cpu, a: &mut [f32], divisor: f32) {
    let isa = cpu.supported();
    a.par_chunks_mut(PART).for_each(|a| divide_part(isa, a, divisor));
}

vectorized! {
    fn divide_part(a: &mut [f32], divisor: f32) {
        a.iter_mut().for_each(|a| *a /= divisor);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::testing::{assert_close, noise};

    pub(crate) const ADAM: AdamWStep = AdamWStep {
        gradient_scale: 0.5,
        beta1: 0.9,
        beta2: 0.96,
        step: 0.1,
        inverse_variance: 3.0,
        shrink: 0.99,
        epsilon: 1e-8,
        variance_clip: 0.5,
    };

    #[test]
    fn update_equals_formula_on_every_instruction_set() {
        let n = 2 * PART + 13;
        let [w, g, m] = [1, 2, 3].map(|seed| noise(n, seed));
        let v: Vec<f32> = noise(n, 4).into_iter().map(|v| v * v).collect();
        let expected = |i: usize| {
            let g = f64::from(g[i]) * 0.5;
            let m = 0.9 * f64::from(m[i]) + 0.1 * g;
            let v = (0.96 * f64::from(v[i]) + 0.04 * g * g).min(0.5);
            [0.99 * f64::from(w[i]) - 0.1 * m / ((v * 3.0).sqrt() + 1e-8), m, v].map(|value| value as f32)
        };
        let expected: Vec<[f32; 3]> = (0..n).map(expected).collect();
        for cpu in Cpu::all() {
            let (mut w, mut m, mut v) = (w.clone(), m.clone(), v.clone());
            ADAM.update(cpu, &mut w, &g, &mut m, &mut v);
            for (i, (name, got)) in [("weights", w), ("mean", m), ("variance", v)].into_iter().enumerate() {
                let expected: Vec<f32> = expected.iter().map(|all| all[i]).collect();
                assert_close(&format!("{name}, {cpu}"), &got, &expected, 1e-5);
            }
        }
    }

    #[test]
    fn sums_and_averages_equal_formulas_on_every_instruction_set() {
        let [a, b] = [1, 2].map(|seed| noise(2 * PART + 7, seed));
        let square: f64 = a.iter().map(|&value| f64::from(value).powi(2)).sum();
        let nearer: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + 0.25 * (b - a)).collect();
        for cpu in Cpu::all() {
            assert!((sum_of_squares(cpu, &a) / square - 1.0).abs() < 1e-6, "{cpu}");
            assert_eq!(sum_of_squares(cpu, &[]), 0.0);
            let largest = sum_of_squares(cpu, &[f32::MAX; 40]) / f64::from(f32::MAX).powi(2);
            assert!((largest - 40.0).abs() < 1e-9, "{cpu}: {largest}");
            let mut a = a.clone();
            approach(cpu, &mut a, &b, 0.25);
            assert!(a == nearer, "{cpu}");
        }
    }

    #[test]
    #[should_panic(expected = "[3, 3, 2] gradients, means and variances, wanted 3 each")]
    fn update_with_different_lengths_panics() {
        ADAM.update(Cpu::best(), &mut [0.0; 3], &[0.0; 3], &mut [0.0; 3], &mut [0.0; 2]);
    }
}
