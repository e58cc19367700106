//! Compressed sums of matrix gradients over workers: the paper's variant of PowerSGD (§2.5, §E.2).
//!
//! This file implements these steps of §E.2: 2 to 7, the norm of compressed gradients (9), the
//! flags (10), the decompression of 11, and 12. Sums over workers are computed in f32 from factors in
//! 1-6-9 and then rounded to it.
//!
//! A gradient is sent as two thin factors. The rest, which the factors do not contain, stays in an
//! error buffer and is added to the next gradient. The same buffer accumulates the gradients of the
//! micro-batches of an update. Unlike in the original PowerSGD, the matrix that selects the column
//! space is drawn once and never changes: drawing a new one each time hurt a lot, and adapting it
//! to the gradients was not needed.
//!
//! Gradients are summed over workers, not averaged, because the loss has already been divided by
//! the size of the complete batch. Each worker subtracts its share of the sum from its error
//! buffer. The sum of all error buffers is therefore the part of the gradients that has not been
//! applied yet.

use std::borrow::Cow;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use tessera_base::random::{Purpose, item_rng, normal};
use tessera_kernels::SmallFloat;

use super::comm::Comm;
use super::matrix::{orthonormal, product, transposed};
use crate::buffer::Buffer;

/// Added to the diagonal of the first factor before its columns are made orthonormal (§E.2, step
/// 5).
const EPSILON: f32 = 1e-6;

/// How gradients are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PowerSgdSettings {
    /// Columns of each factor.
    pub rank: usize,
    /// The format in which error buffers and factors are stored and sent; f32 if `None`. The
    /// paper's is 1-6-9.
    pub storage: Option<SmallFloat>,
    /// The scale of the first factor, which makes it fit the range of `storage`. The paper does not
    /// give a value.
    pub p_scale: f32,
    /// The scale of the second factor.
    pub q_scale: f32,
    /// The seed of the random matrices.
    pub seed: u64,
    /// Whether each exchange draws a new random matrix. The paper found that this hurts a lot.
    pub resample: bool,
}

/// Compresses the gradients of one matrix on one worker.
///
/// Internally the matrix is wide, `[m, n]` with `m <= n`, because columns of length `m` are made
/// orthonormal. A tall matrix is transposed.
#[derive(Debug, Clone, PartialEq)]
pub struct Compressor {
    /// The rows and columns of the caller's matrix.
    shape: [usize; 2],
    settings: PowerSgdSettings,
    /// Which random matrix this is, and the number of exchanges.
    ordinal: u64,
    exchanges: u64,
    /// The error buffer: gradients that have not been applied yet, `[m, n]`.
    error: Buffer,
    /// The random matrix, drawn once and never changed unless `resample` is set, `[n, rank]`.
    gaussian: Buffer,
    /// Whether all gradients since the last exchange were finite.
    gradients_finite: bool,
}

/// The factors that all workers agreed on for one matrix. The sum of their gradients is `p qᵀ`,
/// divided by the scale of the second factor.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// The first factor, with orthonormal columns, `[m, rank]`.
    p: Vec<f32>,
    /// The second factor, scaled, `[n, rank]`.
    q: Vec<f32>,
    /// Whether both were finite before they were clamped. It is the same on all workers.
    finite: bool,
    /// Whether this worker's error buffer was finite.
    error_finite: bool,
}

impl Factors {
    /// Returns whether all workers' factors were finite.
    pub fn is_finite(&self) -> bool {
        self.finite
    }
}

/// The result of an exchange for several matrices.
#[derive(Debug, Clone, PartialEq)]
pub struct Exchanged {
    /// The factors of each matrix, in order.
    pub factors: Vec<Factors>,
    /// The squared norm of all sums together. It is infinite if a gradient of any worker, or any
    /// factor, was not finite; then no weights may change. It is the same on all workers.
    pub norm_squared: f64,
    /// Whether a gradient was not finite on any worker. Then the gradient scale falls.
    pub overflowed: bool,
}

impl Compressor {
    /// Makes a compressor for gradients of `shape`, `[rows, columns]`, with an empty error buffer.
    /// Those with the same `ordinal` have the same random matrix on all workers; those with
    /// different ordinals have different ones.
    ///
    /// # Errors
    /// If the rank is 0 or more than the shorter side, a scale is not positive, or `storage` has no
    /// sign bit.
    pub fn new(shape: [usize; 2], ordinal: u64, settings: PowerSgdSettings) -> Result<Compressor> {
        let [m, n] = wide(shape);
        let PowerSgdSettings { rank, storage, p_scale, q_scale, seed, .. } = settings;
        ensure!((1..=m).contains(&rank), "rank {rank} of a matrix {m} by {n}: wanted 1 to {m}");
        for scale in [p_scale, q_scale] {
            ensure!(
                scale > 0.0 && scale.is_finite(),
                "a factor's scale of {scale}: wanted a positive number"
            );
        }
        ensure!(storage != Some(SmallFloat::ZeroSixTen), "error buffers need a sign, and 0-6-10 has none");
        Ok(Compressor {
            shape,
            settings,
            ordinal,
            exchanges: 0,
            error: Buffer::new(vec![0.0; m * n], storage),
            gaussian: Buffer::new(gaussian(seed, ordinal, n * rank), storage),
            gradients_finite: true,
        })
    }

