//! The training loop on small tasks: learning, stopping, overflow, divergence.

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

/// Learns `y = x · [1, 2]ᵀ + 3`; asks to stop after `stop_after` steps.
struct Line<'a> {
    stop: &'a AtomicBool,
    stop_after: u64,
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

    fn validate(&self, model: &Linear, _: u64) -> Result<Metrics> {
        Ok(vec![("bias", model.bias.val().into_scalar::<f64>())])
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
    Control { stop, reporter: &Silent }
}

/// Trains in `dir`, stopping after `stop_after` steps if that is before the end.
fn train(dir: &Path, stop_after: u64) -> (Vec<HostTensor>, Outcome) {
    let stop = AtomicBool::new(false);
    let task = Line { stop: &stop, stop_after };
    let model = Linear::new(&mut Init::new(1, &Device::flex()), [2, 1], 0.1);
    let run = RunDir::open(dir, Stage::Prior, TEXT, dir.exists(), &Silent).unwrap();
    let (model, outcome) = fit(&task, model, &config(), &run, control(&stop)).unwrap();
    (export(&model), outcome)
}

#[test]
fn it_learns_and_a_stopped_run_continues_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, outcome) = train(&dir.path().join("whole"), u64::MAX);
    assert_eq!(outcome, Outcome::Finished);
    assert!((whole[1].values[0] - 3.0).abs() < 0.3, "bias {}", whole[1].values[0]);

    let halved = dir.path().join("halved");
    assert_eq!(train(&halved, 12).1, Outcome::Stopped(12));
    let (resumed, outcome) = train(&halved, u64::MAX);
    assert_eq!(outcome, Outcome::Finished);
    assert_eq!(resumed, whole);

    let lines = std::fs::read_to_string(halved.join("metrics.jsonl")).unwrap();
    assert_eq!(lines.lines().filter(|line| line.contains("\"val\"")).count(), 3);
    assert!(halved.join("samples/step_000100.png").exists());
}

/// Gradients of four resblocks, of which two overflow in the updates that `overflows` says.
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
fn an_update_with_an_overflow_is_skipped_whole() {
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
fn a_run_whose_updates_are_all_skipped_saves_and_says_where_it_began() {
    let dir = tempfile::tempdir().unwrap();
    let run = open(&dir);
    let task = Overflowing(|step| step >= 5);
    let error =
        fit(&task, linear(), &config(), &run, control(&AtomicBool::new(false))).err().unwrap().to_string();
    assert!(error.contains("16 updates in a row") && error.contains("resblock 2 of 4"), "{error}");
    let saved = run.newest_checkpoint(&Silent).unwrap().unwrap();
    assert_eq!((saved.step, saved.adam.updates), (20, 5));
}

/// The loss falls until update 30, rises from there, and is NaN from update 60 on.
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
fn a_run_that_diverges_keeps_the_checkpoint_before_its_loss_rose() {
    let dir = tempfile::tempdir().unwrap();
    let run = open(&dir);
    let stop = AtomicBool::new(false);
    let error = fit(&Diverging, linear(), &config(), &run, control(&stop)).err().unwrap().to_string();
    // Checkpoints are 7 updates apart; those up to 35 have losses around 8.
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
fn the_average_follows_every_25_updates_and_not_between() {
    let config = FitConfig { ema: 0.9, ema_every: 25, ema_rise: false, ..config() };
    let task = Overflowing(|_| false);
    let mut trainer = Trainer::new(&task, linear(), &config, None).unwrap();
    let first = trainer.state.average[0].values[0];
    (0..25).for_each(|_| drop(trainer.step().unwrap()));
    assert_eq!(trainer.state.average[0].values[0], first);
    let weight = trainer.state.weights[0].values[0]; // what update 25 starts from
    (0..20).for_each(|_| drop(trainer.step().unwrap()));
    let wanted = 0.9 * first + 0.1 * weight;
    assert!((trainer.state.average[0].values[0] - wanted).abs() < 1e-6 && first != weight);
}

/// An average with a decay of 0 would still be one update behind.
#[test]
fn without_an_average_the_newest_weights_are_shipped() {
    let task = Overflowing(|_| false);
    for (ema, is_shipped) in [(0.0, true), (0.5, false)] {
        let config = FitConfig { ema, ema_every: 1, ema_rise: false, ..config() };
        let mut trainer = Trainer::new(&task, linear(), &config, None).unwrap();
        (0..5).for_each(|_| drop(trainer.step().unwrap()));
        assert_eq!(export(&trainer.averaged().unwrap()) == trainer.state.weights, is_shipped);
    }
}

/// The loss of `Overflowing` stays at 1, so that windows of 10 updates are soon all alike.
#[test]
fn on_a_plateau_the_step_is_halved_and_a_resumed_run_halves_at_the_same_update() {
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
    let wanted = |update: usize| [0.4, 0.2, 0.1, 0.1, 0.1][update.saturating_sub(10) / 30];
    (0..150).for_each(|update| assert!((lrs[update] - wanted(update)).abs() < 1e-12, "{update}: {lrs:?}"));
}

/// A loss that is NaN in update `at`, which resblock 3 was the first to show, if it `fails`.
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
fn a_loss_that_is_nan_names_the_first_resblock_and_leaves_a_checkpoint() {
    // Between two checkpoints, and right behind one.
    for at in [5, 14] {
        let dir = tempfile::tempdir().unwrap();
        let run = open(&dir);
        let task = Broken { at, fails: true };
        let error = fit(&task, linear(), &config(), &run, control(&AtomicBool::new(false))).err().unwrap();
        assert!(error.to_string().contains("the loss is NaN; resblock 3"), "{error}");
        assert_eq!(run.newest_checkpoint(&Silent).unwrap().unwrap().step, at);
    }
}

/// The average follows while the gradient is computed that then fails: once more it must not.
#[test]
fn a_run_goes_on_from_a_failed_update_to_the_same_bits() {
    let steps = |trainer: &mut Trainer<Broken>, n| (0..n).for_each(|_| drop(trainer.step().unwrap()));
    let (config, at) = (config(), 5);
    let [whole, failing] = [false, true].map(|fails| Broken { at, fails });
    let mut wanted = Trainer::new(&whole, linear(), &config, None).unwrap();
    steps(&mut wanted, 9);
    let dir = tempfile::tempdir().unwrap();
    let run = open(&dir);
    let mut trainer = Trainer::new(&failing, linear(), &config, None).unwrap();
    steps(&mut trainer, at);
    assert!(trainer.step().is_err());
    run.write_checkpoint(&trainer.state).unwrap();
    let saved = run.newest_checkpoint(&Silent).unwrap();
    let mut resumed = Trainer::new(&whole, linear(), &config, saved).unwrap();
    steps(&mut resumed, 9 - at);
    assert_eq!(resumed.state.weights, wanted.state.weights);
    assert_eq!(resumed.state.average, wanted.state.average);
}

/// Batches that cannot be made from the fifth on.
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

    /// So that losses from before are not compared.
    fn settled(&self) -> u64 {
        3
    }
}

#[test]
fn a_batch_that_cannot_be_made_ends_the_run_at_its_step_and_leaves_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let run = open(&dir);
    let error = fit(&Spoilt, linear(), &config(), &run, control(&AtomicBool::new(false))).err().unwrap();
    assert_eq!(error.to_string(), "picture 7 is damaged");
    assert_eq!(run.newest_checkpoint(&Silent).unwrap().unwrap().step, 5);
}

