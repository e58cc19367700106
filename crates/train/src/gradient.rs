//! Gradients: one backward pass, with or without a gradient scale, and the mean over micro-batches.

use anyhow::{Context, Result};
use burn::module::Module;
use burn::tensor::Tensor;
use tessera_kernels::{Cpu, approach, sum_of_squares};
use tessera_model::weights::{HostTensor, gradients};

use crate::log::Metrics;

/// A loss to differentiate, and other metrics to log.
pub struct Loss {
    /// The loss, `[1]`.
    pub total: Tensor<1>,
    /// The name and value of each metric; values are `[1]`.
    pub figures: Vec<(&'static str, Tensor<1>)>,
}

impl Loss {
    /// Returns the loss and the metrics as numbers.
    pub fn values(&self) -> (f64, Metrics) {
        let value = |x: &Tensor<1>| x.clone().without_autodiff().into_scalar::<f64>();
        (value(&self.total), self.figures.iter().map(|(name, figure)| (*name, value(figure))).collect())
    }
}

/// The gradient of a loss, with the loss and its metrics.
pub struct Gradient {
    /// The gradient of each parameter, in the order of `export`.
    pub values: Vec<Vec<f32>>,
    /// The loss.
    pub loss: f64,
    /// Metrics to log.
    pub figures: Metrics,
    /// The resblocks in which a value is not finite, in the order in which they were found.
    pub overflowed: Vec<usize>,
    /// For each resblock: log₂ of the root mean square of the gradient of its output, before
    /// scaling. For a batch in parts, it is that of the first micro-batch. Empty if the
    /// backward pass does not compute it.
    pub gradient_log2: Vec<f64>,
}

impl Gradient {
    /// Makes a gradient without overflows.
    pub fn new(values: Vec<Vec<f32>>, loss: f64, figures: Metrics) -> Gradient {
        Gradient { values, loss, figures, overflowed: Vec::new(), gradient_log2: Vec::new() }
    }

    /// Returns whether all values are finite.
    pub(crate) fn is_finite(&self, cpu: Cpu) -> bool {
        self.values.iter().all(|values| sum_of_squares(cpu, values).is_finite())
    }

    /// Returns the name of the last weight whose gradient is not finite. The backward pass computes
    /// the gradients from last to first, so this is where the problem began.
    pub(crate) fn nonfinite_weight<'a>(&self, weights: &'a [HostTensor]) -> Option<&'a str> {
        let broken = |gradient: &[f32]| !gradient.iter().all(|value| value.is_finite());
        let mut pairs = weights.iter().zip(&self.values).rev();
        pairs.find(|(_, gradient)| broken(gradient)).map(|(weight, _)| weight.name.as_str())
    }
}

/// Computes the gradient of `loss` with one backward pass over the complete graph.
///
/// If there is a gradient scale, the loss is multiplied by it before the backward pass, and the
/// gradient is divided by it afterwards. The complete graph then counts as one resblock (paper
/// §A.2: ordinary loss scaling).
///
/// # Errors
/// If a gradient is not f32.
pub fn differentiate<M: Module>(
    cpu: Cpu,
    model: &M,
    scales: Option<&[f32]>,
    loss: impl FnOnce(&M) -> Loss,
) -> Result<Gradient> {
    let model = model.clone().train();
    let loss = loss(&model);
    let (value, figures) = loss.values();
    let Some(&scale) = scales.and_then(<[f32]>::first) else {
        return Ok(Gradient::new(gradients(&model, loss.total.backward())?, value, figures));
    };
    let mut gradient = Gradient::new(gradients(&model, (loss.total * scale).backward())?, value, figures);
    if !gradient.is_finite(cpu) {
        gradient.overflowed.push(0);
    }
    gradient.values.iter_mut().flatten().for_each(|value| *value /= scale);
    Ok(gradient)
}

/// Returns the mean of the gradients of all micro-batches in `parts`, with the mean loss and
/// metrics.
pub(crate) fn mean_gradient(cpu: Cpu, parts: impl IntoIterator<Item = Result<Gradient>>) -> Result<Gradient> {
    let mut parts = parts.into_iter();
    let mut mean = parts.next().context("a batch without parts")??;
    for (i, next) in parts.enumerate() {
        let next = next?;
        let share = 1.0 / (i + 2) as f32;
        mean.values.iter_mut().zip(next.values).for_each(|(mean, next)| approach(cpu, mean, &next, share));
        for (mean, next) in mean.figures.iter_mut().zip(next.figures) {
            mean.1 += f64::from(share) * (next.1 - mean.1);
        }
        mean.loss += f64::from(share) * (next.loss - mean.loss);
        mean.overflowed.extend(next.overflowed);
    }
    Ok(mean)
}
