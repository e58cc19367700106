//! The kernel inception distance (Bińkowski et al. 2018): what stands in for the FID where pictures are few, since its expectation
//! does not depend on their number.
//!
//! It is the unbiased squared maximum mean discrepancy with the kernel `(x · y / D + 1)³`, averaged over random subsets of 1,000
//! pictures a side, 100 of them by custom; the error is the deviation over subsets, as in torch-fidelity. Sets with fewer pictures
//! are drawn from as far as they go, and the report says so. It may be a little below 0 for sets that are alike.

use anyhow::Result;
use rand_chacha::rand_core::Rng;

use crate::vectors::{square, sum_over_own_pairs, sum_over_pairs};
use crate::{Report, Vectors};

/// Subsets, by custom.
const SUBSETS: usize = 100;
/// Pictures of a subset on either side, by custom.
const SUBSET: usize = 1000;

/// The distance of drawn pictures from real ones, with its deviation over subsets, which `rng` draws.
///
/// # Errors
/// If a set has fewer than two vectors, or the sets have other features.
pub fn kid(real: &Vectors, fake: &Vectors, rng: &mut impl Rng) -> Result<Report> {
    real.comparable(fake, 2)?;
    let size = SUBSET.min(real.len()).min(fake.len());
    // All subsets are the same if they are all there is.
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

/// `size` vectors of a set, each at most once, `[size, D]`.
fn subset(set: &Vectors, size: usize, rng: &mut impl Rng) -> Vec<f32> {
    let n = set.len();
    let mut order: Vec<usize> = (0..n).collect();
    for i in 0..size {
        order.swap(i, i + below(n - i, rng));
    }
    order[..size].iter().flat_map(|&i| set.row(i)).copied().collect()
}

/// A whole number below `n`.
fn below(n: usize, rng: &mut impl Rng) -> usize {
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

/// The unbiased squared discrepancy of `n` vectors from `n` others, both `[n, D]`: pairs of a vector with itself are left out.
fn discrepancy(x: &[f32], y: &[f32], n: usize) -> f64 {
    let dims = x.len() / n;
    let kernel = |_: usize, _: usize, product: f64| (product / dims as f64 + 1.0).powi(3);
    let with_itself = |a: &[f32]| a.chunks_exact(dims).map(|a| kernel(0, 0, square(a))).sum::<f64>();
    let others = |a: &[f32]| sum_over_own_pairs(a, dims, kernel) - with_itself(a);
    let across = sum_over_pairs(x, y, dims, kernel);
    let n = n as f64;
    (others(x) + others(y)) / (n * (n - 1.0)) - 2.0 * across / (n * n)
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    fn rng(seed: u64) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(seed)
    }

    /// `n` vectors of 4 features, moved.
    fn set(n: usize, from: usize, moved: f32) -> Vectors {
        let mut set = Vectors::new("noise", 4);
        let noise = |i: usize| ((i as f32 * 12.9898).sin() * 43_758.547) % 1.0;
        set.push_all(&(from * 4..(from + n) * 4).map(|i| noise(i) + moved).collect::<Vec<f32>>()).unwrap();
        set
    }

    #[test]
    fn two_numbers_a_side_by_hand() {
        // Kernels of {0, 1} and {1, 2}: 1 within the first, 27 within the second, 1, 1, 8 and 27 across.
        let wanted = (2.0 * 1.0 + 2.0 * 27.0) / 2.0 - 2.0 * 37.0 / 4.0;
        assert!((discrepancy(&[0.0, 1.0], &[1.0, 2.0], 2) - wanted).abs() < 1e-12);
    }

    #[test]
    fn halves_of_one_set_are_no_distance_apart_and_moved_ones_are() {
        let one = kid(&set(1_500, 0, 0.0), &set(1_500, 1_500, 0.0), &mut rng(1)).unwrap();
        let (value, error) = (one.value, one.plus_minus.unwrap());
        assert!(value.abs() < 3.0 * error && error < 0.01, "{value} ± {error}");
        assert_eq!((&*one.name, one.n, &*one.features), ("KID", 1_500, "noise"));
        let moved = kid(&set(1_500, 0, 0.0), &set(1_500, 1_500, 1.0), &mut rng(1)).unwrap().value;
        assert!(moved > 1.0, "{moved}");
        // A distance is the same from either side but for the subsets.
        let back = kid(&set(1_500, 1_500, 1.0), &set(1_500, 0, 0.0), &mut rng(2)).unwrap().value;
        assert!((back / moved - 1.0).abs() < 0.01, "{back}, {moved}");
    }

    #[test]
    fn few_pictures_do_and_the_report_says_how_few() {
        let whole = kid(&set(30, 0, 0.0), &set(30, 90, 0.5), &mut rng(1)).unwrap();
        assert_eq!((&*whole.name, whole.plus_minus), ("KID, one subset of 30", None));
        let again = kid(&set(30, 0, 0.0), &set(30, 90, 0.5), &mut rng(2)).unwrap();
        assert!((whole.value - again.value).abs() < 1e-12);
        let few = kid(&set(400, 0, 0.0), &set(30, 400, 0.5), &mut rng(1)).unwrap();
        assert_eq!((&*few.name, few.n), ("KID, subsets of 30", 30));
        assert_eq!(few, kid(&set(400, 0, 0.0), &set(30, 400, 0.5), &mut rng(1)).unwrap());
        assert_ne!(few, kid(&set(400, 0, 0.0), &set(30, 400, 0.5), &mut rng(2)).unwrap());
        let error = kid(&set(1, 0, 0.0), &set(9, 0, 0.0), &mut rng(1)).unwrap_err().to_string();
        assert!(error.contains("1 and 9 feature vectors; wanted at least 2"), "{error}");
    }

    #[test]
    fn a_subset_holds_nothing_twice_and_anything_once_in_a_while() {
        let mut set = Vectors::new("", 1);
        set.push_all(&(0..20).map(|i| i as f32).collect::<Vec<f32>>()).unwrap();
        let mut times = [0; 20];
        let mut rng = rng(3);
        for _ in 0..2_000 {
            let mut drawn = subset(&set, 5, &mut rng);
            drawn.iter().for_each(|&i| times[i as usize] += 1);
            drawn.sort_by(f32::total_cmp);
            assert!(drawn.windows(2).all(|pair| pair[0] < pair[1]), "{drawn:?}");
        }
        // 500 expected each, with a deviation of 19.
        assert!(times.iter().all(|&times| (400..600).contains(&times)), "{times:?}");
    }
}
