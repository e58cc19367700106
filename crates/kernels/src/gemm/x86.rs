//! The vectors of sixteen f32 lanes for the instruction sets of x86.

// The trait states what callers must guarantee; it covers the whole body of each function.
#![allow(unsafe_code, unsafe_op_in_unsafe_fn)]

use std::arch::x86_64::*;

use super::simd::{Pair, Quad, Simd};

/// Products of bf16 with `vdpbf16ps`, summed in f32.
pub struct Avx512Bf16;
/// Products of 8-bit integers with `vpdpbusd`, summed in 32 bits. The left operand is signed, the
/// right one unsigned. Every CPU with `vdpbf16ps` has the instruction.
pub struct Vnni;
/// Products of f32 in 512-bit registers.
pub struct Avx512;
/// Products of f32 in 256-bit registers, two for sixteen lanes.
pub struct Avx2;

impl Simd for Avx512Bf16 {
    type Unit = Pair;
    type Sums = __m512;
    type Units = __m512bh;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        _mm512_setzero_ps()
    }

    #[inline(always)]
    unsafe fn load(p: *const Pair) -> __m512bh {
        std::mem::transmute(_mm512_loadu_si512(p.cast()))
    }

    #[inline(always)]
    unsafe fn splat(p: *const Pair) -> __m512bh {
        std::mem::transmute(_mm512_set1_epi32(p.read_unaligned() as i32))
    }

    #[inline(always)]
    unsafe fn multiply_add(sums: __m512, a: __m512bh, b: __m512bh) -> __m512 {
        _mm512_dpbf16_ps(sums, a, b)
    }

    #[inline(always)]
    unsafe fn store(sums: __m512, p: *mut f32) {
        _mm512_storeu_ps(p, sums)
    }

    #[inline(always)]
    fn fetch(p: *const Pair) {
        fetch(p);
    }
}

impl Simd for Vnni {
    type Unit = Quad;
    type Sums = __m512i;
    type Units = __m512i;

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        _mm512_setzero_si512()
    }

    #[inline(always)]
    unsafe fn load(p: *const Quad) -> __m512i {
        _mm512_loadu_si512(p.cast())
    }

    #[inline(always)]
    unsafe fn splat(p: *const Quad) -> __m512i {
        _mm512_set1_epi32(p.read_unaligned() as i32)
    }

    #[inline(always)]
    unsafe fn multiply_add(sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
        _mm512_dpbusd_epi32(sums, b, a)
    }

    #[inline(always)]
    unsafe fn store(sums: __m512i, p: *mut f32) {
        _mm512_storeu_ps(p, _mm512_cvtepi32_ps(sums))
    }

    #[inline(always)]
    fn fetch(p: *const Quad) {
        fetch(p);
    }
}

impl Simd for Avx512 {
    type Unit = f32;
    type Sums = __m512;
    type Units = __m512;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        _mm512_setzero_ps()
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        _mm512_loadu_ps(p)
    }

    #[inline(always)]
    unsafe fn splat(p: *const f32) -> __m512 {
        _mm512_set1_ps(p.read_unaligned())
    }

    #[inline(always)]
    unsafe fn multiply_add(sums: __m512, a: __m512, b: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, sums)
    }

    #[inline(always)]
    unsafe fn store(sums: __m512, p: *mut f32) {
        _mm512_storeu_ps(p, sums)
    }

    #[inline(always)]
    fn fetch(p: *const f32) {
        fetch(p);
    }
}

impl Simd for Avx2 {
    type Unit = f32;
    type Sums = [__m256; 2];
    type Units = [__m256; 2];

    #[inline(always)]
    unsafe fn zero() -> [__m256; 2] {
        [_mm256_setzero_ps(); 2]
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> [__m256; 2] {
        [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))]
    }

    #[inline(always)]
    unsafe fn splat(p: *const f32) -> [__m256; 2] {
        [_mm256_set1_ps(p.read_unaligned()); 2]
    }

    #[inline(always)]
    unsafe fn multiply_add(sums: [__m256; 2], a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        [_mm256_fmadd_ps(a[0], b[0], sums[0]), _mm256_fmadd_ps(a[1], b[1], sums[1])]
    }

    #[inline(always)]
    unsafe fn store(sums: [__m256; 2], p: *mut f32) {
        _mm256_storeu_ps(p, sums[0]);
        _mm256_storeu_ps(p.add(8), sums[1]);
    }

    #[inline(always)]
    fn fetch(p: *const f32) {
        fetch(p);
    }
}

/// Prefetches the cache line at `p` into all cache levels.
#[inline(always)]
fn fetch<T>(p: *const T) {
    // SAFETY: a prefetch never faults, and SSE is part of x86-64.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
}

/// Transposes `rows` × `columns` units, at most 16 × 16. The rows of `source` are `stride` units
/// apart; the rows of `out` follow each other without gaps.
///
/// # Safety
/// As for [`Simd`]; `source` must be readable and `out` writable.
#[inline(always)]
pub(super) unsafe fn transpose(
    [rows, columns]: [usize; 2],
    source: *const Pair,
    stride: usize,
    out: *mut Pair,
) {
    const SIDE: usize = 16;
    let first_lanes = |n: usize| (0xffff_u32 >> (SIDE - n)) as u16;
    let mut lines = [_mm512_setzero_si512(); SIDE];
    for (row, line) in lines.iter_mut().enumerate().take(rows) {
        *line = _mm512_maskz_loadu_epi32(first_lanes(columns), source.add(row * stride).cast());
    }
    // 1. Interleave the units of two rows, then the pairs of four rows. Quarter `q` of
    //    `fours[4r + c]` then holds column `4q + c` of rows `4r .. 4r + 4`.
    // 2. Collect the quarters of a column from all four groups of rows.
    let (mut pairs, mut fours) = (lines, lines);
    for i in (0..SIDE).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(lines[i], lines[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(lines[i], lines[i + 1]);
    }
    for i in (0..SIDE).step_by(2) {
        let upper = i & !3 | i >> 1 & 1;
        fours[i] = _mm512_unpacklo_epi64(pairs[upper], pairs[upper + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[upper], pairs[upper + 2]);
    }
    for within in 0..4 {
        let [a, b, c, d] = [fours[within], fours[within + 4], fours[within + 8], fours[within + 12]];
        let (ab, cd) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0x44>(c, d));
        let (ab_high, cd_high) = (_mm512_shuffle_i32x4::<0xee>(a, b), _mm512_shuffle_i32x4::<0xee>(c, d));
        let quarters = [
            _mm512_shuffle_i32x4::<0x88>(ab, cd),
            _mm512_shuffle_i32x4::<0xdd>(ab, cd),
            _mm512_shuffle_i32x4::<0x88>(ab_high, cd_high),
            _mm512_shuffle_i32x4::<0xdd>(ab_high, cd_high),
        ];
        for (quarter, line) in quarters.into_iter().enumerate() {
            let column = quarter * 4 + within;
            if column < columns {
                _mm512_mask_storeu_epi32(out.add(column * rows).cast(), first_lanes(rows), line);
            }
        }
    }
}
