//! The steps that `train dvae`, `train prior` and `train rerank` have in common: initial weights,
//! pace, run folder, training, and the model file.

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Map, Value};
use tessera_base::DeviceFailed;
use tessera_kernels::Cpu;
use tessera_model::weights::ModelFile;

use crate::capacity::Stage;
use crate::config::Config;
use crate::control::Control;
use crate::dist::powersgd::PowerSgdSettings;
use crate::dist::world::World;
use crate::fit::{Outcome, Task, Training, fit};
use crate::precision::Scales;
use crate::run_dir::{Initial, RunDir, RunOptions};
use crate::same_run::Input;
use crate::slots::Slots;

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
    /// Makes the samples `slots` of the batch of update `step`. They are a pure function of both.
    fn batch(&self, step: u64, slots: Slots) -> Result<Self::Batch>;
    /// Returns the initial gradient scales if gradients are stored in 16 bits.
    fn scales(&self, _: &Self::Model) -> Option<Scales> {
        None
    }
    /// Returns how gradients are compressed between replicas, if they are.
    fn powersgd(&self) -> Option<PowerSgdSettings> {
        None
    }
    /// Returns whether ranks may share the parameters. If not, each has a replica.
    fn may_be_shared(&self) -> bool {
        false
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
        Some(pace) => pace.config(&task, &model, options)?,
        None => task.config().clone(),
    };
    let task = task.with_config(paced);
    let world = options.world;
    ensure!(
        world.shards.size() == 1 || task.may_be_shared(),
        "the {} is too small to be divided among ranks: use --node-size 1",
        T::STAGE
    );
    let run = RunDir::start(options, T::STAGE, &inputs, task.config(), task.cpu(), control.reporter)?;
    let batch = |step, slots| task.batch(step, slots);
    let training = training(&task, &batch, &model, world)?;
    let fitted = options.device.run(|| fit(&training, model, &run, control));
    let (model, outcome) = fitted.map_err(|error| match error.is::<DeviceFailed>() {
        true => error.context("checkpoints are kept; continue from the last one with --resume"),
        false => error,
    })?;
    if let Some(model) = model {
        run.write_model(&ModelFile { origin: Some(run.origin()?), ..task.file(&model) })?;
    }
    Ok(outcome)
}

/// Returns what the training loop needs for a task.
pub(crate) fn training<'a, T: StageTask>(
    task: &'a T,
    batch: &'a (dyn Fn(u64, Slots) -> Result<T::Batch> + Sync),
    model: &T::Model,
    world: &'a World,
) -> Result<Training<'a, T>> {
    let config = task.config().fit(T::STAGE);
    let (rank, ranks) = (world.all.rank(), world.all.size());
    ensure!(
        config.batch.is_multiple_of(config.micro_batches * ranks),
        "a batch of {} cannot be divided among {ranks} ranks with micro_batches = {}: choose another --set {}.batch",
        config.batch,
        config.micro_batches,
        T::STAGE.training()
    );
    Ok(Training {
        task,
        batch,
        world,
        slots: Slots::of_rank(config.batch, config.micro_batches, rank, ranks),
        config,
        cpu: task.cpu(),
        scales: task.scales(model),
        powersgd: task.powersgd(),
        loss_is_final_from: task.loss_is_final_from(),
    })
}

/// Checks that the `part` of a model in the file of `--init` has the architecture `ours` of the
/// config's section `section`.
///
/// # Errors
/// If the file has no such part, or another architecture. The message names the keys that differ.
pub(crate) fn ensure_same_architecture<C: Serialize>(
    part: &str,
    section: &str,
    theirs: Option<&C>,
    ours: &C,
) -> Result<()> {
    let theirs =
        theirs.with_context(|| format!("--init: the file has no {part}; choose a file that has one"))?;
    let differing = differing(section, &serde_json::to_value(theirs)?, &serde_json::to_value(ours)?);
    ensure!(
        differing.is_empty(),
        "--init: the {part} in the file has another architecture: {}; choose the --config of the file, or change these keys \
         with --set",
        differing.join(", ")
    );
    Ok(())
}

/// Returns the keys with different values in the section `path` of two configs, with both values.
fn differing(path: &str, theirs: &Value, ours: &Value) -> Vec<String> {
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            let more = theirs.keys().filter(|key| !ours.contains_key(*key));
            let value = |values: &Map<String, Value>, key: &str| values.get(key).cloned().unwrap_or_default();
            let keys = ours.keys().chain(more);
            keys.flat_map(|key| differing(&format!("{path}.{key}"), &value(theirs, key), &value(ours, key)))
                .collect()
        }
        (theirs, ours) if theirs == ours => Vec::new(),
        (theirs, ours) => vec![format!("{path} is {theirs} there and {ours} in the config")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_names_the_keys_of_another_architecture() {
        let config = Config::resolve("tiny", &[]).unwrap().rerank;
        let check = |theirs| ensure_same_architecture("contrastive model", "rerank", theirs, &config);
        assert!(check(Some(&config)).is_ok());
        let mut other = config.clone();
        (other.embed, other.image.width) = (7, 9);
        let error = check(Some(&other)).unwrap_err().to_string();
        for (key, theirs, ours) in [("embed", 7, config.embed), ("image.width", 9, config.image.width)] {
            let wanted = format!("rerank.{key} is {theirs} there and {ours} in the config");
            assert!(error.contains(&wanted), "{error}");
        }
        assert_eq!(error.matches(" there and ").count(), 2, "{error}");
        assert!(check(None).unwrap_err().to_string().contains("the file has no contrastive model"));
    }
}
