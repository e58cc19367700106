//! Tests of the training loop on small tasks: learning, stopping, overflow, divergence.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::{Device, Tensor, TensorData};
use tempfile::TempDir;
use tessera_base::Silent;
use tessera_kernels::{Cpu, SmallFloat};
use tessera_model::nn::{
    GradientSums, HostTensor, Init, Linear, ParamGradient, Part, Role, export, parameters,
};

use super::*;
use crate::capacity::Stage;
use crate::config::Config;
use crate::gradient::{Loss, differentiate};
use crate::params::Param;
use crate::precision::{Rules, Scaling};
use crate::schedule::Schedule;

/// A task that learns `y = x · [1, 2]ᵀ + 3` and stops the run after `stop_after` steps. Its held-out
/// loss is lowest at step `best_at`, if there is one.
struct Line<'a> {
    stop: &'a AtomicBool,
    stop_after: u64,
    best_at: Option<u64>,
}

impl Task for Line<'_> {
    type Model = Linear;
    type Batch = Vec<f32>;

    fn accumulate(
        &self,
        model: &Linear,
        parts: Vec<Vec<f32>>,
        Update { step, .. }: Update,
        sink: &mut dyn GradientSink,
    ) -> Result<Sums> {
        if step + 1 >= self.stop_after {
            self.stop.store(true, Ordering::Relaxed);
        }
        let device = Device::flex();
        let mut sums = Sums::default();
        for x in parts {
            let y: Vec<f32> = x.chunks(2).map(|x| x[0] + 2.0 * x[1] + 3.0).collect();
            let x: Tensor<2> = Tensor::from_data(TensorData::new(x, [4, 2]), &device).autodiff();
            let y: Tensor<2> = Tensor::from_data(TensorData::new(y, [4, 1]), &device).autodiff();
            sums.add(differentiate(model, None, sink, |model| {
                let total = (model.forward(x) - y).powf_scalar(2.0).mean();
                Loss { figures: vec![("twice", total.clone() * 2.0)], total }
            })?);
        }
        Ok(sums)
    }

    fn validate(&self, model: &Linear, step: u64) -> Result<Validation> {
        let loss = self.best_at.map(|best| best.abs_diff(step) as f64);
        let metrics = vec![("bias", model.bias.val().into_scalar::<f64>())];
        Ok(Validation { metrics, loss, warning: None })
    }

    fn sample(&self, _: &Linear) -> Result<Option<RgbImage>> {
        Ok(Some(RgbImage::new(2, 2)))
    }
}

fn batch_of_line(step: u64, slots: Slots) -> Result<Vec<f32>> {
    Ok(slots.range().map(|i| ((step * 16 + i as u64) as f32 * 0.7).sin()).collect())
}

/// What the loop needs for a task whose batches are `batch`.
fn training<'a, T: Task>(
    task: &'a T,
    batch: &'a (dyn Fn(u64, Slots) -> Result<T::Batch> + Sync),
    config: &'a FitConfig,
) -> Training<'a, T> {
    let slots = Slots::of_rank(config.batch, config.micro_batches, 0, 1);
    Training {
        task,
        batch,
        world: World::solo(),
        slots,
        config,
        cpu: Cpu::best(),
        scales: None,
        powersgd: None,
        loss_is_final_from: 0,
    }
}

/// What the loop needs for a task without batches.
fn bare<'a, T: Task<Batch = ()>>(task: &'a T, config: &'a FitConfig) -> Training<'a, T> {
    training(task, &|_, _| Ok(()), config)
}

/// Passes a gradient with the same `value` everywhere to `sink`.
fn constant(model: &Linear, value: f32, sink: &mut dyn GradientSink) {
    let gradient = |parameter: tessera_model::nn::Parameter| ParamGradient {
        id: parameter.id,
        values: parameter.values.ones_like() * value,
    };
    let gradients = parameters(model).into_iter().map(gradient).collect();
    sink.take(Part::Model, gradients, None).unwrap();
}

fn weights(state: &TrainState, which: Which) -> Vec<HostTensor> {
    state.params.to_host(which)
}

fn config() -> FitConfig {
    let mut config = Config::resolve("tiny", &[]).unwrap().train_prior;
    (config.steps, config.lr_steps, config.lr, config.batch) = (100, 100, 0.3, 8);
    (config.ema, config.ema_every) = (0.5, 1);
    (config.checkpoint_every, config.eval_every, config.log_every) = (7, 40, 5);
    config
}