#[test]
fn losses_are_gathered_from_the_update_on_in_which_the_objective_has_settled() {
    let config = config();
    let mut trainer = Trainer::new(&Spoilt, linear(), &config, None).unwrap();
    (0..5).for_each(|_| drop(trainer.step().unwrap()));
    assert_eq!(trainer.state.losses, Losses { sum: 2.0, n: 2 });
}

/// β rises over the first 20 updates, and the loss with it.
#[test]
fn losses_from_before_the_objective_settled_are_not_compared_with() {
    let mut state = Trainer::new(&Diverging, linear(), &config(), None).unwrap().state;
    let mut good = |step, loss, settled| {
        (state.step, state.losses) = (step, Losses { sum: loss, n: 1 });
        state.judge(settled);
        state.good.unwrap().step
    };
    let rising = [(10, 1.0), (20, 2.0), (30, 3.0), (40, 2.9), (50, 4.0)];
    assert_eq!(rising.map(|(step, loss)| good(step, loss, 20)), [10, 20, 30, 40, 40]);
}

#[test]
fn a_checkpoint_of_another_shape_or_kind_is_refused() {
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
fn a_gradient_that_is_not_finite_names_its_weight() {
    let weights = export(&linear());
    let culprit = |values| Gradient::new(values, 0.0, Vec::new()).culprit(&weights).map(str::to_string);
    assert_eq!(culprit(vec![vec![1.0, f32::NAN], vec![0.0]]).as_ref(), Some(&weights[0].name));
    assert_eq!(culprit(vec![vec![f32::NAN, 1.0], vec![f32::INFINITY]]).as_ref(), Some(&weights[1].name));
    assert_eq!(culprit(vec![vec![f32::MAX, 1.0], vec![0.0]]), None);
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    let task = Line { stop: &stop, stop_after: u64::MAX };
    let mut model = Linear::new(&mut Init::new(1, &Device::flex()), [2, 1], 0.1);
    model.bias = Init::new(1, &Device::flex()).normal(Role::Vector, [1], f64::INFINITY);
    let run = open(&dir);
    let error = fit(&task, model, &config(), &run, control(&stop)).err().unwrap();
    assert!(error.to_string().contains("step 0: the loss is"), "{error}");
}
