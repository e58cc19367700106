//! ★ The training loop. There is one, for every task.
//!
//! A step: micro-batches are drawn and differentiated one after another, their gradients averaged, clipped, given to
//! AdamW; the weights' moving average follows. Weights live on the host between steps; every random draw is a function
//! of the seed and the step, so a run that was stopped continues to the same bits. With 16-bit gradients an update in which
//! one was not finite is skipped, and the scales follow (paper §D.1).

use std::error::Error;
use std::fmt::{Display, Formatter};
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::module::Module;
use image::RgbImage;
use serde::{Deserialize, Serialize};
use tessera_kernels::{Cpu, parallel};
use tessera_model::nn::{HostTensor, Role, export, import, roles};

use crate::config::FitConfig;
use crate::gradient::{Gradient, mean_gradient};
use crate::log::{Log, Metrics};
use crate::optim::{self, AdamW, Moments};
use crate::precision::Scales;
use crate::reporter::Control;
use crate::run_dir::RunDir;
use crate::schedule::{Plateau, learning_rate};

/// What the loop trains: where batches come from, what is minimised, how it is judged.
pub trait Task: Sync {
    /// The model.
    type Model: Module + Sync;
    /// Part of a batch on the host.
    type Batch: Send;

    /// Part `part` of the batch of update `step`; a pure function of both.
    fn batch(&self, step: u64, part: usize) -> Result<Self::Batch>;
    /// The first gradient scales, for a model whose gradients are stored in 16 bits.
    fn scales(&self, _: &Self::Model) -> Option<Scales> {
        None
    }
    /// The gradient of a micro-batch's loss, by [`differentiate`](crate::differentiate) or by a backward pass of the model's own, which is given the
    /// scales if there are any.
    fn gradient(
        &self,
        model: &Self::Model,
        batch: Self::Batch,
        step: u64,
        scales: Option<&[f32]>,
    ) -> Result<Gradient>;
    /// The gradient of the batch of update `step`, in `parts`: the mean of its micro-batches' gradients, unless a loss compares all
    /// items of a batch with each other.
    fn batch_gradient(
        &self,
        model: &Self::Model,
        step: u64,
        parts: usize,
        scales: Option<&[f32]>,
    ) -> Result<Gradient> {
        mean_gradient(parts, |part| self.gradient(model, self.batch(step, part)?, step, scales))
    }
    /// Bounds on weights, laid on after each update.
    fn constrain(&self, _: &mut [HostTensor]) {}
    /// Figures on held-out data.
    fn validate(&self, model: &Self::Model, step: u64) -> Result<Metrics>;
    /// A picture that shows how far the model is.
    fn picture(&self, model: &Self::Model) -> Result<RgbImage>;
}

/// All that changes from step to step, and all that a checkpoint holds.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Updates done.
    pub step: u64,
    /// The weights.
    pub weights: Vec<HostTensor>,
    /// Their moving average: what is validated and shipped.
    pub average: Vec<HostTensor>,
    /// The optimiser's moments.
    pub adam: AdamW,
    /// How the training loss has fallen.
    pub plateau: Plateau,
    /// Gradient scales, where gradients have 16 bits.
    pub scales: Option<Scales>,
    /// The last good checkpoint.
    pub good: Option<Good>,
    /// Training losses since the last checkpoint. Not saved: it only helps to choose good checkpoints.
    pub losses: Losses,
}

impl State {
    fn new(weights: Vec<HostTensor>, roles: &[Role], moments: Moments, scales: Option<Scales>) -> State {
        let (average, adam) = (weights.clone(), AdamW::new(&weights, roles, moments));
        let (plateau, losses) = (Plateau::default(), Losses::default());
        State { step: 0, weights, average, adam, plateau, scales, good: None, losses }
    }

    /// Decides whether the checkpoint of this state is a good one: the loss before it has not risen.
    fn judge(&mut self) {
        let Losses { sum, n } = std::mem::take(&mut self.losses);
        if n == 0 {
            return;
        }
        let mean = sum / n as f64;
        let lowest = self.good.map_or(mean, |good| good.lowest);
        if mean <= lowest + RISEN * lowest.abs() {
            self.good = Some(Good { step: self.step, lowest: lowest.min(mean) });
        }
    }
}

