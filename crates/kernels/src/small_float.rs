//! The 16-bit floating-point formats that the paper stores numbers in (§2.4, §D): f16, bf16, and
//! two formats with a 6-bit exponent. A format with a 3-bit exponent shows at a small size what a
//! large model does to the 5 bits of f16 (`docs/precision.md`).
//!
//! `1-6-9` (bits of sign, exponent and significand) holds running means and error buffers, `0-6-10`
//! running variances. Both have an exponent bias of 59 and reserve the top exponent for infinity
//! and NaN: the largest number of `1-6-9` is then 15.984, "slightly less than 16" (§D), and the
//! smallest normal one 2⁻⁵⁸. The paper states neither bias nor rounding; this implementation rounds
//! to nearest, ties to even.

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// A 16-bit floating-point format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SmallFloat {
    /// IEEE half precision: a sign, 5 bits of exponent, 10 of significand.
    #[serde(rename = "f16")]
    F16,
    /// A sign, 8 bits of exponent, 7 of significand: the upper half of an f32.
    #[serde(rename = "bf16")]
    Bf16,
    /// A sign, 6 bits of exponent, 9 of significand.
    #[serde(rename = "1-6-9")]
    OneSixNine,
    /// No sign, 6 bits of exponent, 10 of significand.
    #[serde(rename = "0-6-10")]
    ZeroSixTen,
    /// A sign, 3 bits of exponent, 12 of significand: like IEEE formats, with far less range than
    /// f16.
    #[serde(rename = "1-3-12")]
    OneThreeTwelve,
}

/// The layout of a magnitude: the bits of its significand, the bias of its exponent, and the
/// exponent of infinity and NaN.
#[derive(Debug, Clone, Copy)]
struct Layout {
    significand: u32,
    bias: u32,
    top: u32,
}

const SIX_NINE: Layout = Layout { significand: 9, bias: 59, top: 63 };
const SIX_TEN: Layout = Layout { significand: 10, bias: 59, top: 63 };
const THREE_TWELVE: Layout = Layout { significand: 12, bias: 3, top: 7 };
/// The bits of an f32's significand, and the bias of its exponent.
const F32_SIGNIFICAND: u32 = 23;
const F32_BIAS: u32 = 127;

impl SmallFloat {
    /// Returns the code of the nearest number, ties to even. Values that are too large become
    /// infinite. Negative values become NaN in a format without a sign.
    #[inline]
    pub fn encode(self, value: f32) -> u16 {
        match self {
            SmallFloat::F16 => f16::from_f32(value).to_bits(),
            SmallFloat::Bf16 => bf16::from_f32(value).to_bits(),
            SmallFloat::OneSixNine => SIX_NINE.encode_signed(value),
            SmallFloat::OneThreeTwelve => THREE_TWELVE.encode_signed(value),
            SmallFloat::ZeroSixTen if value < 0.0 => SIX_TEN.encode(f32::NAN),
            SmallFloat::ZeroSixTen => SIX_TEN.encode(value.abs()), // −0 becomes 0
        }
    }

    /// Returns the number that `code` stands for, exactly.
    #[inline]
    pub fn decode(self, code: u16) -> f32 {
        match self {
            SmallFloat::F16 => f16::from_bits(code).to_f32(),
            SmallFloat::Bf16 => bf16::from_bits(code).to_f32(),
            SmallFloat::OneSixNine => SIX_NINE.decode_signed(code),
            SmallFloat::OneThreeTwelve => THREE_TWELVE.decode_signed(code),
            SmallFloat::ZeroSixTen => SIX_TEN.decode(code),
        }
    }

    /// Returns the nearest number of the format.
    #[inline]
    pub fn round(self, value: f32) -> f32 {
        self.decode(self.encode(value))
    }

    /// Returns the largest finite number.
    pub fn largest(self) -> f32 {
        match self {
            SmallFloat::F16 => f16::MAX.to_f32(),
            SmallFloat::Bf16 => bf16::MAX.to_f32(),
            SmallFloat::OneSixNine => SIX_NINE.largest(),
            SmallFloat::OneThreeTwelve => THREE_TWELVE.largest(),
            SmallFloat::ZeroSixTen => SIX_TEN.largest(),
        }
    }

