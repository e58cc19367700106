//! A training run is a folder: `config.toml`, `metrics.jsonl`, events, `samples/`, `checkpoints/step_NNNNNN/`.
//!
//! A checkpoint is written to a temporary name, synced, then renamed; resuming picks the newest whole one. The last two
//! are kept.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use image::RgbImage;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tessera_data::atomic;
use tessera_kernels::Cpu;
use tessera_model::weights::{HostTensor, ModelFile};

use crate::config::Config;
use crate::fit::State;
use crate::optim::AdamW;

/// Checkpoints that stay.
const KEEP: usize = 2;
/// The file in a checkpoint.
const STATE_FILE: &str = "state.safetensors";

/// Where a run lives and how it starts.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions<'a> {
    /// The folder.
    pub dir: &'a Path,
    /// Continue from the newest checkpoint in it.
    pub resume: bool,
    /// A model file whose weights it starts from, instead of random ones.
    pub init: Option<&'a Path>,
    /// Seed of every random draw.
    pub seed: u64,
}

impl RunOptions<'_> {
    /// The file to start from, if any, and its name among the inputs of a run.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn initial(&self) -> Result<(Option<ModelFile>, String)> {
        let Some(path) = self.init else {
            return Ok((None, String::new()));
        };
        let bytes = fs::read(path).with_context(|| format!("cannot read --init {}", path.display()))?;
        let file = ModelFile::from_bytes(&bytes)
            .with_context(|| format!("--init {} is not a whole Tessera model", path.display()))?;
        Ok((Some(file), format!(", from {:08x}", crc32c::crc32c(&bytes))))
    }
}

