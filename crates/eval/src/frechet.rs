//! The Fréchet distance between two sets of feature vectors, each taken as a Gaussian (Heusel et al. 2017; the FID of paper §3
//! when the features are Inception's, of which there are several). A set knows whose features it holds: a distance is worth
//! nothing without.
//!
//! A set is sums, so that its memory is that of `D²` numbers however many vectors it has seen. They are added up in blocks of
//! a fixed size, whatever batches they came in.

use anyhow::{Result, anyhow, ensure};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt_pivoting::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::{Accum, Mat, MatRef, get_global_parallelism};

use crate::Report;
use crate::vectors::check;

/// Vectors that are added to the sums together, by one product of matrices.
const BLOCK: usize = 512;

/// Mean and covariance of feature vectors, gathered as they come.
#[derive(Debug, Clone)]
pub struct Gaussian {
    features: String,
    n: usize,
    /// Of statistics that others published, and so of an unknown number of vectors.
    published: bool,
    /// The first vector, subtracted from all, so that sums stay small.
    origin: Vec<f64>,
    sum: Vec<f64>,
    /// Lower triangle of the sum of products, `[D, D]`, but for what is waiting.
    products: Mat<f64>,
    /// Vectors less the origin that are not in `products` yet, `[fewer than BLOCK, D]`.
    waiting: Vec<f64>,
}

impl Gaussian {
    /// Of no vectors of `d` features, which `features` names: a network, its weights, a layer.
    pub fn new(features: &str, d: usize) -> Gaussian {
        Gaussian {
            features: features.to_string(),
            n: 0,
            published: false,
            origin: vec![0.0; d],
            sum: vec![0.0; d],
            products: Mat::zeros(d, d),
            waiting: Vec::new(),
        }
    }

    /// Of a published mean `[D]` and covariance `[D, D]`, of an unknown number of vectors.
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
        // As two vectors around the mean would have it: their sum of products is their covariance.
        let own = Gaussian::new(features, d);
        Ok(Gaussian { n: 2, published: true, origin: mean, products: covariance, ..own })
    }

    /// The vectors that it has seen, if they were counted.
    pub fn counted(&self) -> Option<usize> {
        (!self.published).then_some(self.n)
    }

    /// Whose features they are, to be reported beside every distance.
    pub fn features(&self) -> &str {
        &self.features
    }

    /// `D`
    pub fn dims(&self) -> usize {
        self.sum.len()
    }

    /// `n`, the vectors that it has seen.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether it has seen none.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Adds a vector, `[D]`.
    ///
    /// # Errors
    /// If its length is another or a feature is not finite.
    pub fn push(&mut self, features: &[f32]) -> Result<()> {
        let d = self.dims();
        ensure!(features.len() == d, "{} features; wanted {d}", features.len());
        self.push_all(features)
    }

    /// Adds vectors, `[B, D]`.
    ///
    /// # Errors
    /// If they are no whole number of vectors or a feature is not finite; none of them is added then.
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
                self.waiting.push(x);
            }
            self.n += 1;
            if self.waiting.len() == BLOCK * d {
                add_products(&mut self.products, &self.waiting);
                self.waiting.clear();
            }
        }
        Ok(())
    }

    /// `[D]`
    fn mean(&self) -> Vec<f64> {
        self.origin.iter().zip(&self.sum).map(|(origin, sum)| origin + sum / self.n as f64).collect()
    }

    /// Unbiased, `[D, D]`
    fn covariance(&self) -> Mat<f64> {
        let mut products = self.products.clone();
        add_products(&mut products, &self.waiting);
        let n = self.n as f64;
        Mat::from_fn(self.dims(), self.dims(), |i, j| {
            let product = products[(i.max(j), i.min(j))];
            let covariance = (product - self.sum[i] * self.sum[j] / n) / (n - 1.0);
            // A feature that hardly varies has a variance of 0, and not one below it by rounding.
            if i == j { covariance.max(0.0) } else { covariance }
        })
    }
}

/// Adds `xᵀ x` to the lower triangle of `products`, for vectors `x` of `[B, D]`.
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

