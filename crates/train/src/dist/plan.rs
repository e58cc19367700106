//! Estimates memory, traffic and time of training a prior on many devices, with the arithmetic of
//! the paper (§2.4, §2.5, §D, §E).
//!
//! Each machine has one replica, and each parameter is split over the devices of the machine.
//! Matrices of the layers are in the paper's 16-bit formats, everything else is in 32 bits. Nothing
//! is allocated.

use anyhow::{Result, ensure};
use serde::Serialize;
use tessera_model::prior::PriorConfig;

use super::powersgd::floats_sent;

/// Bytes per value in 16-bit formats and in f32.
const SMALL: f64 = 2.0;
const FULL: f64 = 4.0;
/// The number of values that a resblock keeps for the backward pass, per position and in multiples
/// of `d_model`. Attention: norm, queries, keys, values, attended, output. MLP: norm, hidden layer
/// before and after its activation, output.
pub(crate) const INSIDE: [f64; 2] = [6.0, 10.0];

/// The machines and their devices.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cluster {
    /// Total number of devices.
    pub gpus: usize,
    /// Devices per machine. Together they have one replica.
    pub per_machine: usize,
    /// Memory of one device in bytes.
    pub memory_bytes: f64,
    /// Peak throughput of one device in 16 bits, in operations per second.
    pub peak_flops: f64,
    /// Fraction of the peak throughput that training reaches.
    pub mfu: f64,
}

/// The length of the training and the compression of gradients.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Training {
    /// Sequences per update, over all devices.
    pub batch: usize,
    /// Total number of updates.
    pub steps: u64,
    /// Rank of PowerSGD, summed over the devices of a machine.
    pub rank: usize,
}

/// Memory on one device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Memory {
    /// The device's part of the weights.
    pub weights: f64,
    /// Its part of AdamW's moments.
    pub moments: f64,
    /// Its part of the gradients: error buffers, which also accumulate gradients, and the gradients
    /// in 32 bits.
    pub gradients: f64,
    /// The complete weights of the current and the next resblock, and the gradient of one.
    pub gathered: f64,
    /// PowerSGD's factors of all gradients, and its random matrices.
    pub factors: f64,
    /// The inputs of all resblocks, the activations inside one layer, and the logits.
    pub activations: f64,
    /// The sum of all parts.
    pub total: f64,
}

/// Traffic of one device per update, in bytes sent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Traffic {
    /// Gathering weights within the machine, forward and backward.
    pub all_gather: f64,
    /// Summing gradients within the machine.
    pub reduce_scatter: f64,
    /// Summing gradients over machines without compression.
    pub all_reduce: f64,
    /// Summing gradients over machines as PowerSGD's factors, including gradients that are not
    /// compressed.
    pub all_reduce_compressed: f64,
}

/// The estimate for a prior, its training and a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CapacityPlan {
    /// Number of weights of the prior.
    pub parameters: u128,
    /// Number of weights in the matrices of the layers.
    pub matrix_parameters: u128,
    /// Bytes of all weights in 16 bits: the paper's 24 GB.
    pub weight_bytes: f64,
    /// Memory of a device as in the paper: everything is split, and activations inside resblocks
    /// are recomputed.
    pub memory: Memory,
    /// The same, but the activations inside all resblocks are kept.
    pub memory_kept: Memory,
    /// The same, but nothing is split: each device has everything.
    pub memory_whole: Memory,
    /// Whether `memory` fits on a device.
    pub fits: bool,
    /// Traffic of one device.
    pub traffic: Traffic,
    /// Fraction of the all-reduce of the matrices that PowerSGD saves: 1 − r (m + 2) / (2 d m) for
    /// m devices per machine.
    pub compression: f64,
    /// Operations per update, forward and backward. Only products with weights are counted.
    pub flops_per_step: f64,
    /// Additional operations per update for recomputed forward passes.
    pub recomputed_flops_per_step: f64,
    /// Days for all updates, if `flops_per_step` reaches the fraction `mfu` of the peak throughput.
    pub days: f64,
}

/// Returns the paper's rank for a width (table 1), or about a quarter of the width. It is a
/// multiple of the number of devices per machine.
pub fn usual_rank(d_model: usize, per_machine: usize) -> usize {
    let rank = match d_model {
        1920 => 512,
        2688 => 640,
        3968 => 896,
        d => d / 4,
    };
    (rank / per_machine.max(1)).max(1) * per_machine
}

