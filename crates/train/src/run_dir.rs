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
use tessera_data::picture::encode_png;
use tessera_kernels::{Cpu, SmallFloat};
use tessera_model::weights::{HostTensor, ModelFile};

use crate::buffer::Buffer;
use crate::config::Config;
use crate::fit::State;
use crate::optim::AdamW;

/// Checkpoints that stay.
const KEEP: usize = 2;
/// Of checkpoints: 2 has gradient scales, plateaus and moments of 16 bits.
const FORMAT: u64 = 2;
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
            "none of the checkpoints in {} can be read, for the reasons above; choose another --run",
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
        atomic::write(&path, &encode_png(picture)?)
    }

    /// Writes the model that the run makes.
    pub(crate) fn write_model(&self, file: &ModelFile, name: &str) -> Result<()> {
        atomic::write(&self.path.join(name), &file.to_bytes()?)
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

/// What a tensor's numbers are, and they.
type Bytes<'a> = (Dtype, &'a [u8]);

fn state_bytes(state: &State) -> Result<Vec<u8>> {
    let weights = state.weights.iter().map(|w| (&w.name, &w.shape));
    let weights: Vec<(&String, &Vec<usize>)> = weights.collect();
    let groups: [(&str, Vec<Bytes>); 4] = [
        ("weight", state.weights.iter().map(weight_bytes).collect()),
        ("average", state.average.iter().map(weight_bytes).collect()),
        ("mean", state.adam.mean.iter().map(moment_bytes).collect()),
        ("variance", state.adam.variance.iter().map(moment_bytes).collect()),
    ];
    let mut views = Vec::new();
    for (group, values) in &groups {
        for ((index, (name, shape)), (dtype, bytes)) in weights.iter().enumerate().zip(values) {
            let view = TensorView::new(*dtype, (*shape).clone(), bytes)?;
            views.push((format!("{group}/{index:04}/{name}"), view));
        }
    }
    let mut meta = vec![
        ("format", FORMAT.to_string()),
        ("step", state.step.to_string()),
        ("updates", state.adam.updates.to_string()),
        ("plateau", serde_json::to_string(&state.plateau)?),
    ];
    if let Some(scales) = &state.scales {
        meta.push(("scales", serde_json::to_string(scales)?));
    }
    let meta = HashMap::from_iter(meta.into_iter().map(|(key, value)| (key.to_string(), value)));
    Ok(safetensors::serialize(views, Some(meta))?)
}

fn weight_bytes(weight: &HostTensor) -> Bytes<'_> {
    (Dtype::F32, bytemuck::cast_slice(&weight.values))
}

fn moment_bytes(moment: &Buffer) -> Bytes<'_> {
    match moment {
        Buffer::Full(values) => (Dtype::F32, bytemuck::cast_slice(values)),
        Buffer::Small(_, codes) => (Dtype::U16, bytemuck::cast_slice(codes)),
    }
}

fn read_state(path: &Path) -> Result<State> {
    let bytes = fs::read(path)?;
    let (_, header) = SafeTensors::read_metadata(&bytes)?;
    let meta = |key: &str| header.metadata().as_ref().and_then(|meta| meta.get(key));
    let number = |key: &str| meta(key).map(|number| number.parse::<u64>()).transpose();
    let format = number("format")?.unwrap_or(1);
    ensure!(format == FORMAT, "a checkpoint of format {format}; this program reads {FORMAT}");
    let step = number("step")?.context("the checkpoint has no step number")?;
    let plateau = serde_json::from_str(meta("plateau").context("the checkpoint has no plateau")?)?;
    let scales = meta("scales").map(|json| serde_json::from_str(json)).transpose()?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let weights = |group| -> Result<Vec<HostTensor>> {
        let tensor = |(name, view): (String, TensorView)| {
            Ok(HostTensor { name, shape: view.shape().to_vec(), values: floats(&view)? })
        };
        of_group(&tensors, group)?.into_iter().map(tensor).collect()
    };
    let moments = |group, format| -> Result<Vec<Buffer>> {
        let moment = |(_, view): (String, TensorView)| match view.dtype() {
            Dtype::U16 => Ok(Buffer::Small(format, words(&view))),
            _ => Ok(Buffer::Full(floats(&view)?)),
        };
        of_group(&tensors, group)?.into_iter().map(moment).collect()
    };
    let state = State {
        step,
        weights: weights("weight")?,
        average: weights("average")?,
        adam: AdamW {
            mean: moments("mean", SmallFloat::OneSixNine)?,
            variance: moments("variance", SmallFloat::ZeroSixTen)?,
            updates: number("updates")?.context("the checkpoint does not count updates")?,
        },
        plateau,
        scales,
    };
    check(&state)?;
    Ok(state)
}