/// Share by which the mean loss before a checkpoint may be above the lowest so far if the checkpoint is to count as good.
const RISEN: f64 = 0.1;

/// A checkpoint before which the loss had not risen: where a run that diverges can go on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Good {
    /// Its step.
    pub step: u64,
    /// The lowest mean loss between two checkpoints so far.
    pub lowest: f64,
}

/// A sum of losses, and how many they are.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Losses {
    sum: f64,
    n: u64,
}

impl Losses {
    fn add(&mut self, loss: f64) {
        (self.sum, self.n) = (self.sum + loss, self.n + 1);
    }
}

/// The error for a run that cannot go on with its settings, since its numbers are no longer finite.
#[derive(Debug)]
struct Diverged(String);

impl Display for Diverged {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Diverged {}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// It was asked to stop; a checkpoint of this step was written.
    Stopped(u64),
}

/// Trains `model` until `config.steps`, from the newest checkpoint of `run` if there is one. Returns the averaged model.
///
/// # Errors
/// If a loss or gradient is not finite, or the run folder cannot be written.
pub fn fit<T: Task>(
    task: &T,
    model: T::Model,
    config: &FitConfig,
    run: &RunDir,
    control: Control,
) -> Result<(T::Model, Outcome)> {
    let mut trainer = Trainer::new(task, model, config, run.newest_checkpoint(control.reporter)?)?;
    let mut log = Log::open(run.path(), trainer.state.step, config.steps, control.reporter)?;
    while trainer.state.step < config.steps {
        let figures = trainer.step().map_err(|error| failed(error, &trainer.state, run))?;
        let step = trainer.state.step;
        log.train(step, &figures, config)?;
        if let Some(scales) = &trainer.state.scales {
            log.scales(step, scales.log2(), &trainer.entering, config)?;
        }
        let last = step == config.steps;
        if last || step.is_multiple_of(config.eval_every) {
            let averaged = trainer.averaged()?;
            log.validation(step, &task.validate(&averaged, step)?)?;
            run.write_sample(step, &task.picture(&averaged)?)?;
        }
        let stopped = control.stop.load(Ordering::Relaxed);
        if last || stopped || step.is_multiple_of(config.checkpoint_every) {
            trainer.state.judge();
            run.write_checkpoint(&trainer.state)?;
        }
        if stopped && !last {
            return Ok((trainer.averaged()?, Outcome::Stopped(step)));
        }
    }
    Ok((trainer.averaged()?, Outcome::Finished))
}

/// Saves what a failed step left, and says how to go on if the run has diverged.
fn failed(error: anyhow::Error, state: &State, run: &RunDir) -> anyhow::Error {
    let diverged = error.is::<Diverged>();
    let saved = run.write_checkpoint(state);
    let noted = saved.and_then(|()| diverged.then(|| run.write_divergence(state)).transpose());
    match noted {
        Ok(None) => error,
        Ok(Some(ways_on)) => anyhow!("{error:#}; {ways_on}"),
        Err(unsaved) => error.context(format!("nothing was saved: {unsaved:#}")),
    }
}

/// A model in training.
pub struct Trainer<'a, T: Task> {
    task: &'a T,
    model: T::Model,
    config: &'a FitConfig,
    cpu: Cpu,
    /// Those of the parameters.
    roles: Vec<Role>,
    /// What the last step left.
    pub state: State,
    /// Of its gradient.
    entering: Vec<f64>,
}

impl<'a, T: Task> Trainer<'a, T> {
    /// Starts from `state`, or from the weights of `model`.
    pub fn new(task: &'a T, model: T::Model, config: &'a FitConfig, state: Option<State>) -> Result<Self> {
        let (scales, roles) = (task.scales(&model), roles(&model));
        let state = match state {
            Some(state) => state,
            None => State::new(export(&model), &roles, config.moments, scales.clone()),
        };
        let count = |scales: &Option<Scales>| scales.as_ref().map(|scales| scales.log2().len());
        ensure!(
            count(&state.scales) == count(&scales),
            "the checkpoint has gradient scales of {:?} resblocks, wanted {:?}",
            count(&state.scales),
            count(&scales)
        );
        let model = import(model, &state.weights).context("the checkpoint is of another model")?;
        Ok(Trainer { task, model, config, cpu: Cpu::current(), roles, state, entering: Vec::new() })
    }

