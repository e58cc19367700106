//! Tests of PowerSGD: it is exact at full rank, loses nothing at lower ranks, and handles
//! non-finite values.

use super::super::comm::Solo;
use super::super::threads::on_ranks;
use super::*;

/// The scales differ from 1, so that a test fails if one is ignored.
const FULL: PowerSgdSettings =
    PowerSgdSettings { rank: 2, storage: None, p_scale: 0.5, q_scale: 4.0, seed: 7, resample: false };
const SMALL: PowerSgdSettings = PowerSgdSettings { storage: Some(SmallFloat::OneSixNine), ..FULL };

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

/// Returns the distance of `a` and `b`, relative to the norm of `b`.
fn off(a: &[f32], b: &[f32]) -> f64 {
    let difference: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    norm(&difference) / norm(b)
}

/// Does one update with a gradient for each worker. Returns the sum that all workers got, and the
/// result of the exchange.
fn update(workers: &mut [Compressor], gradients: &[Vec<f32>]) -> (Option<Vec<f32>>, Exchanged) {
    let started: Vec<_> = workers.to_vec();
    let results = on_ranks(workers.len(), |comm| {
        let rank = comm.rank();
        let mut compressor = [started[rank].clone()];
        compressor[0].accumulate(&gradients[rank], 1.0).unwrap();
        let exchanged = exchange(&mut compressor, &*comm).unwrap();
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

fn workers(size: usize, shape: [usize; 2], settings: PowerSgdSettings) -> Vec<Compressor> {
    vec![Compressor::new(shape, 0, settings).unwrap(); size]
}

fn errors(workers: &[Compressor]) -> Vec<Vec<f32>> {
    workers.iter().map(Compressor::error).collect()
}

#[test]
fn at_full_rank_the_sum_is_exact_and_nothing_is_left() {
    for shape in [[6, 10], [10, 6], [6, 6]] {
        for size in [1, 3] {
            let mut workers = workers(size, shape, PowerSgdSettings { rank: 6, ..FULL });
            let gradients: Vec<_> = (0..size as u64).map(|seed| random(seed, shape)).collect();
            let (got, exchanged) = update(&mut workers, &gradients);
            let expected = sum(&gradients);
            assert!(off(&got.unwrap(), &expected) < 1e-5, "{shape:?}, {size} workers");
            assert!((exchanged.norm_squared.sqrt() / norm(&expected) - 1.0).abs() < 1e-5);
            assert!(norm(&sum(&errors(&workers))) < 1e-4, "{shape:?}, {size} workers");
            // If all workers have the same gradient, nothing is left in any error buffer.
            let gradients = vec![gradients[0].clone(); size];
            let mut workers = self::workers(size, shape, PowerSgdSettings { rank: 6, ..FULL });
            update(&mut workers, &gradients);
            assert!(errors(&workers).iter().all(|error| norm(error) < 1e-4));
        }
    }
}

#[test]
fn unapplied_gradients_stay_in_the_error_buffers() {
    let (shape, size) = ([8, 13], 3);
    let mut workers = workers(size, shape, FULL);
    for step in 0..10 {
        let gradients: Vec<_> = (0..size as u64).map(|rank| random(10 * step + rank, shape)).collect();
        let before = sum(&errors(&workers));
        let (got, exchanged) = update(&mut workers, &gradients);
        let got = got.unwrap();
        assert!((exchanged.norm_squared.sqrt() / norm(&got) - 1.0).abs() < 1e-5);
        assert!(off(&got, &sum(&gradients)) > 0.1); // the rank is too low for an exact sum
        let after = sum(&errors(&workers));
        let expected = sum([&before, &sum(&gradients)]);
        assert!(off(&sum([&after, &got]), &expected) < 1e-5, "step {step}");
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
    assert!(off(&compressor.error(), &gradient.iter().map(|value| value * 3.0).collect::<Vec<_>>()) < 1e-6);
}

/// Does an update of two workers with gradients of 0.5, after their error buffers were filled with
/// 0.25. The first value of the first worker's gradient is `first` instead. Returns the error
/// buffers, whether there was a sum, and the result of the exchange.
fn after(settings: PowerSgdSettings, first: f32) -> ([Vec<f32>; 2], bool, Exchanged) {
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
    for settings in [PowerSgdSettings { p_scale: 1e4, ..SMALL }, PowerSgdSettings { q_scale: 1e4, ..SMALL }] {
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
fn nonfinite_gradient_is_left_out_and_stops_one_update() {
    for first in [f32::NAN, f32::INFINITY] {
        let (errors, applied, exchanged) = after(SMALL, first);
        assert!(exchanged.overflowed && exchanged.norm_squared == f64::INFINITY);
        // The factors are finite, so the mean, 0.5, is subtracted from the first buffer, 0.25, and
        // from the second, 0.75.
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
fn sums_of_error_buffers_are_enough_to_resume() {
    let (shape, size) = ([13, 8], 3);
    let gradients =
        |step: u64| (0..size as u64).map(|rank| random(10 * step + rank, shape)).collect::<Vec<_>>();
    let mut workers = workers(size, shape, FULL);
    (0..4).for_each(|step| assert!(update(&mut workers, &gradients(step)).0.is_some()));
    let saved = on_ranks(size, |comm| {
        let own = comm.rank()..=comm.rank();
        let mut error = workers[own][0].error();
        comm.all_reduce(&mut error, None).unwrap();
        error
    });
    let expected = update(&mut workers, &gradients(4)).0.unwrap();

    let mut resumed = self::workers(size, shape, FULL);
    resumed.iter_mut().for_each(|worker| worker.resume(&saved[0], size).unwrap());
    let got = update(&mut resumed, &gradients(4)).0.unwrap();
    assert!(off(&got, &expected) < 1e-5, "{}", off(&got, &expected));
    let forgotten = update(&mut self::workers(size, shape, FULL), &gradients(4)).0.unwrap();
    assert!(off(&forgotten, &expected) > 0.1);
}

#[test]
fn random_matrix_is_fixed_and_differs_between_ordinals() {
    let drawn = |ordinal| Compressor::new([5, 9], ordinal, FULL).unwrap().gaussian;
    let mut workers = workers(2, [5, 9], FULL);
    for step in 0..3 {
        update(&mut workers, &[random(step, [5, 9]), random(step + 9, [5, 9])]);
    }
    assert!(workers.iter().all(|worker| worker.gaussian == drawn(0)));
    assert_ne!(drawn(0), drawn(1));
    let mut resampled = self::workers(2, [5, 9], PowerSgdSettings { resample: true, ..FULL });
    update(&mut resampled, &[random(0, [5, 9]), random(9, [5, 9])]);
    assert!(resampled[0].gaussian == resampled[1].gaussian && resampled[0].gaussian != drawn(0));
    let other_seed = PowerSgdSettings { seed: 8, ..FULL };
    assert_ne!(Compressor::new([5, 9], 0, other_seed).unwrap().gaussian, drawn(0));
    let many = gaussian(1, 2, 10_000);
    let mean = many.iter().sum::<f32>() / 1e4;
    assert!(mean.abs() < 0.05 && (norm(&many) / 100.0 - 1.0).abs() < 0.05);
}

/// A single rank that records the number of bytes in each message.
#[derive(Debug)]
struct Counted(std::sync::Mutex<Vec<usize>>);

impl Comm for Counted {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn exchange(&self, parts: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
        self.0.lock().unwrap().push(parts[0].len());
        Solo.exchange(parts)
    }

    fn split(&self, _: usize) -> Result<std::sync::Arc<dyn Comm>> {
        unreachable!("no test divides it")
    }
}

#[test]
fn resblock_is_sent_in_two_calls_and_a_flag() {
    for (settings, bytes) in [(FULL, 4), (SMALL, 2)] {
        let shapes = [[6, 10], [10, 4], [5, 5]];
        let new = |(i, shape)| Compressor::new(shape, i as u64, settings).unwrap();
        let mut compressors: Vec<_> = shapes.into_iter().enumerate().map(new).collect();
        let comm = Counted(Vec::new().into());
        exchange(&mut compressors, &comm).unwrap();
        let calls = comm.0.into_inner().unwrap();
        assert_eq!(calls, [(6 + 4 + 5) * 2 * bytes, (10 + 10 + 5) * 2 * bytes, 1]);
        let values: usize = shapes.into_iter().map(|shape| floats_sent(shape, 2)).sum();
        assert_eq!(calls[0] + calls[1], values * bytes);
    }
}

/// Gradients of mini-batches are noisy, so that each update selects other columns, and nothing
/// stays in the error buffers for long.
#[test]
fn low_rank_updates_approach_the_sum_of_noisy_gradients() {
    let (shape, mean) = ([12, 20], random(1000, [12, 20]));
    let mut workers = workers(2, shape, FULL);
    let (mut applied, mut expected, mut distances) = (vec![0.0; 240], vec![0.0; 240], Vec::new());
    for step in 0..256 {
        let gradients = [0, 1].map(|rank| sum([&mean, &random(2 * step + rank, shape)]));
        applied = sum([&applied, &update(&mut workers, &gradients).0.unwrap()]);
        expected = sum([&expected, &sum(&gradients)]);
        if (step + 1_u64).is_power_of_two() {
            distances.push(off(&applied, &expected));
        }
    }
    assert!(distances[0] > 0.5 && distances[8] < 0.1, "{distances:?}");
    assert!(distances[5..].windows(2).all(|pair| pair[1] < 0.7 * pair[0]), "{distances:?}");
}

/// This is the cost of a fixed random matrix: its product with the rest that an update leaves in
/// the error buffer is zero. Only the new part of a gradient selects the next columns.
#[test]
fn error_left_by_an_update_is_orthogonal_to_the_random_matrix() {
    let (shape, gradient) = ([8, 13], random(1, [8, 13]));
    let mut worker = workers(1, shape, FULL);
    let first = update(&mut worker, std::slice::from_ref(&gradient)).0.unwrap();
    let projection = product(&worker[0].error(), &worker[0].gaussian.values(), 13);
    assert!(norm(&projection) < 1e-4 * norm(&worker[0].error()), "{}", norm(&projection));
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
        let mut workers = workers(2, shape, PowerSgdSettings { rank: 5, ..SMALL });
        assert!(matches!(workers[0].error, Buffer::Small(..)));
        let gradients = [low_rank(1), low_rank(3)];
        let (got, exchanged) = update(&mut workers, &gradients);
        let (got, expected) = (got.unwrap(), sum(&gradients));
        assert!(off(&got, &expected) < 0.01, "{}", off(&got, &expected));
        assert!((exchanged.norm_squared.sqrt() / norm(&expected) - 1.0).abs() < 0.01);
        let Factors { p, q, .. } = &exchanged.factors[0];
        assert!(p.iter().chain(q).all(|&value| SmallFloat::OneSixNine.round(value) == value));
        // The rounding errors stay in the error buffers.
        let left = sum([&got, &sum(&errors(&workers))]);
        assert!(off(&left, &expected) < 0.003, "{}", off(&left, &expected));
    }
}

#[test]
fn epsilon_is_added_before_orthonormalisation() {
    let compressor = Compressor::new([2, 3], 0, PowerSgdSettings { rank: 1, ..FULL }).unwrap();
    let p = compressor.orthogonalise(vec![0.0, EPSILON]);
    assert!(p.iter().all(|value| (value.abs() - 0.5_f32.sqrt()).abs() < 1e-6), "{p:?}");
}

#[test]
fn zero_gradient_gives_a_zero_sum() {
    for settings in [FULL, SMALL] {
        let (got, exchanged) = update(&mut workers(2, [4, 6], settings), &[vec![0.0; 24], vec![0.0; 24]]);
        assert_eq!((got.unwrap(), exchanged.norm_squared), (vec![0.0; 24], 0.0));
    }
}

#[test]
fn all_workers_get_the_same_bits() {
    let results = on_ranks(4, |comm| {
        let rank = comm.rank();
        let new = |(i, shape): (usize, [usize; 2])| {
            let mut compressor = Compressor::new(shape, i as u64, SMALL).unwrap();
            compressor.accumulate(&random((10 * rank + i) as u64, shape), 100.0).unwrap();
            compressor
        };
        let mut compressors: Vec<_> = [[9, 14], [14, 9]].into_iter().enumerate().map(new).collect();
        let exchanged = exchange(&mut compressors, &*comm).unwrap();
        let sums = compressors.iter_mut().zip(&exchanged.factors);
        let bits = |sum: Option<Vec<f32>>| sum.unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let sums: Vec<_> =
            sums.map(|(compressor, factors)| bits(compressor.decompress(factors, 4))).collect();
        (sums, exchanged.norm_squared.to_bits())
    });
    assert!(results.iter().all(|other| *other == results[0]));
}

#[test]
fn invalid_settings_and_sizes_are_refused() {
    let error = |settings| Compressor::new([9, 4], 0, settings).unwrap_err().to_string();
    assert!(error(PowerSgdSettings { rank: 5, ..FULL }).contains("rank 5 of a matrix 4 by 9: wanted 1 to 4"));
    assert!(error(PowerSgdSettings { rank: 0, ..FULL }).contains("rank 0"));
    assert!(error(PowerSgdSettings { q_scale: 0.0, ..FULL }).contains("scale of 0"));
    assert!(
        error(PowerSgdSettings { storage: Some(SmallFloat::ZeroSixTen), ..FULL }).contains("need a sign")
    );
    let mut compressor = Compressor::new([9, 4], 0, FULL).unwrap();
    let error = compressor.accumulate(&[0.0; 35], 1.0).unwrap_err().to_string();
    assert!(error.contains("35 numbers: wanted 9 by 4"), "{error}");
}
