//! `tessera train` and `tessera encode`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use tessera_base::{Reporter, Silent, atomic};
use tessera_data::counted;
use tessera_model::DeviceChoice;
use tessera_train::dist::launch::Launch;
use tessera_train::dist::world::World;
use tessera_train::{
    Config, Control, EncodeInputs, Length, Need, Outcome, Pace, PriorInputs, RerankInputs, RunOptions, Stage,
};

use super::manual::long_version;
use super::output::check_folder;
use super::{Reported, launch_options, say};
use crate::args::{Common, ConfigArgs, Encode, StageInputs, TrainTask};
use crate::memory::present_bytes;
use crate::reporter::Terminal;
use crate::signals;
use crate::stderr::{self, note};

/// Trains what the subcommand names.
pub fn run(task: TrainTask) -> Result<()> {
    match task {
        TrainTask::Bpe { settings, data, run } => {
            signals::end_as_process_1()?;
            let (bpe, path) =
                tessera_train::train_bpe(&resolve(&settings)?, &data, &run, &Terminal::default())?;
            say(format_args!("{} tokens in {}", bpe.vocab_size(), path.display()))
        }
        TrainTask::Dvae(common) => train(&common, Stage::Dvae, &|config, options, control| {
            tessera_train::train_dvae(config, &common.data, options, control)
        }),
        TrainTask::Prior { common, models: StageInputs { bpe, dvae } } => {
            let inputs = PriorInputs { data: &common.data, bpe: &bpe, dvae: dvae.as_deref() };
            train(&common, Stage::Prior, &|config, options, control| {
                tessera_train::train_prior(config, inputs, options, control)
            })
        }
        TrainTask::Rerank { common, models: StageInputs { bpe, dvae } } => {
            let inputs = RerankInputs { data: &common.data, bpe: &bpe, dvae: dvae.as_deref() };
            train(&common, Stage::Rerank, &|config, options, control| {
                tessera_train::train_rerank(config, inputs, options, control)
            })
        }
    }
}

/// The training of one stage, as the library does it.
type Training<'a> = &'a dyn Fn(&Config, &RunOptions, Control) -> Result<Outcome>;

/// Trains `stage` and reports how the run ended.
fn train(common: &Common, stage: Stage, training: Training) -> Result<()> {
    let shards = match stage {
        Stage::Prior => common.node_size,
        // These models are small: each rank has all parameters.
        Stage::Dvae | Stage::Rerank => common.node_size.or(Some(1)),
    };
    let patience = Duration::from_secs(common.patience);
    let launch = Launch::join(launch_options(shards, patience, common.profile.is_some()))?;
    let outcome = train_in(&launch.world, common, stage, training)?;
    if let Some(path) = &common.profile {
        // The model is what the run was for.
        if let Err(error) = write_trace(&launch.world, path) {
            note!("warning: no trace: {error:#}");
        }
    }
    let is_first = launch.world.is_first();
    launch.finish();
    if is_first { report(outcome, common, stage) } else { Ok(()) }
}

/// Writes the records of all ranks to `path`, and says how much communication took place beside
/// computing.
fn write_trace(world: &World, path: &Path) -> Result<()> {
    let Some(trace) = &world.trace else { return Ok(()) };
    let (communicated, waited) = trace.communication();
    if let Some(json) = trace.of_all_ranks(&world.all)? {
        atomic::write(path, json.as_bytes())?;
        note!(
            "trace: {}; rank 0 communicated for {communicated:.2} s and waited for {waited:.2} s of it",
            path.display()
        );
    }
    Ok(())
}

/// Trains `stage` as one rank of `world`.
fn train_in(world: &World, common: &Common, stage: Stage, training: Training) -> Result<Outcome> {
    let (rank, ranks) = (world.all.rank(), world.all.size());
    if ranks > 1 {
        stderr::set_rank(rank);
        // Replicas that round differently would drift apart.
        world.ensure_same("the program or its instruction set", &long_version())?;
    }
    // The first rank looks, so that all of them do the same.
    let found = common.auto_resume && world.is_first() && tessera_train::has_checkpoint(&common.run)?;
    let resume = common.resume || world.any(found)?;
    let common = &Common { resume, ..common.clone() };
    let (config, stop) = (fitting(common, stage, world)?, stop_on_signal(world.is_first())?);
    if common.resume && common.minutes.is_some() {
        let steps = config.fit(stage).steps;
        note!(
            "with --resume, --minutes changes nothing: the run keeps its {steps} updates; --steps N changes them"
        );
    }
    let pace = |steps| resolve_for(common, stage, Length { steps: Some(steps), resumed: None });
    let terminal = Terminal::default();
    // The others would say the same.
    let reporter: &dyn Reporter = if world.is_first() { &terminal } else { &Silent };
    if world.is_first() && ranks > 1 {
        reporter.note(&format!("{ranks} ranks; {} of them share the parameters", world.shards.size()));
    }
    let control = Control { stop: &stop, last: common.last, reporter };
    training(&config, &options(common, world, &pace), control)
}