    /// Adds `gradient / scale`, `[rows, columns]`, to the error buffer. `scale` is the gradient
    /// scale of the resblock (step 2). A non-finite gradient is left out, and the next exchange
    /// informs all workers.
    ///
    /// # Errors
    /// If `gradient` has another size.
    pub fn accumulate(&mut self, gradient: &[f32], scale: f32) -> Result<()> {
        self.check(gradient)?;
        if gradient.iter().all(|value| value.is_finite()) {
            self.error.add(1.0 / scale, &to_wide(self.shape, gradient));
        } else {
            self.gradients_finite = false;
        }
        Ok(())
    }

    /// Returns the sum of all workers' gradients, `[rows, columns]`, that `factors` represent (step
    /// 11), or `None` if they were not finite. `factors` come from an exchange of `n_workers`.
    ///
    /// It also updates the error buffer (step 12). Call it exactly once per exchange, before the
    /// next gradient; also if no weights may change because the norm is infinite for another
    /// matrix. The sum is then lost, as in the paper.
    ///
    /// # Panics
    /// If `factors` belong to a matrix of another shape.
    pub fn decompress(&mut self, factors: &Factors, n_workers: usize) -> Option<Vec<f32>> {
        let sum = factors.finite.then(|| {
            let q = transposed(&factors.q, self.settings.rank);
            let mut sum = product(&factors.p, &q, self.settings.rank);
            sum.iter_mut().for_each(|value| *value /= self.settings.q_scale);
            sum
        });
        match (factors.error_finite, &sum) {
            (true, Some(sum)) => self.error.add(-1.0 / n_workers as f32, sum),
            // Gradients that could not be sent now stay in the buffer.
            (true, None) => {}
            // The buffer contains non-finite values and is emptied.
            (false, _) => self.error = Buffer::new(vec![0.0; self.error.size()], self.settings.storage),
        }
        sum.map(|sum| from_wide(self.shape, sum))
    }

    /// Returns the rows and columns of the gradients.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Returns the gradients that have not been applied yet, `[rows, columns]`.
    pub fn error(&self) -> Vec<f32> {
        from_wide(self.shape, self.error.values())
    }

    /// Sets the error buffer to this worker's share of `sum`, `[rows, columns]`, as saved in a
    /// checkpoint. The number of workers may have changed: only the sum over workers matters,
    /// because only sums are exchanged.
    ///
    /// # Errors
    /// If `sum` has another size.
    pub fn resume(&mut self, sum: &[f32], n_workers: usize) -> Result<()> {
        self.check(sum)?;
        let share = to_wide(self.shape, sum).iter().map(|value| value / n_workers as f32).collect();
        self.error = Buffer::new(share, self.settings.storage);
        Ok(())
    }

    fn check(&self, values: &[f32]) -> Result<()> {
        let [rows, columns] = self.shape;
        ensure!(
            values.len() == rows * columns,
            "a gradient of {} numbers: wanted {rows} by {columns}",
            values.len()
        );
        Ok(())
    }

    /// Counts an exchange, and draws a new random matrix if the settings say so.
    fn begin_exchange(&mut self) {
        self.exchanges += 1;
        if self.settings.resample {
            let draw = self.settings.seed.wrapping_add(self.exchanges << 32);
            let values = gaussian(draw, self.ordinal, self.gaussian.size());
            self.gaussian = Buffer::new(values, self.settings.storage);
        }
    }

    /// Returns this worker's part of the first factor, `E Q`, `[m, rank]` (step 3).
    fn compress(&self) -> Vec<f32> {
        let [_, n] = wide(self.shape);
        let p = product(&self.error.values(), &self.gaussian.values(), n);
        self.stored(p, self.settings.p_scale)
    }

    /// Returns the first factor with orthonormal columns, without its scale (step 5).
    fn orthogonalise(&self, mut p: Vec<f32>) -> Vec<f32> {
        let rank = self.settings.rank;
        p.iter_mut().step_by(rank + 1).take(rank).for_each(|diagonal| *diagonal += EPSILON);
        self.stored(orthonormal(&p, rank), 1.0)
    }

    /// Returns this worker's part of the second factor, `Eᵀ P`, `[n, rank]` (step 6).
    fn project(&self, p: &[f32]) -> Vec<f32> {
        let [m, n] = wide(self.shape);
        let q = product(&transposed(&self.error.values(), n), p, m);
        self.stored(q, self.settings.q_scale)
    }

