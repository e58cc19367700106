//! Finds validation pictures that also occur in the training data (paper §3): the nearest training
//! picture of each by its embedding, sorted by similarity. A person can then choose the similarity
//! above which two pictures count as equal.
//!
//! Training pictures are processed in chunks and only the nearest are stored, so their number is
//! not limited. Products in f32 select candidates, which are then compared in f64 with a fixed
//! order of summation. The result therefore depends neither on the chunks nor on the number of
//! threads.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use crate::Vectors;
use crate::vectors::{Block, dot, for_blocks, unit};

/// A validation picture and the training picture nearest to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Overlap {
    /// The index of the validation picture in its set.
    pub val: usize,
    /// The index of the training picture in its set. If several are equally near, the first.
    pub train: usize,
    /// The cosine of their embeddings.
    pub similarity: f64,
}

/// An incremental search for the nearest training picture of each validation picture.
#[derive(Debug, Clone)]
pub struct OverlapSearch {
    dims: usize,
    /// The embeddings of the validation pictures, scaled to length 1, `[n, D]`.
    validation: Vec<f32>,
    /// The nearest training picture of each validation picture so far.
    nearest: Vec<Overlap>,
    /// The number of training pictures that were searched.
    n_training: usize,
}

impl OverlapSearch {
    /// Starts a search for the validation pictures with these embeddings.
    ///
    /// # Errors
    /// If an embedding has length 0.
    pub fn new(validation: &Vectors) -> Result<OverlapSearch> {
        let (n, dims) = (validation.len(), validation.dims());
        let nearest = |val| Overlap { val, train: 0, similarity: f64::NEG_INFINITY };
        let validation = unit(validation.values(), dims)?;
        Ok(OverlapSearch { dims, validation, nearest: (0..n).map(nearest).collect(), n_training: 0 })
    }

    /// Searches the next training pictures. `training` are their embeddings by the same network,
    /// `[B, D]`.
    ///
    /// # Errors
    /// If the length is not a multiple of `D`, or an embedding has length 0 or is not finite.
    pub fn push_all(&mut self, training: &[f32]) -> Result<()> {
        let (dims, first) = (self.dims, self.n_training);
        let training = unit(training, dims)?;
        let (validation, nearest) = (&self.validation, &mut self.nearest);
        // An upper bound of the f32 error of an inner product of two vectors of length 1.
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
                        (nearest.train, nearest.similarity) = (first + j, similarity);
                    }
                }
            });
        });
        self.n_training += training.len() / dims;
        Ok(())
    }

    /// Returns all validation pictures with their nearest training pictures, the most similar pair
    /// first. Equally similar pairs are in the order of the validation set.
    ///
    /// # Errors
    /// If no training pictures were added.
    pub fn overlaps(&self) -> Result<Vec<Overlap>> {
        ensure!(self.n_training > 0, "no training pictures to overlap with; wanted at least 1");
        let mut overlaps = self.nearest.clone();
        overlaps.sort_by(|a, b| b.similarity.total_cmp(&a.similarity).then(a.val.cmp(&b.val)));
        Ok(overlaps)
    }
}

/// Returns the indices of the validation pictures whose nearest training picture has a similarity
/// of at least `threshold`, and the indices of the others, both in the order of the set.
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

    /// Vectors `from..from + n` of a fixed noise sequence with 24 features.
    fn noise(n: usize, from: usize) -> Vec<f32> {
        (from * 24..(from + n) * 24).map(|i| ((i as f32 * 12.9898).sin() * 43_758.547) % 1.0).collect()
    }

    #[test]
    fn overlaps_are_sorted_and_ties_go_to_the_first_picture() {
        let mut search = OverlapSearch::new(&Vectors::of(&[1.0, 0.0, 0.0, 1.0, -1.0, -1.0], 2)).unwrap();
        // The second and the third training vector differ only in length.
        search.push_all(&[1.0, 1.0, 0.0, 2.0]).unwrap();
        search.push_all(&[0.0, 3.0, 3.0, -4.0]).unwrap();
        let overlaps = search.overlaps().unwrap();
        let indices: Vec<(usize, usize)> = overlaps.iter().map(|pair| (pair.val, pair.train)).collect();
        assert_eq!(indices, [(1, 1), (0, 0), (2, 3)]);
        let expected = [1.0, 0.5_f64.sqrt(), 0.2 / 2.0_f64.sqrt()];
        let mut pairs = overlaps.iter().zip(expected);
        assert!(pairs.all(|(pair, expected)| (pair.similarity - expected).abs() < 1e-6));
        assert_eq!(split_by_overlap(&overlaps, 0.5), (vec![0, 1], vec![2]));
        assert_eq!(split_by_overlap(&overlaps, 1.1), (vec![], vec![0, 1, 2]));
        assert_eq!(split_by_overlap(&overlaps, overlaps[1].similarity), (vec![0, 1], vec![2]));
    }

    #[test]
    fn overlaps_do_not_depend_on_chunks_and_match_brute_force() {
        let (validation, mut training) = (noise(70, 5_000), noise(2_500, 0));
        // Duplicates: one validation picture occurs twice in the training set, and the first nine
        // training pictures occur again.
        training[1_100 * 24..1_101 * 24].copy_from_slice(&validation[3 * 24..4 * 24]);
        training[2_400 * 24..2_401 * 24].copy_from_slice(&validation[3 * 24..4 * 24]);
        training.copy_within(0..24 * 9, 24 * 1_500);
        let found = |chunk: usize| {
            let mut search = OverlapSearch::new(&Vectors::of(&validation, 24)).unwrap();
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
            let similarity = |j: usize| dot(&val[pair.val * 24..][..24], &train[j * 24..][..24]);
            let best = (0..2_500).rev().max_by(|&i, &j| similarity(i).total_cmp(&similarity(j))).unwrap();
            assert_eq!((pair.train, pair.similarity), (best, similarity(best)));
        }
        assert!(overlaps.windows(2).all(|pair| pair[0].similarity >= pair[1].similarity));
    }

    #[test]
    fn missing_and_invalid_embeddings_are_refused() {
        let mut search = OverlapSearch::new(&Vectors::of(&[1.0, 0.0], 2)).unwrap();
        assert!(search.overlaps().unwrap_err().to_string().contains("no training pictures"));
        assert!(search.push_all(&[1.0; 3]).is_err() && search.push_all(&[0.0; 2]).is_err());
        assert!(search.push_all(&[f32::NAN; 2]).is_err());
        assert!(OverlapSearch::new(&Vectors::of(&[0.0; 2], 2)).is_err());
    }
}
