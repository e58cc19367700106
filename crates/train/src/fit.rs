//! ★ The training loop. There is one, for every task.
//!
//! A step: micro-batches are drawn and differentiated one after another, their gradients averaged, clipped, given to
//! AdamW; the weights' moving average follows. Weights live on the host between steps; every random draw is a function
//! of the seed and the step, so a run that was stopped continues to the same bits.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use burn::module::Module;
use burn::tensor::Tensor;
use image::RgbImage;
use tessera_kernels::{Cpu, approach};
use tessera_model::weights::{HostTensor, export, gradients, import};

use crate::config::FitConfig;
use crate::log::{Log, Metrics};
use crate::optim::{AdamW, average};
use crate::run_dir::RunDir;
use crate::schedule::warmup_cosine;

/// What the loop trains: where batches come from, what is minimised, how it is judged.
pub trait Task: Sync {
    /// The model.
    type Model: Module + Sync;
    /// Part of a batch on the host.
    type Batch: Send;

    /// Part `part` of the batch of update `step`; a pure function of both.
    fn batch(&self, step: u64, part: usize) -> Result<Self::Batch>;
    /// The gradient of a micro-batch's loss, by [`differentiate`] or by a backward pass of the model's own.
    fn gradient(&self, model: &Self::Model, batch: Self::Batch, step: u64) -> Result<Gradient>;
    /// Figures on held-out data.
    fn validate(&self, model: &Self::Model, step: u64) -> Result<Metrics>;
    /// A picture that shows how far the model is.
    fn picture(&self, model: &Self::Model) -> Result<RgbImage>;
}

/// A loss to differentiate and figures beside it.
pub struct Loss {
    /// `[1]`
    pub total: Tensor<1>,
    /// Name and value, `[1]` each.
    pub figures: Vec<(&'static str, Tensor<1>)>,
}

impl Loss {
    /// The loss and the figures as numbers.
    pub fn values(&self) -> (f64, Metrics) {
        let value = |x: &Tensor<1>| x.clone().without_autodiff().into_scalar::<f64>();
        (value(&self.total), self.figures.iter().map(|(name, figure)| (*name, value(figure))).collect())
    }
}

/// A loss's gradient.
pub struct Gradient {
    /// That of each parameter, in the order of `export`.
    pub values: Vec<Vec<f32>>,
    /// The loss.
    pub loss: f64,
    /// Figures to log.
    pub figures: Metrics,
}

/// The gradient of `loss` by one backward pass over its whole graph.
///
/// # Errors
/// If a gradient is not f32.
pub fn differentiate<M: Module>(model: &M, loss: impl FnOnce(&M) -> Loss) -> Result<Gradient> {
    let model = model.clone().train();
    let loss = loss(&model);
    let (value, figures) = loss.values();
    Ok(Gradient { values: gradients(&model, loss.total.backward())?, loss: value, figures })
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
}

impl State {
    fn new(weights: Vec<HostTensor>) -> State {
        State { step: 0, average: weights.clone(), adam: AdamW::new(&weights), weights }
    }
}

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
    stop: &AtomicBool,
) -> Result<(T::Model, Outcome)> {
    let mut trainer = Trainer::new(task, model, config, run.newest_checkpoint()?)?;
    let mut log = Log::open(run.path(), trainer.state.step, config.steps)?;
    while trainer.state.step < config.steps {
        let figures = trainer.step()?;
        let step = trainer.state.step;
        log.train(step, &figures, config)?;

        let last = step == config.steps;
        if last || step.is_multiple_of(config.eval_every) {
            let averaged = trainer.averaged()?;
            log.validation(step, &task.validate(&averaged, step)?)?;
            run.write_sample(step, &task.picture(&averaged)?)?;
        }
        let stopped = stop.load(Ordering::Relaxed);
        if last || stopped || step.is_multiple_of(config.checkpoint_every) {
            run.write_checkpoint(&trainer.state)?;
        }
        if stopped && !last {
            return Ok((trainer.averaged()?, Outcome::Stopped(step)));
        }
    }
    Ok((trainer.averaged()?, Outcome::Finished))
}

/// A model in training.
pub struct Trainer<'a, T: Task> {
    task: &'a T,
    model: T::Model,
    config: &'a FitConfig,
    cpu: Cpu,
    /// What the last step left.
    pub state: State,
}

impl<'a, T: Task> Trainer<'a, T> {
    /// Starts from `state`, or from the weights of `model`.
    pub fn new(task: &'a T, model: T::Model, config: &'a FitConfig, state: Option<State>) -> Result<Self> {
        let state = state.unwrap_or_else(|| State::new(export(&model)));
        let model = import(model, &state.weights).context("the checkpoint is of another model")?;
        Ok(Trainer { task, model, config, cpu: Cpu::current(), state })
    }

