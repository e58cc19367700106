//! The minimum memory that training needs in one process, part by part, computed before anything is
//! allocated.
//!
//! It includes only what is certain: the arrays of all parameters, and the activations of one
//! micro-batch that the backward pass needs.

use std::fmt;

use anyhow::{Result, ensure};
use tessera_model::DeviceChoice;
use tessera_model::dvae::DvaeConfig;
use tessera_model::prior::{Activations, PriorConfig};
use tessera_model::rerank::ClipConfig;

use crate::config::{Config, FitConfig};
use crate::dist::plan::INSIDE;
use crate::optim::Moments;

/// A model that is trained by the training loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The dVAE.
    Dvae,
    /// The prior.
    Prior,
    /// The contrastive model.
    Rerank,
}

impl Stage {
    /// Returns the name of the model file that a run writes to its folder.
    pub fn file_name(self) -> &'static str {
        match self {
            Stage::Dvae => "dvae.tessera.safetensors",
            Stage::Prior => "model.tessera.safetensors",
            Stage::Rerank => "rerank.tessera.safetensors",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Dvae => "dVAE",
            Stage::Prior => "prior",
            Stage::Rerank => "contrastive model",
        })
    }
}

/// Bytes per value in f32 and in 16-bit formats.
const FULL: f64 = 4.0;
const SMALL: f64 = 2.0;

/// The minimum memory, in bytes, that one process needs to train a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Need {
    /// The weights.
    pub weights: f64,
    /// The moving average of the weights.
    pub average: f64,
    /// AdamW's moments.
    pub moments: f64,
    /// The gradient of each weight.
    pub gradients: f64,
    /// The activations of one micro-batch that the forward pass keeps for the backward pass.
    pub activations: f64,
}

impl Need {
    /// Computes the memory for training `stage` with `config`.
    pub fn new(config: &Config, stage: Stage) -> Need {
        let (fit, parameters, activations) = match stage {
            Stage::Dvae => {
                let parameters = config.dvae.n_parameters().iter().sum();
                (&config.train_dvae, parameters, dvae_values(&config.dvae))
            }
            Stage::Prior => {
                let values = prior_values(&config.prior, config.chain.activations);
                (&config.train_prior, config.prior.n_parameters(), values)
            }
            Stage::Rerank => {
                (&config.train_rerank, config.rerank.n_parameters(), clip_values(&config.rerank))
            }
        };
        Need::from_counts(fit, parameters as f64, activations)
    }

    /// Computes the memory for a model with `parameters` weights, and `activations` values per
    /// sample of a micro-batch.
    fn from_counts(fit: &FitConfig, parameters: f64, activations: f64) -> Need {
        let moment = match fit.moments {
            Moments::Full => FULL,
            Moments::Small => SMALL,
        };
        Need {
            weights: FULL * parameters,
            average: FULL * parameters,
            moments: 2.0 * moment * parameters,
            gradients: FULL * parameters,
            activations: FULL * activations * (fit.batch / fit.micro_batches) as f64,
        }
    }

    /// Returns the part that `device` must hold. A GPU may keep activations in 16 bits, and moments in
    /// 16 bits are in host memory.
    pub fn on(self, device: DeviceChoice, moments: Moments) -> Need {
        match (device, moments) {
            (DeviceChoice::Cpu, _) => self,
            (DeviceChoice::Gpu(_), Moments::Full) => Need { activations: 0.5 * self.activations, ..self },
            (DeviceChoice::Gpu(_), Moments::Small) => {
                Need { activations: 0.5 * self.activations, moments: 0.0, ..self }
            }
        }
    }

    /// Returns what the ranks of one machine need together. `shards` ranks share the parameters, `ranks`
    /// divide the batch, and `here` of them are on this machine.
    pub fn of_ranks(self, [shards, ranks, here]: [usize; 3]) -> Need {
        let [shards, ranks, here] = [shards, ranks, here].map(|n| n as f64);
        let shared = |bytes: f64| bytes / shards * here;
        Need {
            weights: shared(self.weights),
            average: shared(self.average),
            moments: shared(self.moments),
            gradients: shared(self.gradients),
            activations: self.activations / ranks * here,
        }
    }

    /// Returns the sum of all parts.
    pub fn total(&self) -> f64 {
        self.weights + self.average + self.moments + self.gradients + self.activations
    }

    /// Checks that the total is at most `present`, the bytes of memory of `device`.
    ///
    /// # Errors
    /// If it is more. The message lists the parts, the memory of the device, and what to change.
    pub fn ensure_fits(&self, stage: Stage, device: DeviceChoice, present: f64) -> Result<()> {
        let name = match device {
            DeviceChoice::Cpu => "this machine".to_string(),
            gpu => gpu.to_string(),
        };
        let gb = |bytes: f64| format!("{:.1} GB", bytes / 1e9);
        ensure!(
            self.total() <= present,
            "training the {stage} of this config needs at least {} of memory here (weights {}, average {}, moments {}, \
             gradients {}, activations of a micro-batch {}) and {name} has {}; choose smaller sizes, a smaller batch or \
             more micro_batches, or train on more machines (docs/distributed.md; `tessera plan` counts how many)",
            gb(self.total()),
            gb(self.weights),
            gb(self.average),
            gb(self.moments),
            gb(self.gradients),
            gb(self.activations),
            gb(present)
        );
        Ok(())
    }
}

