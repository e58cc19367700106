//! Products in the tile registers of x86 (AMX): up to 32 × 32 sums of bf16 products stay in four of them.
//!
//! A tile register has up to 16 rows of 64 bytes: 16 rows of the left operand by 16 units of K, 16 units by the 16 columns
//! of a panel just as panels have them, or 16 rows by 16 columns of sums. Other sizes are met with smaller tiles: rows are
//! dealt out evenly, K is cut into equal steps. Registers are given their sizes by a *configuration*, which a thread keeps.

#![allow(unsafe_code)]

use std::arch::asm;
use std::mem::{MaybeUninit, offset_of};

use super::simd::{LANES, Pair, Simd};
use super::tile::{Micro, Segment, Sink, Strides, Tile};
use super::x86::{Avx512Bf16, transpose};
use crate::scratch::Scratch;

/// Most rows, and most units of K, of a register.
const SIDE: usize = 16;
/// K is not cut into shorter steps: vector registers are then as fast.
const MIN_DEPTH: usize = 4;
/// Bytes of a register's row.
const LINE: usize = 64;

/// `tdpbf16ps`: bf16 products of whole tiles, summed in f32. Vectors are those of [`Avx512Bf16`].
pub struct Amx;

impl Simd for Amx {
    type Unit = Pair;
    type Sums = <Avx512Bf16 as Simd>::Sums;
    type Units = <Avx512Bf16 as Simd>::Units;

    #[inline(always)]
    unsafe fn zero() -> Self::Sums {
        // SAFETY: the caller\'s promise.
        unsafe { Avx512Bf16::zero() }
    }

    #[inline(always)]
    unsafe fn load(p: *const Pair) -> Self::Units {
        // SAFETY: the caller\'s promise.
        unsafe { Avx512Bf16::load(p) }
    }

    #[inline(always)]
    unsafe fn splat(p: *const Pair) -> Self::Units {
        // SAFETY: the caller\'s promise.
        unsafe { Avx512Bf16::splat(p) }
    }

    #[inline(always)]
    unsafe fn multiply_add(sums: Self::Sums, a: Self::Units, b: Self::Units) -> Self::Sums {
        // SAFETY: the caller\'s promise.
        unsafe { Avx512Bf16::multiply_add(sums, a, b) }
    }

    #[inline(always)]
    unsafe fn store(sums: Self::Sums, p: *mut f32) {
        // SAFETY: the caller\'s promise.
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
            // SAFETY: the caller's promise.
            return unsafe { Avx512Bf16::product(rows, panels, segments, strides, sink) };
        };
        let tall = rows.div_ceil(rows.div_ceil(SIDE).max(1)).max(1);
        let whole = rows / tall * tall;
        let mut turned = None;
        for (rows, tall) in [(0..whole, tall), (whole..rows, rows - whole)] {
            if rows.is_empty() {
                continue;
            }
            let mut segments = segments.to_vec();
            // SAFETY: the caller's promise, for some of its rows.
            unsafe {
                segments.iter_mut().for_each(|segment| segment.a = segment.a.add(rows.start * strides.row));
                let shape = Shape::new([tall, depth], strides);
                match strides.step {
                    1 => shape.product([rows.start, rows.len()], panels, &segments, &mut sink),
                    step => {
                        let shape = shape.turn(rows.len(), step, &mut segments, &mut turned);
                        shape.product([rows.start, rows.len()], panels, &segments, &mut sink);
                    }
                }
            }
        }
    }
}

/// The longest step that all segments are whole steps of, unless it is too short or there is nothing to multiply.
#[inline(always)]
fn depth(segments: &[Segment<Pair>]) -> Option<usize> {
    let all = |depth: usize| segments.iter().all(|segment| segment.units.is_multiple_of(depth));
    let empty = segments.is_empty() || segments.iter().any(|segment| segment.units == 0);
    if empty { None } else { (MIN_DEPTH..=SIDE).rev().find(|&depth| all(depth)) }
}