/// The FID of drawings: [`frechet_distance`] with as many vectors as it takes for covariances of full rank.
///
/// # Errors
/// If a set has fewer than `D + 1` vectors, or the sets have other features.
pub fn fid(real: &Gaussian, fake: &Gaussian) -> Result<Report> {
    let least = real.dims() + 1;
    ensure!(
        (real.published || real.n >= least) && fake.n >= least,
        "{} and {} drawn pictures for a FID; wanted at least {least} of each, since it is refused below one more than \
         its {} features; `tessera eval kid` does with fewer",
        real.counted().map_or("published statistics".into(), |n| format!("{n} real")),
        fake.n,
        real.dims()
    );
    let value = frechet_distance(real, fake)?;
    Ok(Report { features: real.features.clone(), n_real: Some(real.n), ..Report::new("FID", value, fake.n) })
}

/// `|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁^½ Σ₂ Σ₁^½)^½)`
///
/// # Errors
/// If a set has fewer than two vectors, or the sets have other features.
pub fn frechet_distance(a: &Gaussian, b: &Gaussian) -> Result<f64> {
    ensure!(a.n > 1 && b.n > 1, "{} and {} feature vectors; wanted at least 2", a.n, b.n);
    ensure!(a.dims() == b.dims(), "{} features and {}", a.dims(), b.dims());
    ensure!(a.features == b.features, "features of {} and of {} have no distance", a.features, b.features);
    let apart: f64 = a.mean().iter().zip(b.mean()).map(|(a, b)| (a - b).powi(2)).sum();
    let (first, second) = (a.covariance(), b.covariance());
    Ok(apart + trace(&first) + trace(&second) - 2.0 * shared(first, second)?)
}

/// `tr (Σ₁^½ Σ₂ Σ₁^½)^½`: the sum of the singular values of `Aᵀ B`, for any `A Aᵀ = Σ₁` and `B Bᵀ = Σ₂`. As a sum of the roots of
/// eigenvalues it would be wrong by the root of their rounding wherever those are 0.
fn shared(first: Mat<f64>, second: Mat<f64>) -> Result<f64> {
    let product = factor(first)?.transpose() * factor(second)?;
    let values = product.singular_values().map_err(|error| anyhow!("no singular values: {error:?}"))?;
    Ok(values.into_iter().sum())
}

fn trace(x: &Mat<f64>) -> f64 {
    (0..x.nrows()).map(|i| x[(i, i)]).sum()
}

