//! `tessera plan`: estimates memory, traffic and time for training a prior on many GPUs.

mod simulate;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tessera_data::read_text;
use tessera_train::Config;
use tessera_train::dist::plan::{CapacityPlan, Cluster, Memory, Training, plan, usual_rank};

use super::say;
use crate::args::PlanArgs;

/// Runs `tessera plan`.
pub fn run(args: &PlanArgs) -> Result<()> {
    let config = Config::resolve(&args.settings.config, &args.settings.sets)?;
    if args.simulation.simulate {
        return simulate::run(args, &config);
    }
    let cluster = cluster(args, args.gpus.context("wanted --gpus")?)?;
    let fit = &config.train_prior;
    let rank = args.rank.unwrap_or_else(|| usual_rank(config.prior.d_model, args.gpus_per_machine));
    let training = Training { batch: fit.batch, steps: fit.steps, rank };
    let found = plan(&config.prior, &training, &cluster)?;
    if args.json {
        let mut value = serde_json::to_value(found)?;
        value["cluster"] = serde_json::to_value(cluster)?;
        value["training"] = json!(training);
        return say(value);
    }
    say(table(&found, &training, &cluster))
}

/// Returns a cluster of `gpus` GPUs like those that the flags describe or `bench` measured.
fn cluster(args: &PlanArgs, gpus: usize) -> Result<Cluster> {
    match &args.measured {
        Some(path) => measured(path, args, gpus).with_context(|| format!("--measured {}", path.display())),
        None => described(args, gpus),
    }
}

/// Returns the cluster of GPUs that the flags describe.
fn described(args: &PlanArgs, gpus: usize) -> Result<Cluster> {
    for (flag, value) in [("mfu", args.mfu), ("peak-tflops", args.peak_tflops)] {
        ensure!(value > 0.0 && value.is_finite(), "--{flag} {value}: wanted more than 0");
    }
    ensure!(args.mfu <= 1.0, "--mfu {}: wanted a fraction of the peak, at most 1", args.mfu);
    Ok(Cluster {
        gpus,
        per_machine: args.gpus_per_machine,
        memory_bytes: memory(args)?.context("wanted --gpu-mem or --measured")?,
        peak_flops: args.peak_tflops * 1e12,
        mfu: args.mfu,
    })
}

/// Returns the memory of a GPU, if it is given. A simulation does not limit it.
fn memory(args: &PlanArgs) -> Result<Option<f64>> {
    match &args.gpu_mem {
        Some(text) => bytes(text).map(Some),
        None => Ok(args.simulation.simulate.then_some(f64::INFINITY)),
    }
}

/// Returns the cluster of GPUs like the one on which `bench` measured its training speed.
fn measured(path: &Path, args: &PlanArgs, gpus: usize) -> Result<Cluster> {
    let text = read_text(path)?;
    let value: Value = serde_json::from_str(&text)
        .context("wanted one line of JSON, the output of `tessera bench paper-layers --device gpu --json`")?;
    let benchmark = &value["benchmark"];
    ensure!(
        benchmark == "paper-layers",
        "it holds the benchmark {benchmark}; wanted the output of `tessera bench paper-layers --device gpu --json`"
    );
    let number = |key: &str| {
        let number = value[key].as_f64().filter(|number| *number > 0.0);
        number.with_context(|| format!("{key} is {}; wanted a number above 0", value[key]))
    };
    let (reached, peak) = (number("gflops")?, number("peak_gflops")?);
    ensure!(reached <= peak, "gflops is {reached}, more than peak_gflops, which is {peak}; measure again");
    let memory = match memory(args)? {
        Some(bytes) => bytes,
        None => number("device_bytes").context("the driver did not report its memory; add --gpu-mem")?,
    };
    Ok(Cluster {
        gpus,
        per_machine: args.gpus_per_machine,
        memory_bytes: memory,
        peak_flops: peak * 1e9,
        mfu: reached / peak,
    })
}

/// Parses a size such as `16GiB` or `80GB`.
fn bytes(text: &str) -> Result<f64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit {
        "GiB" => (1_u64 << 30) as f64,
        "MiB" => (1_u64 << 20) as f64,
        "GB" => 1e9,
        "MB" => 1e6,
        _ => f64::NAN,
    };
    let value = number.parse::<f64>().map_or(f64::NAN, |number| number * scale);
    (value > 0.0)
        .then_some(value)
        .with_context(|| format!("--gpu-mem {text}: wanted a size such as 16GiB or 80GB"))
}

fn table(plan: &CapacityPlan, training: &Training, cluster: &Cluster) -> String {
    let gb = |bytes: f64| format!("{:10.2} GB", bytes / 1e9);
    let row = |name: &str, pick: fn(&Memory) -> f64| {
        let memories = [&plan.memory, &plan.memory_kept, &plan.memory_whole];
        let [sharded, kept, replicated] = memories.map(pick).map(gb);
        format!("  {name:22}{sharded}{kept}{replicated}")
    };
    let verdict = match plan.fits {
        true => "fits",
        false => "does not fit",
    };
    [
        format!(
            "parameters            {:10.2}e9, {} in 16 bits",
            plan.parameters as f64 / 1e9,
            gb(plan.weight_bytes).trim()
        ),
        format!(
            "                      {:10.2}e9 of them in the layers' matrices, which the paper counts",
            plan.matrix_parameters as f64 / 1e9
        ),
        String::new(),
        format!("memory of each of {} GPUs, {} per machine", cluster.gpus, cluster.per_machine),
        format!("  {:22}{:>13}{:>13}{:>13}", "", "sharded", "kept", "replicated"),
        row("weights", |memory| memory.weights),
        row("AdamW moments", |memory| memory.moments),
        row("gradients", |memory| memory.gradients),
        row("gathered layers", |memory| memory.gathered),
        row("PowerSGD factors", |memory| memory.factors),
        row("activations", |memory| memory.activations),
        row("total", |memory| memory.total),
        format!(
            "  sharded: parameters are sharded across the GPUs of a machine, and activations inside resblocks are recomputed ({verdict} {})",
            gb(cluster.memory_bytes).trim()
        ),
        "  kept: the same, but all activations are kept; replicated: the same as sharded, but each GPU has all parameters"
            .to_string(),
        String::new(),
        "traffic sent by each GPU per update".to_string(),
        format!("  {:32}{}", "all-gather of weights", gb(plan.traffic.all_gather)),
        format!("  {:32}{}", "reduce-scatter of gradients", gb(plan.traffic.reduce_scatter)),
        format!("  {:32}{}", "all-reduce of gradients", gb(plan.traffic.all_reduce)),
        format!("  {:32}{}", format!("the same with PowerSGD, rank {}", training.rank), gb(plan.traffic.all_reduce_compressed)),
        format!("  compression of the layers       {:10.1} %", 100.0 * plan.compression),
        String::new(),
        format!(
            "{:.3e} operations per update of {} sequences, and {:.3e} for recomputation",
            plan.flops_per_step, training.batch, plan.recomputed_flops_per_step
        ),
        format!(
            "{:.1} days for {} updates at {:.0} % of {:.0} TFLOP/s",
            plan.days,
            training.steps,
            100.0 * cluster.mfu,
            cluster.peak_flops / 1e12
        ),
    ]
    .join("\n")
}
