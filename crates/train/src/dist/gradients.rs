//! ★ Sums of gradients over micro-batches and ranks (paper §2.5, §E.2).
//!
//! A gradient goes through up to three sums. Within a shard group, each rank gets the sum of its own
//! shard (reduce-scatter), part by part while the backward pass goes on. The sums of micro-batches
//! stay on the rank. The sums of replicas are computed for a part as soon as its last micro-batch is
//! there: exactly, or compressed by PowerSGD. In a world of one rank, only the second sum is left.

use std::collections::{HashMap, HashSet, VecDeque};

use anyhow::{Context, Result, anyhow};
use burn::module::ParamId;
use burn::tensor::{Device, Tensor, TensorData};
use tessera_kernels::{Cpu, all_finite, divide_, read};
use tessera_model::nn::{GradientSink, GradientSums, HostTensor, ParamGradient, Part};

use super::lane::{Lane, Pending};
use super::powersgd::{Compressor, Exchanged, Factors, PowerSgdSettings, exchange};
use super::shards::Cut;
use super::world::World;
use crate::params::{Gradients, ParamStore};

/// The number of reduce-scatters that may be under way. More would need memory for their gradients.
const UNDER_WAY: usize = 1;

/// The compressors of the parameters that PowerSGD sums, by parameter.
pub type Compressors = HashMap<ParamId, Compressor>;

/// Makes the compressors of this rank's shards. They begin with their share of the `unapplied`
/// gradients.
///
/// # Errors
/// If the settings do not fit a parameter.
pub(crate) fn compressors(
    store: &ParamStore,
    settings: PowerSgdSettings,
    world: &World,
    unapplied: &[HostTensor],
) -> Result<Compressors> {
    let (rank, ranks) = (world.shards.rank(), world.shards.size());
    let mut all = Compressors::new();
    for (index, param) in store.params.iter().enumerate().filter(|(_, param)| param.role.may_be_small()) {
        let shape: [usize; 2] =
            param.cut.shard_shape(rank).try_into().map_err(|shape| {
                anyhow!("{} of {shape:?} cannot be compressed: wanted a matrix", param.name)
            })?;
        let columns = settings.rank.div_ceil(ranks).min(shape[0].min(shape[1]));
        let ordinal = (index * ranks + rank) as u64;
        let mut compressor = Compressor::new(shape, ordinal, PowerSgdSettings { rank: columns, ..settings })?;
        if let Some(sum) = unapplied.iter().find(|sum| sum.name == param.name) {
            // The sum of a rank's own file is already that of its shard.
            let own = match sum.values.len() == param.cut.len(rank) {
                true => sum.values.clone(),
                false => param.cut.shard(&sum.values, rank),
            };
            compressor.resume(&own, world.replicas.size())?;
        }
        all.insert(param.id, compressor);
    }
    Ok(all)
}

/// Returns the sums over replicas of the gradients that have not been applied yet, with the shapes of
/// this rank's shards.
///
/// # Errors
/// If a rank is gone.
pub(crate) fn unapplied(
    store: &ParamStore,
    compressors: &Compressors,
    replicas: &Lane,
) -> Result<Vec<HostTensor>> {
    let mut sums = Vec::new();
    for param in &store.params {
        let Some(compressor) = compressors.get(&param.id) else { continue };
        let (mut values, shape) = (compressor.error(), compressor.shape().to_vec());
        let values = replicas.run("error buffers", move |comm| {
            comm.all_reduce(&mut values, None)?;
            Ok(values)
        })?;
        sums.push(HostTensor { name: param.name.clone(), shape, values });
    }
    Ok(sums)
}

