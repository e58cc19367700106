//! Simulates one update of a prior on many devices: when each device computes, when it communicates,
//! and how long computation waits for communication (paper §2.5, §E).
//!
//! All devices do the same at the same time, so one of them is simulated. It has three resources that
//! each do one task at a time: its processor, its links within the machine (to the shard group) and
//! its link between machines (to the replica group). [`Builder`] lists the tasks of an update in the
//! order in which the training starts them, each with the tasks that it waits for. [`schedule`] then
//! gives each resource to the task that was ready first.
//!
//! The volumes of messages are those of [`plan`]. A message takes the latency of its link plus its
//! bytes divided by the bandwidth; the latency does not grow with the number of devices. Computation
//! takes its number of operations divided by the speed that training reaches, also for PowerSGD and
//! AdamW. In the paper's training these have less than 1 % of the operations, but devices do them
//! more slowly than large products.

use std::collections::VecDeque;

use anyhow::{Result, ensure};
use serde::Serialize;
use tessera_model::prior::PriorConfig;

use super::plan::{Cluster, Training, plan};
use super::powersgd::floats_sent;
use schedule::{Task, Work};

pub use schedule::{Busy, Simulated, Waits};

mod schedule;

/// Bytes of an f32.
const FULL: f64 = 4.0;
/// Operations of AdamW per parameter, about.
const ADAMW: f64 = 16.0;
/// The number of products of a resblock in the backward pass, about. Between them, a device may
/// compute something for PowerSGD.
const PRODUCTS: usize = 8;
/// The number of reduce-scatters that may be under way, as in `gradients.rs`.
const UNDER_WAY: usize = 1;

/// One device's connection to the other devices of a group.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Link {
    /// The duration of an exchange of messages without content.
    pub latency_s: f64,
    /// The bytes that the device sends per second, while it receives as many.
    pub bytes_per_s: f64,
}

/// The connections of one device.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Links {
    /// To the devices of its machine.
    pub inside: Link,
    /// To the devices of other machines that hold the same shard.
    pub between: Link,
}

/// Bytes per value in messages. Parameters outside the matrices of layers are sent in f32.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MessageFormats {
    /// Weights and gradients of the matrices of layers.
    pub matrices: f64,
    /// PowerSGD's factors.
    pub factors: f64,
}

/// How gradients are summed over machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicaSum {
    /// All values are summed.
    Exact,
    /// PowerSGD's factors of the matrices of layers are summed.
    Compressed,
}

/// A prior, its training, and the devices that it runs on.
#[derive(Debug, Clone, Copy)]
pub struct Simulation<'a> {
    /// The sizes of the prior.
    pub config: &'a PriorConfig,
    /// The batch over all devices and micro-batches, and PowerSGD's rank.
    pub training: Training,
    /// The devices. Their memory is not considered. `mfu` counts the operations of
    /// `flops_per_step`, so recomputation lowers it.
    pub cluster: Cluster,
    /// The connections of each device.
    pub links: Links,
    /// Bytes per value in messages.
    pub formats: MessageFormats,
    /// The number of micro-batches of a device.
    pub micro_batches: usize,
    /// Whether the backward pass recomputes activations. It then gathers the layers again.
    pub recompute: bool,
    /// How gradients are summed over machines.
    pub sum: ReplicaSum,
}

/// Parameters whose gradients are summed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Heads,
    Mlp,
    Attention,
    Embed,
}

