//! Tests of the training loop on small tasks: learning, stopping, overflow, divergence.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::{Device, Tensor, TensorData};
use tempfile::TempDir;
use tessera_base::Silent;
use tessera_kernels::{Cpu, SmallFloat};
use tessera_model::nn::{Init, Linear};

use super::*;
use crate::capacity::Stage;
use crate::config::Config;
use crate::gradient::{Loss, differentiate};
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

    fn cpu(&self) -> Cpu {
        Cpu::best()
    }

    fn batch(&self, step: u64, part: usize) -> Result<Vec<f32>> {
        Ok((0..8).map(|i| ((step * 16 + part as u64 * 8 + i) as f32 * 0.7).sin()).collect())
    }

    fn gradient(&self, model: &Linear, x: Vec<f32>, step: u64, _: Option<&[f32]>) -> Result<Gradient> {
        if step + 1 >= self.stop_after {
            self.stop.store(true, Ordering::Relaxed);
        }
        let y: Vec<f32> = x.chunks(2).map(|x| x[0] + 2.0 * x[1] + 3.0).collect();
        let device = Device::flex();
        let x: Tensor<2> = Tensor::from_data(TensorData::new(x, [4, 2]), &device).autodiff();
        let y: Tensor<2> = Tensor::from_data(TensorData::new(y, [4, 1]), &device).autodiff();
        differentiate(self.cpu(), model, None, |model| {
            let total = (model.forward(x) - y).powf_scalar(2.0).mean();
            Loss { figures: vec![("twice", total.clone() * 2.0)], total }
        })
    }

    fn validate(&self, model: &Linear, step: u64) -> Result<Metrics> {
        let mut metrics = vec![("bias", model.bias.val().into_scalar::<f64>())];
        metrics.extend(self.best_at.map(|best| ("distance", best.abs_diff(step) as f64)));
        Ok(metrics)
    }

    fn held_out_loss(&self, metrics: &Metrics) -> Option<f64> {
        crate::log::metric(metrics, "distance")
    }

    fn picture(&self, _: &Linear) -> Result<RgbImage> {
        Ok(RgbImage::new(2, 2))
    }
}

fn config() -> FitConfig {
    let mut config = Config::resolve("tiny", &[]).unwrap().train_prior;
    (config.steps, config.lr_steps, config.lr, config.batch) = (100, 100, 0.3, 8);
    (config.ema, config.ema_every) = (0.5, 1);
    (config.checkpoint_every, config.eval_every, config.log_every) = (7, 40, 5);
    config
}

const TEXT: &str = "# tessera train prior, seed 0\n\n[train_prior]\nlr = 1\n";

fn open(dir: &TempDir) -> RunDir {
    RunDir::open(&dir.path().join("run"), Stage::Prior, TEXT, false, &Silent).unwrap()
}

fn control(stop: &AtomicBool) -> Control<'_> {
    Control { stop, last: false, reporter: &Silent }
}

