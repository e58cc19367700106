//! Halves and doubles the side of a picture: 2×2 max-pooling and nearest-neighbour upsampling,
//! channels last (paper §A.1).

use std::mem::MaybeUninit;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use burn::tensor::module::{interpolate, max_pool2d};
use burn::tensor::ops::{InterpolateMode, InterpolateOptions, MaxPoolOptions};
use rayon::prelude::*;

use crate::cpu::{Cpu, vectorized};
use crate::memory::filled;
use crate::op::{Op, apply, dims, floats, inputs, tensor};

/// Returns the maximum of each 2×2 pixels: `[B, 2H, 2W, C]` in f32 → `[B, H, W, C]`. If several
/// pixels are equal, the gradient goes to the first.
///
/// # Panics
/// If a side is odd.
pub fn max_pool2(cpu: Cpu, x: Tensor<4>) -> Tensor<4> {
    let [_, height, width, _] = x.dims();
    assert!(height % 2 == 0 && width % 2 == 0, "max_pool2: {height}×{width} pixels, wanted even sides");
    match inputs!(x) {
        Some(inputs) => apply(MaxPool { cpu }, inputs),
        None => max_pool2_reference(x),
    }
}

/// Computes [`max_pool2`] with Burn's operations.
pub fn max_pool2_reference(x: Tensor<4>) -> Tensor<4> {
    let options = MaxPoolOptions::new([2, 2]).with_stride([2, 2]);
    max_pool2d(x.permute([0, 3, 1, 2]), options).permute([0, 2, 3, 1])
}

/// Repeats each pixel in a 2×2 block: `[B, H, W, C]` in f32 → `[B, 2H, 2W, C]`.
pub fn upsample2(cpu: Cpu, x: Tensor<4>) -> Tensor<4> {
    match inputs!(x) {
        Some(inputs) => apply(Upsample { cpu }, inputs),
        None => upsample2_reference(x),
    }
}

/// Computes [`upsample2`] with Burn's operations.
pub fn upsample2_reference(x: Tensor<4>) -> Tensor<4> {
    let [_, height, width, _] = x.dims();
    let options = InterpolateOptions::new(InterpolateMode::Nearest).with_output_size([2 * height, 2 * width]);
    interpolate(x.permute([0, 3, 1, 2]), options).permute([0, 2, 3, 1])
}

#[derive(Debug, Clone)]
struct MaxPool {
    cpu: Cpu,
}

#[derive(Debug, Clone)]
struct Upsample {
    cpu: Cpu,
}

impl Op<1> for MaxPool {
    type Saved = ();

    fn forward(&self, [x]: [&FlexTensor; 1], keep: bool) -> (FlexTensor, Option<()>) {
        let [batch, height, width, channels] = four_dims(x);
        let line = |large: &[f32], small: &mut [MaybeUninit<f32>]| {
            pool_line(self.cpu.supported(), large, small, channels);
        };
        let out = from_large(floats(x), width * channels, line);
        (tensor(out, &[batch, height / 2, width / 2, channels]), keep.then_some(()))
    }

    fn backward(
        &self,
        [x]: [&FlexTensor; 1],
        _: &(),
        gradient: &FlexTensor,
        [needs_grad]: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        let [_, _, width, channels] = four_dims(x);
        let (values, line) = (floats(x), width * channels);
        let dx = needs_grad.then(|| {
            to_large(floats(gradient), line, |i, small, large| {
                let values = &values[2 * i * line..2 * (i + 1) * line];
                unpool_line(self.cpu.supported(), values, small, large, channels);
            })
        });
        [dx.map(|dx| tensor(dx, &dims(x)))]
    }
}

impl Op<1> for Upsample {
    type Saved = ();

    fn forward(&self, [x]: [&FlexTensor; 1], keep: bool) -> (FlexTensor, Option<()>) {
        let [batch, height, width, channels] = four_dims(x);
        let out = to_large(floats(x), 2 * width * channels, |_, small, large| {
            spread_line(self.cpu.supported(), small, large, channels);
        });
        (tensor(out, &[batch, 2 * height, 2 * width, channels]), keep.then_some(()))
    }

    fn backward(
        &self,
        [x]: [&FlexTensor; 1],
        _: &(),
        gradient: &FlexTensor,
        [needs_grad]: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        let [_, _, width, channels] = four_dims(x);
        let line = |large: &[f32], small: &mut [MaybeUninit<f32>]| {
            gather_line(self.cpu.supported(), large, small, channels);
        };
        let dx = needs_grad.then(|| from_large(floats(gradient), 2 * width * channels, line));
        [dx.map(|dx| tensor(dx, &dims(x)))]
    }
}

fn four_dims(x: &FlexTensor) -> [usize; 4] {
    dims(x).try_into().expect("four dimensions")
}

/// Makes rows of half the length from pairs of rows of `line` values. `body` must write every value
/// of its row.
fn from_large(large: &[f32], line: usize, body: impl Fn(&[f32], &mut [MaybeUninit<f32>]) + Sync) -> Vec<f32> {
    // SAFETY: `body` writes every row completely.
    #[allow(unsafe_code)]
    unsafe {
        filled(large.len() / 4, |small| {
            let rows = small.par_chunks_mut((line / 2).max(1)).zip(large.par_chunks(2 * line.max(1)));
            rows.for_each(|(small, large)| body(large, small));
        })
    }
}

