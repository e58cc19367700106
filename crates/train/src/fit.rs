//! ★ The training loop. All tasks share it: the dVAE, the prior and the contrastive model.
//!
//! [`Trainer::step`] does one update:
//! 1. It takes the micro-batches of the step, which another thread has prepared ([`Prefetcher`]).
//! 2. The task sums their gradients. In parallel, the moving average of the weights is updated.
//! 3. With 16-bit storage, it adjusts the gradient scales. If a value was not finite, it skips the
//!    rest of the update (paper §D.1).
//! 4. It clips the gradient and updates the weights with AdamW.
//! 5. It lets the task change the weights, for example to enforce bounds.
//!
//! [`fit`] repeats this step, and regularly validates the model and saves a checkpoint.
//!
//! The weights are in a [`ParamStore`], on the device that computes. Every random number is a
//! function of the seed and the step. A run that is stopped and resumed therefore ends with
//! bit-identical weights.

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
use tessera_model::nn::{GradientSink, HostTensor, parameters, without_values};
use tessera_model::prior::{Block, BlockSource};

use crate::best::Best;
use crate::config::FitConfig;
use crate::control::Control;
use crate::dist::gather::{Gathering, SharedLayers, collected, complete};
use crate::dist::gradients::{Compressors, WorldGradients, compressors};
use crate::dist::lane::Lane;
use crate::dist::powersgd::PowerSgdSettings;
use crate::dist::world::World;
use crate::gradient::Sums;
use crate::log::{Log, Metrics};
use crate::optim;
use crate::params::{ParamStore, Which};
use crate::precision::Scales;
use crate::prefetch::{Prefetcher, make_parts};
use crate::run_dir::RunDir;
use crate::schedule::{Plateau, learning_rate};
use crate::slots::Slots;

/// What the loop trains: the loss, and how the model is validated.
pub trait Task: Sync {
    /// The model that is trained.
    type Model: Module + Sync;
    /// A micro-batch: one part of a batch, on the host.
    type Batch: Send;

    /// Passes the gradients of the losses of `parts`, this rank's micro-batches, to `sink`.
    ///
    /// A loss that compares all samples of a batch with each other counts as one micro-batch.
    fn accumulate(
        &self,
        model: &Self::Model,
        parts: Vec<Self::Batch>,
        update: Update,
        sink: &mut dyn GradientSink,
    ) -> Result<Sums>;
    /// Returns the layers of the model. Ranks that share the parameters gather one layer at a time.
    fn layers(_model: &Self::Model) -> &[Block] {
        &[]
    }
    /// Changes the weights and their moving average after update `step`, for example to enforce
    /// bounds. The result must depend only on the step and on these weights.
    ///
    /// # Errors
    /// If the change cannot be made.
    fn after_update(&self, _step: u64, _params: &mut ParamStore) -> Result<()> {
        Ok(())
    }
    /// Measures the model after update `step` on held-out data.
    fn validate(&self, _model: &Self::Model, _step: u64) -> Result<Validation> {
        Ok(Validation::default())
    }
    /// Returns a sample picture that shows how good the model is.
    fn sample(&self, _model: &Self::Model) -> Result<Option<RgbImage>> {
        Ok(None)
    }
}

/// What a task needs to know of an update.
#[derive(Clone, Copy)]
pub struct Update<'a> {
    /// The number of the update, counted from 0.
    pub step: u64,
    /// The current gradient scales, if there are any.
    pub scales: Option<&'a [f32]>,
    /// Provides the layers ([`Task::layers`]) if the model itself has no values for them.
    pub layers: Option<&'a dyn BlockSource>,
    /// All ranks.
    pub ranks: &'a Lane,
}

#[cfg(test)]
impl Update<'static> {
    /// An update of a single process without gradient scales.
    pub(crate) fn alone(step: u64) -> Update<'static> {
        Update { step, scales: None, layers: None, ranks: &World::solo().all }
    }
}

/// The result of a validation.
#[derive(Debug, Clone, Default)]
pub struct Validation {
    /// The metrics to log.
    pub metrics: Metrics,
    /// The held-out loss, if there is one. The checkpoint with the lowest one is the best.
    pub loss: Option<f64>,
    /// A warning, if the metrics show a known problem.
    pub warning: Option<String>,
}