/// Trains in `dir`, and stops after `stop_after` steps if that is before the end.
fn train(dir: &Path, stop_after: u64) -> (Vec<HostTensor>, Outcome) {
    let stop = AtomicBool::new(false);
    let task = Line { stop: &stop, stop_after, best_at: None };
    let model = Linear::new(&mut Init::new(1, &Device::flex()), [2, 1], 0.1);
    let run = RunDir::open(dir, Stage::Prior, TEXT, dir.exists(), &Silent).unwrap();
    let (model, outcome) = fit(&task, model, &config(), &run, control(&stop)).unwrap();
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
    let (model, _) = fit(&task, model, &config, &open(&dir), Control { last, ..control(&stop) }).unwrap();
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

/// A task with four resblocks. Two of them overflow in the updates for which the function returns
/// true.
struct Overflowing(fn(u64) -> bool);

impl Task for Overflowing {
    type Model = Linear;
    type Batch = ();

    fn cpu(&self) -> Cpu {
        Cpu::best()
    }

    fn batch(&self, _: u64, _: usize) -> Result<()> {
        Ok(())
    }

    fn scales(&self, _: &Linear) -> Option<Scales> {
        let rules = Rules { rest: 2, ..Rules::paper(Scaling::Resblock) };
        Some(Scales::new(rules, 4, SmallFloat::F16, 1))
    }

    fn gradient(&self, model: &Linear, (): (), step: u64, _: Option<&[f32]>) -> Result<Gradient> {
        let over = (self.0)(step);
        let value = if over { f32::INFINITY } else { 1.0 };
        let values = export(model).iter().map(|weight| vec![value; weight.values.len()]).collect();
        let overflowed = if over { vec![2, 0] } else { Vec::new() };
        Ok(Gradient { overflowed, ..Gradient::new(values, 1.0, Vec::new()) })
    }

    fn validate(&self, _: &Linear, _: u64) -> Result<Metrics> {
        Ok(Metrics::new())
    }

    fn picture(&self, _: &Linear) -> Result<RgbImage> {
        Ok(RgbImage::new(2, 2))
    }
}

fn linear() -> Linear {
    Linear::new(&mut Init::new(1, &Device::flex()), [2, 1], 0.1)
}

#[test]
fn update_with_an_overflow_is_skipped_completely() {
    let (task, config) = (Overflowing(|step| step == 3), config());
    let mut trainer = Trainer::new(&task, linear(), &config, None).unwrap();
    (0..3).for_each(|_| assert!(!trainer.step().unwrap().is_empty()));
    let before = trainer.state.clone();
    assert!(trainer.step().unwrap().is_empty());
    let after = trainer.state.clone();
    assert_eq!((after.step, after.adam.updates), (4, 3));
    assert_eq!((&after.weights, &after.adam), (&before.weights, &before.adam));
    let [now, then] = [&after, &before].map(|state| state.scales.as_ref().unwrap().log2().to_vec());
    assert!(now[0] < then[0] && now[1] > then[1] && now[2] < then[2] && now[3] > then[3], "{now:?}");
    trainer.step().unwrap();
    assert_ne!(trainer.state.weights, before.weights);
}

#[test]
fn run_of_skipped_updates_fails_and_names_the_first_resblock() {
    let dir = tempfile::tempdir().unwrap();
    let run = open(&dir);
    let task = Overflowing(|step| step >= 5);
    let error =
        fit(&task, linear(), &config(), &run, control(&AtomicBool::new(false))).err().unwrap().to_string();
    assert!(error.contains("16 updates in a row") && error.contains("resblock 2 of 4"), "{error}");
    let saved = run.newest_checkpoint(&Silent).unwrap().unwrap();
    assert_eq!((saved.step, saved.adam.updates), (20, 5));
}

/// A task whose loss falls until update 30, then rises, and is NaN from update 60 on.
struct Diverging;

impl Task for Diverging {
    type Model = Linear;
    type Batch = ();

    fn cpu(&self) -> Cpu {
        Cpu::best()
    }

    fn batch(&self, _: u64, _: usize) -> Result<()> {
        Ok(())
    }

    fn gradient(&self, model: &Linear, (): (), step: u64, _: Option<&[f32]>) -> Result<Gradient> {
        let loss = if step < 60 { (step as f64 - 30.0).abs() + 5.0 } else { f64::NAN };
        let values = export(model).iter().map(|weight| vec![1.0; weight.values.len()]).collect();
        Ok(Gradient::new(values, loss, Vec::new()))
    }

    fn validate(&self, _: &Linear, _: u64) -> Result<Metrics> {
        Ok(Metrics::new())
    }

    fn picture(&self, _: &Linear) -> Result<RgbImage> {
        Ok(RgbImage::new(2, 2))
    }
}

#[test]
fn diverged_run_keeps_the_checkpoint_before_its_loss_rose() {
    let dir = tempfile::tempdir().unwrap();
    let run = open(&dir);
    let stop = AtomicBool::new(false);
    let error = fit(&Diverging, linear(), &config(), &run, control(&stop)).err().unwrap().to_string();
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
    let task = Overflowing(|_| false);
    let mut trainer = Trainer::new(&task, linear(), &config, None).unwrap();
    let first = trainer.state.average[0].values[0];
    (0..25).for_each(|_| drop(trainer.step().unwrap()));
    assert_eq!(trainer.state.average[0].values[0], first);
    let weight = trainer.state.weights[0].values[0]; // update 25 starts from it
    (0..20).for_each(|_| drop(trainer.step().unwrap()));
    let expected = 0.9 * first + 0.1 * weight;
    assert!((trainer.state.average[0].values[0] - expected).abs() < 1e-6 && first != weight);
}

/// An average with a decay of 0 would still lag one update behind the weights.
#[test]
fn run_without_an_average_returns_the_newest_weights() {
    let task = Overflowing(|_| false);
    for (ema, is_newest) in [(0.0, true), (0.5, false)] {
        let config = FitConfig { ema, ema_every: 1, ema_rise: false, ..config() };
        let mut trainer = Trainer::new(&task, linear(), &config, None).unwrap();
        (0..5).for_each(|_| drop(trainer.step().unwrap()));
        assert_eq!(export(&trainer.averaged().unwrap()) == trainer.state.weights, is_newest);
    }
}

/// The loss of `Overflowing` is always 1, so that no window of 10 updates improves on the first.
#[test]
fn plateau_halves_the_learning_rate_also_in_a_resumed_run() {
    let mut config = FitConfig { schedule: Schedule::Plateau, eval_every: 10, ..config() };
    (config.lr, config.lr_end, config.warmup) = (0.4, 0.1, 1);
    let task = Overflowing(|_| false);
    let steps = |trainer: &mut Trainer<Overflowing>, n| -> Vec<f64> {
        let lr = |figures: Metrics| figures.iter().find(|(name, _)| *name == "lr").unwrap().1;
        (0..n).map(|_| lr(trainer.step().unwrap())).collect()
    };
    let dir = tempfile::tempdir().unwrap();
    let run = open(&dir);
    let mut trainer = Trainer::new(&task, linear(), &config, None).unwrap();
    let mut lrs = steps(&mut trainer, 65);
    run.write_checkpoint(&trainer.state).unwrap();
    let mut resumed =
        Trainer::new(&task, linear(), &config, run.newest_checkpoint(&Silent).unwrap()).unwrap();
    lrs.extend(steps(&mut resumed, 85));
    let expected = |update: usize| [0.4, 0.2, 0.1, 0.1, 0.1][update.saturating_sub(10) / 30];
    (0..150).for_each(|update| assert!((lrs[update] - expected(update)).abs() < 1e-12, "{update}: {lrs:?}"));
}

/// A task that, if it `fails`, has a NaN loss in update `at`, first seen in resblock 3.
struct Broken {
    at: u64,
    fails: bool,
}

impl Task for Broken {
    type Model = Linear;
    type Batch = ();

    fn cpu(&self) -> Cpu {
        Cpu::best()
    }

    fn batch(&self, _: u64, _: usize) -> Result<()> {
        Ok(())
    }

    fn gradient(&self, model: &Linear, (): (), step: u64, _: Option<&[f32]>) -> Result<Gradient> {
        if self.fails && step == self.at {
            return Ok(Gradient { overflowed: vec![3], ..Gradient::new(Vec::new(), f64::NAN, Vec::new()) });
        }
        let values = export(model).iter().map(|weight| vec![1.0; weight.values.len()]).collect();
        Ok(Gradient::new(values, 1.0, Vec::new()))
    }

    fn validate(&self, _: &Linear, _: u64) -> Result<Metrics> {
        Ok(Metrics::new())
    }

    fn picture(&self, _: &Linear) -> Result<RgbImage> {
        Ok(RgbImage::new(2, 2))
    }
}

#[test]
fn nan_loss_names_the_first_resblock_and_saves_a_checkpoint() {
    // One update is between two checkpoints, the other directly after one.
    for at in [5, 14] {
        let dir = tempfile::tempdir().unwrap();
        let run = open(&dir);
        let task = Broken { at, fails: true };
        let error = fit(&task, linear(), &config(), &run, control(&AtomicBool::new(false))).err().unwrap();
        assert!(error.to_string().contains("the loss is NaN; resblock 3"), "{error}");
        assert_eq!(run.newest_checkpoint(&Silent).unwrap().unwrap().step, at);
    }
}

/// The average is updated while the gradient is computed. If the gradient fails, the next attempt
/// must not update the average again.
#[test]
fn run_continues_from_a_failed_update_with_the_same_bits() {
    let steps = |trainer: &mut Trainer<Broken>, n| (0..n).for_each(|_| drop(trainer.step().unwrap()));
    let (config, at) = (config(), 5);
    let [sound, failing] = [false, true].map(|fails| Broken { at, fails });
    let mut expected = Trainer::new(&sound, linear(), &config, None).unwrap();
    steps(&mut expected, 9);
    let dir = tempfile::tempdir().unwrap();
    let run = open(&dir);
    let mut trainer = Trainer::new(&failing, linear(), &config, None).unwrap();
    steps(&mut trainer, at);
    assert!(trainer.step().is_err());
    run.write_checkpoint(&trainer.state).unwrap();
    let saved = run.newest_checkpoint(&Silent).unwrap();
    let mut resumed = Trainer::new(&sound, linear(), &config, saved).unwrap();
    steps(&mut resumed, 9 - at);
    assert_eq!(resumed.state.weights, expected.state.weights);
    assert_eq!(resumed.state.average, expected.state.average);
}

/// A task whose batches fail from step 5 on.
struct Spoilt;

impl Task for Spoilt {
    type Model = Linear;
    type Batch = ();

    fn cpu(&self) -> Cpu {
        Cpu::best()
    }

    fn batch(&self, step: u64, _: usize) -> Result<()> {
        ensure!(step < 5, "picture 7 is damaged");
        Ok(())
    }

    fn gradient(&self, model: &Linear, (): (), _: u64, _: Option<&[f32]>) -> Result<Gradient> {
        let values = export(model).iter().map(|weight| vec![1.0; weight.values.len()]).collect();
        Ok(Gradient::new(values, 1.0, Vec::new()))
    }

    fn validate(&self, _: &Linear, _: u64) -> Result<Metrics> {
        Ok(Metrics::new())
    }

    fn picture(&self, _: &Linear) -> Result<RgbImage> {
        Ok(RgbImage::new(2, 2))
    }

    /// Losses of earlier updates are not compared.
    fn loss_is_final_from(&self) -> u64 {
        3
    }
}

#[test]
fn failed_batch_ends_the_run_and_saves_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let run = open(&dir);
    let error = fit(&Spoilt, linear(), &config(), &run, control(&AtomicBool::new(false))).err().unwrap();
    assert_eq!(error.to_string(), "picture 7 is damaged");
    assert_eq!(run.newest_checkpoint(&Silent).unwrap().unwrap().step, 5);
}