    /// One update; returns figures to log, or none if the update was skipped because a 16-bit gradient was not finite.
    ///
    /// # Errors
    /// If a loss or gradient of 32 bits is not finite, or too many updates in a row were skipped.
    pub fn step(&mut self) -> Result<Metrics> {
        let (step, config, state) = (self.state.step, self.config, &mut self.state);
        let scales = state.scales.as_ref().map(Scales::values);
        // The average follows what this update starts from while the gradient is computed: nobody waits for it (paper §B.2).
        let (average, weights) = (&mut state.average, &state.weights);
        let (gradient, ()) = parallel::join(
            || {
                self.cpu.scope(|| {
                    self.task.batch_gradient(&self.model, step, config.micro_batches, scales.as_deref())
                })
            },
            || self.cpu.scope(|| follow(average, weights, config, step)),
        );
        let gradient = checked(gradient?, step, scales.as_ref().map_or(0, Vec::len))?;
        self.entering.clone_from(&gradient.entering);
        if let Some(scales) = &mut state.scales
            && !scales
                .follow(step, &gradient.overflowed, gradient.is_finite())
                .map_err(|error| Diverged(error.to_string()))?
        {
            state.step += 1;
            return Ok(Metrics::new());
        }
        let lr = learning_rate(config, step, &state.plateau);
        let norm = state.adam.update(&mut state.weights, &self.roles, &gradient.values, config, lr);
        if !optim::is_applied(norm, config) {
            let why = match gradient.culprit(&state.weights) {
                Some(weight) => format!("is not finite, first at {weight}"),
                None => format!("has the norm {norm:e}, too large to be squared in 32 bits"),
            };
            bail!(Diverged(format!("step {step}: the gradient {why}; lr was {lr:e}")));
        }
        self.task.constrain(&mut state.weights);
        state.losses.add(gradient.loss);
        state.plateau.follow(gradient.loss, config.eval_every, config.lr_end / config.lr);
        state.step += 1;
        self.model = import(self.model.clone(), &state.weights)?;
        let mut figures = gradient.figures;
        figures.extend([("lr", lr), ("gradient_norm", norm)]);
        Ok(figures)
    }

    /// The model with the averaged weights, or with the weights themselves if none are averaged.
    pub fn averaged(&self) -> Result<T::Model> {
        let weights = if self.config.ema == 0.0 { &self.state.weights } else { &self.state.average };
        import(self.model.clone(), weights)
    }
}

/// Every `ema_every` updates: the average follows the weights.
fn follow(average: &mut [HostTensor], weights: &[HostTensor], config: &FitConfig, step: u64) {
    if step > 0 && step.is_multiple_of(config.ema_every) {
        optim::average(average, weights, config, step / config.ema_every);
    }
}

