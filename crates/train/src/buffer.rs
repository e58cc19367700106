//! Arrays on the host, stored in 32 or 16 bits (paper §D.2): PowerSGD's error buffers and random
//! matrix.

use rayon::prelude::*;
use tessera_kernels::SmallFloat;

/// An array in f32 or in a 16-bit format.
#[derive(Debug, Clone, PartialEq)]
pub enum Buffer {
    /// The values in f32.
    Full(Vec<f32>),
    /// A 16-bit format, and the values encoded in it.
    Small(SmallFloat, Vec<u16>),
}

impl Buffer {
    /// Stores `values` in `format`, or in f32 if it is `None`. Values too large for the format
    /// become infinite.
    pub fn new(values: Vec<f32>, format: Option<SmallFloat>) -> Buffer {
        match format {
            None => Buffer::Full(values),
            Some(format) => {
                Buffer::Small(format, values.par_iter().map(|&value| format.encode(value)).collect())
            }
        }
    }

    /// Returns the number of values.
    pub fn size(&self) -> usize {
        match self {
            Buffer::Full(values) => values.len(),
            Buffer::Small(_, codes) => codes.len(),
        }
    }

    /// Returns the values in f32.
    pub fn values(&self) -> Vec<f32> {
        match self {
            Buffer::Full(values) => values.clone(),
            Buffer::Small(format, codes) => codes.par_iter().map(|&code| format.decode(code)).collect(),
        }
    }

    /// Adds `factor · values`, element by element. Sums too large for the format become infinite.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add(&mut self, factor: f32, values: &[f32]) {
        assert!(self.size() == values.len(), "add: {} numbers and {}", self.size(), values.len());
        match self {
            Buffer::Full(sums) => {
                sums.par_iter_mut().zip(values).for_each(|(sum, value)| *sum += factor * value);
            }
            Buffer::Small(format, codes) => codes.par_iter_mut().zip(values).for_each(|(code, value)| {
                *code = format.encode(format.decode(*code) + factor * value);
            }),
        }
    }

    /// Returns whether all values are finite.
    pub fn is_finite(&self) -> bool {
        match self {
            Buffer::Full(values) => values.par_iter().all(|value| value.is_finite()),
            Buffer::Small(format, codes) => codes.par_iter().all(|&code| format.decode(code).is_finite()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_rounded_to_the_format_and_overflow_to_infinity() {
        let mut full = Buffer::new(vec![1.0, 10.0], None);
        let mut small = Buffer::new(vec![1.0, 10.0], Some(SmallFloat::OneSixNine));
        for buffer in [&mut full, &mut small] {
            buffer.add(0.5, &[2.0_f32.powi(-10), 10.0]);
        }
        assert_eq!(full.values(), [1.0 + 2.0_f32.powi(-11), 15.0]);
        assert_eq!(small.values(), [1.0, 15.0]);
        small.add(-1.0, &[0.0, -1.0]);
        assert!(full.is_finite() && !small.is_finite());
        assert_eq!(small.values()[1], f32::INFINITY);
    }
}
