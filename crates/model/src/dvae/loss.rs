//! ★ The loss of stage 1, the dVAE: the negative evidence lower bound (paper §A.2) with the
//! logit-Laplace likelihood of the pixels (§A.3).

use burn::tensor::Tensor;
use tessera_kernels::{Cpu, kl_to_uniform};

/// The loss and its two parts, in nats.
#[derive(Debug, Clone)]
pub struct Elbo {
    /// The value that training minimises: `nll_per_value + β / values_per_token · kl_per_token`,
    /// `[1]`.
    pub loss: Tensor<1>,
    /// The mean negative log-likelihood per pixel value, `[1]`. It may be negative, because a
    /// density can be greater than 1.
    pub nll_per_value: Tensor<1>,
    /// The mean KL divergence per token, from the encoder's posterior to the uniform categorical
    /// distribution, `[1]`. It is between 0 and ln V.
    pub kl_per_token: Tensor<1>,
}

/// Computes the negative evidence lower bound per pixel value, averaged over the batch (paper
/// §A.2): `(Σ nll + β Σ KL) / number of pixel values`.
///
/// - `cpu`: the kernels that compute the KL divergence.
/// - `mapped`: the pixels after [`map_pixels`](super::map_pixels), `[B, 3, S, S]`.
/// - `stats`: the decoder's output, `[B, 6, S, S]`: three means μ, then three ln b.
/// - `logits`: the encoder's output, `[B, G, G, V]`.
/// - `beta`: the weight of the KL divergence.
/// - `min_log_b`: a lower bound on ln b.
pub fn elbo(
    cpu: Cpu,
    mapped: Tensor<4>,
    stats: Tensor<4>,
    logits: Tensor<4>,
    beta: f64,
    min_log_b: f64,
) -> Elbo {
    let [_, _, side, _] = mapped.dims();
    let [_, grid, _, _] = logits.dims();
    let values_per_token = (3 * side * side) as f64 / (grid * grid) as f64; // 192 in the paper
    let nll_per_value = logit_laplace_nll(mapped, stats, min_log_b).mean();
    let kl_per_token = kl_to_uniform(cpu, logits);
    let loss = nll_per_value.clone() + kl_per_token.clone() * (beta / values_per_token);
    Elbo { loss, nll_per_value, kl_per_token }
}

/// Computes the negative log-likelihood −ln f(x | μ, b) of each pixel value `x` under the
/// logit-Laplace density, `[B, 3, S, S]` (paper §A.3):
/// `ln 2 + ln b + ln x + ln(1 − x) + |logit x − μ| / b`.
pub fn logit_laplace_nll(x: Tensor<4>, stats: Tensor<4>, min_log_b: f64) -> Tensor<4> {
    let mu = stats.clone().narrow(1, 0, 3);
    let log_b = stats.narrow(1, 3, 3).clamp_min(min_log_b);
    let (ln_x, ln_1mx) = (x.clone().log(), (-x + 1.0).log());
    let distance = (ln_x.clone() - ln_1mx.clone() - mu).abs();
    distance * (-log_b.clone()).exp() + log_b + ln_x + ln_1mx + std::f64::consts::LN_2
}