/// `gradient` with its loss as the first figure. A loss that is not finite ends the run, but for numbers of 16 bits, with scales for `n_scales` resblocks: there all
/// have overflowed.
fn checked(mut gradient: Gradient, step: u64, n_scales: usize) -> Result<Gradient> {
    if !gradient.loss.is_finite() {
        // Numbers of 16 bits that overflow on the way forward are as bad as a gradient that is not finite.
        gradient.overflowed.extend(0..n_scales);
        let first = |i: &usize| {
            format!(
                "; resblock {i} (from 0, attention and MLP in turn) is the first whose output is not finite"
            )
        };
        let place = gradient.overflowed.first().map_or(String::new(), first);
        if n_scales == 0 {
            bail!(Diverged(format!("step {step}: the loss is {}{place}", gradient.loss)));
        }
    }
    gradient.figures.insert(0, ("loss", gradient.loss));
    Ok(gradient)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::AtomicBool;

    use burn::tensor::{Device, Tensor, TensorData};
    use tempfile::TempDir;
    use tessera_kernels::SmallFloat;
    use tessera_model::nn::{Init, Linear};

    use super::*;
    use crate::capacity::Stage;
    use crate::config::Config;
    use crate::gradient::{Loss, differentiate};
    use crate::precision::{Rules, Scaling};
    use crate::reporter::Silent;
    use crate::schedule::Schedule;

    /// Learns `y = x · [1, 2]ᵀ + 3`; asks to stop after `stop_after` steps.
    struct Line<'a> {
        stop: &'a AtomicBool,
        stop_after: u64,
    }

    impl Task for Line<'_> {
        type Model = Linear;
        type Batch = Vec<f32>;

        fn batch(&self, step: u64, part: usize) -> Result<Vec<f32>> {
            if step + 1 >= self.stop_after {
                self.stop.store(true, Ordering::Relaxed);
            }
            Ok((0..8).map(|i| ((step * 16 + part as u64 * 8 + i) as f32 * 0.7).sin()).collect())
        }

        fn gradient(&self, model: &Linear, x: Vec<f32>, _: u64, _: Option<&[f32]>) -> Result<Gradient> {
            let y: Vec<f32> = x.chunks(2).map(|x| x[0] + 2.0 * x[1] + 3.0).collect();
            let device = Device::default();
            let x: Tensor<2> = Tensor::from_data(TensorData::new(x, [4, 2]), &device).autodiff();
            let y: Tensor<2> = Tensor::from_data(TensorData::new(y, [4, 1]), &device).autodiff();
            differentiate(model, None, |model| {
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
        let model = Linear::new(&mut Init::new(1, &Device::default()), [2, 1], 0.1);
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
        Linear::new(&mut Init::new(1, &Device::default()), [2, 1], 0.1)
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
        let error = fit(&task, linear(), &config(), &run, control(&AtomicBool::new(false)))
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("16 updates in a row") && error.contains("resblock 2 of 4"), "{error}");
        let saved = run.newest_checkpoint(&Silent).unwrap().unwrap();
        assert_eq!((saved.step, saved.adam.updates), (20, 5));
    }

    /// The loss falls until update 30, rises from there, and is NaN from update 60 on.
    struct Diverging;

    impl Task for Diverging {
        type Model = Linear;
        type Batch = ();

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
        (0..150)
            .for_each(|update| assert!((lrs[update] - wanted(update)).abs() < 1e-12, "{update}: {lrs:?}"));
    }

    /// A loss that is none, which resblock 3 was the first to show.
    struct Broken;

    impl Task for Broken {
        type Model = Linear;
        type Batch = ();

        fn batch(&self, _: u64, _: usize) -> Result<()> {
            Ok(())
        }

        fn gradient(&self, _: &Linear, (): (), _: u64, _: Option<&[f32]>) -> Result<Gradient> {
            Ok(Gradient { overflowed: vec![3], ..Gradient::new(Vec::new(), f64::NAN, Vec::new()) })
        }

        fn validate(&self, _: &Linear, _: u64) -> Result<Metrics> {
            Ok(Metrics::new())
        }

        fn picture(&self, _: &Linear) -> Result<RgbImage> {
            Ok(RgbImage::new(2, 2))
        }
    }

    #[test]
    fn a_loss_that_is_none_names_the_first_resblock_and_leaves_a_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let run = open(&dir);
        let error = fit(&Broken, linear(), &config(), &run, control(&AtomicBool::new(false)))
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("the loss is NaN; resblock 3"), "{error}");
        assert_eq!(run.newest_checkpoint(&Silent).unwrap().unwrap().step, 0);
    }

    #[test]
    fn a_checkpoint_of_another_shape_or_kind_is_refused() {
        let config = config();
        let of_scaled = Trainer::new(&Overflowing(|_| false), linear(), &config, None).unwrap().state;
        let error = Trainer::new(&Broken, linear(), &config, Some(of_scaled)).err().unwrap().to_string();
        assert!(error.contains("gradient scales of Some(4) resblocks, wanted None"), "{error}");
        let wide = Linear::new(&mut Init::new(1, &Device::default()), [3, 1], 0.1);
        let of_wide = Trainer::new(&Broken, wide, &config, None).unwrap().state;
        let error = Trainer::new(&Broken, linear(), &config, Some(of_wide)).err().unwrap();
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
        let mut model = Linear::new(&mut Init::new(1, &Device::default()), [2, 1], 0.1);
        model.bias = Init::new(1, &Device::default()).normal(Role::Vector, [1], f64::INFINITY);
        let run = open(&dir);
        let error = fit(&task, model, &config(), &run, control(&stop)).err().unwrap();
        assert!(error.to_string().contains("step 0: the loss is"), "{error}");
    }
}
