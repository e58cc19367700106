//! The linear map `y = f(x W + b)` with what usually follows it (bias, activation, residual), in
//! one pass over the output.

use std::mem::MaybeUninit;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use burn::tensor::activation::sigmoid;
use half::bf16;
use rayon::prelude::*;

use crate::composed::{narrowed, widened};
use crate::cpu::{Cpu, vectorized};
use crate::gemm::{Affine, FloatSlice, Operand, Out, ScaledAdd, Store, gemm};
use crate::math::{GELU_SLOPE, Number, gelu_slope, with_numbers};
use crate::memory::filled;
use crate::op::{Op, apply, dims, floats, inputs, is_bf16, numbers, tensor};

/// Rows per task in loops that are limited by memory bandwidth.
const ROWS: usize = 64;

/// The function applied to `x W + b`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// The identity.
    None,
    /// The fast GELU, `h · sigmoid(1.702 h)`.
    Gelu,
}

/// Computes `activation(x W + b)`: `x` `[.., d_in]`, `w` `[d_in, d_out]`, `b` `[d_out]` →
/// `[.., d_out]`.
///
/// If products are of bf16, the output is a bf16 tensor, which the next kernel reads.
///
/// # Panics
/// If the shapes do not fit.
pub fn linear<const D: usize>(
    cpu: Cpu,
    x: Tensor<D>,
    w: Tensor<2>,
    b: Tensor<1>,
    activation: Activation,
) -> Tensor<D> {
    check(x.dims().as_slice(), w.dims(), b.dims());
    match inputs!(x, w, b) {
        Some(inputs) => apply(Linear { cpu, activation }, inputs),
        None => linear_composed(cpu, x, w, b, activation),
    }
}

/// Computes `x W + b` with an f32 output at any precision. It is used for logits.
///
/// # Panics
/// If the shapes do not fit.
pub fn linear_f32<const D: usize>(cpu: Cpu, x: Tensor<D>, w: Tensor<2>, b: Tensor<1>) -> Tensor<D> {
    check(x.dims().as_slice(), w.dims(), b.dims());
    match inputs!(x, w, b) {
        Some(inputs) => apply(Logits { cpu }, inputs),
        None => linear_f32_composed(x, w, b),
    }
}

/// Computes [`linear_f32`] on devices other than the CPU. It multiplies f32, because Burn gives a
/// product the dtype of its factors.
fn linear_f32_composed<const D: usize>(x: Tensor<D>, w: Tensor<2>, b: Tensor<1>) -> Tensor<D> {
    linear_reference(widened(x), w, b, Activation::None)
}

/// Computes `residual + x W + b` in f32, the end of a residual block.
///
/// # Panics
/// If the shapes do not fit.
pub fn linear_add<const D: usize>(
    cpu: Cpu,
    x: Tensor<D>,
    w: Tensor<2>,
    b: Tensor<1>,
    residual: Tensor<D>,
) -> Tensor<D> {
    check(x.dims().as_slice(), w.dims(), b.dims());
    let mut wanted = x.dims();
    wanted[D - 1] = b.dims()[0];
    let got = residual.dims();
    assert!(got == wanted, "linear_add: a residual of {got:?}, wanted {wanted:?}");
    match inputs!(x, w, b, residual) {
        Some(inputs) => apply(LinearAdd { cpu }, inputs),
        None => linear_add_composed(cpu, x, w, b, residual),
    }
}

/// Computes [`linear_add`] on devices other than the CPU.
fn linear_add_composed<const D: usize>(
    cpu: Cpu,
    x: Tensor<D>,
    w: Tensor<2>,
    b: Tensor<1>,
    residual: Tensor<D>,
) -> Tensor<D> {
    residual + widened(linear_composed(cpu, x, w, b, Activation::None))
}

/// Computes [`linear`] on devices other than the CPU.
fn linear_composed<const D: usize>(
    cpu: Cpu,
    x: Tensor<D>,
    w: Tensor<2>,
    b: Tensor<1>,
    activation: Activation,
) -> Tensor<D> {
    linear_reference(narrowed(cpu, x), narrowed(cpu, w), narrowed(cpu, b), activation)
}

/// Computes [`linear`] with Burn's operations.
pub fn linear_reference<const D: usize>(
    x: Tensor<D>,
    w: Tensor<2>,
    b: Tensor<1>,
    activation: Activation,
) -> Tensor<D> {
    let mut shape = x.dims();
    let d_in = shape[D - 1];
    let rows: usize = shape[..D - 1].iter().product();
    let y = x.reshape([rows, d_in]).matmul(w) + b.unsqueeze();
    shape[D - 1] = y.dims()[1];
    let y = y.reshape(shape);
    match activation {
        Activation::None => y,
        Activation::Gelu => y.clone() * sigmoid(y * f64::from(GELU_SLOPE)),
    }
}

