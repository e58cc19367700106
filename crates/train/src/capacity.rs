//! What training takes in this process at least, part by part, counted before anything is allocated.
//!
//! Only what is certain is counted: the arrays of all parameters, and what the backward pass needs of one micro-batch.

use std::fmt;

use anyhow::{Result, ensure};
use tessera_model::dvae::DvaeConfig;
use tessera_model::prior::{Activations, PriorConfig};
use tessera_model::rerank::ClipConfig;

use crate::config::{Config, FitConfig};
use crate::device::DeviceChoice;
use crate::dist::plan::INSIDE;
use crate::optim::Moments;

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The dVAE.
    Dvae,
    /// The prior.
    Prior,
    /// The contrastive model.
    Rerank,
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

/// Bytes of a number.
const FULL: f64 = 4.0;
const SMALL: f64 = 2.0;

/// Bytes that one process needs at least to train a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Need {
    /// The weights: those that are updated, and those that the model computes with.
    pub weights: f64,
    /// The weights' moving average.
    pub average: f64,
    /// AdamW's moments.
    pub moments: f64,
    /// The gradient of each weight.
    pub gradients: f64,
    /// What the backward pass of a micro-batch needs of its forward pass.
    pub activations: f64,
}

impl Need {
    /// The need of training `stage` of `config`.
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
        Need::of(fit, parameters as f64, activations)
    }

    /// Of `parameters` weights and as many `activations` for each item of a micro-batch.
    fn of(fit: &FitConfig, parameters: f64, activations: f64) -> Need {
        let moment = match fit.moments {
            Moments::Full => FULL,
            Moments::Small => SMALL,
        };
        Need {
            weights: 2.0 * FULL * parameters,
            average: FULL * parameters,
            moments: 2.0 * moment * parameters,
            gradients: FULL * parameters,
            activations: FULL * activations * (fit.batch / fit.micro_batches) as f64,
        }
    }

    /// What of it the host needs if `device` computes: activations are in the device's memory.
    pub fn of_host(self, device: DeviceChoice) -> Need {
        match device {
            DeviceChoice::Gpu(_) => Need { activations: 0.0, ..self },
            DeviceChoice::Cpu | DeviceChoice::LibTorch => self,
        }
    }

    /// All parts together.
    pub fn total(&self) -> f64 {
        self.weights + self.average + self.moments + self.gradients + self.activations
    }

    /// Whether `present` bytes hold all of it.
    ///
    /// # Errors
    /// Names the parts, what is there, and the ways on.
    pub fn ensure_fits(&self, stage: Stage, present: f64) -> Result<()> {
        let gb = |bytes: f64| format!("{:.1} GB", bytes / 1e9);
        ensure!(
            self.total() <= present,
            "training the {stage} of this config in one process needs at least {} of memory (weights {}, average {}, \
             moments {}, gradients {}, activations of a micro-batch {}) and this machine has {}; choose smaller sizes, \
             a smaller batch or more micro_batches; `tessera plan` counts how many devices would hold the prior, \
             but a run over more than one process is not supported yet",
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

/// Outputs of the convolutions of one picture, and its logits and codes.
fn dvae_values(config: &DvaeConfig) -> f64 {
    let cells = |side: usize| (side * side) as f64;
    // Three hidden outputs of a quarter of the width, and the block's own.
    let blocks = |group: usize, side: usize| {
        1.75 * (config.blocks_per_group * (config.n_hid << group)) as f64 * cells(side)
    };
    let encoder = |group: usize| blocks(group, config.image_size >> group);
    let decoder = |group: usize| blocks(config.groups - 1 - group, config.grid() << group);
    let groups: f64 = (0..config.groups).map(|group| encoder(group) + decoder(group)).sum();
    let input = config.n_hid as f64 * cells(config.image_size);
    input + groups + 2.0 * config.vocab as f64 * cells(config.grid())
}

/// The inputs of all resblocks for one stream, and the insides of one layer or of all.
fn prior_values(config: &PriorConfig, activations: Activations) -> f64 {
    let width = (config.stream_len() * config.d_model) as f64;
    let layers = config.n_layers as f64;
    let inside = match activations {
        Activations::Keep => layers,
        Activations::Recompute => 1.0,
    };
    width * (2.0 * layers + inside * INSIDE.iter().sum::<f64>())
}

/// The insides of the image tower's layers for one picture. Captions are of any length, so theirs are left out.
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
    fn the_papers_prior_is_counted_part_by_part() {
        let need = need("paper", Stage::Prior);
        // 12.29 · 10⁹ weights (`tessera plan`): twice in 32 bits, once as an average, twice in 16 bits, once as a gradient.
        assert!((need.weights / GB - 98.3).abs() < 0.1, "{need:?}");
        assert_eq!([need.average, need.moments, need.gradients], [need.weights / 2.0; 3]);
        // 1,024 streams of 1,280 positions of width 3,968: 128 inputs and 16 widths inside a layer, 4 bytes each.
        let wanted = 1024.0 * 1280.0 * 3968.0 * 144.0 * 4.0;
        assert!((need.activations / wanted - 1.0).abs() < 1e-12, "{need:?}");
    }

    #[test]
    fn micro_batches_and_stored_layers_count() {
        let with = |sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
            Need::new(&Config::resolve("paper", &sets).unwrap(), Stage::Prior).activations
        };
        let whole = with(&[]);
        assert!((with(&["train_prior.micro_batches=1024"]) * 1024.0 / whole - 1.0).abs() < 1e-12);
        let kept = with(&["chain.activations='keep'"]);
        assert!((kept / whole - (128.0 + 64.0 * 16.0) / 144.0).abs() < 1e-12);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_parts_and_the_ways_on() {
        for stage in [Stage::Dvae, Stage::Prior, Stage::Rerank] {
            let need = need("paper", stage);
            assert!(need.ensure_fits(stage, need.total()).is_ok());
            let error = need.ensure_fits(stage, 24.0 * GB).unwrap_err().to_string();
            let parts = ["weights", "average", "moments", "gradients", "activations", "has 24.0 GB"];
            let ways =
                [stage.to_string(), "tessera plan".into(), "more than one process is not supported".into()];
            for part in parts.map(String::from).into_iter().chain(ways) {
                assert!(error.contains(&part), "no {part:?} in {error}");
            }
            assert!(!error.contains("mpirun"), "promises what is absent: {error}");
        }
    }

    /// What the small presets need is less than what they were measured to take (`docs/performance.md`).
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
