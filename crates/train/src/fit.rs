//! ★ The training loop. All tasks share it: the dVAE, the prior and the contrastive model.
//!
//! [`Trainer::step`] does one update:
//! 1. It takes the micro-batches of the step, which another thread has prepared ([`Prefetcher`]).
//! 2. It computes their gradients one after another and averages them. In parallel, it updates the
//!    moving average of the weights.
//! 3. With 16-bit storage, it adjusts the gradient scales. If a value was not finite, it skips the
//!    rest of the update (paper §D.1).
//! 4. It clips the gradient and updates the weights with AdamW.
//! 5. It lets the task change the weights, for example to enforce bounds.
//!
//! [`fit`] repeats this step, and regularly validates the model and saves a checkpoint.
//!
//! Between steps, the weights are arrays on the host. Every random number is a function of the seed
//! and the step. A run that is stopped and resumed therefore ends with bit-identical weights.

use std::error::Error;
use std::fmt::{Display, Formatter};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::module::Module;
use image::RgbImage;
use serde::{Deserialize, Serialize};
use tessera_kernels::Cpu;
use tessera_model::nn::{HostTensor, Role, export, import, roles};

use crate::best::Best;
use crate::config::FitConfig;
use crate::control::Control;
use crate::gradient::{Gradient, mean_gradient};
use crate::log::{Log, Metrics};
use crate::optim::{self, AdamW, Moments};
use crate::precision::Scales;
use crate::prefetch::{Prefetcher, make_parts};
use crate::run_dir::RunDir;
use crate::schedule::{Plateau, learning_rate};

/// What the loop trains: where batches come from, which loss is minimised, and how the model is
/// validated.
pub trait Task: Sync {
    /// The model that is trained.
    type Model: Module + Sync;
    /// A micro-batch: one part of a batch, on the host.
    type Batch: Send;

    /// Returns the kernels for computations on the host.
    fn cpu(&self) -> Cpu;
    /// Returns part `part` of the batch of update `step`. It is a pure function of both.
    fn batch(&self, step: u64, part: usize) -> Result<Self::Batch>;
    /// Returns the initial gradient scales if gradients are stored in 16 bits, otherwise `None`.
    fn scales(&self, _: &Self::Model) -> Option<Scales> {
        None
    }
    /// Computes the gradient of a micro-batch's loss, with
    /// [`differentiate`](crate::differentiate) or with a backward pass that the model implements.
    /// `scales` are the current gradient scales, if there are any.
    fn gradient(
        &self,
        model: &Self::Model,
        batch: Self::Batch,
        step: u64,
        scales: Option<&[f32]>,
    ) -> Result<Gradient>;
    /// Computes the gradient of the batch of update `step`. `parts` are the micro-batches of this
    /// batch.
    ///
    /// By default, the result is the mean of their gradients. A task overrides this if its loss
    /// compares all samples of a batch with each other.
    fn batch_gradient(
        &self,
        model: &Self::Model,
        step: u64,
        parts: Vec<Self::Batch>,
        scales: Option<&[f32]>,
    ) -> Result<Gradient> {
        mean_gradient(self.cpu(), parts.into_iter().map(|part| self.gradient(model, part, step, scales)))
    }
    /// Returns the number of the first update in which the loss function has its final form. Before
    /// this update, the weights of its terms (β of the dVAE) still change with every step, so
    /// losses of different steps cannot be compared.
    fn loss_is_final_from(&self) -> u64 {
        0
    }
    /// Changes the weights and their moving average after update `step`, for example to enforce
    /// bounds. The result must depend only on the step and on these weights.
    ///
    /// # Errors
    /// If the change cannot be made.
    fn after_update(
        &self,
        _step: u64,
        _weights: &mut [HostTensor],
        _average: &mut [HostTensor],
    ) -> Result<()> {
        Ok(())
    }
    /// Computes metrics on held-out data.
    fn validate(&self, model: &Self::Model, step: u64) -> Result<Metrics>;
    /// Returns the held-out loss, which is one of the metrics of [`validate`](Task::validate), or
    /// `None` if the task has none. The checkpoint with the lowest held-out loss is the best.
    fn held_out_loss(&self, _metrics: &Metrics) -> Option<f64> {
        None
    }
    /// Returns a warning if the metrics of a validation after update `step` show a known problem.
    fn warning(&self, _metrics: &Metrics, _step: u64) -> Option<String> {
        None
    }
    /// Returns a sample picture that shows how good the model is.
    fn picture(&self, model: &Self::Model) -> Result<RgbImage>;
}

