//! Casts for devices other than the CPU, where operations are composed of Burn's.
//!
//! On these devices matrices and activations are bf16 and sums are f32 (paper §D.2): factors of a
//! product are cast to bf16, and a kernel's output stays bf16 for the next kernel. The residual
//! stream, statistics, softmax, logits and losses are f32. If bf16 is off, the composition is the
//! reference.

use burn::tensor::{DType, FloatDType, Tensor};

use crate::cpu::Cpu;

/// Casts `x` to the dtype that devices other than the CPU multiply: to bf16, or not at all.
pub fn narrowed<const D: usize>(cpu: Cpu, x: Tensor<D>) -> Tensor<D> {
    match cpu.bf16_elsewhere() {
        true => cast(x, FloatDType::BF16),
        false => x,
    }
}

/// Casts `x` to f32.
pub(crate) fn widened<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    cast(x, FloatDType::F32)
}

fn cast<const D: usize>(x: Tensor<D>, to: FloatDType) -> Tensor<D> {
    match x.dtype() == DType::from(to) {
        true => x,
        false => x.cast(to),
    }
}
