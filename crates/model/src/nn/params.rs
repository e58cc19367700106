//! The parameters of a module as named host arrays, and back. Files, optimizers and weight averages
//! work on such arrays.
//!
//! The names are the field paths of the module (`decoder.groups.0.1.conv_2.weight`); the order is
//! that of the fields.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Gradients, Tensor, TensorData};
use rayon::prelude::*;
use tessera_base::Internal;

/// One parameter as an array on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// The field path in the module.
    pub name: String,
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The values in row-major order.
    pub values: Vec<f32>,
}

/// Returns all parameters of `module`.
pub fn export(module: &impl Module) -> Vec<HostTensor> {
    let mut export = Export::default();
    module.visit(&mut export);
    export.tensors
}

/// Returns `module` with the values of `tensors`, which must be exactly its parameters, in any
/// order.
///
/// # Errors
/// If a parameter is missing or has another shape (the error names the first such), or if there are
/// parameters that do not belong to the module.
pub fn import<M: Module>(module: M, tensors: &[HostTensor]) -> Result<M> {
    let by_name = tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let mut import = Import { path: Vec::new(), by_name, used: 0, error: None };
    let module = module.map(&mut import);
    if let Some(error) = import.error {
        return Err(error);
    }
    ensure!(
        import.used == tensors.len(),
        "{} of the weights do not belong to this model",
        tensors.len() - import.used
    );
    Ok(module)
}

/// Checks that the file holds as many weights as the config requires, before a model of this size
/// is allocated.
pub(crate) fn check_count(part: &str, required: u128, tensors: &[HostTensor]) -> Result<()> {
    let got: u128 = tensors.iter().map(|tensor| tensor.values.len() as u128).sum();
    ensure!(got == required, "the {part}'s config asks for {required} weights; the file holds {got}");
    Ok(())
}

/// Takes the gradients of all parameters of `module` out of `gradients`, in the order of
/// [`export`]. A parameter without a gradient gets zeros.
///
/// # Errors
/// If a gradient is not f32.
pub fn gradients(module: &impl Module, mut gradients: Gradients) -> Result<Vec<Vec<f32>>> {
    let mut collected = Collected::default();
    collected.take(module, &mut gradients)?;
    Ok(collected.in_order(module))
}

/// Collects the gradients of a model that is differentiated in parts.
#[derive(Default)]
pub struct Collected {
    by_id: HashMap<ParamId, Vec<f32>>,
}

impl Collected {
    /// Takes the gradients of the parameters of `part` out of `gradients`.
    ///
    /// # Errors
    /// If a gradient is not f32.
    pub fn take(&mut self, part: &impl Module, gradients: &mut Gradients) -> Result<()> {
        self.visit(part, gradients, None).map(drop)
    }

    /// Like [`Collected::take`], but divides the gradients by `scale`. Returns whether all of them
    /// are finite.
    ///
    /// # Errors
    /// If a gradient is not f32.
    pub fn take_scaled(&mut self, part: &impl Module, gradients: &mut Gradients, scale: f32) -> Result<bool> {
        self.visit(part, gradients, Some(scale))
    }

    fn visit(&mut self, part: &impl Module, gradients: &mut Gradients, scale: Option<f32>) -> Result<bool> {
        let mut take = TakeGradients { gradients, scale, taken: &mut self.by_id, finite: true, error: None };
        part.visit(&mut take);
        let finite = take.finite;
        take.error.map_or(Ok(finite), Err)
    }

    /// Returns the gradients in the order of [`export`] of the complete model. A parameter without
    /// a gradient gets zeros.
    pub fn in_order(self, model: &impl Module) -> Vec<Vec<f32>> {
        let mut order = InOrder { by_id: self.by_id, ordered: Vec::new() };
        model.visit(&mut order);
        order.ordered
    }
}

#[derive(Default)]
struct Export {
    path: Vec<String>,
    tensors: Vec<HostTensor>,
}

impl ModuleVisitor for Export {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let data = param.val().without_autodiff().into_data();
        let shape = param.dims().to_vec();
        let values = data.iter::<f32>().collect();
        self.tensors.push(HostTensor { name: self.path.join("."), shape, values });
    }
}

struct Import<'a> {
    path: Vec<String>,
    by_name: HashMap<&'a str, &'a HostTensor>,
    used: usize,
    error: Option<anyhow::Error>,
}

impl Import<'_> {
    fn find(&mut self, name: &str, shape: &[usize]) -> Result<TensorData> {
        let tensor = self.by_name.get(name).with_context(|| format!("weight {name} is missing"))?;
        if tensor.shape != shape {
            bail!("weight {name} has shape {:?}; this model wants {shape:?}", tensor.shape);
        }
        self.used += 1;
        // Training imports all weights at each step, so all threads copy them.
        let values: Vec<f32> = tensor.values.par_iter().map(|&value| value).collect();
        Ok(TensorData::new(values, shape.to_vec()))
    }
}

impl ModuleMapper for Import<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.find(&self.path.join("."), &param.dims()) {
            Ok(data) => param.map(|old| Tensor::from_data(data, &old.device())),
            Err(error) => {
                self.error.get_or_insert(error);
                param
            }
        }
    }
}

struct TakeGradients<'a> {
    gradients: &'a mut Gradients,
    /// If present, the gradients are divided by it and checked for non-finite values.
    scale: Option<f32>,
    finite: bool,
    taken: &'a mut HashMap<ParamId, Vec<f32>>,
    error: Option<anyhow::Error>,
}

impl ModuleVisitor for TakeGradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(gradient) = param.val().grad_remove(self.gradients) else {
            return;
        };
        match gradient.into_data().try_to_vec::<f32>() {
            Ok(mut values) => {
                if let Some(scale) = self.scale {
                    values.par_iter_mut().for_each(|value| *value /= scale);
                    self.finite &= values.par_iter().all(|value| value.is_finite());
                }
                self.taken.insert(param.id, values);
            }
            Err(error) => self.error = Some(Internal(format!("gradient is not f32: {error:?}")).into()),
        }
    }
}

struct InOrder {
    by_id: HashMap<ParamId, Vec<f32>>,
    ordered: Vec<Vec<f32>>,
}

impl ModuleVisitor for InOrder {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let gradient = self.by_id.remove(&param.id);
        self.ordered.push(gradient.unwrap_or_else(|| vec![0.0; param.dims().iter().product()]));
    }
}