    /// Returns the smallest number above 0.
    pub fn smallest(self) -> f32 {
        self.decode(1)
    }

    /// Returns the number of bits of the significand.
    pub fn significand(self) -> u32 {
        match self {
            SmallFloat::Bf16 => 7,
            SmallFloat::F16 | SmallFloat::ZeroSixTen => 10,
            SmallFloat::OneSixNine => 9,
            SmallFloat::OneThreeTwelve => 12,
        }
    }

    /// Returns the nearest finite number of the format: values that would become infinite become
    /// the largest (§E.2, step 4). NaN stays NaN.
    #[inline]
    pub fn clamp(self, value: f32) -> f32 {
        self.round(value.clamp(-self.largest(), self.largest()))
    }
}

impl Layout {
    #[inline]
    fn encode_signed(self, value: f32) -> u16 {
        u16::from(value.is_sign_negative()) << 15 | self.encode(value.abs())
    }

    /// Returns the code of `magnitude`, which is not negative.
    #[inline]
    fn encode(self, magnitude: f32) -> u16 {
        let Layout { significand, bias, top } = self;
        let infinite = top << significand;
        if magnitude.is_nan() {
            return (infinite | 1 << (significand - 1)) as u16;
        }
        let bits = magnitude.to_bits();
        // The f32's exponent with the format's bias. If it is less than 1, the number is subnormal:
        // a multiple of the smallest number.
        let exponent = (bits >> F32_SIGNIFICAND) as i32 + bias as i32 - F32_BIAS as i32;
        let drop = F32_SIGNIFICAND - significand;
        let code = if exponent >= 1 {
            let rebiased = bits - ((F32_BIAS - bias) << F32_SIGNIFICAND);
            shift_right_to_even(rebiased, drop)
        } else {
            let one = 1 << F32_SIGNIFICAND;
            shift_right_to_even(bits & (one - 1) | one, drop + exponent.abs_diff(1))
        };
        code.min(infinite) as u16
    }

    #[inline]
    fn decode_signed(self, code: u16) -> f32 {
        self.decode(code & 0x7fff).copysign(if code >> 15 == 1 { -1.0 } else { 1.0 })
    }

    #[inline]
    fn decode(self, code: u16) -> f32 {
        let Layout { significand, bias, top } = self;
        let (exponent, fraction) =
            (u32::from(code) >> significand, u32::from(code) & ((1 << significand) - 1));
        match exponent {
            0 => fraction as f32 * exp2(1 - bias as i32 - significand as i32),
            _ if exponent == top && fraction == 0 => f32::INFINITY,
            _ if exponent == top => f32::NAN,
            _ => f32::from_bits(
                (exponent + F32_BIAS - bias) << F32_SIGNIFICAND | fraction << (F32_SIGNIFICAND - significand),
            ),
        }
    }

    fn largest(self) -> f32 {
        self.decode((self.top << self.significand) as u16 - 1)
    }
}

/// Returns `value / 2^by`, rounded to the nearest integer, ties to even.
#[inline]
fn shift_right_to_even(value: u32, by: u32) -> u32 {
    if by > 25 {
        return 0; // less than one half is left of 24 bits
    }
    let odd = value >> by & 1;
    (value + (1 << (by - 1)) - 1 + odd) >> by
}

/// Returns 2 to the power of an exponent in the range of normal f32.
#[inline]
fn exp2(exponent: i32) -> f32 {
    f32::from_bits(((exponent + F32_BIAS as i32) as u32) << F32_SIGNIFICAND)
}

#[cfg(test)]
mod tests {
    use super::*;

    use SmallFloat::{Bf16, F16, OneSixNine, OneThreeTwelve, ZeroSixTen};

    const ALL: [SmallFloat; 5] = [F16, Bf16, OneSixNine, ZeroSixTen, OneThreeTwelve];

