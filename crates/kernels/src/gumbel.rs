//! The bottleneck of the dVAE (paper §2.1): Gumbel noise, the relaxed code it makes, and the KL to the uniform prior.

use std::mem::MaybeUninit;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use burn::tensor::activation::{log_softmax, softmax};
use rayon::prelude::*;

use crate::cpu::{Cpu, vectorized};
use crate::math::{exp, ln, log_sum_exp, sum, sum3};
use crate::memory::filled;
use crate::op::{Input, Op, apply, dims, floats, tensor};

/// Values that one task makes noise of.
const PART: usize = 1 << 14;

/// `-ln(-ln U)` of one uniform each. U keeps 23 of the random bits and a half, so that it never rounds to 0 or 1, where
/// the noise would be infinite.
pub fn gumbel(bits: &[u32]) -> Vec<f32> {
    let isa = Cpu::current().isa();
    // SAFETY: every part is written whole.
    #[allow(unsafe_code)]
    unsafe {
        filled(bits.len(), |out| {
            out.par_chunks_mut(PART)
                .zip(bits.par_chunks(PART))
                .for_each(|(out, bits)| gumbel_part(isa, bits, out));
        })
    }
}

vectorized! {
    fn gumbel_part(bits: &[u32], out: &mut [MaybeUninit<f32>]) {
        for (out, bits) in out.iter_mut().zip(bits) {
            let uniform = ((bits >> 9) as f32 + 0.5) / (1 << 23) as f32;
            out.write(-ln(-ln(uniform)));
        }
    }
}

/// The relaxed code `softmax((logits + noise) / tau)` over the last dimension: `[.., V]` and `[.., V]` → `[.., V]`.
///
/// # Panics
/// If the shapes differ.
pub fn gumbel_softmax<const D: usize>(logits: Tensor<D>, noise: Tensor<D>, tau: f64) -> Tensor<D> {
    let shapes = [logits.dims(), noise.dims()];
    assert!(shapes[0] == shapes[1], "gumbel_softmax: logits {:?}, noise {:?}", shapes[0], shapes[1]);
    match (Input::new(logits.clone()), Input::new(noise.clone())) {
        (Some(logits), Some(noise)) => {
            apply(Relax { cpu: Cpu::current(), inverse: (1.0 / tau) as f32 }, [logits, noise])
        }
        _ => gumbel_softmax_reference(logits, noise, tau),
    }
}

/// [`gumbel_softmax`] in Burn's operations.
pub fn gumbel_softmax_reference<const D: usize>(logits: Tensor<D>, noise: Tensor<D>, tau: f64) -> Tensor<D> {
    softmax((logits + noise) / tau, D - 1)
}

/// Mean over rows of `ln V + Σ q ln q` for `q = softmax(logits)`, the KL to the uniform categorical in nats:
/// `[.., V]` → `[1]`.
pub fn kl_to_uniform<const D: usize>(logits: Tensor<D>) -> Tensor<1> {
    match Input::new(logits.clone()) {
        Some(logits) => apply(KlToUniform { cpu: Cpu::current() }, [logits]),
        None => kl_to_uniform_reference(logits),
    }
}

/// [`kl_to_uniform`] in Burn's operations.
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
        let (shape, v) = rows(logits);
        let (logits, noise) = (floats(logits), floats(noise));
        // SAFETY: every row is written whole.
        #[allow(unsafe_code)]
        let out = unsafe {
            filled(logits.len(), |out| {
                let rows = out.par_chunks_mut(v).zip(logits.par_chunks(v)).zip(noise.par_chunks(v));
                rows.for_each(|((out, logits), noise)| {
                    relax(self.cpu.isa(), logits, noise, self.inverse, out)
                });
            })
        };
        let out = tensor::<f32>(out, &shape);
        let saved = keep.then(|| out.clone());
        (out, saved)
    }

    fn backward(
        &self,
        [logits, _]: [&FlexTensor; 2],
        code: &FlexTensor,
        gradient: &FlexTensor,
        [want_logits, want_noise]: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let (shape, v) = rows(logits);
        let (code, gradient) = (floats(code), floats(gradient));
        // SAFETY: every row is written whole.
        #[allow(unsafe_code)]
        let out = unsafe {
            filled(code.len(), |out| {
                let rows = out.par_chunks_mut(v).zip(code.par_chunks(v)).zip(gradient.par_chunks(v));
                rows.for_each(|((out, code), gradient)| {
                    relax_backward(self.cpu.isa(), code, gradient, self.inverse, out);
                });
            })
        };
        let out = tensor::<f32>(out, &shape);
        [want_logits.then(|| out.clone()), want_noise.then_some(out)]
    }
}

vectorized! {
    fn relax(logits: &[f32], noise: &[f32], inverse: f32, out: &mut [MaybeUninit<f32>]) {
        for ((out, logit), noise) in out.iter_mut().zip(logits).zip(noise) {
            out.write((logit + noise) * inverse);
        }
        // SAFETY: written just now.
        #[allow(unsafe_code)]
        let out = unsafe { out.assume_init_mut() };
        let log_sum = log_sum_exp(out);
        out.iter_mut().for_each(|value| *value = exp(*value - log_sum));
    }
}

