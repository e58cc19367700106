//! Checkpoints: files with everything that a run needs to continue, protected by a checksum.
//!
//! A checkpoint also contains the text of the run's `config.toml`, which identifies the run.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use burn::module::{Module, ParamId};
use burn::tensor::{Device, Tensor, TensorData};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, View};
use serde::{Deserialize, Serialize};
use tessera_container::{Contents, Kind};
use tessera_kernels::{SmallFloat, read};
use tessera_model::nn::{HostTensor, Role};

use crate::best::Best;
use crate::capacity::Stage;
use crate::dist::gradients::Compressors;
use crate::dist::shards::Cut;
use crate::fit::{GoodCheckpoint, TrainState};
use crate::optim::Moment;
use crate::params::{Param, ParamStore, Which};
use crate::precision::Scales;
use crate::same_run::{self, Input};
use crate::schedule::Plateau;

/// The kind and the format version of the file. Version 2 added gradient scales, plateaus and
/// 16-bit moments; version 3 a checksum and the text of the run.
const KIND: Kind = Kind { key: "tessera.checkpoint", name: "a checkpoint", format: 3, checked: 3 };
/// The oldest format version that can be read.
const OLDEST: &str = "2";
/// The name of the file in the folder of a checkpoint.
pub(crate) const STATE_FILE: &str = "state.safetensors";

/// The contents of a checkpoint file.
pub struct Checkpoint {
    /// The state from which the run continues.
    pub(crate) state: TrainState,
    /// The text of the run's `config.toml`. `None` in files of an older version, which did not
    /// store it and have no checksum either.
    pub(crate) text: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    step: u64,
    updates: u64,
    plateau: Plateau,
    scales: Option<Scales>,
    good: Option<GoodCheckpoint>,
    /// [`TrainState::best`]
    #[serde(default)]
    best: Option<Best>,
    /// [`TrainState::averaged`]. Earlier versions called it `followed`.
    #[serde(default, alias = "followed")]
    average_is_current: bool,
    text: String,
    /// If the ranks of a group shared the parameters: whose shard this file has, of how many, and how
    /// each parameter is divided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shard: Option<ShardHeader>,
}

#[derive(Clone, Serialize, Deserialize)]
struct ShardHeader {
    rank: usize,
    ranks: usize,
    cuts: Vec<Cut>,
}

/// Returns the name of the file with the shard of `rank`.
pub(crate) fn shard_file(rank: usize) -> String {
    match rank {
        0 => STATE_FILE.to_string(),
        rank => format!("state.{rank}.safetensors"),
    }
}

/// A tensor to write. Its bytes are read when it is written, so that only one tensor at a time is
/// copied.
enum Stored<'a> {
    Full(Vec<usize>, &'a Tensor<1>),
    Small(Vec<usize>, &'a [u16]),
    Host(Vec<usize>, &'a [f32]),
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Stored::Full(..) | Stored::Host(..) => Dtype::F32,
            Stored::Small(..) => Dtype::U16,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Stored::Full(shape, _) | Stored::Small(shape, _) | Stored::Host(shape, _) => shape,
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self {
            Stored::Full(_, values) => {
                Cow::Owned(read(values, |values| bytemuck::cast_slice(values).to_vec()))
            }
            Stored::Small(_, codes) => Cow::Borrowed(bytemuck::cast_slice(codes)),
            Stored::Host(_, values) => Cow::Borrowed(bytemuck::cast_slice(values)),
        }
    }

    fn data_len(&self) -> usize {
        match self {
            Stored::Full(_, values) => 4 * values.dims()[0],
            Stored::Small(_, codes) => 2 * codes.len(),
            Stored::Host(_, values) => 4 * values.len(),
        }
    }
}

/// Writes a checkpoint to the folder: a file with the shard of `rank`, of a group of `ranks`. `text` is
/// that of the run's `config.toml`, and `unapplied` the sums of PowerSGD's error buffers.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn write(
    state: &TrainState,
    unapplied: &[HostTensor],
    text: &str,
    folder: &Path,
    [rank, ranks]: [usize; 2],
) -> Result<()> {
    let header = Header {
        step: state.step,
        updates: state.params.updates,
        plateau: state.plateau.clone(),
        scales: state.scales.clone(),
        good: state.good,
        best: state.best,
        average_is_current: state.average_is_current,
        text: text.to_string(),
        shard: (ranks > 1).then(|| {
            let cuts = state.params.params.iter().map(|param| param.cut.clone()).collect();
            ShardHeader { rank, ranks, cuts }
        }),
    };
    let mut tensors = tensors(&state.params, rank);
    for (index, HostTensor { name, shape, values }) in unapplied.iter().enumerate() {
        tensors.push((format!("unapplied/{index:04}/{name}"), Stored::Host(shape.clone(), values)));
    }
    KIND.write_file(&folder.join(shard_file(rank)), &header, tensors)
}