/// Estimates the training of `config`.
///
/// # Errors
/// If the numbers of devices, the batch or the rank do not fit each other.
pub fn plan(config: &PriorConfig, training: &Training, cluster: &Cluster) -> Result<CapacityPlan> {
    check(config, training, cluster)?;
    let (d, layers, m) = (config.d_model as f64, config.n_layers as f64, cluster.per_machine as f64);
    let parameters = config.n_parameters();
    let matrix = 12.0 * d * d * layers;
    let other = parameters as f64 - matrix;
    let machines = cluster.gpus as f64 / m;
    let memory = |split: f64, kept: bool| {
        let streams = training.batch as f64 / cluster.gpus as f64;
        Memory::new(config, [matrix, other], split, streams, kept).with_factors(config, training.rank, split)
    };
    let split = memory(m, false);
    let factors = layers * factors(config.d_model, cluster.per_machine, training.rank) as f64;
    // A ring all-reduce sends each value twice, except the part that stays on the device.
    let ring = 2.0 * (machines - 1.0) / machines;
    let inside = (m - 1.0) / m * (matrix * SMALL + other * FULL);
    let [flops_per_step, recomputed_flops_per_step] = flops(config, training.batch as f64);
    let seconds = flops_per_step / (cluster.gpus as f64 * cluster.peak_flops * cluster.mfu);
    Ok(CapacityPlan {
        parameters,
        matrix_parameters: matrix as u128,
        weight_bytes: parameters as f64 * SMALL,
        memory: split,
        memory_kept: memory(m, true),
        memory_whole: memory(1.0, false),
        fits: split.total <= cluster.memory_bytes,
        traffic: Traffic {
            all_gather: 2.0 * inside,
            reduce_scatter: inside,
            all_reduce: ring * (matrix * SMALL + other * FULL) / m,
            all_reduce_compressed: ring * (factors * SMALL + other * FULL / m),
        },
        compression: 1.0 - factors / (matrix / m),
        flops_per_step,
        recomputed_flops_per_step,
        days: seconds * training.steps as f64 / 86_400.0,
    })
}

fn check(config: &PriorConfig, training: &Training, cluster: &Cluster) -> Result<()> {
    config.check()?;
    let Cluster { gpus, per_machine, .. } = *cluster;
    ensure!(
        per_machine > 0 && gpus > 0 && gpus.is_multiple_of(per_machine),
        "--gpus {gpus}: must be a positive multiple of --gpus-per-machine ({per_machine})"
    );
    ensure!(
        config.d_model.is_multiple_of(per_machine),
        "a width of {} is not split evenly by {per_machine} GPUs",
        config.d_model
    );
    ensure!(
        training.batch >= gpus,
        "a batch of {}: wanted at least one stream for each of {gpus} GPUs",
        training.batch
    );
    ensure!(
        training.rank > 0 && training.rank <= config.d_model && training.rank.is_multiple_of(per_machine),
        "--rank {}: must be a positive multiple of --gpus-per-machine ({per_machine}), at most the width, {}",
        training.rank,
        config.d_model
    );
    Ok(())
}

impl Memory {
    /// Computes the memory if everything is split over `split` devices, with `streams` sequences
    /// per device. `kept` is whether the activations inside resblocks are kept.
    fn new(config: &PriorConfig, [matrix, other]: [f64; 2], split: f64, streams: f64, kept: bool) -> Memory {
        let (d, layers) = (config.d_model as f64, config.n_layers as f64);
        let positions = streams * config.stream_len() as f64;
        let layer = 12.0 * d * d * SMALL;
        let inside = positions * d * SMALL * INSIDE.iter().sum::<f64>();
        let vocab = [config.text_vocab + config.text_len, config.image_vocab].map(|size| size as f64);
        let logits =
            streams * FULL * (config.text_len as f64 * vocab[0] + config.image_len() as f64 * vocab[1]);
        let weights = (matrix * SMALL + other * FULL) / split;
        let moments = 2.0 * weights;
        let gradients = weights;
        // A layer has 12 D² weights, of which 8 D² are in the MLP.
        let gathered = if split > 1.0 { 5.0 / 3.0 * layer } else { 2.0 / 3.0 * layer };
        let insides = if kept { layers * inside } else { inside };
        let activations = 2.0 * layers * positions * d * FULL + insides + logits;
        let total = weights + moments + gradients + gathered + activations;
        Memory { weights, moments, gradients, gathered, factors: 0.0, activations, total }
    }