/// Takes gradients of micro-batches and sums them over all ranks.
pub(crate) struct WorldGradients<'a> {
    world: &'a World,
    cpu: Cpu,
    cuts: HashMap<ParamId, Cut>,
    device: Device,
    /// The number of micro-batches of this rank.
    micro_batches: usize,
    /// The factor that turns the sum over all micro-batches into their mean, for gradients that are
    /// compressed.
    share: f64,
    /// All parameters. Ranks go through them in this order.
    order: Vec<ParamId>,
    /// How often the gradients of a part were summed over the shard group.
    taken: Vec<(Part, usize)>,
    /// The parameters whose sum over replicas has begun.
    begun: HashSet<ParamId>,
    sums: GradientSums,
    compressors: &'a mut Compressors,
    scattering: VecDeque<Scattering>,
    summing: Vec<Pending<Summed>>,
}

/// Gradients of a part whose sum over the shard group is under way.
struct Scattering {
    part: Part,
    ids: Vec<ParamId>,
    sum: Pending<Vec<f32>>,
}

/// The sum of a part over replicas.
struct Summed {
    /// The parameters whose gradients were summed exactly, and their sums, one after another.
    exact: (Vec<ParamId>, Vec<f32>),
    /// The parameters whose gradients were compressed, their compressors, and the result.
    compressed: (Vec<ParamId>, Vec<Compressor>, Option<Exchanged>),
}

