//! Matrix products `out[m, n] = Σ_k a[m, k] · b[k, n]` of f32 or bf16 values, with sums in f32.
//!
//! The words of this module: *K* is the dimension that is summed over. A *unit* is what one
//! multiplication takes from K: one f32, a pair of bf16 or four 8-bit integers. A *panel* holds 16
//! columns of the right operand, packed unit by unit of K. A *tile* is a block of sums that stays
//! in registers. An *epilogue* ([`TileEpilogue`]) receives finished sums while they are still
//! close: it adds a bias, applies an activation or stores them.
//!
//! The right operand is packed once ([`Panels`]). Blocks of rows of the left operand are packed by
//! the thread that multiplies them, unless they can be read in place. One thread computes a sum,
//! always in the same order, so results do not depend on the number of threads.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
mod epilogue;
mod int8;
mod out;
mod pack;
mod simd;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use rayon::prelude::*;

pub(crate) use epilogue::{Affine, ScaledAdd, Store};
pub(crate) use int8::{Int8Panels, quantize};
pub use out::Out;
pub(crate) use pack::Unit;
pub use pack::{FloatSlice, Operand};
pub(crate) use pack::{narrow, panel_across, panel_along, widen};
pub(crate) use simd::{LANES, Simd};
pub(crate) use tile::{Micro, Segment, Sink, Strides};

use crate::cpu::{Body, Cpu};
use crate::scratch::{Line, Scratch};

/// The maximum number of units of K that are multiplied in one pass: three panels of them fit into
/// a core's L2 cache.
const MAX_UNITS: usize = 2048;
/// Bytes of the left operand that a thread packs at a time.
const BLOCK_BYTES: usize = 512 << 10;
/// Each job has a multiple of this many rows, so that tall tiles fit exactly.
pub(crate) const ROWS: usize = 32;
/// Jobs per thread, if the product is large enough. More jobs would balance the load better, but
/// pack the left operand more often.
const JOBS: usize = 4;
/// Each job has a multiple of this many panels, so that tall tiles fit exactly.
const PANELS: usize = 6;
/// Products with fewer multiplications than this run on one thread.
const SERIAL: usize = 1 << 17;

/// Consumes finished sums.
///
/// An implementation must not multiply or wait for other jobs of the thread pool: the thread's tile
/// registers may already hold the next sums.
pub trait TileEpilogue: Sync {
    /// Takes the sums of row `m`, columns `n .. n + sums.len()`, and may overwrite them. Each sum
    /// is passed exactly once. Implementations need `#[inline(always)]`.
    fn take(&self, m: usize, n: usize, sums: &mut [f32]);
}

