//! `tessera train` and `tessera encode`.

use std::error::Error;
use std::fmt::{Display, Formatter};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use tessera_train::{
    Config, Control, EncodeInputs, Need, Outcome, Pace, PriorInputs, RerankInputs, RunOptions, Stage,
};

use super::say;
use crate::args::{Common, ConfigArgs, Encode, TrainTask};
use crate::memory::present_bytes;
use crate::reporter::Terminal;
use crate::signals;
use crate::stderr::note;

pub fn run(task: TrainTask) -> Result<()> {
    let terminal = Terminal::default();
    match task {
        TrainTask::Bpe { settings, data, run } => {
            signals::end_as_process_1()?;
            let (bpe, path) = tessera_train::train_bpe(&resolve(&settings)?, &data, &run, &terminal)?;
            say(format_args!("{} tokens in {}", bpe.vocab_size(), path.display()))
        }
        TrainTask::Dvae(common) => {
            let (config, stop) = (fitting(&common, Stage::Dvae)?, stop_on_signal()?);
            let pace = |steps| scaled(&common, Stage::Dvae, Some(steps));
            let outcome = tessera_train::train_dvae(
                &config,
                &common.data,
                &options(&common, &pace),
                control(&stop, &terminal),
            )?;
            report(outcome, &common.run)
        }
        TrainTask::Prior { common, bpe, dvae } => {
            let (config, stop) = (fitting(&common, Stage::Prior)?, stop_on_signal()?);
            let pace = |steps| scaled(&common, Stage::Prior, Some(steps));
            let inputs = PriorInputs { data: &common.data, bpe: &bpe, dvae: dvae.as_deref() };
            let outcome = tessera_train::train_prior(
                &config,
                inputs,
                &options(&common, &pace),
                control(&stop, &terminal),
            )?;
            report(outcome, &common.run)
        }
        TrainTask::Rerank { common, bpe, dvae } => {
            let (config, stop) = (fitting(&common, Stage::Rerank)?, stop_on_signal()?);
            let pace = |steps| scaled(&common, Stage::Rerank, Some(steps));
            let inputs = RerankInputs { data: &common.data, bpe: &bpe, dvae: dvae.as_deref() };
            let outcome = tessera_train::train_rerank(
                &config,
                inputs,
                &options(&common, &pace),
                control(&stop, &terminal),
            )?;
            report(outcome, &common.run)
        }
    }
}

fn control<'a>(stop: &'a AtomicBool, terminal: &'a Terminal) -> Control<'a> {
    Control { stop, reporter: terminal }
}

fn options<'a>(common: &'a Common, config: &'a (dyn Fn(u64) -> Result<Config> + Sync)) -> RunOptions<'a> {
    let Common { run, resume, init, seed, device, minutes, .. } = common;
    let pace = minutes.map(|minutes| Pace { minutes, config });
    RunOptions { dir: run, resume: *resume, init: init.as_deref(), seed: *seed, device: *device, pace }
}

pub fn encode(args: &Encode) -> Result<()> {
    let config = resolve(&args.settings)?;
    let inputs = EncodeInputs { data: &args.data, dvae: &args.dvae, seed: args.seed, cpu: config.cpu()? };
    let (pictures, tokens) = tessera_train::encode(&config.data, inputs, &args.out, &Terminal::default())?;
    say(format_args!("{pictures} pictures, {tokens} tokens in {}", args.out.display()))
}

/// The config that the flags name.
pub fn resolve(settings: &ConfigArgs) -> Result<Config> {
    Config::resolve(&settings.config, &settings.sets)
}

/// The config for training `stage`, its schedule scaled to `steps` updates.
fn scaled(common: &Common, stage: Stage, steps: Option<u64>) -> Result<Config> {
    Config::resolve_for(&common.settings.config, &common.settings.sets, stage, steps)
}

/// The config for training `stage`, if this machine has enough memory for it.
fn fitting(common: &Common, stage: Stage) -> Result<Config> {
    let config = scaled(common, stage, common.steps)?;
    if let Some(present) = present_bytes() {
        Need::new(&config, stage).of_host(common.device).ensure_fits(stage, present)?;
    }
    Ok(config)
}

/// A flag that the first signal raises; a second one ends the program at once.
fn stop_on_signal() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let raised = stop.clone();
    signals::on_first(move || {
        raised.store(true, Ordering::Relaxed);
        note!("\nsaving; press Ctrl-C again to quit without");
    })?;
    Ok(stop)
}

/// The error for a run that a signal ended after it was saved. It needs no message.
#[derive(Debug)]
pub struct Interrupted;

impl Display for Interrupted {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl Error for Interrupted {}

fn report(outcome: Outcome, run: &Path) -> Result<()> {
    let path = run.display();
    match outcome {
        Outcome::Finished => say(format_args!("finished: {path}")),
        Outcome::Stopped(step) => {
            say(format_args!("stopped and saved at step {step}: {path}; continue it with --resume"))?;
            bail!(Interrupted)
        }
    }
}
