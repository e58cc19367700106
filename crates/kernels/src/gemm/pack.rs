//! Packed operands, as the micro-kernel reads them: the left one as rows of units, the right one as
//! panels of 16 columns.

use bytemuck::Pod;
use half::bf16;

use super::simd::{LANES, Pair};

/// A slice of f32 or bf16 values.
#[derive(Debug, Clone, Copy)]
pub enum FloatSlice<'a> {
    /// Values of 32 bits.
    F32(&'a [f32]),
    /// Values of 16 bits.
    Bf16(&'a [bf16]),
}

impl<'a> FloatSlice<'a> {
    /// Returns the number of values.
    pub fn len(self) -> usize {
        match self {
            FloatSlice::F32(values) => values.len(),
            FloatSlice::Bf16(values) => values.len(),
        }
    }

    /// Returns `len` values from `start` on.
    #[inline(always)]
    pub fn slice(self, start: usize, len: usize) -> FloatSlice<'a> {
        match self {
            FloatSlice::F32(values) => FloatSlice::F32(&values[start..start + len]),
            FloatSlice::Bf16(values) => FloatSlice::Bf16(&values[start..start + len]),
        }
    }
}

/// A matrix in memory, one of whose dimensions is K, which a product sums over.
#[derive(Debug, Clone, Copy)]
pub struct Operand<'a> {
    /// The values of the matrix.
    pub numbers: FloatSlice<'a>,
    /// The distance from one row in memory to the next.
    pub stride: usize,
    /// Whether a row in memory runs along K. If not, it holds one step of K.
    pub along_k: bool,
}

