//! The Fréchet distance between two sets of feature vectors, each approximated by a Gaussian
//! (Heusel et al. 2017). With the features of an Inception network it is the FID (paper §3). There
//! are several such networks, so each set records its feature extractor.
//!
//! A set stores only sums: its memory is `D²` numbers for any number of vectors. The vectors are
//! added in blocks of a fixed size, so the result does not depend on the batch size.

use anyhow::{Result, anyhow, ensure};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt_pivoting::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::{Accum, Mat, MatRef, get_global_parallelism};

use crate::Report;
use crate::vectors::check;

/// The number of vectors that one matrix product adds to the sums.
const BLOCK: usize = 512;

/// The mean and covariance of feature vectors, accumulated incrementally.
#[derive(Debug, Clone)]
pub struct Gaussian {
    features: String,
    n: usize,
    /// Whether these are published statistics, whose number of vectors is unknown.
    published: bool,
    /// The first vector, `[D]`. It is subtracted from all vectors to keep the sums small.
    origin: Vec<f64>,
    sum: Vec<f64>,
    /// The lower triangle of the sum of outer products, `[D, D]`, without the pending vectors.
    products: Mat<f64>,
    /// The vectors minus the origin that are not in `products` yet, `[fewer than BLOCK, D]`.
    pending: Vec<f64>,
}

impl Gaussian {
    /// Creates an empty set for vectors of `d` features. `features` names the feature extractor:
    /// the network, its weights and the layer.
    pub fn new(features: &str, d: usize) -> Gaussian {
        Gaussian {
            features: features.to_string(),
            n: 0,
            published: false,
            origin: vec![0.0; d],
            sum: vec![0.0; d],
            products: Mat::zeros(d, d),
            pending: Vec::new(),
        }
    }

    /// Creates a set from a published mean `[D]` and covariance `[D, D]`, of an unknown number of
    /// vectors.
    ///
    /// # Errors
    /// If a number is not finite, the covariance has another shape, or a variance is negative.
    pub fn of_statistics(features: &str, mean: Vec<f64>, covariance: &[f64]) -> Result<Gaussian> {
        let d = mean.len();
        ensure!(covariance.len() == d * d, "a covariance of {} numbers; wanted {}", covariance.len(), d * d);
        let all = || mean.iter().chain(covariance);
        ensure!(all().all(|value| value.is_finite()), "a number of the statistics is not finite");
        let covariance = MatRef::from_row_major_slice(covariance, d, d).to_owned();
        ensure!((0..d).all(|i| covariance[(i, i)] >= 0.0), "a variance of the statistics is negative");
        // With n = 2 and a sum of 0, the sum of products equals the unbiased covariance.
        let empty = Gaussian::new(features, d);
        Ok(Gaussian { n: 2, published: true, origin: mean, products: covariance, ..empty })
    }

    /// The number of vectors, or `None` for published statistics.
    pub fn counted(&self) -> Option<usize> {
        (!self.published).then_some(self.n)
    }

    /// The name of the feature extractor. It is part of every report.
    pub fn features(&self) -> &str {
        &self.features
    }

    /// `D`, the number of features.
    pub fn dims(&self) -> usize {
        self.sum.len()
    }

    /// `n`, the number of vectors.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether the set contains no vectors.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Adds a vector, `[D]`.
    ///
    /// # Errors
    /// If its length is not `D` or a feature is not finite.
    pub fn push(&mut self, features: &[f32]) -> Result<()> {
        let d = self.dims();
        ensure!(features.len() == d, "{} features; wanted {d}", features.len());
        self.push_all(features)
    }

    /// Adds vectors, `[B, D]`.
    ///
    /// # Errors
    /// If the length is not a multiple of `D` or a feature is not finite. In both cases no vector
    /// is added.
    pub fn push_all(&mut self, vectors: &[f32]) -> Result<()> {
        let d = self.dims();
        ensure!(!self.published, "published statistics take no more vectors");
        check(vectors, d)?;
        for vector in vectors.chunks_exact(d) {
            if self.n == 0 {
                self.origin = vector.iter().map(|&value| f64::from(value)).collect();
            }
            for (j, (&value, origin)) in vector.iter().zip(&self.origin).enumerate() {
                let x = f64::from(value) - origin;
                self.sum[j] += x;
                self.pending.push(x);
            }
            self.n += 1;
            if self.pending.len() == BLOCK * d {
                add_products(&mut self.products, &self.pending);
                self.pending.clear();
            }
        }
        Ok(())
    }

