//! Sixteen f32 lanes: what the micro-kernel is written in. Plain Rust is here, [`super::x86`] has the instruction sets.

// What a function needs is its caller's promise, stated where it is declared, and covers its whole body.
#![allow(unsafe_code, unsafe_op_in_unsafe_fn)]

/// Columns of a panel: the f32 lanes of the widest register.
pub const LANES: usize = 16;

/// Sixteen f32 sums and the units that are multiplied into them.
///
/// K is counted in *units*: one f32, or a pair of bf16 or four whole numbers that one instruction multiplies and sums.
///
/// # Safety
/// Every function needs a CPU with the instruction set, and is only fast when inlined into a function that enables it.
/// Pointers are valid for the units or sums that a function touches; they need no alignment.
pub trait Simd: 'static {
    /// What K is counted in.
    type Unit: Copy + Send + Sync + Default + 'static;
    /// Sixteen sums.
    type Sums: Copy;
    /// Sixteen units.
    type Units: Copy;

    /// Zeros.
    unsafe fn zero() -> Self::Sums;
    /// Sixteen neighbouring units.
    unsafe fn load(p: *const Self::Unit) -> Self::Units;
    /// One unit in all lanes.
    unsafe fn splat(p: *const Self::Unit) -> Self::Units;
    /// `sums + a · b`, a unit's values summed.
    unsafe fn multiply_add(sums: Self::Sums, a: Self::Units, b: Self::Units) -> Self::Sums;
    /// Writes sixteen sums, as f32.
    unsafe fn store(sums: Self::Sums, p: *mut f32);
    /// Asks for the cache line at `p`, which need not be valid.
    fn fetch(p: *const Self::Unit) {
        let _ = p;
    }
}

/// A pair of bf16, the earlier one in the low half.
pub type Pair = u32;

/// Four whole numbers of 8 bits, the earliest one in the lowest.
pub type Quad = u32;

/// Plain Rust.
pub struct Portable;

impl Simd for Portable {
    type Unit = f32;
    type Sums = [f32; LANES];
    type Units = [f32; LANES];

    #[inline(always)]
    unsafe fn zero() -> [f32; LANES] {
        [0.0; LANES]
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; LANES] {
        p.cast::<[f32; LANES]>().read_unaligned()
    }

    #[inline(always)]
    unsafe fn splat(p: *const f32) -> [f32; LANES] {
        [p.read_unaligned(); LANES]
    }

    #[inline(always)]
    unsafe fn multiply_add(sums: [f32; LANES], a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|lane| sums[lane] + a[lane] * b[lane])
    }

    #[inline(always)]
    unsafe fn store(sums: [f32; LANES], p: *mut f32) {
        p.cast::<[f32; LANES]>().write_unaligned(sums)
    }
}
