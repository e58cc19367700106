//! Convolution with stride 1 and same padding, channels last, fused with its neighbours in the
//! dVAE's residual block (paper §A.1): a ReLU before it, a scaled residual sum after it.
//!
//! The kernel is a matrix product that does not copy the neighbourhood of each pixel (no im2col).
//! In a picture with a border of zeros, the `k` neighbours of a pixel in one row, with their
//! channels, are contiguous in memory. A `k`×`k` convolution is therefore a product whose K
//! consists of `k` contiguous segments ([`crate::gemm::Segment`]), one per row of the filter.

mod filter;
mod gradient;
mod strip;

use std::mem::MaybeUninit;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use burn::tensor::activation::relu;
use burn::tensor::module::conv2d as burn_conv2d;
use burn::tensor::ops::ConvOptions;
use half::bf16;

use self::filter::{Direction, PackedFilter};
use self::gradient::weight_gradient;
use self::strip::{Pictures, convolve};
use crate::composed::{narrowed, widened};
use crate::cpu::Cpu;
use crate::gemm::{Affine, Out, ScaledAdd, TileEpilogue};
use crate::linear::column_sums;
use crate::math::{Number, with_numbers};
use crate::memory::filled;
use crate::op::{Op, apply, dims, floats, inputs, numbers, tensor};

/// The operation applied to the input of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreActivation {
    /// No operation.
    Nothing,
    /// ReLU.
    Relu,
}

/// The dtype of a convolution's output, and of its products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputDtype {
    /// The dtype that the next kernel reads: bf16 if products are of bf16, else f32.
    Compute,
    /// f32; products may still be of bf16.
    F32,
    /// f32 with products of f32, for the convolutions next to the codes (paper §A.1, "bottleneck").
    F32Exact,
}

/// Computes `conv(first(x)) + b`: `x` `[B, H, W, n_in]`, `w` `[n_out, n_in, k, k]` with odd `k`,
/// `b` `[n_out]` → `[B, H, W, n_out]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn conv2d(
    cpu: Cpu,
    x: Tensor<4>,
    w: Tensor<4>,
    b: Tensor<1>,
    first: PreActivation,
    output: OutputDtype,
) -> Tensor<4> {
    check(x.dims(), w.dims(), b.dims());
    match inputs!(x, w, b) {
        Some(inputs) => {
            let cpu = match output {
                OutputDtype::F32Exact => cpu.in_f32(),
                _ => cpu,
            };
            apply(Conv { cpu, first, narrow: cpu.bf16() && output == OutputDtype::Compute }, inputs)
        }
        None => conv2d_composed(cpu, x, w, b, first, output),
    }
}

/// Computes `residual + gain · (conv(relu(x)) + b)` in f32, the end of a residual block. Shapes are
/// those of [`conv2d`]; `residual` has the shape of the output.
///
/// # Panics
/// If the shapes do not fit.
pub fn conv2d_add(
    cpu: Cpu,
    x: Tensor<4>,
    w: Tensor<4>,
    b: Tensor<1>,
    residual: Tensor<4>,
    gain: f64,
) -> Tensor<4> {
    check(x.dims(), w.dims(), b.dims());
    let [batch, height, width, _] = x.dims();
    let wanted = [batch, height, width, w.dims()[0]];
    assert!(residual.dims() == wanted, "conv2d_add: residual {:?}, wanted {wanted:?}", residual.dims());
    match inputs!(x, w, b, residual) {
        Some(inputs) => apply(ConvAdd { cpu, gain: gain as f32 }, inputs),
        None => conv2d_add_composed(cpu, x, w, b, residual, gain),
    }
}

/// Computes [`conv2d_add`] on devices other than the CPU.
fn conv2d_add_composed(
    cpu: Cpu,
    x: Tensor<4>,
    w: Tensor<4>,
    b: Tensor<1>,
    residual: Tensor<4>,
    gain: f64,
) -> Tensor<4> {
    residual + widened(conv2d_composed(cpu, x, w, b, PreActivation::Relu, OutputDtype::Compute)) * gain
}

