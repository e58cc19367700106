//! Cross-entropy fused with the last linear map. Logits exist for one chunk of rows at a time; the
//! forward pass computes their gradient while they exist, so they are neither stored nor computed
//! again.
//!
//! Per chunk, with `P = softmax(X W + b)` and `Y` the one-hot targets:
//!
//! ```text
//! loss += Σ_rows (ln Σ exp(logits) - logits[target]) / rows
//! G     = (P - Y) / rows         gradient of the logits
//! dX    = G Wᵀ
//! dW   += Xᵀ G
//! db   += column sums of G
//! ```
//!
//! The backward pass multiplies these gradients by the gradient of the loss.

use std::mem::MaybeUninit;

use burn::backend::flex::FlexTensor;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData};
use half::bf16;
use rayon::prelude::*;

use crate::composed::widened;
use crate::cpu::{Cpu, vectorized};
use crate::dot::dot_reference;
use crate::gemm::{Affine, FloatSlice, Operand, Out, ROWS, Store, TileEpilogue, gemm};
use crate::linear::column_sums;
use crate::math::{self, Number, exp, with_numbers};
use crate::memory::filled;
use crate::op::{Op, apply, dims, floats, inputs, is_bf16, numbers, tensor};

/// The approximate number of logits per chunk. Larger chunks use more memory; each chunk packs the
/// weights again and adds to their gradient.
const CHUNK: usize = 1 << 21;
/// The approximate number of logits per chunk on other devices: 128 MB.
const DEVICE_CHUNK: usize = 1 << 25;

/// Computes the mean over rows of `-ln softmax(x W + b)[target]`, in nats: `x` `[rows, d]`, `w`
/// `[d, V]`, `b` `[V]`, one target per row → `[1]`.
///
/// # Panics
/// If the shapes do not fit, a target is not less than `V`, or there are no rows.
pub fn cross_entropy(cpu: Cpu, x: Tensor<2>, w: Tensor<2>, b: Tensor<1>, targets: &[u32]) -> Tensor<1> {
    check(&x, &w, &b, targets);
    match inputs!(x, w, b) {
        Some(inputs) => apply(CrossEntropy { cpu, targets: targets.to_vec() }, inputs),
        None => cross_entropy_composed(x, w, b, targets),
    }
}

/// Computes [`cross_entropy`] on devices other than the CPU. Logits are products of f32 (paper
/// §D.2).
fn cross_entropy_composed(x: Tensor<2>, w: Tensor<2>, b: Tensor<1>, targets: &[u32]) -> Tensor<1> {
    let rows = DEVICE_CHUNK / w.dims()[1];
    composed_in_chunks(widened(x), w, b, targets, rows.max(1))
}

/// Computes [`cross_entropy`] of f32 inputs for `chunk` rows at a time, as the kernel does: the
/// gradients are computed with the loss.
fn composed_in_chunks(x: Tensor<2>, w: Tensor<2>, b: Tensor<1>, targets: &[u32], chunk: usize) -> Tensor<1> {
    let is_tracked = x.device().is_autodiff();
    let [x0, w0] = [&x, &w].map(|input| input.clone().without_autodiff());
    let b0 = b.clone().without_autodiff();
    let rows = targets.len();
    let mut loss = b0.zeros_like().narrow(0, 0, 1);
    let (mut dx, mut dw, mut db) = (Vec::new(), w0.zeros_like(), b0.zeros_like());
    for (i, targets) in targets.chunks(chunk).enumerate() {
        let x = x0.clone().narrow(0, i * chunk, targets.len());
        let targets = column(targets, &x0.device());
        let logits = x.clone().matmul(w0.clone()) + b0.clone().unsqueeze();
        let log_p = log_softmax(logits, 1);
        loss = loss - log_p.clone().gather(1, targets.clone()).sum() / rows as f64;
        if is_tracked {
            let ones = Tensor::ones(targets.dims(), &x0.device());
            let gradient = log_p.exp().scatter(1, targets, -ones, IndexingUpdateOp::Add) / rows as f64;
            dx.push(gradient.clone().matmul(w0.clone().transpose()));
            dw = dw + x.transpose().matmul(gradient.clone());
            db = db + gradient.sum_dim(0).squeeze_dim(0);
        }
    }
    match is_tracked {
        true => with_gradients(loss, (x, Tensor::cat(dx, 0)), (w, dw), (b, db)),
        false => loss,
    }
}

