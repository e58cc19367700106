//! The noise of the relaxed bottleneck (paper §2.1): `softmax((logits + g) / τ)` with Gumbel noise g goes soft into the
//! decoder.

use rand_chacha::rand_core::Rng;

/// `n` draws of `-ln(-ln U)`.
pub fn gumbel_noise(n: usize, rng: &mut impl Rng) -> Vec<f32> {
    let bits: Vec<u32> = (0..n).map(|_| rng.next_u32()).collect();
    tessera_kernels::gumbel(&bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    #[test]
    fn noise_has_the_gumbel_mean_and_variance() {
        let draws = gumbel_noise(100_000, &mut ChaCha8Rng::seed_from_u64(1));
        let mean = draws.iter().sum::<f32>() / 1e5;
        let var = draws.iter().map(|g| (g - mean).powi(2)).sum::<f32>() / 1e5;
        assert!((mean - 0.5772).abs() < 0.02, "mean {mean}"); // Euler's constant
        assert!((var - 1.6449).abs() < 0.05, "variance {var}"); // π²/6
    }
}
