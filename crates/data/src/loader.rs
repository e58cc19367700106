//! Which items make step `n`, and the random numbers that belong to them.
//!
//! Every draw is a function of (seed, purpose, step, index) and of nothing else: no generator is carried from step to
//! step, so a resumed run continues exactly, and any number of workers may prepare a batch in any order.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::permutation::Permutation;

/// What a random number is for. Two purposes never share a stream, so that turning one off leaves the others as they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Purpose {
    /// The order of items within an epoch.
    Order = 1,
    /// Crops and flips.
    Augment = 2,
    /// Which of a picture's captions is shown.
    CaptionChoice = 3,
    /// BPE dropout (§B.2).
    BpeDropout = 4,
    /// Which captions are dropped for guidance.
    CaptionDrop = 5,
    /// The relaxation's noise (§2.1).
    Gumbel = 6,
    /// Initial weights.
    Init = 7,
    /// Drawing image tokens.
    Sample = 8,
    /// Which of an item's encoded copies is read.
    CopyChoice = 9,
    /// Which pictures are held out for validation.
    Split = 10,
    /// Which tokens are read as another picture's.
    TokenNoise = 11,
    /// The relaxation's noise when it is validated, the same each time.
    ValidationGumbel = 12,
    /// Which pictures of a set make a subset that is measured.
    Subset = 13,
    /// Which pictures go through a dVAE's tokens before a contrastive model sees them.
    Reconstruction = 14,
    /// What a composed scene shows.
    Scene = 15,
    /// What drawings of a held-out combination are compared with.
    HeldOutCase = 16,
}

/// The generator of one item's draws for one purpose. The four numbers are its key, so streams never overlap.
pub fn item_rng(seed: u64, purpose: Purpose, step: u64, index: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (slot, number) in key.chunks_exact_mut(8).zip([seed, purpose as u64, step, index]) {
        slot.copy_from_slice(&number.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// A whole number in `0..n`, uniformly (0 if `n` is 0).
///
/// The high half of a 64×64-bit product: its bias is below `n / 2⁶⁴`, and it always takes one draw.
pub fn below(rng: &mut impl Rng, n: u64) -> u64 {
    ((u128::from(rng.next_u64()) * u128::from(n)) >> 64) as u64
}

/// A number in `[0, 1)`, uniformly, of 24 bits.
pub fn uniform(rng: &mut impl Rng) -> f32 {
    below(rng, 1 << 24) as f32 / 16_777_216.0
}

/// Whether a draw of probability `p` comes up.
pub fn chance(rng: &mut impl Rng, p: f32) -> bool {
    uniform(rng) < p
}

/// `n` of the indices below `all`, evenly spread; all of them if there are no more.
pub fn evenly(n: usize, all: usize) -> impl Iterator<Item = usize> {
    let n = n.min(all);
    (0..n).map(move |i| (i as u128 * all as u128 / n as u128) as usize)
}

/// The item indices of training step `step`: epochs follow each other, each a fresh permutation of all items.
///
/// A batch may span two epochs, so every step is full, and it may be larger than the set. Empty if there are no items.
/// Time and memory are those of the batch, whatever the size of the set.
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
    fn chosen_indices_are_spread_over_all() {
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

    /// A list of one epoch would have two terabytes.
    #[test]
    fn a_batch_of_a_huge_set_takes_no_list_of_it() {
        let batch = |step| batch_indices(250_000_000_000, 1024, step, 0);
        let mut all: Vec<usize> = (430_000..430_100).flat_map(batch).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 102_400);
    }

    #[test]
    fn no_items_make_no_batch() {
        assert!(batch_indices(0, 8, 3, 0).is_empty());
    }

    #[test]
    fn streams_differ_by_each_number() {
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