/// Computes [`conv2d`] on devices other than the CPU. Channels are last in memory, as Burn's
/// convolutions for GPUs want them, so neither permutation copies anything.
fn conv2d_composed(
    cpu: Cpu,
    x: Tensor<4>,
    w: Tensor<4>,
    b: Tensor<1>,
    first: PreActivation,
    output: OutputDtype,
) -> Tensor<4> {
    match output {
        OutputDtype::Compute => conv2d_reference(narrowed(cpu, x), narrowed(cpu, w), narrowed(cpu, b), first),
        // f32 sums need f32 factors here, because Burn gives a product the dtype of its factors.
        // The factors are rounded to 16 bits first.
        OutputDtype::F32 => conv2d_reference(widened(narrowed(cpu, x)), widened(narrowed(cpu, w)), b, first),
        OutputDtype::F32Exact => conv2d_reference(x, w, b, first),
    }
}

/// Computes [`conv2d`] with Burn's operations.
pub fn conv2d_reference(x: Tensor<4>, w: Tensor<4>, b: Tensor<1>, first: PreActivation) -> Tensor<4> {
    let x = match first {
        PreActivation::Nothing => x,
        PreActivation::Relu => relu(x),
    };
    let pad = w.dims()[2] / 2;
    let options = ConvOptions::new([1, 1], [pad, pad], [1, 1], 1);
    burn_conv2d(x.permute([0, 3, 1, 2]), w, Some(b), options).permute([0, 2, 3, 1])
}

fn check(x: [usize; 4], w: [usize; 4], [bias]: [usize; 1]) {
    let [n_out, n_in, k, _] = w;
    assert!(
        x[3] == n_in && bias == n_out && w[3] == k && k % 2 == 1,
        "conv2d: x {x:?}, weight {w:?}, bias [{bias}] do not fit: wanted [B, H, W, C], [N, C, k, k] with k odd, [N]"
    );
}

#[derive(Debug, Clone)]
struct Conv {
    cpu: Cpu,
    first: PreActivation,
    /// Whether the output is bf16.
    narrow: bool,
}

#[derive(Debug, Clone)]
struct ConvAdd {
    cpu: Cpu,
    gain: f32,
}

impl Op<3> for Conv {
    type Saved = ();

    fn forward(&self, [x, w, b]: [&FlexTensor; 3], keep: bool) -> (FlexTensor, Option<()>) {
        let output = match self.narrow {
            true => self.run::<bf16>(x, w, b),
            false => self.run::<f32>(x, w, b),
        };
        (output, keep.then_some(()))
    }

    fn backward(
        &self,
        [x, w, _]: [&FlexTensor; 3],
        _: &(),
        gradient: &FlexTensor,
        needs_grad: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        backward(self.cpu, pictures(x, self.first), w, gradient, 1.0, needs_grad)
    }
}

impl Conv {
    fn run<T: Number>(&self, x: &FlexTensor, w: &FlexTensor, b: &FlexTensor) -> FlexTensor {
        let (x, filter, bias) = (pictures(x, self.first), filter(w, Direction::Forward), floats(b));
        // SAFETY: the convolution's epilogue writes every value once.
        #[allow(unsafe_code)]
        let out = unsafe {
            filled(x.pixels() * bias.len(), |out| {
                let out = Out::new(out, bias.len());
                convolve(self.cpu, x, &filter, &Affine { bias, gelu: false, pre: None, out });
            })
        };
        tensor::<T>(out, &x.with_channels(bias.len()))
    }
}

impl Op<4> for ConvAdd {
    type Saved = ();

    fn forward(&self, [x, w, b, residual]: [&FlexTensor; 4], keep: bool) -> (FlexTensor, Option<()>) {
        let (x, filter) = (pictures(x, PreActivation::Relu), filter(w, Direction::Forward));
        let (bias, residual, gain) = (floats(b), floats(residual), self.gain);
        // SAFETY: the convolution's epilogue writes every value once.
        #[allow(unsafe_code)]
        let out = unsafe {
            filled(residual.len(), |out| {
                let out = Out::new(out, bias.len());
                convolve(self.cpu, x, &filter, &ScaledAdd { bias, residual, gain, out });
            })
        };
        (tensor::<f32>(out, &x.with_channels(bias.len())), keep.then_some(()))
    }