vectorized! {
    /// `code · (gradient - Σ gradient · code) / tau`
    fn relax_backward(code: &[f32], gradient: &[f32], inverse: f32, out: &mut [MaybeUninit<f32>]) {
        let along = sum3(code, gradient, code, |code, gradient, _| code * gradient);
        for ((out, code), gradient) in out.iter_mut().zip(code).zip(gradient) {
            out.write(code * (gradient - along) * inverse);
        }
    }
}

#[derive(Debug, Clone)]
struct KlToUniform {
    cpu: Cpu,
}

impl Op<1> for KlToUniform {
    /// Log-sum-exp and `Σ q ln q` of each row, in turn.
    type Saved = Vec<f32>;

    fn forward(&self, [logits]: [&FlexTensor; 1], keep: bool) -> (FlexTensor, Option<Vec<f32>>) {
        let (shape, v) = rows(logits);
        let logits = floats(logits);
        let n = shape[..shape.len() - 1].iter().product::<usize>();
        let mut statistics = vec![0.0; 2 * n];
        statistics.par_chunks_mut(2).zip(logits.par_chunks(v)).for_each(|(statistics, logits)| {
            statistics.copy_from_slice(&negative_entropy(self.cpu.isa(), logits));
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
        [wanted]: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        let (shape, v) = rows(logits);
        let logits = floats(logits);
        let weight = floats(gradient)[0] / (statistics.len() / 2) as f32;
        // SAFETY: every row is written whole.
        #[allow(unsafe_code)]
        let out = wanted.then(|| unsafe {
            filled(logits.len(), |out| {
                let rows = out.par_chunks_mut(v).zip(logits.par_chunks(v)).zip(statistics.par_chunks(2));
                rows.for_each(|((out, logits), statistics)| {
                    kl_backward(self.cpu.isa(), logits, [statistics[0], statistics[1]], weight, out);
                });
            })
        });
        [out.map(|out| tensor::<f32>(out, &shape))]
    }
}

vectorized! {
    /// Log-sum-exp of a row and `Σ q ln q`.
    fn negative_entropy(logits: &[f32]) -> [f32; 2] {
        let log_sum = log_sum_exp(logits);
        [log_sum, sum(logits, |logit| (logit - log_sum) * exp(logit - log_sum))]
    }
}

vectorized! {
    /// `q (ln q - Σ q ln q) · weight`
    fn kl_backward(logits: &[f32], statistics: [f32; 2], weight: f32, out: &mut [MaybeUninit<f32>]) {
        let [log_sum, negative_entropy] = statistics;
        for (out, logit) in out.iter_mut().zip(logits) {
            let log_q = logit - log_sum;
            out.write(exp(log_q) * (log_q - negative_entropy) * weight);
        }
    }
}

/// The shape, and the length of a row.
fn rows(logits: &FlexTensor) -> (Vec<usize>, usize) {
    let shape = dims(logits);
    let v = shape.last().copied().unwrap_or(1).max(1);
    (shape, v)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{grad, hold_equal, leaf};

    #[test]
    fn the_relaxed_code_is_its_reference() {
        for [rows, v] in [[1, 1], [3, 5], [70, 33], [9, 1000]] {
            hold_equal(
                || (leaf([2, rows, v], 1), leaf([2, rows, v], 2)),
                |(logits, noise)| gumbel_softmax(logits.clone(), noise.clone(), 0.3),
                |(logits, noise)| gumbel_softmax_reference(logits.clone(), noise.clone(), 0.3),
                |(logits, noise), g| vec![grad(logits, g), grad(noise, g)],
            );
        }
    }

    #[test]
    fn the_kl_is_its_reference() {
        for [rows, v] in [[1, 2], [3, 5], [70, 33], [9, 1000]] {
            hold_equal(
                || leaf([2, rows, v], 1) * 3.0,
                |logits| kl_to_uniform(logits.clone()),
                |logits| kl_to_uniform_reference(logits.clone()),
                |_, _| Vec::new(),
            );
            hold_equal(
                || leaf([2, rows, v], 1),
                |logits| kl_to_uniform(logits.clone() * 3.0),
                |logits| kl_to_uniform_reference(logits.clone() * 3.0),
                |logits, g| vec![grad(logits, g)],
            );
        }
    }

    #[test]
    fn noise_is_finite_at_both_ends_and_exact_between_on_every_processor() {
        let bits: Vec<u32> =
            (0..4000).map(|i: u32| i.wrapping_mul(0x9e37_79b9)).chain([0, u32::MAX]).collect();
        for cpu in Cpu::all() {
            for (bits, got) in bits.iter().zip(cpu.scope(|| gumbel(&bits))) {
                let uniform = (f64::from(bits >> 9) + 0.5) / f64::from(1 << 23);
                let exact = -(-uniform.ln()).ln();
                let off = (f64::from(got) - exact).abs();
                assert!(off < 1e-5 * exact.abs().max(1.0), "{bits}, {cpu}: {got}, not {exact}");
            }
        }
    }
}
