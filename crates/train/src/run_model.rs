//! `convert run`: the model file of a run, from its newest checkpoint and without its data.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tessera_base::Reporter;
use tessera_container::hash;
use tessera_model::nn::HostTensor;
use tessera_model::weights::{ModelConfig, ModelFile};

use crate::capacity::Stage;
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::fit::TrainState;
use crate::params::Which;
use crate::rerank::read_tokenizer;
use crate::run_dir::{newest_readable, read_model};
use crate::same_run;

/// The files that a run read and its model file must contain.
#[derive(Debug, Clone, Copy)]
pub struct RunFiles<'a> {
    /// The tokenizer, for a prior or a contrastive model.
    pub bpe: Option<&'a Path>,
    /// A model file with the dVAE, for a prior.
    pub dvae: Option<&'a Path>,
}

/// Returns the model of the run in the folder `run`, with the averaged weights of its newest
/// checkpoint, whatever number of ranks wrote it. The list of words that the captions contain is
/// missing, because it comes from the data.
///
/// # Errors
/// If there is no readable checkpoint, or a file is missing or is not the one that the run read.
pub fn run_model(run: &Path, files: RunFiles, reporter: &dyn Reporter) -> Result<ModelFile> {
    let text = fs::read_to_string(run.join("config.toml"))
        .with_context(|| format!("{} holds no run: it has no config.toml", run.display()))?;
    let config = Config::of_run(&text).context("the run's config.toml")?;
    let inputs = same_run::inputs(&text)?;
    let stage = Stage::named(inputs.get("stage").map_or("", String::as_str))?;
    let Checkpoint { state, .. } = newest_readable(run, reporter)?;
    let tensors = weights(&state, config.fit(stage).ema);
    let same = |name: &str, found: &str| {
        let wanted = inputs.get(name);
        ensure!(
            wanted.is_none_or(|wanted| wanted == found),
            "the {name} that was given has the fingerprint {found}; the run was trained with {}",
            wanted.map_or("", String::as_str)
        );
        Ok(())
    };
    let tokenizer = || -> Result<String> {
        let path =
            files.bpe.with_context(|| format!("the model of {stage} needs its tokenizer: add --bpe"))?;
        let (_, json) = read_tokenizer(path)?;
        same("tokenizer", &hash(&json))?;
        Ok(json)
    };
    let origin = Some(same_run::origin(&text, stage)?);
    Ok(match stage {
        Stage::Dvae => {
            let config = ModelConfig { dvae: Some(config.dvae), ..ModelConfig::default() };
            ModelFile { config, dvae: tensors, origin, ..ModelFile::default() }
        }
        Stage::Prior => {
            let path = files.dvae.context("the model of a prior needs its dVAE: add --dvae")?;
            let dvae = read_model(path, reporter)?;
            same("dVAE", &dvae.fingerprint()?)?;
            ModelFile {
                config: ModelConfig {
                    dvae: dvae.config.dvae,
                    prior: Some(config.prior),
                    ..ModelConfig::default()
                },
                tokenizer: Some(tokenizer()?),
                dvae: dvae.dvae,
                prior: tensors,
                caption_drop: Some(config.data.caption_drop),
                origin,
                ..ModelFile::default()
            }
        }
        Stage::Rerank => {
            let config = ModelConfig { rerank: Some(config.rerank), ..ModelConfig::default() };
            let tokenizer = Some(tokenizer()?);
            ModelFile { config, tokenizer, rerank: tensors, origin, ..ModelFile::default() }
        }
    })
}

/// Returns the averaged weights or, if the run has no average, the weights themselves.
fn weights(state: &TrainState, ema: f64) -> Vec<HostTensor> {
    state.params.to_host(if ema == 0.0 { Which::Value } else { Which::Average })
}
