//! What numbers inside a resblock are stored as (paper §2.4, §D.2).

use burn::tensor::Tensor;
use tessera_kernels::{SmallFloat, stored};

/// Storage of activations, weights and their gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// As the kernels have them.
    Full,
    /// In 16 bits, emulated in f32.
    Small(SmallFloat),
}

impl Kept {
    /// `x` as it is read again; its gradient is stored on the way back.
    pub fn keep<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Kept::Full => x,
            Kept::Small(format) => stored(x, format),
        }
    }
}
