//! What numbers inside a resblock are stored as (paper §2.4, §D.2).

use burn::tensor::Tensor;
use tessera_kernels::{Cpu, SmallFloat};

/// `x` as it is read again after being stored in 16 bits, emulated in f32, and its gradient on the way back; `x` as the kernels
/// have it if `storage` names no format.
pub fn stored<const D: usize>(cpu: Cpu, x: Tensor<D>, storage: Option<SmallFloat>) -> Tensor<D> {
    match storage {
        None => x,
        Some(format) => tessera_kernels::stored(cpu, x, format),
    }
}
