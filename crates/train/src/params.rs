//! The parameters of a model in training, and everything that an update changes: values, moving
//! average and the optimizer's moments, as flat tensors on one device.
//!
//! A model in training has no values of its own. [`ParamStore::load`] lends it those of the store,
//! on the CPU without copying them; when the model is dropped, an update changes them in place.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use burn::module::{Module, ParamId};
use burn::tensor::{Tensor, TensorData};
use tessera_kernels::{Cpu, all_finite, changed, ema_, read};
use tessera_model::nn::{GradientSums, HostTensor, Parameter, Role, parameters, with_values};

use crate::config::FitConfig;
use crate::dist::gather::Shard;
use crate::dist::shards::Cut;
use crate::optim::{self, Moment, Moments};

/// One parameter with everything that an update changes.
#[derive(Debug, Clone)]
pub struct Param {
    /// The field path in the model.
    pub name: String,
    /// How it is divided among ranks. The tensors below are this rank's shard of it.
    pub cut: Cut,
    /// The role, which decides weight decay, 16-bit storage and the division among ranks.
    pub role: Role,
    /// The id of the parameter in the model.
    pub id: ParamId,
    /// The values.
    pub value: Tensor<1>,
    /// The moving average of the values.
    pub average: Tensor<1>,
    /// The optimizer's first moment: the running mean of the gradient.
    pub mean: Moment,
    /// The optimizer's second moment: the running mean of the squared gradient.
    pub variance: Moment,
}

impl PartialEq for Param {
    fn eq(&self, other: &Param) -> bool {
        let equal = |a: &Tensor<1>, b: &Tensor<1>| read(a, |a| read(b, |b| a == b));
        (&self.name, &self.cut, &self.mean, &self.variance)
            == (&other.name, &other.cut, &other.mean, &other.variance)
            && equal(&self.value, &other.value)
            && equal(&self.average, &other.average)
    }
}

/// Sums of gradients for an update.
pub trait Gradients {
    /// Returns the norm of all mean gradients together.
    fn norm(&self) -> f64;
    /// Returns the factor that turns sums into means.
    fn share(&self) -> f64;
    /// Returns the sum of the gradients of a parameter, or `None` if it has had none. It is asked for
    /// once per parameter.
    fn get(&mut self, id: ParamId) -> Option<Tensor<1>>;
}

/// Sums in memory, and their share.
#[cfg(test)]
impl Gradients for (&GradientSums, f64) {
    fn norm(&self) -> f64 {
        self.1 * self.0.sum_of_squares(&self.0.ids()).sqrt()
    }

    fn share(&self) -> f64 {
        self.1
    }

    fn get(&mut self, id: ParamId) -> Option<Tensor<1>> {
        self.0.get(id).cloned()
    }
}

/// Which values of the parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The newest ones.
    Value,
    /// Their moving average.
    Average,
}

/// All parameters of a model, in its order.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamStore {
    /// The parameters.
    pub params: Vec<Param>,
    /// The number of updates, without skipped ones.
    pub updates: u64,
}

impl ParamStore {
    /// Makes a store with the values of `model`, its average, and moments that are zero.
    ///
    /// # Panics
    /// Never: one rank has all of every parameter.
    pub fn new(model: &impl Module, moments: Moments) -> ParamStore {
        ParamStore::begin(parameters(model), moments, ALONE).expect("one rank has everything")
    }

    /// Makes a store with the part of the parameters `own` that belongs to `rank` of `ranks`. Each
    /// complete parameter is freed as soon as it is divided.
    ///
    /// # Errors
    /// If a parameter is too small to be divided.
    pub(crate) fn begin(
        own: Vec<Parameter>,
        moments: Moments,
        [rank, ranks]: [usize; 2],
    ) -> Result<ParamStore> {
        let param = |Parameter { name, id, role, shape, values }: Parameter| -> Result<Param> {
            let cut = Cut::new(&name, &shape, role, ranks)?;
            let value = if ranks == 1 { values } else { shard_of(&cut, rank, &values) };
            let [mean, variance] = Moment::pair(&value, role, moments);
            Ok(Param { name, cut, role, id, average: value.clone(), value, mean, variance })
        };
        Ok(ParamStore { params: own.into_iter().map(param).collect::<Result<_>>()?, updates: 0 })
    }

    /// Returns a store that was read from a file as the store of `model`: with the ids and roles of
    /// its parameters, on its device.
    ///
    /// # Errors
    /// If the store has other parameters.
    pub fn of_model(self, model: &impl Module) -> Result<ParamStore> {
        self.bound(parameters(model), ALONE)
    }

    /// Like [`ParamStore::of_model`], for a model with the parameters `own`. Keeps only what belongs to
    /// `rank` of `ranks`.
    ///
    /// # Errors
    /// As for [`ParamStore::of_model`], and if a parameter is too small to be divided.
    pub(crate) fn bound(self, own: Vec<Parameter>, place: [usize; 2]) -> Result<ParamStore> {
        ensure!(
            own.len() == self.params.len(),
            "there are {} weights, wanted {}",
            self.params.len(),
            own.len()
        );
        let mut by_name: HashMap<String, Param> =
            self.params.into_iter().map(|param| (param.name.clone(), param)).collect();
        let bound = |Parameter { name, id, role, shape, values }: Parameter| -> Result<Param> {
            let param = by_name.remove(&name).with_context(|| format!("weight {name} is missing"))?;
            ensure!(
                param.cut.shape == shape,
                "weight {name} has shape {:?}; this model wants {shape:?}",
                param.cut.shape
            );
            let Param { cut, value, average, mean, variance, .. } = Param { role, ..param }.divided(place)?;
            let device = values.device();
            let [value, average] = [value, average].map(|tensor| tensor.to_device(&device));
            let [mean, variance] = [mean, variance].map(|moment| moment.moved_to(&device));
            Ok(Param { name, cut, role, id, value, average, mean, variance })
        };
        let params = own.into_iter().map(bound).collect::<Result<_>>()?;
        Ok(ParamStore { params, updates: self.updates })
    }