/// An open run folder.
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Opens the folder of a run; prints its resolved config and what it computes with. A run is its task, seed, inputs and config: `inputs`
    /// names the data by fingerprint, so that a run never continues on other data.
    pub fn start(options: &RunOptions, task: &str, inputs: &str, config: &Config) -> Result<RunDir> {
        let text =
            format!("# tessera train {task}, seed {}, {inputs}\n\n{}", options.seed, config.to_toml()?);
        let run = RunDir::open(options.dir, &text, options.resume)?;
        eprintln!("{text}\ncomputing with {}, {} threads", Cpu::current(), rayon::current_num_threads());
        Ok(run)
    }

    /// Creates the folder, or opens it if it holds a run of the same `config` and `resume` is set.
    ///
    /// # Errors
    /// If the folder holds a run of another config, a run although `resume` is not set, or none although it is.
    pub fn open(path: &Path, config: &str, resume: bool) -> Result<RunDir> {
        let shown = path.display();
        let config_path = path.join("config.toml");
        let started = path.join("checkpoints").is_dir() && !checkpoints(path)?.is_empty();
        let is_empty = !path.is_dir() || fs::read_dir(path)?.next().is_none();
        match (started, resume) {
            (true, _) => {
                let saved = fs::read_to_string(&config_path)
                    .with_context(|| format!("{shown} has lost its config"))?;
                if let Some((was, is)) = first_difference(&saved, config) {
                    bail!(
                        "{shown} belongs to another config: it has `{was}`, this run `{is}`; choose another --run"
                    );
                }
                ensure!(
                    resume,
                    "{shown} already holds a run; add --resume to continue it, or choose another --run"
                );
            }
            (false, true) => bail!("{shown} holds no checkpoint to resume; leave --resume out to start"),
            // A run that was stopped before its first checkpoint has nothing to lose.
            (false, false) => ensure!(
                is_empty || config_path.exists(),
                "{shown} is not empty and holds no run; choose another --run"
            ),
        }
        for folder in ["samples", "checkpoints"] {
            fs::create_dir_all(path.join(folder))
                .with_context(|| format!("cannot create {shown}/{folder}"))?;
        }
        atomic::write(&config_path, config.as_bytes())?;
        Ok(RunDir { path: path.to_path_buf() })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The newest checkpoint that reads whole; `None` if there is no checkpoint.
    ///
    /// # Errors
    /// If there are checkpoints and none of them is whole.
    pub fn newest_checkpoint(&self) -> Result<Option<State>> {
        let folders = checkpoints(&self.path)?;
        for (_, folder) in folders.iter().rev() {
            match read_state(&folder.join(STATE_FILE)) {
                Ok(state) => return Ok(Some(state)),
                Err(error) => eprintln!("skipping {}: {error:#}", folder.display()),
            }
        }
        ensure!(
            folders.is_empty(),
            "no checkpoint in {} is whole; choose another --run",
            self.path.display()
        );
        Ok(None)
    }

    pub(crate) fn write_checkpoint(&self, state: &State) -> Result<()> {
        let folder = self.path.join(format!("checkpoints/step_{:06}", state.step));
        let partial = folder.with_extension("partial");
        atomic::write(&partial.join(STATE_FILE), &state_bytes(state)?)?;
        if folder.exists() {
            fs::remove_dir_all(&folder)?; // of a run that was stopped at this very step and continued
        }
        fs::rename(&partial, &folder)?;
        fs::File::open(self.path.join("checkpoints"))?.sync_all()?;
        let checkpoints = checkpoints(&self.path)?;
        for (_, old) in &checkpoints[..checkpoints.len().saturating_sub(KEEP)] {
            fs::remove_dir_all(old)?;
        }
        Ok(())
    }

    pub(crate) fn write_sample(&self, step: u64, picture: &RgbImage) -> Result<()> {
        let path = self.path.join(format!("samples/step_{step:06}.png"));
        picture.save(&path).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Steps and folders of a run's checkpoints, oldest first.
fn checkpoints(run: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let step = |path: &Path| path.file_name()?.to_str()?.strip_prefix("step_")?.parse().ok();
    let entries = fs::read_dir(run.join("checkpoints"))?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut folders: Vec<(u64, PathBuf)> = entries.filter_map(|path| Some((step(&path)?, path))).collect();
    folders.sort();
    Ok(folders)
}

fn first_difference<'a>(saved: &'a str, config: &'a str) -> Option<(&'a str, &'a str)> {
    if saved == config {
        return None;
    }
    let differs = saved.lines().zip(config.lines()).find(|(was, is)| was != is);
    Some(differs.unwrap_or(("a different number of keys", "the rest")))
}

fn state_bytes(state: &State) -> Result<Vec<u8>> {
    let weights = state.weights.iter().map(|w| (&w.name, &w.shape));
    let weights: Vec<(&String, &Vec<usize>)> = weights.collect();
    let groups: [(&str, Vec<&[f32]>); 4] = [
        ("weight", state.weights.iter().map(|w| w.values.as_slice()).collect()),
        ("average", state.average.iter().map(|w| w.values.as_slice()).collect()),
        ("mean", state.adam.mean.iter().map(Vec::as_slice).collect()),
        ("variance", state.adam.variance.iter().map(Vec::as_slice).collect()),
    ];
    let mut views = Vec::new();
    for (group, values) in &groups {
        for ((index, (name, shape)), values) in weights.iter().enumerate().zip(values) {
            let view = TensorView::new(Dtype::F32, (*shape).clone(), bytemuck::cast_slice(values))?;
            views.push((format!("{group}/{index:04}/{name}"), view));
        }
    }
    let meta = HashMap::from([("step".to_string(), state.step.to_string())]);
    Ok(safetensors::serialize(views, Some(meta))?)
}

fn read_state(path: &Path) -> Result<State> {
    let bytes = fs::read(path)?;
    let (_, header) = SafeTensors::read_metadata(&bytes)?;
    let step = header.metadata().as_ref().and_then(|meta| meta.get("step")?.parse().ok());
    let step = step.context("the checkpoint has no step number")?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let mut names = tensors.names();
    names.sort();
    let mut groups: HashMap<&str, Vec<HostTensor>> = HashMap::new();
    for full in names {
        let mut parts = full.splitn(3, '/');
        let (Some(group), Some(_), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
            bail!("unexpected tensor {full}");
        };
        let view = tensors.tensor(full)?;
        let values =
            view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let tensor = HostTensor { name: name.to_string(), shape: view.shape().to_vec(), values };
        groups.entry(group).or_default().push(tensor);
    }
    let mut take = |group: &str| groups.remove(group).with_context(|| format!("no tensors of {group}"));
    let values = |tensors: Vec<HostTensor>| tensors.into_iter().map(|t| t.values).collect();
    Ok(State {
        step,
        weights: take("weight")?,
        average: take("average")?,
        adam: AdamW { mean: values(take("mean")?), variance: values(take("variance")?) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(step: u64) -> State {
        let weight =
            |v: f32| vec![HostTensor { name: "w.x".into(), shape: vec![2], values: vec![v, 1.0 / 3.0] }];
        let adam = AdamW { mean: vec![vec![0.1, 0.2]], variance: vec![vec![0.3, 0.4]] };
        State { step, weights: weight(1.0), average: weight(2.0), adam }
    }

    #[test]
    fn the_newest_whole_checkpoint_is_taken_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::open(&dir.path().join("run"), "a = 1\n", false).unwrap();
        for step in [999_998, 999_999, 1_000_000] {
            run.write_checkpoint(&state(step)).unwrap();
        }
        assert_eq!(checkpoints(run.path()).unwrap().len(), KEEP);
        assert_eq!(run.newest_checkpoint().unwrap(), Some(state(1_000_000)));
        let damage = |step: u64| {
            let file = run.path().join(format!("checkpoints/step_{step}/state.safetensors"));
            fs::write(&file, &fs::read(&file).unwrap()[..100]).unwrap();
        };
        damage(1_000_000);
        assert_eq!(run.newest_checkpoint().unwrap(), Some(state(999_999)));
        damage(999_999);
        assert!(run.newest_checkpoint().unwrap_err().to_string().contains("is whole"));
    }

    #[test]
    fn a_folder_belongs_to_its_config() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        RunDir::open(&path, "a = 1\n", false).unwrap();
        let run = RunDir::open(&path, "a = 1\nb = 2\n", false).unwrap(); // nothing trained: still free
        run.write_checkpoint(&state(10)).unwrap();
        assert!(RunDir::open(&dir.path().join("new"), "a = 1\n", true).is_err());
        let error = |config, resume| RunDir::open(&path, config, resume).err().unwrap().to_string();
        assert!(error("a = 1\nb = 3\n", true).contains("it has `b = 2`, this run `b = 3`"));
        assert!(error("a = 1\nb = 2\n", false).contains("--resume"));
        assert!(RunDir::open(&path, "a = 1\nb = 2\n", true).is_ok());
    }
}
