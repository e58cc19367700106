//! `tessera train` and `tessera encode`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use tessera_train::{Config, Outcome, RunDir};

use crate::args::{Common, Encode, TrainTask};

pub fn run(task: TrainTask) -> Result<()> {
    match task {
        TrainTask::Bpe(common) => {
            let config = Config::resolve(&common.config, &common.sets)?;
            let (bpe, path) = tessera_train::train_bpe(&config, &common.data, &common.run)?;
            println!("{} tokens in {}", bpe.vocab_size(), path.display());
            Ok(())
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
    println!("{pictures} pictures, {tokens} tokens in {}", args.out.display());
    Ok(())
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
        Outcome::Finished => println!("finished: {path}"),
        Outcome::Stopped(step) => {
            println!("stopped and saved at step {step}: {path}; continue it with --resume")
        }
    }
    Ok(())
}