/// Evaluates `$body` with `$simd` as the type of the micro-kernel for `$cpu`.
macro_rules! with_micro {
    ($cpu:expr, $simd:ident => $body:expr) => {
        match ($cpu.bf16(), $cpu.isa()) {
            #[cfg(target_arch = "x86_64")]
            (true, $crate::cpu::Isa::Amx) => {
                type $simd = $crate::gemm::amx::Amx;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            (true, _) => {
                type $simd = $crate::gemm::Bf16;
                $body
            }
            _ => $crate::gemm::with_f32_micro!($cpu, $simd => $body),
        }
    };
}
pub(crate) use with_micro;

/// Evaluates `$body` with `$simd` as the type of the f32 micro-kernel for `$cpu`.
macro_rules! with_f32_micro {
    ($cpu:expr, $simd:ident => $body:expr) => {
        match $cpu.isa() {
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::Isa::Amx | $crate::cpu::Isa::Avx512Bf16 | $crate::cpu::Isa::Avx512 => {
                type $simd = $crate::gemm::F32x512;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::Isa::Avx2 => {
                type $simd = $crate::gemm::F32x256;
                $body
            }
            _ => {
                type $simd = $crate::gemm::F32Portable;
                $body
            }
        }
    };
}
pub(crate) use with_f32_micro;

pub(crate) use simd::Portable as F32Portable;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2 as F32x256, Avx512 as F32x512, Avx512Bf16 as Bf16, Vnni};

/// Multiplies `a` `[m, k]` by `b` `[k, n]` and passes the sums to `epilogue`.
///
/// # Panics
/// If an operand has fewer values than its shape needs.
pub fn gemm<E: TileEpilogue>(cpu: Cpu, [m, n, k]: [usize; 3], a: Operand, b: Operand, epilogue: &E) {
    for (name, operand, others) in [("left", &a, m), ("right", &b, n)] {
        let (got, wanted) = (operand.numbers.len(), operand.extent(others, k));
        assert!(
            got >= wanted,
            "{name} operand of a [{m}, {k}] by [{k}, {n}] product: {got} numbers, wanted {wanted}"
        );
    }
    with_micro!(cpu, S => run::<S, E>(cpu, [m, n, k], a, b, epilogue))
}

fn run<S: Micro<Unit: Unit>, E: TileEpilogue>(
    cpu: Cpu,
    [m, n, k]: [usize; 3],
    a: Operand,
    b: Operand,
    epilogue: &E,
) {
    let mut packed = Scratch::<S::Unit>::new(packed_len::<S::Unit>(n, k));
    pack_right(cpu, [n, k], &b, m * n * k < SERIAL, &mut packed);
    multiply::<S, E>(cpu, [m, n, k], &a, &packed, epilogue);
}

/// The number of units of a packed right operand.
fn packed_len<U: Unit>(n: usize, k: usize) -> usize {
    n.div_ceil(LANES) * k.div_ceil(U::VALUES) * LANES
}

fn pack_right<U: Unit>(cpu: Cpu, [n, k]: [usize; 2], b: &Operand, serial: bool, packed: &mut [U]) {
    let panel_len = (k.div_ceil(U::VALUES) * LANES).max(1);
    let pack =
        |(p, panel): (usize, &mut [U])| cpu.supported().run(PackPanel { b, at: [p * LANES, n], k, panel });
    match serial {
        true => packed.chunks_exact_mut(panel_len).enumerate().for_each(pack),
        false => packed.par_chunks_exact_mut(panel_len).enumerate().for_each(pack),
    }
}

fn multiply<S: Micro<Unit: Unit>, E: TileEpilogue>(
    cpu: Cpu,
    [m, n, k]: [usize; 3],
    a: &Operand,
    packed: &[S::Unit],
    epilogue: &E,
) {
    if m == 0 || n == 0 {
        return;
    }
    let blocks = Blocks::new(m, n.div_ceil(LANES), k.div_ceil(S::Unit::VALUES).min(MAX_UNITS));
    let job = |i: usize| {
        let (rows, columns) = blocks.job(i);
        cpu.supported().run(Job::<S, E> { a, packed, shape: [m, n, k], rows, columns, epilogue });
    };
    match m * n * k < SERIAL {
        true => (0..blocks.len()).for_each(job),
        false => (0..blocks.len()).into_par_iter().for_each(job),
    }
}

/// A right operand that is packed once and multiplied many times.
#[derive(Debug, Clone)]
pub struct Panels {
    cpu: Cpu,
    n: usize,
    k: usize,
    /// The packed units, of the type that `cpu` multiplies.
    lines: Vec<Line>,
}

impl Panels {
    /// Packs `b`, `[k, n]`.
    ///
    /// # Panics
    /// If the operand has fewer values than its shape needs.
    pub fn new(cpu: Cpu, [n, k]: [usize; 2], b: Operand) -> Panels {
        let (got, wanted) = (b.numbers.len(), b.extent(n, k));
        assert!(got >= wanted, "panels of a [{k}, {n}] matrix: {got} numbers, wanted {wanted}");
        with_micro!(cpu, S => {
            let bytes = packed_len::<<S as Simd>::Unit>(n, k) * size_of::<<S as Simd>::Unit>();
            let mut lines = vec![Line::default(); bytes / size_of::<Line>()];
            pack_right::<<S as Simd>::Unit>(cpu, [n, k], &b, false, bytemuck::cast_slice_mut(&mut lines));
            Panels { cpu, n, k, lines }
        })
    }

    /// Multiplies `a` `[m, k]` by the packed operand and passes the sums to `epilogue`.
    ///
    /// # Panics
    /// If the operand has fewer values than its shape needs.
    pub fn multiply<E: TileEpilogue>(&self, m: usize, a: Operand, epilogue: &E) {
        let (got, wanted) = (a.numbers.len(), a.extent(m, self.k));
        assert!(got >= wanted, "left operand of panels of {} rows: {got} numbers, wanted {wanted}", self.k);
        with_micro!(self.cpu, S => {
            multiply::<S, E>(self.cpu, [m, self.n, self.k], &a, bytemuck::cast_slice(&self.lines), epilogue);
        });
    }

    /// Returns `[n, k]`: the number of columns and of steps of K.
    pub fn shape(&self) -> [usize; 2] {
        [self.n, self.k]
    }
}

struct PackPanel<'a, U> {
    b: &'a Operand<'a>,
    at: [usize; 2],
    k: usize,
    panel: &'a mut [U],
}

