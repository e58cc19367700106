//! Complete parameters, gathered from the shards of a group when they are needed (paper §2.5).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use burn::module::{Module, ParamId};
use burn::tensor::{Device, Tensor, TensorData};
use tessera_kernels::read;
use tessera_model::nn::{parameters, with_values};
use tessera_model::prior::{Block, BlockSource};

use super::lane::{Lane, Pending};
use super::shards::Cut;
use crate::params::{ParamStore, Which};

/// The shape and the values of complete parameters.
pub(crate) type Complete = HashMap<ParamId, (Vec<usize>, Tensor<1>)>;

/// A rank's values of one parameter.
#[derive(Debug, Clone)]
pub(crate) struct Shard {
    pub id: ParamId,
    pub cut: Cut,
    pub values: Tensor<1>,
}

/// Parameters on their way from the other ranks.
#[derive(Debug)]
pub(crate) struct Gathering {
    cuts: Vec<(ParamId, Cut)>,
    device: Device,
    /// The shards of all parameters together, by rank.
    shards: Pending<Vec<Vec<f32>>>,
}

impl Gathering {
    /// Starts to gather the parameters of `own`, in one message.
    pub fn start(own: &[Shard], group: &Lane) -> Gathering {
        let cuts = own.iter().map(|shard| (shard.id, shard.cut.clone())).collect();
        let device = own.first().map_or_else(Device::flex, |shard| shard.values.device());
        let own: Vec<Tensor<1>> = own.iter().map(|shard| shard.values.clone()).collect();
        let shards = group.start("gather", move |comm| {
            let own: Vec<f32> = own.iter().flat_map(|tensor| read(tensor, <[f32]>::to_vec)).collect();
            comm.all_gather(&own)
        });
        Gathering { cuts, device, shards }
    }

    /// Waits for the parameters.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn wait(self) -> Result<Complete> {
        let shards = self.shards.wait()?;
        let mut rest: Vec<&[f32]> = shards.iter().map(Vec::as_slice).collect();
        let mut join = |(id, cut): (ParamId, Cut)| {
            let own = rest.iter_mut().enumerate().map(|(rank, rest)| {
                let (own, others) = rest.split_at(cut.len(rank));
                *rest = others;
                own
            });
            let values = cut.join(&own.collect::<Vec<_>>());
            let n = values.len();
            (id, (cut.shape, Tensor::from_data(TensorData::new(values, [n]), &self.device)))
        };
        Ok(self.cuts.into_iter().map(&mut join).collect())
    }
}

/// The layers of a prior whose parameters a group of ranks shares. A layer is complete from the time
/// at which it is announced until it is released.
pub(crate) struct SharedLayers<'a> {
    /// The layers without values.
    layers: &'a [Block],
    /// This rank's values of the parameters of each layer.
    own: Vec<Vec<Shard>>,
    group: &'a Lane,
    present: Mutex<HashMap<usize, Present>>,
}

enum Present {
    Coming(Gathering),
    Here(Box<Block>),
}

impl<'a> SharedLayers<'a> {
    /// Takes the values from `store`.
    pub fn new(layers: &'a [Block], store: &ParamStore, group: &'a Lane) -> SharedLayers<'a> {
        let of = |layer: &Block| {
            let ids: Vec<ParamId> = parameters(layer).into_iter().map(|parameter| parameter.id).collect();
            let own = store.params.iter().filter(|param| ids.contains(&param.id));
            own.map(|param| param.shard(Which::Value)).collect()
        };
        SharedLayers { layers, own: layers.iter().map(of).collect(), group, present: Mutex::default() }
    }

    /// Returns whether a parameter belongs to one of the layers.
    pub fn contain(&self, id: ParamId) -> bool {
        self.own.iter().flatten().any(|shard| shard.id == id)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<usize, Present>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlockSource for SharedLayers<'_> {
    fn get(&self, layer: usize) -> Result<Block> {
        let mut present = self.lock();
        let block = match present.remove(&layer) {
            Some(Present::Here(block)) => *block,
            Some(Present::Coming(gathering)) => complete(&self.layers[layer], &gathering.wait()?)?,
            None => complete(&self.layers[layer], &Gathering::start(&self.own[layer], self.group).wait()?)?,
        };
        present.insert(layer, Present::Here(Box::new(block.clone())));
        Ok(block)
    }

    fn prefetch(&self, layer: usize) {
        self.lock()
            .entry(layer)
            .or_insert_with(|| Present::Coming(Gathering::start(&self.own[layer], self.group)));
    }

    fn release(&self, layer: usize) {
        self.lock().remove(&layer);
    }
}

/// Returns `model` with complete values on the first rank of the group, and nothing on the others.
///
/// # Errors
/// If a rank is gone.
pub(crate) fn collected<M: Module>(
    model: &M,
    store: &ParamStore,
    which: Which,
    group: &Lane,
) -> Result<Option<M>> {
    if group.size() == 1 {
        return store.load(model.clone(), which).map(Some);
    }
    let mut all = Complete::new();
    for param in &store.params {
        let Shard { id, cut, values } = param.shard(which);
        let device = values.device();
        let shards = group.run("collect", move |comm| read(&values, |values| comm.gather(values)))?;
        if let Some(shards) = shards {
            let values = cut.joined(&shards)?;
            let n = values.len();
            all.insert(id, (cut.shape, Tensor::from_data(TensorData::new(values, [n]), &device)));
        }
    }
    (group.rank() == 0).then(|| complete(model, &all)).transpose()
}

/// Returns `module` with the values of `complete`, and without values for all other parameters.
///
/// # Errors
/// If a parameter has another shape.
pub(crate) fn complete<M: Module>(module: &M, complete: &Complete) -> Result<M> {
    with_values(module.clone(), |_, id| Ok(complete.get(&id).cloned()))
}
