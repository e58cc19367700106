//! ★ The training loop. There is one, for every task.
//!
//! A step: micro-batches are drawn and differentiated one after another, their gradients averaged, clipped, given to
//! AdamW; the weights' moving average follows. Weights live on the host between steps; every random draw is a function
//! of the seed and the step, so a run that was stopped continues to the same bits. With 16-bit gradients an update in which
//! one was not finite is skipped, and the scales follow (paper §D.1).

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

use crate::ahead::{Ahead, whole};
use crate::config::FitConfig;
use crate::control::Control;
use crate::gradient::{Gradient, mean_gradient};
use crate::log::{Log, Metrics};
use crate::optim::{self, AdamW, Moments};
use crate::precision::Scales;
use crate::run_dir::RunDir;
use crate::schedule::{Plateau, learning_rate};

/// What the loop trains: where batches come from, what is minimised, how it is judged.
pub trait Task: Sync {
    /// The model.
    type Model: Module + Sync;
    /// Part of a batch on the host.
    type Batch: Send;

    /// What the host computes with.
    fn cpu(&self) -> Cpu;
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
    /// The gradient of the batch of update `step`, given in its parts: the mean of their gradients, unless a loss compares all
    /// items of a batch with each other.
    fn batch_gradient(
        &self,
        model: &Self::Model,
        step: u64,
        parts: Vec<Self::Batch>,
        scales: Option<&[f32]>,
    ) -> Result<Gradient> {
        mean_gradient(self.cpu(), parts.into_iter().map(|part| self.gradient(model, part, step, scales)))
    }
    /// The update from which on the loss is one and the same function: the weights of its parts may change until then, and losses
    /// from before cannot be compared with later ones.
    fn settled(&self) -> u64 {
        0
    }
    /// Changes weights and their moving average after update `step`: bounds, for example. Like a
    /// batch, the change is a pure function of the step and of what it changes.
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
    /// Figures on held-out data.
    fn validate(&self, model: &Self::Model, step: u64) -> Result<Metrics>;
    /// A picture that shows how far the model is.
    fn picture(&self, model: &Self::Model) -> Result<RgbImage>;
}

/// All that changes from step to step, and all that a checkpoint holds.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainState {
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
    /// Whether the moving average already includes the current weights: true after a failed update.
    pub followed: bool,
    /// Training losses since the last checkpoint, and since the objective has settled. Not saved: it only helps to choose good checkpoints.
    pub losses: Losses,
}

impl TrainState {
    fn new(weights: Vec<HostTensor>, roles: &[Role], moments: Moments, scales: Option<Scales>) -> TrainState {
        let (average, adam) = (weights.clone(), AdamW::new(&weights, roles, moments));
        let (plateau, losses) = (Plateau::default(), Losses::default());
        TrainState { step: 0, weights, average, adam, plateau, scales, good: None, followed: false, losses }
    }

    /// Decides whether the checkpoint of this state is a good one: the loss before it has not risen, compared with losses
    /// behind the update `settled`.
    fn judge(&mut self, settled: u64) {
        let Losses { sum, n } = std::mem::take(&mut self.losses);
        if self.step <= settled {
            // Nothing can be compared yet, so this is the best there is.
            self.good = Some(Good { step: self.step, lowest: f64::MAX });
            return;
        }
        if n == 0 {
            return;
        }
        let mean = sum / n as f64;
        let lowest = self.good.filter(|good| good.step > settled).map_or(mean, |good| good.lowest);
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
    let trainer = Trainer::new(task, model, config, run.newest_checkpoint(control.reporter)?)?;
    thread::scope(|scope| {
        let steps = trainer.state.step..config.steps;
        let ahead = Ahead::start(scope, task, steps, config.micro_batches);
        train(Trainer { ahead: Some(ahead), ..trainer }, run, control)
    })
}

/// The steps that are left of a run.
fn train<T: Task>(mut trainer: Trainer<T>, run: &RunDir, control: Control) -> Result<(T::Model, Outcome)> {
    let (task, config) = (trainer.task, trainer.config);
    let mut log = Log::open(run.path(), trainer.state.step, config.steps, control.reporter)?;
    while trainer.state.step < config.steps {
        let figures = trainer.step().map_err(|error| failed(error, &trainer.state, run))?;
        let step = trainer.state.step;
        log.train(step, &figures, config);
        if let Some(scales) = &trainer.state.scales {
            log.scales(step, scales.log2(), &trainer.entering, config);
        }
        let last = step == config.steps;
        if last || step.is_multiple_of(config.eval_every) {
            let averaged = trainer.averaged()?;
            log.validation(step, &task.validate(&averaged, step)?);
            log.note(run.write_sample(step, &task.picture(&averaged)?));
        }
        let stopped = control.stop.load(Ordering::Relaxed);
        if last || stopped || step.is_multiple_of(config.checkpoint_every) {
            trainer.state.judge(task.settled());
            run.write_checkpoint(&trainer.state)?;
        }
        if stopped && !last {
            return Ok((trainer.averaged()?, Outcome::Stopped(step)));
        }
    }
    Ok((trainer.averaged()?, Outcome::Finished))
}

/// Saves what a failed step left, and says how to go on if the run has diverged.
fn failed(error: anyhow::Error, state: &TrainState, run: &RunDir) -> anyhow::Error {
    let diverged = error.is::<Diverged>();
    let saved = run.save(state);
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
    /// Those of the parameters.
    roles: Vec<Role>,
    /// What the last step left.
    pub state: TrainState,
    /// The size of the last step's gradient where it entered each resblock, as binary logarithms.
    entering: Vec<f64>,
    /// Batches made ahead; without them each is made when its step begins.
    ahead: Option<Ahead<T::Batch>>,
}

impl<'a, T: Task> Trainer<'a, T> {
    /// Starts from `state`, or from the weights of `model`.
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
        Ok(Trainer { task, model, config, roles, state, entering: Vec::new(), ahead: None })
    }

