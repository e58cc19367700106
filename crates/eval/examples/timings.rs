//! Measures the time of each metric, for `docs/log.md`, on random vectors with Inception's 2,048
//! features. The number of vectors is 10,000 by default.
//!
//!     cargo run --release -p tessera-eval --example timings [VECTORS]

use std::time::Instant;

use anyhow::Result;
use image::RgbImage;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tessera_eval::{
    Gaussian, InceptionScore, OverlapSearch, Vectors, blur, cmmd, frechet_distance, kid, precision_recall,
    recall_at,
};

/// The number of Inception's features.
const DIMS: usize = 2048;
/// The number of a contrastive model's features.
const EMBEDDING: usize = 512;

fn main() -> Result<()> {
    let n = std::env::args().nth(1).map_or(Ok(10_000), |n| n.parse())?;
    let rng = &mut ChaCha8Rng::seed_from_u64(1);
    let (real, fake) = (set(n, DIMS, rng)?, set(n, DIMS, rng)?);
    let gaussian = |set: &Vectors| -> Result<Gaussian> {
        let mut gaussian = Gaussian::new("noise", DIMS);
        set.values().chunks(64 * DIMS).try_for_each(|batch| gaussian.push_all(batch))?;
        Ok(gaussian)
    };
    let real_gaussian = timed(&format!("mean and covariance of {n} vectors"), || gaussian(&real))?;
    let fake_gaussian = gaussian(&fake)?;
    timed("Fréchet distance", || frechet_distance(&real_gaussian, &fake_gaussian))?;
    let to_itself =
        timed("Fréchet distance to itself", || frechet_distance(&real_gaussian, &real_gaussian))?;
    let few = gaussian(&set(1000, DIMS, rng)?)?;
    let few_to_itself = timed("  of 1,000 vectors", || frechet_distance(&few, &few))?;
    println!("  the two distances are {to_itself:e} and {few_to_itself:e}");
    timed("KID, 100 subsets of 1,000", || kid(&real, &fake, rng))?;
    timed("precision and recall", || precision_recall(&real, &fake))?;
    let (images, texts) = (set(n, EMBEDDING, rng)?, set(n, EMBEDDING, rng)?);
    timed("CMMD, 512 features", || cmmd(&images, &texts))?;
    timed("recall, 512 features", || recall_at(images.values(), texts.values(), EMBEDDING, &[1]))?;
    timed("overlap of 5,000 with all, 512 features", || {
        let mut validation = Vectors::new("noise", EMBEDDING);
        validation.push_all(&images.values()[..5_000.min(n) * EMBEDDING])?;
        let mut search = OverlapSearch::new(&validation)?;
        search.push_all(texts.values())?;
        search.overlaps().map(|overlaps| overlaps[0])
    })?;
    timed("inception score, 1,008 classes", || {
        let mut score = InceptionScore::new("noise", n, 1008, InceptionScore::SPLITS)?;
        score.push_all(&real.values()[..n * 1008])?;
        score.report()
    })?;
    let picture = RgbImage::from_fn(256, 256, |_, _| image::Rgb([0; 3].map(|_: i32| rng.next_u32() as u8)));
    for radius in [1.0, 2.0, 4.0, 8.0] {
        timed(&format!("blur of 10 pictures of 256 pixels, radius {radius}"), || {
            Ok((0..10).map(|_| blur(&picture, radius).as_raw()[0]).max())
        })?;
        timed("  with the image crate", || {
            Ok((0..10).map(|_| image::imageops::blur(&picture, radius).as_raw()[0]).max())
        })?;
    }
    Ok(())
}

/// `n` vectors of uniform noise, whose scale differs by feature.
fn set(n: usize, dims: usize, rng: &mut impl Rng) -> Result<Vectors> {
    let mut set = Vectors::new("noise", dims);
    let values: Vec<f32> = (0..n * dims)
        .map(|i| rng.next_u32() as f32 / u32::MAX as f32 * (i % dims) as f32 / dims as f32)
        .collect();
    set.push_all(&values)?;
    Ok(set)
}

/// Runs `work` and prints the time that it took.
fn timed<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let result = work()?;
    println!("{name:<46} {:>9.3} s", start.elapsed().as_secs_f64());
    Ok(result)
}