    /// The mean, `[D]`.
    fn mean(&self) -> Vec<f64> {
        self.origin.iter().zip(&self.sum).map(|(origin, sum)| origin + sum / self.n as f64).collect()
    }

    /// The unbiased covariance, `[D, D]`.
    fn covariance(&self) -> Mat<f64> {
        let mut products = self.products.clone();
        add_products(&mut products, &self.pending);
        let n = self.n as f64;
        Mat::from_fn(self.dims(), self.dims(), |i, j| {
            let product = products[(i.max(j), i.min(j))];
            let covariance = (product - self.sum[i] * self.sum[j] / n) / (n - 1.0);
            // Rounding could make the variance of a nearly constant feature negative.
            if i == j { covariance.max(0.0) } else { covariance }
        })
    }
}

/// Adds `xᵀ x` to the lower triangle of `products`, for vectors `x`, `[B, D]`.
fn add_products(products: &mut Mat<f64>, x: &[f64]) {
    let d = products.nrows();
    if x.is_empty() {
        return;
    }
    let x = MatRef::from_row_major_slice(x, x.len() / d, d);
    matmul(
        products,
        BlockStructure::TriangularLower,
        Accum::Add,
        x.transpose(),
        BlockStructure::Rectangular,
        x,
        BlockStructure::Rectangular,
        1.0,
        get_global_parallelism(),
    );
}

/// Returns the FID of generated pictures: [`frechet_distance`] of sets that are large enough for
/// covariances of full rank.
///
/// # Errors
/// If a set has fewer than `D + 1` vectors, or the sets have different features.
pub fn fid(real: &Gaussian, fake: &Gaussian) -> Result<Report> {
    let least = real.dims() + 1;
    ensure!(
        (real.published || real.n >= least) && fake.n >= least,
        "{} and {} drawn pictures for a FID; wanted at least {least} of each, one more than its {} features; \
         `tessera eval kid` accepts fewer",
        real.counted().map_or("published statistics".into(), |n| format!("{n} real")),
        fake.n,
        real.dims()
    );
    let value = frechet_distance(real, fake)?;
    Ok(Report { features: real.features.clone(), n_real: Some(real.n), ..Report::new("FID", value, fake.n) })
}

/// Returns the Fréchet distance `|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁^½ Σ₂ Σ₁^½)^½)`.
///
/// # Errors
/// If a set has fewer than two vectors, or the sets have different features.
pub fn frechet_distance(a: &Gaussian, b: &Gaussian) -> Result<f64> {
    ensure!(a.n > 1 && b.n > 1, "{} and {} feature vectors; wanted at least 2", a.n, b.n);
    ensure!(a.dims() == b.dims(), "{} features and {}; wanted the same", a.dims(), b.dims());
    let (features_a, features_b) = (&a.features, &b.features);
    ensure!(
        features_a == features_b,
        "features of {features_a} and of {features_b} cannot be compared; wanted both from one network"
    );
    let between_means: f64 = a.mean().iter().zip(b.mean()).map(|(a, b)| (a - b).powi(2)).sum();
    let (first, second) = (a.covariance(), b.covariance());
    Ok(between_means + trace(&first) + trace(&second) - 2.0 * trace_of_root(first, second)?)
}

/// Returns `tr (Σ₁^½ Σ₂ Σ₁^½)^½`: the sum of the singular values of `Aᵀ B`, for any `A Aᵀ = Σ₁` and
/// `B Bᵀ = Σ₂`. Summing the roots of the eigenvalues would be less accurate: an eigenvalue of 0
/// would contribute the root of its rounding error.
fn trace_of_root(first: Mat<f64>, second: Mat<f64>) -> Result<f64> {
    let product = factor(first)?.transpose() * factor(second)?;
    let values = product.singular_values().map_err(|error| anyhow!("no singular values: {error:?}"))?;
    Ok(values.into_iter().sum())
}

fn trace(x: &Mat<f64>) -> f64 {
    (0..x.nrows()).map(|i| x[(i, i)]).sum()
}

