//! Storage in 16 bits. On the CPU it is emulated: values and their gradients are rounded as if they
//! had been written to 16 bits and read again. A device that multiplies f16 stores them so.

use burn::backend::flex::FlexTensor;
use burn::tensor::{FloatDType, Tensor};
use rayon::prelude::*;

use crate::composed::{narrowed, widened};
use crate::cpu::{Cpu, vectorized};
use crate::op::{Input, Op, apply, dims, floats, tensor};
use crate::small_float::SmallFloat;

/// Values per task.
const PART: usize = 1 << 14;

/// Returns f32 `x` rounded as if stored in `format`. The backward pass rounds the gradient in the
/// same way. Values that are too large for the format become infinite; values that are too small
/// become 0.
///
/// On a device that multiplies f16 ([`Cpu::elsewhere`]), f16 is not emulated: the result is an f16
/// tensor, and the gradients of all that is computed from it are f16 too.
///
/// # Panics
/// If `format` has no sign bit, or, on a device other than the CPU, is neither f16 nor bf16.
pub fn stored<const D: usize>(cpu: Cpu, x: Tensor<D>, format: SmallFloat) -> Tensor<D> {
    assert!(format != SmallFloat::ZeroSixTen, "stored: ZeroSixTen has no sign, and gradients need one");
    match Input::new(x.clone()) {
        Some(x) => apply(Stored { cpu, format }, [x]),
        None if (cpu.elsewhere(), format) == (FloatDType::F16, SmallFloat::F16) => narrowed(cpu, x),
        None => stored_reference(widened(x), format),
    }
}

/// Computes [`stored`] with Burn's operations: the gradient of a cast is a cast.
///
/// # Panics
/// If `format` is neither f16 nor bf16.
pub fn stored_reference<const D: usize>(x: Tensor<D>, format: SmallFloat) -> Tensor<D> {
    let narrow = match format {
        SmallFloat::F16 => FloatDType::F16,
        SmallFloat::Bf16 => FloatDType::BF16,
        other => panic!("stored: no device supports {other:?}, wanted f16 or bf16"),
    };
    x.cast(narrow).cast(FloatDType::F32)
}

#[derive(Debug, Clone)]
struct Stored {
    cpu: Cpu,
    format: SmallFloat,
}

impl Op<1> for Stored {
    type Saved = ();

    fn forward(&self, [x]: [&FlexTensor; 1], keep: bool) -> (FlexTensor, Option<()>) {
        (self.round(x), keep.then_some(()))
    }

    fn backward(
        &self,
        _: [&FlexTensor; 1],
        _: &(),
        gradient: &FlexTensor,
        [needs_grad]: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        [needs_grad.then(|| self.round(gradient))]
    }
}

impl Stored {
    fn round(&self, x: &FlexTensor) -> FlexTensor {
        let mut values = floats(x).to_vec();
        let (isa, grid) = (self.cpu.supported(), Grid::of(self.format));
        values.par_chunks_mut(PART).for_each(|part| round_part(isa, grid, part));
        tensor(values, &dims(x))
    }
}

/// The numbers of a format as a subset of f32. With it, values are rounded like
/// [`SmallFloat::round`] does, but without encoding them.
#[derive(Debug, Clone, Copy)]
struct Grid {
    /// The bits of f32's significand that a normal number of the format lacks.
    drop: u32,
    /// The smallest normal number. Numbers below it are subnormal: integer multiples of the
    /// smallest.
    normal: f32,
    /// Adding and subtracting this rounds to an integer multiple of the smallest number.
    multiple: f32,
    /// The largest finite number.
    largest: f32,
}

impl Grid {
    fn of(format: SmallFloat) -> Grid {
        let steps = |bits: u32| (1_u32 << bits) as f32;
        Grid {
            drop: 23 - format.significand(),
            normal: format.smallest() * steps(format.significand()),
            multiple: format.smallest() * steps(23),
            largest: format.largest(),
        }
    }
}

vectorized! {
    /// Rounds values to the nearest number of the format, ties to even.
    fn round_part(grid: Grid, values: &mut [f32]) {
        for value in values {
            let size = value.abs();
            let bits = size.to_bits();
            let odd = bits >> grid.drop & 1;
            // Adding just under half of the last kept bit, or half if that bit is 1, rounds ties to
            // even.
            let up = bits.wrapping_add((1 << (grid.drop - 1)) - 1 + odd);
            let normal = f32::from_bits(up >> grid.drop << grid.drop);
            let subnormal = (size + grid.multiple) - grid.multiple;
            let rounded = if size < grid.normal { subnormal } else { normal };
            let rounded = if rounded > grid.largest { f32::INFINITY } else { rounded };
            *value = if size.is_nan() { *value } else { rounded.copysign(*value) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{grad, hold_equal, leaf};

    #[test]
    fn grid_rounding_equals_small_float_rounding() {
        use SmallFloat::{Bf16, F16, OneSixNine, OneThreeTwelve};
        for format in [F16, Bf16, OneSixNine, OneThreeTwelve] {
            // All numbers of the format, values half way between neighbours and close to it, and
            // values that the format lacks.
            let mut values: Vec<f32> =
                vec![0.0, -0.0, 1e-40, -1e-40, 1e38, f32::MAX, f32::INFINITY, f32::NAN];
            for code in 0..0x7fff {
                let [low, high] = [code, code + 1].map(|code| f64::from(format.decode(code)));
                let between = [0.0, 0.3, 0.5, 0.500_01, 0.7].map(|share| (low + share * (high - low)) as f32);
                values.extend(between.into_iter().flat_map(|value| [value, -value]));
            }
            let expected: Vec<u32> = values.iter().map(|&value| format.round(value).to_bits()).collect();
            for cpu in Cpu::all() {
                let mut got = values.clone();
                round_part(cpu.supported(), Grid::of(format), &mut got);
                for ((value, got), expected) in values.iter().zip(got).zip(&expected) {
                    let same =
                        got.to_bits() == *expected || got.is_nan() && f32::from_bits(*expected).is_nan();
                    assert!(
                        same,
                        "{format:?}, {cpu}: {value} became {got}, wanted {}",
                        f32::from_bits(*expected)
                    );
                }
            }
        }
    }

    #[test]
    fn stored_matches_reference() {
        for format in [SmallFloat::F16, SmallFloat::Bf16] {
            hold_equal(
                || leaf([3, 5, 7], 1),
                |cpu, x| stored(cpu, x.clone(), format),
                |x| stored_reference(x.clone(), format),
                |x, g| vec![grad(x, g)],
            );
        }
    }
}
