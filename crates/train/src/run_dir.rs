//! The folder of a training run: `config.toml`, `metrics.jsonl`, events, `samples/` and
//! `checkpoints/step_NNNNNN/`.
//!
//! A checkpoint is written to a temporary name, synced, and then renamed. Resuming uses the newest
//! checkpoint that can be read completely. The last two checkpoints are kept. So are the last good
//! one, from which a diverged run can continue, and the best one on held-out data. Only one process
//! at a time owns the folder.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use image::RgbImage;
use rayon::current_num_threads;
use serde::{Deserialize, Serialize};
use tessera_base::Reporter;
use tessera_base::atomic;
use tessera_container::{Newer, Origin};
use tessera_data::picture::encode_png;
use tessera_kernels::Cpu;
use tessera_model::DeviceChoice;
use tessera_model::weights::{ModelFile, model_bytes};
use toml::{Table, Value};

use crate::capacity::Stage;
use crate::checkpoint::{self, Checkpoint, STATE_FILE};
use crate::config::Config;
use crate::dist::gradients::unapplied;
use crate::dist::world::World;
use crate::fit::TrainState;
use crate::pace::Pace;
use crate::same_run::{self, Difference, Input, MayChange, begun_as, differences};
use crate::tensorboard::Setting;

/// The number of newest checkpoints that are always kept.
const KEEP: usize = 2;
/// The process that owns the folder locks this file. It contains the process id.
const LOCK_FILE: &str = "owner.lock";
/// This file exists after the run has diverged, until there is a checkpoint with other settings.
const DIVERGED_FILE: &str = "diverged.json";
/// The file extension of checkpoints that are no longer used since the run diverged. They are
/// deleted once there is a checkpoint with other settings.
const LEFT: &str = "left";

/// The folder of a run and how the run starts.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions<'a> {
    /// The folder.
    pub dir: &'a Path,
    /// Whether to continue from the newest checkpoint in the folder.
    pub resume: bool,
    /// A model file or a checkpoint with the initial weights. Without it, they are random.
    pub init: Option<&'a Path>,
    /// The seed of every random draw.
    pub seed: u64,
    /// The device that the run computes on.
    pub device: DeviceChoice,
    /// All ranks of the run.
    pub world: &'a World,
    /// If present, the number of updates follows from a time for the run.
    pub pace: Option<Pace<'a>>,
}

/// The initial weights of a run.
pub(crate) enum Initial {
    Random,
    Model(Box<ModelFile>),
    Checkpoint(Box<Checkpoint>),
}

impl RunOptions<'_> {
    /// Returns the initial weights. If they come from a file, also returns the file as an input of
    /// the run.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn initial(&self, reporter: &dyn Reporter) -> Result<(Initial, Option<Input>)> {
        let Some(path) = self.init else {
            return Ok((Initial::Random, None));
        };
        let file = if path.is_dir() { path.join(STATE_FILE) } else { path.to_path_buf() };
        let bytes = model_bytes(&file).context("--init")?;
        let named = Some(("from", format!("{:08x}", crc32c::crc32c(&bytes))));
        if Checkpoint::is_one(&bytes) {
            let read = Checkpoint::read(&file);
            let read = read.with_context(|| format!("--init {} cannot be used", path.display()))?;
            warn_unverified(read.text.is_none(), path, reporter);
            return Ok((Initial::Checkpoint(Box::new(read)), named));
        }
        let model = model_of(&bytes, path, reporter).context("--init")?;
        Ok((Initial::Model(Box::new(model)), named))
    }
}

/// The record of a divergence.
#[derive(Debug, Serialize, Deserialize)]
struct Divergence {
    /// The update in which the divergence was noticed.
    step: u64,
    /// The step of the last good checkpoint.
    good: Option<u64>,
    /// The text of the run's `config.toml`.
    text: String,
}

/// An open run folder. The first rank owns it as long as this value lives.
pub struct RunDir<'a> {
    path: PathBuf,
    stage: Stage,
    /// The text of its `config.toml`.
    text: String,
    /// All ranks of the run. The folder is on a file system that they share.
    world: &'a World,
    /// The first rank's lock, held until this value is dropped.
    _lock: Option<File>,
}