/// A task with everything else that the loop needs.
pub struct Training<'a, T: Task> {
    /// The task.
    pub task: &'a T,
    /// Makes a micro-batch, given the update and the slots of the micro-batch. It is a pure function
    /// of both.
    pub batch: &'a (dyn Fn(u64, Slots) -> Result<T::Batch> + Sync),
    /// All ranks of the training.
    pub world: &'a World,
    /// The micro-batches of this rank in each update.
    pub slots: Vec<Slots>,
    /// The lengths of the run and the settings of the optimizer.
    pub config: &'a FitConfig,
    /// The kernels for computations on the host.
    pub cpu: Cpu,
    /// The initial gradient scales if gradients are stored in 16 bits.
    pub scales: Option<Scales>,
    /// How gradients are compressed between replicas, if they are. `rank` is that of all shards
    /// together.
    pub powersgd: Option<PowerSgdSettings>,
    /// The first update in which the loss function has its final form. Before this update, the
    /// weights of its terms (β of the dVAE) still change with every step, so losses of different
    /// steps cannot be compared.
    pub loss_is_final_from: u64,
}

/// The state of a training: everything that changes from step to step. A checkpoint contains all
/// fields except `losses`, and the sums of the error buffers instead of the compressors.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainState {
    /// The number of updates so far, including skipped ones. It is also the number of the next
    /// update, because updates are counted from 0.
    pub step: u64,
    /// The weights, their moving average (EMA) and the optimizer state. The average is validated and
    /// saved as the model, unless its decay is 0.
    pub params: ParamStore,
    /// The state of the schedule that halves the learning rate when the training loss stops
    /// falling.
    pub plateau: Plateau,
    /// The gradient scales, if gradients are stored in 16 bits.
    pub scales: Option<Scales>,
    /// PowerSGD's error buffers.
    pub compressors: Compressors,
    /// Gradients that PowerSGD had not applied when a checkpoint was written: the sums of the error
    /// buffers of all replicas. The compressors divide them when training continues.
    pub unapplied: Vec<HostTensor>,
    /// The last checkpoint from which a diverged run can continue.
    pub good: Option<GoodCheckpoint>,
    /// The checkpoint with the lowest held-out loss.
    pub best: Option<Best>,
    /// Whether the moving average already includes the current weights. Between steps this is true
    /// only if the last update failed: then the next attempt must not add them a second time.
    pub average_is_current: bool,
    /// The training losses since the last checkpoint, without those before
    /// [`Training::loss_is_final_from`]. They are not saved, because they only serve to find good
    /// checkpoints.
    pub losses: LossSum,
}

