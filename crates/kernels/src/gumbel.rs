//! The bottleneck of the dVAE (paper §2.1): Gumbel noise, the relaxed codes (Gumbel-softmax), and
//! the KL divergence to the uniform prior.

use std::mem::MaybeUninit;

use burn::backend::flex::FlexTensor;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use crate::cpu::{Cpu, vectorized};
use crate::math::{exp, ln, log_sum_exp, sum, sum3};
use crate::memory::filled;
use crate::op::{Op, apply, dims, floats, inputs, tensor};
use crate::philox::{LANES, counters, philox, philox_composed};

/// Gumbel noise `-ln(-ln U)`. It is a function of seed, step, row and column, so it is the same on
/// any thread and in any batch. Nothing is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GumbelNoise {
    /// The seed of the random stream.
    pub seed: u64,
    /// The training step.
    pub step: u64,
    /// The index of the first row, which is row 0 of calls on this noise.
    pub first_row: u64,
}

impl GumbelNoise {
    /// Returns the noise of the rows after the first `n`.
    pub fn skip_rows(self, n: usize) -> GumbelNoise {
        GumbelNoise { first_row: self.first_row + n as u64, ..self }
    }

    /// Returns the noise of `n` rows of `v` values, as it is added to logits.
    pub fn values(self, cpu: Cpu, n: usize, v: usize) -> Vec<f32> {
        let isa = cpu.supported();
        let mut out = vec![0.0; n * v];
        let rows = out.par_chunks_mut(v.max(1)).enumerate();
        rows.for_each(|(row, out)| add_noise(isa, self.skip_rows(row), out));
        out
    }

    /// Returns the same noise in the shape of `logits`, computed on their device with Burn's
    /// operations.
    fn composed<const D: usize>(self, logits: &Tensor<D>) -> Tensor<D> {
        let shape = logits.dims();
        let v = shape[D - 1];
        let n: usize = shape[..D - 1].iter().product();
        let groups = v.div_ceil(GROUP);
        let in_row = (groups * LANES) as u64; // counters per row
        let first = self.first_row.wrapping_mul(in_row);
        let device = logits.device();
        let [low, high] = counters(first, n as u64 * in_row, &device);
        let halves = |x: u64| [x as u32, (x >> 32) as u32];
        let [step_low, step_high] = halves(self.step).map(|half| low.full_like(half));
        let words = philox_composed([low, high, step_low, step_high], halves(self.seed));
        // Each counter gives four words. `LANES` counters fill `GROUP` columns: word 0 of all
        // lanes, then word 1 and so on, as in `add_to_row`.
        let words = words.map(|word| word.reshape([n, groups, 1, LANES]));
        let bits = Tensor::cat(words.to_vec(), 2).reshape([n, groups * GROUP]).narrow(1, 0, v);
        let uniform = (bits.bitwise_right_shift_scalar(9_u32).float() + 0.5) / f64::from(1 << 23);
        (-(-uniform.log()).log()).reshape(shape)
    }
}

/// The number of columns whose noise one group of `LANES` counters makes, with four words each.
const GROUP: usize = 4 * LANES;

vectorized! {
    /// Adds the noise of the first row to `row`.
    fn add_noise(noise: GumbelNoise, row: &mut [f32]) {
        add_to_row(noise, row);
    }
}

/// Adds the noise of the first row to `row`.
///
/// Column `GROUP g + LANES w + l` uses word `w` of the row's counter `LANES g + l`. The row's
/// counters start at its index times the number of counters per row. The Philox counter is
/// `[counter, step]` and the key is the seed, 64 bits each.
#[inline(always)]
fn add_to_row(noise: GumbelNoise, row: &mut [f32]) {
    let halves = |x: u64| [x as u32, (x >> 32) as u32];
    let [step_low, step_high] = halves(noise.step);
    let counters_of_row = (row.len().div_ceil(GROUP) * LANES) as u64;
    let first = noise.first_row.wrapping_mul(counters_of_row);
    for (group, values) in row.chunks_mut(GROUP).enumerate() {
        let counter = |lane: usize| first.wrapping_add((group * LANES + lane) as u64);
        let low = std::array::from_fn(|lane| counter(lane) as u32);
        let high = std::array::from_fn(|lane| (counter(lane) >> 32) as u32);
        let words = philox([low, high, [step_low; LANES], [step_high; LANES]], halves(noise.seed));
        for (values, word) in values.chunks_mut(LANES).zip(words) {
            // With a constant number of lanes the compiler makes vector code.
            let mut noise = [0.0; LANES];
            noise.iter_mut().zip(word).for_each(|(noise, bits)| *noise = gumbel(bits));
            match <&mut [f32; LANES]>::try_from(&mut *values) {
                Ok(values) => values.iter_mut().zip(noise).for_each(|(value, noise)| *value += noise),
                Err(_) => values.iter_mut().zip(noise).for_each(|(value, noise)| *value += noise),
            }
        }
    }
}

