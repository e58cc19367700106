//! The weights of Inception v3, with torchvision's names. Batch norm is folded into the
//! convolutions.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::activation::relu;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor, TensorData};
use tessera_model::weights::HostTensor;

use super::graph::{Spec, Steps};

/// The epsilon of batch norm, which is added to the variance.
const EPSILON: f64 = 1e-3;

/// The tensors of a weight file. Each is removed when it is used.
pub struct Weights(HashMap<String, HostTensor>);

impl Weights {
    /// Indexes the tensors of a weight file by name.
    pub fn new(tensors: Vec<HostTensor>) -> Weights {
        Weights(tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect())
    }

    /// The shape of `name`, or `None` if it is missing.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.0.get(name).map(|tensor| &tensor.shape[..])
    }

    /// Removes the tensor `name` and returns its values.
    ///
    /// # Errors
    /// If it is missing or its shape is not `shape`.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.0.remove(name).with_context(|| format!("weight {name} is missing"))?;
        ensure!(tensor.shape == shape, "weight {name} has shape {:?}; wanted {shape:?}", tensor.shape);
        Ok(tensor.values)
    }

    /// Checks that no unused weights are left, except those that only training uses: the auxiliary
    /// classifier and the batch counters.
    ///
    /// # Errors
    /// If a weight is left that does not belong to Inception v3.
    pub fn ensure_used(&self) -> Result<()> {
        let training_only =
            |name: &&String| name.starts_with("AuxLogits.") || name.ends_with(".num_batches_tracked");
        match self.0.keys().filter(|name| !training_only(name)).min() {
            Some(name) => bail!("weight {name} is not one of Inception v3"),
            None => Ok(()),
        }
    }
}

/// A convolution with folded batch norm, followed by ReLU.
#[derive(Debug)]
pub struct Conv {
    /// `[n_out, n_in, k_h, k_w]`
    weight: Tensor<4>,
    /// `[n_out]`
    bias: Tensor<1>,
    kernel: [usize; 2],
    steps: Steps,
}

impl Conv {
    /// Takes the weights of `spec`, with `n_in` input channels, and folds batch norm into them.
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn take(weights: &mut Weights, spec: Spec, n_in: usize, device: &Device) -> Result<Conv> {
        let Spec { name, n_out, kernel, steps } = spec;
        let shape = [n_out, n_in, kernel[0], kernel[1]];
        let mut weight = weights.take(&format!("{name}.conv.weight"), &shape)?;
        let mut norm = |part: &str| weights.take(&format!("{name}.bn.{part}"), &[n_out]);
        let (gain, shift) = (norm("weight")?, norm("bias")?);
        let (mean, variance) = (norm("running_mean")?, norm("running_var")?);
        let mut bias = vec![0.0; n_out];
        for (c, filter) in weight.chunks_exact_mut(n_in * kernel[0] * kernel[1]).enumerate() {
            let scale = f64::from(gain[c]) / (f64::from(variance[c]) + EPSILON).sqrt();
            filter.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
            bias[c] = (f64::from(shift[c]) - f64::from(mean[c]) * scale) as f32;
        }
        Ok(Conv {
            weight: Tensor::from_data(TensorData::new(weight, shape), device),
            bias: Tensor::from_data(TensorData::new(bias, [n_out]), device),
            kernel,
            steps,
        })
    }

    /// `[B, n_in, S, S]` → `[B, n_out, S', S']`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let padding = self.kernel.map(|k| self.steps.padding(k));
        let options = ConvOptions::new([self.steps.stride(); 2], padding, [1, 1], 1);
        relu(conv2d(x, self.weight.clone(), Some(self.bias.clone()), options))
    }
}