impl Simulation<'_> {
    /// Simulates an update.
    ///
    /// # Errors
    /// If the numbers of devices, the batch, the micro-batches or the rank do not fit each other.
    pub fn run(&self) -> Result<Simulated> {
        Ok(Simulated::of(&self.tasks()?))
    }

    fn tasks(&self) -> Result<Vec<Task>> {
        let plan = plan(self.config, &self.training, &self.cluster)?;
        let Cluster { gpus, peak_flops, mfu, .. } = self.cluster;
        let parts = gpus * self.micro_batches;
        ensure!(
            parts > 0 && self.training.batch.is_multiple_of(parts),
            "a batch of {}: wanted a multiple of {gpus} GPUs times {} micro-batches",
            self.training.batch,
            self.micro_batches
        );
        // Recomputation is a forward pass of the layers.
        let (all, layers) = (plan.flops_per_step, plan.recomputed_flops_per_step);
        let recomputed = if self.recompute { layers } else { 0.0 };
        let rate = peak_flops * mfu * (all + recomputed) / all;
        let forward = |operations: f64| operations / parts as f64 / rate;
        let mut builder = Builder {
            simulation: self,
            rate,
            layer: forward(layers / self.config.n_layers as f64),
            heads: forward(all / 3.0 - layers),
            tasks: Vec::new(),
            now: Vec::new(),
            scattering: VecDeque::new(),
            summed: None,
        };
        builder.update();
        Ok(builder.tasks)
    }

    fn machines(&self) -> usize {
        self.cluster.gpus / self.cluster.per_machine
    }

    /// Returns the rows and columns of a device's shards of the part's matrices in layers.
    fn shards(&self, part: Part) -> Vec<[usize; 2]> {
        let (d, shard) = (self.config.d_model, self.config.d_model / self.cluster.per_machine);
        match part {
            Part::Attention => vec![[d, shard]; 4],
            Part::Mlp => vec![[d, 4 * shard], [4 * shard, d]],
            Part::Heads | Part::Embed => Vec::new(),
        }
    }

    /// Returns the number of values of a device's shards of the part's matrices in layers.
    fn matrices(&self, part: Part) -> f64 {
        self.shards(part).iter().map(|[rows, columns]| (rows * columns) as f64).sum()
    }

    /// Returns the number of the part's other parameters, over all devices of a machine.
    fn others(&self, part: Part) -> f64 {
        let (d, layers) = (self.config.d_model as f64, self.config.n_layers as f64);
        let logits = self.config.text_vocab + self.config.text_len + self.config.image_vocab;
        let heads = (d + 1.0) * logits as f64 + 2.0 * d;
        match part {
            Part::Attention => 6.0 * d,
            Part::Mlp => 7.0 * d,
            Part::Heads => heads,
            Part::Embed => self.config.n_parameters() as f64 - layers * (12.0 * d * d + 13.0 * d) - heads,
        }
    }

    /// Returns the bytes of all parameters of a part in messages within the machine.
    fn bytes(&self, part: Part) -> f64 {
        let matrices = self.matrices(part) * self.cluster.per_machine as f64;
        matrices * self.formats.matrices + self.others(part) * FULL
    }

    /// Returns the duration of an all-gather or a reduce-scatter of `bytes` within the machine.
    fn inside(&self, bytes: f64) -> f64 {
        exchange(self.links.inside, self.cluster.per_machine, bytes)
    }

    /// Returns the duration of an all-reduce of `bytes` over machines, which is a reduce-scatter and
    /// an all-gather.
    fn all_reduce(&self, bytes: f64) -> f64 {
        2.0 * exchange(self.links.between, self.machines(), bytes)
    }
}

/// Returns the duration of an exchange in which each of `ranks` gets a different part of `bytes` from
/// each other.
fn exchange(link: Link, ranks: usize, bytes: f64) -> f64 {
    match ranks {
        1 => 0.0,
        _ => link.latency_s + (ranks - 1) as f64 / ranks as f64 * bytes / link.bytes_per_s,
    }
}

/// Lists the tasks of an update in the order in which the training starts them.
struct Builder<'a> {
    simulation: &'a Simulation<'a>,
    /// Operations per second.
    rate: f64,
    /// Seconds of the forward pass of a layer for a micro-batch.
    layer: f64,
    /// Seconds of the forward pass of the heads for a micro-batch.
    heads: f64,
    tasks: Vec<Task>,
    /// The tasks that the training has waited for. What it starts next comes after them.
    now: Vec<usize>,
    /// Reduce-scatters under way, and whether each is that of the last micro-batch.
    scattering: VecDeque<(Part, usize, bool)>,
    /// The end of the last sum over machines. They are computed one after another.
    summed: Option<usize>,
}

