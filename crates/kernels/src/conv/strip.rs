//! The left operand of a convolution: strips of a picture's rows, framed by zeros.
//!
//! Let the framed rows have `pitch` pixels of `C` channels, `pad = k / 2` of them zeros on the
//! left. The sum over filter row `ky` for output pixel `(y, x)` then needs the `k · C` contiguous
//! values at pixel `x` of framed row `y + ky`. The left operand of the product is the framed strip
//! itself: its rows start `C` values apart and overlap, and K has one segment per `ky`.

use std::ops::Range;

use rayon::prelude::*;

use super::filter::PackedFilter;
use crate::cpu::{Body, Cpu};
use crate::gemm::{FloatSlice, LANES, Micro, Segment, Sink, Strides, TileEpilogue, Unit, with_micro};
use crate::scratch::Scratch;

/// The number of jobs of a large convolution: enough for the threads of any laptop.
pub(super) const JOBS: usize = 16;
/// Bytes of a strip, so that it stays in a core's L2 cache together with the filters.
pub(super) const STRIP_BYTES: usize = 192 << 10;
/// The number of panels that all lines of a strip are multiplied by before the next panels; a
/// multiple of any tall tile's width.
const TOGETHER: usize = 3;
/// The minimum number of pixels of a strip; a smaller one would consist mostly of frame.
const MIN_PIXELS: usize = 64;

/// Pictures in memory, channels last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pictures<'a> {
    pub(super) numbers: FloatSlice<'a>,
    /// The shape, `[B, H, W, C]`.
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
    /// The side of the filter.
    pub(super) k: usize,
    /// Channels per pixel, rounded up to full units.
    pub(super) channels: usize,
    /// Pixels from a row to the next, rounded up to full units.
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

    /// The number of units of a framed row.
    pub(super) fn row_units<U: Unit>(&self) -> usize {
        self.pitch * self.channels / U::VALUES
    }
}

impl Pictures<'_> {
    /// The number of pixels of all pictures.
    pub(super) fn pixels(&self) -> usize {
        self.shape[..3].iter().product()
    }

    /// The shape of the same pictures with another number of channels.
    pub(super) fn with_channels(&self, channels: usize) -> [usize; 4] {
        let [batch, height, width, _] = self.shape;
        [batch, height, width, channels]
    }

    /// Divides all pictures into strips. A row takes `row_bytes` bytes of working memory; a strip
    /// takes at most `bytes`, but has at least one row.
    pub(super) fn strips(&self, row_bytes: usize, bytes: usize) -> Vec<Strip> {
        let [batch, height, width, _] = self.shape;
        let share = (batch * height).div_ceil(JOBS).max(MIN_PIXELS.div_ceil(width.max(1)));
        let rows = share.min(bytes / row_bytes.max(1)).clamp(1, height.max(1));
        // Strips of one picture are about equal.
        let rows = height.div_ceil(height.div_ceil(rows).max(1)).max(1);
        let cut = move |picture| {
            (0..height).step_by(rows).map(move |row| Strip { picture, rows: row..height.min(row + rows) })
        };
        (0..batch).flat_map(cut).collect()
    }

    /// Returns the strip in its frame, with the rows above and below that the filter reaches. `k`
    /// pixels of zeros follow the last row, for the neighbours of its last pixels.
    #[inline(always)]
    pub(super) fn framed<U: Unit>(&self, strip: &Strip, frame: &Frame) -> Scratch<U> {
        let [_, height, width, channels] = self.shape;
        let (pad, row_units) = (frame.k / 2, frame.row_units::<U>());
        let border = pad * frame.channels / U::VALUES;
        let rows = strip.rows.len() + 2 * pad;
        let mut units = Scratch::new(rows * row_units + frame.k * frame.channels / U::VALUES);
        let (framed, behind) = units.split_at_mut(rows * row_units);
        // Zeros that are read past the end, by neighbourhoods that start in the right frame.
        behind.fill(U::default());
        for (i, row) in framed.chunks_exact_mut(row_units.max(1)).enumerate() {
            let y = strip.rows.start + i;
            // This framed row is above or below the picture.
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

/// Convolves `x` with `filter` and passes the sums to `epilogue`: its rows are pixels, its columns
/// output channels.
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
        cpu.supported().run(Job::<S, E> { x, frame, packed, strip, outputs, epilogue });
    });
}

/// Multiplies a strip by all filters.
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
        // Left rows are one pixel apart and `k` pixels long, so they overlap.
        let stretch = k * channels / S::Unit::VALUES;
        let strides = Strides { row: channels / S::Unit::VALUES, step: 1, panel: k * stretch * LANES };
        // Without a frame there is no gap between rows, and all rows of the strip are one line.
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
                // Row `ky` of the filter reads row `line + ky` of the framed strip.
                segments.extend((0..k).map(|ky| Segment {
                    a: framed[(line + ky) * row_units..].as_ptr(),
                    b: self.packed[panel * strides.panel + ky * stretch * LANES..].as_ptr(),
                    units: stretch,
                }));
                let sink = EpilogueSink {
                    row: first + line * length,
                    panel,
                    outputs: self.outputs,
                    epilogue: self.epilogue,
                };
                // SAFETY: `framed` holds the neighbours of every pixel of the line, and `packed`
                // all panels.
                #[allow(unsafe_code)]
                unsafe {
                    S::product(length, TOGETHER.min(panels - panel), &segments, strides, sink);
                }
            }
        }
    }
}

/// Passes sums to an epilogue that counts rows from the first pixel of all pictures.
struct EpilogueSink<'a, E> {
    row: usize,
    panel: usize,
    outputs: usize,
    epilogue: &'a E,
}

impl<E: TileEpilogue> Sink for EpilogueSink<'_, E> {
    #[inline(always)]
    fn row(&mut self, row: usize, panel: usize, sums: &mut [f32]) {
        let first = (self.panel + panel) * LANES;
        let columns = sums.len().min(self.outputs - first);
        self.epilogue.take(self.row + row, first, &mut sums[..columns]);
    }
}