impl<'a> RunDir<'a> {
    /// Opens the folder of a run, and reports the resolved config and the kernels. `inputs`
    /// contains the fingerprints of the data, so that a run never continues on other data.
    pub(crate) fn start(
        options: &RunOptions<'a>,
        stage: Stage,
        inputs: &[Input],
        config: &Config,
        cpu: Cpu,
        reporter: &dyn Reporter,
    ) -> Result<RunDir<'a>> {
        let text = same_run::text(stage, options.seed, inputs, config)?;
        options.world.ensure_same("the run", &format!("version {}\n{text}", env!("CARGO_PKG_VERSION")))?;
        let run = RunDir::open(options.dir, stage, &text, options.resume, options.world, reporter)?;
        let threads = current_num_threads();
        let computing = match options.device {
            DeviceChoice::Cpu => "computing with".to_string(),
            device => {
                let dtype = format!("{:?}", cpu.elsewhere()).to_lowercase();
                format!("computing on {device} in {dtype} (a run may change its device); host:")
            }
        };
        reporter.note(&format!("{}\n{computing} {cpu}, {threads} threads", run.text));
        Ok(run)
    }

    /// Creates the folder, or opens it if it contains the run of `text` and `resume` is set.
    ///
    /// # Errors
    /// If the folder contains another run; if it contains a run and `resume` is not set, or none
    /// and `resume` is set; or if another process owns it.
    pub(crate) fn open(
        path: &Path,
        stage: Stage,
        text: &str,
        resume: bool,
        world: &'a World,
        reporter: &dyn Reporter,
    ) -> Result<RunDir<'a>> {
        let opened = match world.is_first() {
            true => Some(RunDir::own(path, stage, text, resume, world, reporter)?),
            false => None,
        };
        let text = opened.as_ref().map_or(Vec::new(), |run| run.text.as_bytes().to_vec());
        let text = String::from_utf8(world.all.run("config", move |comm| comm.broadcast(0, &text))?)?;
        Ok(opened.unwrap_or(RunDir { path: path.to_path_buf(), stage, text, world, _lock: None }))
    }

    /// Opens the folder on the first rank.
    fn own(
        path: &Path,
        stage: Stage,
        text: &str,
        resume: bool,
        world: &'a World,
        reporter: &dyn Reporter,
    ) -> Result<RunDir<'a>> {
        check(path, stage, text, resume)?; // before anything is created
        for folder in ["samples", "checkpoints"] {
            let folder = path.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let lock = lock(path, reporter)?;
        // Another process may have changed the folder before it released the lock.
        let changes = check(path, stage, text, resume)?;
        changes.iter().for_each(|change| reporter.note(&change.to_string()));
        let config_path = path.join("config.toml");
        let text = match fs::read_to_string(&config_path) {
            Ok(saved) if resume => begun_as(text, &saved),
            _ => text.to_string(),
        };
        atomic::write(&config_path, text.as_bytes())?;
        let run = RunDir { path: path.to_path_buf(), stage, text, world, _lock: Some(lock) };
        run.leave_divergence(reporter)?;
        Ok(run)
    }

    /// Returns the path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the settings of the run: each key of its config with the value.
    ///
    /// # Errors
    /// If the config is damaged.
    pub(crate) fn settings(&self) -> Result<Vec<(String, Setting)>> {
        let config: Table = self.text.parse().context("the config is damaged")?;
        Ok(flat("", &config))
    }

    /// Returns the origin to record in files that this run makes.
    pub(crate) fn origin(&self) -> Result<Origin> {
        same_run::origin(&self.text, self.stage)
    }

    /// Returns the newest checkpoint that can be read completely, or `None` if there is no
    /// checkpoint.
    ///
    /// # Errors
    /// If there are checkpoints but none can be read, or if the newest is of another run or of a
    /// newer version.
    pub(crate) fn newest_checkpoint(&self, reporter: &dyn Reporter) -> Result<Option<TrainState>> {
        let folders = checkpoints(&self.path)?;
        for (_, folder) in folders.iter().rev() {
            let shown = folder.display();
            match self.read_together(folder) {
                Ok(Checkpoint { state, text }) => {
                    warn_unverified(text.is_none(), folder, reporter);
                    let differences =
                        text.map(|text| differences(&text, &self.text, self.stage)).transpose()?;
                    let other = differences.unwrap_or_default().into_iter();
                    let other = other.filter(|found| found.may_change == MayChange::Never);
                    if let Some(Difference { key, was, is, .. }) = other.into_iter().next() {
                        bail!(
                            "{shown} is of another run: its {key} is {was}, this run's {is}; choose another --run"
                        );
                    }
                    return Ok(Some(state));
                }
                Err(error) if error.is::<Newer>() => return Err(error.context(shown.to_string())),
                Err(error) => reporter.note(&format!("skipping {shown}: {error:#}")),
            }
        }
        ensure!(
            folders.is_empty(),
            "none of the checkpoints in {} can be read, for the reasons above; choose another --run",
            self.path.display()
        );
        Ok(None)
    }

    /// Reads a checkpoint on all ranks.
    ///
    /// # Errors
    /// If it cannot be read on one of them. All ranks then have the same error.
    fn read_together(&self, folder: &Path) -> Result<Checkpoint> {
        let read = Checkpoint::read_shard(folder, [self.world.shards.rank(), self.world.shards.size()]);
        if self.world.all.size() == 1 || read.as_ref().is_err_and(|error| error.is::<Newer>()) {
            return read;
        }
        let own = read.as_ref().err().map_or(String::new(), |error| format!("{error:#}"));
        let reasons = self.world.all.run("reading", move |comm| comm.all_gather(own.as_bytes()))?;
        let failed = reasons.iter().enumerate().find(|(_, reason)| !reason.is_empty());
        match failed {
            Some((rank, reason)) => bail!("rank {rank}: {}", String::from_utf8_lossy(reason)),
            None => read,
        }
    }

    /// Returns the checkpoint of `step`.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn checkpoint(&self, step: u64) -> Result<TrainState> {
        let folder = self.path.join(checkpoint_name(step));
        let read = Checkpoint::read(&folder);
        Ok(read.with_context(|| format!("cannot read the checkpoint {}", folder.display()))?.state)
    }

    /// Writes a checkpoint after a successful update, and deletes what an earlier divergence left. All
    /// ranks call this together.
    pub(crate) fn write_checkpoint(&self, state: &TrainState) -> Result<()> {
        self.save(state)?;
        if self.world.is_first() { self.forget_divergence(state.step) } else { Ok(()) }
    }

    /// Writes a checkpoint, and deletes old ones. The ranks of the first replica write their shards at
    /// the same time; the checkpoint gets its name when all of them are complete. All ranks call this
    /// together.
    pub(crate) fn save(&self, state: &TrainState) -> Result<()> {
        let World { shards, replicas, .. } = self.world;
        let partial = self.path.join(checkpoint_name(state.step)).with_extension("partial");
        if self.world.is_first() {
            if partial.exists() {
                fs::remove_dir_all(&partial)?; // left by a run that was killed while writing it
            }
            fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
        }
        let unapplied = unapplied(&state.params, &state.compressors, replicas)?;
        self.world.any(false)?; // the folder exists
        let written = match replicas.rank() {
            0 => checkpoint::write(state, &unapplied, &self.text, &partial, [shards.rank(), shards.size()]),
            _ => Ok(()),
        };
        let failed = self.world.any(written.is_err())?;
        written?;
        ensure!(!failed, "another rank could not write its shard of the checkpoint");
        if self.world.is_first() { self.publish(&partial, state) } else { Ok(()) }
    }

    /// Gives a complete checkpoint its name, and deletes old ones.
    fn publish(&self, partial: &Path, state: &TrainState) -> Result<()> {
        let folder = partial.with_extension("");
        if folder.is_dir() {
            fs::remove_dir_all(&folder)?; // left by a run that was stopped at the same step and resumed
        } else if folder.exists() {
            fs::rename(&folder, folder.with_extension("aside"))?; // a file of the user
        }
        fs::rename(partial, &folder)?;
        File::open(self.path.join("checkpoints"))?.sync_all()?;
        let checkpoints = checkpoints(&self.path)?;
        let kept = [state.good.map(|good| good.step), state.best.map(|best| best.step)];
        for (step, old) in &checkpoints[..checkpoints.len().saturating_sub(KEEP)] {
            if !kept.contains(&Some(*step)) {
                fs::remove_dir_all(old)?;
            }
        }
        Ok(())
    }

    /// Records that the run has diverged at `state`. Returns a text that explains how to continue
    /// it.
    pub(crate) fn write_divergence(&self, state: &TrainState) -> Result<String> {
        let kept: Vec<u64> = checkpoints(&self.path)?.into_iter().map(|(step, _)| step).collect();
        let good = state.good.map(|good| good.step).filter(|step| kept.contains(step));
        let diverged = Divergence { step: state.step, good, text: self.text.clone() };
        atomic::write(&self.path.join(DIVERGED_FILE), &serde_json::to_vec(&diverged)?)?;
        Ok(how_to_continue(&diverged, self.stage))
    }

    /// If the run has diverged, goes back to the last good checkpoint. [`check`] has made sure that
    /// the settings have changed. Later checkpoints get the extension [`LEFT`] until there is a
    /// checkpoint with the new settings.
    fn leave_divergence(&self, reporter: &dyn Reporter) -> Result<()> {
        let Some(Divergence { step, good, .. }) = read_divergence(&self.path)? else { return Ok(()) };
        if let Some(good) = good {
            for (_, bad) in checkpoints(&self.path)?.iter().filter(|(step, _)| *step > good) {
                fs::rename(bad, bad.with_extension(LEFT))?;
            }
            reporter.note(&format!("the run diverged at step {step}: continuing from step {good}"));
        }
        Ok(())
    }

    /// Deletes the record of a divergence and the checkpoints with the extension [`LEFT`], if the
    /// new checkpoint, at `step`, is later than the one from which the run continued.
    fn forget_divergence(&self, step: u64) -> Result<()> {
        match read_divergence(&self.path)? {
            Some(Divergence { good: Some(good), .. }) if step <= good => return Ok(()),
            // Removed first, so that a run that is killed here still uses its new checkpoint.
            Some(_) => fs::remove_file(self.path.join(DIVERGED_FILE))?,
            None => {}
        }
        for entry in fs::read_dir(self.path.join("checkpoints"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == LEFT) && path.join(STATE_FILE).exists() {
                fs::remove_dir_all(&path)?;
            }
        }
        Ok(())
    }

    pub(crate) fn write_sample(&self, step: u64, picture: &RgbImage) -> Result<()> {
        let path = self.path.join(format!("samples/step_{step:06}.png"));
        atomic::write(&path, &encode_png(picture)?)
    }

    /// Writes the model file of the run.
    pub(crate) fn write_model(&self, file: &ModelFile) -> Result<()> {
        atomic::write(&self.path.join(self.stage.file_name()), &file.to_bytes()?)
    }
}

