//! CMMD (Jayasumana et al. 2024): the distance of two sets by the embeddings of a contrastive model, which assumes no shape of the
//! sets and is steady with few pictures.
//!
//! It is the biased squared maximum mean discrepancy with the kernel `exp(−‖x − y‖² / 2σ²)`, `σ = 10`, of embeddings at a length of 1,
//! times 1,000. Kernels are all between 0.98 and 1 then, so that what they lack of 1 is summed instead.

use anyhow::Result;

use crate::vectors::{square, sum_over_own_pairs, sum_over_pairs, unit};
use crate::{Report, Vectors};

/// `1 / 2σ²`, for the σ of the paper and of its code.
const GAMMA: f64 = 1.0 / (2.0 * 10.0 * 10.0);
/// What the discrepancy is multiplied by to be readable.
const SCALE: f64 = 1000.0;

/// The distance of drawn pictures from real ones.
///
/// # Errors
/// If a set is empty or holds an embedding of 0, or the sets have other features.
pub fn cmmd(real: &Vectors, fake: &Vectors) -> Result<Report> {
    real.comparable(fake, 1)?;
    let dims = real.dims();
    let (x, y) = (unit(real.values(), dims)?, unit(fake.values(), dims)?);
    let (of_x, of_y) = (squares(&x, dims), squares(&y, dims));
    let (n, m) = (of_x.len() as f64, of_y.len() as f64);
    let own = |a: &[f32], of_a: &[f64]| {
        sum_over_own_pairs(a, dims, |i, j, product| lack(of_a[i] + of_a[j] - 2.0 * product))
    };
    let across = sum_over_pairs(&x, &y, dims, |i, j, product| lack(of_x[i] + of_y[j] - 2.0 * product));
    let value = own(&x, &of_x) / (n * n) + own(&y, &of_y) / (m * m) - 2.0 * across / (n * m);
    Ok(Report {
        features: real.features().into(),
        n_real: Some(real.len()),
        ..Report::new("CMMD", SCALE * value, fake.len())
    })
}

/// Squared length of each vector, which is 1 but for rounding.
fn squares(vectors: &[f32], dims: usize) -> Vec<f64> {
    vectors.chunks_exact(dims).map(square).collect()
}

/// The kernel of a squared distance, less 1: the first six terms of the series, which for the 0 to 4 that occur are all that
/// f64 holds, and a tenth of the work of `exp_m1`.
fn lack(squared_distance: f64) -> f64 {
    let x = -GAMMA * squared_distance;
    let rest = |next: f64, n: f64| 1.0 + x / n * next;
    x * [6.0, 5.0, 4.0, 3.0, 2.0].into_iter().fold(1.0, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(values: &[f32]) -> Vectors {
        let mut set = Vectors::new("a contrastive model", 2);
        set.push_all(values).unwrap();
        set
    }

    fn value(real: &[f32], fake: &[f32]) -> f64 {
        cmmd(&set(real), &set(fake)).unwrap().value
    }

    #[test]
    fn the_series_is_the_exponential() {
        for i in 0..=400 {
            let squared = f64::from(i) / 100.0;
            let (got, wanted) = (lack(squared), (-squared / 200.0).exp_m1());
            assert!((got - wanted).abs() <= 1e-13 * wanted.abs(), "{got}, wanted {wanted}");
        }
    }

    #[test]
    fn points_apart_by_hand() {
        // Squared distances on the circle are 2 for a right angle, 4 across.
        let across = 2.0 * 1000.0 * (1.0 - (-4.0_f64 / 200.0).exp());
        assert!((value(&[1.0, 0.0], &[-1.0, 0.0]) - across).abs() < 1e-9);
        let (right, whole) = ((-2.0_f64 / 200.0).exp(), (-4.0_f64 / 200.0).exp());
        // {east, west} and {north}: ½ (1 + whole) + 1 − 2 right.
        let wanted = 1000.0 * (0.5 * (1.0 + whole) + 1.0 - 2.0 * right);
        assert!((value(&[1.0, 0.0, -1.0, 0.0], &[0.0, 1.0]) - wanted).abs() < 1e-9);
    }

    #[test]
    fn lengths_and_order_do_not_matter_and_a_set_is_no_distance_from_itself() {
        let circle = |n: usize, scale: f32| -> Vec<f32> {
            (0..n).flat_map(|i| [(i as f32).cos() * scale, (i as f32).sin() * scale]).collect()
        };
        let (one, other) = (circle(1_300, 1.0), circle(7, 1.0));
        assert!(value(&one, &one).abs() < 1e-9);
        let apart = value(&one, &other);
        assert!(apart > 0.0);
        assert!((value(&circle(1_300, 9.0), &circle(7, 0.3)) - apart).abs() < 1e-5);
        assert!((value(&other, &one) - apart).abs() < 1e-9);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let error = |real: &[f32], fake: &[f32]| cmmd(&set(real), &set(fake)).unwrap_err().to_string();
        assert!(error(&[1.0; 2], &[]).contains("1 and 0 feature vectors; wanted at least 1"));
        assert!(error(&[1.0; 2], &[0.0; 2]).contains("a length of 0"));
    }
}
