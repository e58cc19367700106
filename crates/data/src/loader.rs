//! Chooses the items of each training step and provides their random numbers.
//!
//! Every random draw is a function of (seed, purpose, step, index) only. No generator state is
//! carried from step to step, so a resumed run continues exactly, and any number of workers may
//! prepare a batch in any order.

use tessera_base::random::{Purpose, item_rng};

use crate::permutation::Permutation;

/// Returns `n` evenly spaced indices below `all`, or all indices if `n` is larger than `all`.
pub fn evenly(n: usize, all: usize) -> impl Iterator<Item = usize> {
    let n = n.min(all);
    (0..n).map(move |i| (i as u128 * all as u128 / n as u128) as usize)
}

/// Returns the item indices of training step `step`. Each epoch is a new permutation of all items.
///
/// A batch may span several epochs: every batch is full, and it may be larger than the set. The
/// result is empty if there are no items. Time and memory depend on the batch size, not on the size
/// of the set.
pub fn batch_indices(n_items: usize, batch: usize, step: u64, seed: u64) -> Vec<usize> {
    if n_items == 0 {
        return Vec::new();
    }
    let mut indices = Vec::with_capacity(batch);
    let first = u128::from(step) * batch as u128;
    let (mut epoch, mut offset) = ((first / n_items as u128) as u64, (first % n_items as u128) as usize);
    while indices.len() < batch {
        let order = Permutation::new(n_items, &mut item_rng(seed, Purpose::Order, epoch, 0));
        let end = n_items.min(offset + batch - indices.len());
        indices.extend((offset..end).map(|index| order.at(index)));
        (epoch, offset) = (epoch + 1, 0);
    }
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(n_items: usize, batch: usize, steps: u64, seed: u64) -> Vec<usize> {
        (0..steps).flat_map(|step| batch_indices(n_items, batch, step, seed)).collect()
    }

    #[test]
    fn evenly_spreads_indices_over_all_items() {
        let chosen = |n, all| evenly(n, all).collect::<Vec<_>>();
        assert_eq!(
            (chosen(3, 10), chosen(4, 4), chosen(9, 2)),
            (vec![0, 3, 6], vec![0, 1, 2, 3], vec![0, 1])
        );
        assert_eq!(chosen(1000, 1999)[999], 1997);
        assert!(chosen(0, 5).is_empty() && chosen(5, 0).is_empty());
    }

    #[test]
    fn every_epoch_is_a_permutation() {
        for batch in [1, 3, 7, 10, 25] {
            let seen = stream(10, batch, 40, 1);
            for epoch in seen.chunks_exact(10) {
                let mut sorted = epoch.to_vec();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..10).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn order_depends_on_seed_and_epoch_but_not_on_batch_size() {
        assert_eq!(stream(50, 5, 20, 1), stream(50, 10, 10, 1));
        assert_ne!(stream(50, 50, 1, 1), stream(50, 50, 1, 2));
        let two = stream(50, 50, 2, 1);
        assert_ne!(two[..50], two[50..]);
    }

    /// A list of all indices of one epoch would need two terabytes.
    #[test]
    fn batch_of_a_huge_set_needs_no_index_list() {
        let batch = |step| batch_indices(250_000_000_000, 1024, step, 0);
        let mut all: Vec<usize> = (430_000..430_100).flat_map(batch).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 102_400);
    }

    #[test]
    fn empty_set_gives_an_empty_batch() {
        assert!(batch_indices(0, 8, 3, 0).is_empty());
    }
}