/// Returns the values in `table`, with the path of each, such as `prior.n_layers`.
fn flat(prefix: &str, table: &Table) -> Vec<(String, Setting)> {
    let values = table.iter().flat_map(|(key, value)| match value {
        Value::Table(table) => flat(&format!("{prefix}{key}."), table),
        Value::Integer(number) => vec![(format!("{prefix}{key}"), Setting::Number(*number as f64))],
        Value::Float(number) => vec![(format!("{prefix}{key}"), Setting::Number(*number))],
        Value::String(text) => vec![(format!("{prefix}{key}"), Setting::Text(text.clone()))],
        other => vec![(format!("{prefix}{key}"), Setting::Text(other.to_string()))],
    });
    values.collect()
}

/// Returns the name of the folder of a checkpoint within that of the run.
fn checkpoint_name(step: u64) -> String {
    format!("checkpoints/step_{step:06}")
}

/// Checks that the run of `text` may use the folder. Returns the settings that it changes.
fn check(path: &Path, stage: Stage, text: &str, resume: bool) -> Result<Vec<Difference>> {
    let shown = path.display();
    let config_path = path.join("config.toml");
    if checkpoints(path)?.is_empty() {
        ensure!(!resume, "{shown} holds no checkpoint to resume; leave --resume out to start");
        // Without a checkpoint, nothing is lost if another run starts in the folder.
        ensure!(
            config_path.exists() || is_empty(path)?,
            "{shown} is not empty and holds no run; choose another --run"
        );
        return Ok(Vec::new());
    }
    let saved = fs::read_to_string(&config_path).with_context(|| format!("{shown} has lost its config"))?;
    let found = differences(&saved, text, stage).with_context(|| config_path.display().to_string())?;
    let diverged = read_divergence(path)?;
    let other = found.iter().find(|found| match found.may_change {
        MayChange::Always | MayChange::Unknown => false,
        MayChange::AfterDivergence => diverged.is_none(),
        MayChange::Never => true,
    });
    if let Some(Difference { key, was, is, .. }) = other {
        bail!("{shown} belongs to another run: it has {key} = {was}, this run {is}; choose another --run");
    }
    ensure!(resume, "{shown} already holds a run; add --resume to continue it, or choose another --run");
    if let Some(diverged) = diverged {
        let changed = differences(&diverged.text, text, stage)?;
        let changed = changed.iter().any(|found| found.may_change == MayChange::AfterDivergence);
        ensure!(
            changed,
            "{shown} diverged at step {} and would again; {}",
            diverged.step,
            how_to_continue(&diverged, stage)
        );
    }
    Ok(found)
}

