//! `y = x W + b` over the last dimension.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::Init;

/// An affine map of the last dimension.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[d_in, d_out]`
    pub weight: Param<Tensor<2>>,
    /// `[d_out]`
    pub bias: Param<Tensor<1>>,
}

impl Linear {
    /// Weights N(0, `std`), bias 0.
    pub fn new(init: &mut Init, [d_in, d_out]: [usize; 2], std: f64) -> Linear {
        Linear { weight: init.normal([d_in, d_out], std), bias: init.zeros([d_out]) }
    }

    /// `[.., d_in]` → `[.., d_out]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let mut shape = x.dims();
        let d_in = shape[D - 1];
        let rows: usize = shape[..D - 1].iter().product();
        let y = x.reshape([rows, d_in]).matmul(self.weight.val()) + self.bias.val().unsqueeze();
        shape[D - 1] = y.dims()[1];
        y.reshape(shape)
    }
}
