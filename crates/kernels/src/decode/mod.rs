//! What decoding needs beside training's kernels: linear maps packed once, and attention of one query over a cache.
//!
//! Plain arrays in and out. A row's result does not depend on the rows beside it, so neither does a picture's on the
//! pictures that are drawn with it.

mod attend;
mod states;

pub use attend::attend;
pub use states::{States, Visible};

use crate::cpu::{Cpu, vectorized};
use crate::gemm::{Epilogue, Numbers, Operand, Out, Panels};
use crate::math::gelu;
use crate::norm::moments;

/// A linear map whose weights are packed.
#[derive(Debug, Clone)]
pub struct PackedLinear {
    panels: Panels,
    bias: Vec<f32>,
}

/// What is done with `x W + b`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// It is the output.
    Set,
    /// The fast GELU of it is.
    Gelu,
    /// It is added to what is there.
    Add,
}

impl PackedLinear {
    /// Packs `weight` `[d_in, d_out]` with `bias` `[d_out]`.
    ///
    /// # Panics
    /// If the sizes do not fit.
    pub fn new(cpu: Cpu, weight: &[f32], bias: Vec<f32>) -> PackedLinear {
        let n = bias.len();
        assert!(
            n > 0 && weight.len().is_multiple_of(n),
            "{} weights and {n} biases do not fit",
            weight.len()
        );
        let operand = Operand::across(Numbers::F32(weight), n);
        PackedLinear { panels: Panels::new(cpu, [n, weight.len() / n], operand), bias }
    }

    /// `finish(x W + b)` of rows `x` `[rows, d_in]` into `out` `[rows, d_out]`.
    ///
    /// # Panics
    /// If the sizes do not fit.
    pub fn apply(&self, x: &[f32], finish: Finish, out: &mut [f32]) {
        let [n, k] = self.panels.shape();
        let rows = out.len() / n;
        assert!(
            out.len() == rows * n && x.len() == rows * k,
            "a packed [{k}, {n}] map of {} numbers into {}",
            x.len(),
            out.len()
        );
        let epilogue = Finished { bias: &self.bias, finish, out: Out::new(out, n) };
        self.panels.multiply(rows, Operand::along(Numbers::F32(x), k), &epilogue);
    }
}

struct Finished<'a> {
    bias: &'a [f32],
    finish: Finish,
    out: Out<'a, f32>,
}

impl Epilogue for Finished<'_> {
    #[inline(always)]
    fn take(&self, m: usize, n: usize, sums: &mut [f32]) {
        let bias = &self.bias[n..n + sums.len()];
        // SAFETY: `gemm` hands out each sum once.
        #[allow(unsafe_code)]
        let out = unsafe { self.out.row(m, n, sums.len()) };
        for ((out, sum), bias) in out.iter_mut().zip(sums).zip(bias) {
            let value = *sum + bias;
            *out = match self.finish {
                Finish::Set => value,
                Finish::Gelu => gelu(value),
                Finish::Add => *out + value,
            };
        }
    }
}

/// Layer normalisation of rows `x` into `out`; `gain` and `bias` `[d]`.
///
/// # Panics
/// If the sizes do not fit.
pub fn normalise(cpu: Cpu, x: &[f32], gain: &[f32], bias: &[f32], epsilon: f32, out: &mut [f32]) {
    let d = gain.len();
    let fits = x.len().is_multiple_of(d) && [bias.len(), out.len()] == [d, x.len()];
    assert!(fits, "normalise: {} numbers, {d} gains, {} biases", x.len(), bias.len());
    normalise_rows(cpu.isa(), x, gain, bias, epsilon, out);
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
