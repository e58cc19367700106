//! The micro-kernel: a tile of sums, 8 rows × 48 columns or, of few rows, wider, stays in registers while K runs by.
//!
//! The left operand is read by broadcast, the right one from panels of 16 columns ([`super::pack`]). K may come in
//! several [`Segment`]s: that is how convolutions and sparse attention use the same loop without copying operands.

#![allow(unsafe_code)]

use super::simd::{LANES, Portable, Simd};
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512, Avx512Bf16};
use crate::cpu::{Body, Isa};

/// Most rows of a tile.
pub const ROWS: usize = 8;
/// Most panels side by side in a tile.
pub const PANELS: usize = 6;

/// Units by which panels are fetched into the first-level cache before they are multiplied.
const AHEAD: usize = 16;

/// Sums of a tile, row by row.
pub type Tile = [[f32; LANES * PANELS]; ROWS];

/// A stretch of K.
#[derive(Debug, Clone, Copy)]
pub struct Segment<U> {
    /// Its first unit in row 0 of the left operand.
    pub a: *const U,
    /// Its first unit in the first panel.
    pub b: *const U,
    /// Units.
    pub units: usize,
}

/// Where the neighbours of a unit lie, counted in units.
#[derive(Debug, Clone, Copy)]
pub struct Strides {
    /// From a row of the left operand to the next.
    pub row: usize,
    /// From a unit of the left operand to the next.
    pub step: usize,
    /// From a panel of the right operand to the next.
    pub panel: usize,
}

/// A micro-kernel for one instruction set.
pub trait Micro: Simd {
    /// The set.
    const ISA: Isa;
    /// Tiles that fit the registers, as rows and most panels side by side; tallest first, those of 1 row last. The lower,
    /// the wider: a core adds to about eight sums at a time.
    const TILES: &'static [(usize, usize)];
    /// Panels side by side that there are tiles of, widest first, 1 last.
    const WIDTHS: &'static [usize];

    /// Multiplies `rows` × `panels`, as [`Self::TILES`] and [`Self::WIDTHS`] have them, into the corner of `out`.
    ///
    /// # Safety
    /// The processor has [`Self::ISA`], and every unit that the segments and strides name can be read.
    unsafe fn multiply(
        rows: usize,
        panels: usize,
        segments: &[Segment<Self::Unit>],
        strides: Strides,
        out: &mut Tile,
    );
}

#[inline(always)]
unsafe fn tile<S: Simd, const R: usize, const P: usize>(
    segments: &[Segment<S::Unit>],
    strides: Strides,
    out: &mut Tile,
) {
    // SAFETY: the caller's promise, and `R` × `P` is inside a `Tile`.
    unsafe {
        let mut sums = [[S::zero(); P]; R];
        for segment in segments {
            let (mut a, mut b) = (segment.a, segment.b);
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
                a = a.add(strides.step);
                b = b.add(LANES);
            }
        }
        for (row, out) in sums.iter().zip(out) {
            for (p, &sum) in row.iter().enumerate() {
                S::store(sum, out.as_mut_ptr().add(p * LANES));
            }
        }
    }
}

/// What becomes of finished tiles.
///
/// A closure would do, were it sure to be inlined and so compiled for the processor's instructions.
pub(crate) trait Sink {
    /// Takes a row of a tile: which row, the tile's first panel, its sums. Marked `#[inline(always)]`.
    fn row(&mut self, row: usize, panel: usize, sums: &mut [f32]);
}

/// Multiplies `rows` rows by `panels` panels over all `segments`, tile by tile, into `sink`.
///
/// # Safety
/// As for [`Micro::multiply`], for all rows and panels.
#[inline(always)]
pub(crate) unsafe fn product<S: Micro>(
    rows: usize,
    panels: usize,
    segments: &[Segment<S::Unit>],
    strides: Strides,
    mut sink: impl Sink,
) {
    let mut tile = [[0.0; LANES * PANELS]; ROWS];
    let mut moved = segments.to_vec();
    let mut panel = 0;
    let tile_of = |rows: usize| S::TILES.iter().copied().find(|&(tall, _)| tall <= rows).unwrap_or((1, 1));
    while panel < panels {
        // Rows that are left over below have tiles at least as wide.
        let most = tile_of(rows).1.min(panels - panel);
        let wide = S::WIDTHS.iter().copied().find(|&wide| wide <= most).unwrap_or(1);
        let mut row = 0;
        while row < rows {
            let (tall, _) = tile_of(rows - row);
            // SAFETY: the caller's promise.
            unsafe {
                for (moved, segment) in moved.iter_mut().zip(segments) {
                    moved.a = segment.a.add(row * strides.row);
                    moved.b = segment.b.add(panel * strides.panel);
                }
                S::multiply(tall, wide, &moved, strides, &mut tile);
            }
            for (r, sums) in tile[..tall].iter_mut().enumerate() {
                sink.row(row + r, panel, &mut sums[..wide * LANES]);
            }
            row += tall;
        }
        panel += wide;
    }
}

macro_rules! micro {
    ($simd:ident, tiles $tiles:expr, widths $widths:expr, $(($rows:literal, $panels:literal)),+) => {
        impl Micro for $simd {
            const ISA: Isa = Isa::$simd;
            const TILES: &'static [(usize, usize)] = &$tiles;
            const WIDTHS: &'static [usize] = &$widths;

            unsafe fn multiply(
                rows: usize,
                panels: usize,
                segments: &[Segment<Self::Unit>],
                strides: Strides,
                out: &mut Tile,
            ) {
                struct Multiply<'a>(usize, usize, &'a [Segment<<$simd as Simd>::Unit>], Strides, &'a mut Tile);
                impl Body for Multiply<'_> {
                    type Output = ();
                    #[inline(always)]
                    fn run(self) {
                        match (self.0, self.1) {
                            // SAFETY: the promise of `multiply`'s caller.
                            $(($rows, $panels) => unsafe { tile::<$simd, $rows, $panels>(self.2, self.3, self.4) },)+
                            (rows, panels) => unreachable!("no tile of {rows} rows and {panels} panels"),
                        }
                    }
                }
                Self::ISA.run(Multiply(rows, panels, segments, strides, out));
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
micro!(Avx512Bf16, tiles [(8, 3), (4, 3), (2, 6), (1, 6)], widths [6, 3, 2, 1],
    (2, 6), (1, 6), (8, 3), (4, 3), (2, 3), (1, 3), (8, 2), (4, 2), (2, 2), (1, 2), (8, 1), (4, 1), (2, 1), (1, 1));
#[cfg(target_arch = "x86_64")]
micro!(Avx512, tiles [(8, 3), (4, 3), (2, 6), (1, 6)], widths [6, 3, 2, 1],
    (2, 6), (1, 6), (8, 3), (4, 3), (2, 3), (1, 3), (8, 2), (4, 2), (2, 2), (1, 2), (8, 1), (4, 1), (2, 1), (1, 1));
#[cfg(target_arch = "x86_64")]
micro!(Avx2, tiles [(4, 1), (2, 2), (1, 4)], widths [4, 2, 1],
    (1, 4), (2, 2), (1, 2), (4, 1), (2, 1), (1, 1));
micro!(Portable, tiles [(2, 1), (1, 1)], widths [1], (2, 1), (1, 1));
