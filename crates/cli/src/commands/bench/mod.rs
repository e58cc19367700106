//! `tessera bench`: runs benchmarks. They have the same names as in the comparison with other
//! programs (`benches/peers`).

mod count;
mod drawing;
mod kernels;
mod training;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use rayon::current_num_threads;
use serde::Serialize;
use tessera_kernels::decode::Weights;
use tessera_kernels::{Cpu, peak_gflops};
use tessera_model::DeviceChoice;
use tessera_model::nn::Compute;
use tessera_model::prior::{Activations, Logits};
use tessera_text::suggestion;
use tessera_train::PowerSgdConfig;
use tessera_train::dist::launch::Launch;
use tessera_train::dist::powersgd::PowerSgdSettings;
use tessera_train::dist::world::World;

use super::{launch_options, say};
use crate::args::Bench;

/// A benchmark that is set up and can be run repeatedly.
struct Benchmark {
    /// Runs the benchmark once.
    run: Box<dyn FnMut() -> Result<()>>,
    /// The amount of work of one run. Divided by seconds, it has the unit `unit`.
    amount: f64,
    /// The unit of the throughput, as in "tokens/s".
    unit: &'static str,
    /// The arithmetic of one run in 10⁹ operations, if it is easy to count.
    gflop: Option<f64>,
    /// How the weights are kept in memory.
    weights: Weights,
}