fn options<'a>(
    common: &'a Common,
    world: &'a World,
    config: &'a (dyn Fn(u64) -> Result<Config> + Sync),
) -> RunOptions<'a> {
    let Common { run, resume, init, seed, on, minutes, .. } = common;
    let pace = minutes.map(|minutes| Pace { minutes, config });
    RunOptions {
        dir: run,
        resume: *resume,
        init: init.as_deref(),
        seed: *seed,
        device: on.device,
        world,
        pace,
    }
}

/// Encodes the pictures of a data set.
pub fn encode(args: &Encode) -> Result<()> {
    let config = resolve(&args.settings)?;
    check_folder(&args.out, &["train.safetensors"], "codes; choose another --out")?;
    let inputs = EncodeInputs {
        data: &args.data,
        dvae: &args.dvae,
        seed: args.seed,
        compute: &config.compute(args.on.device)?,
    };
    let (pictures, tokens) = tessera_train::encode(&config.data, inputs, &args.out, &Terminal::default())?;
    say(format_args!("{}, {tokens} tokens in {}", counted(pictures as u64, "picture"), args.out.display()))
}

/// The config that the flags name.
pub fn resolve(settings: &ConfigArgs) -> Result<Config> {
    Config::resolve(&settings.config, &settings.sets)
}

/// The config for training `stage` with this length.
fn resolve_for(common: &Common, stage: Stage, length: Length) -> Result<Config> {
    Config::resolve_for(&common.settings.config, &common.settings.sets, stage, length)
}

/// The config for training `stage`, if the device has enough memory for it.
fn fitting(common: &Common, stage: Stage, world: &World) -> Result<Config> {
    let resumed = common.resume.then_some(common.run.as_path());
    let config = resolve_for(common, stage, Length { steps: common.steps, resumed })?;
    let device = common.on.device;
    let present = match device {
        DeviceChoice::Cpu => present_bytes(),
        gpu => gpu.memory_bytes()?.map(|bytes| bytes as f64),
    };
    if let Some(present) = present {
        let (shards, ranks) = (world.shards.size(), world.all.size());
        // Each rank may have a GPU of its own. The memory of a machine is that of all its ranks.
        let here = if device == DeviceChoice::Cpu { world.here } else { 1 };
        let need = Need::new(&config, stage).on(device, config.fit(stage).moments);
        let need = need.of_ranks([shards, ranks, here]);
        need.ensure_fits(stage, device, present)?;
    }
    Ok(config)
}

/// A flag that the first signal raises; a second one ends the program at once.
fn stop_on_signal(is_said: bool) -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let raised = stop.clone();
    signals::on_first(move || {
        raised.store(true, Ordering::Relaxed);
        if is_said {
            note!("\nsaving a checkpoint; press Ctrl-C again to quit without saving");
        }
    })?;
    Ok(stop)
}

fn report(outcome: Outcome, common: &Common, stage: Stage) -> Result<()> {
    let path = common.run.display();
    match outcome {
        Outcome::Finished => {
            say(format_args!("finished: {path}"))?;
            let model = common.run.join(stage.file_name());
            note!("model: {}\nnext: {}", model.display(), next(stage, &model, common));
            Ok(())
        }
        Outcome::Stopped(step) => {
            say(format_args!("stopped and saved at step {step}: {path}; continue it with --resume"))?;
            bail!(Reported(signals::exit_code()))
        }
    }
}

/// The command that usually follows the training of `stage`, whose result is `model`.
fn next(stage: Stage, model: &Path, common: &Common) -> String {
    let (model, data, config) = (model.display(), common.data.display(), &common.settings.config);
    match stage {
        Stage::Dvae => format!("tessera encode --data {data} --dvae {model} --config {config} --out codes"),
        Stage::Prior => format!("tessera draw \"...\" --model {model}"),
        Stage::Rerank => format!("tessera pack MODEL --rerank {model} --out model.tessera.safetensors"),
    }
}
