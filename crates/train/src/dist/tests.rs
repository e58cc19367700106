//! Trains a small prior in worlds of several sizes. All of them must learn the same.

use std::sync::Arc;

use anyhow::Result;
use tessera_kernels::{Cpu, SmallFloat};
use tessera_model::nn::{GradientSink, HostTensor, export};
use tessera_model::prior::{
    Activations, Block, ChainOptions, Layout, Logits, MixedPrecision, Prior, PriorConfig, Stream, Wrap,
};

use super::comm::Comm;
use super::powersgd::PowerSgdSettings;
use super::threads::on_ranks;
use super::world::World;
use crate::config::{Config, FitConfig};
use crate::fit::{Task, Trainer, Training, Update};
use crate::gradient::{Loss, Sums};
use crate::precision::{Rules, Scales, Scaling};
use crate::slots::Slots;

/// Learns to predict tokens that follow a simple rule.
struct Counting {
    config: PriorConfig,
    /// The rank whose loss is not a number.
    broken: Option<usize>,
}

impl Task for Counting {
    type Model = Prior;
    type Batch = Stream;

    fn accumulate(
        &self,
        model: &Prior,
        parts: Vec<Stream>,
        Update { scales, layers, ranks, .. }: Update,
        sink: &mut dyn GradientSink,
    ) -> Result<Sums> {
        let mixed = scales.map(|scales| MixedPrecision { storage: None, scales });
        let options = ChainOptions { activations: Activations::Recompute, mixed };
        let mut sums = Sums::default();
        for stream in parts {
            let found = model.backward(&stream, layers.unwrap_or(&model.blocks()), sink, options)?;
            let (loss, metrics) = Loss { total: found.loss.loss, figures: Vec::new() }.values();
            let loss = if self.broken == Some(ranks.rank()) { f64::NAN } else { loss };
            sums.add(Sums { overflowed: found.overflowed, ..Sums::of_part(loss, metrics) });
        }
        Ok(sums)
    }

    fn layers(model: &Prior) -> &[Block] {
        model.blocks()
    }
}

fn prior_config() -> PriorConfig {
    PriorConfig {
        text_len: 4,
        text_vocab: 11,
        grid: 4,
        image_vocab: 13,
        d_model: 16,
        n_layers: 3,
        n_heads: 2,
        conv_kernel: 3,
        conv_wrap: Wrap::Flat,
        logits: Logits::Auto,
        layout: Layout::default(),
    }
}

fn fit_config() -> FitConfig {
    let tiny = Config::resolve("tiny", &[]).unwrap().train_prior;
    FitConfig { batch: 16, micro_batches: 2, lr: 1e-2, lr_steps: 100, steps: 100, ema_every: 1, ..tiny }
}

fn batch(config: &PriorConfig, step: u64, slots: Slots) -> Result<Stream> {
    let tokens = |n: usize, vocab: usize| {
        let token = move |slot: usize, i: usize| ((step as usize * 16 + slot) * 3 + i * i) % vocab;
        slots.range().flat_map(|slot| (0..n).map(move |i| token(slot, i) as u32)).collect::<Vec<_>>()
    };
    Stream::new(slots.len, tokens(config.text_len, config.text_vocab), tokens(16, config.image_vocab), config)
}

/// What a world does: the number of ranks, and of those that share the parameters.
#[derive(Debug, Clone, Copy)]
struct Size(usize, usize);

/// What all ranks of a world have learned.
#[derive(Debug, Clone)]
struct Learned {
    losses: Vec<f64>,
    weights: Vec<HostTensor>,
}

/// Trains for `steps` updates. All ranks must have the same losses.
fn learned(
    Size(ranks, shards): Size,
    steps: u64,
    powersgd: Option<PowerSgdSettings>,
    scales: Option<Scales>,
) -> Learned {
    let mut all = on_ranks(ranks, |comm| on_rank(comm, shards, steps, powersgd, scales.clone()));
    let bits = |losses: &[f64]| losses.iter().map(|loss| loss.to_bits()).collect::<Vec<_>>();
    assert!(all.iter().all(|(losses, _)| bits(losses) == bits(&all[0].0)), "ranks differ");
    let (losses, weights) = all.swap_remove(0);
    Learned { losses, weights: weights.unwrap() }
}

fn on_rank(
    comm: Arc<dyn Comm>,
    shards: usize,
    steps: u64,
    powersgd: Option<PowerSgdSettings>,
    scales: Option<Scales>,
) -> (Vec<f64>, Option<Vec<HostTensor>>) {
    let task = Counting { config: prior_config(), broken: None };
    with_trainer(&task, comm, shards, (powersgd, scales), |mut trainer| {
        let loss = |_| trainer.step().unwrap().first().map_or(f64::NAN, |loss| loss.1);
        let losses = (0..steps).map(loss).collect();
        (losses, trainer.averaged().unwrap().map(|model| export(&model)))
    })
}