/// The state of a training: everything that changes from step to step. A checkpoint contains all
/// fields except `losses`.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainState {
    /// The number of updates so far, including skipped ones. It is also the number of the next
    /// update, because updates are counted from 0.
    pub step: u64,
    /// The weights.
    pub weights: Vec<HostTensor>,
    /// The moving average (EMA) of the weights. It is validated and saved as the model, unless its
    /// decay is 0.
    pub average: Vec<HostTensor>,
    /// The optimizer state.
    pub adam: AdamW,
    /// The state of the schedule that halves the learning rate when the training loss stops
    /// falling.
    pub plateau: Plateau,
    /// The gradient scales, if gradients are stored in 16 bits.
    pub scales: Option<Scales>,
    /// The last checkpoint from which a diverged run can continue.
    pub good: Option<GoodCheckpoint>,
    /// The checkpoint with the lowest held-out loss.
    pub best: Option<Best>,
    /// Whether the moving average already includes the current weights. Between steps this is true
    /// only if the last update failed: then the next attempt must not add them a second time.
    pub average_is_current: bool,
    /// The training losses since the last checkpoint, without those before
    /// [`Task::loss_is_final_from`]. They are not saved, because they only serve to find good
    /// checkpoints.
    pub losses: LossSum,
}

impl TrainState {
    fn new(weights: Vec<HostTensor>, roles: &[Role], moments: Moments, scales: Option<Scales>) -> TrainState {
        let (average, adam) = (weights.clone(), AdamW::new(&weights, roles, moments));
        let (plateau, losses) = (Plateau::default(), LossSum::default());
        TrainState {
            step: 0,
            weights,
            average,
            adam,
            plateau,
            scales,
            good: None,
            best: None,
            average_is_current: false,
            losses,
        }
    }

    /// Marks this state as the last good checkpoint if the mean loss since the previous checkpoint
    /// has not risen. Only losses after the update `final_from` are compared.
    fn mark_if_good(&mut self, final_from: u64) {
        let LossSum { sum, n } = std::mem::take(&mut self.losses);
        if self.step <= final_from {
            // No losses can be compared yet, so the newest checkpoint counts as good.
            self.good = Some(GoodCheckpoint { step: self.step, lowest: f64::MAX });
            return;
        }
        if n == 0 {
            return;
        }
        let mean = sum / n as f64;
        let lowest = self.good.filter(|good| good.step > final_from).map_or(mean, |good| good.lowest);
        if mean <= lowest + MAX_RISE * lowest.abs() {
            self.good = Some(GoodCheckpoint { step: self.step, lowest: lowest.min(mean) });
        }
    }
}

/// A checkpoint is good if the mean training loss since the previous checkpoint is at most this
/// fraction above the lowest such mean so far.
const MAX_RISE: f64 = 0.1;

/// A good checkpoint: when it was written, the training loss was not rising. A run that diverges
/// later can continue from it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GoodCheckpoint {
    /// The step of the checkpoint.
    pub step: u64,
    /// The lowest mean loss so far, where each mean is over the steps between two checkpoints.
    pub lowest: f64,
}

/// A sum of losses, and their number.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossSum {
    sum: f64,
    n: u64,
}

impl LossSum {
    fn add(&mut self, loss: f64) {
        (self.sum, self.n) = (self.sum + loss, self.n + 1);
    }
}

/// The error of a run that has diverged: a loss or gradient is no longer usable, and the same
/// settings would fail again.
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
    /// All updates are done.
    Finished,
    /// The run was stopped, and has saved a checkpoint of this step.
    Stopped(u64),
}

/// Trains `model` until `config.steps` updates are done, starting from the newest checkpoint of
/// `run` if there is one. Returns the model with the averaged weights or, if the run overfits, with
/// those of its best checkpoint ([`Best`]).
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
    let trainer = Trainer::new(task, model, config, run.newest_checkpoint(control.reporter)?)?;
    thread::scope(|scope| {
        let steps = trainer.state.step..config.steps;
        let prefetcher = Prefetcher::start(scope, task, steps, config.micro_batches);
        train(Trainer { prefetcher: Some(prefetcher), ..trainer }, run, control)
    })
}