/// The sizes of tiles, and in bytes how far from each other they are.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// Rows of a left tile and of sums.
    tall: usize,
    /// Units of K of a step.
    depth: usize,
    /// From a row of the left operand to the next.
    left_row: usize,
    /// From a left tile to the next step's.
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

    /// Copies `rows` rows that lie side by side, a step of K `stride` units from the next, so that each tile's units lie
    /// together; points the segments there and returns their shape.
    ///
    /// # Safety
    /// The rows of the segments can be read.
    #[inline(always)]
    unsafe fn turn(
        self,
        rows: usize,
        stride: usize,
        segments: &mut [Segment<Pair>],
        turned: &mut Option<Scratch<Pair>>,
    ) -> Shape {
        let Shape { tall, depth, .. } = self;
        assert_eq!(self.left_row, size_of::<Pair>(), "rows lie along K or across it");
        let units = segments.iter().map(|segment| segment.units).sum::<usize>();
        let turned = turned.insert(Scratch::new(rows * units));
        let mut before = 0;
        for segment in segments {
            for (row, tile) in (0..rows).step_by(tall).zip(turned.chunks_exact_mut(tall * units)) {
                let steps = tile[tall * before..][..tall * segment.units].chunks_exact_mut(tall * depth);
                for (step, tile) in steps.enumerate() {
                    // SAFETY: the caller's promise; `tile` has `tall` rows of `depth` units.
                    unsafe {
                        let source = segment.a.add(row + step * depth * stride);
                        transpose([depth, tall], source, stride, tile.as_mut_ptr());
                    }
                }
            }
            segment.a = turned[tall * before..].as_ptr();
            before += segment.units;
        }
        let [left_row, left_step, left_tile] =
            [depth, tall * depth, tall * units].map(|n| n * size_of::<Pair>());
        Shape { left_row, left_step, left_tile, ..self }
    }

    /// Multiplies `rows` rows, whole tiles of them, by `panels` panels into `sink`, for which they start at row `first`.
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
        let (mut out, mut before) = (MaybeUninit::uninit(), None::<Place>);
        for panel in (0..panels).step_by(most) {
            for tile in (0..tiles).step_by(2) {
                let (high, wide) = (2.min(tiles - tile), most.min(panels - panel));
                let task = Task {
                    a: tile * self.left_tile,
                    b: panel * self.panel,
                    shape: *self,
                    right_step: self.depth * LINE,
                    size: [high, wide],
                };
                let place =
                    Place { row: first + tile * self.tall, panel, rows: high * self.tall, panels: wide };
                // SAFETY: the caller's promise; the thread's registers have this shape.
                unsafe {
                    let finished =
                        before.replace(place).map(|before| (before.store(self.tall, &mut out), before));
                    task.add_up(segments);
                    // The registers are being filled for as long as this takes.
                    if let Some((sums, before)) = finished {
                        before.hand(sums, sink);
                    }
                }
            }
        }
        if let Some(last) = before {
            // SAFETY: as above.
            let sums = unsafe { last.store(self.tall, &mut out) };
            last.hand(sums, sink);
        }
    }
}

/// Sums to be made: up to four registers of them, numbered row by row. Distances are in bytes.
#[repr(C)]
struct Task {
    /// From a segment's start to the rows.
    a: usize,
    /// From a segment's start to the panels.
    b: usize,
    shape: Shape,
    /// From a step's units of a panel to the next step's.
    right_step: usize,
    /// Left tiles and panels.
    size: [usize; 2],
}

/// Lines of assembly that [`Task::add_up`] is put together from; registers are named by their number.
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

/// Clears sums and adds the steps of all segments to them.
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
    /// Leaves the sums in registers 0 to 3.
    ///
    /// # Safety
    /// The thread's registers have the task's shape, there is a segment and none is empty, and all units that they and the
    /// task name can be read.
    #[rustfmt::skip]
    #[inline(always)]
    unsafe fn add_up(&self, segments: &[Segment<Pair>]) {
        // SAFETY: the assembly reads the segments' units of so many left tiles and panels.
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

/// Where sums belong.
struct Place {
    row: usize,
    panel: usize,
    rows: usize,
    panels: usize,
}

impl Place {
    /// Writes sums out of their registers, each `tall` rows, to the start of `out`.
    ///
    /// # Safety
    /// The thread's registers have that many rows.
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
        // SAFETY: `out` has room for the rows and panels, all of which are written. No code but this module's uses the
        // registers: it is not compiled for processors that have them.
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

    /// Hands stored sums on.
    #[inline(always)]
    fn hand(&self, sums: &mut [f32], sink: &mut impl Sink) {
        for (row, sums) in sums.chunks_exact_mut(self.panels * LANES).enumerate() {
            sink.row(self.row + row, self.panel, sums);
        }
    }
}

/// A configuration as the processor has it: `palette` 1, bytes a row and rows of each register.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq)]
struct Configuration {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Gives the thread's registers the sizes of `tall` rows and `depth` units of K, unless they have them: sums are in registers
/// 0 to 3, left tiles in 4 and 5, right ones in 6 and 7.
///
/// They keep them: giving registers back takes as long as three steps of a product, and costs the next one as much again.
#[inline(always)]
fn configure(tall: usize, depth: usize) {
    let (line, left) = (LINE as u16, (depth * size_of::<Pair>()) as u16);
    let (tall, depth) = (tall as u8, depth as u8);
    let of = |[sums, left, right]: [u16; 3]| {
        [sums, sums, sums, sums, left, left, right, right, 0, 0, 0, 0, 0, 0, 0, 0]
    };
    let wanted = Configuration {
        palette: 1,
        start: 0,
        reserved: [0; 14],
        row_bytes: of([line, left, line]),
        rows: of([tall, tall, depth].map(u16::from)).map(|rows| rows as u8),
    };
    let mut found =
        Configuration { palette: 0, start: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    // SAFETY: this code runs where the processor has tile registers and the system lets the process use them; the
    // configuration is valid, and nothing but this module's assembly, which clears what it uses, relies on registers.
    unsafe {
        asm!("sttilecfg [{}]", in(reg) &mut found, options(nostack, preserves_flags));
        if found != wanted {
            asm!("ldtilecfg [{}]", in(reg) &wanted, options(nostack, preserves_flags, readonly));
        }
    }
}

/// Whether the processor has tile registers for bf16 and the system lets this process use them, which it is asked for.
pub(crate) fn available() -> bool {
    const TILE_AND_BF16: u32 = 1 << 24 | 1 << 22;
    let leaf = std::arch::x86_64::__cpuid_count(7, 0);
    leaf.edx & TILE_AND_BF16 == TILE_AND_BF16 && permitted()
}

/// Linux gives a process room for tile registers in its threads' states when asked to.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call reads its two numbers and changes nothing that Rust knows of.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Other systems are not known to.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

#[cfg(test)]
mod tests;
