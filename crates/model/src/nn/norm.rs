//! Layer normalisation over the last dimension.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use tessera_kernels::{Cpu, layer_norm};

use super::Init;

/// `(x - mean) / sqrt(var + 1e-5) * gain + bias`
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[d]`
    pub gain: Param<Tensor<1>>,
    /// `[d]`
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    cpu: Cpu,
}

impl LayerNorm {
    /// Added to the variance.
    pub const EPSILON: f64 = 1e-5;

    /// Gain 1, bias 0.
    pub fn new(init: &mut Init, d: usize) -> LayerNorm {
        LayerNorm { gain: init.ones([d]), bias: init.zeros([d]), cpu: init.cpu() }
    }

    /// `[.., d]` in f32 → `[.., d]` for the next kernel, in its kind of number.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        layer_norm(self.cpu, x, self.gain.val(), self.bias.val(), Self::EPSILON)
    }
}