fn check(x: &[usize], [d_in, d_out]: [usize; 2], [bias]: [usize; 1]) {
    let last = x.last().copied().unwrap_or(0);
    assert!(
        last == d_in && bias == d_out,
        "linear: x {x:?} and bias [{bias}], wanted [.., {d_in}] and [{d_out}] for a weight [{d_in}, {d_out}]"
    );
}

#[derive(Debug, Clone)]
struct Linear {
    cpu: Cpu,
    activation: Activation,
}

#[derive(Debug, Clone)]
struct LinearAdd {
    cpu: Cpu,
}

#[derive(Debug, Clone)]
struct Logits {
    cpu: Cpu,
}

impl Op<3> for Logits {
    type Saved = ();

    fn forward(&self, [x, w, b]: [&FlexTensor; 3], keep: bool) -> (FlexTensor, Option<()>) {
        let linear = Linear { cpu: self.cpu, activation: Activation::None };
        (linear.run::<f32>(x, w, b, false).0, keep.then_some(()))
    }

    fn backward(
        &self,
        [x, w, _]: [&FlexTensor; 3],
        _: &(),
        gradient: &FlexTensor,
        needs_grad: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        linear_backward(self.cpu, x, w, numbers(gradient), needs_grad)
    }
}

impl Op<3> for Linear {
    /// The pre-activation `x W + b`, if an activation follows it.
    type Saved = Option<FlexTensor>;

    fn forward(&self, [x, w, b]: [&FlexTensor; 3], keep: bool) -> (FlexTensor, Option<Self::Saved>) {
        match self.cpu.bf16() {
            true => self.run::<bf16>(x, w, b, keep),
            false => self.run::<f32>(x, w, b, keep),
        }
    }

    fn backward(
        &self,
        [x, w, _]: [&FlexTensor; 3],
        pre: &Self::Saved,
        gradient: &FlexTensor,
        needs_grad: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let gradient = match pre {
            None => gradient.clone(),
            Some(pre) => with_numbers!(numbers(pre), pre => {
                tensor(gelu_backward(self.cpu, pre, numbers(gradient)), &dims(gradient))
            }),
        };
        linear_backward(self.cpu, x, w, numbers(&gradient), needs_grad)
    }
}

impl Linear {
    fn run<T: Number>(
        &self,
        x: &FlexTensor,
        w: &FlexTensor,
        b: &FlexTensor,
        keep: bool,
    ) -> (FlexTensor, Option<Option<FlexTensor>>) {
        let (shape, [m, k, n]) = sizes(x, w);
        let bias = floats(b);
        let product = |epilogue: &Affine<'_, T>| {
            let [x, w] = [Operand::along(numbers(x), k), Operand::across(numbers(w), n)];
            gemm(self.cpu, [m, n, k], x, w, epilogue);
        };
        let mut pre = Vec::new();
        let gelu = self.activation == Activation::Gelu;
        // SAFETY: the product's epilogue writes every value of each output once.
        #[allow(unsafe_code)]
        let out = unsafe {
            filled(m * n, |out| {
                let out = Out::new(out, n);
                match gelu && keep {
                    false => product(&Affine { bias, gelu, pre: None, out }),
                    true => {
                        pre = filled(m * n, |pre| {
                            product(&Affine { bias, gelu, pre: Some(Out::new(pre, n)), out });
                        });
                    }
                }
            })
        };
        let pre = (gelu && keep).then(|| tensor(pre, &shape));
        (tensor::<T>(out, &shape), keep.then_some(pre))
    }
}

impl Op<4> for LinearAdd {
    type Saved = ();

    fn forward(&self, [x, w, b, residual]: [&FlexTensor; 4], keep: bool) -> (FlexTensor, Option<()>) {
        let (shape, [m, k, n]) = sizes(x, w);
        let [x, w] = [Operand::along(numbers(x), k), Operand::across(numbers(w), n)];
        let (bias, residual) = (floats(b), floats(residual));
        // SAFETY: the product's epilogue writes every value once.
        #[allow(unsafe_code)]
        let out = unsafe {
            filled(m * n, |out| {
                gemm(
                    self.cpu,
                    [m, n, k],
                    x,
                    w,
                    &ScaledAdd { bias, residual, gain: 1.0, out: Out::new(out, n) },
                );
            })
        };
        (tensor(out, &shape), keep.then_some(()))
    }

    fn backward(
        &self,
        [x, w, ..]: [&FlexTensor; 4],
        _: &(),
        gradient: &FlexTensor,
        [want_x, want_w, want_b, want_residual]: [bool; 4],
    ) -> [Option<FlexTensor>; 4] {
        let [dx, dw, db] = linear_backward(self.cpu, x, w, numbers(gradient), [want_x, want_w, want_b]);
        [dx, dw, db, want_residual.then(|| gradient.clone())]
    }
}

