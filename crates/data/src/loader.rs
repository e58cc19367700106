//! Chooses the items of each training step and provides their random numbers.
//!
//! Every random draw is a function of (seed, purpose, step, index) only. No generator state is
//! carried from step to step, so a resumed run continues exactly, and any number of workers may
//! prepare a batch in any order.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::permutation::Permutation;

/// The purpose of a random number. Each purpose has its own random stream, so disabling one does
/// not change the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Purpose {
    /// The order of items within an epoch.
    Order = 1,
    /// Random crops and flips.
    Augment = 2,
    /// The choice among a picture's captions.
    CaptionChoice = 3,
    /// BPE dropout (§B.2).
    BpeDropout = 4,
    /// The choice of captions that are dropped, for classifier-free guidance.
    CaptionDrop = 5,
    /// Gumbel noise of the relaxation (§2.1).
    Gumbel = 6,
    /// Initial weights.
    Init = 7,
    /// Sampling of image tokens.
    Sample = 8,
    /// The choice among an item's encoded copies.
    CopyChoice = 9,
    /// The choice of pictures that are held out for validation.
    Split = 10,
    /// The choice of input tokens that are replaced by another picture's tokens.
    TokenNoise = 11,
    /// Gumbel noise during validation, the same in every validation.
    ValidationGumbel = 12,
    /// The choice of a subset of pictures for a measurement.
    Subset = 13,
    /// The choice of pictures that a dVAE encodes and decodes before a contrastive model gets them.
    Reconstruction = 14,
    /// The content of a composed scene.
    Scene = 15,
    /// The alternatives that drawings of a held-out combination are compared with.
    HeldOutCase = 16,
    /// The difference between the two halves of a code that is split.
    CodeSplit = 17,
}

/// Returns the random generator of one item for one purpose. The four numbers form its key, so
/// streams never overlap.
pub fn item_rng(seed: u64, purpose: Purpose, step: u64, index: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (slot, number) in key.chunks_exact_mut(8).zip([seed, purpose as u64, step, index]) {
        slot.copy_from_slice(&number.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// Draws a uniform integer in `0..n` (0 if `n` is 0).
///
/// It is the high half of a 64×64-bit product. Its bias is below `n / 2⁶⁴`, and it always consumes
/// exactly one draw.
pub fn below(rng: &mut impl Rng, n: u64) -> u64 {
    ((u128::from(rng.next_u64()) * u128::from(n)) >> 64) as u64
}

/// Draws a uniform number in `[0, 1)` with 24 bits.
pub fn uniform(rng: &mut impl Rng) -> f32 {
    below(rng, 1 << 24) as f32 / 16_777_216.0
}

/// Returns true with probability `p`.
pub fn chance(rng: &mut impl Rng, p: f32) -> bool {
    uniform(rng) < p
}

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

    #[test]
    fn streams_differ_in_each_key_number() {
        let draw = |seed, purpose, step, index| item_rng(seed, purpose, step, index).next_u64();
        let base = draw(1, Purpose::Augment, 2, 3);
        assert_eq!(base, draw(1, Purpose::Augment, 2, 3));
        assert_ne!(base, draw(0, Purpose::Augment, 2, 3));
        assert_ne!(base, draw(1, Purpose::Order, 2, 3));
        assert_ne!(base, draw(1, Purpose::Augment, 3, 2));
    }

    #[test]
    fn below_is_in_range_and_reaches_both_ends() {
        let mut rng = item_rng(0, Purpose::Sample, 0, 0);
        let drawn: Vec<u64> = (0..200).map(|_| below(&mut rng, 5)).collect();
        assert!((0..5).all(|value| drawn.contains(&value)) && drawn.iter().all(|&value| value < 5));
        assert_eq!(below(&mut rng, 0), 0);
    }
}
