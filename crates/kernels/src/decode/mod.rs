//! Kernels for decoding that training does not need: linear maps with packed weights, and attention
//! of one query per sequence over a KV cache.
//!
//! Inputs and outputs are plain arrays. The result of a row does not depend on the other rows, so
//! pictures that are generated in one batch do not affect each other.

mod attend;
mod composed;
mod kv_cache;

pub use attend::{Sequence, attend};
pub use composed::{CachedKeys, attend_composed};
pub use kv_cache::{KvCache, Visible};

pub use crate::math::largest;

use crate::cpu::{Cpu, vectorized};
use crate::gemm::{FloatSlice, Int8Panels, Operand, Out, Panels, TileEpilogue, quantize};
use crate::math::{exp, gelu};
use crate::norm::moments;

/// A linear map with packed weights.
#[derive(Debug, Clone)]
pub struct PackedLinear {
    weight: Packed,
    bias: Vec<f32>,
}

#[derive(Debug, Clone)]
enum Packed {
    Full(Panels),
    Int8(Int8Panels),
}

/// The format in which weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    /// The dtype that is multiplied, f32 or bf16.
    Full,
    /// 8 bits and a scale per output. Less memory is read, and reading it limits the speed of
    /// products with one row.
    Int8,
}

/// Returns `weight` `[d_in, d_out]`, rounded as [`Weights::Int8`] stores it.
pub fn int8_rounded(weight: &[f32], d_out: usize) -> Vec<f32> {
    let (codes, steps) = quantize(weight, d_out);
    codes.iter().zip(steps.iter().cycle()).map(|(&code, step)| f32::from(code) * step).collect()
}

/// What is done with `x W + b`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// Writes it to the output.
    Set,
    /// Writes its fast GELU to the output.
    Gelu,
    /// Adds it to the output.
    Add,
}

impl PackedLinear {
    /// Packs `weight` `[d_in, d_out]` with `bias` `[d_out]`.
    ///
    /// # Panics
    /// If the sizes do not fit.
    pub fn new(cpu: Cpu, weight: &[f32], bias: Vec<f32>, storage: Weights) -> PackedLinear {
        let n = bias.len();
        assert!(
            n > 0 && weight.len().is_multiple_of(n),
            "{} weights and {n} biases, wanted at least one bias and as many weights in each row",
            weight.len()
        );
        let operand = Operand::across(FloatSlice::F32(weight), n);
        let weight = match storage {
            Weights::Full => Packed::Full(Panels::new(cpu, [n, weight.len() / n], operand)),
            Weights::Int8 => Packed::Int8(Int8Panels::new(cpu, weight, n)),
        };
        PackedLinear { weight, bias }
    }

    /// Computes `x W + b` for rows `x` `[rows, d_in]` and applies `finish` to it, with output `out`
    /// `[rows, d_out]`.
    ///
    /// # Panics
    /// If the sizes do not fit.
    pub fn apply(&self, x: &[f32], finish: Epilogue, out: &mut [f32]) {
        let [n, k] = match &self.weight {
            Packed::Full(panels) => panels.shape(),
            Packed::Int8(panels) => panels.shape(),
        };
        let rows = out.len() / n;
        assert!(
            out.len() == rows * n && x.len() == rows * k,
            "a packed [{k}, {n}] map of {} numbers into {}, wanted rows of {k} and {n}",
            x.len(),
            out.len()
        );
        let epilogue = Finished { bias: &self.bias, finish, out: Out::new(out, n) };
        match &self.weight {
            Packed::Full(panels) => panels.multiply(rows, Operand::along(FloatSlice::F32(x), k), &epilogue),
            Packed::Int8(panels) => panels.multiply(rows, x, &epilogue),
        }
    }
}

struct Finished<'a> {
    bias: &'a [f32],
    finish: Epilogue,
    out: Out<'a, f32>,
}

impl TileEpilogue for Finished<'_> {
    #[inline(always)]
    fn take(&self, m: usize, n: usize, sums: &mut [f32]) {
        let bias = &self.bias[n..n + sums.len()];
        // SAFETY: `gemm` passes each sum once.
        #[allow(unsafe_code)]
        let out = unsafe { self.out.row(m, n, sums.len()) };
        sums.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
        // The match is outside the loops, because inside it would prevent their vectorization.
        match self.finish {
            Epilogue::Set => out.copy_from_slice(sums),
            Epilogue::Gelu => out.iter_mut().zip(sums).for_each(|(out, sum)| *out = gelu(*sum)),
            Epilogue::Add => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += *sum),
        }
    }
}

