//! A right operand in 8 bits with a step a column: for drawing, where weights are read again for every token.
//!
//! On a processor that multiplies whole numbers (`vpdpbusd`, beside bf16), each row of the left operand is rounded to 255
//! steps of its own; sums are whole numbers, exact until they become f32. Elsewhere panels are widened to f32 in a core's
//! cache, just before they are multiplied. Steps are applied to finished sums.

use std::ops::Range;

use rayon::prelude::*;

use super::{LANES, Micro, SERIAL, Segment, SegmentSink, Strides, TileEpilogue, with_f32_micro};
use crate::cpu::{Body, Cpu};
use crate::scratch::Scratch;

/// The largest code.
const TOP: f32 = 127.0;
/// What is added to a weight's code, so that it has no sign: whole numbers with a sign are multiplied by those without.
const OFFSET: u8 = 128;
/// Whole numbers that are multiplied at once.
const QUAD: usize = 4;
/// Most steps of K whose sums of whole numbers fit 32 bits.
const MOST: usize = (i32::MAX / (255 * 127)) as usize;
/// Units of K that are widened at a time, so that a group of panels stays in a core's second-level cache.
const STRETCH: usize = 512;
/// Rows of the left operand that a task rounds.
const ROWS: usize = 8;

/// Each weight of `[k, n]` as the nearest of 255 even steps of its column, and the columns' steps.
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
    /// Panel, unit of K, column, value of the unit; [`OFFSET`] is added to each.
    codes: Vec<u8>,
    steps: Vec<f32>,
}

impl Int8Panels {
    /// Rounds and packs `weight` `[k, n]`.
    ///
    /// # Panics
    /// If K has more steps than sums have room for.
    pub(crate) fn new(cpu: Cpu, weight: &[f32], n: usize) -> Int8Panels {
        let k = weight.len() / n;
        assert!(k <= MOST, "8-bit weights of {k} rows: wanted at most {MOST}");
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

    /// Rows `a` `[m, k]` times them, into `epilogue`.
    pub(crate) fn multiply<E: TileEpilogue>(&self, m: usize, a: &[f32], epilogue: &E) {
        match self.cpu.bf16() {
            #[cfg(target_arch = "x86_64")]
            true => self.rounded(m, a, epilogue),
            _ => with_f32_micro!(self.cpu, S => self.widened::<S, E>(m, a, epilogue)),
        }
    }

    /// Columns, and steps of K.
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.n, self.k]
    }

    /// With the rows rounded to whole numbers.
    #[cfg(target_arch = "x86_64")]
    fn rounded<E: TileEpilogue>(&self, m: usize, a: &[f32], epilogue: &E) {
        let row = (self.k.div_ceil(QUAD) * QUAD).max(1);
        let mut codes = Scratch::<i8>::new(m * row);
        let mut scales = Scratch::<RowScale>::new(m);
        let rows = codes.par_chunks_mut(ROWS * row).zip(scales.par_chunks_mut(ROWS)).enumerate();
        rows.for_each(|(i, (codes, scales))| {
            self.cpu.isa().run(RoundRows { a: &a[i * ROWS * self.k..], k: self.k, codes, scales });
        });
        let (codes, scales) = (&codes, &scales);
        self.groups(m, super::Vnni::WIDEST, |panels| {
            self.cpu.isa().run(Whole { weights: self, codes, scales, m, panels, epilogue });
        });
    }

    /// With the weights widened to f32.
    fn widened<S: Micro<Unit = f32>, E: TileEpilogue>(&self, m: usize, a: &[f32], epilogue: &E) {
        self.groups(m, S::WIDEST, |panels| {
            let simd = std::marker::PhantomData;
            self.cpu.isa().run(Widened::<S, E> { weights: self, rows: a, m, panels, epilogue, simd });
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

/// How a row's sums of whole numbers become its products.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct RowScale {
    /// What the row's codes count.
    step: f32,
    /// What [`OFFSET`] added to each sum.
    surplus: f32,
}

/// Rows as the nearest whole numbers of steps, 255 of them to each row.
struct RoundRows<'a> {
    a: &'a [f32],
    k: usize,
    /// Rows of whole quads.
    codes: &'a mut [i8],
    scales: &'a mut [RowScale],
}

impl Body for RoundRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        /// Added to a small number, it leaves the nearest whole one, ties to even, in the lowest bits.
        const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³
        let row = self.codes.len() / self.scales.len();
        for (i, scale) in self.scales.iter_mut().enumerate() {
            let values = &self.a[i * self.k..(i + 1) * self.k];
            let (codes, rest) = self.codes[i * row..(i + 1) * row].split_at_mut(self.k);
            // As whole numbers, so that a NaN is the largest: it must come out again.
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

/// Rounded rows times the panels of one tile's width.
#[cfg(target_arch = "x86_64")]
struct Whole<'a, E> {
    weights: &'a Int8Panels,
    codes: &'a [i8],
    scales: &'a [RowScale],
    m: usize,
    panels: Range<usize>,
    epilogue: &'a E,
}

#[cfg(target_arch = "x86_64")]
impl<E: TileEpilogue> Body for Whole<'_, E> {
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
        // SAFETY: there are `m` rows of `units` quads, and every panel holds as many units.
        #[allow(unsafe_code)]
        unsafe {
            super::Vnni::product(self.m, self.panels.len(), &[segment], strides, sink);
        }
    }
}