/// Returns `-ln(-ln U)` for a uniform `U` made of random bits. `U` is a multiple of 2⁻²³ plus one
/// half of that step, so it is never 0 or 1, where the noise would be infinite.
#[inline(always)]
fn gumbel(bits: u32) -> f32 {
    let uniform = ((bits >> 9) as f32 + 0.5) / (1 << 23) as f32;
    -ln(-ln(uniform))
}

/// Computes the relaxed code `softmax((logits + noise) / tau)` over the last dimension: `[.., V]` →
/// `[.., V]`. The noise is computed where it is added and is never stored.
pub fn gumbel_softmax_drawn<const D: usize>(
    cpu: Cpu,
    logits: Tensor<D>,
    noise: GumbelNoise,
    tau: f64,
) -> Tensor<D> {
    match inputs!(logits) {
        Some(inputs) => apply(RelaxDrawn { cpu, noise, inverse: (1.0 / tau) as f32 }, inputs),
        None => {
            let drawn = noise.composed(&logits);
            gumbel_softmax_reference(logits, drawn, tau)
        }
    }
}

/// Computes [`gumbel_softmax_drawn`] with the noise as a tensor.
pub fn gumbel_softmax_drawn_reference<const D: usize>(
    cpu: Cpu,
    logits: Tensor<D>,
    noise: GumbelNoise,
    tau: f64,
) -> Tensor<D> {
    let (shape, device) = (logits.dims(), logits.device());
    let v = shape[D - 1];
    let rows = shape[..D - 1].iter().product();
    let values = TensorData::new(noise.values(cpu, rows, v), shape);
    gumbel_softmax_reference(logits, Tensor::from_data(values, &device), tau)
}

/// Computes the relaxed code `softmax((logits + noise) / tau)` over the last dimension: `[.., V]`
/// and `[.., V]` → `[.., V]`.
///
/// # Panics
/// If the shapes differ.
pub fn gumbel_softmax<const D: usize>(cpu: Cpu, logits: Tensor<D>, noise: Tensor<D>, tau: f64) -> Tensor<D> {
    let shapes = [logits.dims(), noise.dims()];
    assert!(shapes[0] == shapes[1], "gumbel_softmax: logits {:?}, noise {:?}", shapes[0], shapes[1]);
    match inputs!(logits, noise) {
        Some(inputs) => apply(Relax { cpu, inverse: (1.0 / tau) as f32 }, inputs),
        None => gumbel_softmax_reference(logits, noise, tau),
    }
}

/// Computes [`gumbel_softmax`] with Burn's operations.
pub fn gumbel_softmax_reference<const D: usize>(logits: Tensor<D>, noise: Tensor<D>, tau: f64) -> Tensor<D> {
    softmax((logits + noise) / tau, D - 1)
}

/// Computes the mean over rows of `ln V + Σ q ln q` for `q = softmax(logits)`, the KL divergence to
/// the uniform distribution in nats: `[.., V]` → `[1]`.
pub fn kl_to_uniform<const D: usize>(cpu: Cpu, logits: Tensor<D>) -> Tensor<1> {
    match inputs!(logits) {
        Some(inputs) => apply(KlToUniform { cpu }, inputs),
        None => kl_to_uniform_reference(logits),
    }
}

/// Computes [`kl_to_uniform`] with Burn's operations.
pub fn kl_to_uniform_reference<const D: usize>(logits: Tensor<D>) -> Tensor<1> {
    let shape = logits.dims();
    let rows: usize = shape[..D - 1].iter().product();
    let log_q = log_softmax(logits, D - 1);
    (log_q.clone().exp() * log_q).sum() / rows as f64 + (shape[D - 1] as f64).ln()
}

#[derive(Debug, Clone)]
struct Relax {
    cpu: Cpu,
    inverse: f32,
}

impl Op<2> for Relax {
    /// The output.
    type Saved = FlexTensor;

