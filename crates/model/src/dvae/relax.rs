//! The relaxed bottleneck (paper §2.1): `softmax((logits + g) / τ)` with Gumbel noise g, fed soft into the decoder.

use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use rand_chacha::rand_core::Rng;

/// `n` draws of `-ln(-ln U)`.
pub fn gumbel_noise(n: usize, rng: &mut impl Rng) -> Vec<f32> {
    (0..n).map(|_| gumbel(rng.next_u32())).collect()
}

/// U keeps 23 bits and a half, so that it never rounds to 0 or 1, where the noise would be infinite.
fn gumbel(bits: u32) -> f32 {
    let u = ((bits >> 9) as f32 + 0.5) / (1 << 23) as f32;
    -(-u.ln()).ln()
}

/// Relaxed one-hot codes. `logits` and `noise` `[B, V, G, G]`, temperature `tau` → `[B, V, G, G]`
pub fn gumbel_softmax(logits: Tensor<4>, noise: Tensor<4>, tau: f64) -> Tensor<4> {
    softmax((logits + noise) / tau, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    #[test]
    fn noise_is_finite_at_both_ends() {
        assert!(gumbel(0).is_finite() && gumbel(u32::MAX).is_finite());
    }

    #[test]
    fn noise_has_the_gumbel_mean_and_variance() {
        let draws = gumbel_noise(100_000, &mut ChaCha8Rng::seed_from_u64(1));
        let mean = draws.iter().sum::<f32>() / 1e5;
        let var = draws.iter().map(|g| (g - mean).powi(2)).sum::<f32>() / 1e5;
        assert!((mean - 0.5772).abs() < 0.02, "mean {mean}"); // Euler's constant
        assert!((var - 1.6449).abs() < 0.05, "variance {var}"); // π²/6
    }
}