const TEXT: &str = "# tessera train prior, seed 0\n\n[train_prior]\nlr = 1\n";

fn open(dir: &TempDir) -> RunDir<'static> {
    RunDir::open(&dir.path().join("run"), Stage::Prior, TEXT, false, World::solo(), &Silent).unwrap()
}

fn control(stop: &AtomicBool) -> Control<'_> {
    Control { stop, last: false, reporter: &Silent }
}

/// Trains in `dir`, and stops after `stop_after` steps if that is before the end.
fn train(dir: &Path, stop_after: u64) -> (Vec<HostTensor>, Outcome) {
    let stop = AtomicBool::new(false);
    let task = Line { stop: &stop, stop_after, best_at: None };
    let model = Linear::new(&mut Init::new(1, &Device::flex()), [2, 1], 0.1);
    let run = RunDir::open(dir, Stage::Prior, TEXT, dir.exists(), World::solo(), &Silent).unwrap();
    let config = config();
    let training = training(&task, &batch_of_line, &config);
    let (model, outcome) = fit(&training, model, &run, control(&stop)).unwrap();
    (export(&model), outcome)
}

#[test]
fn stopped_run_continues_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let (uninterrupted, outcome) = train(&dir.path().join("whole"), u64::MAX);
    assert_eq!(outcome, Outcome::Finished);
    assert!((uninterrupted[1].values[0] - 3.0).abs() < 0.3, "bias {}", uninterrupted[1].values[0]);

    let halved = dir.path().join("halved");
    assert_eq!(train(&halved, 12).1, Outcome::Stopped(12));
    let (resumed, outcome) = train(&halved, u64::MAX);
    assert_eq!(outcome, Outcome::Finished);
    assert_eq!(resumed, uninterrupted);

    let lines = std::fs::read_to_string(halved.join("metrics.jsonl")).unwrap();
    assert_eq!(lines.lines().filter(|line| line.contains("\"val\"")).count(), 3);
    assert!(halved.join("samples/step_000100.png").exists());
}