/// Computes the layer normalisation of rows `x` into `out`; `gain` and `bias` are `[d]`.
///
/// # Panics
/// If the sizes do not fit.
pub fn normalise(cpu: Cpu, x: &[f32], gain: &[f32], bias: &[f32], epsilon: f32, out: &mut [f32]) {
    let d = gain.len();
    let (n, sizes) = (x.len(), [bias.len(), out.len()]);
    let fits = d > 0 && n.is_multiple_of(d) && sizes == [d, n];
    assert!(
        fits,
        "normalise: {sizes:?} biases and outputs, wanted [{d}, {n}]; and {n} numbers, wanted rows of {d}"
    );
    normalise_rows(cpu.supported(), x, gain, bias, epsilon, out);
}

/// Returns `e^((logit − max) / temperature)` for each logit, with `max` the largest logit: the
/// softmax before the division by its sum.
pub fn softmax_weights(cpu: Cpu, logits: &[f32], temperature: f32) -> Vec<f32> {
    let mut weights = logits.to_vec();
    exponentials(cpu.supported(), 1.0 / temperature, &mut weights);
    weights
}

vectorized! {
    fn exponentials(scale: f32, values: &mut [f32]) {
        let top = largest(values);
        values.iter_mut().for_each(|value| *value = exp((*value - top) * scale));
    }
}

vectorized! {
    fn normalise_rows(x: &[f32], gain: &[f32], bias: &[f32], epsilon: f32, out: &mut [f32]) {
        let d = gain.len();
        for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
            let [mean, inverse] = moments(x, epsilon);
            for (((out, x), gain), bias) in out.iter_mut().zip(x).zip(gain).zip(bias) {
                *out = (x - mean) * inverse * gain + bias;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear_reference;
    use crate::testing::{assert_close, leaf, noise, tolerance, values};
    use crate::{Activation, Cpu};

    #[test]
    fn packed_map_equals_linear_map_of_its_stored_weights() {
        for [rows, d_in, d_out] in [[1, 1, 1], [1, 48, 67], [3, 7, 16], [17, 33, 130], [64, 384, 96]] {
            let (x, weight, bias) = (noise(rows * d_in, 1), noise(d_in * d_out, 2), noise(d_out, 3));
            for (storage, rounded) in
                [(Weights::Full, weight.clone()), (Weights::Int8, int8_rounded(&weight, d_out))]
            {
                let w = burn::tensor::TensorData::new(rounded, [d_in, d_out]);
                let w = burn::tensor::Tensor::from_data(w, &burn::tensor::Device::flex().autodiff());
                let expected = linear_reference(leaf([rows, d_in], 1), w, leaf([d_out], 3), Activation::None);
                let expected = values(expected.without_autodiff());
                for cpu in Cpu::all() {
                    let mut got = vec![0.0; rows * d_out];
                    PackedLinear::new(cpu, &weight, bias.clone(), storage).apply(&x, Epilogue::Set, &mut got);
                    assert_close(&format!("{storage:?}, {cpu}"), &got, &expected, tolerance(cpu));
                }
            }
        }
    }

    #[test]
    fn int8_error_is_at_most_half_a_step() {
        let weight = [noise(64, 1), vec![0.0; 8]].concat(); // eight columns of nine rows
        let rounded = int8_rounded(&weight, 8);
        for column in 0..8 {
            let in_column =
                |values: &[f32]| values.iter().skip(column).step_by(8).copied().collect::<Vec<f32>>();
            let (exact, rounded) = (in_column(&weight), in_column(&rounded));
            let step = exact.iter().fold(0.0_f32, |top, value| top.max(value.abs())) / 127.0;
            assert!(exact.iter().zip(rounded).all(|(exact, got)| (exact - got).abs() <= 0.5001 * step));
        }
        assert_eq!(int8_rounded(&[0.0; 4], 2), [0.0; 4]);
    }
}
