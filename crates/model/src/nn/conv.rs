//! Stride-1 convolution with zero padding that keeps the picture's size, as everywhere in the dVAE (paper §A.1).

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;

use super::Init;

/// A "same" convolution with bias.
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[c_out, c_in, k, k]`
    pub weight: Param<Tensor<4>>,
    /// `[c_out]`
    pub bias: Param<Tensor<1>>,
}

impl Conv2d {
    /// Weights N(0, 1/√(c_in k²)), bias 0 (the released code's initialisation). `k` must be odd.
    pub fn new(init: &mut Init, [c_in, c_out]: [usize; 2], k: usize) -> Conv2d {
        let std = 1.0 / ((c_in * k * k) as f64).sqrt();
        Conv2d { weight: init.normal([c_out, c_in, k, k], std), bias: init.zeros([c_out]) }
    }

    /// `[B, c_in, S, S]` → `[B, c_out, S, S]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let k = self.weight.dims()[2];
        let pad = (k - 1) / 2;
        let options = ConvOptions::new([1, 1], [pad, pad], [1, 1], 1);
        conv2d(x, self.weight.val(), Some(self.bias.val()), options)
    }
}
