//! `y = x W + b` over the last dimension.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use tessera_kernels::decode::int8_rounded;
use tessera_kernels::{Activation, Cpu, SmallFloat, linear, linear_add, linear_f32};

use super::{Init, Role, stored};

/// An affine map of the last dimension.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[d_in, d_out]`
    pub weight: Param<Tensor<2>>,
    /// `[d_out]`
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    pub(crate) cpu: Cpu,
}

impl Linear {
    /// Weights N(0, `std`), bias 0.
    pub fn new(init: &mut Init, sizes: [usize; 2], std: f64) -> Linear {
        Linear::of(Role::Matrix, init, sizes, std)
    }

    /// The same for a map to the logits of tokens.
    pub fn head(init: &mut Init, sizes: [usize; 2], std: f64) -> Linear {
        Linear::of(Role::Head, init, sizes, std)
    }

    fn of(role: Role, init: &mut Init, [d_in, d_out]: [usize; 2], std: f64) -> Linear {
        Linear { weight: init.normal(role, [d_in, d_out], std), bias: init.zeros([d_out]), cpu: init.cpu() }
    }

    /// `[.., d_in]` → `[.., d_out]` in f32.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        linear_f32(self.cpu, x, self.weight.val(), self.bias.val())
    }

    /// `activation(x W + b)` for the next kernel, in its kind of number.
    pub fn activated<const D: usize>(&self, x: Tensor<D>, activation: Activation) -> Tensor<D> {
        linear(self.cpu, x, self.weight.val(), self.bias.val(), activation)
    }

    /// `activation(x W + b)` of weights that are stored as `storage` says.
    pub fn stored<const D: usize>(
        &self,
        x: Tensor<D>,
        activation: Activation,
        storage: Option<SmallFloat>,
    ) -> Tensor<D> {
        linear(self.cpu, x, stored(self.cpu, self.weight.val(), storage), self.bias.val(), activation)
    }

    /// The map with its weights as 8 bits for each output keep them.
    pub fn in_int8(mut self) -> Linear {
        let [_, d_out] = self.weight.dims();
        let round = |weight: Tensor<2>| {
            let (shape, device) = (weight.shape(), weight.device());
            let values: Vec<f32> = weight.without_autodiff().into_data().iter().collect();
            Tensor::from_data(TensorData::new(int8_rounded(&values, d_out), shape), &device)
        };
        self.weight = self.weight.map(round);
        self
    }

    /// `residual + x W + b` in f32.
    pub fn add_to<const D: usize>(&self, residual: Tensor<D>, x: Tensor<D>) -> Tensor<D> {
        linear_add(self.cpu, x, self.weight.val(), self.bias.val(), residual)
    }
}
