//! The left operand of a convolution: strips of a picture's rows in a frame of zeros.

use std::ops::Range;

use rayon::prelude::*;

use super::filter::PackedFilter;
use crate::cpu::{Body, Cpu};
use crate::gemm::{FloatSlice, LANES, Micro, Segment, Sink, Strides, TileEpilogue, Unit, with_micro};
use crate::scratch::Scratch;

/// Jobs that a convolution is cut into, if it is large enough: enough for the threads of any laptop.
pub(super) const JOBS: usize = 16;
/// Bytes of a strip, so that it stays in a core's second-level cache beside the filters.
pub(super) const STRIP_BYTES: usize = 192 << 10;
/// Panels that all lines of a strip are multiplied with before the next ones: a multiple of any tall tile's.
const TOGETHER: usize = 3;
/// Pixels of a strip below which it would be mostly frame.
const MIN_PIXELS: usize = 64;

/// Pictures in memory, channels last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pictures<'a> {
    pub(super) numbers: FloatSlice<'a>,
    /// `[B, H, W, C]`
    pub(super) shape: [usize; 4],
    /// Whether negative values count as 0.
    pub(super) relu: bool,
}

/// Some rows of one picture.
#[derive(Debug, Clone)]
pub(super) struct Strip {
    pub(super) picture: usize,
    pub(super) rows: Range<usize>,
}

/// The sizes of framed rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    /// Side of the filter.
    pub(super) k: usize,
    /// Channels a pixel, in whole units.
    pub(super) channels: usize,
    /// Pixels from a row to the next, in whole units.
    pub(super) pitch: usize,
}

impl Frame {
    pub(super) fn new<U: Unit>([.., width, channels]: [usize; 4], k: usize) -> Frame {
        Frame {
            k,
            channels: channels.next_multiple_of(U::VALUES),
            pitch: (width + k - 1).next_multiple_of(U::VALUES),
        }
    }

    /// Units of a framed row.
    pub(super) fn row_units<U: Unit>(&self) -> usize {
        self.pitch * self.channels / U::VALUES
    }
}

impl Pictures<'_> {
    /// Pixels of all pictures.
    pub(super) fn pixels(&self) -> usize {
        self.shape[..3].iter().product()
    }

    /// The shape of such pictures with other channels.
    pub(super) fn with_channels(&self, channels: usize) -> [usize; 4] {
        let [batch, height, width, _] = self.shape;
        [batch, height, width, channels]
    }

    /// All pictures in strips whose framed rows take at most `bytes`, `row_bytes` each.
    pub(super) fn strips(&self, row_bytes: usize, bytes: usize) -> Vec<Strip> {
        let [batch, height, width, _] = self.shape;
        let share = (batch * height).div_ceil(JOBS).max(MIN_PIXELS.div_ceil(width.max(1)));
        let rows = share.min(bytes / row_bytes.max(1)).clamp(1, height.max(1));
        let rows = height.div_ceil(height.div_ceil(rows).max(1)).max(1); // strips of a picture are about equal
        let cut = move |picture| {
            (0..height).step_by(rows).map(move |row| Strip { picture, rows: row..height.min(row + rows) })
        };
        (0..batch).flat_map(cut).collect()
    }

    /// The strip and the rows that its pixels' neighbours are in, framed; behind them one row of neighbours of zeros.
    #[inline(always)]
    pub(super) fn framed<U: Unit>(&self, strip: &Strip, frame: &Frame) -> Scratch<U> {
        let [_, height, width, channels] = self.shape;
        let (pad, row_units) = (frame.k / 2, frame.row_units::<U>());
        let border = pad * frame.channels / U::VALUES;
        let rows = strip.rows.len() + 2 * pad;
        let mut units = Scratch::new(rows * row_units + frame.k * frame.channels / U::VALUES);
        let (framed, behind) = units.split_at_mut(rows * row_units);
        behind.fill(U::default());
        for (i, row) in framed.chunks_exact_mut(row_units.max(1)).enumerate() {
            let y = strip.rows.start + i;
            if y < pad || y >= height + pad {
                row.fill(U::default());
                continue;
            }
            let (left, rest) = row.split_at_mut(border);
            let (inner, right) = rest.split_at_mut(width * frame.channels / U::VALUES);
            left.fill(U::default());
            right.fill(U::default());
            let first = (strip.picture * height + y - pad) * width * channels;
            if channels == frame.channels {
                U::along(self.numbers.slice(first, width * channels), inner);
            } else {
                let pixels = inner.chunks_exact_mut(frame.channels / U::VALUES);
                for (x, pixel) in pixels.enumerate() {
                    U::along(self.numbers.slice(first + x * channels, channels), pixel);
                }
            }
            if self.relu {
                inner.iter_mut().for_each(|unit| *unit = unit.relu());
            }
        }
        units
    }
}

