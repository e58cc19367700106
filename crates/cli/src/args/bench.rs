//! The flags of `bench` and `plan`, as typed.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Args as ClapArgs, ValueEnum};
use tessera_kernels::{Cpu, Precision};
use tessera_model::nn::Compute;
use tessera_model::{DeviceChoice, DeviceDtype};
use tessera_train::CompressionRank;

use super::{ConfigArgs, OnDevice, input, output};

/// The flags of `plan`.
#[derive(ClapArgs)]
pub struct PlanArgs {
    #[command(flatten)]
    pub settings: ConfigArgs,
    /// The total number of GPUs. With --simulate, the number for which the config's batch is meant
    /// [default with --simulate: the paper's 1024]
    #[arg(long, required_unless_present = "simulate")]
    pub gpus: Option<usize>,
    /// The memory of a GPU, as in 16GiB or 80GB. A simulation does not consider it.
    #[arg(long, required_unless_present_any = ["measured", "simulate"])]
    pub gpu_mem: Option<String>,
    /// A file with the output of `tessera bench paper-layers --device gpu --json`. It contains the
    /// memory of that GPU, if its driver reports it, its peak speed, and the fraction that training
    /// reaches.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["peak_tflops", "mfu"], value_parser = input())]
    pub measured: Option<PathBuf>,
    /// The number of GPUs per machine. Parameters are sharded across them.
    #[arg(long, default_value_t = 8)]
    pub gpus_per_machine: usize,
    /// The rank of PowerSGD [default: the paper's for its widths, otherwise a quarter of the width]
    #[arg(long)]
    pub rank: Option<usize>,
    /// The peak speed of a GPU in 16 bits, in TFLOPS; 125 is that of the paper's V100.
    #[arg(long, default_value_t = 125.0)]
    pub peak_tflops: f64,
    /// The fraction of the peak speed that training reaches.
    #[arg(long, default_value_t = 0.3)]
    pub mfu: f64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub simulation: SimulateArgs,
}

/// The flags of `plan --simulate`.
#[derive(ClapArgs)]
#[command(next_help_heading = "Simulation")]
pub struct SimulateArgs {
    /// Simulate one update with more and more GPUs: how long it takes, and what it waits for.
    ///
    /// There is one machine, then two, and so on until four times --gpus. The batch grows with the
    /// number of GPUs (weak scaling), or stays that of the config (strong scaling). The paper does
    /// not name its network, so the defaults are assumptions: V100s of its time.
    ///
    /// To predict a cluster of processors, measure it and pass the results. Time an update of one
    /// rank, divide the operations per update (which this command prints without --simulate) by the
    /// seconds, and pass that as --peak-tflops with --mfu 1. Measure bandwidths and latencies and pass
    /// them as --inside-gbps, --between-gbps, --inside-us and --between-us. --gpus-per-machine is the
    /// --node-size of the training, and its messages are --wire f32.
    #[arg(long)]
    pub simulate: bool,
    /// The bandwidth of a GPU to the others of its machine, in Gbit/s, in each direction. The default
    /// assumes V100s with NVLink 2.
    #[arg(long, value_name = "GBPS", default_value_t = 1200.0, requires = "simulate")]
    pub inside_gbps: f64,
    /// The bandwidth of a machine to other machines, in Gbit/s. Its GPUs share it equally. The
    /// default assumes InfiniBand EDR.
    #[arg(long, value_name = "GBPS", default_value_t = 100.0, requires = "simulate")]
    pub between_gbps: f64,
    /// The duration of an exchange of empty messages within a machine, in microseconds. The default
    /// is assumed.
    #[arg(long, value_name = "US", default_value_t = 10.0, requires = "simulate")]
    pub inside_us: f64,
    /// The same between machines.
    #[arg(long, value_name = "US", default_value_t = 50.0, requires = "simulate")]
    pub between_us: f64,
    /// The format of layers' weights and gradients in messages. PowerSGD's factors have that of
    /// `powersgd.storage`.
    #[arg(long, value_enum, default_value_t = Wire::F16, requires = "simulate")]
    pub wire: Wire,
    /// Plot the efficiency over the number of GPUs, with and without compression (SVG).
    #[arg(long, value_name = "FILE", requires = "simulate", value_parser = output())]
    pub plot: Option<PathBuf>,
}

/// The format of values in messages.
#[derive(Clone, Copy, ValueEnum)]
pub enum Wire {
    /// 16 bits, as in the paper.
    F16,
    F32,
}

impl Wire {
    /// Returns the bytes of a value.
    pub fn bytes(self) -> f64 {
        match self {
            Wire::F16 => 2.0,
            Wire::F32 => 4.0,
        }
    }
}

/// The flags of `bench`.
#[derive(ClapArgs)]
pub struct Bench {
    /// The benchmarks to run [default: all except the long ones]
    #[arg(value_name = "BENCHMARK")]
    pub benchmarks: Vec<String>,
    /// Print one JSON object per benchmark instead of a table.
    #[arg(long)]
    pub json: bool,
    /// The precision of matrix products.
    #[arg(long, value_enum, default_value_t = PrecisionFlag::Auto)]
    pub precision: PrecisionFlag,
    #[command(flatten)]
    pub on: OnDevice,
    /// With mpirun: compress the gradients of a training with this many columns (PowerSGD).
    #[arg(long, value_name = "COLUMNS", value_parser = compression, default_value = "off")]
    pub powersgd: CompressionRank,
    /// The number of timed repetitions of each benchmark.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
}

/// Parses the rank of a compression.
fn compression(text: &str) -> Result<CompressionRank, String> {
    let off = (text == "off").then_some(CompressionRank::Off);
    let columns = || text.parse().ok().filter(|columns| *columns > 0).map(CompressionRank::Columns);
    off.or_else(columns).ok_or_else(|| format!("got {text:?}, wanted off or a number from 1"))
}

/// The precision of matrix products.
#[derive(Clone, Copy, ValueEnum)]
pub enum PrecisionFlag {
    /// bf16 if the processor has instructions for it, otherwise f32.
    Auto,
    F32,
    Bf16,
    /// On a GPU only.
    F16,
}

impl PrecisionFlag {
    /// Opens `device` for models whose matrix products have this precision.
    pub fn compute(self, device: DeviceChoice) -> Result<Compute> {
        match self {
            PrecisionFlag::Auto => device.with_precision(Precision::Auto),
            PrecisionFlag::F32 => device.with_precision(Precision::F32),
            PrecisionFlag::Bf16 => device.with_precision(Precision::Bf16),
            PrecisionFlag::F16 => {
                let why = "--precision f16: processors multiply f32 and bf16; add --device gpu, or use another precision";
                ensure!(device != DeviceChoice::Cpu, why);
                device.compute(Cpu::best(), DeviceDtype::F16)
            }
        }
    }
}