/// Returns `loss` as a tensor whose gradient with respect to each input is the one beside it.
fn with_gradients(
    loss: Tensor<1>,
    (x, dx): (Tensor<2>, Tensor<2>),
    (w, dw): (Tensor<2>, Tensor<2>),
    (b, db): (Tensor<1>, Tensor<1>),
) -> Tensor<1> {
    let linear = dot_reference(x, dx) + dot_reference(w, dw) + dot_reference(b, db);
    // The difference is 0, and its gradient is that of `linear`.
    let value = linear.clone().without_autodiff().autodiff();
    linear - value + loss.autodiff()
}

/// `[rows, 1]`
fn column(targets: &[u32], device: &Device) -> Tensor<2, Int> {
    let values: Vec<i32> = targets.iter().map(|&target| target as i32).collect();
    let rows = values.len();
    Tensor::from_data(TensorData::new(values, [rows, 1]), device)
}

/// Computes [`cross_entropy`] with Burn's operations.
pub fn cross_entropy_reference(x: Tensor<2>, w: Tensor<2>, b: Tensor<1>, targets: &[u32]) -> Tensor<1> {
    let targets = column(targets, &x.device());
    let logits = x.matmul(w) + b.unsqueeze();
    -log_softmax(logits, 1).gather(1, targets).mean()
}

fn check(x: &Tensor<2>, w: &Tensor<2>, b: &Tensor<1>, targets: &[u32]) {
    let ([rows, d], [d_in, v], [biases]) = (x.dims(), w.dims(), b.dims());
    assert!(
        d == d_in && v == biases && rows == targets.len() && rows > 0,
        "cross_entropy: x [{rows}, {d}], bias [{biases}] and {} targets; for a weight [{d_in}, {v}] wanted x [.., {d_in}] \
         with a row or more, bias [{v}] and a target for each row",
        targets.len()
    );
    let largest = targets.iter().max().copied().unwrap_or(0);
    assert!((largest as usize) < v, "cross_entropy: target {largest}, wanted less than {v}");
}

#[derive(Debug, Clone)]
struct CrossEntropy {
    cpu: Cpu,
    targets: Vec<u32>,
}

impl Op<3> for CrossEntropy {
    /// The gradients of the three inputs, for an output gradient of 1.
    type Saved = [FlexTensor; 3];

    fn forward(&self, [x, w, b]: [&FlexTensor; 3], keep: bool) -> (FlexTensor, Option<Self::Saved>) {
        let (loss, gradients) = match is_bf16(x) {
            true => self.run::<bf16>(x, w, b, keep),
            false => self.run::<f32>(x, w, b, keep),
        };
        (tensor(vec![loss], &[1]), gradients)
    }

    fn backward(
        &self,
        _: [&FlexTensor; 3],
        saved: &Self::Saved,
        gradient: &FlexTensor,
        needs_grad: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let factor = floats(gradient)[0];
        let mut needs_grad = needs_grad.into_iter();
        saved.each_ref().map(|unit| {
            needs_grad.next().unwrap_or(false).then(|| {
                with_numbers!(numbers(unit), unit_values => scaled(self.cpu, unit_values, factor, &dims(unit)))
            })
        })
    }
}