/// Trains for `steps` steps with validations every 10; returns the final weights and the steps of
/// the checkpoints.
fn validated(steps: u64, best_at: Option<u64>, last: bool) -> (Vec<HostTensor>, Vec<String>) {
    let (dir, stop) = (tempfile::tempdir().unwrap(), AtomicBool::new(false));
    let task = Line { stop: &stop, stop_after: u64::MAX, best_at };
    let model = Linear::new(&mut Init::new(1, &Device::flex()), [2, 1], 0.1);
    let config = FitConfig { steps, eval_every: 10, ..config() };
    let training = training(&task, &batch_of_line, &config);
    let (model, _) = fit(&training, model, &open(&dir), Control { last, ..control(&stop) }).unwrap();
    let entries = std::fs::read_dir(dir.path().join("run/checkpoints")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    (export(&model), names)
}

#[test]
fn overfitting_run_ships_its_best_checkpoint() {
    let (until_30, _) = validated(30, None, false);
    let (until_100, checkpoints) = validated(100, None, false);
    assert_eq!(checkpoints, ["step_000098", "step_000100"]);
    let (final_weights, checkpoints) = validated(100, Some(30), false);
    assert!(final_weights == until_30, "the model has the weights of step 30");
    assert_eq!(checkpoints, ["step_000030", "step_000098", "step_000100"]);
    assert!(validated(100, Some(30), true).0 == until_100, "--last ships the last ones");
    assert!(validated(100, Some(80), false).0 == until_100, "two worse validations are noise");
}

/// A task without batches, whose losses and gradients in each update are those of a function.
struct Scripted<F>(F);

impl<F: Fn(&Linear, u64, &mut dyn GradientSink) -> Sums + Sync> Task for Scripted<F> {
    type Model = Linear;
    type Batch = ();

    fn accumulate(
        &self,
        model: &Linear,
        _: Vec<()>,
        Update { step, .. }: Update,
        sink: &mut dyn GradientSink,
    ) -> Result<Sums> {
        Ok((self.0)(model, step, sink))
    }
}

/// A task with four resblocks. Two of them overflow in the updates for which `is_over` returns true.
fn overflowing(is_over: fn(u64) -> bool) -> impl Task<Model = Linear, Batch = ()> {
    Scripted(move |model: &Linear, step, sink: &mut dyn GradientSink| {
        let over = is_over(step);
        constant(model, if over { f32::INFINITY } else { 1.0 }, sink);
        let overflowed = if over { vec![2, 0] } else { Vec::new() };
        Sums { overflowed, ..Sums::of_part(1.0, Vec::new()) }
    })
}

/// A task whose loss falls until update 30, then rises, and is NaN from update 60 on.
fn diverging() -> impl Task<Model = Linear, Batch = ()> {
    Scripted(|model: &Linear, step, sink: &mut dyn GradientSink| {
        constant(model, 1.0, sink);
        let loss = if step < 60 { (step as f64 - 30.0).abs() + 5.0 } else { f64::NAN };
        Sums::of_part(loss, Vec::new())
    })
}

/// A task that, if it `fails`, has a NaN loss in update `at`, first seen in resblock 3.
fn broken(at: u64, fails: bool) -> impl Task<Model = Linear, Batch = ()> {
    Scripted(move |model: &Linear, step, sink: &mut dyn GradientSink| {
        if fails && step == at {
            return Sums { overflowed: vec![3], ..Sums::of_part(f64::NAN, Vec::new()) };
        }
        constant(model, 1.0, sink);
        Sums::of_part(1.0, Vec::new())
    })
}

/// The training of `task` with gradient scales.
fn scaled<'a, T: Task<Batch = ()>>(task: &'a T, config: &'a FitConfig) -> Training<'a, T> {
    let rules = Rules { rest: 2, ..Rules::paper(Scaling::Resblock) };
    Training { scales: Some(Scales::new(rules, 4, SmallFloat::F16, 1)), ..bare(task, config) }
}

fn linear() -> Linear {
    Linear::new(&mut Init::new(1, &Device::flex()), [2, 1], 0.1)
}

#[test]
fn update_with_an_overflow_is_skipped_completely() {
    let (task, config) = (overflowing(|step| step == 3), config());
    let training = scaled(&task, &config);
    let mut trainer = Trainer::new(&training, linear(), None).unwrap();
    (0..3).for_each(|_| assert!(!trainer.step().unwrap().is_empty()));
    let before = trainer.state.clone();
    assert!(trainer.step().unwrap().is_empty());
    let after = trainer.state.clone();
    assert_eq!((after.step, after.params.updates), (4, 3));
    // The average was updated at the same time as the failed gradient was computed.
    let same = |a: &Param, b: &Param| {
        (&a.mean, &a.variance) == (&b.mean, &b.variance)
            && weights(&after, Which::Value) == weights(&before, Which::Value)
    };
    assert!(after.params.params.iter().zip(&before.params.params).all(|(a, b)| same(a, b)));
    let [now, then] = [&after, &before].map(|state| state.scales.as_ref().unwrap().log2().to_vec());
    assert!(now[0] < then[0] && now[1] > then[1] && now[2] < then[2] && now[3] > then[3], "{now:?}");
    trainer.step().unwrap();
    assert_ne!(weights(&trainer.state, Which::Value), weights(&before, Which::Value));
}

#[test]
fn run_of_skipped_updates_fails_and_names_the_first_resblock() {
    let dir = tempfile::tempdir().unwrap();
    let run = open(&dir);
    let task = overflowing(|step| step >= 5);
    let config = config();
    let stop = AtomicBool::new(false);
    let error = fit(&scaled(&task, &config), linear(), &run, control(&stop)).err().unwrap().to_string();
    assert!(error.contains("16 updates in a row") && error.contains("resblock 2 of 4"), "{error}");
    let saved = run.newest_checkpoint(&Silent).unwrap().unwrap();
    assert_eq!((saved.step, saved.params.updates), (20, 5));
}

#[test]
fn diverged_run_keeps_the_checkpoint_before_its_loss_rose() {
    let dir = tempfile::tempdir().unwrap();
    let run = open(&dir);
    let stop = AtomicBool::new(false);
    let config = config();
    let error = fit(&bare(&diverging(), &config), linear(), &run, control(&stop)).err().unwrap().to_string();
    // Checkpoints are 7 updates apart. The mean loss before that of step 35 is about 7, before the
    // next one about 13.
    assert!(
        error.contains("step 60: the loss is NaN; continue it from its last good checkpoint, step 35"),
        "{error}"
    );
    let kept = std::fs::read_dir(run.path().join("checkpoints")).unwrap();
    let mut kept: Vec<_> = kept.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    kept.sort();
    assert_eq!(kept, ["step_000035", "step_000056", "step_000060"]);
}

#[test]
fn average_is_updated_every_25_updates() {
    let config = FitConfig { ema: 0.9, ema_every: 25, ema_rise: false, ..config() };
    let task = overflowing(|_| false);
    let training = bare(&task, &config);
    let mut trainer = Trainer::new(&training, linear(), None).unwrap();
    let value = |trainer: &Trainer<_>, which| weights(&trainer.state, which)[0].values[0];
    let first = value(&trainer, Which::Average);
    (0..25).for_each(|_| drop(trainer.step().unwrap()));
    assert_eq!(value(&trainer, Which::Average), first);
    let weight = value(&trainer, Which::Value); // update 25 starts from it
    (0..20).for_each(|_| drop(trainer.step().unwrap()));
    let expected = 0.9 * first + 0.1 * weight;
    assert!((value(&trainer, Which::Average) - expected).abs() < 1e-6 && first != weight);
}

/// An average with a decay of 0 would still lag one update behind the weights.
#[test]
fn run_without_an_average_returns_the_newest_weights() {
    let task = overflowing(|_| false);
    for (ema, is_newest) in [(0.0, true), (0.5, false)] {
        let config = FitConfig { ema, ema_every: 1, ema_rise: false, ..config() };
        let training = bare(&task, &config);
        let mut trainer = Trainer::new(&training, linear(), None).unwrap();
        (0..5).for_each(|_| drop(trainer.step().unwrap()));
        let newest = weights(&trainer.state, Which::Value);
        assert_eq!(export(&trainer.averaged().unwrap()) == newest, is_newest);
    }
}

/// The loss of `overflowing` is always 1, so that no window of 10 updates improves on the first.
#[test]
fn plateau_halves_the_learning_rate_also_in_a_resumed_run() {
    let mut config = FitConfig { schedule: Schedule::Plateau, eval_every: 10, ..config() };
    (config.lr, config.lr_end, config.warmup) = (0.4, 0.1, 1);
    let task = overflowing(|_| false);
    let steps = |trainer: &mut Trainer<_>, n| -> Vec<f64> {
        let lr = |figures: Metrics| figures.iter().find(|(name, _)| *name == "lr").unwrap().1;
        (0..n).map(|_| lr(trainer.step().unwrap())).collect()
    };
    let dir = tempfile::tempdir().unwrap();
    let run = open(&dir);
    let training = bare(&task, &config);
    let mut trainer = Trainer::new(&training, linear(), None).unwrap();
    let mut lrs = steps(&mut trainer, 65);
    run.write_checkpoint(&trainer.state).unwrap();
    let mut resumed = Trainer::new(&training, linear(), run.newest_checkpoint(&Silent).unwrap()).unwrap();
    lrs.extend(steps(&mut resumed, 85));
    let expected = |update: usize| [0.4, 0.2, 0.1, 0.1, 0.1][update.saturating_sub(10) / 30];
    (0..150).for_each(|update| assert!((lrs[update] - expected(update)).abs() < 1e-12, "{update}: {lrs:?}"));
}

#[test]
fn nan_loss_names_the_first_resblock_and_saves_a_checkpoint() {
    // One update is between two checkpoints, the other directly after one.
    for at in [5, 14] {
        let dir = tempfile::tempdir().unwrap();
        let run = open(&dir);
        let task = broken(at, true);
        let (config, stop) = (config(), AtomicBool::new(false));
        let error = fit(&bare(&task, &config), linear(), &run, control(&stop)).err().unwrap();
        assert!(error.to_string().contains("the loss is NaN; resblock 3"), "{error}");
        assert_eq!(run.newest_checkpoint(&Silent).unwrap().unwrap().step, at);
    }
}

/// The average is updated while the gradient is computed. If the gradient fails, the next attempt
/// must not update the average again.
#[test]
fn run_continues_from_a_failed_update_with_the_same_bits() {
    let steps = |trainer: &mut Trainer<_>, n| (0..n).for_each(|_| drop(trainer.step().unwrap()));
    let (config, at) = (config(), 5);
    let [sound, failing] = [false, true].map(|fails| broken(at, fails));
    let [sound, failing] = [&sound, &failing].map(|task| bare(task, &config));
    let mut expected = Trainer::new(&sound, linear(), None).unwrap();
    steps(&mut expected, 9);
    let dir = tempfile::tempdir().unwrap();
    let run = open(&dir);
    let mut trainer = Trainer::new(&failing, linear(), None).unwrap();
    steps(&mut trainer, at);
    assert!(trainer.step().is_err());
    run.write_checkpoint(&trainer.state).unwrap();
    let saved = run.newest_checkpoint(&Silent).unwrap();
    let mut resumed = Trainer::new(&sound, linear(), saved).unwrap();
    steps(&mut resumed, 9 - at);
    assert!(resumed.state.params == expected.state.params);
}

#[test]
fn failed_batch_ends_the_run_and_saves_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (run, config, stop) = (open(&dir), config(), AtomicBool::new(false));
    let batch = |step, _: Slots| {
        ensure!(step < 5, "picture 7 is damaged");
        Ok(())
    };
    let task = overflowing(|_| false);
    let error = fit(&training(&task, &batch, &config), linear(), &run, control(&stop)).err().unwrap();
    assert_eq!(error.to_string(), "picture 7 is damaged");
    assert_eq!(run.newest_checkpoint(&Silent).unwrap().unwrap().step, 5);
}

