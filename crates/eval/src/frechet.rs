//! The Fréchet distance between two sets of feature vectors, each taken as a Gaussian (Heusel et al. 2017; the FID of paper §3
//! when the features are Inception's, of which there are several). A set knows whose features it holds: a distance is worth
//! nothing without.

use anyhow::{Result, anyhow, ensure};
use faer::{Mat, Side};

/// Mean and covariance of feature vectors, gathered one at a time.
#[derive(Debug, Clone)]
pub struct Gaussian {
    features: String,
    n: usize,
    /// The first vector, subtracted from all, so that sums stay small.
    origin: Vec<f64>,
    sum: Vec<f64>,
    /// Lower triangle of the sum of products, `[D, D]`.
    products: Mat<f64>,
}

impl Gaussian {
    /// Of no vectors of `d` features, which `features` names: a network, its weights, a layer.
    pub fn new(features: &str, d: usize) -> Gaussian {
        Gaussian {
            features: features.to_string(),
            n: 0,
            origin: vec![0.0; d],
            sum: vec![0.0; d],
            products: Mat::zeros(d, d),
        }
    }

    /// Whose features they are, to be reported beside every distance.
    pub fn features(&self) -> &str {
        &self.features
    }

    /// Adds a vector.
    ///
    /// # Errors
    /// If its length is another or a feature is not finite.
    pub fn push(&mut self, features: &[f32]) -> Result<()> {
        let d = self.sum.len();
        ensure!(features.len() == d, "{} features; wanted {d}", features.len());
        ensure!(features.iter().all(|value| value.is_finite()), "a feature is not finite");
        if self.n == 0 {
            self.origin = features.iter().map(|&value| f64::from(value)).collect();
        }
        let x: Vec<f64> =
            features.iter().zip(&self.origin).map(|(&x, origin)| f64::from(x) - origin).collect();
        for (j, &y) in x.iter().enumerate() {
            self.sum[j] += y;
            (j..d).for_each(|i| self.products[(i, j)] += x[i] * y);
        }
        self.n += 1;
        Ok(())
    }

    /// `[D]`
    fn mean(&self) -> Vec<f64> {
        self.origin.iter().zip(&self.sum).map(|(origin, sum)| origin + sum / self.n as f64).collect()
    }

    /// Unbiased, `[D, D]`
    fn covariance(&self) -> Mat<f64> {
        let n = self.n as f64;
        Mat::from_fn(self.sum.len(), self.sum.len(), |i, j| {
            let product = self.products[(i.max(j), i.min(j))];
            (product - self.sum[i] * self.sum[j] / n) / (n - 1.0)
        })
    }
}

/// `|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁^½ Σ₂ Σ₁^½)^½)`
///
/// # Errors
/// If a set has fewer than two vectors, or the sets have other features.
pub fn frechet_distance(a: &Gaussian, b: &Gaussian) -> Result<f64> {
    ensure!(a.n > 1 && b.n > 1, "{} and {} feature vectors; wanted at least 2", a.n, b.n);
    ensure!(a.sum.len() == b.sum.len(), "{} features and {}", a.sum.len(), b.sum.len());
    ensure!(a.features == b.features, "features of {} and of {} have no distance", a.features, b.features);
    let apart: f64 = a.mean().iter().zip(b.mean()).map(|(a, b)| (a - b).powi(2)).sum();
    let (first, second) = (a.covariance(), b.covariance());
    // The singular values of Σ₁^½ Σ₂^½ are the roots of the eigenvalues of Σ₁^½ Σ₂ Σ₁^½, but exact also where those are 0.
    let roots = square_root(&first)? * square_root(&second)?;
    let values = roots.singular_values().map_err(|error| anyhow!("no singular values: {error:?}"))?;
    let shared: f64 = values.into_iter().sum();
    Ok(apart + trace(&first) + trace(&second) - 2.0 * shared)
}

fn trace(x: &Mat<f64>) -> f64 {
    (0..x.nrows()).map(|i| x[(i, i)]).sum()
}

/// Eigenvectors and eigenvalues of a covariance; those below 0 by rounding are 0.
fn eigen(x: &Mat<f64>) -> Result<(Mat<f64>, Vec<f64>)> {
    let found = x.self_adjoint_eigen(Side::Lower).map_err(|error| anyhow!("no eigenvalues: {error:?}"))?;
    let values = found.S().column_vector().iter().map(|value| value.max(0.0)).collect();
    Ok((found.U().to_owned(), values))
}

fn square_root(x: &Mat<f64>) -> Result<Mat<f64>> {
    let (vectors, values) = eigen(x)?;
    let scaled = Mat::from_fn(vectors.nrows(), vectors.ncols(), |i, j| vectors[(i, j)] * values[j].sqrt());
    Ok(&scaled * vectors.transpose())
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
