//! The steps that `train dvae`, `train prior` and `train rerank` have in common: initial weights,
//! pace, run folder, training, and the model file.

use anyhow::Result;
use tessera_kernels::Cpu;
use tessera_model::weights::ModelFile;

use crate::capacity::Stage;
use crate::config::Config;
use crate::control::Control;
use crate::fit::{Outcome, Task, Training, fit};
use crate::precision::Scales;
use crate::run_dir::{Initial, RunDir, RunOptions};
use crate::same_run::Input;

/// A task of a training command.
pub(crate) trait StageTask: Task + Sized {
    /// The stage.
    const STAGE: Stage;
    /// The inputs that must be those of the run from whose checkpoint the weights are taken.
    const SAME_INPUTS: &'static [&'static str];

    /// Returns the config.
    fn config(&self) -> &Config;
    /// Returns the task with another config, in which only the lengths of schedules differ.
    fn with_config(self, config: Config) -> Self;
    /// Returns the kernels for computations on the host.
    fn cpu(&self) -> Cpu;
    /// Makes part `part` of the batch of update `step`. It is a pure function of both.
    fn batch(&self, step: u64, part: usize) -> Result<Self::Batch>;
    /// Returns the initial gradient scales if gradients are stored in 16 bits.
    fn scales(&self, _: &Self::Model) -> Option<Scales> {
        None
    }
    /// Returns the number of the first update in which the loss function has its final form.
    fn loss_is_final_from(&self) -> u64 {
        0
    }
    /// Makes a model with random weights.
    fn random(&self) -> Self::Model;
    /// Makes a model with the weights of a model file.
    ///
    /// # Errors
    /// If the file does not fit the config.
    fn of_file(&mut self, file: ModelFile, control: Control) -> Result<Self::Model>;
    /// Returns the model file, without its origin.
    fn file(&self, model: &Self::Model) -> ModelFile;
}

/// Trains the task's model, and writes its file to the run's folder when the run finishes or is
/// stopped. `inputs` identify the data.
///
/// # Errors
/// If the initial weights do not fit, the folder belongs to another run, or the training fails.
pub(crate) fn train<T: StageTask>(
    mut task: T,
    mut inputs: Vec<Input>,
    options: &RunOptions,
    control: Control,
) -> Result<Outcome> {
    let (initial, named) = options.initial(control.reporter)?;
    inputs.extend(named);
    let model = match initial {
        Initial::Random => task.random(),
        Initial::Checkpoint(checkpoint) => {
            checkpoint.averaged(task.random(), T::STAGE, &inputs, T::SAME_INPUTS)?
        }
        Initial::Model(file) => task.of_file(*file, control)?,
    };
    let paced = match options.pace {
        Some(pace) => pace.config(&task, &model, options.resume.then_some(options.dir))?,
        None => task.config().clone(),
    };
    let task = task.with_config(paced);
    let run = RunDir::start(options, T::STAGE, &inputs, task.config(), control.reporter)?;
    let batch = |step, part| task.batch(step, part);
    let (model, outcome) = fit(&training(&task, &batch, &model), model, &run, control)?;
    run.write_model(&ModelFile { origin: Some(run.origin()?), ..task.file(&model) })?;
    Ok(outcome)
}

/// Returns what the training loop needs for a task.
pub(crate) fn training<'a, T: StageTask>(
    task: &'a T,
    batch: &'a (dyn Fn(u64, usize) -> Result<T::Batch> + Sync),
    model: &T::Model,
) -> Training<'a, T> {
    Training {
        task,
        batch,
        config: task.config().fit(T::STAGE),
        cpu: task.cpu(),
        scales: task.scales(model),
        loss_is_final_from: task.loss_is_final_from(),
    }
}