/// `A` with `A Aᵀ = x`, `[D, rank]`, of a covariance: Cholesky's, taking the largest pivot left until none is but rounding.
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

    /// What [`shared`] is by definition, with square roots of matrices from their eigenvectors.
    fn shared_by_roots(first: &Mat<f64>, second: &Mat<f64>) -> f64 {
        let root = |x: &Mat<f64>| {
            let found = x.self_adjoint_eigen(Side::Lower).unwrap();
            let values: Vec<f64> = found.S().column_vector().iter().map(|value| value.max(0.0)).collect();
            let vectors = found.U();
            let scaled = Mat::from_fn(x.nrows(), x.nrows(), |i, j| vectors[(i, j)] * values[j].sqrt());
            &scaled * vectors.transpose()
        };
        (root(first) * root(second)).singular_values().unwrap().into_iter().sum()
    }

    /// `n` vectors of `d` features, spread and moved.
    fn set(n: usize, d: usize, spread: f32, moved: f32) -> Gaussian {
        let mut gaussian = Gaussian::new("noise", d);
        for i in 0..n {
            let noise = |j: usize| ((i * d + j) as f32 * 12.9898).sin() * 43_758.547 % 1.0;
            let feature = |j: usize| noise(j) * spread * (j + 1) as f32 + moved;
            gaussian.push(&(0..d).map(feature).collect::<Vec<f32>>()).unwrap();
        }
        gaussian
    }

    #[test]
    fn a_set_is_no_distance_from_itself() {
        // The second has fewer vectors than features, and so a covariance without full rank.
        for a in [set(500, 16, 1.0, 100.0), set(10, 16, 1.0, 100.0)] {
            let distance = frechet_distance(&a, &a).unwrap();
            assert!(distance.abs() < 1e-6, "{distance}");
        }
    }

    #[test]
    fn sets_apart_are_as_far_as_their_means_and_spreads_say() {
        // The same vectors moved by 2 in each of 16 features; and spread three times, where roots of covariances commute.
        let moved = frechet_distance(&set(500, 16, 1.0, 0.0), &set(500, 16, 1.0, 2.0)).unwrap();
        assert!((moved - 64.0).abs() < 1e-4, "{moved}");
        let (one, three) = (set(500, 16, 1.0, 0.0), set(500, 16, 3.0, 0.0));
        let means: f64 = one.mean().iter().map(|mean| (2.0 * mean).powi(2)).sum();
        let wanted = means + 4.0 * trace(&one.covariance());
        let spread = frechet_distance(&one, &three).unwrap();
        assert!((spread / wanted - 1.0).abs() < 1e-5, "{spread}, wanted {wanted}");
    }

    /// Inception's weights of 2015 and torchvision's give other distances (paper §3, by DM-GAN's code).
    #[test]
    fn a_set_says_whose_features_it_holds_and_is_compared_with_no_others() {
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
    fn sets_that_do_not_fit_are_refused() {
        let error = |a: &Gaussian, b: &Gaussian| frechet_distance(a, b).unwrap_err().to_string();
        assert!(error(&set(1, 4, 1.0, 0.0), &set(9, 4, 1.0, 0.0)).contains("wanted at least 2"));
        assert!(error(&set(9, 4, 1.0, 0.0), &set(9, 5, 1.0, 0.0)).contains("4 features and 5"));
        assert!(
            Gaussian::new("", 2).push(&[1.0]).is_err() && Gaussian::new("", 1).push(&[f32::NAN]).is_err()
        );
    }

    #[test]
    fn factors_give_what_square_roots_give() {
        // Of full rank; with fewer vectors than features, on one side and on both; and with features that do not vary.
        let still = |n| {
            let mut gaussian = Gaussian::new("noise", 16);
            (0..n).for_each(|i| gaussian.push(&[(i as f32).cos(); 16]).unwrap());
            gaussian
        };
        let sets = [set(500, 16, 1.0, 0.0), set(9, 16, 2.0, 1.0), set(7, 16, 1.0, 3.0), still(50)];
        for a in &sets {
            for b in &sets {
                let (a, b) = (a.covariance(), b.covariance());
                let (got, wanted) = (shared(a.clone(), b.clone()).unwrap(), shared_by_roots(&a, &b));
                assert!((got - wanted).abs() < 1e-6 * trace(&a).max(trace(&b)), "{got}, wanted {wanted}");
            }
        }
    }

    #[test]
    fn vectors_that_are_all_alike_are_a_point() {
        let mut point = Gaussian::new("noise", 16);
        point.push_all(&[0.1; 16 * 5]).unwrap();
        let other = set(500, 16, 1.0, 0.1);
        let wanted: f64 = trace(&other.covariance())
            + other.mean().iter().map(|mean| (mean - f64::from(0.1_f32)).powi(2)).sum::<f64>();
        let distance = frechet_distance(&point, &other).unwrap();
        assert!((distance - wanted).abs() < 1e-9, "{distance}, wanted {wanted}");
        assert_eq!(frechet_distance(&point, &point).unwrap(), 0.0);
    }

    #[test]
    fn batches_of_any_size_are_the_same_vectors() {
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
        // And they are the covariance by its definition.
        let (mean, covariance) = (one.mean(), one.covariance());
        for (i, j) in [(0, 0), (3, 5), (5, 3), (7, 7)] {
            let off = |row: &[f32], i: usize| f64::from(row[i]) - mean[i];
            let products = values.chunks(d).map(|row| off(row, i) * off(row, j));
            let wanted = products.sum::<f64>() / (n as f64 - 1.0);
            assert!((covariance[(i, j)] - wanted).abs() < 1e-9, "{i} {j}");
        }
    }

    #[test]
    fn a_fid_takes_one_vector_more_than_features() {
        let error = fid(&set(17, 16, 1.0, 0.0), &set(16, 16, 1.0, 0.0)).unwrap_err().to_string();
        assert!(error.contains("17 real and 16 drawn pictures") && error.contains("at least 17"), "{error}");
        assert!(error.contains("16 features") && error.contains("tessera eval kid"), "{error}");
        let report = fid(&set(17, 16, 1.0, 0.0), &set(18, 16, 1.0, 0.0)).unwrap();
        assert_eq!((&*report.name, report.n, &*report.features), ("FID", 18, "noise"));
        assert!(report.value > 0.0 && report.plus_minus.is_none());
    }
}
