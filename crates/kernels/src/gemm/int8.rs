//! A right operand in 8 bits with one scale (`step`) per column. Generation uses it, because it
//! reads all weights again for every token.
//!
//! A weight is stored as its code, an integer from -127 to 127, and stands for `code · step`. On
//! CPUs with bf16 products, which also multiply integers (`vpdpbusd`), each row of the left operand
//! is quantized in the same way; the sums are integers and exact until they become f32. Other CPUs
//! widen panels to f32 in a core's cache just before they multiply them. Finished sums are
//! multiplied by the scales.

use std::ops::Range;

use rayon::prelude::*;

use super::{LANES, Micro, SERIAL, Segment, SegmentSink, Strides, TileEpilogue, with_f32_micro};
use crate::cpu::{Body, Cpu};
use crate::scratch::Scratch;

/// The largest code.
const TOP: f32 = 127.0;
/// The value added to a weight's code to make it unsigned: `vpdpbusd` multiplies signed by unsigned
/// integers.
const OFFSET: u8 = 128;
/// The number of integers in a unit.
const QUAD: usize = 4;
/// The maximum K for which sums of integers fit into 32 bits.
const MAX_K: usize = (i32::MAX / (255 * 127)) as usize;
/// The number of units of K that are widened at a time, so that a group of panels stays in a core's
/// L2 cache.
const STRETCH: usize = 512;
/// Rows of the left operand that one task quantizes.
const ROWS: usize = 8;

/// Quantizes `weight` `[k, n]`: returns the code of each weight and the scale of each column, which
/// is its largest magnitude / 127.
pub(crate) fn quantize(weight: &[f32], n: usize) -> (Vec<i8>, Vec<f32>) {
    let mut steps = vec![0.0_f32; n];
    for row in weight.chunks_exact(n) {
        steps.iter_mut().zip(row).for_each(|(step, weight)| *step = step.max(weight.abs() / TOP));
    }
    let code = |(weight, step): (&f32, &f32)| if *step > 0.0 { (weight / step).round() as i8 } else { 0 };
    (weight.chunks_exact(n).flat_map(|row| row.iter().zip(&steps).map(code)).collect(), steps)
}

/// A right operand in 8 bits, packed.
#[derive(Debug, Clone)]
pub(crate) struct Int8Panels {
    cpu: Cpu,
    n: usize,
    k: usize,
    /// The codes, with [`OFFSET`] added to each. Indexed by panel, unit of K, column, and value of
    /// the unit.
    codes: Vec<u8>,
    /// The scale of each column.
    steps: Vec<f32>,
}

impl Int8Panels {
    /// Quantizes and packs `weight` `[k, n]`.
    ///
    /// # Panics
    /// If `k` is so large that sums of integers could overflow.
    pub(crate) fn new(cpu: Cpu, weight: &[f32], n: usize) -> Int8Panels {
        let k = weight.len() / n;
        assert!(k <= MAX_K, "8-bit weights of {k} rows: wanted at most {MAX_K}");
        let values = if cpu.bf16() { QUAD } else { 1 };
        let (plain, steps) = quantize(weight, n);
        let units = k.div_ceil(values);
        let mut codes = vec![OFFSET; n.div_ceil(LANES) * units * LANES * values];
        for (i, row) in plain.chunks_exact(n).enumerate() {
            for (column, &code) in row.iter().enumerate() {
                let unit = column / LANES * units + i / values;
                codes[(unit * LANES + column % LANES) * values + i % values] = code as u8 ^ OFFSET;
            }
        }
        Int8Panels { cpu, n, k, codes, steps }
    }

    /// Multiplies rows `a` `[m, k]` by the operand and passes the sums to `epilogue`.
    pub(crate) fn multiply<E: TileEpilogue>(&self, m: usize, a: &[f32], epilogue: &E) {
        match self.cpu.bf16() {
            #[cfg(target_arch = "x86_64")]
            true => self.rounded(m, a, epilogue),
            _ => with_f32_micro!(self.cpu, S => self.widened::<S, E>(m, a, epilogue)),
        }
    }

