//! Scales the schedules of a run to a number of updates (`--steps`), or to as many updates as fit
//! into a time (`--minutes`).
//!
//! A preset's schedules are made for its own number of updates. `--steps` and `--minutes` scale
//! them together: warm-up and decay of the learning rate, β and temperature of the dVAE, and the
//! intervals of validation and checkpoints. Values that `--set` names explicitly are not scaled.
//!
//! A resumed run keeps its schedules. `--steps` then changes only the number of updates.

use std::fmt::{Debug, Formatter};
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use toml::{Table, Value};

use crate::capacity::Stage;
use crate::config::Config;
use crate::dist::world::World;
use crate::fit::Trainer;
use crate::run_dir::RunOptions;
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

/// The length of a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Length<'a> {
    /// The number of updates, if it is not that of the config or of the resumed run.
    pub steps: Option<u64>,
    /// The folder of the run that is resumed, if there is one.
    pub resumed: Option<&'a Path>,
}

/// Sets the length of `stage` in a config. The schedule is that of the resumed run. Without one, it
/// is scaled to the number of updates.
///
/// # Errors
/// If the number of updates is 0, the config has no such schedule, or that of the run is damaged.
pub(crate) fn set_length(config: &mut Table, stage: Stage, length: Length) -> Result<()> {
    let Length { steps, resumed } = length;
    ensure!(steps != Some(0), "--steps 0: wanted at least 1");
    let saved = resumed.map(saved_config).transpose()?.flatten();
    match (saved, steps) {
        (Some(saved), steps) => resume(config, &saved, stage, steps),
        (None, Some(steps)) => scale(config, stage, steps)?,
        (None, None) => {}
    }
    Ok(())
}

/// Returns the config of the run in a folder, or `None` if there is no run.
fn saved_config(run: &Path) -> Result<Option<Table>> {
    let file = run.join("config.toml");
    let Ok(text) = fs::read_to_string(&file) else { return Ok(None) };
    text.parse().map(Some).with_context(|| format!("{} is damaged", file.display()))
}

/// Copies the schedule of `stage` from the config of a run, and changes its number of updates to
/// `steps` if that is present.
fn resume(config: &mut Table, saved: &Table, stage: Stage, steps: Option<u64>) {
    let (training, _) = scaled_keys(stage);
    for (section, key) in schedule(stage).chain([(training, "steps")]) {
        if let Some(value) = integer(saved, section, key) {
            set(config, section, key, value);
        }
    }
    if let Some(steps) = steps {
        set(config, training, "steps", steps as i64);
    }
}

/// Scales the schedule of `stage` to `steps` updates.
fn scale(config: &mut Table, stage: Stage, steps: u64) -> Result<()> {
    let (training, _) = scaled_keys(stage);
    let before =
        integer(config, training, "steps").with_context(|| format!("the config has no {training}.steps"))?;
    for (section, key) in schedule(stage) {
        if let Some(value) = integer(config, section, key).filter(|&value| value > 0) {
            let scaled = (value as f64 * steps as f64 / before as f64).round();
            set(config, section, key, (scaled as i64).max(1));
        }
    }
    set(config, training, "steps", steps as i64);
    Ok(())
}

/// Returns the section and the name of each key that is scaled with the number of updates.
fn schedule(stage: Stage) -> impl Iterator<Item = (&'static str, &'static str)> {
    let (training, keys) = scaled_keys(stage);
    let relax: &[&str] = if stage == Stage::Dvae { &RELAX } else { &[] };
    keys.iter().map(move |key| (training, *key)).chain(relax.iter().map(|key| ("relax", *key)))
}

fn integer(config: &Table, section: &str, key: &str) -> Option<i64> {
    config.get(section)?.get(key)?.as_integer()
}

fn set(config: &mut Table, section: &str, key: &str, value: i64) {
    if let Some(Value::Table(section)) = config.get_mut(section) {
        section.insert(key.to_string(), Value::Integer(value));
    }
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
    /// Returns the config with the number of updates for this time, which follows from the measured
    /// time of updates of `task`. A resumed run keeps its config.
    ///
    /// # Errors
    /// If the minutes are not positive, or an update fails.
    pub(crate) fn config<T: StageTask>(
        &self,
        task: &T,
        model: &T::Model,
        options: &RunOptions,
    ) -> Result<Config> {
        let Pace { minutes, .. } = *self;
        ensure!(
            minutes > 0.0 && minutes.is_finite(),
            "--minutes {minutes}: wanted a positive number of minutes"
        );
        if options.resume {
            return Ok(task.config().clone());
        }
        let seconds = seconds_per_step(task, model, options.world)?;
        (self.config)((60.0 * minutes * UPDATES / seconds).max(1.0) as u64)
    }
}

/// Measures the time of an update in seconds, on a copy of the model: that of the slowest rank.
fn seconds_per_step<T: StageTask>(task: &T, model: &T::Model, world: &World) -> Result<f64> {
    let batch = |step, slots| task.batch(step, slots);
    let training = training(task, &batch, model, world)?;
    let mut trainer = Trainer::new(&training, model.clone(), None)?;
    trainer.step()?; // the first update allocates memory
    let start = Instant::now();
    for _ in 0..TIMED {
        trainer.step()?;
    }
    let own = start.elapsed().as_secs_f64() / f64::from(TIMED);
    let all = world.all.run("pace", move |comm| comm.all_gather(&[own]))?;
    Ok(all.concat().into_iter().fold(own, f64::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(steps: Option<u64>, sets: &[&str]) -> Result<Config> {
        resumed(None, steps, sets)
    }

    fn resumed(run: Option<&Path>, steps: Option<u64>, sets: &[&str]) -> Result<Config> {
        let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
        Config::resolve_for("tiny", &sets, Stage::Dvae, Length { steps, resumed: run })
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
    #[test]
    fn resumed_run_keeps_its_schedule() {
        let dir = tempfile::tempdir().unwrap();
        let run = Some(dir.path());
        assert_eq!(resumed(run, Some(20), &[]).unwrap(), resolved(Some(20), &[]).unwrap(), "no run yet");
        let began = resolved(Some(20), &["train_dvae.log_every=1"]).unwrap();
        fs::write(dir.path().join("config.toml"), began.to_toml().unwrap()).unwrap();
        let same = resolved(Some(20), &[]).unwrap();
        assert_eq!(resumed(run, None, &[]).unwrap(), same);
        assert_eq!(resumed(run, Some(20), &[]).unwrap(), same);
        let longer = resumed(run, Some(40), &[]).unwrap();
        assert_eq!(longer, resumed(run, None, &["train_dvae.steps=40"]).unwrap());
        assert_eq!((longer.train_dvae.steps, &longer.relax), (40, &same.relax));
        assert_eq!(longer.train_dvae.lr_steps, same.train_dvae.lr_steps);
        assert!(resumed(run, Some(10), &[]).is_ok() && resumed(run, Some(0), &[]).is_err());
        fs::write(dir.path().join("config.toml"), "[").unwrap();
        assert!(resumed(run, None, &[]).unwrap_err().to_string().contains("config.toml is damaged"));
    }
}
