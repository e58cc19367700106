//! Single kernels.

use anyhow::Result;
use burn::tensor::{Device, Tensor, TensorData};
use tessera_kernels::{Activation, linear};

use super::Work;

/// A matrix product, 1024 by 1024 by 1024.
pub fn gemm() -> Result<Work> {
    const N: usize = 1024;
    let noise = |seed: usize| -> Tensor<2> {
        let values: Vec<f32> = (0..N * N).map(|i| ((i * 7919 + seed) % 1013) as f32 / 1013.0 - 0.5).collect();
        Tensor::from_data(TensorData::new(values, [N, N]), &Device::flex())
    };
    let (x, w, b) = (noise(1), noise(2), Tensor::<1>::zeros([N], &Device::flex()));
    let run = move || {
        linear(x.clone(), w.clone(), b.clone(), Activation::None);
        Ok(())
    };
    Ok(Work { run: Box::new(run), amount: 1.0, unit: "products/s", gflop: Some(2e-9 * (N * N * N) as f64) })
}