    /// One update; returns figures to log.
    ///
    /// # Errors
    /// If a loss or gradient is not finite.
    pub fn step(&mut self) -> Result<Metrics> {
        let (step, config, state) = (self.state.step, self.config, &mut self.state);
        let (gradients, mut figures) =
            batch_gradients(self.task, &self.model, step, config.micro_batches, self.cpu)?;
        let lr = warmup_cosine(config.lr, config.lr_end, step, config.lr_steps, config.warmup);
        let norm = state.adam.update(&mut state.weights, &gradients, config, step, lr);
        ensure!(
            norm.is_finite(),
            "step {step}: the gradient is not finite; try a smaller lr ({})",
            config.lr
        );
        state.step += 1;
        if state.step.is_multiple_of(config.ema_every) {
            average(&mut state.average, &state.weights, config.ema, state.step / config.ema_every);
        }
        self.model = import(self.model.clone(), &state.weights)?;
        figures.extend([("lr", lr), ("gradient_norm", norm)]);
        Ok(figures)
    }

    /// The model with the averaged weights.
    pub fn averaged(&self) -> Result<T::Model> {
        import(self.model.clone(), &self.state.average)
    }
}

/// The mean gradient of a batch in the order of `export`, and its mean figures.
fn batch_gradients<T: Task>(
    task: &T,
    model: &T::Model,
    step: u64,
    parts: usize,
    cpu: Cpu,
) -> Result<(Vec<Vec<f32>>, Metrics)> {
    // Inside the pool, handing work to its threads costs a fraction of what it does from outside.
    let part = |part| rayon::scope(|_| cpu.scope(|| micro_batch(task, model, step, part)));
    let (mut mean, mut figures) = part(0)?;
    for i in 1..parts {
        let (gradients, part_figures) = part(i)?;
        let share = 1.0 / (i + 1) as f32;
        mean.iter_mut().zip(gradients).for_each(|(mean, gradient)| approach(mean, &gradient, share));
        for (mean, part) in figures.iter_mut().zip(part_figures) {
            mean.1 += f64::from(share) * (part.1 - mean.1);
        }
    }
    Ok((mean, figures))
}

fn micro_batch<T: Task>(
    task: &T,
    model: &T::Model,
    step: u64,
    part: usize,
) -> Result<(Vec<Vec<f32>>, Metrics)> {
    let gradient = task.gradient(model, task.batch(step, part)?, step)?;
    ensure!(gradient.loss.is_finite(), "step {step}: the loss is {}; try a smaller lr", gradient.loss);
    let mut figures = vec![("loss", gradient.loss)];
    figures.extend(gradient.figures);
    Ok((gradient.values, figures))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::tensor::{Device, TensorData};
    use tessera_model::nn::{Init, Linear};

    use super::*;
    use crate::config::Config;

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

        fn gradient(&self, model: &Linear, x: Vec<f32>, _: u64) -> Result<Gradient> {
            let y: Vec<f32> = x.chunks(2).map(|x| x[0] + 2.0 * x[1] + 3.0).collect();
            let device = Device::default();
            let x: Tensor<2> = Tensor::from_data(TensorData::new(x, [4, 2]), &device).autodiff();
            let y: Tensor<2> = Tensor::from_data(TensorData::new(y, [4, 1]), &device).autodiff();
            differentiate(model, |model| {
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

    /// Trains in `dir`, stopping after `stop_after` steps if that is before the end.
    fn train(dir: &Path, stop_after: u64) -> (Vec<HostTensor>, Outcome) {
        let stop = AtomicBool::new(false);
        let task = Line { stop: &stop, stop_after };
        let model = Linear::new(&mut Init::new(1, &Device::default()), [2, 1], 0.1);
        let run = RunDir::open(dir, "c = 1\n", dir.exists()).unwrap();
        let (model, outcome) = fit(&task, model, &config(), &run, &stop).unwrap();
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

    #[test]
    fn a_loss_that_is_not_finite_stops_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let stop = AtomicBool::new(false);
        let task = Line { stop: &stop, stop_after: u64::MAX };
        let mut model = Linear::new(&mut Init::new(1, &Device::default()), [2, 1], 0.1);
        model.bias = Init::new(1, &Device::default()).normal([1], f64::INFINITY);
        let run = RunDir::open(&dir.path().join("run"), "c = 1\n", false).unwrap();
        let error = fit(&task, model, &config(), &run, &stop).err().unwrap();
        assert!(error.to_string().contains("step 0: the loss is"), "{error}");
    }
}