    /// One update; returns figures to log, or none if the update was skipped because a 16-bit gradient was not finite.
    ///
    /// # Errors
    /// If a loss or gradient of 32 bits is not finite, or too many updates in a row were skipped.
    pub fn step(&mut self) -> Result<Metrics> {
        let (step, config, task) = (self.state.step, self.config, self.task);
        let cpu = task.cpu();
        let asked = Instant::now();
        let parts = match &self.ahead {
            Some(ahead) => ahead.take(step)?,
            None => whole(task, step, config.micro_batches)?,
        };
        let waited = asked.elapsed();
        let state = &mut self.state;
        let scales = state.scales.as_ref().map(Scales::values);
        // The average follows what this update starts from while the gradient is computed: nobody waits for it (paper §B.2).
        // If the update fails, the next attempt finds that done.
        let is_due = !std::mem::replace(&mut state.followed, true);
        let (average, weights) = (&mut state.average, &state.weights);
        let (gradient, ()) = rayon::join(
            || task.batch_gradient(&self.model, step, parts, scales.as_deref()),
            || {
                if is_due {
                    follow(cpu, average, weights, config, step);
                }
            },
        );
        let gradient = checked(gradient?, step, scales.as_ref().map_or(0, Vec::len))?;
        self.entering.clone_from(&gradient.entering);
        if let Some(scales) = &mut state.scales
            && !scales
                .follow(step, &gradient.overflowed, gradient.is_finite(cpu))
                .map_err(|error| Diverged(error.to_string()))?
        {
            (state.step, state.followed) = (step + 1, false);
            return Ok(Metrics::new());
        }
        let lr = learning_rate(config, step, &state.plateau);
        let norm = state.adam.update(cpu, &mut state.weights, &self.roles, &gradient.values, config, lr);
        if !optim::is_applied(norm, config) {
            let why = match gradient.culprit(&state.weights) {
                Some(weight) => format!("is not finite, first at {weight}"),
                None => format!("has the norm {norm:e}, too large to be squared in 32 bits"),
            };
            bail!(Diverged(format!("step {step}: the gradient {why}; lr was {lr:e}")));
        }
        self.task.after_update(step, &mut state.weights, &mut state.average)?;
        if step >= task.settled() {
            state.losses.add(gradient.loss);
        }
        state.plateau.follow(gradient.loss, config.eval_every, config.lr_end / config.lr);
        (state.step, state.followed) = (step + 1, false);
        self.model = import(self.model.clone(), &state.weights)?;
        let mut figures = gradient.figures;
        let waited_ms = waited.as_secs_f64() * 1e3;
        figures.extend([("lr", lr), ("gradient_norm", norm), ("data_wait_ms", waited_ms)]);
        Ok(figures)
    }

    /// The model with the averaged weights, or with the weights themselves if none are averaged.
    pub fn averaged(&self) -> Result<T::Model> {
        let weights = if self.config.ema == 0.0 { &self.state.weights } else { &self.state.average };
        import(self.model.clone(), weights)
    }
}

/// Every `ema_every` updates: the average follows the weights.
fn follow(cpu: Cpu, average: &mut [HostTensor], weights: &[HostTensor], config: &FitConfig, step: u64) {
    if step > 0 && step.is_multiple_of(config.ema_every) {
        optim::average(cpu, average, weights, config, step / config.ema_every);
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
mod tests;
