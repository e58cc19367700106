//! Rounding of the numbers inside a resblock to a 16-bit format, for mixed precision (paper §2.4,
//! §D.2).

use burn::tensor::Tensor;
use tessera_kernels::{Cpu, SmallFloat};

/// Rounds `x`, and its gradient in the backward pass, to the 16-bit format `storage`. The result is
/// f32, except on a device that multiplies f16. Returns `x` unchanged if `storage` is `None`.
pub fn stored<const D: usize>(cpu: Cpu, x: Tensor<D>, storage: Option<SmallFloat>) -> Tensor<D> {
    match storage {
        None => x,
        Some(format) => tessera_kernels::stored(cpu, x, format),
    }
}