impl<'a> Operand<'a> {
    /// Describes rows in memory, `stride` values apart, each of which runs along K.
    pub fn along(numbers: FloatSlice<'a>, stride: usize) -> Operand<'a> {
        Operand { numbers, stride, along_k: true }
    }

    /// Describes rows in memory, `stride` values apart, each of which holds one step of K.
    pub fn across(numbers: FloatSlice<'a>, stride: usize) -> Operand<'a> {
        Operand { numbers, stride, along_k: false }
    }

    /// Returns the number of values that a matrix of `others` × `k` needs.
    pub(super) fn extent(&self, others: usize, k: usize) -> usize {
        let [rows, length] = if self.along_k { [others, k] } else { [k, others] };
        if rows == 0 || length == 0 { 0 } else { (rows - 1) * self.stride + length }
    }
}

/// The part of K that the micro-kernel multiplies with one operation.
pub trait Unit: Pod + Default + Send + Sync {
    /// The number of steps of K in a unit.
    const VALUES: usize;

    /// Makes units of neighbouring values. The last unit is filled with 0 if values are missing.
    fn along(numbers: FloatSlice, units: &mut [Self]);

    /// Makes units of values that are above each other in neighbouring rows. A missing second row
    /// counts as 0.
    fn across(first: FloatSlice, second: Option<FloatSlice>, units: &mut [Self]);

    /// Replaces the value at step `step` of the unit; 0 is the first.
    fn put(&mut self, step: usize, value: f32);

    /// Returns the unit with negative values replaced by 0.
    fn relu(self) -> Self;

    /// Returns the values as units without a copy, if they need no conversion.
    fn in_place(numbers: FloatSlice<'_>) -> Option<&[Self]>;

    /// Returns the values that the units consist of.
    fn numbers(units: &[Self]) -> FloatSlice<'_>;
}

impl Unit for f32 {
    const VALUES: usize = 1;

    #[inline(always)]
    fn along(numbers: FloatSlice, units: &mut [f32]) {
        match numbers {
            FloatSlice::F32(values) => units.copy_from_slice(values),
            FloatSlice::Bf16(values) => {
                units.iter_mut().zip(values).for_each(|(unit, value)| *unit = widen(*value))
            }
        }
    }

    #[inline(always)]
    fn across(first: FloatSlice, _: Option<FloatSlice>, units: &mut [f32]) {
        Self::along(first, units);
    }

    fn put(&mut self, _: usize, value: f32) {
        *self = value;
    }

    #[inline(always)]
    fn relu(self) -> f32 {
        self.max(0.0)
    }

    fn in_place(numbers: FloatSlice<'_>) -> Option<&[f32]> {
        match numbers {
            FloatSlice::F32(values) => Some(values),
            FloatSlice::Bf16(_) => None,
        }
    }

    fn numbers(units: &[f32]) -> FloatSlice<'_> {
        FloatSlice::F32(units)
    }
}

impl Unit for Pair {
    const VALUES: usize = 2;

    #[inline(always)]
    fn along(numbers: FloatSlice, units: &mut [Pair]) {
        match numbers {
            FloatSlice::F32(values) => {
                let (pairs, rest) = values.as_chunks::<2>();
                units
                    .iter_mut()
                    .zip(pairs)
                    .for_each(|(unit, &[low, high])| *unit = pair(narrow(low), narrow(high)));
                if let ([last], Some(unit)) = (rest, units.last_mut()) {
                    *unit = pair(narrow(*last), 0);
                }
            }
            FloatSlice::Bf16(values) => {
                let (pairs, rest) = values.as_chunks::<2>();
                units
                    .iter_mut()
                    .zip(pairs)
                    .for_each(|(unit, [low, high])| *unit = pair(low.to_bits(), high.to_bits()));
                if let ([last], Some(unit)) = (rest, units.last_mut()) {
                    *unit = pair(last.to_bits(), 0);
                }
            }
        }
    }

    #[inline(always)]
    fn across(first: FloatSlice, second: Option<FloatSlice>, units: &mut [Pair]) {
        match (first, second) {
            (FloatSlice::F32(low), Some(FloatSlice::F32(high))) => {
                let rows = low.iter().zip(high);
                units
                    .iter_mut()
                    .zip(rows)
                    .for_each(|(unit, (&low, &high))| *unit = pair(narrow(low), narrow(high)));
            }
            (FloatSlice::Bf16(low), Some(FloatSlice::Bf16(high))) => {
                let rows = low.iter().zip(high);
                units
                    .iter_mut()
                    .zip(rows)
                    .for_each(|(unit, (low, high))| *unit = pair(low.to_bits(), high.to_bits()));
            }
            (FloatSlice::F32(low), _) => {
                units.iter_mut().zip(low).for_each(|(unit, &low)| *unit = pair(narrow(low), 0));
            }
            (FloatSlice::Bf16(low), _) => {
                units.iter_mut().zip(low).for_each(|(unit, low)| *unit = pair(low.to_bits(), 0));
            }
        }
    }

    fn put(&mut self, step: usize, value: f32) {
        let bits = u32::from(narrow(value));
        *self = if step == 0 { *self & 0xffff_0000 | bits } else { *self & 0xffff | bits << 16 };
    }

    #[inline(always)]
    fn relu(self) -> Pair {
        // An arithmetic shift copies the sign bit of each half to all bits of that half.
        let high = ((self as i32) >> 31) as u32 & 0xffff_0000;
        let low = (((self << 16) as i32) >> 31) as u32 & 0xffff;
        self & !(high | low)
    }

    fn in_place(numbers: FloatSlice<'_>) -> Option<&[Pair]> {
        match numbers {
            FloatSlice::Bf16(values) => bytemuck::try_cast_slice(values).ok(),
            FloatSlice::F32(_) => None,
        }
    }

    fn numbers(units: &[Pair]) -> FloatSlice<'_> {
        FloatSlice::Bf16(bytemuck::cast_slice(units))
    }
}

#[inline(always)]
fn pair(low: u16, high: u16) -> Pair {
    u32::from(low) | u32::from(high) << 16
}

/// Returns the bits of the nearest bf16, with ties to even. There is no branch, so the compiler can
/// vectorize loops over it.
#[inline(always)]
pub(crate) fn narrow(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    // A NaN must stay a NaN: the upper half of its fraction could be 0.
    ((if value.is_nan() { bits | 0x0040_0000 } else { rounded }) >> 16) as u16
}

#[inline(always)]
pub(crate) fn widen(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// Packs columns `first ..` of a right operand with `n` columns into `panel`: sixteen units for
/// each unit of K.
#[inline(always)]
pub(super) fn panel<U: Unit>(b: &Operand<'_>, [first, n]: [usize; 2], k: usize, panel: &mut [U]) {
    let columns = LANES.min(n - first);
    match b.along_k {
        true => panel_along(|column| b.numbers.slice((first + column) * b.stride, k), columns, k, panel),
        false => panel_across(|step| b.numbers.slice(step * b.stride + first, columns), columns, k, panel),
    }
}

/// Packs a panel from rows of `columns` values, one row per step of K. The rest of the panel
/// becomes 0.
#[inline(always)]
pub(crate) fn panel_across<'a, U: Unit>(
    row: impl Fn(usize) -> FloatSlice<'a>,
    columns: usize,
    k: usize,
    panel: &mut [U],
) {
    let used = if columns < LANES { 0 } else { k.div_ceil(U::VALUES) * LANES };
    panel[used..].fill(U::default());
    for (unit, first) in panel.chunks_exact_mut(LANES).zip((0..k).step_by(U::VALUES)) {
        U::across(row(first), (first + 1 < k).then(|| row(first + 1)), &mut unit[..columns]);
    }
}

/// Packs a panel from `columns` rows of `k` values, each along K. Missing columns become 0.
#[inline(always)]
pub(crate) fn panel_along<'a, U: Unit>(
    row: impl Fn(usize) -> FloatSlice<'a>,
    columns: usize,
    k: usize,
    panel: &mut [U],
) {
    const STRETCH: usize = 16;
    let mut rows = [[U::default(); STRETCH]; LANES];
    for (units, first) in panel.chunks_mut(LANES * STRETCH).zip((0..k).step_by(U::VALUES * STRETCH)) {
        let steps = (U::VALUES * STRETCH).min(k - first);
        // Pack some units of every column, then write them transposed.
        for (column, stretch) in rows.iter_mut().enumerate().take(columns) {
            U::along(row(column).slice(first, steps), &mut stretch[..units.len() / LANES]);
        }
        for (step, unit) in units.chunks_exact_mut(LANES).enumerate() {
            unit.iter_mut().zip(&rows).for_each(|(unit, row)| *unit = row[step]);
        }
    }
}
