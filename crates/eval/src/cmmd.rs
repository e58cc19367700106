//! CMMD (Jayasumana et al. 2024): the distance between two sets of pictures on the embeddings of a
//! contrastive model. It makes no assumption about the distributions and is stable for small sets.
//!
//! CMMD is the biased squared maximum mean discrepancy with the kernel `exp(−‖x − y‖² / 2σ²)`,
//! `σ = 10`, of embeddings of length 1, times 1,000. All kernel values are between 0.98 and 1, so
//! the code sums the kernel minus 1 to avoid cancellation.

use anyhow::Result;

use crate::vectors::{square, sum_over_own_pairs, sum_over_pairs, unit};
use crate::{Report, Vectors};

/// `1 / 2σ²`, with the σ of the paper and of its code.
const GAMMA: f64 = 1.0 / (2.0 * 10.0 * 10.0);
/// The factor that makes the discrepancy readable.
const SCALE: f64 = 1000.0;

/// Returns the CMMD between real and generated pictures.
///
/// # Errors
/// If a set is empty or contains an embedding of length 0, or the sets have different features.
pub fn cmmd(real: &Vectors, fake: &Vectors) -> Result<Report> {
    real.comparable(fake, 1)?;
    let dims = real.dims();
    let (x, y) = (unit(real.values(), dims)?, unit(fake.values(), dims)?);
    let (x_squares, y_squares) = (squares(&x, dims), squares(&y, dims));
    let (n, m) = (x_squares.len() as f64, y_squares.len() as f64);
    let within = |a: &[f32], squares: &[f64]| {
        sum_over_own_pairs(a, dims, |i, j, product| kernel_minus_1(squares[i] + squares[j] - 2.0 * product))
    };
    let between = sum_over_pairs(&x, &y, dims, |i, j, product| {
        kernel_minus_1(x_squares[i] + y_squares[j] - 2.0 * product)
    });
    let value = within(&x, &x_squares) / (n * n) + within(&y, &y_squares) / (m * m) - 2.0 * between / (n * m);
    Ok(Report {
        features: real.features().into(),
        n_real: Some(real.len()),
        ..Report::new("CMMD", SCALE * value, fake.len())
    })
}

/// The squared length of each vector: 1, except for rounding.
fn squares(vectors: &[f32], dims: usize) -> Vec<f64> {
    vectors.chunks_exact(dims).map(square).collect()
}

/// The kernel of a squared distance, minus 1. It sums the first six terms of the Taylor series,
/// which give full f64 precision for the squared distances that occur, 0 to 4. This takes a tenth
/// of the time of `exp_m1`.
fn kernel_minus_1(squared_distance: f64) -> f64 {
    let x = -GAMMA * squared_distance;
    let horner = |next: f64, n: f64| 1.0 + x / n * next;
    x * [6.0, 5.0, 4.0, 3.0, 2.0].into_iter().fold(1.0, horner)
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
    fn kernel_minus_1_equals_exp_m1() {
        for i in 0..=400 {
            let squared = f64::from(i) / 100.0;
            let (got, expected) = (kernel_minus_1(squared), (-squared / 200.0).exp_m1());
            assert!((got - expected).abs() <= 1e-13 * expected.abs(), "{got}, expected {expected}");
        }
    }

    #[test]
    fn cmmd_of_points_on_a_circle_matches_the_formula() {
        // Squared distances on the unit circle: 2 for a right angle, 4 for opposite points.
        let (right_angle, opposite) = ((-2.0_f64 / 200.0).exp(), (-4.0_f64 / 200.0).exp());
        let expected = 2.0 * 1000.0 * (1.0 - opposite);
        assert!((value(&[1.0, 0.0], &[-1.0, 0.0]) - expected).abs() < 1e-9);
        // {east, west} and {north}: ½ (1 + opposite) + 1 − 2 right_angle.
        let expected = 1000.0 * (0.5 * (1.0 + opposite) + 1.0 - 2.0 * right_angle);
        assert!((value(&[1.0, 0.0, -1.0, 0.0], &[0.0, 1.0]) - expected).abs() < 1e-9);
    }

    #[test]
    fn cmmd_is_symmetric_scale_invariant_and_zero_for_equal_sets() {
        let circle = |n: usize, scale: f32| -> Vec<f32> {
            (0..n).flat_map(|i| [(i as f32).cos() * scale, (i as f32).sin() * scale]).collect()
        };
        let (one, other) = (circle(1_300, 1.0), circle(7, 1.0));
        assert!(value(&one, &one).abs() < 1e-9);
        let distance = value(&one, &other);
        assert!(distance > 0.0);
        assert!((value(&circle(1_300, 9.0), &circle(7, 0.3)) - distance).abs() < 1e-5);
        assert!((value(&other, &one) - distance).abs() < 1e-9);
    }

    #[test]
    fn empty_sets_and_zero_embeddings_are_refused() {
        let error = |real: &[f32], fake: &[f32]| cmmd(&set(real), &set(fake)).unwrap_err().to_string();
        assert!(error(&[1.0; 2], &[]).contains("1 and 0 feature vectors; wanted at least 1"));
        assert!(error(&[1.0; 2], &[0.0; 2]).contains("a length of 0"));
    }
}
