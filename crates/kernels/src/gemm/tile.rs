//! The micro-kernel: a tile of sums, 8 rows × 48 columns or, of few rows, wider, stays in registers while K runs by.
//! ([`super::amx`] has another, for processors with tile registers.)
//!
//! The left operand is read by broadcast, the right one from panels of 16 columns ([`super::pack`]). K may come in
//! several [`Segment`]s: that is how convolutions and sparse attention use the same loop without copying operands.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use super::simd::{LANES, Portable, Simd};
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512, Avx512Bf16, Vnni};
use crate::cpu::{Body, Isa};

/// Sums of the largest tile: 32 rows of 2 panels.
const SUMS: usize = 32 * 2 * LANES;

/// Units by which panels are fetched into the first-level cache before they are multiplied.
const AHEAD: usize = 16;

/// Sums of a tile, row by row, without gaps.
#[repr(C, align(64))]
pub struct Tile(pub [f32; SUMS]);

/// A stretch of K.
#[repr(C)]
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

/// What becomes of finished tiles.
///
/// A closure would do, were it sure to be inlined and so compiled for the processor's instructions. Must not multiply, nor
/// wait for other jobs of the pool: the next sums may be on their way in the thread's registers.
pub(crate) trait Sink {
    /// Takes a row of a tile: which row, the tile's first panel, its sums. Marked `#[inline(always)]`.
    fn row(&mut self, row: usize, panel: usize, sums: &mut [f32]);
}

/// A way to multiply.
pub(crate) trait Micro: Simd {
    /// Rows and panels of the tile that the processor is fastest at.
    const BEST: [usize; 2];
    /// Panels side by side in the widest tile: what few rows are multiplied with at a time.
    const WIDEST: usize;
    /// Units of K that are multiplied at once: it is fastest at multiples of them.
    const DEEP: usize;

    /// Multiplies `rows` rows by `panels` panels over all `segments`, tile by tile, into `sink`.
    ///
    /// # Safety
    /// The processor has the instructions, and every unit that the segments and strides name can be read.
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
    /// The set.
    const ISA: Isa;
    /// Tiles that fit the registers, as rows and most panels side by side; tallest first, those of 1 row last. The lower,
    /// the wider: a core adds to about eight sums at a time.
    const TILES: &'static [(usize, usize)];
    /// Panels side by side that there are tiles of, widest first, 1 last.
    const WIDTHS: &'static [usize];

    /// Multiplies `rows` × `panels`, as [`Self::TILES`] and [`Self::WIDTHS`] have them, beginning `from` units behind where the segments
    /// begin, left and right; writes the sums to `out`, row by row.
    ///
    /// # Safety
    /// The processor has [`Self::ISA`], every unit that the segments and strides name can be read, and `out` is that of a [`Tile`].
    unsafe fn multiply(
        rows: usize,
        panels: usize,
        segments: &[Segment<Self::Unit>],
        strides: Strides,
        from: [usize; 2],
        out: *mut f32,
    );
}

#[inline(always)]
unsafe fn tile<S: Simd, const R: usize, const P: usize>(
    segments: &[Segment<S::Unit>],
    strides: Strides,
    from: [usize; 2],
    out: *mut f32,
) {
    // SAFETY: the caller's promise, and `R` × `P` fit a `Tile`.
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
                // Past the last unit they point to nothing, and are not read.
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
            // Rows that are left over below have tiles at least as wide.
            let most = tile_of(rows).1.min(panels - panel);
            let wide = S::WIDTHS.iter().copied().find(|&wide| wide <= most).unwrap_or(1);
            let mut row = 0;
            while row < rows {
                let (tall, _) = tile_of(rows - row);
                // SAFETY: the caller's promise, and a tile has room for what is written and then read.
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
                            // SAFETY: the promise of `multiply`'s caller.
                            $(($rows, $panels) => unsafe { tile::<$simd, $rows, $panels>(self.2, self.3, self.4, self.5) },)+
                            (rows, panels) => unreachable!("no tile of {rows} rows and {panels} panels"),
                        }
                    }
                }
                Self::ISA.run(Multiply(rows, panels, segments, strides, from, out));
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
