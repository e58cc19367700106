//! Weight initialisation. The random numbers come from one counter-based generator on the host, so
//! a seed gives the same weights on every device.

use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use tessera_base::random::{Purpose, item_rng, normal};
use tessera_kernels::Cpu;

use super::{Compute, Role};

/// Creates the initial parameters of a model, one after another in the order of its fields.
pub struct Init {
    /// `None` if all weights are zero.
    rng: Option<ChaCha8Rng>,
    compute: Compute,
}

impl Init {
    /// Random weights, which depend on `seed` alone.
    pub fn new(seed: u64, compute: impl Into<Compute>) -> Init {
        Init { rng: Some(item_rng(seed, Purpose::Init, 0, 0)), compute: compute.into() }
    }

    /// Zero weights, for a model whose weights are imported next: drawing random ones would take
    /// longer than reading the file.
    pub fn blank(compute: impl Into<Compute>) -> Init {
        Init { rng: None, compute: compute.into() }
    }

    /// What the next layer computes with.
    pub fn cpu(&self) -> Cpu {
        self.compute.cpu
    }

    /// Changes what the following layers compute with.
    pub fn set_cpu(&mut self, cpu: Cpu) {
        self.compute.cpu = cpu;
    }

    /// Normally distributed weights with mean 0 and standard deviation `std`.
    pub fn normal<const D: usize>(&mut self, role: Role, shape: [usize; D], std: f64) -> Param<Tensor<D>> {
        let n = shape.iter().product();
        let values = match &mut self.rng {
            Some(rng) => (0..n).map(|_| (normal(rng) * std) as f32).collect(),
            None => vec![0.0; n],
        };
        self.param(role, values, shape)
    }

    /// A vector of zeros, such as a bias.
    pub fn zeros<const D: usize>(&mut self, shape: [usize; D]) -> Param<Tensor<D>> {
        self.param(Role::Vector, vec![0.0; shape.iter().product()], shape)
    }

    /// A vector of ones, such as a gain.
    pub fn ones<const D: usize>(&mut self, shape: [usize; D]) -> Param<Tensor<D>> {
        self.param(Role::Vector, vec![1.0; shape.iter().product()], shape)
    }

    fn param<const D: usize>(&self, role: Role, values: Vec<f32>, shape: [usize; D]) -> Param<Tensor<D>> {
        let tensor = Tensor::from_data(TensorData::new(values, shape), &self.compute.device);
        let mut param = Param::from_tensor(tensor);
        param.id = role.id();
        param
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn blank_init_has_zeros_of_the_same_shape() {
        let device = Device::flex();
        let [random, blank] = [Init::new(3, &device), Init::blank(&device)]
            .map(|mut init| init.normal(Role::Matrix, [3, 2], 0.5));
        assert_eq!(random.dims(), blank.dims());
        assert_eq!(blank.val().into_data().try_to_vec::<f32>().unwrap(), [0.0; 6]);
    }

    #[test]
    fn normal_has_the_given_deviation_and_is_reproducible() {
        let device = Device::flex();
        let draw = || Init::new(3, &device).normal(Role::Matrix, [100, 200], 0.5).val().into_data();
        let values = draw().try_to_vec::<f32>().unwrap();
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 0.02, "mean {mean}");
        assert!((var.sqrt() - 0.5).abs() < 0.01, "std {}", var.sqrt());
        assert_eq!(values, draw().try_to_vec::<f32>().unwrap());
    }
}