impl TrainState {
    fn new(params: ParamStore, scales: Option<Scales>) -> TrainState {
        TrainState {
            step: 0,
            params,
            plateau: Plateau::default(),
            scales,
            compressors: Compressors::default(),
            unapplied: Vec::new(),
            good: None,
            best: None,
            average_is_current: false,
            losses: LossSum::default(),
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

/// The run fails when the compression of gradients has overflowed in this many updates in a row.
const MOST_SKIPPED: u32 = 100;

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
/// `run` if there is one. On the first rank, returns the model with the averaged weights or, if the run
/// overfits, with those of its best checkpoint ([`Best`]).
///
/// # Errors
/// If a loss or gradient is not finite, or the run folder cannot be written.
pub fn fit<T: Task>(
    training: &Training<T>,
    model: T::Model,
    run: &RunDir,
    control: Control,
) -> Result<(Option<T::Model>, Outcome)> {
    let newest = run.newest_checkpoint(control.reporter)?;
    let step = newest.as_ref().map_or("none".to_string(), |state| state.step.to_string());
    training.world.ensure_same("the newest checkpoint", &step)?;
    let trainer = Trainer::new(training, model, newest)?;
    thread::scope(|scope| {
        let steps = trainer.state.step..training.config.steps;
        let prefetcher = Prefetcher::start(scope, training.batch, steps, &training.slots);
        train(Trainer { prefetcher: Some(prefetcher), ..trainer }, run, control)
    })
}

/// Runs the remaining updates of a run, with validation and checkpoints.
fn train<T: Task>(
    mut trainer: Trainer<T>,
    run: &RunDir,
    control: Control,
) -> Result<(Option<T::Model>, Outcome)> {
    let (training, config, world) = (trainer.training, trainer.training.config, trainer.training.world);
    // Only the first rank writes.
    let mut log = match world.is_first() {
        true => Some(Log::open(run.path(), trainer.state.step, config.steps, control.reporter)?),
        false => None,
    };
    if let Some(log) = &mut log {
        log.settings(&run.settings()?);
    }
    while trainer.state.step < config.steps {
        let name = format!("update {}", trainer.state.step);
        let metrics = world.recorded(&name, || trainer.step());
        let metrics = metrics.map_err(|error| save_after_failure(error, &trainer.state, run, world))?;
        let step = trainer.state.step;
        if let Some(log) = &mut log {
            log.train(step, &metrics, config);
            if let Some(scales) = &trainer.state.scales {
                log.scales(step, scales.log2(), &trainer.gradient_log2, config);
            }
        }
        let last = step == config.steps;
        let is_best = match last || step.is_multiple_of(config.eval_every) {
            true => trainer.validate(run, log.as_mut())?,
            false => false,
        };
        let stopped = world.any(control.stop.load(Ordering::Relaxed))?;
        if last || stopped || is_best || step.is_multiple_of(config.checkpoint_every) {
            trainer.state.mark_if_good(training.loss_is_final_from);
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
///
/// All ranks notice a divergence in the same step. Any other failure may be that of one rank, which
/// cannot save anything alone.
fn save_after_failure(
    error: anyhow::Error,
    state: &TrainState,
    run: &RunDir,
    world: &World,
) -> anyhow::Error {
    let diverged = error.is::<Diverged>();
    // Error buffers already contain the gradients of the failed step, which would be added again.
    let is_complete = state.compressors.is_empty();
    if !diverged && (world.all.size() > 1 || !is_complete) {
        return error;
    }
    let saved = if is_complete { run.save(state) } else { Ok(()) };
    let is_noted = diverged && world.is_first();
    let advice = saved.and_then(|()| is_noted.then(|| run.write_divergence(state)).transpose());
    match advice {
        Ok(None) => error,
        Ok(Some(advice)) => anyhow!("{error:#}; {advice}"),
        Err(save_error) => error.context(format!("nothing was saved: {save_error:#}")),
    }
}

/// A model in training, with everything that a step reads and changes.
pub struct Trainer<'a, T: Task> {
    training: &'a Training<'a, T>,
    /// The model without values, which the store lends it.
    model: T::Model,
    /// The state after the last step.
    pub state: TrainState,
    /// The sizes of the gradients that entered the resblocks in the last step
    /// ([`Sums::gradient_log2`]).
    gradient_log2: Vec<f64>,
    /// The number of updates in a row that were skipped because the compression of gradients
    /// overflowed.
    skipped: u32,
    /// Batches that another thread prepares. If `None`, each batch is made when its step begins.
    prefetcher: Option<Prefetcher<T::Batch>>,
}

impl<'a, T: Task> Trainer<'a, T> {
    /// Starts from `state` or, without one, from the weights of `model`.
    ///
    /// # Errors
    /// If `state` belongs to another model or to a run with other gradient scales.
    pub fn new(training: &'a Training<'a, T>, model: T::Model, state: Option<TrainState>) -> Result<Self> {
        let (scales, world) = (&training.scales, training.world);
        let place = [world.shards.rank(), world.shards.size()];
        let own = parameters(&model);
        let model = without_values(model); // so that a parameter is freed when it is divided
        let mut state = match state {
            Some(state) => {
                let params = state.params.bound(own, place).context("the checkpoint is of another model")?;
                TrainState { params, ..state }
            }
            None => TrainState::new(ParamStore::begin(own, training.config.moments, place)?, scales.clone()),
        };
        if let Some(settings) = training.powersgd {
            state.compressors = compressors(&state.params, settings, world, &state.unapplied)?;
        }
        state.unapplied = Vec::new();
        let count = |scales: &Option<Scales>| scales.as_ref().map(|scales| scales.log2().len());
        ensure!(
            count(&state.scales) == count(scales),
            "the checkpoint has gradient scales of {:?} resblocks, wanted {:?}",
            count(&state.scales),
            count(scales)
        );
        Ok(Trainer { training, model, state, gradient_log2: Vec::new(), skipped: 0, prefetcher: None })
    }

    /// Does one update and returns metrics to log. They are empty if the update was skipped because
    /// a 16-bit gradient, or the compression of gradients, was not finite.
    ///
    /// # Errors
    /// If a loss or gradient of 32 bits is not finite, or too many updates in a row were skipped.
    pub fn step(&mut self) -> Result<Metrics> {
        let Training { task, batch, ref slots, config, cpu, world, .. } = *self.training;
        let (step, start) = (self.state.step, Instant::now());
        let parts = match &self.prefetcher {
            Some(prefetcher) => prefetcher.take(step)?,
            None => make_parts(batch, step, slots)?,
        };
        let waited = start.elapsed();
        let state = &mut self.state;
        let (model, shared) = lent::<T>(&self.model, &state.params, world)?;
        let scales = state.scales.as_ref().map(Scales::values);
        let layers = shared.as_ref().map(|layers| layers as &dyn BlockSource);
        let update = Update { step, scales: scales.as_deref(), layers, ranks: &world.all };
        // The weights as they are before this update are added to the moving average. Computing the
        // average and computing the gradient only read these weights. Both therefore run in
        // parallel, and the average costs no extra time (paper §B.2). If the update fails,
        // `average_is_current` prevents the next attempt from adding the same weights again.
        let is_due = !std::mem::replace(&mut state.average_is_current, true);
        let mut gradients =
            WorldGradients::new(world, cpu, &state.params, &mut state.compressors, slots.len());
        let (sums, ()) = rayon::join(
            || task.accumulate(&model, parts, update, &mut gradients),
            || {
                if is_due {
                    update_average(cpu, &mut state.params, config, step);
                }
            },
        );
        let sums = Sums::of_all_ranks(sums?, &world.all)?;
        let mut gradients = gradients.finish(sums.share())?;
        drop((model, shared)); // so that the update changes their values in place
        let sums = check_loss(sums, step, scales.as_ref().map_or(0, Vec::len))?;
        let (share, loss) = (sums.share(), sums.loss * sums.share());
        self.gradient_log2 = sums.gradient_log2;
        // After an overflow, gradient scales change, but weights and optimizer state do not.
        if let Some(scales) = &mut state.scales
            && !scales
                .update(step, &sums.overflowed, gradients.all_finite(world)?)
                .map_err(|error| Diverged(error.to_string()))?
        {
            gradients.discard();
            (state.step, state.average_is_current) = (step + 1, false);
            return Ok(Metrics::new());
        }
        if gradients.is_only_compression {
            gradients.discard();
            self.skipped += 1;
            ensure!(
                self.skipped < MOST_SKIPPED,
                Diverged(format!(
                    "step {step}: the compression of gradients overflowed in {MOST_SKIPPED} updates in a row; \
                     choose smaller powersgd.p_scale and powersgd.q_scale"
                ))
            );
            (state.step, state.average_is_current) = (step + 1, false);
            return Ok(Metrics::new());
        }
        self.skipped = 0;
        let lr = learning_rate(config, step, &state.plateau);
        let norm = gradients.norm;
        if !optim::is_applied(norm, config) {
            gradients.discard();
            let why = match state.params.nonfinite(cpu, &gradients.sums) {
                Some(weight) => format!("is not finite, first at {weight}"),
                None => format!("has the norm {norm:e}, too large to be squared in 32 bits"),
            };
            bail!(Diverged(format!("step {step}: the gradient {why}; lr was {lr:e}")));
        }
        state.params.adamw_(cpu, &mut gradients, config, lr);
        task.after_update(step, &mut state.params)?;
        if step >= self.training.loss_is_final_from {
            state.losses.add(loss);
        }
        state.plateau.update(loss, config.eval_every, config.lr_end / config.lr);
        (state.step, state.average_is_current) = (step + 1, false);
        let waited_ms = waited.as_secs_f64() * 1e3;
        let own = [("lr", lr), ("gradient_norm", norm), ("data_wait_ms", waited_ms)];
        let means = sums.metrics.into_iter().map(|(name, sum)| (name, sum * share));
        Ok([("loss", loss)].into_iter().chain(means).chain(own).collect())
    }

    /// Validates the model and writes a sample sheet, on the first rank. Returns whether the held-out
    /// loss is the lowest so far.
    fn validate(&mut self, run: &RunDir, mut log: Option<&mut Log>) -> Result<bool> {
        let (step, world) = (self.state.step, self.training.world);
        let loss = match (self.averaged()?, &mut log) {
            (Some(averaged), Some(log)) => self.validate_on_first(&averaged, run, log)?,
            _ => None,
        };
        let loss: Vec<f64> = loss.into_iter().collect();
        let loss = world.all.run("validation", move |comm| comm.broadcast(0, bytemuck::cast_slice(&loss)))?;
        // Losses before `loss_is_final_from` cannot be compared with later ones.
        let losses: Vec<f64> = bytemuck::pod_collect_to_vec(&loss);
        let Some(&loss) = losses.first().filter(|_| step >= self.training.loss_is_final_from) else {
            return Ok(false);
        };
        let best = Best::after(self.state.best, step, loss);
        if let Some(log) = log {
            best.warning().iter().for_each(|warning| log.say(warning));
        }
        self.state.best = Some(best);
        Ok(best.since == 0)
    }

    /// Returns the held-out loss, if there is one.
    fn validate_on_first(&self, averaged: &T::Model, run: &RunDir, log: &mut Log) -> Result<Option<f64>> {
        let step = self.state.step;
        let Validation { metrics, loss, warning } = self.training.task.validate(averaged, step)?;
        log.validation(step, &metrics);
        log.warn_once(warning);
        if let Some(picture) = self.training.task.sample(averaged)? {
            log.note(run.write_sample(step, &picture));
            log.picture(step, &picture);
        }
        Ok(loss)
    }

    /// On the first rank, returns the model with the averaged weights or, if `config.ema` is 0, with
    /// the weights themselves.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn averaged(&self) -> Result<Option<T::Model>> {
        let world = self.training.world;
        match world.replicas.rank() {
            0 => collected(&self.model, &self.state.params, self.averaged_is(), &world.shards),
            _ => Ok(None),
        }
    }

    fn averaged_is(&self) -> Which {
        if self.training.config.ema == 0.0 { Which::Value } else { Which::Average }
    }

    /// On the first rank, returns the model for the model file: the newest one or, if the run overfits,
    /// the best one.
    fn final_model(&self, run: &RunDir, control: Control) -> Result<Option<T::Model>> {
        let Some(best) = self.state.best.filter(|best| best.overfits() && !control.last) else {
            return self.averaged();
        };
        control.reporter.note(&format!(
            "the model file gets the weights of step {}, which have the lowest held-out loss; --resume --last writes the last ones",
            best.step
        ));
        if !self.training.world.is_first() {
            return Ok(None);
        }
        let params = run.checkpoint(best.step)?.params.of_model(&self.model)?;
        params.load(self.model.clone(), self.averaged_is()).map(Some)
    }
}

/// Returns `model` with values for an update. If ranks share its parameters, its layers come
/// separately.
fn lent<'m, T: Task>(
    model: &'m T::Model,
    params: &ParamStore,
    world: &'m World,
) -> Result<(T::Model, Option<SharedLayers<'m>>)> {
    if world.shards.size() == 1 {
        return Ok((params.load(model.clone(), Which::Value)?, None));
    }
    let layers = SharedLayers::new(T::layers(model), params, &world.shards);
    let others = params.params.iter().filter(|param| !layers.contain(param.id));
    let others: Vec<_> = others.map(|param| param.shard(Which::Value)).collect();
    let others = Gathering::start(&others, &world.shards).wait()?;
    Ok((complete(model, &others)?, Some(layers)))
}

/// Updates the moving average with the weights before update `step`, once every `config.ema_every`
/// updates.
fn update_average(cpu: Cpu, params: &mut ParamStore, config: &FitConfig, step: u64) {
    if step > 0 && step.is_multiple_of(config.ema_every) {
        params.ema_(cpu, optim::ema_share(config, step / config.ema_every));
    }
}

/// Checks the mean loss of an update.
///
/// A non-finite loss is an error. With 16-bit storage, where `n_scales` is the number of resblocks
/// with a gradient scale, it counts as an overflow in every resblock instead.
fn check_loss(mut sums: Sums, step: u64, n_scales: usize) -> Result<Sums> {
    let loss = sums.loss * sums.share();
    if !loss.is_finite() {
        // With 16-bit storage, an overflow in the forward pass is handled like one in the backward
        // pass.
        sums.overflowed.extend(0..n_scales);
        let first = |i: &usize| {
            format!(
                "; resblock {i} (from 0, attention and MLP in turn) is the first whose output is not finite"
            )
        };
        let place = sums.overflowed.first().map_or(String::new(), first);
        if n_scales == 0 {
            let rank = sums.nonfinite_rank.map_or(String::new(), |rank| format!(" on rank {rank}"));
            bail!(Diverged(format!("step {step}: the loss is {loss}{rank}{place}")));
        }
    }
    Ok(sums)
}

#[cfg(test)]
mod tests;