    fn backward(
        &self,
        [x, w, ..]: [&FlexTensor; 4],
        _: &(),
        gradient: &FlexTensor,
        [want_x, want_w, want_b, want_residual]: [bool; 4],
    ) -> [Option<FlexTensor>; 4] {
        let needs_grad = [want_x, want_w, want_b];
        let [dx, dw, db] =
            backward(self.cpu, pictures(x, PreActivation::Relu), w, gradient, self.gain, needs_grad);
        [dx, dw, db, want_residual.then(|| gradient.clone())]
    }
}

fn pictures(x: &FlexTensor, first: PreActivation) -> Pictures<'_> {
    let shape = dims(x).try_into().expect("four dimensions");
    Pictures { numbers: numbers(x), shape, relu: first == PreActivation::Relu }
}

fn filter(w: &FlexTensor, direction: Direction) -> PackedFilter<'_> {
    let [n_out, n_in, k, _] = dims(w).try_into().expect("four dimensions");
    PackedFilter { weight: floats(w), n_out, n_in, k, direction }
}

/// Returns the gradients of `x` (in the dtype of `x`), `w` and `b`, all multiplied by `gain`. `x`
/// holds the input before the ReLU.
fn backward(
    cpu: Cpu,
    x: Pictures<'_>,
    w: &FlexTensor,
    gradient: &FlexTensor,
    gain: f32,
    [want_x, want_w, want_b]: [bool; 3],
) -> [Option<FlexTensor>; 3] {
    let filter = filter(w, Direction::Back);
    let dy = pictures(gradient, PreActivation::Nothing);
    let dx = want_x.then(|| {
        with_numbers!(x.numbers, values => tensor(input_gradient(cpu, values, x, dy, &filter, gain), &x.shape))
    });
    let dw = want_w.then(|| tensor(weight_gradient(cpu, x, dy, filter.k, gain), &dims(w)));
    let db = want_b.then(|| {
        let mut sums = column_sums(cpu, dy.numbers, filter.n_out);
        sums.iter_mut().for_each(|sum| *sum *= gain);
        tensor(sums, &[filter.n_out])
    });
    [dx, dw, db]
}

/// Computes the gradient of `x`: a convolution of the output's gradient with the filter rotated by
/// 180°. The result is 0 where the ReLU was inactive.
fn input_gradient<T: Number>(
    cpu: Cpu,
    values: &[T],
    x: Pictures<'_>,
    gradient: Pictures<'_>,
    filter: &PackedFilter<'_>,
    gain: f32,
) -> Vec<T> {
    // SAFETY: the convolution's epilogue writes every value once.
    #[allow(unsafe_code)]
    unsafe {
        filled(values.len(), |out| {
            let out = Out::new(out, filter.n_in);
            convolve(cpu, gradient, filter, &Masked { values: x.relu.then_some(values), gain, out });
        })
    }
}

/// Writes `gain · sums`, and 0 where `values`, if given, are not positive.
struct Masked<'a, T> {
    values: Option<&'a [T]>,
    gain: f32,
    out: Out<'a, MaybeUninit<T>>,
}

impl<T: Number> TileEpilogue for Masked<'_, T> {
    #[inline(always)]
    fn take(&self, m: usize, n: usize, sums: &mut [f32]) {
        // SAFETY: `convolve` passes each sum once.
        #[allow(unsafe_code)]
        let out = unsafe { self.out.row(m, n, sums.len()) };
        let scaled = sums.iter().map(|sum| self.gain * sum);
        let Some(values) = self.values else {
            return out.iter_mut().zip(scaled).for_each(|(out, sum)| {
                out.write(T::nearest(sum));
            });
        };
        let values = &values[m * self.out.stride() + n..][..sums.len()];
        for ((out, sum), value) in out.iter_mut().zip(scaled).zip(values) {
            out.write(T::nearest(if value.value() > 0.0 { sum } else { 0.0 }));
        }
    }
}

#[cfg(test)]
mod tests;