    /// Returns `model` with these values, which must be complete.
    ///
    /// # Errors
    /// If the store has no values for a parameter of the model.
    pub fn load<M: Module>(&self, model: M, which: Which) -> Result<M> {
        let by_id: HashMap<ParamId, &Param> = self.params.iter().map(|param| (param.id, param)).collect();
        with_values(model, |name, id| {
            let param = by_id.get(&id).with_context(|| format!("weight {name} is missing"))?;
            Ok(Some((param.cut.shape.clone(), param.tensor(which).clone())))
        })
    }

    /// Updates all values with AdamW and learning rate `lr` ([`optim::adamw`]). Returns the norm of
    /// the gradient, before it is clipped.
    ///
    /// Parameters without gradients have a gradient of 0.
    pub fn adamw_(&mut self, cpu: Cpu, mut gradients: impl Gradients, config: &FitConfig, lr: f64) -> f64 {
        let (norm, share) = (gradients.norm(), gradients.share());
        if !optim::is_applied(norm, config) {
            return norm;
        }
        self.updates += 1;
        let (params, updates) = (std::mem::take(&mut self.params), self.updates);
        let update = |param: Param| {
            let step = optim::adamw(config, lr, (norm, share), updates, param.role);
            let gradient = gradients.get(param.id).unwrap_or_else(|| param.value.zeros_like());
            let moments = [param.mean, param.variance];
            let (value, [mean, variance]) = optim::apply(cpu, &step, param.value, moments, &gradient);
            Param { value, mean, variance, ..param }
        };
        self.params = params.into_iter().map(update).collect();
        norm
    }

    /// Moves the average towards the values: `average += share · (value - average)`.
    pub fn ema_(&mut self, cpu: Cpu, share: f32) {
        let moved = |param: Param| Param { average: ema_(cpu, param.average, &param.value, share), ..param };
        self.params = std::mem::take(&mut self.params).into_iter().map(moved).collect();
    }

    /// Changes the values of the parameter `name` on the host, if there is one.
    pub fn change(&mut self, name: &str, which: Which, change: impl FnOnce(&mut [f32])) {
        if let Some(param) = self.params.iter_mut().find(|param| param.name == name) {
            let tensor = param.tensor_mut(which);
            *tensor = changed(tensor.clone(), change);
        }
    }

    /// Replaces the values by those of `weights`, which are in the order of the parameters.
    ///
    /// # Panics
    /// If a size differs.
    pub fn set(&mut self, which: Which, weights: &[HostTensor]) {
        for (param, weight) in self.params.iter_mut().zip(weights) {
            let tensor = param.tensor_mut(which);
            *tensor = changed(tensor.clone(), |values| values.copy_from_slice(&weight.values));
        }
    }

    /// Returns the values on the host.
    pub fn to_host(&self, which: Which) -> Vec<HostTensor> {
        let host = |param: &Param| HostTensor {
            name: param.name.clone(),
            shape: param.cut.shape.clone(),
            values: read(param.tensor(which), <[f32]>::to_vec),
        };
        self.params.iter().map(host).collect()
    }

    /// Returns the name of the last parameter whose gradient is not finite. The backward pass
    /// computes the gradients from last to first, so this is where the problem began.
    pub(crate) fn nonfinite(&self, cpu: Cpu, sums: &GradientSums) -> Option<&str> {
        let broken = |param: &&Param| sums.get(param.id).is_some_and(|sum| !all_finite(cpu, sum));
        self.params.iter().rev().find(broken).map(|param| param.name.as_str())
    }
}

/// The only rank.
const ALONE: [usize; 2] = [0, 1];

/// Returns a rank's shard of a complete parameter.
fn shard_of(cut: &Cut, rank: usize, complete: &Tensor<1>) -> Tensor<1> {
    let values = read(complete, |values| cut.shard(values, rank));
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), &complete.device())
}

impl Param {
    /// Keeps only what belongs to `rank` of `ranks`. A parameter that is already divided among as many
    /// ranks is not changed.
    ///
    /// # Errors
    /// If it is too small to be divided.
    pub(crate) fn divided(self, [rank, ranks]: [usize; 2]) -> Result<Param> {
        let cut = Cut::new(&self.name, &self.cut.shape, self.role, ranks)?;
        if cut == self.cut || ranks == 1 {
            return Ok(self);
        }
        let moment = |moment| match moment {
            Moment::Full(values) => Moment::Full(Box::new(shard_of(&cut, rank, &values))),
            Moment::Small(format, codes) => Moment::Small(format, cut.shard(&codes, rank)),
        };
        Ok(Param {
            value: shard_of(&cut, rank, &self.value),
            average: shard_of(&cut, rank, &self.average),
            mean: moment(self.mean),
            variance: moment(self.variance),
            cut,
            ..self
        })
    }

    /// Returns this rank's values.
    pub(crate) fn shard(&self, which: Which) -> Shard {
        Shard { id: self.id, cut: self.cut.clone(), values: self.tensor(which).clone() }
    }

    /// Returns the values.
    pub fn tensor(&self, which: Which) -> &Tensor<1> {
        match which {
            Which::Value => &self.value,
            Which::Average => &self.average,
        }
    }

    fn tensor_mut(&mut self, which: Which) -> &mut Tensor<1> {
        match which {
            Which::Value => &mut self.value,
            Which::Average => &mut self.average,
        }
    }
}
