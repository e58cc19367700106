//! Random numbers. Every draw is a function of (seed, purpose, step, index) alone; no generator
//! state is carried from one step to the next.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

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
    /// The fixed Gaussian matrices of PowerSGD (§E.2).
    PowerSgd = 18,
    /// The choice of image tokens when a model draws.
    DrawnToken = u64::from_le_bytes(*b"drawings"),
    /// The choice of cells that a variation of a picture redraws.
    RedrawnCell = u64::from_le_bytes(*b"variants"),
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
/// The result is the high half of a 64×64-bit product. Its bias is below `n / 2⁶⁴`. Each call takes
/// exactly one number from the generator.
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

/// Draws a uniform number in `[0, 1)` with 53 bits.
pub fn uniform_f64(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Draws a standard normal number, by the method of Box and Muller.
pub fn normal(rng: &mut impl Rng) -> f64 {
    let mut unit = || (f64::from(rng.next_u32()) + 0.5) / 2f64.powi(32);
    let (u, v) = (unit(), unit());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

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
