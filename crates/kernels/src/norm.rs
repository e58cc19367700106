//! Layer normalisation over the last dimension.

use std::mem::MaybeUninit;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use burn::tensor::module::layer_norm as burn_layer_norm;
use half::bf16;
use rayon::prelude::*;

use crate::composed::narrowed;
use crate::cpu::{Cpu, vectorized};
use crate::math::{Number, sum, sum3, with_numbers};
use crate::memory::filled;
use crate::op::{Op, apply, dims, floats, inputs, numbers, tensor};

/// Rows that one task normalises.
const ROWS: usize = 64;

/// Computes `(x - mean) / sqrt(var + epsilon) · gain + bias`: `x` `[.., d]`, `gain` and `bias`
/// `[d]` → `[.., d]`.
///
/// If products are of bf16, the output is a bf16 tensor, which the next kernel reads; statistics
/// are f32.
///
/// # Panics
/// If the shapes do not fit.
pub fn layer_norm<const D: usize>(
    cpu: Cpu,
    x: Tensor<D>,
    gain: Tensor<1>,
    bias: Tensor<1>,
    epsilon: f64,
) -> Tensor<D> {
    let d = x.dims()[D - 1];
    let [gains, biases] = [gain.dims()[0], bias.dims()[0]];
    assert!(
        d > 0 && gains == d && biases == d,
        "layer_norm: {gains} gains and {biases} biases, wanted one for each of {d} values per row, at least one"
    );
    match inputs!(x, gain, bias) {
        Some(inputs) => apply(Norm { cpu, epsilon: epsilon as f32 }, inputs),
        None => layer_norm_composed(cpu, x, gain, bias, epsilon),
    }
}

/// Computes [`layer_norm`] on devices other than the CPU.
fn layer_norm_composed<const D: usize>(
    cpu: Cpu,
    x: Tensor<D>,
    gain: Tensor<1>,
    bias: Tensor<1>,
    epsilon: f64,
) -> Tensor<D> {
    narrowed(cpu, layer_norm_reference(x, gain, bias, epsilon))
}

/// Computes [`layer_norm`] with Burn's operations.
pub fn layer_norm_reference<const D: usize>(
    x: Tensor<D>,
    gain: Tensor<1>,
    bias: Tensor<1>,
    epsilon: f64,
) -> Tensor<D> {
    burn_layer_norm(x, gain, Some(bias), epsilon)
}

#[derive(Debug, Clone)]
struct Norm {
    cpu: Cpu,
    epsilon: f32,
}

impl Op<3> for Norm {
    /// The mean and inverse standard deviation of each row, interleaved.
    type Saved = Vec<f32>;

    fn forward(&self, [x, gain, bias]: [&FlexTensor; 3], keep: bool) -> (FlexTensor, Option<Vec<f32>>) {
        let (output, statistics) = match self.cpu.bf16() {
            true => self.run::<bf16>(x, floats(gain), floats(bias)),
            false => self.run::<f32>(x, floats(gain), floats(bias)),
        };
        (output, keep.then_some(statistics))
    }

    fn backward(
        &self,
        [x, gain, _]: [&FlexTensor; 3],
        statistics: &Vec<f32>,
        gradient: &FlexTensor,
        needs_grad: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let (x, gain, shape) = (floats(x), floats(gain), dims(x));
        let d = gain.len();
        let mut parts = Vec::new();
        // SAFETY: every part of the gradient is written completely.
        #[allow(unsafe_code)]
        let dx = unsafe {
            filled(x.len(), |dx| {
                let rows = dx.par_chunks_mut(ROWS * d).zip(x.par_chunks(ROWS * d));
                let tasks = rows.zip(statistics.par_chunks(2 * ROWS)).enumerate();
                let done = tasks.map(|(i, ((dx, x), statistics))| {
                    // Each task sums the gradients of gain and bias over its rows; the partial sums
                    // are added below, in order.
                    let mut sums = vec![0.0; 2 * d];
                    let gradient = numbers(gradient).slice(i * ROWS * d, x.len());
                    with_numbers!(gradient, gradient => {
                        backward_rows(self.cpu.supported(), x, gradient, gain, statistics, dx, &mut sums);
                    });
                    sums
                });
                parts = done.collect::<Vec<_>>();
            })
        };
        let sums = |offset: usize| {
            let mut sums = vec![0.0; d];
            parts
                .iter()
                .for_each(|part| sums.iter_mut().zip(&part[offset..]).for_each(|(sum, part)| *sum += part));
            tensor(sums, &[d])
        };
        [
            needs_grad[0].then(|| tensor(dx, &shape)),
            needs_grad[1].then(|| sums(0)),
            needs_grad[2].then(|| sums(d)),
        ]
    }
}

