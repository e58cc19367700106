//! Compares the metrics with reference implementations, on features that both sides compute from a
//! formula. `fixtures/eval/metrics.py` wrote the expected results.

use image::RgbImage;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde_json::Value;

use crate::*;

const DIMS: usize = 24;

/// The result of the reference implementation.
fn reference(name: &str) -> Value {
    let all: Value = serde_json::from_str(include_str!("../../../fixtures/eval/metrics.json")).unwrap();
    all[name].clone()
}

/// `n` numbers in `[-1, 1)`: a 32-bit hash of their index.
fn noise(seed: u64, n: usize) -> impl Iterator<Item = f64> {
    (0..n as u64).map(move |i| {
        let mut h = ((i * 2_654_435_761 + seed * 40_503) & 0xFFFF_FFFF) as u32;
        h = (h ^ (h >> 16)).wrapping_mul(0x21F0_AAAD);
        h = (h ^ (h >> 15)).wrapping_mul(0x735A_2D97);
        f64::from(h ^ (h >> 15)) / 2.0_f64.powi(31) - 1.0
    })
}

/// Feature vectors, `[n, DIMS]`.
fn features(seed: u64, n: usize, shift: f64) -> Vec<f32> {
    let own: Vec<f64> = noise(seed, n * DIMS).collect();
    let shared: Vec<f64> = noise(seed + 1, n * 4).collect();
    let feature = |(i, own): (usize, f64)| {
        let (row, j) = (i / DIMS, i % DIMS);
        (own * (j as f64 + 1.0) / DIMS as f64 + shared[row * 4 + j % 4] * 0.5 + shift) as f32
    };
    own.into_iter().enumerate().map(feature).collect()
}

fn set(values: &[f32]) -> Vectors {
    let mut set = Vectors::new("a formula", DIMS);
    set.push_all(values).unwrap();
    set
}

#[track_caller]
fn close(got: f64, expected: &Value, tolerance: f64) {
    let expected = expected.as_f64().unwrap();
    assert!((got / expected - 1.0).abs() < tolerance, "{got}, expected {expected}");
}

#[test]
fn fid_matches_pytorch_fid() {
    let [real, fake] = [features(1, 300, 0.0), features(3, 260, 0.2)].map(|values| {
        let mut set = Gaussian::new("a formula", DIMS);
        set.push_all(&values).unwrap();
        set
    });
    close(fid(&real, &fake).unwrap().value, &reference("fid"), 1e-9);
}

#[test]
fn inception_score_matches_torch_fidelity() {
    let logits: Vec<f32> = features(15, 230, 0.0).iter().map(|x| 4.0 * x).collect();
    let mut score = InceptionScore::new("a formula", 230, DIMS, InceptionScore::SPLITS).unwrap();
    score.push_all(&logits).unwrap();
    let report = score.report().unwrap();
    close(report.value, &reference("inception_score")[0], 1e-9);
    close(report.plus_minus.unwrap(), &reference("inception_score")[1], 1e-9);
}

#[test]
fn kid_matches_torch_fidelity() {
    let rng = &mut ChaCha8Rng::seed_from_u64(1);
    let real = set(&features(1, 300, 0.0)[..260 * DIMS]);
    let complete = kid(&real, &set(&features(3, 260, 0.2)), rng).unwrap();
    close(complete.value, &reference("kid_whole"), 1e-9);
    // The random generators differ, and so do the subsets. The mean of 100 subsets has an error of
    // a tenth of their standard deviation on both sides.
    let subsets = kid(&set(&features(5, 1500, 0.0)), &set(&features(7, 1400, 0.2)), rng).unwrap();
    let [mean, deviation] = [0, 1].map(|i| reference("kid_subsets")[i].as_f64().unwrap());
    let error = (subsets.value - mean).abs();
    assert!(error < 0.4 * deviation, "{}, expected {mean} ± {deviation}", subsets.value);
    close(subsets.plus_minus.unwrap(), &reference("kid_subsets")[1], 0.3);
}

#[test]
fn precision_and_recall_match_torch_fidelity() {
    let (real, fake) = (set(&features(1, 300, 0.0)), set(&features(3, 260, 0.2)));
    let [precision, recall] = precision_recall(&real, &fake).unwrap();
    // The reference values are f32.
    close(precision.value, &reference("precision"), 1e-7);
    close(recall.value, &reference("recall"), 1e-7);
}

#[test]
fn cmmd_matches_its_definition() {
    let (real, fake) = (set(&features(1, 300, 0.0)), set(&features(3, 260, 0.2)));
    close(cmmd(&real, &fake).unwrap().value, &reference("cmmd"), 1e-6);
}

#[test]
fn clip_score_and_recall_match_their_definitions() {
    let images = features(11, 240, 0.0);
    let both = images.iter().zip(features(13, 240, 0.0));
    let texts: Vec<f32> = both.map(|(&a, b)| (f64::from(a) + 1.5 * f64::from(b)) as f32).collect();
    let score = clip_score(&set(&images), &set(&texts)).unwrap();
    close(score.value, &reference("clip_score")[0], 1e-7);
    close(score.plus_minus.unwrap(), &reference("clip_score")[1], 1e-6);
    let recall = recall_at(&images, &texts, DIMS, &[1, 5, 10]).unwrap();
    for (i, k) in ["1", "5", "10"].into_iter().enumerate() {
        close(recall.text_of_image[i], &reference("recall_at")[k][0], 1e-12);
        close(recall.image_of_text[i], &reference("recall_at")[k][1], 1e-12);
    }
}

#[test]
fn overlaps_match_their_definition() {
    let mut search = OverlapSearch::new(&set(&features(3, 260, 0.2)[..12 * DIMS])).unwrap();
    search.push_all(&features(1, 300, 0.0)).unwrap();
    let overlaps = search.overlaps().unwrap();
    let reference = reference("overlap");
    assert_eq!(overlaps.len(), reference.as_array().unwrap().len());
    for (pair, expected) in overlaps.iter().zip(reference.as_array().unwrap()) {
        assert_eq!(
            (pair.val as u64, pair.train as u64),
            (expected[0].as_u64().unwrap(), expected[1].as_u64().unwrap())
        );
        close(pair.similarity, &expected[2], 1e-6);
    }
}

#[test]
fn blur_matches_scipy() {
    let values = noise(9, 10 * 14 * 3).map(|x| ((x + 1.0) * 127.0).round_ties_even() as u8);
    let picture = RgbImage::from_vec(14, 10, values.collect()).unwrap();
    for radius in [1, 2, 4, 8] {
        let blurred = blur(&picture, radius as f32);
        let expected = reference("blur")[radius.to_string()].clone();
        for (&got, expected) in blurred.as_raw().iter().zip(expected.as_array().unwrap()) {
            let error = (f64::from(got) - expected.as_f64().unwrap()).abs();
            assert!(error < 0.502, "{got}, expected {expected} at radius {radius}");
        }
    }
}
