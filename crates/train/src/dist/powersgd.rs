//! Compressed sums of gradients over workers: the paper's variant of PowerSGD (§2.5, §E.2), for matrices.
//!
//! These steps of §E.2 are here: 2 to 7, the norm of what is compressed (9), the flags (10), the decompression of 11, and 12. Not
//! here are the sums of gradients that are not compressed (8), their part of the norm, and the update of 11: no training uses
//! this yet. Sums over workers are made in f32 and then rounded; the paper makes them in 1-6-9.
//!
//! A gradient travels as two thin factors. What they leave out stays in an error buffer and is added to the next gradient; the
//! same buffer adds up the gradients of an update. Other than in PowerSGD as published, the matrix that picks the columns'
//! space is drawn once and kept: to draw it anew each time hurt a lot, and to follow the gradient was not needed.
//!
//! The sum is the sum over workers, not their mean: the loss has been divided by the whole batch. Each worker subtracts its
//! share, so that what all error buffers hold together is what has not been applied yet.

use std::borrow::Cow;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use tessera_base::random::{Purpose, item_rng, normal};
use tessera_kernels::SmallFloat;

use super::comm::Comm;
use super::matrix::{orthonormal, product, transposed};
use crate::buffer::Buffer;

/// Added to the diagonal of the first factor before its columns are made orthonormal (§E.2, step 5).
const EPSILON: f32 = 1e-6;

/// How gradients are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PowerSgdSettings {
    /// Columns of each factor.
    pub rank: usize,
    /// What error buffers and factors are stored and sent as; 32 bits if there is none. The paper's is 1-6-9.
    pub storage: Option<SmallFloat>,
    /// What the first factor is multiplied by, so that it fits the range of `storage`. The paper has no value.
    pub p_scale: f32,
    /// The same for the second.
    pub q_scale: f32,
    /// Of the matrices that are drawn.
    pub seed: u64,
}

/// Compresses the gradients of one matrix on one worker.
///
/// Inside, the matrix is wide, `[m, n]` with `m <= n`, since columns of `m` are made orthonormal; a tall one is transposed.
#[derive(Debug, Clone, PartialEq)]
pub struct Compressor {
    /// Rows and columns for the caller.
    shape: [usize; 2],
    settings: PowerSgdSettings,
    /// Gradients not applied yet `[m, n]`.
    error: Buffer,
    /// Drawn once, never changed `[n, rank]`.
    gaussian: Buffer,
    /// Whether all gradients since the last exchange were finite.
    gradients_finite: bool,
}

/// What workers agreed on for one matrix: the sum of their gradients is `p qᵀ`, over the second factor's scale.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// Orthonormal columns `[m, rank]`.
    p: Vec<f32>,
    /// Scaled `[n, rank]`.
    q: Vec<f32>,
    /// Whether both were finite before they were clamped; the same on all workers.
    finite: bool,
    /// Whether this worker's error buffer was finite.
    error_finite: bool,
}

/// What workers agreed on for several matrices.
#[derive(Debug, Clone, PartialEq)]
pub struct Exchanged {
    /// Of each matrix, in order.
    pub factors: Vec<Factors>,
    /// Squared norm of all sums together; infinite if any worker's gradient, or any factor, was not finite: then no weights
    /// may change. The same on all workers.
    pub norm_squared: f64,
    /// Whether a gradient was not finite on any worker: then the gradient scale falls.
    pub overflowed: bool,
}

