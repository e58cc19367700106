//! Casts for devices other than the CPU, where operations are composed of Burn's.
//!
//! On these devices matrices and activations are bf16 or f16, and sums are f32 (paper §D.2): factors
//! of a product are cast, and a kernel's output stays in 16 bits for the next kernel. The residual
//! stream, statistics, softmax, logits and losses are f32. If products are of f32, the composition is
//! the reference.

use burn::tensor::{DType, FloatDType, Tensor};

use crate::cpu::Cpu;

/// Casts `x` to the dtype that devices other than the CPU multiply, unless that is f32.
pub fn narrowed<const D: usize>(cpu: Cpu, x: Tensor<D>) -> Tensor<D> {
    match cpu.elsewhere() {
        FloatDType::F32 => x,
        narrow => cast(x, narrow),
    }
}

/// Casts `x` to f32.
pub fn widened<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    cast(x, FloatDType::F32)
}

fn cast<const D: usize>(x: Tensor<D>, to: FloatDType) -> Tensor<D> {
    match x.dtype() == DType::from(to) {
        true => x,
        false => x.cast(to),
    }
}