/// The name of a benchmark, and the function that sets it up.
type Entry = (&'static str, Setup);
/// Sets up a benchmark.
type Setup = fn(&Setting) -> Result<Benchmark>;

/// Where a benchmark runs.
struct Setting {
    /// The device, and what it multiplies.
    compute: Compute,
    /// All ranks of a training. Each has a replica of the model and a batch of its own.
    world: &'static World,
    /// How gradients are compressed between ranks, if they are.
    powersgd: Option<PowerSgdSettings>,
}

const BENCHMARKS: [Entry; 26] = [
    ("gemm", |on| kernels::gemm(&on.compute)),
    ("conv", |on| kernels::conv(&on.compute)),
    ("gpt-step", training::gpt_step),
    ("paper-step", training::paper_step),
    ("dvae-step", training::dvae_step),
    ("decode-1", |on| drawing::decode(&on.compute, 1, 64, 16)),
    ("decode-16", |on| drawing::decode(&on.compute, 16, 64, 16)),
    ("decode-64", |on| drawing::decode(&on.compute, 64, 64, 16)),
    ("grow-320", |on| drawing::decode(&on.compute, 16, 64, 16)),
    ("grow-640", |on| drawing::decode(&on.compute, 16, 64, 24)),
    ("grow-1280", |on| drawing::decode(&on.compute, 16, 256, 32)),
    ("grow-2560", |on| drawing::decode(&on.compute, 16, 60, 50)),
    ("depth-8-keep", |on| training::depth(on, 8, Activations::Keep)),
    ("depth-16-keep", |on| training::depth(on, 16, Activations::Keep)),
    ("depth-32-keep", |on| training::depth(on, 32, Activations::Keep)),
    ("depth-64-keep", |on| training::depth(on, 64, Activations::Keep)),
    ("depth-8-recompute", |on| training::depth(on, 8, Activations::Recompute)),
    ("depth-16-recompute", |on| training::depth(on, 16, Activations::Recompute)),
    ("depth-32-recompute", |on| training::depth(on, 32, Activations::Recompute)),
    ("depth-64-recompute", |on| training::depth(on, 64, Activations::Recompute)),
    ("logits-auto", |on| training::emoji_step(on, Logits::Auto)),
    ("logits-f32", |on| training::emoji_step(on, Logits::F32)),
    ("paper-layers", training::paper_layers),
    ("released-dvae", training::released_dvae),
    ("released-decoder", |on| drawing::released_decoder(&on.compute)),
    ("draw-9", |on| drawing::draw_9(&on.compute)),
];

/// How many seconds a rank waits for the others.
const PATIENCE: u64 = 300;

/// How long a benchmark runs at least before it is timed. The first runs allocate memory, and a
/// processor takes some time to reach its clock.
const WARM_UP: Duration = Duration::from_millis(200);

/// The prefixes of benchmarks that run only if they are named, because they take up to minutes, or
/// 20 GiB.
const ON_DEMAND: [&str; 5] = ["grow-", "depth-", "logits-", "paper-layers", "released-dvae"];

/// The printed results of a benchmark.
#[derive(Serialize)]
struct Figures {
    benchmark: String,
    /// The median time of a run.
    seconds: f64,
    min: f64,
    max: f64,
    rate: f64,
    unit: &'static str,
    gflops: Option<f64>,
    /// The measured peak speed of the processor on all threads, in bf16 or f32. Products of
    /// integers have a higher peak.
    peak_gflops: f64,
    precision: String,
    threads: usize,
    peak_rss_mib: Option<f64>,
    /// The memory of the GPU, if its driver reports it.
    device_bytes: Option<u64>,
    /// The memory that the benchmark holds on the GPU.
    device_mib: Option<f64>,
}

/// Runs `tessera bench`.
pub fn run(args: &Bench) -> Result<()> {
    ensure!(args.rounds > 0, "--rounds 0: wanted at least 1");
    for name in &args.benchmarks {
        find(name)?;
    }
    let launch = Launch::join(launch_options(Some(1), Duration::from_secs(PATIENCE), false))?;
    let (world, ending) = launch.parts();
    let world: &'static World = Box::leak(Box::new(world)); // for models that are never dropped
    ensure!(
        world.all.size() == 1 || args.benchmarks.len() == 1,
        "name one benchmark of training for several processes, as in `mpirun -n 2 tessera bench gpt-step`"
    );
    let compute = args.precision.compute(args.on.device)?;
    match args.benchmarks.as_slice() {
        [one] => {
            let powersgd = PowerSgdConfig { rank: args.powersgd, ..PowerSgdConfig::default() }.settings(1, 0);
            time(one, find(one)?, args, &Setting { compute, world, powersgd })?;
            ending.finish();
            Ok(())
        }
        [] => {
            if !args.json {
                let (threads, peak) = (current_num_threads(), peak(&compute)?);
                say(format_args!("{}, {threads} threads, peak {peak:.0} GFLOP/s", shown(args, &compute)))?;
            }
            let names = BENCHMARKS.iter().map(|(name, _)| *name);
            let on_demand = |name: &str| ON_DEMAND.iter().any(|prefix| name.starts_with(prefix));
            each(names.filter(|name| !on_demand(name)), args)
        }
        several => each(several.iter().map(String::as_str), args),
    }
}

/// Returns the function that sets up the benchmark `name`.
fn find(name: &str) -> Result<Setup> {
    match BENCHMARKS.iter().find(|(known, _)| *known == name) {
        Some((_, benchmark)) => Ok(*benchmark),
        None => {
            let names: Vec<&str> = BENCHMARKS.iter().map(|(name, _)| *name).collect();
            let all = names.join(", ");
            match suggestion(name, &names.iter().map(|name| name.to_string()).collect()) {
                Some(near) => {
                    bail!("unknown benchmark {name:?}; did you mean {near:?}? The benchmarks are {all}")
                }
                None => bail!("unknown benchmark {name:?}; the benchmarks are {all}"),
            }
        }
    }
}

/// Runs each benchmark in a separate process, so that its peak memory can be measured.
fn each<'a>(benchmarks: impl Iterator<Item = &'a str>, args: &Bench) -> Result<()> {
    let program = std::env::current_exe().context("cannot find this program")?;
    for benchmark in benchmarks {
        let mut command = Command::new(&program);
        command.args(["bench", benchmark, "--rounds", &args.rounds.to_string()]);
        let precision = args.precision.to_possible_value();
        command.args(precision.iter().flat_map(|value| ["--precision", value.get_name()]));
        command.args([
            "--threads",
            &current_num_threads().to_string(),
            "--device",
            &args.on.device.to_string(),
        ]);
        command.args(args.json.then_some("--json"));
        let status = command.status().with_context(|| format!("cannot run {}", program.display()))?;
        ensure!(status.success(), "the benchmark {benchmark} failed");
    }
    Ok(())
}