impl Builder<'_> {
    /// Starts a task and does not wait for it.
    fn start(&mut self, work: Work, seconds: f64) -> usize {
        self.tasks.push(Task { work, seconds, after: self.now.clone() });
        self.tasks.len() - 1
    }

    fn wait(&mut self, task: usize) {
        self.now.push(task);
    }

    /// Computes something that consists of several products.
    fn compute(&mut self, seconds: f64) {
        for _ in 0..PRODUCTS {
            self.now = vec![self.start(Work::Train, seconds / PRODUCTS as f64)];
        }
    }

    fn is_sharded(&self) -> bool {
        self.simulation.cluster.per_machine > 1
    }

    fn update(&mut self) {
        let simulation = self.simulation;
        if self.is_sharded() {
            let others = simulation.bytes(Part::Heads) + simulation.bytes(Part::Embed);
            let gathered = self.start(Work::Gather, simulation.inside(others));
            self.wait(gathered);
        }
        for micro_batch in 1..=simulation.micro_batches {
            self.forward();
            self.backward(micro_batch == simulation.micro_batches);
        }
        self.finish();
    }

    fn forward(&mut self) {
        let layers = self.simulation.config.n_layers;
        let mut announced = None;
        for layer in 0..layers {
            announced = self.fetch(announced, layer + 1 < layers);
            self.compute(self.layer);
        }
    }

    fn backward(&mut self, is_last: bool) {
        self.compute(3.0 * self.heads);
        self.take(Part::Heads, is_last);
        let forwards = if self.simulation.recompute { 3.0 } else { 2.0 };
        let mut announced = None;
        for layer in (0..self.simulation.config.n_layers).rev() {
            // Activations that were kept include the layer.
            if self.simulation.recompute {
                announced = self.fetch(announced, layer > 0);
            }
            for (part, share) in [(Part::Mlp, 2.0 / 3.0), (Part::Attention, 1.0 / 3.0)] {
                self.compute(forwards * share * self.layer);
                self.take(part, is_last);
            }
        }
        self.take(Part::Embed, is_last);
    }

    /// Waits for a layer, which may have been announced. Starts to gather the next one, if there is
    /// one.
    fn fetch(&mut self, announced: Option<usize>, has_next: bool) -> Option<usize> {
        if !self.is_sharded() {
            return None;
        }
        let bytes = self.simulation.bytes(Part::Attention) + self.simulation.bytes(Part::Mlp);
        let seconds = self.simulation.inside(bytes);
        let gathered = announced.unwrap_or_else(|| self.start(Work::Gather, seconds));
        self.wait(gathered);
        has_next.then(|| self.start(Work::Gather, seconds))
    }

    /// Sums the gradients of a part of a micro-batch within the machine.
    fn take(&mut self, part: Part, is_last: bool) {
        if self.is_sharded() {
            let seconds = self.simulation.inside(self.simulation.bytes(part));
            let sum = self.start(Work::ReduceScatter, seconds);
            self.scattering.push_back((part, sum, is_last));
            while self.scattering.len() > UNDER_WAY {
                self.receive();
            }
        } else if is_last {
            self.sum_over_machines(part);
        }
    }

    /// Waits for the oldest reduce-scatter.
    fn receive(&mut self) {
        let Some((part, sum, is_last)) = self.scattering.pop_front() else { return };
        self.wait(sum);
        if is_last {
            self.sum_over_machines(part);
        }
    }

    /// Sums the gradients of a part over machines, after those of all parts before it.
    fn sum_over_machines(&mut self, part: Part) {
        let Simulation { cluster, formats, sum, .. } = *self.simulation;
        let all_reduce = |bytes: f64| (Work::AllReduce, self.simulation.all_reduce(bytes));
        let others = self.simulation.others(part) * FULL / cluster.per_machine as f64;
        let steps = match sum {
            ReplicaSum::Exact => vec![all_reduce(others + self.simulation.matrices(part) * formats.matrices)],
            ReplicaSum::Compressed => [vec![all_reduce(others)], self.exchange_factors(part)].concat(),
        };
        for (work, seconds) in steps {
            let step = self.start(work, seconds);
            self.tasks[step].after.extend(self.summed.replace(step));
        }
    }

    /// Returns the steps of PowerSGD for the matrices of a part: P = E Q, its sum, its columns made
    /// orthonormal, Eᵀ P, its sum and the flags.
    fn exchange_factors(&self, part: Part) -> Vec<(Work, f64)> {
        let shards = self.simulation.shards(part);
        if shards.is_empty() {
            return Vec::new();
        }
        let rank = self.simulation.training.rank / self.simulation.cluster.per_machine;
        let both: usize = shards.iter().map(|&shape| floats_sent(shape, rank)).sum();
        let p: usize = shards.iter().map(|[rows, columns]| *rows.min(columns) * rank).sum();
        let product = 2.0 * self.simulation.matrices(part) * rank as f64;
        // Householder reflections of the columns, and then of the identity.
        let orthonormal = 4.0 * (p * rank) as f64;
        let all_reduce =
            |values: usize| self.simulation.all_reduce(values as f64 * self.simulation.formats.factors);
        let flags = exchange(self.simulation.links.between, self.simulation.machines(), 0.0);
        vec![
            (Work::Compress, product / self.rate),
            (Work::AllReduce, all_reduce(p)),
            (Work::Compress, (orthonormal + product) / self.rate),
            (Work::AllReduce, all_reduce(both - p) + flags),
        ]
    }

    /// Waits for all sums and updates the weights.
    fn finish(&mut self) {
        let simulation = self.simulation;
        let losses = match simulation.machines() {
            1 => self.start(Work::Gather, simulation.inside(0.0)),
            machines => self.start(Work::AllReduce, exchange(simulation.links.between, machines, 0.0)),
        };
        self.wait(losses);
        self.receive();
        self.now.extend(self.summed);
        if self.is_sharded() {
            let norm = self.start(Work::Gather, simulation.inside(0.0));
            self.wait(norm);
        }
        let per_machine = simulation.cluster.per_machine;
        if simulation.sum == ReplicaSum::Compressed {
            let layer = simulation.matrices(Part::Attention) + simulation.matrices(Part::Mlp);
            let values = layer * simulation.config.n_layers as f64;
            let products = 2.0 * values * (simulation.training.rank / per_machine) as f64;
            self.now = vec![self.start(Work::Compress, products / self.rate)];
        }
        let parameters = simulation.config.n_parameters() as f64 / per_machine as f64;
        self.compute(ADAMW * parameters / self.rate);
    }
}

#[cfg(test)]
mod tests;