    /// Returns `[n, k]`: the number of columns and of steps of K.
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.n, self.k]
    }

    /// Multiplies integers: quantizes the rows first.
    #[cfg(target_arch = "x86_64")]
    fn rounded<E: TileEpilogue>(&self, m: usize, a: &[f32], epilogue: &E) {
        let row = (self.k.div_ceil(QUAD) * QUAD).max(1);
        let mut codes = Scratch::<i8>::new(m * row);
        let mut scales = Scratch::<RowScale>::new(m);
        let rows = codes.par_chunks_mut(ROWS * row).zip(scales.par_chunks_mut(ROWS)).enumerate();
        rows.for_each(|(i, (codes, scales))| {
            self.cpu.supported().run(RoundRows { a: &a[i * ROWS * self.k..], k: self.k, codes, scales });
        });
        let (codes, scales) = (&codes, &scales);
        self.groups(m, super::Vnni::WIDEST, |panels| {
            self.cpu.supported().run(Quantized { weights: self, codes, scales, m, panels, epilogue });
        });
    }

    /// Multiplies f32: widens the weights first.
    fn widened<S: Micro<Unit = f32>, E: TileEpilogue>(&self, m: usize, a: &[f32], epilogue: &E) {
        self.groups(m, S::WIDEST, |panels| {
            let simd = std::marker::PhantomData;
            self.cpu.supported().run(Widened::<S, E> { weights: self, rows: a, m, panels, epilogue, simd });
        });
    }

    /// Calls `job` for all panels, `wide` of them at a time.
    fn groups(&self, m: usize, wide: usize, job: impl Fn(Range<usize>) + Sync) {
        let panels = self.n.div_ceil(LANES);
        let group = |i: usize| job(i * wide..((i + 1) * wide).min(panels));
        match m * self.n * self.k < SERIAL {
            true => (0..panels.div_ceil(wide)).for_each(group),
            false => (0..panels.div_ceil(wide)).into_par_iter().for_each(group),
        }
    }
}

/// How a row's sums of integers are converted to products.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct RowScale {
    /// The row's scale.
    step: f32,
    /// What [`OFFSET`] added to each sum: `OFFSET` times the sum of the row's codes.
    surplus: f32,
}

/// Quantizes rows of the left operand, each with its own scale.
struct RoundRows<'a> {
    a: &'a [f32],
    k: usize,
    /// The codes; a row is filled with 0 to a multiple of four.
    codes: &'a mut [i8],
    scales: &'a mut [RowScale],
}

impl Body for RoundRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        /// Adding this to a small number leaves the nearest integer, with ties to even, in the low
        /// bits of the sum.
        const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³
        let row = self.codes.len() / self.scales.len();
        for (i, scale) in self.scales.iter_mut().enumerate() {
            let values = &self.a[i * self.k..(i + 1) * self.k];
            let (codes, rest) = self.codes[i * row..(i + 1) * row].split_at_mut(self.k);
            // The bits of magnitudes are compared as integers. A NaN is then the largest, so the
            // scale and all products of the row become NaN.
            let top = values.iter().fold(0, |top, value| top.max(value.to_bits() & 0x7fff_ffff));
            let top = f32::from_bits(top);
            let inverse = if top > 0.0 { TOP / top } else { 0.0 };
            let mut total = 0;
            for (code, value) in codes.iter_mut().zip(values) {
                *code = (value * inverse + ROUND).to_bits() as i8;
                total += i32::from(*code);
            }
            rest.fill(0);
            *scale = RowScale { step: top / TOP, surplus: (total * i32::from(OFFSET)) as f32 };
        }
    }
}

/// Multiplies quantized rows by the panels of one tile's width.
#[cfg(target_arch = "x86_64")]
struct Quantized<'a, E> {
    weights: &'a Int8Panels,
    codes: &'a [i8],
    scales: &'a [RowScale],
    m: usize,
    panels: Range<usize>,
    epilogue: &'a E,
}

#[cfg(target_arch = "x86_64")]
impl<E: TileEpilogue> Body for Quantized<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let units = self.weights.k.div_ceil(QUAD);
        let b = &self.weights.codes[self.panels.start * units * LANES * QUAD..];
        let segment = Segment { a: self.codes.as_ptr().cast(), b: b.as_ptr().cast(), units };
        let strides = Strides { row: units, step: 1, panel: units * LANES };
        let epilogue =
            Scaled { rows: Some(self.scales), steps: &self.weights.steps, epilogue: self.epilogue };
        let first = [0, self.panels.start];
        let sink = SegmentSink { partial: None, last: true, first, n: self.weights.n, epilogue: &epilogue };
        // SAFETY: there are `m` rows of `units` quads, and every panel holds the same number of
        // units.
        #[allow(unsafe_code)]
        unsafe {
            super::Vnni::product(self.m, self.panels.len(), &[segment], strides, sink);
        }
    }
}

/// Multiplies f32 rows by the panels of one tile's width.
struct Widened<'a, S, E> {
    weights: &'a Int8Panels,
    rows: &'a [f32],
    m: usize,
    panels: Range<usize>,
    epilogue: &'a E,
    simd: std::marker::PhantomData<S>,
}

