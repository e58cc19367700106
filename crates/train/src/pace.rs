//! Scales the schedules of a run to a number of updates (`--steps`), or to as many updates as fit
//! into a time (`--minutes`).
//!
//! A preset's schedules are made for its own number of updates. `--steps` and `--minutes` scale
//! them together: warm-up and decay of the learning rate, β and temperature of the dVAE, and the
//! intervals of validation and checkpoints. Values that `--set` names explicitly are not scaled.

use std::fmt::{Debug, Formatter};
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use toml::{Table, Value};

use crate::capacity::Stage;
use crate::config::Config;
use crate::fit::Trainer;
use crate::stage::{StageTask, training};

/// The fraction of the time that is planned for updates. The rest is for validation, sample sheets,
/// checkpoints and reading the data.
const UPDATES: f64 = 0.9;
/// The number of updates that are timed, after one that is not.
const TIMED: u32 = 3;

/// Returns the config section of a stage, and its keys that are scaled with the number of updates.
fn scaled_keys(stage: Stage) -> (&'static str, &'static [&'static str]) {
    const FIT: [&str; 4] = ["lr_steps", "warmup", "eval_every", "checkpoint_every"];
    match stage {
        Stage::Dvae => ("train_dvae", &FIT),
        Stage::Prior => ("train_prior", &FIT),
        Stage::Rerank => ("train_rerank", &FIT),
    }
}

/// Keys of the dVAE's relaxation that are scaled with the number of updates.
const RELAX: [&str; 4] = ["beta_steps", "tau_steps", "split_every", "split_until"];

/// Scales the schedule of `stage` in a config to `steps` updates.
///
/// # Errors
/// If `steps` is 0, or the config has no such schedule.
pub(crate) fn scale(config: &mut Table, stage: Stage, steps: u64) -> Result<()> {
    ensure!(steps > 0, "--steps 0: wanted at least 1");
    let (section, keys) = scaled_keys(stage);
    let integer = |config: &Table, section: &str, key: &str| {
        config.get(section).and_then(|section| section.get(key)).and_then(Value::as_integer)
    };
    let before =
        integer(config, section, "steps").with_context(|| format!("the config has no {section}.steps"))?;
    let relax: &[&str] = if stage == Stage::Dvae { &RELAX } else { &[] };
    let keys = keys.iter().map(|key| (section, *key)).chain(relax.iter().map(|key| ("relax", *key)));
    let mut changes = vec![(section, "steps", steps as i64)];
    for (section, key) in keys {
        if let Some(value) = integer(config, section, key).filter(|&value| value > 0) {
            let scaled = (value as f64 * steps as f64 / before as f64).round();
            changes.push((section, key, (scaled as i64).max(1)));
        }
    }
    for (section, key, value) in changes {
        if let Some(Value::Table(section)) = config.get_mut(section) {
            section.insert(key.to_string(), Value::Integer(value));
        }
    }
    Ok(())
}

/// Rejects a schedule that is longer than the run because only the number of updates was changed.
/// `sets` contains the `key=value` settings that were given explicitly.
///
/// # Errors
/// If the learning rate, β or the temperature would not reach their final values.
pub(crate) fn ensure_fits(config: &Config, stage: Stage, sets: &[String]) -> Result<()> {
    let (section, _) = scaled_keys(stage);
    let is_set =
        |key: &str| sets.iter().any(|set| set.split('=').next().is_some_and(|set| set.trim() == key));
    if !is_set(&format!("{section}.steps")) {
        return Ok(());
    }
    let fit = config.fit(stage);
    let mut lengths = vec![(format!("{section}.warmup"), fit.warmup)];
    if fit.schedule == crate::schedule::Schedule::Cosine {
        lengths.push((format!("{section}.lr_steps"), fit.lr_steps));
    }
    if stage == Stage::Dvae {
        lengths.push(("relax.beta_steps".to_string(), config.relax.beta_steps));
        lengths.push(("relax.tau_steps".to_string(), config.relax.tau_steps));
    }
    for (key, length) in lengths {
        ensure!(
            length <= fit.steps || is_set(&key),
            "{key} = {length} is longer than the run of {section}.steps = {0}; use --steps {0}, which scales the \
             schedule, or set {key} too",
            fit.steps
        );
    }
    Ok(())
}

/// A run with as many updates as fit into a time.
#[derive(Clone, Copy)]
pub struct Pace<'a> {
    /// The time for the run in minutes.
    pub minutes: f64,
    /// Returns the config with its schedules scaled to a number of updates.
    pub config: &'a (dyn Fn(u64) -> Result<Config> + Sync),
}

