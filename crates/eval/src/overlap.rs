//! Validation pictures that training has seen (paper §3): the nearest training picture of each by embedding, the closest pairs first,
//! for a person to find the similarity above which pictures are the same.
//!
//! Training pictures come in chunks and only the nearest are kept, so there may be any number of them. Products in f32 point to those
//! that might be nearer; one sum in f64, always in the same order, decides. So pairs depend neither on chunks nor on threads.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use crate::Vectors;
use crate::vectors::{Block, dot, for_blocks, unit};

/// A validation picture and the training picture nearest to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Overlap {
    /// The validation picture's place in its set.
    pub val: usize,
    /// The training picture's place in its set; the first of those as near.
    pub train: usize,
    /// Cosine of their embeddings.
    pub similarity: f64,
}

/// The search, while training pictures come.
#[derive(Debug, Clone)]
pub struct OverlapSearch {
    dims: usize,
    /// Embeddings of the validation pictures at a length of 1, `[n, D]`.
    validation: Vec<f32>,
    /// Of each, so far.
    nearest: Vec<Overlap>,
    /// Training pictures that came.
    seen: usize,
}

impl OverlapSearch {
    /// For validation pictures by their embeddings.
    ///
    /// # Errors
    /// If an embedding is 0.
    pub fn new(validation: &Vectors) -> Result<OverlapSearch> {
        let (n, dims) = (validation.len(), validation.dims());
        let nearest = |val| Overlap { val, train: 0, similarity: f64::NEG_INFINITY };
        let validation = unit(validation.values(), dims)?;
        Ok(OverlapSearch { dims, validation, nearest: (0..n).map(nearest).collect(), seen: 0 })
    }

    /// Looks at the next training pictures by their embeddings, `[B, D]`, of the same network.
    ///
    /// # Errors
    /// If they are no whole number of embeddings, or one is 0 or not finite.
    pub fn push_all(&mut self, training: &[f32]) -> Result<()> {
        let (dims, seen) = (self.dims, self.seen);
        let training = unit(training, dims)?;
        let (validation, nearest) = (&self.validation, &mut self.nearest);
        // A sum of D products in f32 is off by less, for vectors of length 1.
        let margin = dims as f32 * f32::EPSILON;
        for_blocks(validation, &training, dims, |block: Block<'_, f32>| {
            let rows = block.products.par_chunks(block.width).zip(&mut nearest[block.row..]);
            rows.for_each(|(row, nearest)| {
                let picture = &validation[nearest.val * dims..][..dims];
                for (j, &product) in row.iter().enumerate() {
                    if product < nearest.similarity as f32 - margin {
                        continue;
                    }
                    let j = block.column + j;
                    let similarity = dot(picture, &training[j * dims..][..dims]);
                    if similarity > nearest.similarity {
                        (nearest.train, nearest.similarity) = (seen + j, similarity);
                    }
                }
            });
        });
        self.seen += training.len() / dims;
        Ok(())
    }

    /// All validation pictures with their nearest training pictures, the closest pair first; those as close in the order of the
    /// validation set.
    ///
    /// # Errors
    /// If no training picture came.
    pub fn overlaps(&self) -> Result<Vec<Overlap>> {
        ensure!(self.seen > 0, "no training pictures to overlap with; wanted at least 1");
        let mut overlaps = self.nearest.clone();
        overlaps.sort_by(|a, b| b.similarity.total_cmp(&a.similarity).then(a.val.cmp(&b.val)));
        Ok(overlaps)
    }
}