/// Passes a trainer of `task` to `train`, as one rank of a world.
fn with_trainer<T>(
    task: &Counting,
    comm: Arc<dyn Comm>,
    shards: usize,
    (powersgd, scales): (Option<PowerSgdSettings>, Option<Scales>),
    train: impl FnOnce(Trainer<Counting>) -> T,
) -> T {
    let (fit, cpu) = (fit_config(), Cpu::best().in_f32());
    let slots = Slots::of_rank(fit.batch, fit.micro_batches, comm.rank(), comm.size());
    let world = World::new(comm, shards, None).unwrap();
    let training = Training {
        task,
        batch: &|step, slots| batch(&task.config, step, slots),
        world: &world,
        slots,
        config: &fit,
        cpu,
        scales,
        powersgd,
        loss_is_final_from: 0,
    };
    train(Trainer::new(&training, Prior::new(&task.config, 1, cpu), None).unwrap())
}

fn assert_same(found: &Learned, expected: &Learned, what: &str) {
    for (step, (found, expected)) in found.losses.iter().zip(&expected.losses).enumerate() {
        assert!((found - expected).abs() < 1e-5, "{what}, step {step}: loss {found}, alone {expected}");
    }
    for (found, expected) in found.weights.iter().zip(&expected.weights) {
        let off = found.values.iter().zip(&expected.values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // Biases of keys have no gradient but rounding errors, which Adam turns into steps.
        assert!(off < 1e-4 || found.name.ends_with("qkv.bias"), "{what}: {} is off by {off}", found.name);
    }
}

const SIZES: [Size; 5] = [Size(2, 1), Size(2, 2), Size(4, 1), Size(4, 2), Size(4, 4)];

#[test]
fn ranks_learn_what_one_process_learns() {
    let alone = learned(Size(1, 1), 20, None, None);
    assert!(alone.losses[19] < alone.losses[0] - 0.3, "{:?}", alone.losses);
    for size in SIZES {
        assert_same(&learned(size, 20, None, None), &alone, &format!("{size:?}"));
    }
}

fn settings(rank: usize, storage: Option<SmallFloat>) -> Option<PowerSgdSettings> {
    Some(PowerSgdSettings { rank, storage, p_scale: 2.0, q_scale: 0.5, seed: 3, resample: false })
}

#[test]
fn powersgd_of_full_rank_is_exact() {
    let alone = learned(Size(1, 1), 20, None, None);
    for size in [Size(1, 1), Size(2, 1), Size(2, 2), Size(4, 2)] {
        assert_same(&learned(size, 20, settings(64, None), None), &alone, &format!("{size:?}"));
    }
}

#[test]
fn compressed_gradients_learn_too() {
    let alone = learned(Size(1, 1), 40, None, None);
    let compressed = learned(Size(4, 2), 40, settings(8, Some(SmallFloat::OneSixNine)), None);
    assert!(compressed.losses[39] < alone.losses[20], "{:?} and {:?}", compressed.losses, alone.losses);
    assert!((compressed.losses[1] - alone.losses[1]).abs() > 1e-7, "nothing was compressed");
}

/// The first scales are infinite in f32, so the first update is skipped, on any rank.
#[test]
fn overflow_on_ranks_skips_the_same_updates() {
    let scales = || {
        let rules = Rules { first: 140.0, rest: 1, ..Rules::paper(Scaling::Resblock) };
        Scales::new(rules, 6, SmallFloat::Bf16, 1)
    };
    for powersgd in [None, settings(64, None)] {
        let alone = learned(Size(1, 1), 12, powersgd, Some(scales()));
        let skipped = alone.losses.iter().filter(|loss| loss.is_nan()).count();
        assert!(skipped > 0 && skipped < 12, "{:?}", alone.losses);
        for size in [Size(2, 1), Size(2, 2), Size(4, 2)] {
            let found = learned(size, 12, powersgd, Some(scales()));
            assert_eq!(found.losses.iter().filter(|loss| loss.is_nan()).count(), skipped, "{size:?}");
        }
    }
}

/// All ranks stop, and the error names the one whose loss is not a number.
#[test]
fn loss_that_is_not_a_number_stops_all_ranks() {
    let task = Counting { config: prior_config(), broken: Some(2) };
    let errors = on_ranks(4, |comm| {
        with_trainer(&task, comm, 2, (None, None), |mut trainer| trainer.step().unwrap_err().to_string())
    });
    assert!(errors.iter().all(|error| error.contains("the loss is NaN on rank 2")), "{errors:?}");
}

/// The scales are so large that every factor overflows: no update is applied, on any rank.
#[test]
fn overflow_of_the_compression_skips_updates() {
    let huge = settings(8, Some(SmallFloat::OneSixNine))
        .map(|settings| PowerSgdSettings { q_scale: 1e9, ..settings });
    for size in [Size(1, 1), Size(2, 1), Size(4, 2)] {
        let found = learned(size, 3, huge, None);
        // The heads of a new prior are 0, so its resblocks have no gradients in the first update.
        assert!(found.losses[1..].iter().all(|loss| loss.is_nan()), "{size:?}: {:?}", found.losses);
    }
}