/// Returns a text that explains how to continue a run that diverged.
fn how_to_continue(diverged: &Divergence, stage: Stage) -> String {
    let lr = format!("--resume and a smaller learning rate, as in --set {}.lr=…", stage.training());
    match diverged.good {
        Some(good) => format!("continue it from its last good checkpoint, step {good}, with {lr}"),
        None => format!("continue it with {lr}"),
    }
}

fn read_divergence(run: &Path) -> Result<Option<Divergence>> {
    let path = run.join(DIVERGED_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let read = || -> Result<Divergence> { Ok(serde_json::from_slice(&fs::read(&path)?)?) };
    read().map(Some).with_context(|| format!("{} is damaged; remove it to go on", path.display()))
}

/// Returns whether the folder contains nothing except what a new run creates first.
fn is_empty(path: &Path) -> Result<bool> {
    if !path.is_dir() {
        return Ok(true);
    }
    let ours = ["samples", "checkpoints", LOCK_FILE];
    let mut entries = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(entries.all(|entry| {
        entry.is_ok_and(|entry| {
            ours.iter().any(|name| entry.file_name() == *name) || atomic::is_leftover(&entry.path())
        })
    }))
}

/// Makes this process the owner of a run folder until the returned file is closed.
fn lock(run: &Path, reporter: &dyn Reporter) -> Result<File> {
    let path = run.join(LOCK_FILE);
    let cannot = || format!("cannot lock {}", path.display());
    let options = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = options.with_context(cannot)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0).with_context(cannot)?;
            write!(file, "process {}", std::process::id()).with_context(cannot)?;
        }
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let _ = file.rewind().and_then(|()| file.read_to_string(&mut owner)); // only for the message
            bail!(
                "{} belongs to a run that is still going ({owner}); wait for it, stop it, or choose another --run",
                run.display()
            );
        }
        // Some network file systems do not support locks.
        Err(TryLockError::Error(error)) => reporter.note(&format!(
            "warning: {} cannot be locked ({error}): make sure that no other run uses it",
            run.display()
        )),
    }
    Ok(file)
}

