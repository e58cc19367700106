//! The right operand of a convolution: filters in panels of 16 output channels. K runs over `ky`,
//! `kx` and input channels, in this order.

use rayon::prelude::*;

use crate::cpu::{Body, Cpu};
use crate::gemm::{FloatSlice, LANES, Unit, panel_along};
use crate::scratch::Scratch;

/// The direction in which pictures pass through a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From inputs to outputs.
    Forward,
    /// From outputs back to inputs, with the filter rotated by 180°. The gradient of the input is
    /// this convolution of the output's gradient.
    Back,
}

/// Filters `weight` `[n_out, n_in, k, k]`, to be packed for one direction.
#[derive(Debug, Clone, Copy)]
pub(super) struct PackedFilter<'a> {
    pub(super) weight: &'a [f32],
    pub(super) n_out: usize,
    pub(super) n_in: usize,
    pub(super) k: usize,
    pub(super) direction: Direction,
}

impl PackedFilter<'_> {
    /// The number of channels that come out in this direction.
    pub(super) fn outputs(&self) -> usize {
        match self.direction {
            Direction::Forward => self.n_out,
            Direction::Back => self.n_in,
        }
    }

    /// Packs the filters with `channels` channels per pixel. Channels beyond those of the filter
    /// are 0.
    pub(super) fn pack<U: Unit>(&self, cpu: Cpu, channels: usize) -> Scratch<U> {
        let depth = self.k * self.k * channels;
        let panel_len = (depth / U::VALUES * LANES).max(1);
        let mut packed = Scratch::new(self.outputs().div_ceil(LANES) * panel_len);
        let pack = |(i, panel): (usize, &mut [U])| {
            cpu.supported().run(Pack { filter: self, first: i * LANES, channels, panel });
        };
        packed.par_chunks_exact_mut(panel_len).enumerate().for_each(pack);
        packed
    }
}

struct Pack<'a, U> {
    filter: &'a PackedFilter<'a>,
    /// The panel's first output channel.
    first: usize,
    channels: usize,
    panel: &'a mut [U],
}

impl<U: Unit> Body for Pack<'_, U> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let PackedFilter { weight, n_out, n_in, k, direction } = *self.filter;
        let (taps, channels) = (k * k, self.channels);
        let depth = taps * channels;
        let columns = LANES.min(self.filter.outputs() - self.first);
        let mut rows = Scratch::<f32>::new(columns * depth);
        rows.fill(0.0);
        match direction {
            Direction::Forward => {
                let filters = weight[self.first * n_in * taps..].chunks_exact((n_in * taps).max(1));
                // `rows[n]` is filter `n`, reordered from `[c, ky, kx]` to `[ky, kx, c]`.
                for (row, filter) in rows.chunks_exact_mut(depth.max(1)).zip(filters) {
                    for (channel, filter) in filter.chunks_exact(taps).enumerate() {
                        for (tap, &value) in filter.iter().enumerate() {
                            row[tap * channels + channel] = value;
                        }
                    }
                }
            }
            Direction::Back => {
                // `rows[c]` is input channel `c` of all filters, with the taps reversed:
                // `[-ky, -kx, n]`.
                for channel in 0..n_out {
                    let filters = &weight[(channel * n_in + self.first) * taps..][..columns * taps];
                    for (row, filter) in rows.chunks_exact_mut(depth).zip(filters.chunks_exact(taps)) {
                        for (tap, &value) in filter.iter().rev().enumerate() {
                            row[tap * channels + channel] = value;
                        }
                    }
                }
            }
        }
        let row = |column: usize| FloatSlice::F32(&rows[column * depth..(column + 1) * depth]);
        panel_along(row, columns, depth, self.panel);
    }
}