#[test]
fn losses_are_recorded_only_after_the_objective_settles() {
    let (task, config) = (overflowing(|_| false), config());
    let training = Training { loss_is_final_from: 3, ..bare(&task, &config) };
    let mut trainer = Trainer::new(&training, linear(), None).unwrap();
    (0..5).for_each(|_| drop(trainer.step().unwrap()));
    assert_eq!(trainer.state.losses, LossSum { sum: 2.0, n: 2 });
}

/// The loss rises over the first 20 updates, as it does while β rises.
#[test]
fn good_checkpoint_ignores_losses_before_the_objective_settles() {
    let config = config();
    let mut state = Trainer::new(&bare(&diverging(), &config), linear(), None).unwrap().state;
    let mut good = |step, loss, final_from| {
        (state.step, state.losses) = (step, LossSum { sum: loss, n: 1 });
        state.mark_if_good(final_from);
        state.good.unwrap().step
    };
    let rising = [(10, 1.0), (20, 2.0), (30, 3.0), (40, 2.9), (50, 4.0)];
    assert_eq!(rising.map(|(step, loss)| good(step, loss, 20)), [10, 20, 30, 40, 40]);
}

#[test]
fn checkpoint_of_another_shape_or_kind_is_refused() {
    let config = config();
    let (overflowing, broken) = (overflowing(|_| false), broken(0, true));
    let (with_scales, plain) = (scaled(&overflowing, &config), bare(&broken, &config));
    let of_scaled = Trainer::new(&with_scales, linear(), None).unwrap().state;
    let error = Trainer::new(&plain, linear(), Some(of_scaled)).err().unwrap().to_string();
    assert!(error.contains("gradient scales of Some(4) resblocks, wanted None"), "{error}");
    let wide = Linear::new(&mut Init::new(1, &Device::flex()), [3, 1], 0.1);
    let of_wide = Trainer::new(&plain, wide, None).unwrap().state;
    let error = Trainer::new(&plain, linear(), Some(of_wide)).err().unwrap();
    assert!(format!("{error:#}").contains("the checkpoint is of another model"), "{error:#}");
}