/// Rows as they are times the panels of one tile's width.
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
            // SAFETY: `rows` holds `m` rows of `units`, `packed` a stretch of every panel.
            #[allow(unsafe_code)]
            unsafe {
                S::product(self.m, panels, &[segment], strides, sink);
            }
        }
    }
}

/// Scales sums by their column's step and, where rows were rounded, by the row's.
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

    /// Keeps sums as they are.
    struct Keep<'a>(Out<'a, f32>);

    impl TileEpilogue for Keep<'_> {
        #[inline(always)]
        fn take(&self, m: usize, n: usize, sums: &mut [f32]) {
            // SAFETY: each sum comes once.
            #[allow(unsafe_code)]
            unsafe { self.0.row(m, n, sums.len()) }.copy_from_slice(sums);
        }
    }

    fn product(cpu: Cpu, [m, n]: [usize; 2], a: &[f32], weight: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; m * n];
        Int8Panels::new(cpu, weight, n).multiply(m, a, &Keep(Out::new(&mut out, n)));
        out
    }

    /// The nearest of 255 even steps, and its number.
    fn nearest(values: &[f32]) -> (Vec<f64>, f64) {
        let step = values.iter().fold(0.0_f64, |top, value| top.max(f64::from(value.abs()))) / 127.0;
        let code = |value: &f32| if step > 0.0 { (f64::from(*value) / step).round() } else { 0.0 };
        (values.iter().map(code).collect(), step)
    }

    #[test]
    fn rows_are_rounded_where_whole_numbers_are_multiplied_and_only_there() {
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
                        let wanted = sum * step * f64::from(steps[column]);
                        // One code in thousands lies between two others and is rounded the other way in f32.
                        let allowed = 1e-4 * (k as f64).sqrt() + step * 0.02;
                        assert!((f64::from(*got) - wanted).abs() <= allowed, "{cpu}: {got}, wanted {wanted}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_none_and_zeros_stay_zeros() {
        for cpu in Cpu::all() {
            let got = product(cpu, [3, 1], &[f32::NAN, 1.0, 0.0, 0.0, 1.0, 2.0], &[1.0, 2.0]);
            assert!(got[0].is_nan(), "{cpu}: {got:?}");
            assert_eq!(got[1], 0.0);
            assert!((got[2] - 5.0).abs() < 0.05, "{cpu}: {got:?}");
        }
    }
}
