//! The gradient of a loss: by one backward pass, with or without a scale, and the mean of several.

use anyhow::{Context, Result};
use burn::module::Module;
use burn::tensor::Tensor;
use tessera_kernels::{Cpu, approach, sum_of_squares};
use tessera_model::weights::{HostTensor, gradients};

use crate::log::Metrics;

/// A loss to differentiate and figures beside it.
pub struct Loss {
    /// `[1]`
    pub total: Tensor<1>,
    /// Name and value, `[1]` each.
    pub figures: Vec<(&'static str, Tensor<1>)>,
}

impl Loss {
    /// The loss and the figures as numbers.
    pub fn values(&self) -> (f64, Metrics) {
        let value = |x: &Tensor<1>| x.clone().without_autodiff().into_scalar::<f64>();
        (value(&self.total), self.figures.iter().map(|(name, figure)| (*name, value(figure))).collect())
    }
}

/// A loss's gradient.
pub struct Gradient {
    /// That of each parameter, in the order of `export`.
    pub values: Vec<Vec<f32>>,
    /// The loss.
    pub loss: f64,
    /// Figures to log.
    pub figures: Metrics,
    /// Resblocks in which something is not finite, the one that was met first before the others.
    pub overflowed: Vec<usize>,
    /// Sizes of the gradients toward resblocks, as binary logarithms, of the first micro-batch; empty where they are not scaled.
    pub entering: Vec<f64>,
}

impl Gradient {
    /// One in which everything is finite.
    pub fn new(values: Vec<Vec<f32>>, loss: f64, figures: Metrics) -> Gradient {
        Gradient { values, loss, figures, overflowed: Vec::new(), entering: Vec::new() }
    }

    /// Whether all numbers are.
    pub(crate) fn is_finite(&self, cpu: Cpu) -> bool {
        self.values.iter().all(|values| sum_of_squares(cpu, values).is_finite())
    }

    /// The last of `weights` whose gradient is not: the backward pass meets it first.
    pub(crate) fn culprit<'a>(&self, weights: &'a [HostTensor]) -> Option<&'a str> {
        let broken = |gradient: &[f32]| !gradient.iter().all(|value| value.is_finite());
        let mut pairs = weights.iter().zip(&self.values).rev();
        pairs.find(|(_, gradient)| broken(gradient)).map(|(weight, _)| weight.name.as_str())
    }
}

/// The gradient of `loss` by one backward pass over its whole graph, on the way multiplied by a scale if there is one; the
/// whole graph is one resblock then (paper §A.2: ordinary loss scaling).
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

/// The mean of the gradients of `parts` micro-batches, with their mean figures.
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
