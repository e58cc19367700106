//! The kernel inception distance (Bińkowski et al. 2018). It replaces FID for small sets of
//! pictures, because its expectation does not depend on their number.
//!
//! KID is the unbiased squared maximum mean discrepancy with the kernel `(x · y / D + 1)³`,
//! averaged over random subsets of each set: usually 100 subsets of 1,000 pictures. The error is
//! the standard deviation over subsets, as in torch-fidelity. For smaller sets the subsets are as
//! large as the smaller set, and the name of the figure states the size. KID can be slightly below
//! 0 if the two distributions are equal.

use anyhow::Result;
use rand_chacha::rand_core::Rng;

use crate::vectors::{square, sum_over_own_pairs, sum_over_pairs};
use crate::{Report, Vectors};

/// The usual number of subsets.
const SUBSETS: usize = 100;
/// The usual number of pictures in a subset.
const SUBSET: usize = 1000;

/// Returns the KID between real and generated pictures, with its standard deviation over subsets.
/// `rng` samples the subsets.
///
/// # Errors
/// If a set has fewer than two vectors, or the sets have different features.
pub fn kid(real: &Vectors, fake: &Vectors, rng: &mut impl Rng) -> Result<Report> {
    real.comparable(fake, 2)?;
    let size = SUBSET.min(real.len()).min(fake.len());
    // If a subset contains all pictures of both sets, all subsets are equal.
    let n_subsets = if size == real.len() && size == fake.len() { 1 } else { SUBSETS };
    let distances: Vec<f64> = (0..n_subsets)
        .map(|_| {
            let (real, fake) = (subset(real, size, rng), subset(fake, size, rng));
            discrepancy(&real, &fake, size)
        })
        .collect();
    let mean = distances.iter().sum::<f64>() / n_subsets as f64;
    let variance = distances.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n_subsets as f64;
    let name = match (n_subsets, size) {
        (1, _) => format!("KID, one subset of {size}"),
        (_, SUBSET) => "KID".to_string(),
        _ => format!("KID, subsets of {size}"),
    };
    Ok(Report {
        plus_minus: (n_subsets > 1).then(|| variance.sqrt()),
        features: real.features().into(),
        n_real: Some(real.len()),
        ..Report::new(&name, mean, fake.len())
    })
}

/// Samples `size` vectors of a set without replacement: `[size, D]`.
fn subset(set: &Vectors, size: usize, rng: &mut impl Rng) -> Vec<f32> {
    let n = set.len();
    let mut order: Vec<usize> = (0..n).collect();
    for i in 0..size {
        order.swap(i, i + below(n - i, rng));
    }
    order[..size].iter().flat_map(|&i| set.row(i)).copied().collect()
}

/// A random integer in `0..n`.
fn below(n: usize, rng: &mut impl Rng) -> usize {
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

/// The unbiased squared maximum mean discrepancy between two sets of `n` vectors, both `[n, D]`. It
/// excludes the pairs of a vector with itself.
fn discrepancy(x: &[f32], y: &[f32], n: usize) -> f64 {
    let dims = x.len() / n;
    let kernel = |_: usize, _: usize, product: f64| (product / dims as f64 + 1.0).powi(3);
    let diagonal = |a: &[f32]| a.chunks_exact(dims).map(|a| kernel(0, 0, square(a))).sum::<f64>();
    let within = |a: &[f32]| sum_over_own_pairs(a, dims, kernel) - diagonal(a);
    let between = sum_over_pairs(x, y, dims, kernel);
    let n = n as f64;
    (within(x) + within(y)) / (n * (n - 1.0)) - 2.0 * between / (n * n)
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    fn rng(seed: u64) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(seed)
    }

    /// Vectors `from..from + n` of a fixed noise sequence with 4 features, plus `shift`.
    fn set(n: usize, from: usize, shift: f32) -> Vectors {
        let mut set = Vectors::new("noise", 4);
        let noise = |i: usize| ((i as f32 * 12.9898).sin() * 43_758.547) % 1.0;
        set.push_all(&(from * 4..(from + n) * 4).map(|i| noise(i) + shift).collect::<Vec<f32>>()).unwrap();
        set
    }

    #[test]
    fn discrepancy_of_two_numbers_per_set_matches_the_formula() {
        // The kernel values of {0, 1} and {1, 2}: 1 within the first set, 27 within the second; 1,
        // 1, 8 and 27 between the sets.
        let expected = (2.0 * 1.0 + 2.0 * 27.0) / 2.0 - 2.0 * 37.0 / 4.0;
        assert!((discrepancy(&[0.0, 1.0], &[1.0, 2.0], 2) - expected).abs() < 1e-12);
    }

    #[test]
    fn kid_is_zero_for_equal_distributions_and_positive_if_shifted() {
        let one = kid(&set(1_500, 0, 0.0), &set(1_500, 1_500, 0.0), &mut rng(1)).unwrap();
        let (value, error) = (one.value, one.plus_minus.unwrap());
        assert!(value.abs() < 3.0 * error && error < 0.01, "{value} ± {error}");
        assert_eq!((&*one.name, one.n, &*one.features), ("KID", 1_500, "noise"));
        let shifted = kid(&set(1_500, 0, 0.0), &set(1_500, 1_500, 1.0), &mut rng(1)).unwrap().value;
        assert!(shifted > 1.0, "{shifted}");
        // KID is symmetric, except for the choice of the subsets.
        let swapped = kid(&set(1_500, 1_500, 1.0), &set(1_500, 0, 0.0), &mut rng(2)).unwrap().value;
        assert!((swapped / shifted - 1.0).abs() < 0.01, "{swapped}, {shifted}");
    }

    #[test]
    fn small_sets_have_smaller_subsets_and_the_name_says_so() {
        let single = kid(&set(30, 0, 0.0), &set(30, 90, 0.5), &mut rng(1)).unwrap();
        assert_eq!((&*single.name, single.plus_minus), ("KID, one subset of 30", None));
        let again = kid(&set(30, 0, 0.0), &set(30, 90, 0.5), &mut rng(2)).unwrap();
        assert!((single.value - again.value).abs() < 1e-12);
        let few = kid(&set(400, 0, 0.0), &set(30, 400, 0.5), &mut rng(1)).unwrap();
        assert_eq!((&*few.name, few.n), ("KID, subsets of 30", 30));
        assert_eq!(few, kid(&set(400, 0, 0.0), &set(30, 400, 0.5), &mut rng(1)).unwrap());
        assert_ne!(few, kid(&set(400, 0, 0.0), &set(30, 400, 0.5), &mut rng(2)).unwrap());
        let error = kid(&set(1, 0, 0.0), &set(9, 0, 0.0), &mut rng(1)).unwrap_err().to_string();
        assert!(error.contains("1 and 9 feature vectors; wanted at least 2"), "{error}");
    }

    #[test]
    fn subsets_are_uniform_samples_without_replacement() {
        let mut set = Vectors::new("", 1);
        set.push_all(&(0..20).map(|i| i as f32).collect::<Vec<f32>>()).unwrap();
        let mut times = [0; 20];
        let mut rng = rng(3);
        for _ in 0..2_000 {
            let mut sampled = subset(&set, 5, &mut rng);
            sampled.iter().for_each(|&i| times[i as usize] += 1);
            sampled.sort_by(f32::total_cmp);
            assert!(sampled.windows(2).all(|pair| pair[0] < pair[1]), "{sampled:?}");
        }
        // The expected count of each is 500, with a standard deviation of 19.
        assert!(times.iter().all(|&times| (400..600).contains(&times)), "{times:?}");
    }
}