/// Returns `A`, `[D, rank]`, with `A Aᵀ = x` for a covariance `x`: the Cholesky factor with
/// pivoting, which stops when the remaining pivots are only rounding errors.
fn factor(mut x: Mat<f64>) -> Result<Mat<f64>> {
    let d = x.nrows();
    if trace(&x) == 0.0 {
        return Ok(Mat::zeros(d, 0));
    }
    let (mut order, mut inverse) = (vec![0_usize; d], vec![0_usize; d]);
    let parallel = get_global_parallelism();
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<usize, f64>(d, parallel, Default::default()));
    let found = cholesky_in_place(
        x.as_mut(),
        &mut order,
        &mut inverse,
        parallel,
        MemStack::new(&mut memory),
        Default::default(),
    );
    let (info, _) = found.map_err(|error| anyhow!("no factor of a covariance: {error:?}"))?;
    Ok(Mat::from_fn(d, info.rank, |i, j| if inverse[i] >= j { x[(inverse[i], j)] } else { 0.0 }))
}

#[cfg(test)]
mod tests {
    use faer::Side;

    use super::*;

    /// The definition of [`trace_of_root`], with matrix square roots computed from eigenvectors.
    fn trace_of_root_by_definition(first: &Mat<f64>, second: &Mat<f64>) -> f64 {
        let root = |x: &Mat<f64>| {
            let found = x.self_adjoint_eigen(Side::Lower).unwrap();
            let values: Vec<f64> = found.S().column_vector().iter().map(|value| value.max(0.0)).collect();
            let vectors = found.U();
            let scaled = Mat::from_fn(x.nrows(), x.nrows(), |i, j| vectors[(i, j)] * values[j].sqrt());
            &scaled * vectors.transpose()
        };
        (root(first) * root(second)).singular_values().unwrap().into_iter().sum()
    }

    /// `n` noise vectors of `d` features, multiplied by `spread` and moved by `shift`.
    fn set(n: usize, d: usize, spread: f32, shift: f32) -> Gaussian {
        let mut gaussian = Gaussian::new("noise", d);
        for i in 0..n {
            let noise = |j: usize| ((i * d + j) as f32 * 12.9898).sin() * 43_758.547 % 1.0;
            let feature = |j: usize| noise(j) * spread * (j + 1) as f32 + shift;
            gaussian.push(&(0..d).map(feature).collect::<Vec<f32>>()).unwrap();
        }
        gaussian
    }

    #[test]
    fn frechet_distance_of_a_set_to_itself_is_zero() {
        // The second set has fewer vectors than features, so its covariance is rank-deficient.
        for a in [set(500, 16, 1.0, 100.0), set(10, 16, 1.0, 100.0)] {
            let distance = frechet_distance(&a, &a).unwrap();
            assert!(distance.abs() < 1e-6, "{distance}");
        }
    }

    #[test]
    fn frechet_distance_of_shifted_and_scaled_sets_is_exact() {
        // A shift by 2 in each of 16 features; then a scale of 3, for which the square roots of the
        // covariances commute.
        let shifted = frechet_distance(&set(500, 16, 1.0, 0.0), &set(500, 16, 1.0, 2.0)).unwrap();
        assert!((shifted - 64.0).abs() < 1e-4, "{shifted}");
        let (one, three) = (set(500, 16, 1.0, 0.0), set(500, 16, 3.0, 0.0));
        let means: f64 = one.mean().iter().map(|mean| (2.0 * mean).powi(2)).sum();
        let expected = means + 4.0 * trace(&one.covariance());
        let scaled = frechet_distance(&one, &three).unwrap();
        assert!((scaled / expected - 1.0).abs() < 1e-5, "{scaled}, expected {expected}");
    }

    /// Inception's weights of 2015 and torchvision's, which DM-GAN's code uses (paper §3), give
    /// different distances.
    #[test]
    fn sets_of_different_feature_extractors_are_refused() {
        let [old, new] =
            ["pt_inception-2015-12-05, pool 3", "torchvision's Inception v3, pool 3"].map(|features| {
                let mut set = Gaussian::new(features, 1);
                [0.0, 1.0].iter().for_each(|&value| set.push(&[value]).unwrap());
                set
            });
        assert_eq!(old.features(), "pt_inception-2015-12-05, pool 3");
        let error = frechet_distance(&old, &new).unwrap_err().to_string();
        assert!(error.contains("2015-12-05") && error.contains("torchvision"), "{error}");
    }