/// Returns the tensors of a checkpoint, with their names `GROUP/INDEX/NAME`.
fn tensors(params: &ParamStore, rank: usize) -> Vec<(String, Stored<'_>)> {
    let mut all = Vec::new();
    for (index, param) in params.params.iter().enumerate() {
        let shape = param.cut.shard_shape(rank);
        for (group, tensor) in [
            ("weight", Stored::Full(shape.clone(), &param.value)),
            ("average", Stored::Full(shape.clone(), &param.average)),
            ("mean", stored(&shape, &param.mean)),
            ("variance", stored(&shape, &param.variance)),
        ] {
            all.push((format!("{group}/{index:04}/{}", param.name), tensor));
        }
    }
    all
}

fn stored<'a>(shape: &[usize], moment: &'a Moment) -> Stored<'a> {
    match moment {
        Moment::Full(values) => Stored::Full(shape.to_vec(), values),
        Moment::Small(_, codes) => Stored::Small(shape.to_vec(), codes),
    }
}

impl Checkpoint {
    /// Reads a checkpoint, given its folder or the first file in it. Shards are put together.
    pub(crate) fn read(path: &Path) -> Result<Checkpoint> {
        let path: PathBuf = if path.is_dir() { path.join(STATE_FILE) } else { path.to_path_buf() };
        let (first, shard) = Checkpoint::of_bytes(&fs::read(&path)?)?;
        let Some(ShardHeader { rank, ranks, cuts }) = shard else { return Ok(first) };
        ensure!(
            rank == 0,
            "{} has only shard {rank} of {ranks}; name the folder of the checkpoint",
            path.display()
        );
        let mut states = vec![first.state];
        for rank in 1..ranks {
            let file = path.with_file_name(shard_file(rank));
            let bytes = fs::read(&file)
                .with_context(|| format!("shard {rank} of {ranks}, {}, cannot be read", file.display()))?;
            let (other, shard) = Checkpoint::of_bytes(&bytes).context(file.display().to_string())?;
            let fits = shard.is_some_and(|shard| (shard.rank, shard.ranks) == (rank, ranks));
            ensure!(
                fits && (other.state.step, &other.text) == (states[0].step, &first.text),
                "{} is not shard {rank} of this checkpoint",
                file.display()
            );
            states.push(other.state);
        }
        Ok(Checkpoint { state: joined(states, cuts)?, text: first.text })
    }

    /// Returns whether `bytes` are those of a checkpoint, possibly damaged and of any version.
    pub(crate) fn is_one(bytes: &[u8]) -> bool {
        let Ok((_, metadata)) = SafeTensors::read_metadata(bytes) else { return false };
        let has = |key| metadata.metadata().as_ref().is_some_and(|entries| entries.contains_key(key));
        has(KIND.key) || (has("step") && has("updates"))
    }

    /// Reads what `rank` of a group of `ranks` needs: its own file if the checkpoint was written by as
    /// many, else the complete checkpoint.
    pub(crate) fn read_shard(folder: &Path, [rank, ranks]: [usize; 2]) -> Result<Checkpoint> {
        let last = folder.join(shard_file(ranks - 1));
        if ranks == 1 || !last.exists() || folder.join(shard_file(ranks)).exists() {
            return Checkpoint::read(folder);
        }
        let (mut own, shard) = Checkpoint::of_bytes(&fs::read(folder.join(shard_file(rank)))?)?;
        let Some(shard) = shard.filter(|shard| [shard.rank, shard.ranks] == [rank, ranks]) else {
            return Checkpoint::read(folder);
        };
        ensure!(shard.cuts.len() == own.state.params.params.len(), "its shard does not fit its header");
        own.state.params.params.iter_mut().zip(shard.cuts).for_each(|(param, cut)| param.cut = cut);
        Ok(own)
    }

