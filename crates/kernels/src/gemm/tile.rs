//! The micro-kernel of vector registers. A tile of sums stays in registers while the loop goes
//! through K: 8 rows × 48 columns, or wider if there are few rows. ([`super::amx`] has another
//! micro-kernel, for CPUs with tile registers.)
//!
//! The left operand is read by broadcast, the right one from panels of 16 columns
//! ([`super::pack`]). K may consist of several [`Segment`]s. Convolutions and sparse attention use
//! this to run the same loop without copying operands.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use super::simd::{LANES, Portable, Simd};
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512, Avx512Bf16, Vnni};
use crate::cpu::{Body, Isa, Supported};

/// The number of sums of the largest tile: 32 rows of 2 panels.
const SUMS: usize = 32 * 2 * LANES;

/// How many units ahead of the multiplication panels are prefetched into the L1 cache.
const AHEAD: usize = 16;

/// The sums of a tile, row by row, without gaps.
#[repr(C, align(64))]
pub struct Tile(pub [f32; SUMS]);

/// A stretch of K.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Segment<U> {
    /// The segment's first unit in row 0 of the left operand.
    pub a: *const U,
    /// The segment's first unit in the first panel.
    pub b: *const U,
    /// The number of units.
    pub units: usize,
}

/// Distances between neighbouring units, counted in units.
#[derive(Debug, Clone, Copy)]
pub struct Strides {
    /// From a row of the left operand to the next.
    pub row: usize,
    /// From a unit of the left operand to the next one along K.
    pub step: usize,
    /// From a panel of the right operand to the next.
    pub panel: usize,
}

/// Consumes finished tiles.
///
/// This is a trait and not a closure because its body must be inlined, so that it is compiled for
/// the kernel's instruction set. An implementation must not multiply or wait for other jobs of the
/// thread pool: the thread's tile registers may already hold the next sums.
pub(crate) trait Sink {
    /// Takes one row of a tile: the row's index, the tile's first panel, and the sums.
    /// Implementations need `#[inline(always)]`.
    fn row(&mut self, row: usize, panel: usize, sums: &mut [f32]);
}

/// A micro-kernel: a way to multiply packed operands.
pub(crate) trait Micro: Simd {
    /// The rows and panels of the fastest tile.
    const BEST: [usize; 2];
    /// The number of panels of the widest tile, which is used for few rows.
    const WIDEST: usize;
    /// The number of units of K that one instruction multiplies. A product is fastest if its K is a
    /// multiple.
    const DEEP: usize;

    /// Multiplies `rows` rows by `panels` panels over all `segments`, tile by tile, and passes the
    /// sums to `sink`.
    ///
    /// # Safety
    /// The CPU has the instructions, and every unit that the segments and strides describe is
    /// readable.
    unsafe fn product(
        rows: usize,
        panels: usize,
        segments: &[Segment<Self::Unit>],
        strides: Strides,
        sink: impl Sink,
    );
}

/// A micro-kernel of vector registers, for one instruction set.
pub trait Tiles: Simd {
    /// The instruction set.
    const ISA: Isa;
    /// The tiles that fit into the registers, as `(rows, maximum panels)`: tallest first, 1 row
    /// last. Low tiles are wider, because a core works on about eight sums at a time.
    const TILES: &'static [(usize, usize)];
    /// The widths of tiles in panels: widest first, 1 last.
    const WIDTHS: &'static [usize];

    /// Computes a tile of `rows` × `panels`, which is one of [`Self::TILES`] and [`Self::WIDTHS`],
    /// and writes the sums to `out`, row by row. `from` is the distance in units from the start of
    /// the segments to the tile, in the left and in the right operand.
    ///
    /// # Safety
    /// The CPU has [`Self::ISA`], every unit that the segments and strides describe is readable,
    /// and `out` points to a [`Tile`].
    unsafe fn multiply(
        rows: usize,
        panels: usize,
        segments: &[Segment<Self::Unit>],
        strides: Strides,
        from: [usize; 2],
        out: *mut f32,
    );
}

/// Computes a tile of `R` rows and `P` panels. Each unit of K takes `P` loads from the panels, `R`
/// broadcasts from the left operand and `R · P` multiply-adds into sums that stay in registers.
///
/// # Safety
/// As for [`Tiles::multiply`].
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize, const P: usize>(
    segments: &[Segment<S::Unit>],
    strides: Strides,
    from: [usize; 2],
    out: *mut f32,
) {
    // SAFETY: the caller guarantees readable operands, and `R` × `P` sums fit a `Tile`.
    unsafe {
        let mut sums = [[S::zero(); P]; R];
        for segment in segments {
            let (mut a, mut b) = (segment.a.wrapping_add(from[0]), segment.b.wrapping_add(from[1]));
            for _ in 0..segment.units {
                for p in 0..P {
                    S::fetch(b.wrapping_add(p * strides.panel + AHEAD * LANES));
                }
                let right: [S::Units; P] = std::array::from_fn(|p| S::load(b.add(p * strides.panel)));
                for (r, row) in sums.iter_mut().enumerate() {
                    let left = S::splat(a.add(r * strides.row));
                    for (sum, &right) in row.iter_mut().zip(&right) {
                        *sum = S::multiply_add(*sum, left, right);
                    }
                }
                // After the last unit, the pointers are out of range; they are not read.
                a = a.wrapping_add(strides.step);
                b = b.wrapping_add(LANES);
            }
        }
        for (i, &sum) in sums.as_flattened().iter().enumerate() {
            S::store(sum, out.add(i * LANES));
        }
    }
}