impl<U: Unit> Body for PackPanel<'_, U> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        pack::panel(self.b, self.at, self.k, self.panel);
    }
}

/// How a product is cut into jobs.
struct Blocks {
    m: usize,
    panels: usize,
    rows: usize,
    wide: usize,
}

impl Blocks {
    /// Chooses a few jobs per thread, as large as the caches allow. Each sum is computed in the
    /// same way for every choice.
    fn new(m: usize, panels: usize, units: usize) -> Blocks {
        let jobs = JOBS * rayon::current_num_threads();
        let fit = BLOCK_BYTES / (4 * units.max(1));
        let rows = fit.min(m.div_ceil(jobs)).max(1).next_multiple_of(ROWS);
        // If blocks of rows alone give too few jobs, the panels are divided, too.
        let wide = panels.div_ceil(jobs.div_ceil(m.div_ceil(rows))).max(PANELS).next_multiple_of(PANELS);
        Blocks { m, panels, rows, wide }
    }

    fn across(&self) -> usize {
        self.panels.div_ceil(self.wide)
    }

    fn len(&self) -> usize {
        self.m.div_ceil(self.rows) * self.across()
    }

    /// Returns the rows and panels of job `i`.
    fn job(&self, i: usize) -> (Range<usize>, Range<usize>) {
        let (row, column) = (i / self.across() * self.rows, i % self.across() * self.wide);
        (row..self.m.min(row + self.rows), column..self.panels.min(column + self.wide))
    }
}

/// A block of rows times a range of panels.
struct Job<'a, S: Micro, E> {
    a: &'a Operand<'a>,
    packed: &'a [S::Unit],
    shape: [usize; 3],
    rows: Range<usize>,
    columns: Range<usize>,
    epilogue: &'a E,
}

impl<S: Micro<Unit: Unit>, E: TileEpilogue> Body for Job<'_, S, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let [_, _, k] = self.shape;
        // A long K is multiplied in several passes; their sums are added in `sums`.
        if k <= MAX_UNITS * S::Unit::VALUES {
            return self.stretch(0..k, None);
        }
        let width = self.columns.len() * LANES;
        let mut sums = Scratch::<f32>::new(self.rows.len() * width);
        sums.fill(0.0);
        let step = MAX_UNITS * S::Unit::VALUES;
        for k0 in (0..k).step_by(step) {
            self.stretch(k0..k.min(k0 + step), Some((&mut sums, width)));
        }
    }
}

