//! The gradient of a convolution's filters, as matrix products that sum over pixels.
//!
//! The gradient of tap `(ky, kx)` sums over all pixels of the output, with `X` the framed input:
//!
//! ```text
//! dW[n, c, ky, kx] = Σ_{y,x} dY[y, x, n] · X[y + ky, x + kx, c]
//!                  = Σ_i     dY[i, n]    · X[i + ky · pitch + kx, c]      with i = y · pitch + x
//! ```
//!
//! For the second form, `dY` is stored with the same `pitch` of rows as `X`, filled with zeros.
//! Each tap then reads at a fixed distance from `i`, so a strip is one segment of K.
//!
//! The columns of the right operand are all `(kx, c)`, which are contiguous in `X` from pixel
//! `i + ky · pitch` on. It is packed once per strip, and each `ky` multiplies it from another
//! start.

use std::ops::Range;

use rayon::prelude::*;

use super::strip::{Frame, JOBS, Pictures, STRIP_BYTES, Strip};
use crate::cpu::{Body, Cpu, vectorized};
use crate::gemm::{FloatSlice, LANES, Micro, Segment, Sink, Strides, Unit, panel_across, with_micro};
use crate::scratch::Scratch;

/// The maximum number of sums that all jobs hold together.
const MAX_SUMS: usize = 1 << 23;
/// The minimum number of output channels of a job, if several jobs share its strips.
const MIN_CHANNELS: usize = 32;

/// Returns `gain` times the gradient of `[n_out, n_in, k, k]` filters, from the input `x`
/// `[B, H, W, n_in]` and the output's gradient `gradient` `[B, H, W, n_out]`.
pub(super) fn weight_gradient(
    cpu: Cpu,
    x: Pictures<'_>,
    gradient: Pictures<'_>,
    k: usize,
    gain: f32,
) -> Vec<f32> {
    with_micro!(cpu, S => run::<S>(cpu, x, gradient, k, gain))
}

fn run<S: Micro<Unit: Unit>>(
    cpu: Cpu,
    x: Pictures<'_>,
    gradient: Pictures<'_>,
    k: usize,
    gain: f32,
) -> Vec<f32> {
    let frame = Frame::new::<S::Unit>(x.shape, k);
    let (n_in, n_out) = (x.shape[3], gradient.shape[3]);
    let columns = (k * frame.channels).next_multiple_of(LANES);
    let strips = x.strips(frame.pitch * columns * size_of::<S::Unit>() / S::Unit::VALUES, STRIP_BYTES);
    let cut = Cut::new(strips.len(), n_out, k * columns);
    let job = |i: usize| {
        let (strips, channels) = cut.job(i, &strips);
        let mut sums = vec![0.0; k * channels.len() * columns];
        for strip in strips {
            let sums = &mut sums;
            cpu.supported().run(Job::<S> {
                x,
                gradient,
                frame,
                strip,
                channels: channels.clone(),
                columns,
                sums,
                micro: std::marker::PhantomData,
            });
        }
        sums
    };
    // Add the sums of all parts of the strips, and reorder them from `[ky, n, (kx, c)]` to the
    // filter's order.
    let sums: Vec<Vec<f32>> = (0..cut.len()).into_par_iter().map(job).collect();
    let mut weight = vec![0.0; n_out * n_in * k * k];
    weight.par_chunks_exact_mut((n_in * k * k).max(1)).enumerate().for_each(|(channel, filter)| {
        let mut total = vec![0.0; k * columns];
        for (part, row) in cut.sums_of(channel, &sums) {
            let rows = part.len() / (k * columns);
            for (ky, total) in total.chunks_exact_mut(columns).enumerate() {
                add(cpu.supported(), total, &part[(ky * rows + row) * columns..][..columns]);
            }
        }
        for tap in 0..k * k {
            let sums = &total[tap / k * columns + tap % k * frame.channels..][..n_in];
            filter[tap..].iter_mut().step_by(k * k).zip(sums).for_each(|(weight, sum)| *weight = gain * sum);
        }
    });
    weight
}

vectorized! {
    fn add(total: &mut [f32], sums: &[f32]) {
        total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
    }
}

/// How the work is divided: into parts of the strips, each with its own sums, and blocks of output
/// channels.
struct Cut {
    strips: usize,
    parts: usize,
    channels: usize,
    block: usize,
}

impl Cut {
    /// Makes as many parts as there is memory for their sums, then blocks of channels until there
    /// are enough jobs. The division depends on shapes alone, so results do not depend on the
    /// number of threads.
    fn new(strips: usize, channels: usize, sums_per_channel: usize) -> Cut {
        let room = MAX_SUMS / (channels * sums_per_channel).max(1);
        let parts = room.min(JOBS).min(strips).max(1);
        let block = channels.div_ceil(JOBS.div_ceil(parts)).max(MIN_CHANNELS).next_multiple_of(8);
        Cut { strips, parts, channels, block }
    }