    /// Reads the file of one rank, and which shard it has if there are several.
    fn of_bytes(bytes: &[u8]) -> Result<(Checkpoint, Option<ShardHeader>)> {
        if let Some(header) = old_header(bytes)? {
            let state = state(header, &SafeTensors::deserialize(bytes)?)?;
            return Ok((Checkpoint { state, text: None }, None));
        }
        let Contents { header, tensors, .. } = KIND.read::<Header>(bytes)?;
        let (text, shard) = (Some(header.text.clone()), header.shard.clone());
        Ok((Checkpoint { state: state(header, &tensors)?, text }, shard))
    }

    /// Returns `model` with the averaged weights or, if the run had no average, with the weights
    /// themselves.
    ///
    /// `inputs` are those of the new run. Those named in `same` must equal the inputs of the
    /// checkpoint's run, as far as the checkpoint contains them.
    ///
    /// # Errors
    /// If the checkpoint is of another model, or one of the inputs in `same` differs.
    pub(crate) fn averaged<M: Module>(
        &self,
        model: M,
        stage: Stage,
        inputs: &[Input],
        same: &[&str],
    ) -> Result<M> {
        let theirs = self.text.as_deref().map(same_run::inputs).transpose()?.unwrap_or_default();
        let ours = inputs.iter().filter(|(name, _)| same.contains(name));
        for (name, ours) in ours.cloned().chain([("stage", stage.name().to_string())]) {
            let theirs = theirs.get(name).unwrap_or(&ours);
            ensure!(*theirs == ours, "--init was trained with {name} {theirs}, this run has {ours}");
        }
        let decay = self.text.as_deref().map(|text| same_run::ema(text, stage)).transpose()?.flatten();
        let which = if decay == Some(0.0) { Which::Value } else { Which::Average };
        let params = self.state.params.clone().of_model(&model);
        params.and_then(|params| params.load(model, which)).context("--init is a checkpoint of another model")
    }
}

/// Returns the header of a file of format version 2, which has no checksum and stores each field as
/// an entry of the metadata. Returns `None` for newer files.
fn old_header(bytes: &[u8]) -> Result<Option<Header>> {
    let (_, header) = SafeTensors::read_metadata(bytes)
        .context("not a safetensors file, or one that is damaged or cut short")?;
    let meta = |key: &str| header.metadata().as_ref().and_then(|meta| meta.get(key));
    if meta(KIND.key).is_some() {
        return Ok(None);
    }
    let number = |key: &str| meta(key).map(|number| number.parse::<u64>()).transpose();
    let format = meta("format").map_or("1", String::as_str);
    ensure!(
        format == OLDEST,
        "a checkpoint of format version {format}; this program reads {OLDEST} to {}",
        KIND.format
    );
    Ok(Some(Header {
        step: number("step")?.context("the checkpoint has no step number")?,
        updates: number("updates")?.context("the checkpoint does not count updates")?,
        plateau: serde_json::from_str(meta("plateau").context("the checkpoint has no plateau")?)?,
        scales: meta("scales").map(|json| serde_json::from_str(json)).transpose()?,
        good: None,
        best: None,
        average_is_current: false,
        text: String::new(),
        shard: None,
    }))
}

fn state(header: Header, tensors: &SafeTensors) -> Result<TrainState> {
    let [weights, averages, means, variances] =
        ["weight", "average", "mean", "variance"].map(|group| of_group(tensors, group));
    let (weights, averages, means, variances) = (weights?, averages?, means?, variances?);
    let mismatch = "the checkpoint's weights, averages and moments do not fit each other";
    ensure!([averages.len(), means.len(), variances.len()] == [weights.len(); 3], mismatch);
    let others = averages.into_iter().zip(means).zip(variances);
    let params = weights.into_iter().zip(others).map(
        |((name, weight), (((_, average), (_, mean)), (_, variance)))| {
            let param = Param {
                name,
                cut: Cut::whole(weight.shape()),
                // The model knows both ([`ParamStore::of_model`]).
                role: Role::Vector,
                id: ParamId::new(),
                value: floats(&weight)?,
                average: floats(&average)?,
                mean: moment(&mean, SmallFloat::OneSixNine)?,
                variance: moment(&variance, SmallFloat::ZeroSixTen)?,
            };
            let sizes = [param.average.dims()[0], param.mean.size(), param.variance.size()];
            ensure!(sizes == [param.value.dims()[0]; 3], mismatch);
            Ok(param)
        },
    );
    Ok(TrainState {
        step: header.step,
        params: ParamStore { params: params.collect::<Result<_>>()?, updates: header.updates },
        plateau: header.plateau,
        scales: header.scales,
        compressors: Compressors::default(),
        unapplied: unapplied(tensors)?,
        good: header.good,
        best: header.best,
        average_is_current: header.average_is_current,
        losses: Default::default(),
    })
}

