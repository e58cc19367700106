//! Reconstruction quality of a dVAE (paper §2.1, §A.2): PSNR, likelihood, KL, and codebook usage.

use burn::tensor::activation::sigmoid;
use burn::tensor::{Int, Tensor, TensorData};
use serde::Serialize;
use tessera_base::pixels::psnr_of;
use tessera_model::dvae::{
    Dvae, DvaeConfig, GumbelNoise, gumbel_softmax_drawn, kl_to_uniform, logit_laplace_nll, map_pixels,
    unmap_pixels,
};

/// The batch size.
const BATCH: usize = 32;

/// The metrics of a set of pictures, all with hard (argmax) tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recon {
    /// The number of pictures.
    pub pictures: usize,
    /// The mean over pictures of the peak signal-to-noise ratio in dB.
    pub psnr_db: f64,
    /// The standard error of `psnr_db`.
    pub psnr_db_se: f64,
    /// −(nll + KL / values per token) in nats per pixel value, higher is better: the evidence lower
    /// bound at β = 1, with argmax tokens instead of samples from the posterior. It is therefore
    /// not a bound; [`relaxation_gap`] returns the bound with sampled tokens.
    pub argmax_objective_nats_per_value: f64,
    /// The mean negative log-likelihood of a pixel value in nats.
    pub nll_nats_per_value: f64,
    /// The mean KL divergence from a token's posterior to the uniform categorical distribution, in
    /// nats.
    pub kl_nats_per_token: f64,
    /// The number of codes that occur at least once.
    pub codes_used: usize,
    /// The exponential of the entropy of the codes' frequencies.
    pub perplexity: f64,
}

/// Reconstructs and measures `pictures`, each `[3, S, S]` flat with values in [0, 1].
pub fn recon(dvae: &Dvae, config: &DvaeConfig, pictures: &[Vec<f32>]) -> Recon {
    let (side, device) = (config.image_size, dvae.device());
    let mut psnrs = Vec::new();
    let (mut nll, mut kl) = (0.0, 0.0);
    let mut counts = vec![0_u64; config.vocab];
    for batch in pictures.chunks(BATCH) {
        let n = batch.len();
        let data = TensorData::new(batch.concat(), [n, 3, side, side]);
        let x: Tensor<4> = Tensor::from_data(data, &device);
        let logits = dvae.encoder.forward(map_pixels(x.clone()));
        let codes: Tensor<3, Int> = logits.clone().argmax(3).squeeze_dim(3);
        let stats = dvae.decoder.forward_codes(codes.clone());
        let restored = unmap_pixels(sigmoid(stats.clone().narrow(1, 0, 3)));
        let mse = (restored - x.clone()).powf_scalar(2.0).mean_dims(&[1, 2, 3]);
        psnrs.extend(floats(mse).into_iter().map(psnr_of));
        nll += n as f64 * scalar(logit_laplace_nll(map_pixels(x), stats, config.min_log_b).mean());
        kl += n as f64 * scalar(kl_to_uniform(dvae.cpu(), logits));
        codes.into_data().iter::<i64>().for_each(|code| counts[code as usize] += 1);
    }
    let n = pictures.len() as f64;
    let (nll, kl) = (nll / n, kl / n);
    let (psnr_db, psnr_db_se) = mean_se(&psnrs);
    Recon {
        pictures: pictures.len(),
        psnr_db,
        psnr_db_se,
        argmax_objective_nats_per_value: -(nll + kl / config.values_per_token() as f64),
        nll_nats_per_value: nll,
        kl_nats_per_token: kl,
        codes_used: counts.iter().filter(|&&count| count > 0).count(),
        perplexity: perplexity(&counts),
    }
}

/// The evidence lower bound at β = 1 in nats per pixel value, higher is better: with relaxed codes
/// as in training, and with the discrete codes that the same noise samples. Only the second is a
/// bound. The two converge as the temperature falls (§A.2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RelaxationGap {
    /// The value with relaxed codes, `softmax((logits + noise) / τ)`.
    pub relaxed_elbo_nats_per_value: f64,
    /// The value with discrete codes, `argmax(logits + noise)`: samples from the posterior.
    pub sampled_elbo_nats_per_value: f64,
}