#[test]
fn nonfinite_gradient_is_found_by_the_name_of_its_weight() {
    let model = linear();
    let store = ParamStore::new(&model, optim::Moments::Full);
    let name_of_nonfinite = |values: [[f32; 2]; 2]| {
        let mut sums = GradientSums::new(Cpu::best());
        let gradient = |(param, values): (&Param, [f32; 2])| ParamGradient {
            id: param.id,
            values: Tensor::from_data(TensorData::from(values), &Device::flex()),
        };
        sums.take(Part::Model, store.params.iter().zip(values).map(gradient).collect(), None).unwrap();
        store.nonfinite(Cpu::best(), &sums).map(str::to_string)
    };
    let name = |i: usize| Some(store.params[i].name.clone());
    assert_eq!(name_of_nonfinite([[1.0, f32::NAN], [0.0, 0.0]]), name(0));
    assert_eq!(name_of_nonfinite([[f32::NAN, 1.0], [f32::INFINITY, 0.0]]), name(1));
    assert_eq!(name_of_nonfinite([[f32::MAX, 1.0], [0.0, 0.0]]), None);
}

#[test]
fn nonfinite_loss_stops_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    let task = Line { stop: &stop, stop_after: u64::MAX, best_at: None };
    let mut model = Linear::new(&mut Init::new(1, &Device::flex()), [2, 1], 0.1);
    model.bias = Init::new(1, &Device::flex()).normal(Role::Vector, [1], f64::INFINITY);
    let run = open(&dir);
    let config = config();
    let error = fit(&training(&task, &batch_of_line, &config), model, &run, control(&stop)).err().unwrap();
    assert!(error.to_string().contains("step 0: the loss is"), "{error}");
}
