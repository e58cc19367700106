//! AdamW on host arrays with gradient clipping by global norm, and the moving average of the
//! weights (paper §A.2, §B.2).

use serde::{Deserialize, Serialize};
use tessera_kernels::{Cpu, SmallFloat, approach, sum_of_squares};
use tessera_model::nn::{HostTensor, Role};

use crate::buffer::Buffer;
use crate::config::FitConfig;

/// The state of AdamW: running mean and variance of the gradient of each parameter, in the order of
/// the parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// The first moments.
    pub mean: Vec<Buffer>,
    /// The second moments.
    pub variance: Vec<Buffer>,
    /// The number of updates, without skipped ones.
    pub updates: u64,
}

/// The dtype in which the moments of matrices are stored. Those of gains, biases, embeddings and
/// heads always have 32 bits (paper §D.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Moments {
    /// f32.
    Full,
    /// The paper's 16-bit formats: 1-6-9 for means, 0-6-10 for variances.
    Small,
}

impl AdamW {
    /// Makes zero moments for `weights` with these `roles`.
    pub fn new(weights: &[HostTensor], roles: &[Role], moments: Moments) -> AdamW {
        let zeros = |format: SmallFloat| {
            let zeros = |(weight, role): (&HostTensor, &Role)| {
                let small = moments == Moments::Small && role.may_be_small();
                Buffer::new(vec![0.0; weight.values.len()], small.then_some(format))
            };
            weights.iter().zip(roles).map(zeros).collect()
        };
        AdamW { mean: zeros(SmallFloat::OneSixNine), variance: zeros(SmallFloat::ZeroSixTen), updates: 0 }
    }

    /// Updates the weights with learning rate `lr`, after the gradients have been scaled to a
    /// global norm of at most `config.clip`. Returns the norm before scaling. If the norm is not
    /// usable ([`is_applied`]), nothing is changed.
    pub fn update(
        &mut self,
        cpu: Cpu,
        weights: &mut [HostTensor],
        roles: &[Role],
        gradients: &[Vec<f32>],
        config: &FitConfig,
        lr: f64,
    ) -> f64 {
        let norm = gradients.iter().map(|g| sum_of_squares(cpu, g)).sum::<f64>().sqrt();
        if !is_applied(norm, config) {
            return norm;
        }
        self.updates += 1;
        let updates = i32::try_from(self.updates).unwrap_or(i32::MAX);
        let correction = |beta: f64| 1.0 - beta.powi(updates);
        let weights = weights.iter_mut().zip(roles).zip(gradients);
        let moments = self.mean.iter_mut().zip(&mut self.variance);
        for (((weight, role), gradient), (mean, variance)) in weights.zip(moments) {
            let update = tessera_kernels::AdamWStep {
                gradient_scale: if norm > config.clip { (config.clip / norm) as f32 } else { 1.0 },
                beta1: config.beta1 as f32,
                beta2: config.beta2 as f32,
                step: (lr / correction(config.beta1)) as f32,
                inverse_variance: (1.0 / correction(config.beta2)) as f32,
                shrink: if role.decays() { 1.0 - (lr * config.weight_decay) as f32 } else { 1.0 },
                epsilon: config.epsilon as f32,
                variance_clip: config.variance_clip as f32,
            };
            mean.change(|mean| {
                variance.change(|variance| update.update(cpu, &mut weight.values, gradient, mean, variance));
            });
        }
        norm
    }
}

/// The maximum norm of a clipped gradient, so that its squares stay finite in an f32 running
/// variance.
const LARGEST_NORM: f64 = 1e19;

/// Returns whether a gradient of this norm can be used for an update: the norm is finite and, after
/// clipping, the squares of the gradient are finite, too.
pub fn is_applied(norm: f64, config: &FitConfig) -> bool {
    norm.is_finite() && norm.min(config.clip) <= LARGEST_NORM
}

