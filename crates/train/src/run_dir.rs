//! A training run is a folder: `config.toml`, `metrics.jsonl`, events, `samples/`, `checkpoints/step_NNNNNN/`.
//!
//! A checkpoint is written to a temporary name, synced, then renamed; resuming picks the newest whole one. The last two
//! are kept.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use image::RgbImage;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tessera_model::weights::HostTensor;

use crate::fit::State;
use crate::optim::AdamW;

/// Checkpoints that stay.
const KEEP: usize = 2;

/// An open run folder.
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Creates the folder, or opens it if it holds a run of the same `config` and `resume` is set.
    ///
    /// # Errors
    /// If the folder holds a run of another config, or a run and `resume` is not set.
    pub fn open(path: &Path, config: &str, resume: bool) -> Result<RunDir> {
        let shown = path.display();
        let config_path = path.join("config.toml");
        let started = path.join("checkpoints").is_dir() && !checkpoints(path)?.is_empty();
        if let Ok(saved) = fs::read_to_string(&config_path) {
            if !started {
                // Nothing was trained here yet, perhaps because an input was wrong: the folder is free.
            } else if let Some((was, is)) = first_difference(&saved, config) {
                bail!(
                    "{shown} belongs to another config: it has `{was}`, this run `{is}`; choose another --run folder"
                );
            } else if !resume {
                bail!(
                    "{shown} already holds a run; add --resume to continue it, or choose another --run folder"
                );
            }
        } else if path.is_dir() && fs::read_dir(path)?.next().is_some() {
            bail!("{shown} is not empty and holds no run; choose another --run folder");
        }
        for folder in ["samples", "checkpoints"] {
            fs::create_dir_all(path.join(folder))
                .with_context(|| format!("cannot create {shown}/{folder}"))?;
        }
        write_whole(&config_path, config.as_bytes())?;
        Ok(RunDir { path: path.to_path_buf() })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The newest checkpoint that reads whole.
    pub fn newest_checkpoint(&self) -> Result<Option<State>> {
        for folder in checkpoints(&self.path)?.iter().rev() {
            match read_state(&folder.join("state.safetensors")) {
                Ok(state) => return Ok(Some(state)),
                Err(error) => eprintln!("skipping {}: {error:#}", folder.display()),
            }
        }
        Ok(None)
    }

    pub(crate) fn write_checkpoint(&self, state: &State) -> Result<()> {
        let folder = self.path.join(format!("checkpoints/step_{:06}", state.step));
        fs::create_dir_all(&folder)?;
        write_whole(&folder.join("state.safetensors"), &state_bytes(state)?)?;
        let checkpoints = checkpoints(&self.path)?;
        for old in &checkpoints[..checkpoints.len().saturating_sub(KEEP)] {
            fs::remove_dir_all(old)?;
        }
        Ok(())
    }

    pub(crate) fn write_sample(&self, step: u64, picture: &RgbImage) -> Result<()> {
        let path = self.path.join(format!("samples/step_{step:06}.png"));
        picture.save(&path).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Checkpoint folders of a run, oldest first.
fn checkpoints(run: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(run.join("checkpoints"))?;
    let mut folders: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("step_")));
    folders.sort();
    Ok(folders)
}

/// Writes to a temporary name, syncs, renames.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = path.with_extension("part");
    let write = || -> std::io::Result<()> {
        let mut file = fs::File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
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
        for step in [10, 20, 30] {
            run.write_checkpoint(&state(step)).unwrap();
        }
        assert_eq!(checkpoints(run.path()).unwrap().len(), KEEP);
        assert_eq!(run.newest_checkpoint().unwrap(), Some(state(30)));
        let newest = run.path().join("checkpoints/step_000030/state.safetensors");
        fs::write(&newest, &fs::read(&newest).unwrap()[..100]).unwrap();
        assert_eq!(run.newest_checkpoint().unwrap(), Some(state(20)));
    }

    #[test]
    fn a_folder_belongs_to_its_config() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        RunDir::open(&path, "a = 1\n", false).unwrap();
        let run = RunDir::open(&path, "a = 1\nb = 2\n", false).unwrap(); // nothing trained: still free
        run.write_checkpoint(&state(10)).unwrap();
        let error = |config, resume| RunDir::open(&path, config, resume).err().unwrap().to_string();
        assert!(error("a = 1\nb = 3\n", true).contains("it has `b = 2`, this run `b = 3`"));
        assert!(error("a = 1\nb = 2\n", false).contains("--resume"));
        assert!(RunDir::open(&path, "a = 1\nb = 2\n", true).is_ok());
    }
}
