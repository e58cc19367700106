//! The micro-kernel of x86 tile registers (AMX). Up to 32 × 32 sums of bf16 products stay in four
//! registers.
//!
//! A tile register has up to 16 rows of 64 bytes. It holds 16 rows of the left operand by 16 units
//! of K, or 16 units of K by the 16 columns of a panel (the layout that panels have in memory), or
//! 16 rows by 16 columns of sums. Other sizes use smaller tiles: rows are divided evenly, and K is
//! cut into equal steps. A *configuration* sets the sizes of the registers; each thread has one.
//!
//! A step of K loads up to two left tiles and two panels (or one and four) and multiplies each left
//! tile by each panel with `tdpbf16ps`. The sums of a group of tiles are given to the sink while
//! the tile unit computes the next group.

#![allow(unsafe_code)]

use std::arch::asm;
use std::mem::{MaybeUninit, offset_of};

use super::simd::{LANES, Pair, Simd};
use super::tile::{Micro, Segment, Sink, Strides, Tile};
use super::x86::{Avx512Bf16, transpose};
use crate::scratch::Scratch;

/// The maximum number of rows, and of units of K, of a register.
const SIDE: usize = 16;
/// The minimum number of units of a step of K. With fewer, vector registers are as fast.
const MIN_DEPTH: usize = 4;
/// Bytes of a register's row.
const LINE: usize = 64;

/// The micro-kernel that multiplies tiles of bf16 with `tdpbf16ps` and sums in f32. Its vectors are
/// those of [`Avx512Bf16`].
pub struct Amx;

impl Simd for Amx {
    type Unit = Pair;
    type Sums = <Avx512Bf16 as Simd>::Sums;
    type Units = <Avx512Bf16 as Simd>::Units;

    #[inline(always)]
    unsafe fn zero() -> Self::Sums {
        // SAFETY: the caller guarantees it.
        unsafe { Avx512Bf16::zero() }
    }

    #[inline(always)]
    unsafe fn load(p: *const Pair) -> Self::Units {
        // SAFETY: the caller guarantees it.
        unsafe { Avx512Bf16::load(p) }
    }

    #[inline(always)]
    unsafe fn splat(p: *const Pair) -> Self::Units {
        // SAFETY: the caller guarantees it.
        unsafe { Avx512Bf16::splat(p) }
    }

    #[inline(always)]
    unsafe fn multiply_add(sums: Self::Sums, a: Self::Units, b: Self::Units) -> Self::Sums {
        // SAFETY: the caller guarantees it.
        unsafe { Avx512Bf16::multiply_add(sums, a, b) }
    }

    #[inline(always)]
    unsafe fn store(sums: Self::Sums, p: *mut f32) {
        // SAFETY: the caller guarantees it.
        unsafe { Avx512Bf16::store(sums, p) }
    }
}

impl Micro for Amx {
    const BEST: [usize; 2] = [2 * SIDE, 2];
    const WIDEST: usize = 4;
    const DEEP: usize = SIDE;

    #[inline(always)]
    unsafe fn product(
        rows: usize,
        panels: usize,
        segments: &[Segment<Pair>],
        strides: Strides,
        mut sink: impl Sink,
    ) {
        let Some(depth) = depth(segments) else {
            // SAFETY: the caller guarantees it.
            return unsafe { Avx512Bf16::product(rows, panels, segments, strides, sink) };
        };
        // All tiles but the last have `tall` rows, so at most two configurations are needed. 33
        // rows are three tiles of 11.
        let tall = rows.div_ceil(rows.div_ceil(SIDE).max(1)).max(1);
        let whole = rows / tall * tall;
        let mut transposed = None;
        for (rows, tall) in [(0..whole, tall), (whole..rows, rows - whole)] {
            if rows.is_empty() {
                continue;
            }
            let mut segments = segments.to_vec();
            // SAFETY: the caller guarantees it for all rows, and these are some of them.
            unsafe {
                segments.iter_mut().for_each(|segment| segment.a = segment.a.add(rows.start * strides.row));
                let shape = Shape::new([tall, depth], strides);
                match strides.step {
                    // A tile load needs a row's units next to each other. If K runs across memory,
                    // the rows are transposed first.
                    1 => shape.product([rows.start, rows.len()], panels, &segments, &mut sink),
                    step => {
                        let shape = shape.transpose_left(rows.len(), step, &mut segments, &mut transposed);
                        shape.product([rows.start, rows.len()], panels, &segments, &mut sink);
                    }
                }
            }
        }
    }
}

