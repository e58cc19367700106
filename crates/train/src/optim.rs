//! AdamW with gradient clipping by global norm, and the moving average of the weights (paper §A.2,
//! §B.2): the constants of each update, and the storage of the moments.

use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tessera_kernels::{AdamWStep, Cpu, SmallFloat, adamw_, read};
use tessera_model::nn::Role;

use crate::config::FitConfig;

/// The dtype in which the moments of matrices are stored. Those of gains, biases, embeddings and
/// heads always have 32 bits (paper §D.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Moments {
    /// f32.
    Full,
    /// The paper's 16-bit formats: 1-6-9 for means, 0-6-10 for variances. They are in CPU memory.
    Small,
}

/// A moment of one parameter: a running mean of its gradient or of the squared gradient.
#[derive(Debug, Clone)]
pub enum Moment {
    /// The values in f32, flat.
    Full(Box<Tensor<1>>),
    /// A 16-bit format, and the values encoded in it.
    Small(SmallFloat, Vec<u16>),
}

impl PartialEq for Moment {
    fn eq(&self, other: &Moment) -> bool {
        match (self, other) {
            (Moment::Full(a), Moment::Full(b)) => read(a, |a| read(b, |b| a == b)),
            (Moment::Small(format, a), Moment::Small(other, b)) => (format, a) == (other, b),
            (Moment::Full(_), Moment::Small(..)) | (Moment::Small(..), Moment::Full(_)) => false,
        }
    }
}

impl Moment {
    /// Makes the two moments of a parameter with these values and this role. They are zero.
    pub fn pair(values: &Tensor<1>, role: Role, moments: Moments) -> [Moment; 2] {
        let is_small = moments == Moments::Small && role.may_be_small();
        let zeros = |format| Moment::of(values.zeros_like(), is_small.then_some(format));
        [zeros(SmallFloat::OneSixNine), zeros(SmallFloat::ZeroSixTen)]
    }

    /// Stores `values` in `format`, or in f32 if it is `None`. Values too large for the format become
    /// its largest value.
    fn of(values: Tensor<1>, format: Option<SmallFloat>) -> Moment {
        let encoded = |format: SmallFloat| {
            read(&values, |values| values.par_iter().map(|&v| format.encode(format.clamp(v))).collect())
        };
        match format {
            Some(format) => Moment::Small(format, encoded(format)),
            None => Moment::Full(Box::new(values)),
        }
    }

    fn format(&self) -> Option<SmallFloat> {
        match self {
            Moment::Full(_) => None,
            Moment::Small(format, _) => Some(*format),
        }
    }

    /// Returns the number of values.
    pub fn size(&self) -> usize {
        match self {
            Moment::Full(values) => values.dims()[0],
            Moment::Small(_, codes) => codes.len(),
        }
    }

    /// Returns the values in f32 on `device`.
    fn into_tensor(self, device: &Device) -> Tensor<1> {
        match self {
            Moment::Full(values) => *values,
            Moment::Small(format, codes) => {
                let values: Vec<f32> = codes.par_iter().map(|&code| format.decode(code)).collect();
                Tensor::from_data(TensorData::new(values, [codes.len()]), device)
            }
        }
    }

    /// Moves values in f32 to `device`. Values in 16 bits stay in CPU memory.
    pub fn moved_to(self, device: &Device) -> Moment {
        match self {
            Moment::Full(values) => Moment::Full(Box::new(values.to_device(device))),
            small @ Moment::Small(..) => small,
        }
    }
}

/// Returns the constants of update `updates`, counted from 1, of a parameter of this role, with
/// learning rate `lr`. The gradient is `share` times a sum, and `norm` is the global norm of all
/// gradients; if it is larger than `config.clip`, they are scaled down to it.
pub fn adamw(config: &FitConfig, lr: f64, (norm, share): (f64, f64), updates: u64, role: Role) -> AdamWStep {
    let updates = i32::try_from(updates).unwrap_or(i32::MAX);
    let correction = |beta: f64| 1.0 - beta.powi(updates);
    AdamWStep {
        gradient_scale: (share * if norm > config.clip { config.clip / norm } else { 1.0 }) as f32,
        beta1: config.beta1 as f32,
        beta2: config.beta2 as f32,
        step: (lr / correction(config.beta1)) as f32,
        inverse_variance: (1.0 / correction(config.beta2)) as f32,
        shrink: if role.decays() { 1.0 - (lr * config.weight_decay) as f32 } else { 1.0 },
        epsilon: config.epsilon as f32,
        variance_clip: config.variance_clip as f32,
    }
}

/// Updates one parameter. Returns its new value and moments.
pub fn apply(
    cpu: Cpu,
    step: &AdamWStep,
    value: Tensor<1>,
    [mean, variance]: [Moment; 2],
    gradient: &Tensor<1>,
) -> (Tensor<1>, [Moment; 2]) {
    let (device, formats) = (value.device(), [mean.format(), variance.format()]);
    let moments = [mean.into_tensor(&device), variance.into_tensor(&device)];
    let [mean, variance] = moments;
    let [value, mean, variance] = adamw_(cpu, step, [value, mean, variance], gradient);
    (value, [Moment::of(mean, formats[0]), Moment::of(variance, formats[1])])
}