/// The validation pictures with a training picture as similar as `threshold` or more, and those without, each in the order of the
/// set.
pub fn split_by_overlap(overlaps: &[Overlap], threshold: f64) -> (Vec<usize>, Vec<usize>) {
    let mut sorted = overlaps.to_vec();
    sorted.sort_by_key(|overlap| overlap.val);
    let (with, without): (Vec<Overlap>, Vec<Overlap>) =
        sorted.into_iter().partition(|overlap| overlap.similarity >= threshold);
    let indices = |overlaps: Vec<Overlap>| overlaps.into_iter().map(|overlap| overlap.val).collect();
    (indices(with), indices(without))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(values: &[f32], dims: usize) -> Vectors {
        let mut set = Vectors::new("", dims);
        set.push_all(values).unwrap();
        set
    }

    /// `n` vectors of 24 features that nothing repeats.
    fn some(n: usize, from: usize) -> Vec<f32> {
        (from * 24..(from + n) * 24).map(|i| ((i as f32 * 12.9898).sin() * 43_758.547) % 1.0).collect()
    }

    #[test]
    fn the_nearest_of_each_the_closest_pair_first_and_the_first_of_those_as_near() {
        let mut search = OverlapSearch::new(&set(&[1.0, 0.0, 0.0, 1.0, -1.0, -1.0], 2)).unwrap();
        // The second and the third point the same way, at other lengths.
        search.push_all(&[1.0, 1.0, 0.0, 2.0]).unwrap();
        search.push_all(&[0.0, 3.0, 3.0, -4.0]).unwrap();
        let overlaps = search.overlaps().unwrap();
        let places: Vec<(usize, usize)> = overlaps.iter().map(|pair| (pair.val, pair.train)).collect();
        assert_eq!(places, [(1, 1), (0, 0), (2, 3)]);
        let wanted = [1.0, 0.5_f64.sqrt(), 0.2 / 2.0_f64.sqrt()];
        assert!(overlaps.iter().zip(wanted).all(|(pair, wanted)| (pair.similarity - wanted).abs() < 1e-6));
        assert_eq!(split_by_overlap(&overlaps, 0.5), (vec![0, 1], vec![2]));
        assert_eq!(split_by_overlap(&overlaps, 1.1), (vec![], vec![0, 1, 2]));
        assert_eq!(split_by_overlap(&overlaps, overlaps[1].similarity), (vec![0, 1], vec![2]));
    }

    #[test]
    fn chunks_do_not_matter_and_all_pairs_say_the_same() {
        let (validation, mut training) = (some(70, 5_000), some(2_500, 0));
        // Copies of validation pictures, one of them twice, and one of a training picture that is near to others.
        training[1_100 * 24..1_101 * 24].copy_from_slice(&validation[3 * 24..4 * 24]);
        training[2_400 * 24..2_401 * 24].copy_from_slice(&validation[3 * 24..4 * 24]);
        training.copy_within(0..24 * 9, 24 * 1_500);
        let found = |chunk: usize| {
            let mut search = OverlapSearch::new(&set(&validation, 24)).unwrap();
            training.chunks(chunk * 24).for_each(|chunk| search.push_all(chunk).unwrap());
            search.overlaps().unwrap()
        };
        let overlaps = found(2_500);
        assert_eq!((overlaps[0].val, overlaps[0].train), (3, 1_100));
        for chunk in [1, 333, 1_024] {
            assert_eq!(found(chunk), overlaps);
        }
        let (val, train) = (unit(&validation, 24).unwrap(), unit(&training, 24).unwrap());
        for pair in &overlaps {
            let of = |j: usize| dot(&val[pair.val * 24..][..24], &train[j * 24..][..24]);
            let best = (0..2_500).rev().max_by(|&i, &j| of(i).total_cmp(&of(j))).unwrap();
            assert_eq!((pair.train, pair.similarity), (best, of(best)));
        }
        assert!(overlaps.windows(2).all(|pair| pair[0].similarity >= pair[1].similarity));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut search = OverlapSearch::new(&set(&[1.0, 0.0], 2)).unwrap();
        assert!(search.overlaps().unwrap_err().to_string().contains("no training pictures"));
        assert!(search.push_all(&[1.0; 3]).is_err() && search.push_all(&[0.0; 2]).is_err());
        assert!(search.push_all(&[f32::NAN; 2]).is_err());
        assert!(OverlapSearch::new(&set(&[0.0; 2], 2)).is_err());
    }
}