/// Runs the remaining updates of a run, with validation and checkpoints.
fn train<T: Task>(mut trainer: Trainer<T>, run: &RunDir, control: Control) -> Result<(T::Model, Outcome)> {
    let (task, config) = (trainer.task, trainer.config);
    let mut log = Log::open(run.path(), trainer.state.step, config.steps, control.reporter)?;
    log.settings(&run.settings()?);
    while trainer.state.step < config.steps {
        let metrics = trainer.step().map_err(|error| save_after_failure(error, &trainer.state, run))?;
        let step = trainer.state.step;
        log.train(step, &metrics, config);
        if let Some(scales) = &trainer.state.scales {
            log.scales(step, scales.log2(), &trainer.gradient_log2, config);
        }
        let last = step == config.steps;
        let is_best = match last || step.is_multiple_of(config.eval_every) {
            true => trainer.validate(run, &mut log)?,
            false => false,
        };
        let stopped = control.stop.load(Ordering::Relaxed);
        if last || stopped || is_best || step.is_multiple_of(config.checkpoint_every) {
            trainer.state.mark_if_good(task.loss_is_final_from());
            run.write_checkpoint(&trainer.state)?;
        }
        if stopped && !last {
            return Ok((trainer.final_model(run, control)?, Outcome::Stopped(step)));
        }
    }
    Ok((trainer.final_model(run, control)?, Outcome::Finished))
}

/// Saves the state after a failed step. If the run has diverged, the returned error explains how to
/// continue it.
fn save_after_failure(error: anyhow::Error, state: &TrainState, run: &RunDir) -> anyhow::Error {
    let diverged = error.is::<Diverged>();
    let saved = run.save(state);
    let advice = saved.and_then(|()| diverged.then(|| run.write_divergence(state)).transpose());
    match advice {
        Ok(None) => error,
        Ok(Some(advice)) => anyhow!("{error:#}; {advice}"),
        Err(save_error) => error.context(format!("nothing was saved: {save_error:#}")),
    }
}

/// A model in training, with everything that a step reads and changes.
pub struct Trainer<'a, T: Task> {
    task: &'a T,
    model: T::Model,
    config: &'a FitConfig,
    /// The role of each parameter, in the order of the weights.
    roles: Vec<Role>,
    /// The state after the last step.
    pub state: TrainState,
    /// The sizes of the gradients that entered the resblocks in the last step
    /// ([`Gradient::gradient_log2`]).
    gradient_log2: Vec<f64>,
    /// Batches that another thread prepares. If `None`, each batch is made when its step begins.
    prefetcher: Option<Prefetcher<T::Batch>>,
}

impl<'a, T: Task> Trainer<'a, T> {
    /// Starts from `state` or, without one, from the weights of `model`.
    ///
    /// # Errors
    /// If `state` belongs to another model or to a run with other gradient scales.
    pub fn new(
        task: &'a T,
        model: T::Model,
        config: &'a FitConfig,
        state: Option<TrainState>,
    ) -> Result<Self> {
        let (scales, roles) = (task.scales(&model), roles(&model));
        let state = match state {
            Some(state) => state,
            None => TrainState::new(export(&model), &roles, config.moments, scales.clone()),
        };
        let count = |scales: &Option<Scales>| scales.as_ref().map(|scales| scales.log2().len());
        ensure!(
            count(&state.scales) == count(&scales),
            "the checkpoint has gradient scales of {:?} resblocks, wanted {:?}",
            count(&state.scales),
            count(&scales)
        );
        let model = import(model, &state.weights).context("the checkpoint is of another model")?;
        Ok(Trainer { task, model, config, roles, state, gradient_log2: Vec::new(), prefetcher: None })
    }