/// Returns the longest step of K that divides all segments, or `None` if it would be too short or
/// there is nothing to multiply.
#[inline(always)]
fn depth(segments: &[Segment<Pair>]) -> Option<usize> {
    let all = |depth: usize| segments.iter().all(|segment| segment.units.is_multiple_of(depth));
    let empty = segments.is_empty() || segments.iter().any(|segment| segment.units == 0);
    if empty { None } else { (MIN_DEPTH..=SIDE).rev().find(|&depth| all(depth)) }
}

/// The sizes of tiles, and the distances between them in bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// Rows of a left tile and of a tile of sums.
    tall: usize,
    /// Units of K per step.
    depth: usize,
    /// From a row of the left operand to the next.
    left_row: usize,
    /// From a left tile to the one of the next step.
    left_step: usize,
    /// From a left tile to the one below.
    left_tile: usize,
    /// From a panel to the next.
    panel: usize,
}

impl Shape {
    #[inline(always)]
    fn new([tall, depth]: [usize; 2], strides: Strides) -> Shape {
        let bytes = |units: usize| units * size_of::<Pair>();
        let left_row = bytes(strides.row);
        Shape {
            tall,
            depth,
            left_row,
            left_step: bytes(depth),
            left_tile: tall * left_row,
            panel: bytes(strides.panel),
        }
    }

    /// Transposes a left operand whose rows are next to each other, with `stride` units from a step
    /// of K to the next. The units of each tile become contiguous in `transposed`; the segments are
    /// changed to point there. Returns the shape of the copy.
    ///
    /// # Safety
    /// The `rows` rows of the segments must be readable.
    #[inline(always)]
    unsafe fn transpose_left(
        self,
        rows: usize,
        stride: usize,
        segments: &mut [Segment<Pair>],
        transposed: &mut Option<Scratch<Pair>>,
    ) -> Shape {
        let Shape { tall, depth, .. } = self;
        assert_eq!(self.left_row, size_of::<Pair>(), "the left operand's rows or units must be contiguous");
        let units = segments.iter().map(|segment| segment.units).sum::<usize>();
        let transposed = transposed.insert(Scratch::new(rows * units));
        let mut before = 0;
        for segment in segments {
            for (row, tile) in (0..rows).step_by(tall).zip(transposed.chunks_exact_mut(tall * units)) {
                let steps = tile[tall * before..][..tall * segment.units].chunks_exact_mut(tall * depth);
                for (step, tile) in steps.enumerate() {
                    // SAFETY: the caller guarantees it; `tile` has `tall` rows of `depth` units.
                    unsafe {
                        let source = segment.a.add(row + step * depth * stride);
                        transpose([depth, tall], source, stride, tile.as_mut_ptr());
                    }
                }
            }
            segment.a = transposed[tall * before..].as_ptr();
            before += segment.units;
        }
        let [left_row, left_step, left_tile] =
            [depth, tall * depth, tall * units].map(|n| n * size_of::<Pair>());
        Shape { left_row, left_step, left_tile, ..self }
    }

