//! A right operand in 8 bits with a scale a column: for products of few rows, which reading the weights bounds.
//!
//! Only the storage is 8 bits. Panels are widened into a core's cache just before they are multiplied: whole numbers up
//! to 127 are exact in bf16 and f32 alike, and the scale is applied to the finished sums.

use std::ops::Range;

use rayon::prelude::*;

use super::{Epilogue, Finish, LANES, Micro, Operand, SERIAL, Segment, Simd, Strides, Unit, with_micro};
use crate::cpu::{Body, Cpu};
use crate::scratch::Scratch;

/// The largest code.
const TOP: f32 = 127.0;
/// Units of K that are widened at a time, so that a group of panels stays in a core's second-level cache.
const STRETCH: usize = 512;
/// Rows of the left operand that a task packs.
const ROWS: usize = 32;

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
    /// Panel, unit of K, column, value of the unit.
    codes: Vec<i8>,
    steps: Vec<f32>,
}

impl Int8Panels {
    /// Rounds and packs `weight` `[k, n]`.
    pub(crate) fn new(cpu: Cpu, weight: &[f32], n: usize) -> Int8Panels {
        let k = weight.len() / n;
        let values = with_micro!(cpu, S => <<S as Simd>::Unit as Unit>::VALUES);
        let (plain, steps) = quantize(weight, n);
        let units = k.div_ceil(values);
        let mut codes = vec![0; n.div_ceil(LANES) * units * LANES * values];
        for (i, row) in plain.chunks_exact(n).enumerate() {
            for (column, &code) in row.iter().enumerate() {
                let unit = column / LANES * units + i / values;
                codes[(unit * LANES + column % LANES) * values + i % values] = code;
            }
        }
        Int8Panels { cpu, n, k, codes, steps }
    }

    /// `a` `[m, k]` times them, into `epilogue`.
    pub(crate) fn multiply<E: Epilogue>(&self, m: usize, a: Operand, epilogue: &E) {
        with_micro!(self.cpu, S => self.run::<S, E>(m, &a, epilogue));
    }

    /// Columns, and steps of K.
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.n, self.k]
    }

    fn run<S: Micro<Unit: Unit>, E: Epilogue>(&self, m: usize, a: &Operand, epilogue: &E) {
        let units = self.k.div_ceil(S::Unit::VALUES);
        let mut packed = Scratch::<S::Unit>::new(m * units);
        let rows = match S::Unit::in_place(a.numbers) {
            Some(rows) if a.stride == units * S::Unit::VALUES => rows,
            _ => {
                packed.par_chunks_mut(ROWS * units.max(1)).enumerate().for_each(|(i, packed)| {
                    self.cpu.isa().run(PackRows { a, first: i * ROWS, k: self.k, packed });
                });
                &packed
            }
        };
        let wide = S::WIDEST;
        let job = |i: usize| {
            let panels = i * wide..((i + 1) * wide).min(self.n.div_ceil(LANES));
            self.cpu.isa().run(Group::<S, E> { weights: self, rows, m, units, panels, epilogue });
        };
        let groups = self.n.div_ceil(wide * LANES);
        match m * self.n * self.k < SERIAL {
            true => (0..groups).for_each(job),
            false => (0..groups).into_par_iter().for_each(job),
        }
    }
}

/// Rows of the left operand as units along K.
struct PackRows<'a, U> {
    a: &'a Operand<'a>,
    first: usize,
    k: usize,
    packed: &'a mut [U],
}

impl<U: Unit> Body for PackRows<'_, U> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (i, units) in self.packed.chunks_exact_mut(self.k.div_ceil(U::VALUES).max(1)).enumerate() {
            U::along(self.a.numbers.slice((self.first + i) * self.a.stride, self.k), units);
        }
    }
}

/// All rows times the panels of one tile's width.
struct Group<'a, S: Micro, E> {
    weights: &'a Int8Panels,
    rows: &'a [S::Unit],
    m: usize,
    /// Units of K.
    units: usize,
    panels: Range<usize>,
    epilogue: &'a E,
}

impl<S: Micro<Unit: Unit>, E: Epilogue> Body for Group<'_, S, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (units, panels) = (self.units, self.panels.len());
        let epilogue = Scaled { steps: &self.weights.steps, epilogue: self.epilogue };
        let width = panels * LANES;
        let several = units > STRETCH;
        let mut sums = Scratch::<f32>::new(if several { self.m * width } else { 0 });
        sums.fill(0.0);
        let mut packed = Scratch::<S::Unit>::new(STRETCH.min(units) * width);
        for first in (0..units.max(1)).step_by(STRETCH) {
            let stretch = STRETCH.min(units - first);
            let of_unit = LANES * S::Unit::VALUES;
            for (panel, packed) in self.panels.clone().zip(packed.chunks_exact_mut((stretch * LANES).max(1)))
            {
                let codes = &self.weights.codes[(panel * units + first) * of_unit..][..stretch * of_unit];
                S::Unit::widen(codes, packed);
            }
            let segment = Segment { a: self.rows[first..].as_ptr(), b: packed.as_ptr(), units: stretch };
            let strides = Strides { row: units, step: 1, panel: stretch * LANES };
            let sink = Finish {
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

/// Scales sums.
struct Scaled<'a, E> {
    steps: &'a [f32],
    epilogue: &'a E,
}

impl<E: Epilogue> Epilogue for Scaled<'_, E> {
    #[inline(always)]
    fn take(&self, m: usize, n: usize, sums: &mut [f32]) {
        let steps = &self.steps[n..n + sums.len()];
        sums.iter_mut().zip(steps).for_each(|(sum, step)| *sum *= step);
        self.epilogue.take(m, n, sums);
    }
}