/// Returns the number of activation values for one picture: the outputs of the convolutions, the
/// logits and the relaxed codes.
fn dvae_values(config: &DvaeConfig) -> f64 {
    let cells = |side: usize| (side * side) as f64;
    // A block keeps three hidden outputs of a quarter of its width, and its output.
    let blocks = |group: usize, side: usize| {
        1.75 * (config.blocks_per_group * (config.n_hid << group)) as f64 * cells(side)
    };
    let encoder = |group: usize| blocks(group, config.image_size >> group);
    let decoder = |group: usize| blocks(config.groups - 1 - group, config.grid() << group);
    let groups: f64 = (0..config.groups).map(|group| encoder(group) + decoder(group)).sum();
    let input = config.n_hid as f64 * cells(config.image_size);
    input + groups + 2.0 * config.vocab as f64 * cells(config.grid())
}

/// Returns the number of activation values for one sequence: the inputs of all resblocks, and the
/// activations inside one layer or inside all layers.
fn prior_values(config: &PriorConfig, activations: Activations) -> f64 {
    let width = (config.stream_len() * config.d_model) as f64;
    let layers = config.n_layers as f64;
    let inside = match activations {
        Activations::Keep => layers,
        Activations::Recompute => 1.0,
    };
    width * (2.0 * layers + inside * INSIDE.iter().sum::<f64>())
}

/// Returns the number of activation values inside the layers of the image tower for one picture.
/// The text tower is left out, because captions may have any length.
fn clip_values(config: &ClipConfig) -> f64 {
    let width = (config.image.width * (config.n_patches() + 1)) as f64;
    width * config.image.n_layers as f64 * INSIDE.iter().sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: f64 = 1e9;

    fn need(preset: &str, stage: Stage) -> Need {
        Need::new(&Config::resolve(preset, &[]).unwrap(), stage)
    }

    #[test]
    fn parts_of_the_papers_prior_match_its_sizes() {
        let need = need("paper", Stage::Prior);
        // 12.29 · 10⁹ weights (`tessera plan`): in 32 bits the weights, their average and the
        // gradients; in 16 bits two moments.
        assert!((need.weights / GB - 49.2).abs() < 0.1, "{need:?}");
        assert_eq!([need.average, need.moments, need.gradients], [need.weights; 3]);
        // 1,024 sequences of 1,280 positions with 3,968 channels: the inputs of 128 resblocks and
        // 16 arrays of the same size inside a layer, with 4 bytes per value.
        let expected = 1024.0 * 1280.0 * 3968.0 * 144.0 * 4.0;
        assert!((need.activations / expected - 1.0).abs() < 1e-12, "{need:?}");
    }

    #[test]
    fn activations_depend_on_micro_batches_and_kept_layers() {
        let with = |sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
            Need::new(&Config::resolve("paper", &sets).unwrap(), Stage::Prior).activations
        };
        let default = with(&[]);
        assert!((with(&["train_prior.micro_batches=1024"]) * 1024.0 / default - 1.0).abs() < 1e-12);
        let kept = with(&["chain.activations='keep'"]);
        assert!((kept / default - (128.0 + 64.0 * 16.0) / 144.0).abs() < 1e-12);
    }

    #[test]
    fn gpu_needs_less_than_the_host() {
        let need = need("paper", Stage::Prior);
        let on = |moments| need.on(DeviceChoice::Gpu(0), moments);
        assert_eq!((on(Moments::Small).moments, on(Moments::Full).moments), (0.0, need.moments));
        assert_eq!(on(Moments::Full).activations, 0.5 * need.activations);
        assert_eq!(need.on(DeviceChoice::Cpu, Moments::Small), need);
    }

    #[test]
    fn error_of_too_large_a_config_lists_parts_and_remedies() {
        for stage in [Stage::Dvae, Stage::Prior, Stage::Rerank] {
            let need = need("paper", stage);
            let fits = |device, present| need.ensure_fits(stage, device, present);
            assert!(fits(DeviceChoice::Cpu, need.total()).is_ok());
            let error = fits(DeviceChoice::Gpu(1), 24.0 * GB).unwrap_err().to_string();
            assert!(error.contains("and gpu:1 has 24.0 GB"), "{error}");
            let error = fits(DeviceChoice::Cpu, 24.0 * GB).unwrap_err().to_string();
            let parts = ["weights", "average", "moments", "gradients", "activations", "has 24.0 GB"];
            let ways = [stage.to_string(), "tessera plan".into(), "train on more machines".into()];
            for part in parts.map(String::from).into_iter().chain(ways) {
                assert!(error.contains(&part), "no {part:?} in {error}");
            }
        }
    }

    #[test]
    fn ranks_of_a_machine_need_their_shares() {
        let need = need("paper", Stage::Prior);
        assert_eq!(need.of_ranks([1, 1, 1]), need);
        // Eight ranks of a machine share the parameters; with 128 machines each has a part of the batch.
        let machine = need.of_ranks([8, 1024, 8]);
        assert_eq!((machine.weights, machine.moments), (need.weights, need.moments));
        assert!((machine.activations * 128.0 / need.activations - 1.0).abs() < 1e-12);
        let gpu = need.of_ranks([8, 1024, 1]);
        assert_eq!((gpu.weights, gpu.gradients), (need.weights / 8.0, need.gradients / 8.0));
    }

    /// The minimum of the small presets is less than their measured memory (`docs/performance.md`).
    #[test]
    fn small_presets_fit_a_small_machine() {
        for preset in ["tiny", "emoji"] {
            for stage in [Stage::Dvae, Stage::Prior, Stage::Rerank] {
                assert!(
                    need(preset, stage).total() < 2.0 * GB,
                    "{preset} {stage}: {:?}",
                    need(preset, stage)
                );
            }
        }
    }
}