impl<'a> WorldGradients<'a> {
    /// Makes empty sums for the parameters of `store` in an update of `micro_batches` micro-batches
    /// per rank.
    pub fn new(
        world: &'a World,
        cpu: Cpu,
        store: &ParamStore,
        compressors: &'a mut Compressors,
        micro_batches: usize,
    ) -> WorldGradients<'a> {
        WorldGradients {
            world,
            cpu,
            cuts: store.params.iter().map(|param| (param.id, param.cut.clone())).collect(),
            device: store.params.first().map_or_else(Device::flex, |param| param.value.device()),
            micro_batches,
            share: 1.0 / (micro_batches * world.all.size()) as f64,
            order: store.params.iter().map(|param| param.id).collect(),
            taken: Vec::new(),
            begun: HashSet::new(),
            sums: GradientSums::new(cpu),
            compressors,
            scattering: VecDeque::new(),
            summing: Vec::new(),
        }
    }

    /// Starts to sum gradients over the shard group: each rank gets the sums of its shards.
    fn scatter(&mut self, part: Part, gradients: Vec<ParamGradient>) -> Result<()> {
        let ranks = self.world.shards.size();
        let mut parts = vec![Vec::new(); ranks];
        let mut ids = Vec::with_capacity(gradients.len());
        for ParamGradient { id, values } in gradients {
            let cut = self.cuts.get(&id).context("a gradient of an unknown parameter")?;
            read(&values, |values| {
                (0..ranks).for_each(|rank| parts[rank].extend(cut.shard(values, rank)));
            });
            ids.push(id);
        }
        let sum = self.world.shards.start("reduce-scatter", move |comm| {
            comm.reduce_scatter(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>(), None)
        });
        self.scattering.push_back(Scattering { part, ids, sum });
        while self.scattering.len() > UNDER_WAY {
            self.receive()?;
        }
        Ok(())
    }

    /// Waits for the oldest sum over the shard group.
    fn receive(&mut self) -> Result<()> {
        let Some(Scattering { part, ids, sum }) = self.scattering.pop_front() else { return Ok(()) };
        let sum = sum.wait()?;
        let gradients = self.divided(ids, &sum);
        self.add(part, gradients)
    }

    /// Cuts this rank's values of several parameters, one after another, into gradients.
    fn divided(&self, ids: Vec<ParamId>, mut values: &[f32]) -> Vec<ParamGradient> {
        let rank = self.world.shards.rank();
        let mut next = |id: ParamId| {
            let (own, rest) = values.split_at(self.cuts[&id].len(rank));
            values = rest;
            let own = Tensor::from_data(TensorData::new(own.to_vec(), [own.len()]), &self.device);
            ParamGradient { id, values: own }
        };
        ids.into_iter().map(&mut next).collect()
    }

    /// Adds a micro-batch's gradients of a part. After the last micro-batch, starts their sum over
    /// replicas.
    fn add(&mut self, part: Part, gradients: Vec<ParamGradient>) -> Result<()> {
        let ids: Vec<ParamId> = gradients.iter().map(|gradient| gradient.id).collect();
        let (compressed, exact): (Vec<_>, Vec<_>) =
            gradients.into_iter().partition(|gradient| self.compressors.contains_key(&gradient.id));
        for ParamGradient { id, values } in compressed {
            let compressor = self.compressors.get_mut(&id).context("no compressor")?;
            // An error buffer holds gradients of the mean loss.
            read(&values, |values| compressor.accumulate(values, (1.0 / self.share) as f32))?;
        }
        self.sums.take(part, exact, None)?;
        if self.is_last(part) {
            self.sum_over_replicas(ids);
        }
        Ok(())
    }

    /// Counts a micro-batch of a part, and returns whether it is the last one. A model that is
    /// differentiated as a whole has as many as it needs.
    fn is_last(&mut self, part: Part) -> bool {
        if part == Part::Model {
            return false;
        }
        let place = self.taken.iter().position(|(known, _)| *known == part).unwrap_or_else(|| {
            self.taken.push((part, 0));
            self.taken.len() - 1
        });
        self.taken[place].1 += 1;
        self.taken[place].1 == self.micro_batches
    }

    /// Returns whether there are gradients of a parameter.
    fn has(&self, id: ParamId) -> bool {
        self.sums.get(id).is_some() || self.compressors.contains_key(&id)
    }

    fn sum_over_replicas(&mut self, ids: Vec<ParamId>) {
        self.begun.extend(&ids);
        let (compressed, exact): (Vec<_>, Vec<_>) =
            ids.into_iter().partition(|id| self.compressors.contains_key(id));
        if self.world.replicas.size() == 1 && compressed.is_empty() {
            return;
        }
        let mut compressors: Vec<Compressor> =
            compressed.iter().filter_map(|id| self.compressors.remove(id)).collect();
        let sums: Vec<Tensor<1>> = exact.iter().filter_map(|id| self.sums.remove(*id)).collect();
        self.summing.push(self.world.replicas.start("sum over replicas", move |comm| {
            let mut sums: Vec<f32> = sums.iter().flat_map(|sum| read(sum, <[f32]>::to_vec)).collect();
            comm.all_reduce(&mut sums, None)?;
            let exchanged = match compressors.is_empty() {
                true => None,
                false => Some(exchange(&mut compressors, comm)?),
            };
            Ok(Summed { exact: (exact, sums), compressed: (compressed, compressors, exchanged) })
        }));
    }

    /// Waits for all sums. `share` is the factor that turns them into means.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn finish(mut self, share: f64) -> Result<Reduced<'a>> {
        while !self.scattering.is_empty() {
            self.receive()?;
        }
        let rest = self.order.iter().copied().filter(|id| !self.begun.contains(id) && self.has(*id));
        self.sum_over_replicas(rest.collect());
        let mut factors = HashMap::new();
        let (mut squares, mut overflows) = (0.0, Overflows::default());
        for summed in std::mem::take(&mut self.summing) {
            let Summed { exact: (ids, sums), compressed: (compressed, compressors, exchanged) } =
                summed.wait()?;
            let gradients = self.divided(ids, &sums);
            self.sums.take(Part::Model, gradients, None)?;
            self.compressors.extend(compressed.iter().copied().zip(compressors));
            if let Some(Exchanged { factors: found, norm_squared, overflowed }) = exchanged {
                squares += norm_squared / self.share.powi(2);
                overflows.of_gradients |= overflowed;
                overflows.of_factors |= found.iter().any(|factors| !factors.is_finite());
                factors.extend(compressed.into_iter().zip(found));
            }
        }
        squares += self.sums.sum_of_squares(&self.order);
        let (squares, overflows) = self.over_shards(squares, overflows)?;
        Ok(Reduced {
            cpu: self.cpu,
            sums: self.sums,
            factors,
            compressors: self.compressors,
            replicas: self.world.replicas.size(),
            device: self.device,
            share,
            norm: share * squares.sqrt(),
            is_only_compression: overflows.of_factors && !overflows.of_gradients,
        })
    }
}