fn time(name: &str, setup: Setup, args: &Bench, on: &Setting) -> Result<()> {
    let Setting { compute, world, .. } = on;
    let mut benchmark = setup(on)?;
    let start = Instant::now();
    (benchmark.run)()?;
    while world.any(start.elapsed() < WARM_UP)? {
        (benchmark.run)()?;
    }
    let mut seconds = Vec::new();
    for _ in 0..args.rounds {
        let start = Instant::now();
        (benchmark.run)()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    world.any(false)?; // all ranks are done
    if !world.is_first() {
        return Ok(());
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let figures = Figures {
        benchmark: name.to_string(),
        seconds: median,
        min: seconds[0],
        max: seconds[seconds.len() - 1],
        rate: benchmark.amount * world.all.size() as f64 / median,
        unit: benchmark.unit,
        gflops: benchmark.gflop.map(|gflop| gflop / median),
        peak_gflops: peak(compute)?,
        precision: precision(args, compute, benchmark.weights),
        threads: current_num_threads(),
        peak_rss_mib: peak_rss_mib(),
        device_bytes: args.on.device.memory_bytes()?,
        device_mib: device_mib(compute),
    };
    match args.json {
        true => say(serde_json::to_string(&figures)?),
        false => say(line(&figures)),
    }
}

/// Describes the precision of products. On processors with bf16, 8-bit weights are multiplied by
/// activations that are also rounded to 8 bits. On others, the weights are converted to f32.
fn precision(args: &Bench, compute: &Compute, weights: Weights) -> String {
    let cpu = compute.cpu;
    match (weights, cpu.bf16()) {
        (Weights::Full, _) => shown(args, compute),
        (Weights::Int8, true) => format!("int8 weights and activations, {cpu}"),
        (Weights::Int8, false) => format!("int8 weights, {cpu}"),
    }
}

/// Describes the device, and the dtype that it multiplies.
fn shown(args: &Bench, compute: &Compute) -> String {
    match args.on.device {
        DeviceChoice::Cpu => compute.cpu.to_string(),
        gpu => format!("{:?} {gpu}", compute.cpu.elsewhere()).to_lowercase(),
    }
}

/// Returns the memory that this process holds on a GPU, in MiB.
fn device_mib(compute: &Compute) -> Option<f64> {
    let usage = compute.device.memory_pool_usage()?;
    Some(usage.bytes_reserved as f64 / f64::from(1 << 20))
}

/// Returns the measured peak speed of the device, in 10⁹ operations per second.
///
/// # Errors
/// If a GPU multiplies wrongly.
fn peak(compute: &Compute) -> Result<f64> {
    match compute.is_on_cpu() {
        true => Ok(peak_gflops(compute.cpu)),
        false => kernels::device_gflops(compute),
    }
}

/// Returns the kernels of the processor.
///
/// # Errors
/// If the device is another one: drawing and single kernels are measured on the processor only.
fn on_cpu(compute: &Compute) -> Result<Cpu> {
    ensure!(compute.is_on_cpu(), "this benchmark runs on the processor only; leave --device out");
    Ok(compute.cpu)
}

fn line(figures: &Figures) -> String {
    let Figures { benchmark, seconds, min, max, rate, unit, precision, threads, .. } = figures;
    let share = |gflops: f64| 100.0 * gflops / figures.peak_gflops;
    let gflops = figures.gflops.map_or(String::new(), |gflops| format!("{:.0}% of peak  ", share(gflops)));
    let peak = figures.peak_rss_mib.map_or(String::new(), |mib| format!("peak {mib:.0} MiB  "));
    let held = figures.device_mib.map_or(String::new(), |mib| format!("GPU {mib:.0} MiB  "));
    let times = format!("{seconds:.4} s ({min:.4} to {max:.4})");
    format!(
        "{benchmark:<18}{rate:>10.1} {unit:<10} {times:<32} {gflops}{peak}{held}{precision}, {threads} threads"
    )
}

/// Returns the peak memory of this process in MiB, on systems with `/proc`.
fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<f64>().ok()? / 1024.0)
}