/// The maximum norm of a clipped gradient, so that its squares stay finite in an f32 running
/// variance.
const LARGEST_NORM: f64 = 1e19;

/// Returns whether a gradient of this norm can be used for an update: the norm is finite and, after
/// clipping, the squares of the gradient are finite, too.
pub fn is_applied(norm: f64, config: &FitConfig) -> bool {
    norm.is_finite() && norm.min(config.clip) <= LARGEST_NORM
}

/// Returns the share of the weights in update `n`, counted from 1, of the moving average: 1 less its
/// decay.
///
/// With `ema_rise`, the decay is at most `(1 + n) / (10 + n)`. The average then follows faster at
/// the beginning, and forgets the initial weights.
pub fn ema_share(config: &FitConfig, n: u64) -> f32 {
    let most = if config.ema_rise { (1 + n) as f64 / (10 + n) as f64 } else { 1.0 };
    1.0 - config.ema.min(most) as f32
}

#[cfg(test)]
mod tests {
    use burn::module::{Module, ParamId};
    use tessera_model::dvae::Dvae;
    use tessera_model::nn::{GradientSink, GradientSums, ParamGradient, Part};
    use tessera_model::prior::Prior;
    use tessera_model::rerank::Clip;

    use super::*;
    use crate::config::Config;
    use crate::dist::shards::Cut;
    use crate::params::{Param, ParamStore, Which};

