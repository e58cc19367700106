//! Gradients on their way from a backward pass to the optimizer.
//!
//! A backward pass hands over the gradients of one part of the model after another, as soon as they
//! are known. A [`GradientSink`] takes them: it may sum them in memory ([`GradientSums`]), or send,
//! compress and free them.

use std::collections::HashMap;

use anyhow::Result;
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{Gradients, Tensor};
use tessera_kernels::{Cpu, add_, all_finite, divide_, read, sum_of_squares};

/// A part of a model whose gradients are known at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A model that is differentiated as one graph.
    Model,
    /// The embeddings of a prior.
    Embed,
    /// A resblock of a prior, counted from 0.
    Resblock(usize),
    /// The final layer norm and the output heads of a prior.
    Heads,
}

/// The gradient of one parameter, flat, in row-major order.
#[derive(Debug, Clone)]
pub struct ParamGradient {
    /// The parameter.
    pub id: ParamId,
    /// Its gradient.
    pub values: Tensor<1>,
}

/// Takes gradients as soon as they are known.
pub trait GradientSink {
    /// Takes the gradients of the parameters of `part`. Parameters that the loss does not depend on
    /// have none.
    ///
    /// With a `scale`, the gradients are multiplied by it and may have overflowed. Returns whether
    /// all of them are finite; without a scale, this is not checked.
    ///
    /// # Errors
    /// If they cannot be stored or sent.
    fn take(&mut self, part: Part, gradients: Vec<ParamGradient>, scale: Option<f32>) -> Result<bool>;
}

/// Takes the gradients of the parameters of `module` out of `gradients`.
pub fn take_gradients(module: &impl Module, gradients: &mut Gradients) -> Vec<ParamGradient> {
    let mut take = TakeGradients { gradients, taken: Vec::new() };
    module.visit(&mut take);
    take.taken
}

struct TakeGradients<'a> {
    gradients: &'a mut Gradients,
    taken: Vec<ParamGradient>,
}

impl ModuleVisitor for TakeGradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.val().grad_remove(self.gradients) {
            let n = gradient.shape().num_elements();
            self.taken.push(ParamGradient { id: param.id, values: gradient.reshape([n]) });
        }
    }
}

/// Sums the gradients of a model in memory.
#[derive(Debug)]
pub struct GradientSums {
    cpu: Cpu,
    sums: HashMap<ParamId, Tensor<1>>,
}

impl GradientSums {
    /// Makes sums without gradients.
    pub fn new(cpu: Cpu) -> GradientSums {
        GradientSums { cpu, sums: HashMap::new() }
    }

    /// Returns the sum of the gradients of a parameter, or `None` if it has had no gradient.
    pub fn get(&self, id: ParamId) -> Option<&Tensor<1>> {
        self.sums.get(&id)
    }

    /// Returns the parameters that have had a gradient, in no particular order.
    pub fn ids(&self) -> Vec<ParamId> {
        self.sums.keys().copied().collect()
    }

    /// Takes the sum of the gradients of a parameter out.
    pub fn remove(&mut self, id: ParamId) -> Option<Tensor<1>> {
        self.sums.remove(&id)
    }

    /// Returns the sum of the squares of all sums, in f64.
    pub fn sum_of_squares(&self, ids: &[ParamId]) -> f64 {
        sum_of_squares(self.cpu, ids.iter().filter_map(|id| self.get(*id)))
    }

    /// Returns whether all sums are finite.
    pub fn all_finite(&self) -> bool {
        self.sums.values().all(|sum| all_finite(self.cpu, sum))
    }

    /// Returns the sums on the host, in the order of the parameters of `model`. A parameter without
    /// gradients gets zeros.
    pub fn to_host(&self, model: &impl Module) -> Vec<Vec<f32>> {
        let mut order = InOrder { sums: self, ordered: Vec::new() };
        model.visit(&mut order);
        order.ordered
    }
}

impl GradientSink for GradientSums {
    fn take(&mut self, _: Part, gradients: Vec<ParamGradient>, scale: Option<f32>) -> Result<bool> {
        let mut finite = true;
        for ParamGradient { id, mut values } in gradients {
            if let Some(scale) = scale {
                values = divide_(self.cpu, values, scale);
                finite &= all_finite(self.cpu, &values);
            }
            let sum = match self.sums.remove(&id) {
                Some(sum) => add_(self.cpu, sum, &values),
                None => values,
            };
            self.sums.insert(id, sum);
        }
        Ok(finite)
    }
}

struct InOrder<'a> {
    sums: &'a GradientSums,
    ordered: Vec<Vec<f32>>,
}

impl ModuleVisitor for InOrder<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let zeros = || vec![0.0; param.dims().iter().product()];
        let sum = self.sums.get(param.id).map_or_else(zeros, |sum| read(sum, <[f32]>::to_vec));
        self.ordered.push(sum);
    }
}

/// Returns the gradients of a module on the host, in the order of its parameters.
#[cfg(test)]
pub(crate) fn host_gradients(module: &impl Module, mut gradients: Gradients) -> Vec<Vec<f32>> {
    let mut sums = GradientSums::new(Cpu::best());
    let taken = take_gradients(module, &mut gradients);
    sums.take(Part::Model, taken, None).expect("sums in memory do not fail");
    sums.to_host(module)
}
