//! The flags of `bench` and `plan`, as typed.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Args as ClapArgs, ValueEnum};
use tessera_kernels::{Cpu, Precision};
use tessera_model::nn::Compute;
use tessera_model::{DeviceChoice, DeviceDtype};

use super::{ConfigArgs, OnDevice, input};

/// The flags of `plan`.
#[derive(ClapArgs)]
pub struct PlanArgs {
    #[command(flatten)]
    pub settings: ConfigArgs,
    /// The total number of GPUs.
    #[arg(long)]
    pub gpus: usize,
    /// The memory of a GPU, as in 16GiB or 80GB.
    #[arg(long, required_unless_present = "measured")]
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
    /// The number of timed repetitions of each benchmark.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
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