    fn blocks(&self) -> usize {
        self.channels.div_ceil(self.block)
    }

    fn len(&self) -> usize {
        self.parts * self.blocks()
    }

    /// Returns the strips and output channels of job `i`.
    fn job<'a>(&self, i: usize, strips: &'a [Strip]) -> (&'a [Strip], Range<usize>) {
        let (part, block) = (i / self.blocks(), i % self.blocks());
        let cut = |part: usize| part * self.strips / self.parts;
        let first = block * self.block;
        (&strips[cut(part)..cut(part + 1)], first..self.channels.min(first + self.block))
    }

    /// Returns the sums that contain `channel`, one per part, and the channel's row in them.
    fn sums_of<'a>(&self, channel: usize, sums: &'a [Vec<f32>]) -> impl Iterator<Item = (&'a [f32], usize)> {
        let (block, row) = (channel / self.block, channel % self.block);
        sums.iter().skip(block).step_by(self.blocks().max(1)).map(move |sums| (sums.as_slice(), row))
    }
}

/// Adds one strip's products to `sums`, `[k, channels, columns]`.
struct Job<'a, S> {
    x: Pictures<'a>,
    gradient: Pictures<'a>,
    frame: Frame,
    strip: &'a Strip,
    channels: Range<usize>,
    columns: usize,
    sums: &'a mut [f32],
    micro: std::marker::PhantomData<S>,
}

impl<S: Micro<Unit: Unit>> Body for Job<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Frame { k, channels, pitch } = self.frame;
        let pixels = (self.strip.rows.len() + k - 1) * pitch;
        let of_strip = self.strip.rows.len() * pitch / S::Unit::VALUES;
        // The left operand is 0 in the units beyond the strip.
        let units = of_strip.next_multiple_of(S::DEEP);
        let panel = (pixels / S::Unit::VALUES + units - of_strip) * LANES;
        let framed = self.x.framed::<S::Unit>(self.strip, &self.frame);
        let framed = S::Unit::numbers(&framed);
        // Step `i` of K holds the `k · channels` values of the framed strip from pixel `i` on.
        let mut right = Scratch::<S::Unit>::new(self.columns / LANES * panel);
        for (i, panel) in right.chunks_exact_mut(panel).enumerate() {
            let columns = LANES.min(k * channels - i * LANES);
            let row = |pixel: usize| framed.slice(pixel * channels + i * LANES, columns);
            panel_across(row, columns, pixels, panel);
        }
        let left = self.left(units);
        let n = self.channels.len();
        let strides = Strides { row: 1, step: n, panel };
        for (ky, sums) in self.sums.chunks_exact_mut((n * self.columns).max(1)).enumerate() {
            let segment = Segment {
                a: left.as_ptr(),
                b: right[ky * pitch / S::Unit::VALUES * LANES..].as_ptr(),
                units,
            };
            let sink = AddSink { sums, stride: self.columns };
            // SAFETY: `left` holds `units` units, and `right` these and the rows below that the
            // filter reaches.
            #[allow(unsafe_code)]
            unsafe {
                S::product(n, self.columns / LANES, &[segment], strides, sink);
            }
        }
    }
}

impl<S: Micro<Unit: Unit>> Job<'_, S> {
    /// Returns the output's gradient for the strip at the frame's pitch, with zeros in the frame:
    /// `count` units of pixels, each with all channels of the job.
    #[inline(always)]
    fn left(&self, count: usize) -> Scratch<S::Unit> {
        let [_, height, width, all] = self.gradient.shape;
        let (values, n) = (S::Unit::VALUES, self.channels.len());
        let row_units = self.frame.pitch / values * n;
        let mut units = Scratch::new(count * n);
        units[self.strip.rows.len() * row_units..].fill(S::Unit::default());
        for (y, row) in self.strip.rows.clone().zip(units.chunks_exact_mut(row_units.max(1))) {
            let pixel = |x: usize| -> FloatSlice<'_> {
                let first = ((self.strip.picture * height + y) * width + x) * all;
                self.gradient.numbers.slice(first + self.channels.start, n)
            };
            for (x, units) in (0..self.frame.pitch).step_by(values).zip(row.chunks_exact_mut(n.max(1))) {
                match x < width {
                    true => S::Unit::across(pixel(x), (x + 1 < width).then(|| pixel(x + 1)), units),
                    false => units.fill(S::Unit::default()),
                }
            }
        }
        units
    }
}

/// Adds tiles to sums.
struct AddSink<'a> {
    sums: &'a mut [f32],
    stride: usize,
}

impl Sink for AddSink<'_> {
    #[inline(always)]
    fn row(&mut self, row: usize, panel: usize, sums: &mut [f32]) {
        let start = row * self.stride + panel * LANES;
        let stored = &mut self.sums[start..start + sums.len()];
        stored.iter_mut().zip(sums).for_each(|(stored, sum)| *stored += *sum);
    }
}
