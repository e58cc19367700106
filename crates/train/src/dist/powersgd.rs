//! Compressed sums of gradients over workers: the paper's variant of PowerSGD (§2.5, §E.2, steps 2 to 12).
//!
//! A gradient travels as two thin factors. What they leave out stays in an error buffer and is added to the next gradient; the
//! same buffer adds up the gradients of an update. Other than in PowerSGD as published, the matrix that picks the columns'
//! space is drawn once and kept: to draw it anew each time hurt a lot, and to follow the gradient was not needed.
//!
//! The sum is the sum over workers, not their mean: the loss has been divided by the whole batch. Each worker subtracts its
//! share, so that what all error buffers hold together is what has not been applied yet.

use std::borrow::Cow;

use anyhow::{Result, ensure};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use tessera_kernels::SmallFloat;

use super::comm::Comm;
use super::matrix::{orthonormal, product, transposed};
use crate::buffer::Buffer;

/// Added to the diagonal of the first factor before its columns are made orthonormal (§E.2, step 5).
const EPSILON: f32 = 1e-6;

/// How gradients are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Settings {
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
    settings: Settings,
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
    pub fn new(shape: [usize; 2], ordinal: u64, settings: Settings) -> Result<Compressor> {
        let [m, n] = wide(shape);
        let Settings { rank, storage, p_scale, q_scale, seed } = settings;
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
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(ordinal);
    let mut unit = || (f64::from(rng.next_u32()) + 0.5) / 2f64.powi(32);
    let mut normal = || (-2.0 * unit().ln()).sqrt() * (std::f64::consts::TAU * unit()).cos();
    (0..len).map(|_| normal() as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::super::comm::{Solo, tests::on_workers};
    use super::*;

    /// Scales other than 1, so that one that is forgotten shows.
    const FULL: Settings = Settings { rank: 2, storage: None, p_scale: 0.5, q_scale: 4.0, seed: 7 };
    const SMALL: Settings = Settings { storage: Some(SmallFloat::OneSixNine), ..FULL };

    fn random(seed: u64, [rows, columns]: [usize; 2]) -> Vec<f32> {
        gaussian(seed, u64::MAX, rows * columns)
    }

    fn sum<'a>(all: impl IntoIterator<Item = &'a Vec<f32>>) -> Vec<f32> {
        let add = |a: Vec<f32>, b: &'a Vec<f32>| a.iter().zip(b).map(|(a, b)| a + b).collect();
        all.into_iter().fold(None, |a, b| Some(a.map_or(b.clone(), |a| add(a, b)))).unwrap()
    }

    fn norm(values: &[f32]) -> f64 {
        values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt()
    }

    /// The distance from `b`, in its lengths.
    fn off(a: &[f32], b: &[f32]) -> f64 {
        let difference: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        norm(&difference) / norm(b)
    }

    /// One update with the gradient of each worker: the sum that all got, and its squared norm by the factors.
    fn update(workers: &mut [Compressor], gradients: &[Vec<f32>]) -> (Option<Vec<f32>>, Exchanged) {
        let started: Vec<_> = workers.to_vec();
        let results = on_workers(workers.len(), |rank, comm| {
            let mut compressor = [started[rank].clone()];
            compressor[0].accumulate(&gradients[rank], 1.0).unwrap();
            let exchanged = exchange(&mut compressor, comm).unwrap();
            let sum = compressor[0].decompress(&exchanged.factors[0], comm.size());
            let [compressor] = compressor;
            (compressor, sum, exchanged)
        });
        let (_, sum, exchanged) = results[0].clone();
        for (rank, (compressor, other, _)) in results.into_iter().enumerate() {
            assert!(other == sum, "workers 0 and {rank} differ");
            workers[rank] = compressor;
        }
        (sum, exchanged)
    }

    fn workers(size: usize, shape: [usize; 2], settings: Settings) -> Vec<Compressor> {
        vec![Compressor::new(shape, 0, settings).unwrap(); size]
    }

    fn errors(workers: &[Compressor]) -> Vec<Vec<f32>> {
        workers.iter().map(Compressor::error).collect()
    }

    #[test]
    fn at_full_rank_the_sum_is_exact_and_nothing_is_left() {
        for shape in [[6, 10], [10, 6], [6, 6]] {
            for size in [1, 3] {
                let mut workers = workers(size, shape, Settings { rank: 6, ..FULL });
                let gradients: Vec<_> = (0..size as u64).map(|seed| random(seed, shape)).collect();
                let (got, exchanged) = update(&mut workers, &gradients);
                let wanted = sum(&gradients);
                assert!(off(&got.unwrap(), &wanted) < 1e-5, "{shape:?}, {size} workers");
                assert!((exchanged.norm_squared.sqrt() / norm(&wanted) - 1.0).abs() < 1e-5);
                assert!(norm(&sum(&errors(&workers))) < 1e-4, "{shape:?}, {size} workers");
                // The same gradient everywhere leaves nothing anywhere.
                let gradients = vec![gradients[0].clone(); size];
                let mut workers = self::workers(size, shape, Settings { rank: 6, ..FULL });
                update(&mut workers, &gradients);
                assert!(errors(&workers).iter().all(|error| norm(error) < 1e-4));
            }
        }
    }

    #[test]
    fn what_is_not_applied_stays_in_the_error_buffers() {
        let (shape, size) = ([8, 13], 3);
        let mut workers = workers(size, shape, FULL);
        for step in 0..10 {
            let gradients: Vec<_> = (0..size as u64).map(|rank| random(10 * step + rank, shape)).collect();
            let before = sum(&errors(&workers));
            let (got, exchanged) = update(&mut workers, &gradients);
            let got = got.unwrap();
            assert!((exchanged.norm_squared.sqrt() / norm(&got) - 1.0).abs() < 1e-5);
            assert!(off(&got, &sum(&gradients)) > 0.1); // the rank is too low for all of it
            let after = sum(&errors(&workers));
            let wanted = sum([&before, &sum(&gradients)]);
            assert!(off(&sum([&after, &got]), &wanted) < 1e-5, "step {step}");
        }
    }

    #[test]
    fn micro_batches_add_up_and_the_gradient_scale_is_divided_out() {
        let gradient = random(1, [4, 5]);
        let scaled: Vec<f32> = gradient.iter().map(|value| value * 8.0).collect();
        let mut compressor = Compressor::new([4, 5], 0, FULL).unwrap();
        compressor.accumulate(&scaled, 8.0).unwrap();
        assert_eq!(compressor.error(), gradient);
        compressor.accumulate(&gradient, 0.5).unwrap();
        assert!(
            off(&compressor.error(), &gradient.iter().map(|value| value * 3.0).collect::<Vec<_>>()) < 1e-6
        );
    }

    /// What is left in two workers' buffers, from 0.25 everywhere, after an update with 0.5 everywhere, but for the first
    /// worker's first value.
    fn after(settings: Settings, first: f32) -> ([Vec<f32>; 2], bool, Exchanged) {
        let mut workers = workers(2, [3, 4], settings);
        workers.iter_mut().for_each(|worker| worker.accumulate(&[0.25; 12], 1.0).unwrap());
        let mut gradients = vec![vec![0.5; 12]; 2];
        gradients[0][0] = first;
        let (sum, exchanged) = update(&mut workers, &gradients);
        ([workers[0].error(), workers[1].error()], sum.is_some(), exchanged)
    }

    #[test]
    fn if_all_is_finite_each_worker_subtracts_its_share() {
        let (errors, applied, exchanged) = after(SMALL, 0.5);
        assert!(errors.iter().all(|error| norm(error) < 0.05), "{errors:?}");
        assert!(applied && !exchanged.overflowed);
        assert!((exchanged.norm_squared / 27.0 - 1.0).abs() < 0.02, "{}", exchanged.norm_squared); // 12 · 1.5²
    }

    #[test]
    fn if_only_a_factor_overflows_error_buffers_are_kept() {
        for settings in [Settings { p_scale: 1e4, ..SMALL }, Settings { q_scale: 1e4, ..SMALL }] {
            let (errors, applied, exchanged) = after(settings, 0.5);
            assert_eq!(errors, [[0.75; 12], [0.75; 12]]);
            assert!(!applied && !exchanged.overflowed && exchanged.norm_squared == f64::INFINITY);
            let Factors { p, q, .. } = &exchanged.factors[0];
            assert!(p.iter().chain(q).all(|value| value.is_finite())); // clamped
        }
    }

    #[test]
    fn if_an_error_buffer_overflows_it_alone_is_emptied() {
        for (settings, first) in [(SMALL, 20.0), (FULL, f32::MAX)] {
            let mut workers = workers(2, [3, 4], settings);
            workers[0].accumulate(&[first; 12], 1.0).unwrap();
            let (sum, exchanged) = update(&mut workers, &[vec![first; 12], vec![0.5; 12]]);
            assert_eq!([workers[0].error(), workers[1].error()], [[0.0; 12], [0.5; 12]]);
            assert!(sum.is_none() && !exchanged.overflowed && exchanged.norm_squared == f64::INFINITY);
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_left_out_and_stops_the_update_once() {
        for first in [f32::NAN, f32::INFINITY] {
            let (errors, applied, exchanged) = after(SMALL, first);
            assert!(exchanged.overflowed && exchanged.norm_squared == f64::INFINITY);
            // The factors are finite: what was in the first's buffer, 0.25, and the second's, 0.75, each lost the mean.
            assert!(applied);
            assert!(errors[0].iter().all(|value| (value + 0.25).abs() < 0.02), "{errors:?}");
            assert!(errors[1].iter().all(|value| (value - 0.25).abs() < 0.02), "{errors:?}");
        }
        let mut compressor = [Compressor::new([3, 4], 0, FULL).unwrap()];
        compressor[0].accumulate(&[f32::NAN; 12], 1.0).unwrap();
        assert!(exchange(&mut compressor, &Solo).unwrap().overflowed);
        assert!(!exchange(&mut compressor, &Solo).unwrap().overflowed);
    }

    #[test]
    fn sums_of_error_buffers_are_enough_to_go_on() {
        let (shape, size) = ([13, 8], 3);
        let gradients =
            |step: u64| (0..size as u64).map(|rank| random(10 * step + rank, shape)).collect::<Vec<_>>();
        let mut workers = workers(size, shape, FULL);
        (0..4).for_each(|step| assert!(update(&mut workers, &gradients(step)).0.is_some()));
        let saved = on_workers(size, |rank, comm| error_sums(&workers[rank..=rank], comm).unwrap().remove(0));
        let wanted = update(&mut workers, &gradients(4)).0.unwrap();

        let mut resumed = self::workers(size, shape, FULL);
        resumed.iter_mut().for_each(|worker| worker.resume(&saved[0], size).unwrap());
        let got = update(&mut resumed, &gradients(4)).0.unwrap();
        assert!(off(&got, &wanted) < 1e-5, "{}", off(&got, &wanted));
        let forgotten = update(&mut self::workers(size, shape, FULL), &gradients(4)).0.unwrap();
        assert!(off(&forgotten, &wanted) > 0.1);
    }

    #[test]
    fn the_drawn_matrix_is_fixed_and_every_ordinal_has_its_own() {
        let drawn = |ordinal| Compressor::new([5, 9], ordinal, FULL).unwrap().gaussian;
        let mut workers = workers(2, [5, 9], FULL);
        for step in 0..3 {
            update(&mut workers, &[random(step, [5, 9]), random(step + 9, [5, 9])]);
        }
        assert!(workers.iter().all(|worker| worker.gaussian == drawn(0)));
        assert_ne!(drawn(0), drawn(1));
        let other_seed = Settings { seed: 8, ..FULL };
        assert_ne!(Compressor::new([5, 9], 0, other_seed).unwrap().gaussian, drawn(0));
        let many = gaussian(1, 2, 10_000);
        let mean = many.iter().sum::<f32>() / 1e4;
        assert!(mean.abs() < 0.05 && (norm(&many) / 100.0 - 1.0).abs() < 0.05);
    }

    /// A worker that counts what it sends.
    struct Counted(std::sync::Mutex<Vec<usize>>);

    impl Comm for Counted {
        fn size(&self) -> usize {
            1
        }

        fn sum(&self, values: &mut [f32]) -> Result<()> {
            self.0.lock().unwrap().push(values.len());
            Ok(())
        }
    }

    #[test]
    fn a_resblock_is_sent_in_two_calls_and_a_flag() {
        let shapes = [[6, 10], [10, 4], [5, 5]];
        let new = |(i, shape)| Compressor::new(shape, i as u64, FULL).unwrap();
        let mut compressors: Vec<_> = shapes.into_iter().enumerate().map(new).collect();
        let comm = Counted(Vec::new().into());
        exchange(&mut compressors, &comm).unwrap();
        let calls = comm.0.into_inner().unwrap();
        assert_eq!(calls, [(6 + 4 + 5) * 2, (10 + 10 + 5) * 2, 1]);
        assert_eq!(calls[0] + calls[1], compressors.iter().map(Compressor::floats_sent).sum::<usize>());
    }

    /// Minibatches are noisy, so that different columns are picked each time, and nothing stays in the buffers for long.
    #[test]
    fn updates_of_low_rank_follow_the_sum_of_noisy_gradients() {
        let (shape, mean) = ([12, 20], random(1000, [12, 20]));
        let mut workers = workers(2, shape, FULL);
        let (mut applied, mut wanted, mut distances) = (vec![0.0; 240], vec![0.0; 240], Vec::new());
        for step in 0..256 {
            let gradients = [0, 1].map(|rank| sum([&mean, &random(2 * step + rank, shape)]));
            applied = sum([&applied, &update(&mut workers, &gradients).0.unwrap()]);
            wanted = sum([&wanted, &sum(&gradients)]);
            if (step + 1_u64).is_power_of_two() {
                distances.push(off(&applied, &wanted));
            }
        }
        assert!(distances[0] > 0.5 && distances[8] < 0.1, "{distances:?}");
        assert!(distances[5..].windows(2).all(|pair| pair[1] < 0.7 * pair[0]), "{distances:?}");
    }

    /// The price of a fixed matrix: no column that an update has left out shows in the products with it, so that only what is
    /// new in a gradient picks the next ones.
    #[test]
    fn what_an_update_leaves_out_cannot_be_seen_through_the_drawn_matrix() {
        let (shape, gradient) = ([8, 13], random(1, [8, 13]));
        let mut worker = workers(1, shape, FULL);
        let first = update(&mut worker, std::slice::from_ref(&gradient)).0.unwrap();
        let seen = product(&worker[0].error(), &worker[0].gaussian.values(), 13);
        assert!(norm(&seen) < 1e-4 * norm(&worker[0].error()), "{}", norm(&seen));
        (0..20).for_each(|_| {
            let again = update(&mut worker, std::slice::from_ref(&gradient)).0.unwrap();
            assert!(off(&again, &first) < 1e-3, "{}", off(&again, &first));
        });
    }

    #[test]
    fn sixteen_bits_carry_a_gradient_of_low_rank() {
        for shape in [[20, 30], [30, 20]] {
            let low_rank = |seed: u64| {
                let (a, b) = (random(seed, [shape[0], 2]), random(seed + 1, [2, shape[1]]));
                product(&a, &b, 2).iter().map(|value| value * 0.01).collect::<Vec<_>>()
            };
            let mut workers = workers(2, shape, Settings { rank: 5, ..SMALL });
            assert!(matches!(workers[0].error, Buffer::Small(..)));
            let gradients = [low_rank(1), low_rank(3)];
            let (got, exchanged) = update(&mut workers, &gradients);
            let (got, wanted) = (got.unwrap(), sum(&gradients));
            assert!(off(&got, &wanted) < 0.01, "{}", off(&got, &wanted));
            assert!((exchanged.norm_squared.sqrt() / norm(&wanted) - 1.0).abs() < 0.01);
            let Factors { p, q, .. } = &exchanged.factors[0];
            assert!(p.iter().chain(q).all(|&value| SmallFloat::OneSixNine.round(value) == value));
            // What was rounded away is not lost.
            let left = sum([&got, &sum(&errors(&workers))]);
            assert!(off(&left, &wanted) < 0.003, "{}", off(&left, &wanted));
        }
    }

    #[test]
    fn columns_are_shifted_by_epsilon_before_they_are_made_orthonormal() {
        let compressor = Compressor::new([2, 3], 0, Settings { rank: 1, ..FULL }).unwrap();
        let p = compressor.orthogonalise(vec![0.0, EPSILON]);
        assert!(p.iter().all(|value| (value.abs() - 0.5_f32.sqrt()).abs() < 1e-6), "{p:?}");
    }

    #[test]
    fn a_zero_gradient_is_a_zero_sum() {
        for settings in [FULL, SMALL] {
            let (got, exchanged) = update(&mut workers(2, [4, 6], settings), &[vec![0.0; 24], vec![0.0; 24]]);
            assert_eq!((got.unwrap(), exchanged.norm_squared), (vec![0.0; 24], 0.0));
        }
    }

    #[test]
    fn all_workers_get_the_same_bits() {
        let results = on_workers(4, |rank, comm| {
            let new = |(i, shape): (usize, [usize; 2])| {
                let mut compressor = Compressor::new(shape, i as u64, SMALL).unwrap();
                compressor.accumulate(&random((10 * rank + i) as u64, shape), 100.0).unwrap();
                compressor
            };
            let mut compressors: Vec<_> = [[9, 14], [14, 9]].into_iter().enumerate().map(new).collect();
            let exchanged = exchange(&mut compressors, comm).unwrap();
            let sums = compressors.iter_mut().zip(&exchanged.factors);
            let bits = |sum: Option<Vec<f32>>| sum.unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>();
            let sums: Vec<_> =
                sums.map(|(compressor, factors)| bits(compressor.decompress(factors, 4))).collect();
            (sums, exchanged.norm_squared.to_bits())
        });
        assert!(results.iter().all(|other| *other == results[0]));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let error = |settings| Compressor::new([9, 4], 0, settings).unwrap_err().to_string();
        assert!(error(Settings { rank: 5, ..FULL }).contains("rank 5 of a matrix 4 by 9: wanted 1 to 4"));
        assert!(error(Settings { rank: 0, ..FULL }).contains("rank 0"));
        assert!(error(Settings { q_scale: 0.0, ..FULL }).contains("scale of 0"));
        assert!(error(Settings { storage: Some(SmallFloat::ZeroSixTen), ..FULL }).contains("need a sign"));
        let mut compressor = Compressor::new([9, 4], 0, FULL).unwrap();
        let error = compressor.accumulate(&[0.0; 35], 1.0).unwrap_err().to_string();
        assert!(error.contains("35 numbers: wanted 9 by 4"), "{error}");
    }
}
