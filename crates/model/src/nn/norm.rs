//! Layer normalisation over the last dimension.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use tessera_kernels::{Cpu, layer_norm};

use super::Init;

/// `(x - mean) / sqrt(var + 1e-5) * gain + bias`, with mean and variance over the last dimension.
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
    /// The constant that is added to the variance.
    pub const EPSILON: f64 = 1e-5;

    /// A layer norm with gain 1 and bias 0.
    pub fn new(init: &mut Init, d: usize) -> LayerNorm {
        LayerNorm { gain: init.ones([d]), bias: init.zeros([d]), cpu: init.cpu() }
    }

    /// Normalises `[.., d]`, which is f32; the result has the dtype that the next kernel reads (f32
    /// or bf16).
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        layer_norm(self.cpu, x, self.gain.val(), self.bias.val(), Self::EPSILON)
    }
}
