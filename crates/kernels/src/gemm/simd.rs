//! The vectors of sixteen f32 lanes that the micro-kernel is written in. This file has them in
//! plain Rust; [`super::x86`] has them for the instruction sets of x86.

// The trait states what callers must guarantee; it covers the whole body of each function.
#![allow(unsafe_code, unsafe_op_in_unsafe_fn)]

/// The number of columns of a panel, which is the number of f32 lanes of the widest register.
pub const LANES: usize = 16;

/// A vector of sixteen f32 sums, and the units that are multiplied into them.
///
/// K is counted in *units*: one f32, a pair of bf16, or four 8-bit integers, whose products one
/// instruction adds up.
///
/// # Safety
/// Every function needs a CPU with the instruction set. It is fast only when inlined into a
/// function that enables the set. Pointers must be valid for the units or sums that a function
/// reads or writes; they need no alignment.
pub trait Simd: 'static {
    /// The unit that K is counted in.
    type Unit: Copy + Send + Sync + Default + 'static;
    /// Sixteen sums.
    type Sums: Copy;
    /// Sixteen units.
    type Units: Copy;

    /// Returns sums of zero.
    unsafe fn zero() -> Self::Sums;
    /// Loads sixteen neighbouring units.
    unsafe fn load(p: *const Self::Unit) -> Self::Units;
    /// Loads one unit into all lanes.
    unsafe fn splat(p: *const Self::Unit) -> Self::Units;
    /// Returns `sums + a · b`, with the products of a unit's values added up.
    unsafe fn multiply_add(sums: Self::Sums, a: Self::Units, b: Self::Units) -> Self::Sums;
    /// Writes sixteen sums as f32.
    unsafe fn store(sums: Self::Sums, p: *mut f32);
    /// Prefetches the cache line at `p`, which need not be valid.
    fn fetch(p: *const Self::Unit) {
        let _ = p;
    }
}

/// Two bf16 values; the earlier one is in the low half.
pub type Pair = u32;

/// Four 8-bit integers; the earliest one is in the lowest byte.
pub type Quad = u32;

/// The vectors in plain Rust.
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