    fn flat(values: &[f32]) -> Tensor<1> {
        Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), &Device::flex())
    }

    /// A store of one parameter, `[1, -2]`.
    fn store(role: Role, moments: Moments) -> ParamStore {
        let value = flat(&[1.0, -2.0]);
        let [mean, variance] = Moment::pair(&value, role, moments);
        let (name, shape, id) = ("x".to_string(), vec![1, 2], ParamId::new());
        let average = value.clone();
        ParamStore {
            params: vec![Param { name, cut: Cut::whole(&shape), role, id, value, average, mean, variance }],
            updates: 0,
        }
    }

    /// Updates the store with this gradient, and returns the norm.
    fn update(store: &mut ParamStore, gradient: [f32; 2], config: &FitConfig, lr: f64) -> f64 {
        let mut sums = GradientSums::new(Cpu::best());
        let gradient = ParamGradient { id: store.params[0].id, values: flat(&gradient) };
        sums.take(Part::Model, vec![gradient], None).unwrap();
        store.adamw_(Cpu::best(), (&sums, 1.0), config, lr)
    }

    fn weights(store: &ParamStore) -> Vec<f32> {
        store.to_host(Which::Value).remove(0).values
    }

    fn values(moment: &Moment) -> Vec<f32> {
        read(&moment.clone().into_tensor(&Device::flex()), <[f32]>::to_vec)
    }

    #[test]
    fn two_steps_equal_values_computed_by_hand() {
        let mut config = Config::resolve("tiny", &[]).unwrap().train_prior;
        (config.beta1, config.beta2, config.weight_decay, config.clip) = (0.9, 0.99, 0.5, 10.0);
        let mut store = store(Role::Matrix, Moments::Full);
        update(&mut store, [0.5, -1.0], &config, 0.1);
        let w = weights(&store);
        assert!((w[0] - 0.85).abs() < 1e-5 && (w[1] + 1.8).abs() < 1e-5);
        update(&mut store, [0.25, 2.0], &config, 0.1);
        // 0.85 · 0.95 − 0.1 · (0.07 / 0.19) / √(0.0031 / 0.0199), and
        // −1.8 · 0.95 − 0.1 · (0.11 / 0.19) / √(0.0499 / 0.0199)
        let w = weights(&store);
        assert!((w[0] - 0.714_155).abs() < 1e-5, "{}", w[0]);
        assert!((w[1] + 1.746_561).abs() < 1e-5, "{}", w[1]);
    }

    #[test]
    fn share_of_a_sum_equals_the_mean_gradient() {
        let mut config = Config::resolve("tiny", &[]).unwrap().train_prior;
        for clip in [0.1, 10.0] {
            config.clip = clip;
            let [mut once, mut shared] = [0, 1].map(|_| store(Role::Matrix, Moments::Full));
            let norm = update(&mut once, [0.5, -1.0], &config, 0.1);
            let mut sums = GradientSums::new(Cpu::best());
            for gradient in [[0.25, -0.5], [0.75, -1.5]] {
                let gradient = ParamGradient { id: shared.params[0].id, values: flat(&gradient) };
                sums.take(Part::Model, vec![gradient], None).unwrap();
            }
            assert!((shared.adamw_(Cpu::best(), (&sums, 0.5), &config, 0.1) - norm).abs() < 1e-6);
            assert_eq!(weights(&shared), weights(&once));
        }
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

    /// Returns the names of the parameters that shrink in an update without gradients.
    fn decayed(model: &impl Module) -> Vec<String> {
        let mut config = Config::resolve("tiny", &[]).unwrap().train_prior;
        config.weight_decay = 0.5;
        let mut store = ParamStore::new(model, Moments::Full);
        store.params.iter_mut().for_each(|param| param.value = param.value.ones_like());
        store.adamw_(Cpu::best(), (&GradientSums::new(Cpu::best()), 1.0), &config, 0.1);
        let shrunk = store.to_host(Which::Value).into_iter();
        shrunk.filter(|w| w.values.iter().any(|&value| value < 1.0)).map(|w| w.name).collect()
    }

    #[test]
    fn gradients_are_scaled_down_to_the_clip() {
        let mut config = Config::resolve("tiny", &[]).unwrap().train_prior;
        config.clip = 1.0;
        let first_mean = |gradient: [f32; 2]| {
            let mut store = store(Role::Matrix, Moments::Full);
            (update(&mut store, gradient, &config, 0.1), values(&store.params[0].mean)[0])
        };
        let (long, clipped) = first_mean([3.0, 4.0]);
        let (short, unclipped) = first_mean([0.6, 0.8]);
        assert!((long - 5.0).abs() < 1e-6 && (short - 1.0).abs() < 1e-6);
        assert!((clipped - unclipped).abs() < 1e-6);
    }

    #[test]
    fn small_moments_approximate_full_ones_and_only_for_matrices() {
        let mut config = Config::resolve("tiny", &[]).unwrap().train_prior;
        (config.clip, config.variance_clip) = (1e9, 5.0);
        let trained = |moments, role: Role| {
            let mut store = store(role, moments);
            for step in 0..100 {
                update(&mut store, [(step as f32).sin() * 1e-3, -100.0], &config, 1e-3);
            }
            (weights(&store), store.params.remove(0))
        };
        let (expected, full) = trained(Moments::Full, Role::Matrix);
        let (got, small) = trained(Moments::Small, Role::Matrix);
        assert!(matches!(small.mean, Moment::Small(SmallFloat::OneSixNine, _)));
        assert!(matches!(small.variance, Moment::Small(SmallFloat::ZeroSixTen, _)));
        assert!((expected[0] - got[0]).abs() < 1e-3, "{} instead of {}", got[0], expected[0]);
        assert_eq!(values(&small.variance)[1], 5.0); // clipped by value
        assert_eq!(values(&small.mean)[1], -SmallFloat::OneSixNine.largest());
        assert!(values(&full.mean)[1] < -99.0);
        for role in [Role::Head, Role::Embedding, Role::Vector] {
            assert!(matches!(trained(Moments::Small, role).1.mean, Moment::Full(_)));
        }
    }

    #[test]
    fn small_moments_are_used_in_all_three_models() {
        let config = Config::resolve("tiny", &[]).unwrap();
        let device = Device::flex();
        let small = |store: ParamStore| {
            store.params.iter().filter(|param| matches!(param.variance, Moment::Small(..))).count()
        };
        // The parameters with weight decay, without heads, projections, and the convolutions next
        // to pixels and codes.
        assert_eq!(small(ParamStore::new(&Dvae::new(&config.dvae, 1, &device), Moments::Small)), 31);
        assert_eq!(small(ParamStore::new(&Prior::new(&config.prior, 1, &device), Moments::Small)), 16);
        assert_eq!(small(ParamStore::new(&Clip::new(&config.rerank, 1, &device), Moments::Small)), 16);
    }

    #[test]
    fn average_decays_faster_at_first_with_ema_rise() {
        let mut config = Config::resolve("paper", &[]).unwrap().train_prior;
        let share = |config: &FitConfig, n| f64::from(ema_share(config, n));
        assert!((share(&config, 1) - 0.01).abs() < 1e-6);
        config.ema_rise = true;
        assert!((share(&config, 1) - 9.0 / 11.0).abs() < 1e-6);
        assert!((share(&config, 10_000) - 0.01).abs() < 1e-5);
    }

    #[test]
    fn gradient_with_overflowing_squares_is_clipped_or_unused() {
        let mut config = Config::resolve("tiny", &[]).unwrap().train_prior;
        let mut updated = |clip| {
            config.clip = clip;
            let mut store = store(Role::Matrix, Moments::Full);
            let norm = update(&mut store, [3e20, 4e20], &config, 0.1);
            assert!((norm / 5e20 - 1.0).abs() < 1e-6, "{norm}");
            (weights(&store), store.updates)
        };
        let (w, updates) = updated(1.0);
        assert!(updates == 1 && w.iter().all(|w| w.is_finite()) && w != [1.0, -2.0]);
        assert_eq!(updated(1e30), (vec![1.0, -2.0], 0));
    }

    #[test]
    fn nonfinite_gradient_changes_nothing() {
        let config = Config::resolve("tiny", &[]).unwrap().train_prior;
        let mut store = store(Role::Matrix, Moments::Full);
        let before = store.clone();
        assert!(!update(&mut store, [f32::NAN, 1.0], &config, 0.1).is_finite());
        assert!(before == store);
    }
}