impl Debug for Pace<'_> {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        f.debug_struct("Pace").field("minutes", &self.minutes).finish_non_exhaustive()
    }
}

impl Pace<'_> {
    /// Returns the config with the number of updates for this time.
    ///
    /// If `resumed` is the folder of a run, the number of updates is that of this run. Otherwise it
    /// follows from the measured time of updates of `task`.
    ///
    /// # Errors
    /// If the minutes are not positive, an update fails, or the run's config cannot be read.
    pub(crate) fn config<T: StageTask>(
        &self,
        task: &T,
        model: &T::Model,
        resumed: Option<&Path>,
    ) -> Result<Config> {
        let Pace { minutes, .. } = *self;
        ensure!(
            minutes > 0.0 && minutes.is_finite(),
            "--minutes {minutes}: wanted a positive number of minutes"
        );
        if let Some(steps) = resumed.map(|run| steps_of(run, T::STAGE)).transpose()?.flatten() {
            return (self.config)(steps);
        }
        let seconds = seconds_per_step(task, model)?;
        (self.config)((60.0 * minutes * UPDATES / seconds).max(1.0) as u64)
    }
}

/// Returns the number of updates of the run in a folder, or `None` if there is no run.
fn steps_of(run: &Path, stage: Stage) -> Result<Option<u64>> {
    let file = run.join("config.toml");
    let Ok(text) = fs::read_to_string(&file) else { return Ok(None) };
    let table: Table = text.parse().with_context(|| format!("{} is damaged", file.display()))?;
    let (section, _) = scaled_keys(stage);
    let steps = table.get(section).and_then(|section| section.get("steps")).and_then(Value::as_integer);
    Ok(steps.and_then(|steps| u64::try_from(steps).ok()))
}

/// Measures the time of an update in seconds, on a copy of the model.
fn seconds_per_step<T: StageTask>(task: &T, model: &T::Model) -> Result<f64> {
    let batch = |step, part| task.batch(step, part);
    let training = training(task, &batch, model);
    let mut trainer = Trainer::new(&training, model.clone(), None)?;
    trainer.step()?; // the first update allocates memory
    let start = Instant::now();
    for _ in 0..TIMED {
        trainer.step()?;
    }
    Ok(start.elapsed().as_secs_f64() / f64::from(TIMED))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(steps: Option<u64>, sets: &[&str]) -> Result<Config> {
        let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
        Config::resolve_for("tiny", &sets, Stage::Dvae, steps)
    }

    #[test]
    fn steps_scale_the_schedule_except_for_explicit_sets() {
        let tiny = resolved(None, &[]).unwrap();
        let long = resolved(Some(10 * tiny.train_dvae.steps), &["train_dvae.eval_every=7"]).unwrap();
        let (before, after) = (&tiny.train_dvae, &long.train_dvae);
        assert_eq!((after.lr_steps, after.warmup), (10 * before.lr_steps, 10 * before.warmup));
        assert_eq!((after.eval_every, after.checkpoint_every), (7, 10 * before.checkpoint_every));
        assert_eq!(after.log_every, before.log_every);
        assert_eq!(long.relax.tau_steps, 10 * tiny.relax.tau_steps);
        assert_eq!(long.train_prior, tiny.train_prior);
        let short = resolved(Some(1), &[]).unwrap();
        assert_eq!((short.train_dvae.lr_steps, short.train_dvae.warmup, short.relax.beta_steps), (1, 1, 1));
    }

    #[test]
    fn schedule_longer_than_its_run_is_refused() {
        let error = resolved(None, &["train_dvae.steps=6"]).unwrap_err().to_string();
        assert!(error.contains("lr_steps = 60 is longer than the run of train_dvae.steps = 6"), "{error}");
        assert!(error.contains("use --steps 6"), "{error}");
        let sets =
            ["train_dvae.steps=6", "train_dvae.lr_steps=60", "relax.beta_steps=10", "relax.tau_steps=24"];
        assert!(resolved(None, &sets).is_ok());
        assert!(resolved(None, &["train_dvae.steps=6000"]).is_ok());
        assert!(resolved(Some(0), &[]).unwrap_err().to_string().contains("--steps 0"));
    }
}