/// Returns the output's shape, and `[rows, d_in, d_out]`.
fn sizes(x: &FlexTensor, w: &FlexTensor) -> (Vec<usize>, [usize; 3]) {
    let mut shape = dims(x);
    let [d_in, d_out] = [dims(w)[0], dims(w)[1]];
    shape.pop();
    let rows = shape.iter().product();
    shape.push(d_out);
    (shape, [rows, d_in, d_out])
}

/// Returns the matrix product `a · b` of `[m, k]` and `[k, n]`.
pub(crate) fn matmul<T: Number>(cpu: Cpu, [m, n, k]: [usize; 3], a: Operand<'_>, b: Operand<'_>) -> Vec<T> {
    // SAFETY: the product's epilogue writes every value once.
    #[allow(unsafe_code)]
    unsafe {
        filled(m * n, |out| gemm(cpu, [m, n, k], a, b, &Store { out: Out::new(out, n) }))
    }
}

/// Returns the gradients of `x` (in the dtype of `x`), `w` and `b`: `dX = dY Wᵀ`, `dW = Xᵀ dY`, and
/// `db` the column sums of `dY`.
pub(crate) fn linear_backward(
    cpu: Cpu,
    x: &FlexTensor,
    w: &FlexTensor,
    gradient: FloatSlice<'_>,
    [want_x, want_w, want_b]: [bool; 3],
) -> [Option<FlexTensor>; 3] {
    let (_, [rows, d_in, d_out]) = sizes(x, w);
    let dx = want_x.then(|| {
        let [g, w] = [Operand::along(gradient, d_out), Operand::along(numbers(w), d_out)];
        match is_bf16(x) {
            true => tensor(matmul::<bf16>(cpu, [rows, d_in, d_out], g, w), &dims(x)),
            false => tensor(matmul::<f32>(cpu, [rows, d_in, d_out], g, w), &dims(x)),
        }
    });
    let dw = want_w.then(|| {
        let [x, g] = [Operand::across(numbers(x), d_in), Operand::across(gradient, d_out)];
        tensor(matmul::<f32>(cpu, [d_in, d_out, rows], x, g), &dims(w))
    });
    let db = want_b.then(|| tensor(column_sums(cpu, gradient, d_out), &[d_out]));
    [dx, dw, db]
}

/// Returns the sum of each of `columns` columns. Partial sums of a fixed number of rows are added
/// in order, so the result does not depend on the number of threads.
pub(crate) fn column_sums(cpu: Cpu, values: FloatSlice<'_>, columns: usize) -> Vec<f32> {
    let part = |i: usize| {
        let rows =
            values.slice(i * ROWS * columns, values.len().min((i + 1) * ROWS * columns) - i * ROWS * columns);
        let mut sums = vec![0.0; columns];
        with_numbers!(rows, rows => add_rows(cpu.supported(), rows, &mut sums));
        sums
    };
    let parts: Vec<Vec<f32>> =
        (0..values.len().div_ceil((ROWS * columns).max(1))).into_par_iter().map(part).collect();
    let mut sums = vec![0.0; columns];
    parts.iter().for_each(|part| add_rows(cpu.supported(), part, &mut sums));
    sums
}

vectorized! {
    /// Adds every row of `rows` to `sums`.
    fn add_rows[T: Number](rows: &[T], sums: &mut [f32]) {
        for row in rows.chunks_exact(sums.len()) {
            sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += value.value());
        }
    }
}

/// Returns `gradient · gelu'(pre)`.
fn gelu_backward<T: Number>(cpu: Cpu, pre: &[T], gradient: FloatSlice<'_>) -> Vec<T> {
    const PART: usize = 1 << 14;
    // SAFETY: every part is written completely.
    #[allow(unsafe_code)]
    unsafe {
        filled(pre.len(), |out| {
            out.par_chunks_mut(PART).zip(pre.par_chunks(PART)).enumerate().for_each(|(i, (out, pre))| {
                let gradient = gradient.slice(i * PART, pre.len());
                with_numbers!(gradient, gradient => gelu_backward_part(cpu.supported(), pre, gradient, out));
            });
        })
    }
}

vectorized! {
    fn gelu_backward_part[T: Number, G: Number](pre: &[T], gradient: &[G], out: &mut [MaybeUninit<T>]) {
        for ((out, pre), gradient) in out.iter_mut().zip(pre).zip(gradient) {
            out.write(T::nearest(gradient.value() * gelu_slope(pre.value())));
        }
    }
}

#[cfg(test)]
mod tests;
