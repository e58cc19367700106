//! Benchmarks of single kernels.

use std::time::Instant;

use anyhow::{Result, ensure};
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use tessera_kernels::decode::Weights;
use tessera_kernels::{Activation, OutputDtype, PreActivation, conv2d, dot, linear};
use tessera_model::nn::Compute;

use super::{Benchmark, on_cpu};

/// A matrix product of size 1024 × 1024 × 1024.
pub fn gemm(compute: &Compute) -> Result<Benchmark> {
    let cpu = on_cpu(compute)?;
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
pub fn conv(compute: &Compute) -> Result<Benchmark> {
    let cpu = on_cpu(compute)?;
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

/// Returns the speed of matrix products on a GPU in 10⁹ operations per second, the best of three.
///
/// # Errors
/// If a product is wrong.
pub fn device_gflops(compute: &Compute) -> Result<f64> {
    /// The side of the matrices: large for cards, small for software drivers.
    const SIDES: [usize; 2] = [512, 4096];
    /// A device that multiplies the small matrices within this time gets the large ones.
    const FAST: f64 = 2e-3;
    match seconds_per_product(compute, SIDES[0])? {
        seconds if seconds < FAST => Ok(gflop(SIDES[1]) / seconds_per_product(compute, SIDES[1])?),
        seconds => Ok(gflop(SIDES[0]) / seconds),
    }
}

fn gflop(side: usize) -> f64 {
    2e-9 * (side as f64).powi(3)
}

/// Returns the time of a product of two square matrices, the best of three measurements.
fn seconds_per_product(compute: &Compute, side: usize) -> Result<f64> {
    /// The number of products that are timed together. Each reads the result of the one before it.
    const CHAIN: usize = 8;
    let matrix = noise::<2>([side, side], 5);
    let values = matrix.to_data().iter::<f32>().collect::<Vec<_>>();
    let matrix = matrix.to_device(&compute.device).cast(compute.cpu.elsewhere());
    let first = |x: Tensor<2>| x.slice([0..1, 0..1]).into_data().iter::<f32>().next().unwrap_or(f32::NAN);
    let (got, wanted) = (
        f64::from(first(matrix.clone().matmul(matrix.clone()))), // the first product compiles the shader
        (0..side).map(|i| f64::from(values[i]) * f64::from(values[i * side])).sum::<f64>(),
    );
    let tolerance = 1e-2 * (side as f64).sqrt();
    ensure!(
        (got - wanted).abs() < tolerance,
        "the GPU multiplied two matrices of {side} rows and got {got} where {wanted} is right; update its driver"
    );
    let chain = || {
        let scale = 1.0 / (side as f64).sqrt();
        first((0..CHAIN).fold(matrix.clone(), |x, _| x.matmul(matrix.clone()) * scale))
    };
    chain(); // compiles the scaling
    let timed = |_| {
        let start = Instant::now();
        chain();
        start.elapsed().as_secs_f64() / CHAIN as f64
    };
    Ok((0..3).map(timed).fold(f64::INFINITY, f64::min))
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
