//! AdamW on host arrays (paper §A.2, §B.2) with global-norm clipping, and the moving average of the weights.

use rayon::prelude::*;
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

    /// Update number `step` (from 0) with step size `lr`.
    pub fn update(
        &mut self,
        weights: &mut [HostTensor],
        gradients: &[Vec<f32>],
        config: &FitConfig,
        step: u64,
        lr: f64,
    ) {
        let correction = |beta: f64| 1.0 - beta.powi(i32::try_from(step + 1).unwrap_or(i32::MAX));
        let lr_mean = (lr / correction(config.beta1)) as f32;
        let inv_variance = (1.0 / correction(config.beta2)) as f32;
        let (beta1, beta2) = (config.beta1 as f32, config.beta2 as f32);
        let moments = self.mean.par_iter_mut().zip(&mut self.variance);
        weights.par_iter_mut().zip(gradients).zip(moments).for_each(
            |((weight, gradient), (mean, variance))| {
                let shrink = if decays(weight) { 1.0 - (lr * config.weight_decay) as f32 } else { 1.0 };
                for (((w, &g), m), v) in weight.values.iter_mut().zip(gradient).zip(mean).zip(variance) {
                    *m = beta1 * *m + (1.0 - beta1) * g;
                    *v = beta2 * *v + (1.0 - beta2) * g * g;
                    *w = shrink * *w - lr_mean * *m / ((*v * inv_variance).sqrt() + EPSILON);
                }
            },
        );
    }
}

/// Gains, biases and embeddings are not decayed; the paper does not say, and decay would only shrink their scale.
fn decays(weight: &HostTensor) -> bool {
    weight.shape.len() >= 2 && !weight.name.starts_with("embed.")
}

/// Scales `gradients` so that their global norm is at most `max_norm`; returns the norm before.
pub fn clip_global_norm(gradients: &mut [Vec<f32>], max_norm: f64) -> f64 {
    let squares = gradients.iter().map(|g| g.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>());
    let norm = squares.sum::<f64>().sqrt();
    if norm > max_norm {
        let scale = (max_norm / norm) as f32;
        gradients.par_iter_mut().flatten().for_each(|v| *v *= scale);
    }
    norm
}

/// `average += (1 - decay) (weights - average)`. Early averages follow faster, so that they forget the initial weights:
/// after `n` averagings the decay is at most `(1 + n) / (10 + n)`.
pub fn average(average: &mut [HostTensor], weights: &[HostTensor], decay: f64, n: u64) {
    let decay = decay.min((1 + n) as f64 / (10 + n) as f64) as f32;
    for (average, weight) in average.iter_mut().zip(weights) {
        for (a, &w) in average.values.iter_mut().zip(&weight.values) {
            *a += (1.0 - decay) * (w - *a);
        }
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
        (config.beta1, config.beta2, config.weight_decay) = (0.9, 0.99, 0.5);
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
    fn clipping_keeps_the_direction() {
        let mut g = vec![vec![3.0], vec![4.0]];
        assert_eq!(clip_global_norm(&mut g, 1.0), 5.0);
        assert!((g[0][0] - 0.6).abs() < 1e-6 && (g[1][0] - 0.8).abs() < 1e-6);
        let before = g.clone();
        assert!((clip_global_norm(&mut g, 4.0) - 1.0).abs() < 1e-6);
        assert_eq!(g, before); // short enough: untouched
    }
}
