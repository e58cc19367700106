//! Improved precision and recall (Kynkäänniemi et al. 2019): how much of what is drawn could be real, and how much of what is real
//! could be drawn, which a single distance does not tell apart.
//!
//! A set covers what lies within the ball of one of its vectors, whose radius is the distance to that vector's third neighbour among
//! its own. Distances are never all in memory.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use rayon::prelude::*;

use crate::vectors::{Block, for_blocks, square};
use crate::{Report, Vectors};

/// The neighbour that a ball reaches to (§3 there).
const NEIGHBOUR: usize = 3;
/// Squared distances are differences of squares; what is less than this share of them is rounding.
const ROUNDING: f64 = 1e-12;

/// Precision, the share of drawn pictures among the real; and recall, the share of real pictures among the drawn.
///
/// # Errors
/// If a set has fewer than four vectors, or the sets have other features.
pub fn precision_recall(real: &Vectors, fake: &Vectors) -> Result<[Report; 2]> {
    real.comparable(fake, NEIGHBOUR + 1)?;
    let dims = real.dims();
    let (of_real, of_fake) = (squares(real), squares(fake));
    let (around_real, around_fake) = (radii(real, &of_real), radii(fake, &of_fake));
    let flags = |n: usize| (0..n).map(|_| AtomicBool::new(false)).collect::<Vec<AtomicBool>>();
    let (precise, recalled) = (flags(fake.len()), flags(real.len()));
    for_blocks(fake.values(), real.values(), dims, |block: Block<'_, f64>| {
        block.products.par_chunks(block.width).enumerate().for_each(|(i, row)| {
            let i = block.row + i;
            for (j, &product) in row.iter().enumerate() {
                let j = block.column + j;
                let apart = distance(of_fake[i], of_real[j], product);
                if apart <= around_real[j] {
                    precise[i].store(true, Ordering::Relaxed);
                }
                if apart <= around_fake[i] {
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

/// Squared length of each vector, `[n]`.
fn squares(set: &Vectors) -> Vec<f64> {
    set.values().chunks_exact(set.dims()).map(square).collect()
}

/// Squared distance of two vectors by their squared lengths and their product.
fn distance(a: f64, b: f64, product: f64) -> f64 {
    let apart = a + b - 2.0 * product;
    if apart > ROUNDING * (a + b) { apart } else { 0.0 }
}

/// Squared distance of each vector to its third neighbour in its set, `[n]`.
fn radii(set: &Vectors, squares: &[f64]) -> Vec<f64> {
    // The closest of all is the vector itself.
    let mut nearest = vec![[f64::INFINITY; NEIGHBOUR + 1]; set.len()];
    for_blocks(set.values(), set.values(), set.dims(), |block: Block<'_, f64>| {
        let rows = block.products.par_chunks(block.width).zip(&mut nearest[block.row..]);
        rows.enumerate().for_each(|(i, (row, nearest))| {
            let of_row = squares[block.row + i];
            for (&product, &of_column) in row.iter().zip(&squares[block.column..]) {
                keep(nearest, distance(of_row, of_column, product));
            }
        });
    });
    nearest.iter().map(|nearest| nearest[NEIGHBOUR]).collect()
}

/// Puts a distance in its place among the nearest, if it is one of them.
fn keep(nearest: &mut [f64; NEIGHBOUR + 1], distance: f64) {
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

    fn set(values: &[f32], dims: usize) -> Vectors {
        let mut set = Vectors::new("noise", dims);
        set.push_all(values).unwrap();
        set
    }

    fn shares(real: &[f32], fake: &[f32]) -> (f64, f64) {
        let [precision, recall] = precision_recall(&set(real, 1), &set(fake, 1)).unwrap();
        (precision.value, recall.value)
    }

    #[test]
    fn numbers_on_a_line_by_hand() {
        // Balls of the real reach 3, 2, 2, 3: from -3 to 6. Those of the drawn reach 98, 98, 97 and 99 from 1, 2, 3 and 100.
        let (real, fake) = ([0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 100.0]);
        assert_eq!(shares(&real, &fake), (0.75, 1.0));
        assert_eq!(shares(&fake, &real), (1.0, 0.75));
        // A ball holds its edge: 6 lies at 3 from 3, 6.5 beyond.
        assert_eq!(shares(&real, &[6.0, 6.5, 7.0, 7.5]).0, 0.25);
    }

    #[test]
    fn a_part_of_what_is_real_is_precise_but_recalls_only_itself() {
        let line = |from: usize, n: usize| (from..from + n).map(|i| i as f32).collect::<Vec<f32>>();
        let (real, fake) = (line(0, 2_000), line(0, 500));
        // The last drawn one reaches three further, and so do not those before it.
        assert_eq!(shares(&real, &fake), (1.0, 503.0 / 2_000.0));
        assert_eq!(shares(&real, &line(9_000, 500)), (0.0, 0.0));
    }

    #[test]
    fn pictures_drawn_many_times_have_balls_without_size() {
        // Five times the same vector, of lengths whose squares are rounded.
        let same = [0.1, 0.7, -0.3].repeat(5);
        let near = same.iter().map(|x| x + 1e-3).collect::<Vec<f32>>();
        let values = |a: &[f32], b: &[f32]| {
            precision_recall(&set(a, 3), &set(b, 3)).unwrap().map(|report| report.value)
        };
        assert_eq!(values(&same, &same), [1.0, 1.0]);
        assert_eq!(values(&same, &near), [0.0, 0.0]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let error = precision_recall(&set(&[1.0; 3], 1), &set(&[1.0; 9], 1)).unwrap_err().to_string();
        assert!(error.contains("3 and 9 feature vectors; wanted at least 4"), "{error}");
        let reports = precision_recall(&set(&[1.0; 5], 1), &set(&[1.0; 4], 1)).unwrap();
        assert_eq!(
            reports.map(|report| (report.name, report.n, report.n_real)),
            [("precision".into(), 4, Some(5)), ("recall".into(), 4, Some(5))]
        );
    }
}
