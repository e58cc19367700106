//! `tessera train`, `tessera encode` and `tessera pack`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use tessera_model::weights::{ModelFile, Storage};
use tessera_train::{Config, Outcome, RunDir};

use super::say;
use crate::args::{Common, Encode, TrainTask};

pub fn run(task: TrainTask) -> Result<()> {
    match task {
        TrainTask::Bpe(common) => {
            let config = Config::resolve(&common.config, &common.sets)?;
            let (bpe, path) = tessera_train::train_bpe(&config, &common.data, &common.run)?;
            say(format_args!("{} tokens in {}", bpe.vocab_size(), path.display()))
        }
        TrainTask::Dvae(common) => {
            let (config, run) = open(&common, "dvae")?;
            let stop = stop_on_ctrl_c()?;
            let outcome = tessera_train::train_dvae(&config, &common.data, &run, common.seed, &stop)?;
            report(outcome, &run)
        }
        TrainTask::Prior { common, bpe } => {
            let (config, run) = open(&common, "prior")?;
            let stop = stop_on_ctrl_c()?;
            let outcome = tessera_train::train_prior(&config, &common.data, &bpe, &run, common.seed, &stop)?;
            report(outcome, &run)
        }
    }
}

pub fn encode(args: &Encode) -> Result<()> {
    let config = Config::resolve(&args.config, &args.sets)?;
    let (pictures, tokens) =
        tessera_train::encode(&config.data, &args.data, &args.dvae, &args.out, args.seed)?;
    say(format_args!("{pictures} pictures, {tokens} tokens in {}", args.out.display()))
}

/// The resolved config and its run folder; prints the config if the folder is this run's.
fn open(common: &Common, task: &str) -> Result<(Config, RunDir)> {
    let config = Config::resolve(&common.config, &common.sets)?;
    let text = format!("# tessera train {task}, seed {}\n\n{}", common.seed, config.to_toml()?);
    let run = RunDir::open(&common.run, &text, common.resume)?;
    eprintln!("{text}");
    Ok((config, run))
}

/// A flag that the first Ctrl-C raises; a second one ends the program at once.
fn stop_on_ctrl_c() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let raised = stop.clone();
    let handler = move || {
        if raised.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("\nsaving; press Ctrl-C again to quit without");
    };
    ctrlc::set_handler(handler).context("cannot listen for Ctrl-C")?;
    Ok(stop)
}

fn report(outcome: Outcome, run: &RunDir) -> Result<()> {
    let path = run.path().display();
    match outcome {
        Outcome::Finished => say(format_args!("finished: {path}")),
        Outcome::Stopped(step) => {
            say(format_args!("stopped and saved at step {step}: {path}; continue it with --resume"))
        }
    }
}

/// `tessera pack`
pub fn pack(model: &Path, out: &Path) -> Result<()> {
    let before = ModelFile::read(model)?;
    let after = ModelFile { storage: Storage::Int8, ..before };
    after.write(out)?;
    let bytes = |path: &Path| std::fs::metadata(path).map(|meta| meta.len() as f64 / 1e6);
    say(format_args!("{:.1} MB to {:.1} MB: {}", bytes(model)?, bytes(out)?, out.display()))
}