/// Measures both bounds for `pictures`, as for [`recon`], at temperature `tau`. Cell `c` of picture
/// `i` uses the noise of row `i · G² + c`.
pub fn relaxation_gap(
    dvae: &Dvae,
    config: &DvaeConfig,
    pictures: &[Vec<f32>],
    noise: GumbelNoise,
    tau: f64,
) -> RelaxationGap {
    let (side, device) = (config.image_size, dvae.device());
    let mut sums = [0.0; 2];
    for (batch, first) in pictures.chunks(BATCH).zip((0..).step_by(BATCH)) {
        let n = batch.len();
        let x: Tensor<4> = Tensor::from_data(TensorData::new(batch.concat(), [n, 3, side, side]), &device);
        let x = map_pixels(x);
        let logits = dvae.encoder.forward(x.clone());
        let noise = noise.skip_rows(first * config.grid() * config.grid());
        let code = gumbel_softmax_drawn(dvae.cpu(), logits.clone(), noise, tau);
        let sampled = code.clone().argmax(3).squeeze_dim(3); // the argmax of logits + noise
        let relaxed = dvae.decoder.forward(code);
        let kl = scalar(kl_to_uniform(dvae.cpu(), logits)) / config.values_per_token() as f64;
        for (sum, stats) in sums.iter_mut().zip([relaxed, dvae.decoder.forward_codes(sampled)]) {
            let nll = scalar(logit_laplace_nll(x.clone(), stats, config.min_log_b).mean());
            *sum -= n as f64 * (nll + kl);
        }
    }
    let [relaxed, sampled] = sums.map(|sum| sum / pictures.len() as f64);
    RelaxationGap { relaxed_elbo_nats_per_value: relaxed, sampled_elbo_nats_per_value: sampled }
}

/// The exponential of the entropy of the frequencies `counts`.
fn perplexity(counts: &[u64]) -> f64 {
    let total: u64 = counts.iter().sum();
    let p = counts.iter().filter(|&&count| count > 0).map(|&count| count as f64 / total as f64);
    (-p.map(|p| p * p.ln()).sum::<f64>()).exp()
}

/// The mean and its standard error.
pub(crate) fn mean_se(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, (var / n).sqrt())
}

fn floats<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.into_data().iter::<f64>().collect()
}

fn scalar(x: Tensor<1>) -> f64 {
    x.into_scalar::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perplexity_of_uniform_codes_is_their_number() {
        assert!((perplexity(&[5, 5, 5, 5, 0]) - 4.0).abs() < 1e-9);
        assert!((perplexity(&[7, 0]) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn relaxed_bound_approaches_sampled_bound_at_low_temperature() {
        let config = DvaeConfig {
            image_size: 8,
            groups: 2,
            blocks_per_group: 1,
            n_hid: 4,
            n_init: 8,
            vocab: 6,
            min_log_b: -3.0,
        };
        let dvae = Dvae::new(&config, 3, &burn::tensor::Device::flex());
        let pictures: Vec<Vec<f32>> =
            (0..40).map(|p| (0..192).map(|i| ((p * 192 + i) % 17) as f32 / 17.0).collect()).collect();
        let noise = GumbelNoise { seed: 5, step: 0, first_row: 0 };
        let gap = |tau| {
            let RelaxationGap { relaxed_elbo_nats_per_value: relaxed, sampled_elbo_nats_per_value: sampled } =
                relaxation_gap(&dvae, &config, &pictures, noise, tau);
            (relaxed - sampled).abs()
        };
        let [wide, narrow, zero] = [1.0, 0.0625, 1e-4].map(gap);
        assert!(wide > 2.0 * narrow && narrow > zero && zero < 1e-4, "{wide}, {narrow}, {zero}");
    }

    #[test]
    fn standard_error_of_a_known_sample() {
        let (mean, se) = mean_se(&[1.0, 2.0, 3.0, 4.0]);
        assert!((mean - 2.5).abs() < 1e-12);
        assert!((se - (5.0_f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
    }
}