/// The convolution of `x` with `filter`, into `epilogue`: rows are pixels, columns channels.
pub(super) fn convolve<E: TileEpilogue>(cpu: Cpu, x: Pictures<'_>, filter: &PackedFilter<'_>, epilogue: &E) {
    if x.shape[..3].contains(&0) {
        return;
    }
    with_micro!(cpu, S => run::<S, E>(cpu, x, filter, epilogue));
}

fn run<S: Micro<Unit: Unit>, E: TileEpilogue>(
    cpu: Cpu,
    x: Pictures<'_>,
    filter: &PackedFilter<'_>,
    epilogue: &E,
) {
    let frame = Frame::new::<S::Unit>(x.shape, filter.k);
    let packed = filter.pack::<S::Unit>(cpu, frame.channels);
    let packed: &[S::Unit] = &packed;
    let outputs = filter.outputs();
    let strips = x.strips(frame.row_units::<S::Unit>() * size_of::<S::Unit>(), STRIP_BYTES);
    strips.par_iter().for_each(|strip| {
        cpu.isa().run(Job::<S, E> { x, frame, packed, strip, outputs, epilogue });
    });
}

/// A strip times all filters.
struct Job<'a, S: Micro, E> {
    x: Pictures<'a>,
    frame: Frame,
    packed: &'a [S::Unit],
    strip: &'a Strip,
    outputs: usize,
    epilogue: &'a E,
}

impl<S: Micro<Unit: Unit>, E: TileEpilogue> Body for Job<'_, S, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Frame { k, channels, pitch } = self.frame;
        let [_, height, width, _] = self.x.shape;
        let framed = self.x.framed::<S::Unit>(self.strip, &self.frame);
        let row_units = self.frame.row_units::<S::Unit>();
        let stretch = k * channels / S::Unit::VALUES;
        let strides = Strides { row: channels / S::Unit::VALUES, step: 1, panel: k * stretch * LANES };
        // Rows without a border follow each other without a gap: they are one.
        let (lines, length) = match pitch == width {
            true => (1, self.strip.rows.len() * width),
            false => (self.strip.rows.len(), width),
        };
        let first = (self.strip.picture * height + self.strip.rows.start) * width;
        let panels = self.outputs.div_ceil(LANES);
        let mut segments = Vec::with_capacity(k);
        for panel in (0..panels).step_by(TOGETHER) {
            for line in 0..lines {
                segments.clear();
                segments.extend((0..k).map(|ky| Segment {
                    a: framed[(line + ky) * row_units..].as_ptr(),
                    b: self.packed[panel * strides.panel + ky * stretch * LANES..].as_ptr(),
                    units: stretch,
                }));
                let sink = Taken {
                    row: first + line * length,
                    panel,
                    outputs: self.outputs,
                    epilogue: self.epilogue,
                };
                // SAFETY: `framed` holds the neighbours of every pixel of the line, `packed` all panels.
                #[allow(unsafe_code)]
                unsafe {
                    S::product(length, TOGETHER.min(panels - panel), &segments, strides, sink);
                }
            }
        }
    }
}

/// Hands sums to an epilogue, counted from the first pixel and channel of all.
struct Taken<'a, E> {
    row: usize,
    panel: usize,
    outputs: usize,
    epilogue: &'a E,
}

impl<E: TileEpilogue> Sink for Taken<'_, E> {
    #[inline(always)]
    fn row(&mut self, row: usize, panel: usize, sums: &mut [f32]) {
        let first = (self.panel + panel) * LANES;
        let columns = sums.len().min(self.outputs - first);
        self.epilogue.take(self.row + row, first, &mut sums[..columns]);
    }
}
