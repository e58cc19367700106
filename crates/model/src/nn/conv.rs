//! A stride-1 convolution whose zero padding keeps the picture's size. The dVAE uses no other
//! (paper §A.1).
//!
//! Pictures inside the dVAE have the layout `[B, S, S, C]`, channels last, because the kernels read
//! them so.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use tessera_kernels::{Cpu, OutputDtype, PreActivation, SmallFloat, conv2d, conv2d_add, widened};

use super::{Init, Role, stored};

/// A "same" convolution with bias.
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[c_out, c_in, k, k]`
    pub weight: Param<Tensor<4>>,
    /// `[c_out]`
    pub bias: Param<Tensor<1>>,
    /// The 16-bit format of input, weights, output and their gradients in training; `None` rounds
    /// nothing.
    #[module(skip)]
    pub storage: Option<SmallFloat>,
    #[module(skip)]
    cpu: Cpu,
}

impl Conv2d {
    /// A convolution with weights N(0, 1/√(c_in k²)) and bias 0, as the released code initialises
    /// it. `k` must be odd.
    pub fn new(init: &mut Init, channels: [usize; 2], k: usize) -> Conv2d {
        Conv2d::with_role(Role::Matrix, init, channels, k)
    }

    /// Like [`Conv2d::new`], for a convolution next to the codes ([`Role::Head`]).
    pub fn head(init: &mut Init, channels: [usize; 2], k: usize) -> Conv2d {
        Conv2d::with_role(Role::Head, init, channels, k)
    }

    fn with_role(role: Role, init: &mut Init, [c_in, c_out]: [usize; 2], k: usize) -> Conv2d {
        let std = 1.0 / ((c_in * k * k) as f64).sqrt();
        let weight = init.normal(role, [c_out, c_in, k, k], std);
        Conv2d { weight, bias: init.zeros([c_out]), storage: None, cpu: init.cpu() }
    }

    /// `conv(x)`: `[B, S, S, c_in]` → `[B, S, S, c_out]`
    pub fn forward(&self, x: Tensor<4>, output: OutputDtype) -> Tensor<4> {
        self.convolve(x, PreActivation::Nothing, output)
    }

    /// `conv(relu(x))`
    pub fn after_relu(&self, x: Tensor<4>, output: OutputDtype) -> Tensor<4> {
        self.convolve(x, PreActivation::Relu, output)
    }

    fn convolve(&self, x: Tensor<4>, first: PreActivation, output: OutputDtype) -> Tensor<4> {
        let stored = |x| stored(self.cpu, x, self.storage);
        let y =
            stored(conv2d(self.cpu, stored(x), stored(self.weight.val()), self.bias.val(), first, output));
        match output {
            OutputDtype::Compute => y,
            OutputDtype::F32 | OutputDtype::F32Exact => widened(y),
        }
    }

    /// `residual + gain · conv(relu(x))` in f32.
    pub fn add_to(&self, residual: Tensor<4>, x: Tensor<4>, gain: f64) -> Tensor<4> {
        match self.storage {
            None => conv2d_add(self.cpu, x, self.weight.val(), self.bias.val(), residual, gain),
            Some(_) => residual + widened(self.after_relu(x, OutputDtype::Compute)) * gain,
        }
    }
}