    /// Multiplies `rows` rows, a multiple of the tile's, by `panels` panels. For `sink`, the first
    /// of them is row `first`.
    ///
    /// # Safety
    /// As for [`Micro::product`].
    #[inline(always)]
    unsafe fn product(
        &self,
        [first, rows]: [usize; 2],
        panels: usize,
        segments: &[Segment<Pair>],
        sink: &mut impl Sink,
    ) {
        configure(self.tall, self.depth);
        let tiles = rows / self.tall;
        let most = if tiles == 1 { Amx::WIDEST } else { 2 };
        let (mut out, mut previous) = (MaybeUninit::uninit(), None::<Place>);
        for panel in (0..panels).step_by(most) {
            for tile in (0..tiles).step_by(2) {
                let (high, wide) = (2.min(tiles - tile), most.min(panels - panel));
                // Four registers of sums: 2 × 2 tiles and panels, or 1 × 4.
                let task = Task {
                    a: tile * self.left_tile,
                    b: panel * self.panel,
                    shape: *self,
                    right_step: self.depth * LINE,
                    size: [high, wide],
                };
                let place =
                    Place { row: first + tile * self.tall, panel, rows: high * self.tall, panels: wide };
                // SAFETY: the caller guarantees it; `configure` gave the thread's registers this
                // shape.
                unsafe {
                    // Copy the previous sums out of their registers, and start to compute the next
                    // ones.
                    let finished = previous
                        .replace(place)
                        .map(|previous| (previous.store(self.tall, &mut out), previous));
                    task.add_up(segments);
                    // The CPU still multiplies while this code consumes the previous sums.
                    if let Some((sums, previous)) = finished {
                        previous.deliver(sums, sink);
                    }
                }
            }
        }
        if let Some(last) = previous {
            // SAFETY: as above.
            let sums = unsafe { last.store(self.tall, &mut out) };
            last.deliver(sums, sink);
        }
    }
}

/// One group of sums to compute: up to four registers, numbered row by row. Distances are in bytes.
/// The assembly reads the fields by their offsets.
#[repr(C)]
struct Task {
    /// From a segment's start in the left operand to the first tile.
    a: usize,
    /// From a segment's start in the right operand to the first panel.
    b: usize,
    shape: Shape,
    /// From the units of a panel for one step to those for the next.
    right_step: usize,
    /// The number of left tiles and of panels.
    size: [usize; 2],
}

/// The instructions that [`Task::add_up`] consists of; registers are named by their number.
///
/// `right` loads from the first panel and leaves its address in `{at}`; `right next` advances that
/// address by one panel. `left below` overwrites it.
macro_rules! piece {
    (clear $sums:literal) => {
        concat!("tilezero tmm", $sums)
    };
    (left $tile:literal) => {
        concat!("tileloadd tmm", $tile, ", [{a} + {row}*1]")
    };
    (left below $tile:literal) => {
        concat!("mov {at}, {a}\nadd {at}, [{task} + {left_tile}]\ntileloadd tmm", $tile, ", [{at} + {row}*1]")
    };
    (right $tile:literal) => {
        concat!("mov {at}, {b}\ntileloadd tmm", $tile, ", [{at} + {line}*1]")
    };
    (right next $tile:literal) => {
        concat!("add {at}, [{task} + {panel}]\ntileloadd tmm", $tile, ", [{at} + {line}*1]")
    };
    (add $sums:literal $left:literal $right:literal) => {
        concat!("tdpbf16ps tmm", $sums, ", tmm", $left, ", tmm", $right)
    };
}