/// Puts the shards of all ranks together.
fn joined(states: Vec<TrainState>, cuts: Vec<Cut>) -> Result<TrainState> {
    let mismatch = "the shards do not fit each other";
    let fits = |state: &TrainState| state.params.params.len() == cuts.len();
    ensure!(states.iter().all(fits), mismatch);
    let joined = |cut: &Cut, shards: Vec<&Tensor<1>>| -> Result<Tensor<1>> {
        let shards: Vec<Vec<f32>> = shards.into_iter().map(|shard| read(shard, <[f32]>::to_vec)).collect();
        cut.joined(&shards).map(flat)
    };
    let mut state = states[0].clone();
    for (index, cut) in cuts.into_iter().enumerate() {
        let own = || states.iter().map(|state| &state.params.params[index]);
        let moment = |of: fn(&Param) -> &Moment| -> Result<Moment> {
            let shards: Vec<&Moment> = own().map(of).collect();
            let full = |moment: &&Moment| match moment {
                Moment::Full(values) => Some(read(values, <[f32]>::to_vec)),
                Moment::Small(..) => None,
            };
            let codes = |moment: &&Moment| match moment {
                Moment::Small(_, codes) => Some(codes.clone()),
                Moment::Full(_) => None,
            };
            match shards[0] {
                Moment::Full(_) => {
                    let shards: Option<Vec<_>> = shards.iter().map(full).collect();
                    Ok(Moment::Full(Box::new(flat(cut.joined(&shards.context(mismatch)?)?))))
                }
                Moment::Small(format, _) => {
                    let shards: Option<Vec<_>> = shards.iter().map(codes).collect();
                    Ok(Moment::Small(*format, cut.joined(&shards.context(mismatch)?)?))
                }
            }
        };
        let (mean, variance) = (moment(|param| &param.mean)?, moment(|param| &param.variance)?);
        let param = &mut state.params.params[index];
        param.value = joined(&cut, own().map(|param| &param.value).collect())?;
        param.average = joined(&cut, own().map(|param| &param.average).collect())?;
        (param.mean, param.variance) = (mean, variance);
        if let Some(place) = state.unapplied.iter().position(|sum| sum.name == param.name) {
            let of = |state: &TrainState| state.unapplied.get(place).map(|sum| sum.values.clone());
            let shards: Vec<Vec<f32>> = states.iter().filter_map(of).collect();
            let (name, shape) = (param.name.clone(), cut.shape.clone());
            state.unapplied[place] = HostTensor { name, shape, values: cut.joined(&shards)? };
        }
        param.cut = Cut::whole(&cut.shape);
    }
    Ok(state)
}

/// Returns the sums of PowerSGD's error buffers, if the run compressed gradients.
fn unapplied(tensors: &SafeTensors) -> Result<Vec<HostTensor>> {
    if !tensors.names().iter().any(|name| name.starts_with("unapplied/")) {
        return Ok(Vec::new());
    }
    let host = |(name, view): (String, TensorView)| {
        let values = read(&floats(&view)?, <[f32]>::to_vec);
        Ok(HostTensor { name, shape: view.shape().to_vec(), values })
    };
    of_group(tensors, "unapplied")?.into_iter().map(host).collect()
}

/// Returns the tensors named `GROUP/INDEX/NAME`, in the order of their index, with their NAME.
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

fn floats(view: &TensorView) -> Result<Tensor<1>> {
    ensure!(view.dtype() == Dtype::F32, "a tensor of {:?}: wanted F32", view.dtype());
    let values: Vec<f32> =
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    Ok(flat(values))
}

fn flat(values: Vec<f32>) -> Tensor<1> {
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), &Device::flex())
}

fn moment(view: &TensorView, format: SmallFloat) -> Result<Moment> {
    match view.dtype() {
        Dtype::U16 => {
            let codes = view.data().chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
            Ok(Moment::Small(format, codes))
        }
        _ => Ok(Moment::Full(Box::new(floats(view)?))),
    }
}

#[cfg(test)]
pub(crate) mod tests;
