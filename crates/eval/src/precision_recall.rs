//! Improved precision and recall (Kynkäänniemi et al. 2019): the fraction of generated pictures
//! that could be real, and the fraction of real pictures that could be generated. A single distance
//! does not distinguish the two.
//!
//! The manifold of a set is the union of balls around its vectors. The radius of a ball is the
//! distance to the vector's third nearest neighbour in the same set. The distances of all pairs are
//! never in memory together.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use rayon::prelude::*;

use crate::vectors::{Block, for_blocks, square};
use crate::{Report, Vectors};

/// The nearest neighbour that determines the radius of a ball (§3 of their paper).
const NEIGHBOUR: usize = 3;
/// Squared distances are differences of squared lengths. Results below this fraction of the squared
/// lengths are rounding errors.
const ROUNDING: f64 = 1e-12;

/// Returns precision, the fraction of generated pictures in the manifold of the real ones, and
/// recall, the fraction of real pictures in the manifold of the generated ones.
///
/// # Errors
/// If a set has fewer than four vectors, or the sets have different features.
pub fn precision_recall(real: &Vectors, fake: &Vectors) -> Result<[Report; 2]> {
    real.comparable(fake, NEIGHBOUR + 1)?;
    let dims = real.dims();
    let (real_squares, fake_squares) = (squares(real), squares(fake));
    let (real_radii, fake_radii) = (radii(real, &real_squares), radii(fake, &fake_squares));
    let flags = |n: usize| (0..n).map(|_| AtomicBool::new(false)).collect::<Vec<AtomicBool>>();
    let (precise, recalled) = (flags(fake.len()), flags(real.len()));
    for_blocks(fake.values(), real.values(), dims, |block: Block<'_, f64>| {
        block.products.par_chunks(block.width).enumerate().for_each(|(i, row)| {
            let i = block.row + i;
            for (j, &product) in row.iter().enumerate() {
                let j = block.column + j;
                let distance = squared_distance(fake_squares[i], real_squares[j], product);
                if distance <= real_radii[j] {
                    precise[i].store(true, Ordering::Relaxed);
                }
                if distance <= fake_radii[i] {
                    recalled[j].store(true, Ordering::Relaxed);
                }
            }
        });
    });
    let report = |name: &str, flags: &[AtomicBool]| {
        let set = flags.iter().filter(|flag| flag.load(Ordering::Relaxed)).count();
        let share = set as f64 / flags.len() as f64;
        let n_real = Some(real.len());
        Report { n_real, features: real.features().into(), ..Report::new(name, share, fake.len()) }
    };
    Ok([report("precision", &precise), report("recall", &recalled)])
}

/// The squared length of each vector, `[n]`.
fn squares(set: &Vectors) -> Vec<f64> {
    set.values().chunks_exact(set.dims()).map(square).collect()
}

/// The squared distance of two vectors, from their squared lengths and their inner product.
fn squared_distance(a: f64, b: f64, product: f64) -> f64 {
    let distance = a + b - 2.0 * product;
    if distance > ROUNDING * (a + b) { distance } else { 0.0 }
}

/// The squared radius of the ball around each vector, `[n]`.
fn radii(set: &Vectors, squares: &[f64]) -> Vec<f64> {
    // One element more than neighbours, because the nearest vector is the vector itself.
    let mut nearest = vec![[f64::INFINITY; NEIGHBOUR + 1]; set.len()];
    for_blocks(set.values(), set.values(), set.dims(), |block: Block<'_, f64>| {
        let rows = block.products.par_chunks(block.width).zip(&mut nearest[block.row..]);
        rows.enumerate().for_each(|(i, (row, nearest))| {
            let row_square = squares[block.row + i];
            for (&product, &column_square) in row.iter().zip(&squares[block.column..]) {
                insert(nearest, squared_distance(row_square, column_square, product));
            }
        });
    });
    nearest.iter().map(|nearest| nearest[NEIGHBOUR]).collect()
}

/// Inserts a distance into the sorted list of the smallest distances, if it is one of them.
fn insert(nearest: &mut [f64; NEIGHBOUR + 1], distance: f64) {
    if distance >= nearest[NEIGHBOUR] {
        return;
    }
    let place = nearest.iter().position(|&other| distance < other).unwrap_or(NEIGHBOUR);
    nearest[place..].rotate_right(1);
    nearest[place] = distance;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(real: &[f32], fake: &[f32]) -> (f64, f64) {
        let [precision, recall] = precision_recall(&Vectors::of(real, 1), &Vectors::of(fake, 1)).unwrap();
        (precision.value, recall.value)
    }

    #[test]
    fn precision_and_recall_of_numbers_match_the_definition() {
        // The radii of the real vectors are 3, 2, 2 and 3, so they cover -3 to 6. The radii of the
        // generated vectors 1, 2, 3 and 100 are 99, 98, 97 and 99.
        let (real, fake) = ([0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 100.0]);
        assert_eq!(shares(&real, &fake), (0.75, 1.0));
        assert_eq!(shares(&fake, &real), (1.0, 0.75));
        // A ball includes its boundary: 6 is at distance 3 from 3, and 6.5 is outside.
        assert_eq!(shares(&real, &[6.0, 6.5, 7.0, 7.5]).0, 0.25);
    }

    #[test]
    fn subset_of_the_real_pictures_has_precision_1_and_low_recall() {
        let line = |from: usize, n: usize| (from..from + n).map(|i| i as f32).collect::<Vec<f32>>();
        let (real, fake) = (line(0, 2_000), line(0, 500));
        // The ball of the last generated vector covers the next three real ones. No other ball
        // reaches further.
        assert_eq!(shares(&real, &fake), (1.0, 503.0 / 2_000.0));
        assert_eq!(shares(&real, &line(9_000, 500)), (0.0, 0.0));
    }

    #[test]
    fn equal_vectors_have_balls_of_radius_0() {
        // Five copies of a vector whose squared length is rounded.
        let same = [0.1, 0.7, -0.3].repeat(5);
        let near = same.iter().map(|x| x + 1e-3).collect::<Vec<f32>>();
        let values = |a: &[f32], b: &[f32]| {
            precision_recall(&Vectors::of(a, 3), &Vectors::of(b, 3)).unwrap().map(|report| report.value)
        };
        assert_eq!(values(&same, &same), [1.0, 1.0]);
        assert_eq!(values(&same, &near), [0.0, 0.0]);
    }

    #[test]
    fn sets_of_fewer_than_four_vectors_are_refused() {
        let error =
            precision_recall(&Vectors::of(&[1.0; 3], 1), &Vectors::of(&[1.0; 9], 1)).unwrap_err().to_string();
        assert!(error.contains("3 and 9 feature vectors; wanted at least 4"), "{error}");
        let reports = precision_recall(&Vectors::of(&[1.0; 5], 1), &Vectors::of(&[1.0; 4], 1)).unwrap();
        assert_eq!(
            reports.map(|report| (report.name, report.n, report.n_real)),
            [("precision".into(), 4, Some(5)), ("recall".into(), 4, Some(5))]
        );
    }
}