impl CrossEntropy {
    /// Returns the loss and, with `keep`, the gradients. `T` is the dtype of `x`.
    fn run<T: Number>(
        &self,
        x: &FlexTensor,
        w: &FlexTensor,
        b: &FlexTensor,
        keep: bool,
    ) -> (f32, Option<[FlexTensor; 3]>) {
        let (rows, d, v) = (self.targets.len(), dims(w)[0], dims(w)[1]);
        let (w_numbers, bias) = (numbers(w), floats(b));
        // About equal chunks.
        let chunk = rows.div_ceil((rows * v).div_ceil(CHUNK)).next_multiple_of(ROWS);
        let mut total = 0.0;
        let (mut dw, mut db) = (vec![0.0; if keep { d * v } else { 0 }], vec![0.0; v]);
        // SAFETY: with `keep`, each chunk's product writes its rows of `dx`; otherwise `dx` is
        // empty.
        #[allow(unsafe_code)]
        let dx: Vec<T> = unsafe {
            filled(if keep { rows * d } else { 0 }, |dx| {
                for first in (0..rows).step_by(chunk) {
                    let n = chunk.min(rows - first);
                    let x = numbers(x).slice(first * d, n * d);
                    let logits = self.logits([n, v, d], x, w_numbers, bias);
                    let (nats, gradient) = self.chunk::<T>(first, v, logits, keep);
                    total += nats.into_iter().map(f64::from).sum::<f64>();
                    if let Some(gradient) = gradient {
                        let gradient = T::numbers(&gradient);
                        // dX = G Wᵀ
                        let [g, wt] = [Operand::along(gradient, v), Operand::along(w_numbers, v)];
                        let out = Out::new(&mut dx[first * d..(first + n) * d], d);
                        gemm(self.cpu, [n, d, v], g, wt, &Store { out });
                        // dW += Xᵀ G
                        let [xt, g] = [Operand::across(x, d), Operand::across(gradient, v)];
                        gemm(self.cpu, [d, v, n], xt, g, &Add { out: Out::new(&mut dw, v) });
                        // db += column sums of G
                        let sums = column_sums(self.cpu, gradient, v);
                        db.iter_mut().zip(sums).for_each(|(db, sum)| *db += sum);
                    }
                }
            })
        };
        let gradients = keep.then(|| [tensor(dx, &dims(x)), tensor(dw, &[d, v]), tensor(db, &[v])]);
        ((total / rows as f64) as f32, gradients)
    }

    fn logits(&self, [n, v, d]: [usize; 3], x: FloatSlice<'_>, w: FloatSlice<'_>, bias: &[f32]) -> Vec<f32> {
        // SAFETY: the product's epilogue writes every value once.
        #[allow(unsafe_code)]
        unsafe {
            filled(n * v, |out| {
                let epilogue = Affine { bias, gelu: false, pre: None, out: Out::new(out, v) };
                gemm(self.cpu, [n, v, d], Operand::along(x, d), Operand::across(w, v), &epilogue);
            })
        }
    }

    /// Returns the loss in nats of each row of a chunk and, with `keep`, the gradient `G` of its
    /// logits.
    fn chunk<T: Number>(
        &self,
        first: usize,
        v: usize,
        logits: Vec<f32>,
        keep: bool,
    ) -> (Vec<f32>, Option<Vec<T>>) {
        let rows = logits.len() / v;
        let targets = &self.targets[first..first + rows];
        let weight = 1.0 / self.targets.len() as f32;
        let mut nats = vec![0.0; rows];
        let row = |nats: &mut f32, logits: &[f32], target: u32, out: &mut [MaybeUninit<T>]| {
            let log_sum = log_sum_exp(self.cpu.supported(), logits);
            *nats = log_sum - logits[target as usize];
            if !out.is_empty() {
                // (P - Y) / rows: the row of P, then the target's value corrected by -1.
                row_gradient(self.cpu.supported(), logits, log_sum, weight, out);
                let p = (logits[target as usize] - log_sum).exp();
                out[target as usize].write(T::nearest((p - 1.0) * weight));
            }
        };
        let tasks = nats.par_iter_mut().zip(logits.par_chunks(v)).zip(targets);
        if !keep {
            tasks.for_each(|((nats, logits), &target)| row(nats, logits, target, &mut []));
            return (nats, None);
        }
        // SAFETY: every row is written completely.
        #[allow(unsafe_code)]
        let gradient = unsafe {
            filled(rows * v, |out: &mut [MaybeUninit<T>]| {
                tasks
                    .zip(out.par_chunks_mut(v))
                    .for_each(|(((nats, logits), &target), out)| row(nats, logits, target, out));
            })
        };
        (nats, Some(gradient))
    }
}