    fn forward(&self, [logits, noise]: [&FlexTensor; 2], keep: bool) -> (FlexTensor, Option<FlexTensor>) {
        let noise = floats(noise);
        let out = relaxed_rows(logits, |row, logits, out| {
            let noise = &noise[row * logits.len()..(row + 1) * logits.len()];
            relax(self.cpu.supported(), logits, noise, self.inverse, out);
        });
        let saved = keep.then(|| out.clone());
        (out, saved)
    }

    fn backward(
        &self,
        _: [&FlexTensor; 2],
        code: &FlexTensor,
        gradient: &FlexTensor,
        [want_logits, want_noise]: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let out = code_backward(self.cpu, code, gradient, self.inverse);
        [want_logits.then(|| out.clone()), want_noise.then_some(out)]
    }
}

/// Computes each row of a relaxed code from its index and its logits. `body` must write the row
/// completely.
fn relaxed_rows(
    logits: &FlexTensor,
    body: impl Fn(usize, &[f32], &mut [MaybeUninit<f32>]) + Sync,
) -> FlexTensor {
    let (shape, v) = rows(logits);
    let logits = floats(logits);
    // SAFETY: `body` writes every row completely.
    #[allow(unsafe_code)]
    let out = unsafe {
        filled(logits.len(), |out| {
            let rows = out.par_chunks_mut(v).zip(logits.par_chunks(v)).enumerate();
            rows.for_each(|(row, (out, logits))| body(row, logits, out));
        })
    };
    tensor::<f32>(out, &shape)
}

#[derive(Debug, Clone)]
struct RelaxDrawn {
    cpu: Cpu,
    noise: GumbelNoise,
    inverse: f32,
}

impl Op<1> for RelaxDrawn {
    /// The output.
    type Saved = FlexTensor;

    fn forward(&self, [logits]: [&FlexTensor; 1], keep: bool) -> (FlexTensor, Option<FlexTensor>) {
        let out = relaxed_rows(logits, |row, logits, out| {
            relax_drawn(self.cpu.supported(), logits, self.noise.skip_rows(row), self.inverse, out);
        });
        let saved = keep.then(|| out.clone());
        (out, saved)
    }

    fn backward(
        &self,
        _: [&FlexTensor; 1],
        code: &FlexTensor,
        gradient: &FlexTensor,
        [needs_grad]: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        [needs_grad.then(|| code_backward(self.cpu, code, gradient, self.inverse))]
    }
}

/// Returns the gradient of the logits (and of the noise, which is the same), given the code and its
/// gradient.
fn code_backward(cpu: Cpu, code: &FlexTensor, gradient: &FlexTensor, inverse: f32) -> FlexTensor {
    let (shape, v) = rows(code);
    let (code, gradient) = (floats(code), floats(gradient));
    // SAFETY: every row is written completely.
    #[allow(unsafe_code)]
    let out = unsafe {
        filled(code.len(), |out| {
            let rows = out.par_chunks_mut(v).zip(code.par_chunks(v)).zip(gradient.par_chunks(v));
            rows.for_each(|((out, code), gradient)| {
                relax_backward(cpu.supported(), code, gradient, inverse, out);
            });
        })
    };
    tensor::<f32>(out, &shape)
}

vectorized! {
    fn relax(logits: &[f32], noise: &[f32], inverse: f32, out: &mut [MaybeUninit<f32>]) {
        for ((out, logit), noise) in out.iter_mut().zip(logits).zip(noise) {
            out.write(logit + noise);
        }
        // SAFETY: all values were written above.
        #[allow(unsafe_code)]
        let out = unsafe { out.assume_init_mut() };
        softmax_of(out, inverse);
    }
}

vectorized! {
    fn relax_drawn(logits: &[f32], noise: GumbelNoise, inverse: f32, out: &mut [MaybeUninit<f32>]) {
        for (out, logit) in out.iter_mut().zip(logits) {
            out.write(*logit);
        }
        // SAFETY: all values were written above.
        #[allow(unsafe_code)]
        let out = unsafe { out.assume_init_mut() };
        add_to_row(noise, out);
        softmax_of(out, inverse);
    }
}

/// Replaces `row` by `softmax(row · inverse)`.
#[inline(always)]
fn softmax_of(row: &mut [f32], inverse: f32) {
    row.iter_mut().for_each(|value| *value *= inverse);
    let log_sum = log_sum_exp(row);
    row.iter_mut().for_each(|value| *value = exp(*value - log_sum));
}

