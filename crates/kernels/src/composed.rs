//! What the bodies that are composed of Burn's operations share: for devices other than the processor.
//!
//! On such a device matrices and activations have 16 bits and sums have 32 (paper §D.2): what is multiplied is cast to bf16, and what a
//! kernel hands to the next one stays so. The residual stream, statistics, softmax, logits and losses are f32. Without bf16 the
//! composition is the reference itself.

use burn::tensor::{DType, FloatDType, Tensor};

use crate::cpu::Cpu;

/// `x` as it is multiplied: in bf16 where products are of bf16.
pub(crate) fn narrowed<const D: usize>(cpu: Cpu, x: Tensor<D>) -> Tensor<D> {
    match cpu.bf16_elsewhere() {
        true => cast(x, FloatDType::BF16),
        false => x,
    }
}

/// `x` in 32 bits.
pub(crate) fn widened<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    cast(x, FloatDType::F32)
}

fn cast<const D: usize>(x: Tensor<D>, to: FloatDType) -> Tensor<D> {
    match x.dtype() == DType::from(to) {
        true => x,
        false => x.cast(to),
    }
}