    #[test]
    fn too_small_and_incompatible_sets_are_refused() {
        let error = |a: &Gaussian, b: &Gaussian| frechet_distance(a, b).unwrap_err().to_string();
        assert!(error(&set(1, 4, 1.0, 0.0), &set(9, 4, 1.0, 0.0)).contains("wanted at least 2"));
        assert!(error(&set(9, 4, 1.0, 0.0), &set(9, 5, 1.0, 0.0)).contains("4 features and 5"));
        assert!(
            Gaussian::new("", 2).push(&[1.0]).is_err() && Gaussian::new("", 1).push(&[f32::NAN]).is_err()
        );
    }

    #[test]
    fn trace_of_root_equals_its_definition() {
        // The sets have full rank; fewer vectors than features (on one side and on both); and 16
        // equal features.
        let equal_features = |n| {
            let mut gaussian = Gaussian::new("noise", 16);
            (0..n).for_each(|i| gaussian.push(&[(i as f32).cos(); 16]).unwrap());
            gaussian
        };
        let sets = [set(500, 16, 1.0, 0.0), set(9, 16, 2.0, 1.0), set(7, 16, 1.0, 3.0), equal_features(50)];
        for a in &sets {
            for b in &sets {
                let (a, b) = (a.covariance(), b.covariance());
                let got = trace_of_root(a.clone(), b.clone()).unwrap();
                let expected = trace_of_root_by_definition(&a, &b);
                let tolerance = 1e-6 * trace(&a).max(trace(&b));
                assert!((got - expected).abs() < tolerance, "{got}, expected {expected}");
            }
        }
    }

    #[test]
    fn frechet_distance_of_equal_vectors_is_that_of_a_point() {
        let mut point = Gaussian::new("noise", 16);
        point.push_all(&[0.1; 16 * 5]).unwrap();
        let other = set(500, 16, 1.0, 0.1);
        let expected: f64 = trace(&other.covariance())
            + other.mean().iter().map(|mean| (mean - f64::from(0.1_f32)).powi(2)).sum::<f64>();
        let distance = frechet_distance(&point, &other).unwrap();
        assert!((distance - expected).abs() < 1e-9, "{distance}, expected {expected}");
        assert_eq!(frechet_distance(&point, &point).unwrap(), 0.0);
    }

    #[test]
    fn gaussian_does_not_depend_on_the_batch_size() {
        let (n, d) = (BLOCK + 300, 8);
        let values: Vec<f32> = (0..n * d).map(|i| (i as f32 * 0.37).sin() * (i % d) as f32 + 50.0).collect();
        let gather = |batch: usize| {
            let mut gaussian = Gaussian::new("noise", d);
            values.chunks(batch * d).for_each(|batch| gaussian.push_all(batch).unwrap());
            gaussian
        };
        let one = gather(1);
        for batch in [7, BLOCK, n] {
            let other = gather(batch);
            assert_eq!((one.len(), one.mean()), (other.len(), other.mean()));
            assert_eq!(one.covariance(), other.covariance());
        }
        // The covariance equals its definition.
        let (mean, covariance) = (one.mean(), one.covariance());
        for (i, j) in [(0, 0), (3, 5), (5, 3), (7, 7)] {
            let deviation = |row: &[f32], i: usize| f64::from(row[i]) - mean[i];
            let products = values.chunks(d).map(|row| deviation(row, i) * deviation(row, j));
            let expected = products.sum::<f64>() / (n as f64 - 1.0);
            assert!((covariance[(i, j)] - expected).abs() < 1e-9, "{i} {j}");
        }
    }

    #[test]
    fn fid_requires_one_vector_more_than_features() {
        let error = fid(&set(17, 16, 1.0, 0.0), &set(16, 16, 1.0, 0.0)).unwrap_err().to_string();
        assert!(error.contains("17 real and 16 drawn pictures") && error.contains("at least 17"), "{error}");
        assert!(error.contains("16 features") && error.contains("tessera eval kid"), "{error}");
        let report = fid(&set(17, 16, 1.0, 0.0), &set(18, 16, 1.0, 0.0)).unwrap();
        assert_eq!((&*report.name, report.n, &*report.features), ("FID", 18, "noise"));
        assert!(report.value > 0.0 && report.plus_minus.is_none());
    }
}