impl<S: Micro<Unit = f32>, E: TileEpilogue> Body for Widened<'_, S, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (units, panels) = (self.weights.k, self.panels.len());
        let epilogue = Scaled { rows: None, steps: &self.weights.steps, epilogue: self.epilogue };
        let width = panels * LANES;
        let several = units > STRETCH;
        let mut sums = Scratch::<f32>::new(if several { self.m * width } else { 0 });
        sums.fill(0.0);
        let mut packed = Scratch::<f32>::new(STRETCH.min(units) * width);
        for first in (0..units.max(1)).step_by(STRETCH) {
            // Widen this stretch of each panel, then multiply it.
            let stretch = STRETCH.min(units - first);
            for (panel, packed) in self.panels.clone().zip(packed.chunks_exact_mut((stretch * LANES).max(1)))
            {
                let codes = &self.weights.codes[(panel * units + first) * LANES..][..stretch * LANES];
                let widen = |code: u8| f32::from(code) - f32::from(OFFSET);
                packed.iter_mut().zip(codes).for_each(|(value, &code)| *value = widen(code));
            }
            let segment = Segment { a: self.rows[first..].as_ptr(), b: packed.as_ptr(), units: stretch };
            let strides = Strides { row: units, step: 1, panel: stretch * LANES };
            let sink = SegmentSink {
                partial: several.then_some((&mut sums[..], width)),
                last: first + stretch == units,
                first: [0, self.panels.start],
                n: self.weights.n,
                epilogue: &epilogue,
            };
            // SAFETY: `rows` holds `m` rows of `units`, and `packed` the stretch of every panel.
            #[allow(unsafe_code)]
            unsafe {
                S::product(self.m, panels, &[segment], strides, sink);
            }
        }
    }
}

/// Multiplies sums by the scale of their column and, if rows were quantized, corrects and scales
/// them by the row: `Σ a (w + OFFSET) - OFFSET · Σ a = Σ a w`.
struct Scaled<'a, E> {
    rows: Option<&'a [RowScale]>,
    steps: &'a [f32],
    epilogue: &'a E,
}

impl<E: TileEpilogue> TileEpilogue for Scaled<'_, E> {
    #[inline(always)]
    fn take(&self, m: usize, n: usize, sums: &mut [f32]) {
        let steps = &self.steps[n..n + sums.len()];
        match self.rows.map(|rows| rows[m]) {
            None => sums.iter_mut().zip(steps).for_each(|(sum, step)| *sum *= step),
            Some(row) => sums.iter_mut().zip(steps).for_each(|(sum, step)| {
                *sum = (*sum - row.surplus) * (row.step * step);
            }),
        }
        self.epilogue.take(m, n, sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::Out;
    use crate::testing::noise;

    /// Stores the sums.
    struct Keep<'a>(Out<'a, f32>);

    impl TileEpilogue for Keep<'_> {
        #[inline(always)]
        fn take(&self, m: usize, n: usize, sums: &mut [f32]) {
            // SAFETY: each sum is passed once.
            #[allow(unsafe_code)]
            unsafe { self.0.row(m, n, sums.len()) }.copy_from_slice(sums);
        }
    }

    fn product(cpu: Cpu, [m, n]: [usize; 2], a: &[f32], weight: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; m * n];
        Int8Panels::new(cpu, weight, n).multiply(m, a, &Keep(Out::new(&mut out, n)));
        out
    }

    /// Returns the codes of `values` and their scale.
    fn nearest(values: &[f32]) -> (Vec<f64>, f64) {
        let step = values.iter().fold(0.0_f64, |top, value| top.max(f64::from(value.abs()))) / 127.0;
        let code = |value: &f32| if step > 0.0 { (f64::from(*value) / step).round() } else { 0.0 };
        (values.iter().map(code).collect(), step)
    }

    #[test]
    fn rows_are_quantized_only_where_integers_are_multiplied() {
        for [m, n, k] in [[1, 1, 1], [9, 3, 0], [2, 16, 4], [3, 97, 7], [9, 130, 65], [17, 33, 1030]] {
            let (a, weight) = (noise(m * k, 1), noise(k * n, 2));
            let (weights, steps) = quantize(&weight, n);
            for cpu in Cpu::all() {
                let got = product(cpu, [m, n], &a, &weight);
                for (row, got) in (0..m).map(|i| (&a[i * k..(i + 1) * k], &got[i * n..(i + 1) * n])) {
                    let exact = || (row.iter().copied().map(f64::from).collect::<Vec<f64>>(), 1.0);
                    let (codes, step) = if cpu.bf16() { nearest(row) } else { exact() };
                    for (column, got) in got.iter().enumerate() {
                        let products = codes.iter().zip(weights.iter().skip(column).step_by(n));
                        let sum: f64 = products.map(|(code, &weight)| code * f64::from(weight)).sum();
                        let expected = sum * step * f64::from(steps[column]);
                        // About one code in thousands is close to a tie and is rounded the other
                        // way in f32.
                        let allowed = 1e-4 * (k as f64).sqrt() + step * 0.02;
                        assert!(
                            (f64::from(*got) - expected).abs() <= allowed,
                            "{cpu}: {got}, wanted {expected}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn nan_rows_stay_nan_and_zero_rows_stay_zero() {
        for cpu in Cpu::all() {
            let got = product(cpu, [3, 1], &[f32::NAN, 1.0, 0.0, 0.0, 1.0, 2.0], &[1.0, 2.0]);
            assert!(got[0].is_nan(), "{cpu}: {got:?}");
            assert_eq!(got[1], 0.0);
            assert!((got[2] - 5.0).abs() < 0.05, "{cpu}: {got:?}");
        }
    }
}
