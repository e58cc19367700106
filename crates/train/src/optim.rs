//! AdamW on host arrays (paper §A.2, §B.2) with global-norm clipping, and the moving average of the weights.

use tessera_kernels::{approach, sum_of_squares};
use tessera_model::weights::HostTensor;

use crate::config::FitConfig;

/// Added to the root of the running variance.
const EPSILON: f32 = 1e-8;

/// Running mean and variance of each parameter, in the parameters' order.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// First moments.
    pub mean: Vec<Vec<f32>>,
    /// Second moments.
    pub variance: Vec<Vec<f32>>,
}

impl AdamW {
    /// Zero moments for `weights`.
    pub fn new(weights: &[HostTensor]) -> AdamW {
        let zeros: Vec<Vec<f32>> = weights.iter().map(|w| vec![0.0; w.values.len()]).collect();
        AdamW { mean: zeros.clone(), variance: zeros }
    }

    /// Update number `step` (from 0) with step size `lr`, gradients first scaled to a global norm of at most
    /// `config.clip`. Returns the norm before.
    pub fn update(
        &mut self,
        weights: &mut [HostTensor],
        gradients: &[Vec<f32>],
        config: &FitConfig,
        step: u64,
        lr: f64,
    ) -> f64 {
        let norm = gradients.iter().map(|g| sum_of_squares(g)).sum::<f64>().sqrt();
        let correction = |beta: f64| 1.0 - beta.powi(i32::try_from(step + 1).unwrap_or(i32::MAX));
        let moments = self.mean.iter_mut().zip(&mut self.variance);
        for ((weight, gradient), (mean, variance)) in weights.iter_mut().zip(gradients).zip(moments) {
            let update = tessera_kernels::AdamW {
                gradient_scale: if norm > config.clip { (config.clip / norm) as f32 } else { 1.0 },
                beta1: config.beta1 as f32,
                beta2: config.beta2 as f32,
                step: (lr / correction(config.beta1)) as f32,
                inverse_variance: (1.0 / correction(config.beta2)) as f32,
                shrink: if decays(weight) { 1.0 - (lr * config.weight_decay) as f32 } else { 1.0 },
                epsilon: EPSILON,
            };
            update.update(&mut weight.values, gradient, mean, variance);
        }
        norm
    }
}

/// Gains, biases and embeddings are not decayed; the paper does not say, and decay would only shrink their scale.
fn decays(weight: &HostTensor) -> bool {
    weight.shape.len() >= 2 && !weight.name.starts_with("embed.")
}

/// `average += (1 - decay) (weights - average)`. Early averages follow faster, so that they forget the initial weights:
/// after `n` averagings the decay is at most `(1 + n) / (10 + n)`.
pub fn average(average: &mut [HostTensor], weights: &[HostTensor], decay: f64, n: u64) {
    let decay = decay.min((1 + n) as f64 / (10 + n) as f64) as f32;
    for (average, weight) in average.iter_mut().zip(weights) {
        approach(&mut average.values, &weight.values, 1.0 - decay);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn weights(name: &str) -> Vec<HostTensor> {
        vec![HostTensor { name: name.into(), shape: vec![1, 2], values: vec![1.0, -2.0] }]
    }

    #[test]
    fn two_steps_by_hand() {
        let mut config = Config::resolve("tiny", &[]).unwrap().train_prior;
        (config.beta1, config.beta2, config.weight_decay, config.clip) = (0.9, 0.99, 0.5, 10.0);
        let mut w = weights("x");
        let mut adam = AdamW::new(&w);
        adam.update(&mut w, &[vec![0.5, -1.0]], &config, 0, 0.1);
        assert!((w[0].values[0] - 0.85).abs() < 1e-5 && (w[0].values[1] + 1.8).abs() < 1e-5);
        adam.update(&mut w, &[vec![0.25, 2.0]], &config, 1, 0.1);
        // 0.85 · 0.95 − 0.1 · (0.07 / 0.19) / √(0.0031 / 0.0199), and −1.8 · 0.95 − 0.1 · (0.11 / 0.19) / √(0.0499 / 0.0199)
        assert!((w[0].values[0] - 0.714_155).abs() < 1e-5, "{}", w[0].values[0]);
        assert!((w[0].values[1] + 1.746_561).abs() < 1e-5, "{}", w[0].values[1]);
    }

    #[test]
    fn embeddings_and_vectors_do_not_decay() {
        assert!(decays(&weights("blocks.0.qkv.weight")[0]));
        assert!(!decays(&weights("embed.text")[0]));
        assert!(!decays(&HostTensor { name: "norm.gain".into(), shape: vec![2], values: vec![1.0, 1.0] }));
    }

    #[test]
    fn long_gradients_are_shortened_to_the_clip() {
        let mut config = Config::resolve("tiny", &[]).unwrap().train_prior;
        config.clip = 1.0;
        let moments = |gradient: [f32; 2]| {
            let mut w = weights("x");
            let mut adam = AdamW::new(&w);
            let norm = adam.update(&mut w, &[gradient.to_vec()], &config, 0, 0.1);
            (norm, adam)
        };
        let (long, shortened) = moments([3.0, 4.0]);
        let (short, kept) = moments([0.6, 0.8]);
        assert!((long - 5.0).abs() < 1e-6 && (short - 1.0).abs() < 1e-6);
        assert!((shortened.mean[0][0] - kept.mean[0][0]).abs() < 1e-6);
    }
}