impl<S: Micro<Unit: Unit>, E: TileEpilogue> Job<'_, S, E> {
    /// Multiplies steps `k` of K for all sums of the job. `partial` holds the sums of earlier
    /// passes and their stride. The new sums are added to it; the last pass gives the totals to the
    /// epilogue.
    #[inline(always)]
    fn stretch(&self, k: Range<usize>, partial: Option<(&mut [f32], usize)>) {
        let units = k.len().div_ceil(S::Unit::VALUES);
        match self.in_place(&k) {
            Some((a, row, step)) => self.tiles(a, row, step, k, partial),
            None => {
                let mut block = Scratch::<S::Unit>::new(self.rows.len() * units);
                let (row, step) = self.pack(&k, units, &mut block);
                self.tiles(&block, row, step, k, partial);
            }
        }
    }

    /// Returns the units of the block and their strides if they can be read where they are.
    #[inline(always)]
    fn in_place(&self, k: &Range<usize>) -> Option<(&[S::Unit], usize, usize)> {
        let (values, a) = (S::Unit::VALUES, self.a);
        if k.is_empty() {
            return None; // an empty operand may be too short to index
        }
        let units = S::Unit::in_place(a.numbers)?;
        let even = [a.stride, k.start, k.len()].into_iter().all(|n| n.is_multiple_of(values));
        match a.along_k {
            true if even => {
                Some((&units[(self.rows.start * a.stride + k.start) / values..], a.stride / values, 1))
            }
            false if values == 1 => Some((&units[k.start * a.stride + self.rows.start..], 1, a.stride)),
            _ => None,
        }
    }

    /// Packs the block's rows, steps `k`. Returns the strides from row to row and from unit to
    /// unit.
    #[inline(always)]
    fn pack(&self, k: &Range<usize>, units: usize, block: &mut [S::Unit]) -> (usize, usize) {
        let a = self.a;
        if a.along_k {
            for (row, units) in self.rows.clone().zip(block.chunks_exact_mut(units.max(1))) {
                S::Unit::along(a.numbers.slice(row * a.stride + k.start, k.len()), units);
            }
            return (units, 1);
        }
        let rows = self.rows.len();
        for (units, k0) in block.chunks_exact_mut(rows).zip(k.clone().step_by(S::Unit::VALUES)) {
            let row = |k: usize| a.numbers.slice(k * a.stride + self.rows.start, rows);
            S::Unit::across(row(k0), (k0 + 1 < k.end).then(|| row(k0 + 1)), units);
        }
        (1, rows)
    }

    /// Computes all tiles of the job over steps `k`. The units of the left operand start at `a`.
    #[inline(always)]
    fn tiles(
        &self,
        a: &[S::Unit],
        row: usize,
        step: usize,
        k: Range<usize>,
        partial: Option<(&mut [f32], usize)>,
    ) {
        let [_, n, all_k] = self.shape;
        let strides = Strides { row, step, panel: all_k.div_ceil(S::Unit::VALUES) * LANES };
        let b = &self.packed[self.columns.start * strides.panel + k.start / S::Unit::VALUES * LANES..];
        let segment = Segment { a: a.as_ptr(), b: b.as_ptr(), units: k.len().div_ceil(S::Unit::VALUES) };
        let sink = SegmentSink {
            partial,
            last: k.end == all_k,
            first: [self.rows.start, self.columns.start],
            n,
            epilogue: self.epilogue,
        };
        // SAFETY: `pack` or `in_place` made the rows at `a`, and `pack_right` the panels at `b`.
        #[allow(unsafe_code)]
        unsafe {
            S::product(self.rows.len(), self.columns.len(), &[segment], strides, sink);
        }
    }
}

/// Adds the sums of a tile's row to partial sums, or passes them to the epilogue.
struct SegmentSink<'a, E> {
    /// The sums of earlier stretches of K, and their stride.
    partial: Option<(&'a mut [f32], usize)>,
    /// Whether this is the last stretch of K.
    last: bool,
    /// The job's first row and panel.
    first: [usize; 2],
    /// The number of columns of the product.
    n: usize,
    epilogue: &'a E,
}

impl<E: TileEpilogue> Sink for SegmentSink<'_, E> {
    #[inline(always)]
    fn row(&mut self, m: usize, panel: usize, sums: &mut [f32]) {
        if let Some((partial, width)) = &mut self.partial {
            let start = m * *width + panel * LANES;
            for (partial, sum) in partial[start..start + sums.len()].iter_mut().zip(&mut *sums) {
                *partial += *sum;
                *sum = *partial;
            }
        }
        if self.last {
            let first = (self.first[1] + panel) * LANES;
            let columns = sums.len().min(self.n - first);
            self.epilogue.take(self.first[0] + m, first, &mut sums[..columns]);
        }
    }
}