/// Updates the moving average: `average += (1 - decay) (weights - average)`. `n` counts these
/// updates from 1.
///
/// With `ema_rise`, the decay is at most `(1 + n) / (10 + n)`. The average then follows faster at
/// the beginning, and forgets the initial weights.
pub fn average(cpu: Cpu, average: &mut [HostTensor], weights: &[HostTensor], config: &FitConfig, n: u64) {
    let most = if config.ema_rise { (1 + n) as f64 / (10 + n) as f64 } else { 1.0 };
    let decay = config.ema.min(most) as f32;
    for (average, weight) in average.iter_mut().zip(weights) {
        approach(cpu, &mut average.values, &weight.values, 1.0 - decay);
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::tensor::Device;
    use tessera_model::dvae::Dvae;
    use tessera_model::nn::{export, roles};
    use tessera_model::prior::Prior;
    use tessera_model::rerank::Clip;

    use super::*;
    use crate::config::Config;

    fn weights() -> Vec<HostTensor> {
        vec![HostTensor { name: "x".into(), shape: vec![1, 2], values: vec![1.0, -2.0] }]
    }

    const MATRIX: &[Role] = &[Role::Matrix];

    #[test]
    fn two_steps_equal_values_computed_by_hand() {
        let mut config = Config::resolve("tiny", &[]).unwrap().train_prior;
        (config.beta1, config.beta2, config.weight_decay, config.clip) = (0.9, 0.99, 0.5, 10.0);
        let mut w = weights();
        let mut adam = AdamW::new(&w, MATRIX, Moments::Full);
        adam.update(Cpu::best(), &mut w, MATRIX, &[vec![0.5, -1.0]], &config, 0.1);
        assert!((w[0].values[0] - 0.85).abs() < 1e-5 && (w[0].values[1] + 1.8).abs() < 1e-5);
        adam.update(Cpu::best(), &mut w, MATRIX, &[vec![0.25, 2.0]], &config, 0.1);
        // 0.85 · 0.95 − 0.1 · (0.07 / 0.19) / √(0.0031 / 0.0199), and
        // −1.8 · 0.95 − 0.1 · (0.11 / 0.19) / √(0.0499 / 0.0199)
        assert!((w[0].values[0] - 0.714_155).abs() < 1e-5, "{}", w[0].values[0]);
        assert!((w[0].values[1] + 1.746_561).abs() < 1e-5, "{}", w[0].values[1]);
    }

    /// With a gradient of 0, only the weight decay changes weights.
    #[test]
    fn weight_decay_follows_the_role_in_all_three_models() {
        let config = Config::resolve("tiny", &[]).unwrap();
        let device = Device::flex();
        let [dvae, prior, clip] = [
            decayed(&Dvae::new(&config.dvae, 1, &device)),
            decayed(&Prior::new(&config.prior, 1, &device)),
            decayed(&Clip::new(&config.rerank, 1, &device)),
        ];
        let named = |decayed: &[String], end: &str| decayed.iter().filter(|name| name.ends_with(end)).count();
        // 6 blocks with 4 filters, 5 of them with one more, and the first and last filters of
        // encoder and decoder.
        assert_eq!((dvae.len(), named(&dvae, "weight")), (33, 33));
        // 4 matrices in each of 4 layers, and the two heads.
        assert_eq!((prior.len(), named(&prior, "weight"), named(&prior, "head.weight")), (18, 18, 2));
        // 4 matrices in each of 2 layers of both towers, the patch embedding, and two projections.
        assert_eq!((clip.len(), named(&clip, "weight"), named(&clip, "projection")), (19, 16, 2));
        assert!(clip.contains(&"image.patch".to_string()));
    }

    /// Returns the names of the parameters that shrink in an update.
    fn decayed(model: &impl Module) -> Vec<String> {
        let mut config = Config::resolve("tiny", &[]).unwrap().train_prior;
        config.weight_decay = 0.5;
        let (mut weights, roles) = (export(model), roles(model));
        weights.iter_mut().for_each(|weight| weight.values.fill(1.0));
        let gradients: Vec<Vec<f32>> = weights.iter().map(|weight| vec![0.0; weight.values.len()]).collect();
        let mut adam = AdamW::new(&weights, &roles, Moments::Full);
        adam.update(Cpu::best(), &mut weights, &roles, &gradients, &config, 0.1);
        let shrunk = weights.into_iter().filter(|weight| weight.values.iter().any(|&value| value < 1.0));
        shrunk.map(|weight| weight.name).collect()
    }

    #[test]
    fn gradients_are_scaled_down_to_the_clip() {
        let mut config = Config::resolve("tiny", &[]).unwrap().train_prior;
        config.clip = 1.0;
        let moments = |gradient: [f32; 2]| {
            let mut w = weights();
            let mut adam = AdamW::new(&w, MATRIX, Moments::Full);
            let norm = adam.update(Cpu::best(), &mut w, MATRIX, &[gradient.to_vec()], &config, 0.1);
            (norm, adam)
        };
        let (long, clipped) = moments([3.0, 4.0]);
        let (short, unclipped) = moments([0.6, 0.8]);
        assert!((long - 5.0).abs() < 1e-6 && (short - 1.0).abs() < 1e-6);
        let first = |adam: AdamW| adam.mean[0].values()[0];
        assert!((first(clipped) - first(unclipped)).abs() < 1e-6);
    }

    #[test]
    fn small_moments_approximate_full_ones_and_only_for_matrices() {
        let mut config = Config::resolve("tiny", &[]).unwrap().train_prior;
        (config.clip, config.variance_clip) = (1e9, 5.0);
        let trained = |moments, role: Role| {
            let mut w = weights();
            let mut adam = AdamW::new(&w, &[role], moments);
            for step in 0..100 {
                let gradient = [(step as f32).sin() * 1e-3, -100.0];
                adam.update(Cpu::best(), &mut w, &[role], &[gradient.to_vec()], &config, 1e-3);
            }
            (w[0].values.clone(), adam)
        };
        let (expected, full) = trained(Moments::Full, Role::Matrix);
        let (got, small) = trained(Moments::Small, Role::Matrix);
        assert!(matches!(small.mean[0], Buffer::Small(SmallFloat::OneSixNine, _)));
        assert!(matches!(small.variance[0], Buffer::Small(SmallFloat::ZeroSixTen, _)));
        assert!((expected[0] - got[0]).abs() < 1e-3, "{} instead of {}", got[0], expected[0]);
        assert_eq!(small.variance[0].values()[1], 5.0); // clipped by value
        assert_eq!(small.mean[0].values()[1], -SmallFloat::OneSixNine.largest());
        assert!(full.mean[0].values()[1] < -99.0);
        for role in [Role::Head, Role::Embedding, Role::Vector] {
            assert!(matches!(trained(Moments::Small, role).1.mean[0], Buffer::Full(_)));
        }
    }

    #[test]
    fn small_moments_are_used_in_all_three_models() {
        let config = Config::resolve("tiny", &[]).unwrap();
        let device = Device::flex();
        let small = |weights: Vec<HostTensor>, roles: Vec<Role>| {
            let moments = AdamW::new(&weights, &roles, Moments::Small);
            moments.variance.iter().filter(|buffer| matches!(buffer, Buffer::Small(..))).count()
        };
        let (dvae, prior, clip) = (
            Dvae::new(&config.dvae, 1, &device),
            Prior::new(&config.prior, 1, &device),
            Clip::new(&config.rerank, 1, &device),
        );
        // The parameters with weight decay, without heads, projections, and the convolutions next
        // to pixels and codes.
        assert_eq!(small(export(&dvae), roles(&dvae)), 31);
        assert_eq!(small(export(&prior), roles(&prior)), 16);
        assert_eq!(small(export(&clip), roles(&clip)), 16);
    }

    #[test]
    fn average_decays_faster_at_first_with_ema_rise() {
        let mut config = Config::resolve("paper", &[]).unwrap().train_prior;
        let after = |config: &FitConfig, n| {
            let mut mean = weights();
            let followed = vec![HostTensor { values: vec![2.0, 0.0], ..mean[0].clone() }];
            average(Cpu::best(), &mut mean, &followed, config, n);
            mean[0].values.clone()
        };
        assert!((after(&config, 1)[0] - 1.01).abs() < 1e-6 && (after(&config, 1)[1] + 1.98).abs() < 1e-6);
        config.ema_rise = true;
        assert!((after(&config, 1)[0] - (1.0 + 9.0 / 11.0)).abs() < 1e-6);
        assert!((after(&config, 10_000)[0] - 1.01).abs() < 1e-6);
    }

    #[test]
    fn gradient_with_overflowing_squares_is_clipped_or_unused() {
        let mut config = Config::resolve("tiny", &[]).unwrap().train_prior;
        let mut update = |clip| {
            config.clip = clip;
            let mut w = weights();
            let mut adam = AdamW::new(&w, MATRIX, Moments::Full);
            let norm = adam.update(Cpu::best(), &mut w, MATRIX, &[vec![3e20, 4e20]], &config, 0.1);
            assert!((norm / 5e20 - 1.0).abs() < 1e-6, "{norm}");
            (w, adam)
        };
        let (w, adam) = update(1.0);
        assert!(adam.updates == 1 && w[0].values.iter().all(|w| w.is_finite()) && w != weights());
        let (w, adam) = update(1e30);
        assert!((w, adam.updates) == (weights(), 0));
    }

    #[test]
    fn nonfinite_gradient_changes_nothing() {
        let config = Config::resolve("tiny", &[]).unwrap().train_prior;
        let mut w = weights();
        let mut adam = AdamW::new(&w, MATRIX, Moments::Full);
        let before = (w.clone(), adam.clone());
        assert!(!adam.update(Cpu::best(), &mut w, MATRIX, &[vec![f32::NAN, 1.0]], &config, 0.1).is_finite());
        assert!(before == (w, adam));
    }
}