    #[test]
    fn every_code_survives_the_round_trip() {
        for format in ALL {
            for code in 0..=u16::MAX {
                let value = format.decode(code);
                match value.is_nan() {
                    true => assert!(format.decode(format.encode(value)).is_nan(), "{format:?} {code:04x}"),
                    false => assert_eq!(format.encode(value), code, "{format:?} {code:04x} is {value}"),
                }
            }
        }
    }

    /// A value between two neighbours becomes the nearer one, and the one with the even code at a
    /// tie.
    #[test]
    fn every_gap_is_rounded_to_the_nearest_and_ties_to_even() {
        for format in ALL {
            for code in 0..u16::MAX {
                let [low, high] = [code, code + 1].map(|code| f64::from(format.decode(code)));
                if !(low >= 0.0 && high.is_finite() && high > low) {
                    continue; // negative, not finite, or from the largest number to −0
                }
                let near = |share: f64| format.encode((low + share * (high - low)) as f32);
                assert_eq!(near(0.4), code, "{format:?} above {low}");
                assert_eq!(near(0.6), code + 1, "{format:?} below {high}");
                assert_eq!(near(0.5), code + code % 2, "{format:?} between {low} and {high}");
            }
        }
    }

    #[test]
    fn ranges_are_those_of_the_paper() {
        let of_mean = SmallFloat::OneSixNine;
        assert_eq!(of_mean.largest(), 15.984_375); // "slightly less than 16"
        assert_eq!(of_mean.smallest(), 2.0_f32.powi(-67));
        assert_eq!(of_mean.round(-3.5e-18_f32).signum(), -1.0);
        let of_variance = SmallFloat::ZeroSixTen;
        assert_eq!(of_variance.largest(), 15.992_187_5); // variances are clipped at 5
        assert_eq!(of_variance.smallest(), 2.0_f32.powi(-68));
        assert_eq!(of_variance.round(5.0), 5.0);
        assert_eq!(
            [OneThreeTwelve.largest(), OneThreeTwelve.smallest()],
            [16.0 - 2.0_f32.powi(-9), 2.0_f32.powi(-14)]
        );
        for format in ALL {
            let one_and = format.decode(format.encode(1.0) + 1);
            assert_eq!(one_and, 1.0 + 2.0_f32.powi(-(format.significand() as i32)), "{format:?}");
        }
    }

    #[test]
    fn overflow_is_infinite_unless_clamped_and_keeps_its_sign() {
        let half_a_step = 2.0_f32.powi(-7);
        assert_eq!(SmallFloat::OneSixNine.round(15.984_375 + 0.99 * half_a_step), 15.984_375);
        assert_eq!(SmallFloat::OneSixNine.round(16.0), f32::INFINITY);
        assert_eq!(SmallFloat::OneSixNine.round(-1e30), f32::NEG_INFINITY);
        assert_eq!(SmallFloat::OneSixNine.clamp(f32::NEG_INFINITY), -15.984_375);
        assert!(SmallFloat::OneSixNine.clamp(f32::NAN).is_nan());
        assert_eq!(SmallFloat::OneSixNine.round(1e-30), 0.0);
        assert!(SmallFloat::OneSixNine.round(-1e-30).is_sign_negative());
        assert!(SmallFloat::ZeroSixTen.round(-1.0).is_nan());
        assert_eq!(SmallFloat::ZeroSixTen.round(-0.0), 0.0);
    }

    #[test]
    fn normal_numbers_are_off_by_at_most_half_a_step() {
        for (format, bits) in [(SmallFloat::OneSixNine, 9), (SmallFloat::ZeroSixTen, 10)] {
            let mut value = 2.0_f32.powi(-58);
            while value < format.largest() {
                let error = (format.round(value) - value).abs() / value;
                assert!(error <= 2.0_f32.powi(-bits - 1), "{format:?}: {value} is off by {error}");
                value *= 1.003_7;
            }
        }
    }
}