vectorized! {
    /// Writes the gradient of `softmax(z / tau)` with respect to `z`:
    /// `code · (gradient - Σ gradient · code) / tau`.
    fn relax_backward(code: &[f32], gradient: &[f32], inverse: f32, out: &mut [MaybeUninit<f32>]) {
        let mean_gradient = sum3(code, gradient, code, |code, gradient, _| code * gradient);
        for ((out, code), gradient) in out.iter_mut().zip(code).zip(gradient) {
            out.write(code * (gradient - mean_gradient) * inverse);
        }
    }
}

#[derive(Debug, Clone)]
struct KlToUniform {
    cpu: Cpu,
}

impl Op<1> for KlToUniform {
    /// The log-sum-exp and `Σ q ln q` of each row, interleaved.
    type Saved = Vec<f32>;

    fn forward(&self, [logits]: [&FlexTensor; 1], keep: bool) -> (FlexTensor, Option<Vec<f32>>) {
        let (shape, v) = rows(logits);
        let logits = floats(logits);
        let n = shape[..shape.len() - 1].iter().product::<usize>();
        let mut statistics = vec![0.0; 2 * n];
        statistics.par_chunks_mut(2).zip(logits.par_chunks(v)).for_each(|(statistics, logits)| {
            statistics.copy_from_slice(&negative_entropy(self.cpu.supported(), logits));
        });
        let total: f64 = statistics.iter().skip(1).step_by(2).map(|&nats| f64::from(nats)).sum();
        let kl = total / n as f64 + (v as f64).ln();
        (tensor(vec![kl as f32], &[1]), keep.then_some(statistics))
    }

    fn backward(
        &self,
        [logits]: [&FlexTensor; 1],
        statistics: &Vec<f32>,
        gradient: &FlexTensor,
        [needs_grad]: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        let (shape, v) = rows(logits);
        let logits = floats(logits);
        let weight = floats(gradient)[0] / (statistics.len() / 2) as f32;
        // SAFETY: every row is written completely.
        #[allow(unsafe_code)]
        let out = needs_grad.then(|| unsafe {
            filled(logits.len(), |out| {
                let rows = out.par_chunks_mut(v).zip(logits.par_chunks(v)).zip(statistics.par_chunks(2));
                rows.for_each(|((out, logits), statistics)| {
                    kl_backward(self.cpu.supported(), logits, [statistics[0], statistics[1]], weight, out);
                });
            })
        });
        [out.map(|out| tensor::<f32>(out, &shape))]
    }
}

vectorized! {
    /// Returns the log-sum-exp of a row and `Σ q ln q`, with `ln q = logit - log-sum-exp`.
    fn negative_entropy(logits: &[f32]) -> [f32; 2] {
        let log_sum = log_sum_exp(logits);
        [log_sum, sum(logits, |logit| (logit - log_sum) * exp(logit - log_sum))]
    }
}

vectorized! {
    /// Writes the gradient of `weight · Σ q ln q` with respect to the logits:
    /// `q (ln q - Σ q ln q) · weight`.
    fn kl_backward(logits: &[f32], statistics: [f32; 2], weight: f32, out: &mut [MaybeUninit<f32>]) {
        let [log_sum, negative_entropy] = statistics;
        for (out, logit) in out.iter_mut().zip(logits) {
            let log_q = logit - log_sum;
            out.write(exp(log_q) * (log_q - negative_entropy) * weight);
        }
    }
}

