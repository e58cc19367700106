//! Figures against other people's code, by `fixtures/eval/metrics.py`: each on features that a formula gives on both sides.

use image::RgbImage;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde_json::Value;

use crate::*;

const DIMS: usize = 24;

/// The results of the other side.
fn wanted(name: &str) -> Value {
    let all: Value = serde_json::from_str(include_str!("../../../fixtures/eval/metrics.json")).unwrap();
    all[name].clone()
}

/// Numbers of `[-1, 1)`: a hash of 32 bits of their place.
fn noise(seed: u64, n: usize) -> impl Iterator<Item = f64> {
    (0..n as u64).map(move |i| {
        let mut h = ((i * 2_654_435_761 + seed * 40_503) & 0xFFFF_FFFF) as u32;
        h = (h ^ (h >> 16)).wrapping_mul(0x21F0_AAAD);
        h = (h ^ (h >> 15)).wrapping_mul(0x735A_2D97);
        f64::from(h ^ (h >> 15)) / 2.0_f64.powi(31) - 1.0
    })
}

/// `[n, DIMS]`
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
fn close(got: f64, wanted: &Value, relative: f64) {
    let wanted = wanted.as_f64().unwrap();
    assert!((got / wanted - 1.0).abs() < relative, "{got}, wanted {wanted}");
}

#[test]
fn the_fid_of_pytorch_fid() {
    let [real, fake] = [features(1, 300, 0.0), features(3, 260, 0.2)].map(|values| {
        let mut set = Gaussian::new("a formula", DIMS);
        set.push_all(&values).unwrap();
        set
    });
    close(fid(&real, &fake).unwrap().value, &wanted("fid"), 1e-9);
}

#[test]
fn the_inception_score_of_torch_fidelity() {
    let logits: Vec<f32> = features(15, 230, 0.0).iter().map(|x| 4.0 * x).collect();
    let mut score = InceptionScore::new("a formula", 230, DIMS, InceptionScore::SPLITS).unwrap();
    score.push_all(&logits).unwrap();
    let report = score.report().unwrap();
    close(report.value, &wanted("inception_score")[0], 1e-9);
    close(report.plus_minus.unwrap(), &wanted("inception_score")[1], 1e-9);
}

#[test]
fn the_kid_of_torch_fidelity() {
    let rng = &mut ChaCha8Rng::seed_from_u64(1);
    let real = set(&features(1, 300, 0.0)[..260 * DIMS]);
    let whole = kid(&real, &set(&features(3, 260, 0.2)), rng).unwrap();
    close(whole.value, &wanted("kid_whole"), 1e-9);
    // Another generator draws other subsets: their mean is off by a tenth of their deviation on either side.
    let subsets = kid(&set(&features(5, 1500, 0.0)), &set(&features(7, 1400, 0.2)), rng).unwrap();
    let [mean, deviation] = [0, 1].map(|i| wanted("kid_subsets")[i].as_f64().unwrap());
    assert!((subsets.value - mean).abs() < 0.4 * deviation, "{}, wanted {mean} ± {deviation}", subsets.value);
    close(subsets.plus_minus.unwrap(), &wanted("kid_subsets")[1], 0.3);
}

#[test]
fn the_precision_and_recall_of_torch_fidelity() {
    let (real, fake) = (set(&features(1, 300, 0.0)), set(&features(3, 260, 0.2)));
    let [precision, recall] = precision_recall(&real, &fake).unwrap();
    // Theirs are shares in f32.
    close(precision.value, &wanted("precision"), 1e-7);
    close(recall.value, &wanted("recall"), 1e-7);
}

#[test]
fn cmmd_by_its_definition() {
    let (real, fake) = (set(&features(1, 300, 0.0)), set(&features(3, 260, 0.2)));
    close(cmmd(&real, &fake).unwrap().value, &wanted("cmmd"), 1e-6);
}

#[test]
fn clip_score_and_recall_by_their_definitions() {
    let images = features(11, 240, 0.0);
    let both = images.iter().zip(features(13, 240, 0.0));
    let texts: Vec<f32> = both.map(|(&a, b)| (f64::from(a) + 1.5 * f64::from(b)) as f32).collect();
    let score = clip_score(&set(&images), &set(&texts)).unwrap();
    close(score.value, &wanted("clip_score")[0], 1e-7);
    close(score.plus_minus.unwrap(), &wanted("clip_score")[1], 1e-6);
    let recall = recall_at(&images, &texts, DIMS, &[1, 5, 10]).unwrap();
    for (i, k) in ["1", "5", "10"].into_iter().enumerate() {
        close(recall.text_of_image[i], &wanted("recall_at")[k][0], 1e-12);
        close(recall.image_of_text[i], &wanted("recall_at")[k][1], 1e-12);
    }
}

#[test]
fn overlaps_by_their_definition() {
    let mut search = OverlapSearch::new(&set(&features(3, 260, 0.2)[..12 * DIMS])).unwrap();
    search.push_all(&features(1, 300, 0.0)).unwrap();
    let overlaps = search.overlaps().unwrap();
    let wanted = wanted("overlap");
    assert_eq!(overlaps.len(), wanted.as_array().unwrap().len());
    for (pair, wanted) in overlaps.iter().zip(wanted.as_array().unwrap()) {
        assert_eq!(
            (pair.val as u64, pair.train as u64),
            (wanted[0].as_u64().unwrap(), wanted[1].as_u64().unwrap())
        );
        close(pair.similarity, &wanted[2], 1e-6);
    }
}

#[test]
fn the_blur_of_scipy() {
    let values = noise(9, 10 * 14 * 3).map(|x| ((x + 1.0) * 127.0).round_ties_even() as u8);
    let picture = RgbImage::from_vec(14, 10, values.collect()).unwrap();
    for radius in [1, 2, 4, 8] {
        let blurred = blur(&picture, radius as f32);
        let wanted = wanted("blur")[radius.to_string()].clone();
        for (&got, wanted) in blurred.as_raw().iter().zip(wanted.as_array().unwrap()) {
            let off = (f64::from(got) - wanted.as_f64().unwrap()).abs();
            assert!(off < 0.502, "{got}, wanted {wanted} at radius {radius}");
        }
    }
}
