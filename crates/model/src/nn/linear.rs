//! The linear layer, `y = x W + b` over the last dimension.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use tessera_kernels::decode::int8_rounded;
use tessera_kernels::{Activation, Cpu, SmallFloat, linear, linear_add, linear_f32, narrowed};

use super::{Init, Role, stored};

/// A linear layer with bias, applied to the last dimension.
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
    /// A layer with weights N(0, `std`) and bias 0.
    pub fn new(init: &mut Init, sizes: [usize; 2], std: f64) -> Linear {
        Linear::with_role(Role::Matrix, init, sizes, std)
    }

    /// Like [`Linear::new`], for the second layer of an MLP ([`Role::RowMatrix`]).
    pub fn second(init: &mut Init, sizes: [usize; 2], std: f64) -> Linear {
        Linear::with_role(Role::RowMatrix, init, sizes, std)
    }

    /// Like [`Linear::new`], for a layer that computes the logits of tokens ([`Role::Head`]).
    pub fn head(init: &mut Init, sizes: [usize; 2], std: f64) -> Linear {
        Linear::with_role(Role::Head, init, sizes, std)
    }

    fn with_role(role: Role, init: &mut Init, [d_in, d_out]: [usize; 2], std: f64) -> Linear {
        Linear { weight: init.normal(role, [d_in, d_out], std), bias: init.zeros([d_out]), cpu: init.cpu() }
    }

    /// `x W + b` in f32: `[.., d_in]` → `[.., d_out]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        linear_f32(self.cpu, x, self.weight.val(), self.bias.val())
    }

    /// `activation(x W + b)`, in the dtype that the next kernel reads (f32 or bf16).
    pub fn activated<const D: usize>(&self, x: Tensor<D>, activation: Activation) -> Tensor<D> {
        linear(self.cpu, x, self.weight.val(), self.bias.val(), activation)
    }

    /// `activation(x W + b)` with weights that are rounded to the 16-bit format `storage`.
    pub fn stored<const D: usize>(
        &self,
        x: Tensor<D>,
        activation: Activation,
        storage: Option<SmallFloat>,
    ) -> Tensor<D> {
        linear(self.cpu, x, stored(self.cpu, self.weight.val(), storage), self.bias.val(), activation)
    }

    /// The layer with its weights rounded to 8 bits, with one scale per output.
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

    /// The layer with its weights in the dtype that its device multiplies, so that they are not cast
    /// for each product. The processor's kernels need no such copy.
    pub(crate) fn narrowed(mut self) -> Linear {
        let cpu = self.cpu;
        self.weight = self.weight.map(|weight| narrowed(cpu, weight.without_autodiff()));
        self
    }

    /// `residual + x W + b`, in f32.
    pub fn add_to<const D: usize>(&self, residual: Tensor<D>, x: Tensor<D>) -> Tensor<D> {
        linear_add(self.cpu, x, self.weight.val(), self.bias.val(), residual)
    }
}