/// Makes pairs of rows of `line` values from rows of half the length. `body` gets the row's index
/// and must write every value of its pair.
fn to_large(
    small: &[f32],
    line: usize,
    body: impl Fn(usize, &[f32], &mut [MaybeUninit<f32>]) + Sync,
) -> Vec<f32> {
    // SAFETY: `body` writes every pair of rows completely.
    #[allow(unsafe_code)]
    unsafe {
        filled(4 * small.len(), |large| {
            let rows = large.par_chunks_mut(2 * line.max(1)).zip(small.par_chunks((line / 2).max(1)));
            rows.enumerate().for_each(|(i, (large, small))| body(i, small, large));
        })
    }
}

vectorized! {
    /// Max-pools a pair of rows, `[a b]` above `[c d]`.
    fn pool_line(large: &[f32], small: &mut [MaybeUninit<f32>], channels: usize) {
        let (upper, lower) = large.split_at(large.len() / 2);
        let pairs = upper.chunks_exact(2 * channels).zip(lower.chunks_exact(2 * channels));
        for (out, (upper, lower)) in small.chunks_exact_mut(channels).zip(pairs) {
            let ((a, b), (c, d)) = (upper.split_at(channels), lower.split_at(channels));
            for (i, out) in out.iter_mut().enumerate() {
                out.write(a[i].max(b[i]).max(c[i].max(d[i])));
            }
        }
    }
}

vectorized! {
    /// Sends each gradient to the first pixel of its 2×2 block that equals the maximum, and 0 to
    /// the others.
    fn unpool_line(values: &[f32], gradient: &[f32], out: &mut [MaybeUninit<f32>], channels: usize) {
        let (upper, lower) = values.split_at(values.len() / 2);
        let (out_upper, out_lower) = out.split_at_mut(values.len() / 2);
        let values = upper.chunks_exact(2 * channels).zip(lower.chunks_exact(2 * channels));
        let outs = out_upper.chunks_exact_mut(2 * channels).zip(out_lower.chunks_exact_mut(2 * channels));
        for ((gradient, (upper, lower)), (out_upper, out_lower)) in gradient.chunks_exact(channels).zip(values).zip(outs) {
            let ((a, b), (c, d)) = (upper.split_at(channels), lower.split_at(channels));
            let ((out_a, out_b), (out_c, out_d)) = (out_upper.split_at_mut(channels), out_lower.split_at_mut(channels));
            for i in 0..channels {
                let top = a[i].max(b[i]).max(c[i].max(d[i]));
                let is_top = [a[i] == top, b[i] == top, c[i] == top];
                let share = |chosen: bool| if chosen { gradient[i] } else { 0.0 };
                out_a[i].write(share(is_top[0]));
                out_b[i].write(share(!is_top[0] & is_top[1]));
                out_c[i].write(share(!is_top[0] & !is_top[1] & is_top[2]));
                out_d[i].write(share(!is_top[0] & !is_top[1] & !is_top[2]));
            }
        }
    }
}

vectorized! {
    /// Repeats each pixel of a row in a 2×2 block.
    fn spread_line(small: &[f32], large: &mut [MaybeUninit<f32>], channels: usize) {
        let (upper, lower) = large.split_at_mut(2 * small.len());
        let pairs = upper.chunks_exact_mut(2 * channels).zip(lower.chunks_exact_mut(2 * channels));
        for (pixel, (upper, lower)) in small.chunks_exact(channels).zip(pairs) {
            for out in upper.chunks_exact_mut(channels).chain(lower.chunks_exact_mut(channels)) {
                out.write_copy_of_slice(pixel);
            }
        }
    }
}

vectorized! {
    /// Sums each 2×2 block of pixels: the gradient of upsampling.
    fn gather_line(large: &[f32], small: &mut [MaybeUninit<f32>], channels: usize) {
        let (upper, lower) = large.split_at(large.len() / 2);
        let pairs = upper.chunks_exact(2 * channels).zip(lower.chunks_exact(2 * channels));
        for (out, (upper, lower)) in small.chunks_exact_mut(channels).zip(pairs) {
            let ((a, b), (c, d)) = (upper.split_at(channels), lower.split_at(channels));
            for (i, out) in out.iter_mut().enumerate() {
                out.write(a[i] + b[i] + c[i] + d[i]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{grad, hold_equal, leaf};

    const SIZES: [[usize; 4]; 3] = [[1, 2, 2, 1], [2, 4, 6, 5], [3, 8, 2, 48]];

    fn hold_sizes(kernel: fn(Cpu, Tensor<4>) -> Tensor<4>, reference: fn(Tensor<4>) -> Tensor<4>) {
        for shape in SIZES {
            hold_equal(
                || leaf(shape, 1),
                |cpu, x| kernel(cpu, x.clone()),
                |x| reference(x.clone()),
                |x, g| vec![grad(x, g)],
            );
        }
    }

    #[test]
    fn max_pool2_matches_reference() {
        hold_sizes(max_pool2, max_pool2_reference);
    }

    #[test]
    fn upsample2_matches_reference() {
        hold_sizes(upsample2, upsample2_reference);
    }

    #[test]
    #[should_panic(expected = "wanted even sides")]
    fn max_pool2_of_odd_side_panics() {
        max_pool2(Cpu::best(), leaf([1, 3, 4, 2], 1));
    }
}
