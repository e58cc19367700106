//! Number types, and functions of f32 that the compiler can vectorize: they have no branches and no
//! calls.

use std::mem::MaybeUninit;

use burn::tensor::Element;
use half::bf16;

use crate::gemm::{FloatSlice, narrow, widen};

/// A number type in memory; arithmetic is in f32.
pub(crate) trait Number: Element {
    /// Returns the value as f32.
    fn value(self) -> f32;
    /// Returns the nearest number of this type.
    fn nearest(value: f32) -> Self;
    /// Returns a slice of numbers as a [`FloatSlice`].
    fn numbers(values: &[Self]) -> FloatSlice<'_>;
}

impl Number for f32 {
    #[inline(always)]
    fn value(self) -> f32 {
        self
    }

    #[inline(always)]
    fn nearest(value: f32) -> f32 {
        value
    }

    fn numbers(values: &[f32]) -> FloatSlice<'_> {
        FloatSlice::F32(values)
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn value(self) -> f32 {
        widen(self)
    }

    #[inline(always)]
    fn nearest(value: f32) -> bf16 {
        bf16::from_bits(narrow(value))
    }

    fn numbers(values: &[bf16]) -> FloatSlice<'_> {
        FloatSlice::Bf16(values)
    }
}

/// Evaluates `$body` with `$values` as a slice of f32 or of bf16.
macro_rules! with_numbers {
    ($numbers:expr, $values:ident => $body:expr) => {
        match $numbers {
            $crate::gemm::FloatSlice::F32($values) => $body,
            $crate::gemm::FloatSlice::Bf16($values) => $body,
        }
    };
}
pub(crate) use with_numbers;

/// Writes `values` to `out`, rounded to the dtype of `out`.
#[inline(always)]
pub(crate) fn write<T: Number>(out: &mut [MaybeUninit<T>], values: &[f32]) {
    out.iter_mut().zip(values).for_each(|(out, &value)| {
        out.write(T::nearest(value));
    });
}

/// Returns e^x to 2 units in the last place, for x in ±87. Beyond that it returns the value at the
/// bound. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // A sum with this number has no bits for a fraction: its low bits are the nearest integer. So
    // `shifted` holds n = round(x / ln 2), and e^x = 2^n · e^f with f = x - n ln 2.
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23
    const LN2_HIGH: f32 = 0.693_359_4; // ln 2 to 9 bits, so that n · LN2_HIGH is exact
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 87.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let f = x - n * LN2_HIGH - n * LN2_LOW; // |f| ≤ ln 2 / 2
    // Cephes' minimax polynomial for (e^f - 1 - f) / f².
    let p = 1.987_569_1e-4;
    let p = p * f + 1.398_2e-3;
    let p = p * f + 8.333_452e-3;
    let p = p * f + 4.166_579_6e-2;
    let p = p * f + 1.666_666_5e-1;
    let p = p * f + 0.5;
    // 2^n, made from its exponent bits.
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    (p * f * f + f + 1.0) * f32::from_bits(power)
}

/// Returns ln x to 2 units in the last place, for normal x > 0.
#[inline(always)]
pub(crate) fn ln(x: f32) -> f32 {
    // x = m · 2^e with m between √½ and √2, and ln m by Cephes' polynomial in f = m - 1.
    let shifted = x.to_bits().wrapping_sub(std::f32::consts::FRAC_1_SQRT_2.to_bits());
    let e = ((shifted as i32) >> 23) as f32;
    let m = f32::from_bits((shifted & 0x007f_ffff).wrapping_add(std::f32::consts::FRAC_1_SQRT_2.to_bits()));
    let f = m - 1.0;
    let p = 7.037_683_6e-2;
    let p = p * f - 1.151_461e-1;
    let p = p * f + 1.167_699_9e-1;
    let p = p * f - 1.242_014_1e-1;
    let p = p * f + 1.424_932_3e-1;
    let p = p * f - 1.666_805_7e-1;
    let p = p * f + 2.000_071_5e-1;
    let p = p * f - 2.499_999_4e-1;
    let p = p * f + 3.333_333e-1;
    // e · ln 2 is added in two parts, the small one first.
    let square = f * f;
    let small = f * square * p + e * -2.121_944_4e-4 - 0.5 * square;
    f + small + e * 0.693_359_4
}