/// Clears the sums and adds the products of all steps of all segments. Label 2 is the loop over
/// segments, label 3 the loop over steps.
macro_rules! add_up {
    ($task:expr, $segments:expr, clear $(($($clear:tt)+))+, step $(($($step:tt)+))+) => {
        asm!(
            $(piece!(clear $($clear)+),)+
            "2:",
            "mov {a}, [{segment} + {segment_a}]",
            "add {a}, [{task} + {task_a}]",
            "mov {b}, [{segment} + {segment_b}]",
            "add {b}, [{task} + {task_b}]",
            "mov {units}, [{segment} + {segment_units}]",
            "3:",
            $(piece!($($step)+),)+
            "add {a}, [{task} + {left_step}]",
            "add {b}, [{task} + {right_step}]",
            "sub {units}, [{task} + {depth}]",
            "jnz 3b",
            "add {segment}, {segment_size}",
            "cmp {segment}, {end}",
            "jne 2b",
            // `asm!` requires that every operand is used; small sizes do not use these two.
            "/* not of use for every size: {left_tile} {panel} */",
            task = in(reg) $task,
            segment = inout(reg) $segments.as_ptr_range().start => _,
            end = in(reg) $segments.as_ptr_range().end,
            row = in(reg) $task.shape.left_row,
            line = in(reg) LINE,
            a = out(reg) _,
            b = out(reg) _,
            units = out(reg) _,
            at = out(reg) _,
            segment_a = const offset_of!(Segment<Pair>, a),
            segment_b = const offset_of!(Segment<Pair>, b),
            segment_units = const offset_of!(Segment<Pair>, units),
            segment_size = const size_of::<Segment<Pair>>(),
            task_a = const offset_of!(Task, a),
            task_b = const offset_of!(Task, b),
            depth = const offset_of!(Task, shape.depth),
            left_step = const offset_of!(Task, shape.left_step),
            left_tile = const offset_of!(Task, shape.left_tile),
            panel = const offset_of!(Task, shape.panel),
            right_step = const offset_of!(Task, right_step),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly),
        )
    };
}

impl Task {
    /// Computes the sums and leaves them in registers 0 to 3.
    ///
    /// # Safety
    /// The thread's registers must have the task's shape. There must be a segment, none may be
    /// empty, and all units that the segments and the task describe must be readable.
    #[rustfmt::skip]
    #[inline(always)]
    unsafe fn add_up(&self, segments: &[Segment<Pair>]) {
        // SAFETY: the assembly only reads the units of these left tiles and panels.
        unsafe {
            match self.size {
                [2, 2] => add_up!(self, segments, clear (0) (1) (2) (3), step (right 6) (left 4) (add 0 4 6)
                    (right next 7) (add 1 4 7) (left below 5) (add 2 5 6) (add 3 5 7)),
                [2, 1] => add_up!(self, segments, clear (0) (1), step (right 6) (left 4) (add 0 4 6)
                    (left below 5) (add 1 5 6)),
                [1, 4] => add_up!(self, segments, clear (0) (1) (2) (3), step (left 4) (right 6) (add 0 4 6)
                    (right next 7) (add 1 4 7) (right next 6) (add 2 4 6) (right next 7) (add 3 4 7)),
                [1, 3] => add_up!(self, segments, clear (0) (1) (2), step (left 4) (right 6) (add 0 4 6)
                    (right next 7) (add 1 4 7) (right next 6) (add 2 4 6)),
                [1, 2] => add_up!(self, segments, clear (0) (1), step (left 4) (right 6) (add 0 4 6)
                    (right next 7) (add 1 4 7)),
                [1, 1] => add_up!(self, segments, clear (0), step (left 4) (right 6) (add 0 4 6)),
                [high, wide] => unreachable!("no tile of {high} by {wide} registers"),
            }
        }
    }
}

/// The rows and panels that a group of sums belongs to.
struct Place {
    row: usize,
    panel: usize,
    rows: usize,
    panels: usize,
}