    /// Does one update and returns metrics to log. They are empty if the update was skipped because
    /// a 16-bit gradient was not finite.
    ///
    /// # Errors
    /// If a loss or gradient of 32 bits is not finite, or too many updates in a row were skipped.
    pub fn step(&mut self) -> Result<Metrics> {
        let (step, config, task) = (self.state.step, self.config, self.task);
        let cpu = task.cpu();
        let start = Instant::now();
        let parts = match &self.prefetcher {
            Some(prefetcher) => prefetcher.take(step)?,
            None => make_parts(task, step, config.micro_batches)?,
        };
        let waited = start.elapsed();
        let state = &mut self.state;
        let scales = state.scales.as_ref().map(Scales::values);
        // The weights as they are before this update are added to the moving average. Computing the
        // average and computing the gradient only read these weights. Both therefore run in
        // parallel, and the average costs no extra time (paper §B.2). If the update fails,
        // `average_is_current` prevents the next attempt from adding the same weights again.
        let is_due = !std::mem::replace(&mut state.average_is_current, true);
        let (average, weights) = (&mut state.average, &state.weights);
        let (gradient, ()) = rayon::join(
            || task.batch_gradient(&self.model, step, parts, scales.as_deref()),
            || {
                if is_due {
                    update_average(cpu, average, weights, config, step);
                }
            },
        );
        let gradient = check_loss(gradient?, step, scales.as_ref().map_or(0, Vec::len))?;
        self.gradient_log2.clone_from(&gradient.gradient_log2);
        // After an overflow, gradient scales change, but weights and optimizer state do not.
        if let Some(scales) = &mut state.scales
            && !scales
                .update(step, &gradient.overflowed, gradient.is_finite(cpu))
                .map_err(|error| Diverged(error.to_string()))?
        {
            (state.step, state.average_is_current) = (step + 1, false);
            return Ok(Metrics::new());
        }
        let lr = learning_rate(config, step, &state.plateau);
        let norm = state.adam.update(cpu, &mut state.weights, &self.roles, &gradient.values, config, lr);
        if !optim::is_applied(norm, config) {
            let why = match gradient.nonfinite_weight(&state.weights) {
                Some(weight) => format!("is not finite, first at {weight}"),
                None => format!("has the norm {norm:e}, too large to be squared in 32 bits"),
            };
            bail!(Diverged(format!("step {step}: the gradient {why}; lr was {lr:e}")));
        }
        self.task.after_update(step, &mut state.weights, &mut state.average)?;
        if step >= task.loss_is_final_from() {
            state.losses.add(gradient.loss);
        }
        state.plateau.update(gradient.loss, config.eval_every, config.lr_end / config.lr);
        (state.step, state.average_is_current) = (step + 1, false);
        self.model = import(self.model.clone(), &state.weights)?;
        let mut metrics = gradient.figures;
        let waited_ms = waited.as_secs_f64() * 1e3;
        metrics.extend([("lr", lr), ("gradient_norm", norm), ("data_wait_ms", waited_ms)]);
        Ok(metrics)
    }

    /// Validates the model and writes a sample sheet. Returns whether the held-out loss is the
    /// lowest so far.
    fn validate(&mut self, run: &RunDir, log: &mut Log) -> Result<bool> {
        let (step, averaged) = (self.state.step, self.averaged()?);
        let metrics = self.task.validate(&averaged, step)?;
        log.validation(step, &metrics);
        log.warn_once(self.task.warning(&metrics, step));
        let picture = self.task.picture(&averaged)?;
        log.note(run.write_sample(step, &picture));
        log.picture(step, &picture);
        // Losses before `loss_is_final_from` cannot be compared with later ones.
        let Some(loss) = self.task.held_out_loss(&metrics).filter(|_| step >= self.task.loss_is_final_from())
        else {
            return Ok(false);
        };
        let best = Best::after(self.state.best, step, loss);
        best.warning().iter().for_each(|warning| log.say(warning));
        self.state.best = Some(best);
        Ok(best.since == 0)
    }

    /// Returns the model with the averaged weights or, if `config.ema` is 0, with the weights
    /// themselves.
    pub fn averaged(&self) -> Result<T::Model> {
        self.averaged_of(&self.state)
    }

    fn averaged_of(&self, state: &TrainState) -> Result<T::Model> {
        let weights = if self.config.ema == 0.0 { &state.weights } else { &state.average };
        import(self.model.clone(), weights)
    }

    /// Returns the model for the model file: the newest one or, if the run overfits, the best one.
    fn final_model(&self, run: &RunDir, control: Control) -> Result<T::Model> {
        let Some(best) = self.state.best.filter(|best| best.overfits() && !control.last) else {
            return self.averaged();
        };
        control.reporter.note(&format!(
            "the model file gets the weights of step {}, which have the lowest held-out loss; --resume --last writes the last ones",
            best.step
        ));
        self.averaged_of(&run.checkpoint(best.step)?)
    }
}

/// Updates the moving average of the weights if `step` is a multiple of `ema_every`.
fn update_average(
    cpu: Cpu,
    average: &mut [HostTensor],
    weights: &[HostTensor],
    config: &FitConfig,
    step: u64,
) {
    if step > 0 && step.is_multiple_of(config.ema_every) {
        optim::average(cpu, average, weights, config, step / config.ema_every);
    }
}

/// Returns `gradient` with its loss as the first metric.
///
/// A non-finite loss is an error. With 16-bit storage, where `n_scales` is the number of resblocks
/// with a gradient scale, it counts as an overflow in every resblock instead.
fn check_loss(mut gradient: Gradient, step: u64, n_scales: usize) -> Result<Gradient> {
    if !gradient.loss.is_finite() {
        // With 16-bit storage, an overflow in the forward pass is handled like one in the backward
        // pass.
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
mod tests;