impl<S: Tiles> Micro for S {
    const BEST: [usize; 2] = [S::TILES[0].0, S::TILES[0].1];
    const WIDEST: usize = S::WIDTHS[0];
    const DEEP: usize = 1;

    #[inline(always)]
    unsafe fn product(
        rows: usize,
        panels: usize,
        segments: &[Segment<S::Unit>],
        strides: Strides,
        mut sink: impl Sink,
    ) {
        let mut tile = MaybeUninit::<Tile>::uninit();
        let out: *mut f32 = tile.as_mut_ptr().cast();
        let mut panel = 0;
        let tile_of =
            |rows: usize| S::TILES.iter().copied().find(|&(tall, _)| tall <= rows).unwrap_or((1, 1));
        while panel < panels {
            // The width is chosen for the tallest tile. The lower tiles of the remaining rows allow
            // at least this width.
            let most = tile_of(rows).1.min(panels - panel);
            let wide = S::WIDTHS.iter().copied().find(|&wide| wide <= most).unwrap_or(1);
            let mut row = 0;
            while row < rows {
                let (tall, _) = tile_of(rows - row);
                // SAFETY: the caller's guarantee; a `Tile` has room for the sums written and read
                // here.
                let sums = unsafe {
                    S::multiply(
                        tall,
                        wide,
                        segments,
                        strides,
                        [row * strides.row, panel * strides.panel],
                        out,
                    );
                    std::slice::from_raw_parts_mut(out, tall * wide * LANES)
                };
                for (r, sums) in sums.chunks_exact_mut(wide * LANES).enumerate() {
                    sink.row(row + r, panel, sums);
                }
                row += tall;
            }
            panel += wide;
        }
    }
}

/// Implements [`Tiles`] for `$simd` with one compiled loop per `(rows, panels)`.
macro_rules! micro {
    ($simd:ident on $isa:ident, tiles $tiles:expr, widths $widths:expr, $(($rows:literal, $panels:literal)),+) => {
        impl Tiles for $simd {
            const ISA: Isa = Isa::$isa;
            const TILES: &'static [(usize, usize)] = &$tiles;
            const WIDTHS: &'static [usize] = &$widths;

            unsafe fn multiply(
                rows: usize,
                panels: usize,
                segments: &[Segment<Self::Unit>],
                strides: Strides,
                from: [usize; 2],
                out: *mut f32,
            ) {
                type Unit = <$simd as Simd>::Unit;
                struct Multiply<'a>(usize, usize, &'a [Segment<Unit>], Strides, [usize; 2], *mut f32);
                impl Body for Multiply<'_> {
                    type Output = ();
                    #[inline(always)]
                    fn run(self) {
                        match (self.0, self.1) {
                            // SAFETY: the caller of `multiply` guarantees it.
                            $(($rows, $panels) => unsafe { tile::<$simd, $rows, $panels>(self.2, self.3, self.4, self.5) },)+
                            (rows, panels) => unreachable!("no tile of {rows} rows and {panels} panels"),
                        }
                    }
                }
                // SAFETY: the caller of `multiply` guarantees that the CPU has the instruction set.
                let isa = unsafe { Supported::assume(Self::ISA) };
                isa.run(Multiply(rows, panels, segments, strides, from, out));
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
micro!(Avx512Bf16 on Avx512Bf16, tiles [(8, 3), (4, 3), (2, 6), (1, 6)], widths [6, 3, 2, 1],
    (2, 6), (1, 6), (8, 3), (4, 3), (2, 3), (1, 3), (8, 2), (4, 2), (2, 2), (1, 2), (8, 1), (4, 1), (2, 1), (1, 1));
#[cfg(target_arch = "x86_64")]
micro!(Vnni on Avx512Bf16, tiles [(8, 3), (4, 3), (2, 6), (1, 6)], widths [6, 3, 2, 1],
    (2, 6), (1, 6), (8, 3), (4, 3), (2, 3), (1, 3), (8, 2), (4, 2), (2, 2), (1, 2), (8, 1), (4, 1), (2, 1), (1, 1));
#[cfg(target_arch = "x86_64")]
micro!(Avx512 on Avx512, tiles [(8, 3), (4, 3), (2, 6), (1, 6)], widths [6, 3, 2, 1],
    (2, 6), (1, 6), (8, 3), (4, 3), (2, 3), (1, 3), (8, 2), (4, 2), (2, 2), (1, 2), (8, 1), (4, 1), (2, 1), (1, 1));
#[cfg(target_arch = "x86_64")]
micro!(Avx2 on Avx2, tiles [(4, 1), (2, 2), (1, 4)], widths [4, 2, 1],
    (1, 4), (2, 2), (1, 2), (4, 1), (2, 1), (1, 1));
micro!(Portable on Portable, tiles [(2, 1), (1, 1)], widths [1], (2, 1), (1, 1));