    /// Returns the scaled values, rounded to the format in which they are stored and sent. Values
    /// too large for it become infinite.
    fn stored(&self, mut values: Vec<f32>, scale: f32) -> Vec<f32> {
        let storage = self.settings.storage;
        values.iter_mut().for_each(|value| *value = round(storage, *value * scale));
        values
    }

    /// Returns the squared norm of the sum of gradients (step 9). It is that of the second factor,
    /// because the columns of the first are orthonormal.
    fn norm_squared(&self, q: &[f32]) -> f64 {
        let squares: f64 = q.iter().map(|&value| f64::from(value).powi(2)).sum();
        squares / f64::from(self.settings.q_scale).powi(2)
    }
}

/// Sums the error buffers of `compressors` over workers, as factors (steps 3 to 10). There are two
/// large sums for any number of matrices, so that those of a resblock are sent together.
///
/// # Errors
/// As for [`Comm::exchange`].
pub fn exchange(compressors: &mut [Compressor], comm: &dyn Comm) -> Result<Exchanged> {
    compressors.iter_mut().for_each(Compressor::begin_exchange);
    let mut p: Vec<_> = compressors.iter().map(Compressor::compress).collect();
    let p_finite = sum_together(compressors, &mut p, comm)?;
    let p: Vec<_> = compressors.iter().zip(p).map(|(compressor, p)| compressor.orthogonalise(p)).collect();
    let mut q: Vec<_> = compressors.iter().zip(&p).map(|(compressor, p)| compressor.project(p)).collect();
    let q_finite = sum_together(compressors, &mut q, comm)?;

    // A non-finite error buffer needs no flag: it has made the first factor non-finite for all
    // workers.
    let mut overflowed = false;
    let mut norm_squared = 0.0;
    let mut factors = Vec::with_capacity(compressors.len());
    for (i, (compressor, (p, q))) in compressors.iter_mut().zip(p.into_iter().zip(q)).enumerate() {
        overflowed |= !std::mem::replace(&mut compressor.gradients_finite, true);
        norm_squared += compressor.norm_squared(&q);
        let error_finite = compressor.error.is_finite();
        factors.push(Factors { p, q, finite: p_finite[i] && q_finite[i], error_finite });
    }
    let overflowed = comm.any(overflowed)?;
    if overflowed || factors.iter().any(|factors| !factors.finite) {
        norm_squared = f64::INFINITY;
    }
    Ok(Exchanged { factors, norm_squared, overflowed })
}

/// Returns the number of values in the two factors of a gradient with `rows` and `columns`.
pub fn floats_sent([rows, columns]: [usize; 2], rank: usize) -> usize {
    (rows + columns) * rank
}

/// Replaces each of `parts` by its sum over workers, in one call, in the format in which factors are
/// sent. Returns whether each sum was finite; values that were not are clamped (steps 4 and 7).
fn sum_together(compressors: &[Compressor], parts: &mut [Vec<f32>], comm: &dyn Comm) -> Result<Vec<bool>> {
    let storage = compressors.first().and_then(|compressor| compressor.settings.storage);
    let mut sums = parts.concat();
    comm.all_reduce(&mut sums, storage)?;
    let mut sums = sums.as_slice();
    let mut finite = Vec::with_capacity(parts.len());
    for part in parts {
        let (sum, rest) = sums.split_at(part.len());
        sums = rest;
        finite.push(sum.iter().all(|value| value.is_finite()));
        part.iter_mut().zip(sum).for_each(|(part, &sum)| *part = clamp(storage, sum));
    }
    Ok(finite)
}

fn round(storage: Option<SmallFloat>, value: f32) -> f32 {
    storage.map_or(value, |format| format.round(value))
}

fn clamp(storage: Option<SmallFloat>, value: f32) -> f32 {
    storage.map_or(value.clamp(f32::MIN, f32::MAX), |format| format.clamp(value))
}

/// Returns the sides of a matrix, the shorter one first.
fn wide([rows, columns]: [usize; 2]) -> [usize; 2] {
    [rows.min(columns), rows.max(columns)]
}

fn to_wide([rows, columns]: [usize; 2], values: &[f32]) -> Cow<'_, [f32]> {
    if rows <= columns { Cow::Borrowed(values) } else { Cow::Owned(transposed(values, columns)) }
}

fn from_wide([rows, columns]: [usize; 2], values: Vec<f32>) -> Vec<f32> {
    if rows <= columns { values } else { transposed(&values, rows) }
}

/// Returns the standard normal numbers of matrix `ordinal` (Box-Muller).
fn gaussian(seed: u64, ordinal: u64, len: usize) -> Vec<f32> {
    let rng = &mut item_rng(seed, Purpose::PowerSgd, 0, ordinal);
    (0..len).map(|_| normal(rng) as f32).collect()
}

#[cfg(test)]
mod tests;