/// Reads a model file. Reports a warning if it has no checksum.
pub(crate) fn read_model(path: &Path, reporter: &dyn Reporter) -> Result<ModelFile> {
    model_of(&model_bytes(path)?, path, reporter)
}

/// Reads the model in `bytes`, the contents of the file `path`. Reports a warning if it has no
/// checksum.
///
/// # Errors
/// If the file is not a model file, or it is damaged.
fn model_of(bytes: &[u8], path: &Path, reporter: &dyn Reporter) -> Result<ModelFile> {
    let file = ModelFile::from_file(bytes, path)?;
    warn_unverified(file.unverified, path, reporter);
    Ok(file)
}

pub(crate) fn warn_unverified(unverified: bool, path: &Path, reporter: &dyn Reporter) {
    if unverified {
        reporter.note(&tessera_container::unverified(path.display()));
    }
}

/// Returns the newest checkpoint of a run that can be read. Reports those that cannot.
///
/// # Errors
/// If there is none.
pub(crate) fn newest_readable(run: &Path, reporter: &dyn Reporter) -> Result<Checkpoint> {
    for (_, folder) in checkpoints(run)?.iter().rev() {
        match Checkpoint::read(folder) {
            Ok(checkpoint) => return Ok(checkpoint),
            Err(error) => reporter.note(&format!("skipping {}: {error:#}", folder.display())),
        }
    }
    bail!("{} holds no checkpoint that can be read; choose the folder of a run", run.display())
}

/// Returns whether there is a checkpoint from which the run in this folder can continue.
///
/// # Errors
/// If the folder cannot be read.
pub fn has_checkpoint(run: &Path) -> Result<bool> {
    Ok(!checkpoints(run)?.is_empty())
}

/// Returns the steps and folders of a run's checkpoints, oldest first.
fn checkpoints(run: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let folder = run.join("checkpoints");
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let step = |path: &Path| path.file_name()?.to_str()?.strip_prefix("step_")?.parse().ok();
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let folders = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir());
    let mut folders: Vec<(u64, PathBuf)> = folders.filter_map(|path| Some((step(&path)?, path))).collect();
    folders.sort();
    Ok(folders)
}

#[cfg(test)]
mod tests;