impl WorldGradients<'_> {
    /// Adds up the squared norms of all shards, and says what overflowed in any of them.
    fn over_shards(&self, squares: f64, overflows: Overflows) -> Result<(f64, Overflows)> {
        if self.world.shards.size() == 1 {
            return Ok((squares, overflows));
        }
        let own = [squares, f64::from(overflows.of_gradients), f64::from(overflows.of_factors)];
        let all = self.world.shards.run("norm", move |comm| comm.all_gather(&own))?;
        let any = |place: usize| all.iter().any(|shard| shard[place] != 0.0);
        let squares = all.iter().map(|shard| shard[0]).sum();
        Ok((squares, Overflows { of_gradients: any(1), of_factors: any(2) }))
    }
}

/// What was not finite in a compressed sum.
#[derive(Debug, Clone, Copy, Default)]
struct Overflows {
    /// A gradient of a rank.
    of_gradients: bool,
    /// A factor, which did not fit the format in which it is sent.
    of_factors: bool,
}

impl GradientSink for WorldGradients<'_> {
    fn take(&mut self, part: Part, mut gradients: Vec<ParamGradient>, scale: Option<f32>) -> Result<bool> {
        let mut finite = true;
        if let Some(scale) = scale {
            for gradient in &mut gradients {
                gradient.values = divide_(self.cpu, gradient.values.clone(), scale);
                finite &= all_finite(self.cpu, &gradient.values);
            }
        }
        match self.world.shards.size() {
            1 => self.add(part, gradients)?,
            _ => self.scatter(part, gradients)?,
        }
        Ok(finite)
    }
}

/// The sums of a rank's shards over all ranks.
pub(crate) struct Reduced<'a> {
    cpu: Cpu,
    /// Those that were summed exactly.
    pub sums: GradientSums,
    factors: HashMap<ParamId, Factors>,
    compressors: &'a mut Compressors,
    replicas: usize,
    device: Device,
    share: f64,
    /// The norm of all mean gradients together. It is the same on all ranks.
    pub norm: f64,
    /// Whether all gradients were finite and only their compression overflowed. The update is then
    /// skipped (§E.2, step 10).
    pub is_only_compression: bool,
}

impl Reduced<'_> {
    /// Returns whether all sums are finite, on all ranks that share the parameters.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn all_finite(&self, world: &World) -> Result<bool> {
        let finite = self.sums.all_finite() && self.factors.values().all(Factors::is_finite);
        match world.shards.size() {
            1 => Ok(finite),
            _ => Ok(!world.shards.run("flags", move |comm| comm.any(!finite))?),
        }
    }

    /// Updates the error buffers of gradients that no update uses.
    pub fn discard(&mut self) {
        let ids: Vec<ParamId> = self.factors.keys().copied().collect();
        for id in ids {
            self.decompressed(id);
        }
    }

    /// Returns the sum that the factors of a parameter represent, and updates its error buffer.
    fn decompressed(&mut self, id: ParamId) -> Option<Vec<f32>> {
        let factors = self.factors.remove(&id)?;
        self.compressors.get_mut(&id)?.decompress(&factors, self.replicas)
    }
}

impl Gradients for &mut Reduced<'_> {
    fn norm(&self) -> f64 {
        self.norm
    }

    fn share(&self) -> f64 {
        self.share
    }

    fn get(&mut self, id: ParamId) -> Option<Tensor<1>> {
        if let Some(sum) = self.sums.get(id) {
            return Some(sum.clone());
        }
        // One gradient at a time is decompressed: all together would need the memory that
        // compression saves.
        let mean = self.decompressed(id)?;
        let n = mean.len();
        let mean = Tensor::from_data(TensorData::new(mean, [n]), &self.device);
        Some(divide_(self.cpu, mean, self.share as f32))
    }
}