impl Place {
    /// Copies the sums from their registers, `tall` rows each, to the start of `out`.
    ///
    /// # Safety
    /// The thread's registers must have this number of rows.
    #[inline(always)]
    unsafe fn store<'a>(&self, tall: usize, out: &'a mut MaybeUninit<Tile>) -> &'a mut [f32] {
        let pitch = self.panels * LINE;
        let out = out.as_mut_ptr().cast::<f32>();
        let below = out.wrapping_byte_add(tall * pitch);
        macro_rules! store {
            ($at:expr, $column:literal, $sums:literal) => {
                asm!(
                    concat!("tilestored [{at} + {pitch}*1 + 64*", $column, "], tmm", $sums),
                    at = in(reg) $at,
                    pitch = in(reg) pitch,
                    options(nostack, preserves_flags),
                )
            };
        }
        // SAFETY: `out` has room for the rows and panels, all of which are written. Only this
        // module's assembly uses tile registers; no other code is compiled for a CPU that has them.
        unsafe {
            match [self.rows / tall, self.panels] {
                [2, 2] => {
                    store!(out, 0, 0);
                    store!(out, 1, 1);
                    store!(below, 0, 2);
                    store!(below, 1, 3);
                }
                [2, _] => {
                    store!(out, 0, 0);
                    store!(below, 0, 1);
                }
                [_, panels] => {
                    store!(out, 0, 0);
                    if panels > 1 {
                        store!(out, 1, 1);
                    }
                    if panels > 2 {
                        store!(out, 2, 2);
                    }
                    if panels > 3 {
                        store!(out, 3, 3);
                    }
                }
            }
            std::slice::from_raw_parts_mut(out, self.rows * self.panels * LANES)
        }
    }

    /// Passes the stored sums to the sink.
    #[inline(always)]
    fn deliver(&self, sums: &mut [f32], sink: &mut impl Sink) {
        for (row, sums) in sums.chunks_exact_mut(self.panels * LANES).enumerate() {
            sink.row(self.row + row, self.panel, sums);
        }
    }
}

/// A configuration in the CPU's format: `palette` 1, then the bytes per row and the number of rows
/// of each register.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq)]
struct Configuration {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Configures the thread's registers for tiles of `tall` rows and `depth` units of K, unless they
/// are already. Registers 0 to 3 hold sums, 4 and 5 left tiles, 6 and 7 panels.
///
/// The configuration is kept after a product. Releasing the registers takes as long as three steps
/// of a product, and configuring them for the next product takes as long again.
#[inline(always)]
fn configure(tall: usize, depth: usize) {
    let (line, left) = (LINE as u16, (depth * size_of::<Pair>()) as u16);
    let (tall, depth) = (tall as u8, depth as u8);
    let per_register = |[sums, left, right]: [u16; 3]| {
        [sums, sums, sums, sums, left, left, right, right, 0, 0, 0, 0, 0, 0, 0, 0]
    };
    let expected = Configuration {
        palette: 1,
        start: 0,
        reserved: [0; 14],
        row_bytes: per_register([line, left, line]),
        rows: per_register([tall, tall, depth].map(u16::from)).map(|rows| rows as u8),
    };
    let mut found =
        Configuration { palette: 0, start: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    // SAFETY: this code runs only where the CPU has tile registers and the system permits them. The
    // configuration is valid. Only this module's assembly uses the registers, and it clears them
    // before use.
    unsafe {
        asm!("sttilecfg [{}]", in(reg) &mut found, options(nostack, preserves_flags));
        if found != expected {
            asm!("ldtilecfg [{}]", in(reg) &expected, options(nostack, preserves_flags, readonly));
        }
    }
}

/// Returns whether the CPU has tile registers for bf16 and the system permits this process to use
/// them. Asks the system for the permission.
pub(crate) fn available() -> bool {
    const TILE_AND_BF16: u32 = 1 << 24 | 1 << 22;
    let leaf = std::arch::x86_64::__cpuid_count(7, 0);
    leaf.edx & TILE_AND_BF16 == TILE_AND_BF16 && permitted()
}

/// Asks Linux for the permission to use tile registers. Linux then reserves room for them in the
/// saved state of the process's threads.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call reads its two numbers and changes no memory of the program.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Tile registers are not used on other systems.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

#[cfg(test)]
mod tests;