/// Adds the sums: `out += sums`.
struct Add<'a> {
    out: Out<'a, f32>,
}

impl TileEpilogue for Add<'_> {
    #[inline(always)]
    fn take(&self, m: usize, n: usize, sums: &mut [f32]) {
        // SAFETY: `gemm` passes each sum once.
        #[allow(unsafe_code)]
        let out = unsafe { self.out.row(m, n, sums.len()) };
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out += *sum);
    }
}

/// Returns `values · factor`.
fn scaled<T: Number>(cpu: Cpu, values: &[T], factor: f32, shape: &[usize]) -> FlexTensor {
    const PART: usize = 1 << 16;
    // SAFETY: every part is written completely.
    #[allow(unsafe_code)]
    let out = unsafe {
        filled(values.len(), |out| {
            let parts = out.par_chunks_mut(PART).zip(values.par_chunks(PART));
            parts.for_each(|(out, values)| scale(cpu.supported(), values, factor, out));
        })
    };
    tensor(out, shape)
}

vectorized! {
    fn scale[T: Number](values: &[T], factor: f32, out: &mut [MaybeUninit<T>]) {
        out.iter_mut().zip(values).for_each(|(out, value)| {
            out.write(T::nearest(value.value() * factor));
        });
    }
}

vectorized! {
    /// Returns `ln Σ e^logit`.
    fn log_sum_exp(logits: &[f32]) -> f32 {
        math::log_sum_exp(logits)
    }
}

vectorized! {
    /// Writes `softmax(logits) · weight`.
    fn row_gradient[T: Number](logits: &[f32], log_sum: f32, weight: f32, out: &mut [MaybeUninit<T>]) {
        out.iter_mut().zip(logits).for_each(|(out, logit)| {
            out.write(T::nearest(exp(logit - log_sum) * weight));
        });
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::FloatDType;

    use super::*;
    use crate::testing::{grad, hold_equal, leaf};

    #[test]
    fn cross_entropy_at_awkward_sizes_matches_reference() {
        for [rows, d, v] in [[1, 1, 2], [5, 7, 3], [300, 16, 50], [700, 8, 4000]] {
            let targets: Vec<u32> = (0..rows).map(|row| (row * 7919 % v) as u32).collect();
            hold_equal(
                || (leaf([rows, d], 1), leaf([d, v], 2), leaf([v], 3)),
                |cpu, (x, w, b)| cross_entropy(cpu, x.clone(), w.clone(), b.clone(), &targets),
                |(x, w, b)| cross_entropy_reference(x.clone(), w.clone(), b.clone(), &targets),
                |(x, w, b), g| vec![grad(x, g), grad(w, g), grad(b, g)],
            );
            hold_equal(
                || (leaf([rows, d], 1), leaf([d, v], 2), leaf([v], 3)),
                |_, (x, w, b)| composed_in_chunks(x.clone(), w.clone(), b.clone(), &targets, 64),
                |(x, w, b)| cross_entropy_reference(x.clone(), w.clone(), b.clone(), &targets),
                |(x, w, b), g| vec![grad(x, g), grad(w, g), grad(b, g)],
            );
            let narrow = |x: &Tensor<2>| x.clone().cast(FloatDType::BF16);
            hold_equal(
                || (leaf([rows, d], 1), leaf([d, v], 2), leaf([v], 3)),
                |_, (x, w, b)| cross_entropy_composed(narrow(x), w.clone(), b.clone(), &targets),
                |(x, w, b)| cross_entropy_reference(widened(narrow(x)), w.clone(), b.clone(), &targets),
                |(x, w, b), g| vec![grad(x, g), grad(w, g), grad(b, g)],
            );
        }
    }

    #[test]
    #[should_panic(expected = "target 4, wanted less than 4")]
    fn cross_entropy_target_outside_the_vocabulary_panics() {
        cross_entropy(Cpu::best(), leaf([2, 3], 1), leaf([3, 4], 2), leaf([4], 3), &[1, 4]);
    }
}
