//! Benchmarks of single kernels.

use anyhow::Result;
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use tessera_kernels::decode::Weights;
use tessera_kernels::{Activation, Cpu, OutputDtype, PreActivation, conv2d, dot, linear};

use super::Benchmark;

/// A matrix product of size 1024 × 1024 × 1024.
pub fn gemm(cpu: Cpu) -> Result<Benchmark> {
    const N: usize = 1024;
    let (x, w, b) = (noise([N, N], 1), noise([N, N], 2), noise([N], 3));
    let run = move || {
        linear(cpu, x.clone(), w.clone(), b.clone(), Activation::None);
        Ok(())
    };
    Ok(arithmetic(run, 2e-9 * (N * N * N) as f64))
}

/// A 3×3 convolution from 128 to 128 channels on 8 pictures of 32 × 32 pixels, forward and backward
/// to both inputs. Pictures have the dtype that is multiplied, as between the convolutions of a
/// block.
pub fn conv(cpu: Cpu) -> Result<Benchmark> {
    const BATCH: usize = 8;
    const SIDE: usize = 32;
    const CHANNELS: usize = 128;
    let multiplied = if cpu.bf16() { FloatDType::BF16 } else { FloatDType::F32 };
    let pictures = |seed| noise([BATCH, SIDE, SIDE, CHANNELS], seed).cast(multiplied);
    let (x, output_gradient) = (pictures(1).autodiff().require_grad(), pictures(4));
    let w = noise([CHANNELS, CHANNELS, 3, 3], 2).autodiff().require_grad();
    let b = noise([CHANNELS], 3).autodiff();
    let run = move || {
        let y = conv2d(cpu, x.clone(), w.clone(), b.clone(), PreActivation::Nothing, OutputDtype::Compute);
        dot(cpu, y, output_gradient.clone()).backward();
        Ok(())
    };
    let products = 9 * CHANNELS * CHANNELS * BATCH * SIDE * SIDE;
    Ok(arithmetic(run, 6e-9 * products as f64))
}

/// A benchmark whose throughput is counted in operations.
fn arithmetic(run: impl FnMut() -> Result<()> + 'static, gflop: f64) -> Benchmark {
    let (unit, weights) = ("GFLOP/s", Weights::Full);
    Benchmark { run: Box::new(run), amount: gflop, unit, gflop: Some(gflop), weights }
}

fn noise<const D: usize>(shape: [usize; D], seed: usize) -> Tensor<D> {
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|i| ((i * 7919 + seed) % 1013) as f32 / 1013.0 - 0.5).collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}