#[test]
fn losses_are_recorded_only_after_the_objective_settles() {
    let config = config();
    let mut trainer = Trainer::new(&Spoilt, linear(), &config, None).unwrap();
    (0..5).for_each(|_| drop(trainer.step().unwrap()));
    assert_eq!(trainer.state.losses, LossSum { sum: 2.0, n: 2 });
}

/// The loss rises over the first 20 updates, as it does while β rises.
#[test]
fn good_checkpoint_ignores_losses_before_the_objective_settles() {
    let mut state = Trainer::new(&Diverging, linear(), &config(), None).unwrap().state;
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
    let of_scaled = Trainer::new(&Overflowing(|_| false), linear(), &config, None).unwrap().state;
    let error = Trainer::new(&Broken { at: 0, fails: true }, linear(), &config, Some(of_scaled))
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("gradient scales of Some(4) resblocks, wanted None"), "{error}");
    let wide = Linear::new(&mut Init::new(1, &Device::flex()), [3, 1], 0.1);
    let of_wide = Trainer::new(&Broken { at: 0, fails: true }, wide, &config, None).unwrap().state;
    let error = Trainer::new(&Broken { at: 0, fails: true }, linear(), &config, Some(of_wide)).err().unwrap();
    assert!(format!("{error:#}").contains("the checkpoint is of another model"), "{error:#}");
}

#[test]
fn nonfinite_gradient_is_found_by_the_name_of_its_weight() {
    let weights = export(&linear());
    let nonfinite_weight =
        |values| Gradient::new(values, 0.0, Vec::new()).nonfinite_weight(&weights).map(str::to_string);
    assert_eq!(nonfinite_weight(vec![vec![1.0, f32::NAN], vec![0.0]]).as_ref(), Some(&weights[0].name));
    assert_eq!(
        nonfinite_weight(vec![vec![f32::NAN, 1.0], vec![f32::INFINITY]]).as_ref(),
        Some(&weights[1].name)
    );
    assert_eq!(nonfinite_weight(vec![vec![f32::MAX, 1.0], vec![0.0]]), None);
}

#[test]
fn nonfinite_loss_stops_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    let task = Line { stop: &stop, stop_after: u64::MAX, best_at: None };
    let mut model = Linear::new(&mut Init::new(1, &Device::flex()), [2, 1], 0.1);
    model.bias = Init::new(1, &Device::flex()).normal(Role::Vector, [1], f64::INFINITY);
    let run = open(&dir);
    let error = fit(&task, model, &config(), &run, control(&stop)).err().unwrap();
    assert!(error.to_string().contains("step 0: the loss is"), "{error}");
}