impl Norm {
    fn run<T: Number>(&self, x: &FlexTensor, gain: &[f32], bias: &[f32]) -> (FlexTensor, Vec<f32>) {
        let (values, d) = (floats(x), gain.len());
        let mut statistics = vec![0.0; 2 * (values.len() / d.max(1))];
        // SAFETY: every part of the output is written completely.
        #[allow(unsafe_code)]
        let output = unsafe {
            filled(values.len(), |output| {
                let rows = output.par_chunks_mut(ROWS * d).zip(values.par_chunks(ROWS * d));
                rows.zip(statistics.par_chunks_mut(2 * ROWS)).for_each(|((output, x), statistics)| {
                    forward_rows(self.cpu.supported(), x, gain, bias, self.epsilon, output, statistics);
                });
            })
        };
        (tensor::<T>(output, &dims(x)), statistics)
    }
}

/// Returns the mean of a row and the inverse of its standard deviation, `1 / √(var + epsilon)`.
#[inline(always)]
pub(crate) fn moments(x: &[f32], epsilon: f32) -> [f32; 2] {
    let mean = sum(x, |x| x) / x.len() as f32;
    let variance = sum(x, |x| (x - mean) * (x - mean)) / x.len() as f32;
    [mean, 1.0 / (variance + epsilon).sqrt()]
}

vectorized! {
    fn forward_rows[T: Number](
        x: &[f32],
        gain: &[f32],
        bias: &[f32],
        epsilon: f32,
        output: &mut [MaybeUninit<T>],
        statistics: &mut [f32],
    ) {
        let d = gain.len();
        let rows = x.chunks_exact(d).zip(output.chunks_exact_mut(d)).zip(statistics.chunks_exact_mut(2));
        for ((x, output), statistics) in rows {
            let [mean, inverse] = moments(x, epsilon);
            for (((output, x), gain), bias) in output.iter_mut().zip(x).zip(gain).zip(bias) {
                output.write(T::nearest((x - mean) * inverse * gain + bias));
            }
            statistics.copy_from_slice(&[mean, inverse]);
        }
    }
}

vectorized! {
    /// Writes `dx`, and adds the gradients of gain (first half) and bias (second half) to `sums`.
    /// With `x̂ = (x - mean) · inverse` and `g = gradient · gain`, and means over the row:
    ///
    /// ```text
    /// dx    = inverse · (g - mean(g) - x̂ · mean(g · x̂))
    /// dgain = Σ_rows gradient · x̂
    /// dbias = Σ_rows gradient
    /// ```
    fn backward_rows[G: Number](
        x: &[f32],
        gradient: &[G],
        gain: &[f32],
        statistics: &[f32],
        dx: &mut [MaybeUninit<f32>],
        sums: &mut [f32],
    ) {
        let d = gain.len();
        let (d_gain, d_bias) = sums.split_at_mut(d);
        let rows = x.chunks_exact(d).zip(gradient.chunks_exact(d)).zip(dx.chunks_exact_mut(d));
        for (((x, gradient), dx), statistics) in rows.zip(statistics.chunks_exact(2)) {
            let [mean, inverse] = [statistics[0], statistics[1]];
            // mean(g) and mean(g · x̂)
            let mean_g = sum3(x, gradient, gain, |_, g, gain| g * gain) / d as f32;
            let mean_g_unit = sum3(x, gradient, gain, |x, g, gain| g * gain * ((x - mean) * inverse)) / d as f32;
            for (((d_gain, d_bias), x), gradient) in d_gain.iter_mut().zip(&mut *d_bias).zip(x).zip(gradient) {
                *d_gain += gradient.value() * ((x - mean) * inverse);
                *d_bias += gradient.value();
            }
            for (((dx, x), gradient), gain) in dx.iter_mut().zip(x).zip(gradient).zip(gain) {
                let unit = (x - mean) * inverse;
                dx.write(inverse * (gradient.value() * gain - mean_g - unit * mean_g_unit));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{grad, hold_equal, leaf};

    #[test]
    fn layer_norm_at_awkward_sizes_matches_reference() {
        for [rows, d] in [[1, 5], [3, 7], [130, 48], [65, 33]] {
            hold_equal(
                || (leaf([1, rows, d], 1), leaf([d], 2), leaf([d], 3)),
                |cpu, (x, gain, bias)| layer_norm(cpu, x.clone(), gain.clone(), bias.clone(), 1e-5),
                |(x, gain, bias)| layer_norm_reference(x.clone(), gain.clone(), bias.clone(), 1e-5),
                |(x, gain, bias), g| vec![grad(x, g), grad(gain, g), grad(bias, g)],
            );
            hold_equal(
                || (leaf([1, rows, d], 1), leaf([d], 2), leaf([d], 3)),
                |cpu, (x, gain, bias)| layer_norm_composed(cpu, x.clone(), gain.clone(), bias.clone(), 1e-5),
                |(x, gain, bias)| layer_norm_reference(x.clone(), gain.clone(), bias.clone(), 1e-5),
                |(x, gain, bias), g| vec![grad(x, g), grad(gain, g), grad(bias, g)],
            );
        }
    }
}
