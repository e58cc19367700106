//! Numbers kept in 32 bits or in 16 (paper §D.2): moments, error buffers, and the matrix that PowerSGD draws once.

use rayon::prelude::*;
use tessera_kernels::SmallFloat;

/// Numbers in 32 bits or in a format of 16.
#[derive(Debug, Clone, PartialEq)]
pub enum Buffer {
    /// In 32 bits.
    Full(Vec<f32>),
    /// In 16 bits, as codes.
    Small(SmallFloat, Vec<u16>),
}

impl Buffer {
    /// `values` as they are in `format`, or in 32 bits if there is none. What is too large becomes infinite.
    pub fn new(values: Vec<f32>, format: Option<SmallFloat>) -> Buffer {
        match format {
            None => Buffer::Full(values),
            Some(format) => {
                Buffer::Small(format, values.par_iter().map(|&value| format.encode(value)).collect())
            }
        }
    }

    /// How many numbers there are.
    pub fn size(&self) -> usize {
        match self {
            Buffer::Full(values) => values.len(),
            Buffer::Small(_, codes) => codes.len(),
        }
    }

    /// The numbers.
    pub fn values(&self) -> Vec<f32> {
        match self {
            Buffer::Full(values) => values.clone(),
            Buffer::Small(format, codes) => codes.par_iter().map(|&code| format.decode(code)).collect(),
        }
    }

    /// Lets `change` change the numbers; those too large for the format become its largest.
    pub fn change<T>(&mut self, change: impl FnOnce(&mut [f32]) -> T) -> T {
        let mut values = match self {
            Buffer::Full(values) => return change(values),
            Buffer::Small(..) => self.values(),
        };
        let result = change(&mut values);
        if let Buffer::Small(format, codes) = self {
            let new = values.par_iter().map(|&value| format.encode(format.clamp(value)));
            codes.par_iter_mut().zip(new).for_each(|(code, new)| *code = new);
        }
        result
    }

    /// Adds `factor · values`, element by element. What is too large becomes infinite.
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

    /// Whether all numbers are finite.
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
    fn sums_are_rounded_to_what_is_kept_and_overflow_to_infinity() {
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