    /// Adds PowerSGD's factors of the device's part of the matrices. A random matrix has as many
    /// rows as the longer side of its matrix.
    fn with_factors(self, config: &PriorConfig, rank: usize, split: f64) -> Memory {
        let (m, d) = (split as usize, config.d_model);
        let drawn = 6 * d * (rank / m);
        let factors = SMALL * (config.n_layers * (factors(d, m, rank) + drawn)) as f64;
        Memory { factors, total: self.total + factors, ..self }
    }
}

/// Returns the number of values in PowerSGD's two factors of a layer's gradients on one of `m`
/// devices (table 2). Each device compresses its own part of each matrix, with its part of the
/// rank.
fn factors(d: usize, m: usize, rank: usize) -> usize {
    let part = d / m;
    let attention = [[d, part]; 4];
    let mlp = [[d, 4 * part], [4 * part, d]];
    attention.into_iter().chain(mlp).map(|shape| floats_sent(shape, rank / m)).sum()
}

/// Returns the operations per update, without and for recomputation: per weight and position two
/// forward and four backward, and two more for the recomputed forward pass of a layer.
fn flops(config: &PriorConfig, streams: f64) -> [f64; 2] {
    let (d, layers) = (config.d_model as f64, config.n_layers as f64);
    let layers = 12.0 * d * d * layers * config.stream_len() as f64;
    let text = config.text_len as f64 * (config.text_vocab + config.text_len) as f64;
    let image = config.image_len() as f64 * config.image_vocab as f64;
    [streams * 6.0 * (layers + d * (text + image)), streams * 2.0 * layers]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn paper(sets: &[&str]) -> PriorConfig {
        let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
        Config::resolve("paper", &sets).unwrap().prior
    }

    const CLUSTER: Cluster = Cluster {
        gpus: 1024,
        per_machine: 8,
        memory_bytes: 16.0 * (1_u64 << 30) as f64,
        peak_flops: 125e12,
        mfu: 0.3,
    };

    fn training(rank: usize) -> Training {
        Training { batch: 1024, steps: 430_000, rank }
    }

    #[test]
    fn plan_agrees_with_the_paper() {
        let config = paper(&[]);
        let plan = plan(&config, &training(usual_rank(config.d_model, 8)), &CLUSTER).unwrap();
        assert!((12.0e9..12.4e9).contains(&(plan.parameters as f64)), "{}", plan.parameters);
        assert!((24e9..25e9).contains(&plan.weight_bytes)); // "24 GB": more than a device of 16 holds
        assert!((plan.compression - 0.86).abs() < 0.005, "{}", plan.compression);
        assert!(plan.fits && plan.memory_whole.total > CLUSTER.memory_bytes, "{:?}", plan.memory);
        assert!(plan.memory_kept.total > plan.memory.total);
    }

    #[test]
    fn compression_of_the_papers_three_sizes() {
        for (sets, size, compression) in [
            (["prior.d_model=1920", "prior.n_heads=30"], 2.8e9, 0.83),
            (["prior.d_model=2688", "prior.n_heads=42"], 5.6e9, 0.85),
            (["prior.d_model=3968", "prior.n_heads=62"], 12.0e9, 0.86),
        ] {
            let config = paper(&sets);
            let rank = usual_rank(config.d_model, 8);
            let plan = plan(&config, &training(rank), &CLUSTER).unwrap();
            assert!((plan.compression - compression).abs() < 0.006, "{}", plan.compression);
            let formula = 1.0 - 5.0 * rank as f64 / (8.0 * config.d_model as f64);
            assert!((plan.compression - formula).abs() < 1e-12);
            assert!((plan.matrix_parameters as f64 / size - 1.0).abs() < 0.02, "{}", plan.matrix_parameters);
        }
    }

    /// The last line of table 2: (5drm + 4dr) / m² and (drm + 8dr) / m² values in the two factors.
    #[test]
    fn factor_sizes_equal_table_2_of_the_paper() {
        for (d, m, r) in [(3968, 8, 896), (64, 4, 16)] {
            let table = (5 * d * r * m + 4 * d * r + d * r * m + 8 * d * r) / (m * m);
            assert_eq!(factors(d, m, r), table);
        }
    }

    #[test]
    fn mismatched_sizes_are_refused() {
        let error = |training: Training, cluster: Cluster| {
            plan(&paper(&[]), &training, &cluster).unwrap_err().to_string()
        };
        assert!(
            error(training(896), Cluster { gpus: 1020, ..CLUSTER })
                .contains("--gpus 1020: must be a positive multiple")
        );
        assert!(error(training(4000), CLUSTER).contains("--rank 4000: must be a positive multiple"));
        assert!(error(Training { batch: 512, ..training(896) }, CLUSTER).contains("a batch of 512"));
    }
}