impl Compressor {
    /// For gradients of `shape` `[rows, columns]`, with an empty error buffer. Compressors of the same `ordinal` are the same on
    /// all workers, those of different ones draw different matrices.
    ///
    /// # Errors
    /// If the rank is 0 or more than the shorter side, a scale is not positive, or `storage` has no sign.
    pub fn new(shape: [usize; 2], ordinal: u64, settings: PowerSgdSettings) -> Result<Compressor> {
        let [m, n] = wide(shape);
        let PowerSgdSettings { rank, storage, p_scale, q_scale, seed } = settings;
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
            error: Buffer::new(vec![0.0; m * n], storage),
            gaussian: Buffer::new(gaussian(seed, ordinal, n * rank), storage),
            gradients_finite: true,
        })
    }

    /// Adds `gradient / scale` `[rows, columns]` to the error buffer, where `scale` is that of the resblock's gradients (step 2).
    /// A gradient that is not finite is left out, and the next exchange tells all workers.
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

    /// The sum of all workers' gradients `[rows, columns]` that `factors`, from an exchange of `n_workers`, stand for (step 11),
    /// or none if they were not finite. Updates the error buffer (step 12), so to be called once, and before the next gradient;
    /// also where no weights may change, since the norm is infinite for another matrix: as in the paper, the sum is then lost.
    ///
    /// # Panics
    /// If `factors` are another matrix's.
    pub fn decompress(&mut self, factors: &Factors, n_workers: usize) -> Option<Vec<f32>> {
        let sum = factors.finite.then(|| {
            let q = transposed(&factors.q, self.settings.rank);
            let mut sum = product(&factors.p, &q, self.settings.rank);
            sum.iter_mut().for_each(|value| *value /= self.settings.q_scale);
            sum
        });
        match (factors.error_finite, &sum) {
            (true, Some(sum)) => self.error.add(-1.0 / n_workers as f32, sum),
            // Gradients that could not be sent can be later.
            (true, None) => {}
            // Nothing in the buffer can be trusted.
            (false, _) => self.error = Buffer::new(vec![0.0; self.error.size()], self.settings.storage),
        }
        sum.map(|sum| from_wide(self.shape, sum))
    }

    /// Gradients not applied yet `[rows, columns]`.
    pub fn error(&self) -> Vec<f32> {
        from_wide(self.shape, self.error.values())
    }

    /// Takes this worker's share of `sum` `[rows, columns]`, as [`error_sums`] saved it, however many workers there were. Only
    /// the sum over workers matters, since only sums are exchanged.
    ///
    /// # Errors
    /// If `sum` has another size.
    pub fn resume(&mut self, sum: &[f32], n_workers: usize) -> Result<()> {
        self.check(sum)?;
        let share = to_wide(self.shape, sum).iter().map(|value| value / n_workers as f32).collect();
        self.error = Buffer::new(share, self.settings.storage);
        Ok(())
    }

    /// Numbers that this worker sends in one exchange.
    pub fn floats_sent(&self) -> usize {
        floats_sent(self.shape, self.settings.rank)
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

    /// This worker's part of the first factor, `E Q` `[m, rank]` (step 3).
    fn compress(&self) -> Vec<f32> {
        let [_, n] = wide(self.shape);
        let p = product(&self.error.values(), &self.gaussian.values(), n);
        self.stored(p, self.settings.p_scale)
    }

    /// The first factor with orthonormal columns, without its scale (step 5).
    fn orthogonalise(&self, mut p: Vec<f32>) -> Vec<f32> {
        let rank = self.settings.rank;
        p.iter_mut().step_by(rank + 1).take(rank).for_each(|diagonal| *diagonal += EPSILON);
        self.stored(orthonormal(&p, rank), 1.0)
    }

    /// This worker's part of the second factor, `Eᵀ P` `[n, rank]` (step 6).
    fn project(&self, p: &[f32]) -> Vec<f32> {
        let [m, n] = wide(self.shape);
        let q = product(&transposed(&self.error.values(), n), p, m);
        self.stored(q, self.settings.q_scale)
    }

    /// Scaled values as they are stored, and sent; what is too large becomes infinite.
    fn stored(&self, mut values: Vec<f32>, scale: f32) -> Vec<f32> {
        let storage = self.settings.storage;
        values.iter_mut().for_each(|value| *value = round(storage, *value * scale));
        values
    }

    /// Squared norm of the sum that the second factor stands for: the first is orthonormal and changes no lengths (step 9).
    fn norm_squared(&self, q: &[f32]) -> f64 {
        let squares: f64 = q.iter().map(|&value| f64::from(value).powi(2)).sum();
        squares / f64::from(self.settings.q_scale).powi(2)
    }
}

/// Sums over workers what the error buffers of `compressors` hold, as factors, in two calls whatever their number (steps 3 to
/// 10): those of a resblock go together.
///
/// # Errors
/// If workers cannot agree, as in [`Comm::sum`].
pub fn exchange(compressors: &mut [Compressor], comm: &dyn Comm) -> Result<Exchanged> {
    let mut p: Vec<_> = compressors.iter().map(Compressor::compress).collect();
    let p_finite = sum_together(compressors, &mut p, comm)?;
    let p: Vec<_> = compressors.iter().zip(p).map(|(compressor, p)| compressor.orthogonalise(p)).collect();
    let mut q: Vec<_> = compressors.iter().zip(&p).map(|(compressor, p)| compressor.project(p)).collect();
    let q_finite = sum_together(compressors, &mut q, comm)?;

    // An error buffer that is not finite needs no flag for the others: it has made the first factor so, for all.
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

/// Sums of what all workers' error buffers hold, `[rows, columns]` each: what a checkpoint keeps (§E.2).
///
/// # Errors
/// If workers cannot agree, as in [`Comm::sum`].
pub fn error_sums(compressors: &[Compressor], comm: &dyn Comm) -> Result<Vec<Vec<f32>>> {
    compressors
        .iter()
        .map(|compressor| {
            let mut error = compressor.error();
            comm.sum(&mut error)?;
            Ok(error)
        })
        .collect()
}

/// Numbers in the two factors of a gradient of `shape`.
pub fn floats_sent([rows, columns]: [usize; 2], rank: usize) -> usize {
    (rows + columns) * rank
}

/// Replaces each of `parts` by its sum over workers, in one call, as it is stored. Whether each was finite; what was not is then
/// clamped (steps 4 and 7).
fn sum_together(compressors: &[Compressor], parts: &mut [Vec<f32>], comm: &dyn Comm) -> Result<Vec<bool>> {
    let mut sums = parts.concat();
    comm.sum(&mut sums)?;
    let mut sums = sums.as_slice();
    let mut finite = Vec::with_capacity(parts.len());
    for (compressor, part) in compressors.iter().zip(parts) {
        let storage = compressor.settings.storage;
        let (sum, rest) = sums.split_at(part.len());
        sums = rest;
        finite.push(sum.iter().all(|&value| round(storage, value).is_finite()));
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

/// The sides of a matrix, the shorter one first.
fn wide([rows, columns]: [usize; 2]) -> [usize; 2] {
    [rows.min(columns), rows.max(columns)]
}

fn to_wide([rows, columns]: [usize; 2], values: &[f32]) -> Cow<'_, [f32]> {
    if rows <= columns { Cow::Borrowed(values) } else { Cow::Owned(transposed(values, columns)) }
}

fn from_wide([rows, columns]: [usize; 2], values: Vec<f32>) -> Vec<f32> {
    if rows <= columns { values } else { transposed(&values, rows) }
}

/// Standard normal numbers of matrix `ordinal`, by Box and Muller.
fn gaussian(seed: u64, ordinal: u64, len: usize) -> Vec<f32> {
    let rng = &mut item_rng(seed, Purpose::PowerSgd, 0, ordinal);
    (0..len).map(|_| normal(rng) as f32).collect()
}

#[cfg(test)]
mod tests;