/// Returns the shape and the length of a row.
fn rows(logits: &FlexTensor) -> (Vec<usize>, usize) {
    let shape = dims(logits);
    let v = shape.last().copied().unwrap_or(1).max(1);
    (shape, v)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{constant, grad, hold_equal, leaf, values};

    #[test]
    fn gumbel_softmax_matches_reference() {
        for [rows, v] in [[1, 1], [3, 5], [70, 33], [9, 1000]] {
            hold_equal(
                || (leaf([2, rows, v], 1), leaf([2, rows, v], 2)),
                |cpu, (logits, noise)| gumbel_softmax(cpu, logits.clone(), noise.clone(), 0.3),
                |(logits, noise)| gumbel_softmax_reference(logits.clone(), noise.clone(), 0.3),
                |(logits, noise), g| vec![grad(logits, g), grad(noise, g)],
            );
        }
    }

    #[test]
    fn composed_noise_equals_cpu_noise() {
        for ([rows, v], noise) in [([1, 1], NOISE), ([3, 70], NOISE.skip_rows(5)), ([9, 1000], NOISE)] {
            let drawn = values(noise.composed(&constant(vec![0.0; rows * v], [rows, v])));
            for (drawn, expected) in drawn.iter().zip(noise.values(Cpu::best(), rows, v)) {
                assert!(
                    (drawn - expected).abs() < 1e-5 * (1.0 + expected.abs()),
                    "{drawn}, wanted {expected}"
                );
            }
        }
    }

    #[test]
    fn kl_to_uniform_matches_reference() {
        for [rows, v] in [[1, 2], [3, 5], [70, 33], [9, 1000]] {
            hold_equal(
                || leaf([2, rows, v], 1) * 3.0,
                |cpu, logits| kl_to_uniform(cpu, logits.clone()),
                |logits| kl_to_uniform_reference(logits.clone()),
                |_, _| Vec::new(),
            );
            hold_equal(
                || leaf([2, rows, v], 1),
                |cpu, logits| kl_to_uniform(cpu, logits.clone() * 3.0),
                |logits| kl_to_uniform_reference(logits.clone() * 3.0),
                |logits, g| vec![grad(logits, g)],
            );
        }
    }

    const NOISE: GumbelNoise = GumbelNoise { seed: 0x0123_4567_89ab_cdef, step: 1 << 40, first_row: 9 };

    #[test]
    fn gumbel_softmax_drawn_matches_reference() {
        for [rows, v] in [[1, 1], [3, 5], [70, 33], [9, 1000]] {
            hold_equal(
                || leaf([2, rows, v], 1),
                |cpu, logits| gumbel_softmax_drawn(cpu, logits.clone(), NOISE, 0.3),
                |logits| gumbel_softmax_drawn_reference(Cpu::best(), logits.clone(), NOISE, 0.3),
                |logits, g| vec![grad(logits, g)],
            );
        }
    }

    #[test]
    fn noise_is_finite_and_accurate_for_all_bits() {
        let bits = (0..4000).map(|i: u32| i.wrapping_mul(0x9e37_79b9)).chain([0, u32::MAX]);
        for bits in bits {
            let uniform = (f64::from(bits >> 9) + 0.5) / f64::from(1 << 23);
            let exact = -(-uniform.ln()).ln();
            let off = (f64::from(gumbel(bits)) - exact).abs();
            assert!(off < 1e-5 * exact.abs().max(1.0), "{bits}: {}, not {exact}", gumbel(bits));
        }
    }

    #[test]
    fn noise_has_the_gumbel_mean_and_variance() {
        let draws = NOISE.values(Cpu::best(), 100, 1000);
        let mean = draws.iter().sum::<f32>() / 1e5;
        let var = draws.iter().map(|g| (g - mean).powi(2)).sum::<f32>() / 1e5;
        assert!((mean - 0.5772).abs() < 0.02, "mean {mean}"); // Euler's constant
        assert!((var - 1.6449).abs() < 0.05, "variance {var}"); // π²/6
    }

    /// Noise is a function of (seed, step, row, column). It does not depend on the threads, the CPU
    /// or the number of rows.
    #[test]
    fn noise_depends_only_on_seed_step_row_and_column() {
        let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        let best = Cpu::best();
        let whole = pool(1).install(|| NOISE.values(best, 40, 200));
        for cpu in Cpu::all() {
            let again = pool(4).install(|| NOISE.values(cpu, 40, 200));
            let off = again.iter().zip(&whole).fold(0.0, |most: f32, (a, b)| most.max((a - b).abs()));
            assert!(off < 1e-5, "{cpu}: off by {off}"); // the logarithms may differ in the last bit
        }
        assert_eq!(NOISE.skip_rows(7).values(best, 3, 200), whole[1400..2000]);
        let other = |noise: GumbelNoise| {
            let same = noise.values(best, 40, 200).iter().zip(&whole).filter(|(a, b)| a == b).count();
            assert!(same < 10, "{noise:?}: {same} of 8000 alike");
        };
        other(GumbelNoise { seed: NOISE.seed ^ 1 << 63, ..NOISE });
        other(GumbelNoise { step: NOISE.step + 1, ..NOISE });
        other(GumbelNoise { first_row: 49, ..NOISE });
    }
}