/// Everything is there for each weight.
fn check(state: &State) -> Result<()> {
    let lens = |moments: &[Buffer]| moments.iter().map(Buffer::size).collect::<Vec<_>>();
    let weights: Vec<usize> = state.weights.iter().map(|weight| weight.values.len()).collect();
    let average: Vec<usize> = state.average.iter().map(|weight| weight.values.len()).collect();
    ensure!(
        [average, lens(&state.adam.mean), lens(&state.adam.variance)].iter().all(|lens| *lens == weights),
        "the checkpoint's weights, averages and moments do not fit each other"
    );
    Ok(())
}

/// The tensors `GROUP/INDEX/NAME` by index, and their names.
fn of_group<'a>(tensors: &'a SafeTensors, group: &str) -> Result<Vec<(String, TensorView<'a>)>> {
    let mut names: Vec<&str> = tensors.names();
    names.retain(|name| name.split('/').next() == Some(group));
    names.sort_unstable();
    ensure!(!names.is_empty(), "no tensors of {group}");
    let named = |full: &str| {
        let name = full.splitn(3, '/').nth(2).with_context(|| format!("unexpected tensor {full}"))?;
        Ok((name.to_string(), tensors.tensor(full)?))
    };
    names.into_iter().map(named).collect()
}

fn floats(view: &TensorView) -> Result<Vec<f32>> {
    ensure!(view.dtype() == Dtype::F32, "a tensor of {:?}: wanted F32", view.dtype());
    Ok(view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

fn words(view: &TensorView) -> Vec<u16> {
    view.data().chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precision::{Rules, Scales, Scaling};
    use crate::schedule::Plateau;

    fn state(step: u64) -> State {
        let weight =
            |v: f32| vec![HostTensor { name: "w.x".into(), shape: vec![2], values: vec![v, 1.0 / 3.0] }];
        let adam = AdamW {
            mean: vec![Buffer::Small(SmallFloat::OneSixNine, vec![1, 2])],
            variance: vec![Buffer::Full(vec![0.3, 0.4])],
            updates: step / 2,
        };
        let mut plateau = Plateau::default();
        (0..7).for_each(|i| plateau.follow(2.0 + 1e-9 * f64::from(i), 2, 0.1));
        let mut scales = Scales::new(Rules::paper(Scaling::Resblock), 3, SmallFloat::F16, 1);
        (0..1000).for_each(|step| drop(scales.follow(step, &[1][..usize::from(step % 300 == 7)], true)));
        State { step, weights: weight(1.0), average: weight(2.0), adam, plateau, scales: Some(scales) }
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
        assert!(run.newest_checkpoint().unwrap_err().to_string().contains("can be read"));
    }

    #[test]
    fn checkpoints_of_a_later_format_or_in_parts_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state.safetensors");
        let bytes = state_bytes(&state(5)).unwrap();
        let at = bytes.windows(12).position(|window| window == b"\"format\":\"2\"").unwrap();
        fs::write(&file, [&bytes[..at + 10], b"3", &bytes[at + 11..]].concat()).unwrap();
        assert!(read_state(&file).unwrap_err().to_string().contains("format 3; this program reads 2"));
        let mut other = state(5);
        other.adam.mean = vec![Buffer::Full(vec![0.1])];
        assert!(check(&other).unwrap_err().to_string().contains("do not fit each other"));
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