/// Returns the largest value. It keeps one maximum per lane, so that the loop becomes vector code.
#[inline(always)]
pub fn largest(values: &[f32]) -> f32 {
    let mut tops = [f32::NEG_INFINITY; 16];
    for values in values.chunks(16) {
        tops.iter_mut().zip(values).for_each(|(top, &value)| *top = if value > *top { value } else { *top });
    }
    tops.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// Returns `ln Σ e^value`.
#[inline(always)]
pub(crate) fn log_sum_exp(values: &[f32]) -> f32 {
    let top = largest(values);
    top + sum(values, |value| exp(value - top)).ln()
}

/// Returns `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The factor of x inside the sigmoid of the fast GELU.
pub(crate) const GELU_SLOPE: f32 = 1.702;

/// Returns the fast GELU, `x · sigmoid(1.702 x)`.
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    x * sigmoid(GELU_SLOPE * x)
}

/// Returns the derivative of [`gelu`].
#[inline(always)]
pub(crate) fn gelu_slope(x: f32) -> f32 {
    let s = sigmoid(GELU_SLOPE * x);
    s * (1.0 + GELU_SLOPE * x * (1.0 - s))
}

/// Returns `Σ f(x)`, computed in sixteen lanes that are added in a fixed order.
#[inline(always)]
pub(crate) fn sum<T: Number>(values: &[T], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; 16];
    let (whole, rest) = values.as_chunks::<16>();
    for chunk in whole {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &value)| *lane += f(value.value()));
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, &value)| *lane += f(value.value()));
    add_lanes(lanes)
}

/// Returns `Σ f(a, b, c)`, computed like [`sum`].
#[inline(always)]
pub(crate) fn sum3<A: Number, B: Number, C: Number>(
    a: &[A],
    b: &[B],
    c: &[C],
    f: impl Fn(f32, f32, f32) -> f32,
) -> f32 {
    let mut lanes = [0.0; 16];
    let ((a, a_rest), (b, b_rest), (c, c_rest)) =
        (a.as_chunks::<16>(), b.as_chunks::<16>(), c.as_chunks::<16>());
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        for lane in 0..16 {
            lanes[lane] += f(a[lane].value(), b[lane].value(), c[lane].value());
        }
    }
    for (lane, ((a, b), c)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest).zip(c_rest)) {
        *lane += f(a.value(), b.value(), c.value());
    }
    add_lanes(lanes)
}

/// Returns the sum of sixteen lanes, halves first.
#[inline(always)]
pub(crate) fn add_lanes(mut lanes: [f32; 16]) -> f32 {
    for width in [8, 4, 2, 1] {
        (0..width).for_each(|i| lanes[i] += lanes[i + width]);
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_in_its_range() {
        for i in -86_900..=86_900 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.5e-7, "e^{x}: {} is off by {error:e}", exp(x));
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn ln_is_accurate_in_its_range() {
        for i in 0..200_000 {
            let x = f32::from_bits(0x0080_0000 + i * 10_000);
            let exact = f64::from(x).ln();
            let error = (f64::from(ln(x)) - exact).abs();
            assert!(error <= 2.5e-7 * exact.abs().max(1e-6), "ln {x:e}: {} is off by {error:e}", ln(x));
        }
        for below_one in 1..=1 << 12 {
            let x = 1.0 - below_one as f32 / (1 << 24) as f32;
            let exact = f64::from(x).ln();
            assert!((f64::from(ln(x)) - exact).abs() <= 2.5e-7 * exact.abs(), "ln {x}");
        }
    }

    #[test]
    fn gelu_slope_equals_numerical_derivative() {
        for i in -60..60 {
            let x = i as f32 * 0.1;
            let slope = (f64::from(gelu(x + 1e-2)) - f64::from(gelu(x - 1e-2))) / 2e-2;
            assert!((f64::from(gelu_slope(x)) - slope).abs() < 1e-3, "at {x}");
        }
    }
}
