//! A random permutation of any number of items, computed index by index without a list.
//!
//! A Feistel network permutes the numbers below a power of four. A result outside the range is
//! permuted again (cycle walking). The power of four is less than four times the range, so about
//! two iterations are enough on average.

use rand_chacha::rand_core::Rng;

/// The number of rounds of the network. Four are enough for large ranges (Luby and Rackoff 1988);
/// small ranges need more.
const ROUNDS: usize = 12;

/// A permutation of `0..n`, determined by its keys.
#[derive(Debug, Clone)]
pub struct Permutation {
    n: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// Creates a permutation of `0..n` with keys from `rng`.
    pub fn new(n: usize, rng: &mut impl Rng) -> Permutation {
        let n = n as u64;
        let bits = u64::BITS - n.saturating_sub(1).leading_zeros();
        Permutation { n, half_bits: bits.div_ceil(2).max(1), keys: std::array::from_fn(|_| rng.next_u64()) }
    }

    /// Returns the image of `index`. An index that is not below `n` is returned unchanged.
    pub fn at(&self, index: usize) -> usize {
        let mut at = index as u64;
        if at >= self.n {
            return index;
        }
        loop {
            at = self.network(at);
            if at < self.n {
                return at as usize;
            }
        }
    }

    /// Applies the network to a number of `2 · half_bits` bits.
    fn network(&self, at: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (at >> self.half_bits, at & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix_bits(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

/// Mixes the bits of `x`, so that each output bit depends on all input bits (the finalizer of
/// SplitMix64).
fn mix_bits(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_base::random::{Purpose, item_rng};

    fn permutation(n: usize, epoch: u64) -> Permutation {
        Permutation::new(n, &mut item_rng(3, Purpose::Order, epoch, 0))
    }

    #[test]
    fn every_index_has_a_distinct_image() {
        for n in (0..=70).chain([255, 256, 257, 4096, 4097, 10_007]) {
            let permutation = permutation(n, 1);
            let mut images: Vec<usize> = (0..n).map(|index| permutation.at(index)).collect();
            images.sort_unstable();
            assert_eq!(images, (0..n).collect::<Vec<_>>(), "{n}");
        }
    }

    /// In 20,000 permutations of five items, each of the 20 ordered pairs of neighbours occurs
    /// about equally often at each place.
    #[test]
    fn small_permutations_are_uniform() {
        const ORDERS: u64 = 20_000;
        let mut counts = [[[0.0_f64; 5]; 5]; 4];
        for epoch in 0..ORDERS {
            let order: Vec<usize> = (0..5).map(|index| permutation(5, epoch).at(index)).collect();
            order.windows(2).enumerate().for_each(|(place, pair)| counts[place][pair[0]][pair[1]] += 1.0);
        }
        let expected = ORDERS as f64 / 20.0;
        for place in counts {
            for (first, row) in place.iter().enumerate() {
                for (second, &count) in row.iter().enumerate().filter(|(second, _)| *second != first) {
                    let off = (count - expected).abs() / expected.sqrt();
                    assert!(off < 5.0, "{first} then {second}: {count}, wanted {expected}");
                }
            }
        }
    }

    /// In a random permutation of n items, the mean distance between neighbours is about n / 3.
    #[test]
    fn neighbours_are_far_apart_in_a_huge_permutation() {
        const N: usize = 250_000_000_000;
        let permutation = permutation(N, 0);
        let images: Vec<usize> = (N - 10_001..N).map(|index| permutation.at(index)).collect();
        assert!(images.iter().all(|&image| image < N));
        let mean = images.windows(2).map(|pair| pair[0].abs_diff(pair[1]) as f64).sum::<f64>() / 10_000.0;
        assert!((mean / N as f64 - 1.0 / 3.0).abs() < 0.015, "{mean}");
    }
}
