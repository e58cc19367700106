//! The parameters of a module: as flat tensors on their device, for training, and as named arrays
//! on the host, for files.
//!
//! The names are the field paths of the module (`decoder.groups.0.1.conv_2.weight`); the order is
//! that of the fields.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;
use tessera_kernels::read;

use super::Role;

/// One parameter of a module.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// The field path in the module.
    pub name: String,
    /// The id, which copies of the module share.
    pub id: ParamId,
    /// The role.
    pub role: Role,
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The values, flat, in row-major order.
    pub values: Tensor<1>,
}

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

/// Returns all parameters of `module`. On the CPU they share the memory of the module's values.
pub fn parameters(module: &impl Module) -> Vec<Parameter> {
    let mut collect = Collect::default();
    module.visit(&mut collect);
    collect.parameters
}

/// Returns `module` with other values: for each parameter, `values` gets its name and returns the
/// shape and the flat values, or `None` if the parameter keeps its own.
///
/// # Errors
/// If `values` fails, or a shape has another number of dimensions than the parameter.
pub fn with_values<M: Module>(
    module: M,
    values: impl FnMut(&str, ParamId) -> Result<Option<(Vec<usize>, Tensor<1>)>>,
) -> Result<M> {
    let mut replace = Replace { path: Vec::new(), values, error: None };
    let module = module.map(&mut replace);
    replace.error.map_or(Ok(module), Err)
}

/// Returns `module` with parameters that need no memory: their shapes are kept, and all their
/// values are one shared zero.
pub fn without_values<M: Module>(module: M) -> M {
    module.map(&mut Empty)
}

/// Returns all parameters of `module` on the host.
pub fn export(module: &impl Module) -> Vec<HostTensor> {
    let on_host = |Parameter { name, shape, values, .. }: Parameter| HostTensor {
        name,
        shape,
        values: read(&values, <[f32]>::to_vec),
    };
    parameters(module).into_iter().map(on_host).collect()
}

/// Returns `module` with the values of `tensors`, which must be exactly its parameters, in any
/// order.
///
/// # Errors
/// If a parameter is missing or has another shape (the error names the first such), or if there are
/// parameters that do not belong to the module.
pub fn import<M: Module>(module: M, tensors: &[HostTensor]) -> Result<M> {
    let by_name: HashMap<&str, &HostTensor> =
        tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let mut used = 0;
    let own: HashMap<ParamId, Parameter> =
        parameters(&module).into_iter().map(|parameter| (parameter.id, parameter)).collect();
    let module = with_values(module, |name, id| {
        let (tensor, own) =
            (by_name.get(name).with_context(|| format!("weight {name} is missing"))?, &own[&id]);
        if tensor.shape != own.shape {
            bail!("weight {name} has shape {:?}; this model wants {:?}", tensor.shape, own.shape);
        }
        used += 1;
        let values: Vec<f32> = tensor.values.par_iter().map(|&value| value).collect();
        let n = values.len();
        Ok(Some((own.shape.clone(), Tensor::from_data(TensorData::new(values, [n]), &own.values.device()))))
    })?;
    ensure!(used == tensors.len(), "{} of the weights do not belong to this model", tensors.len() - used);
    Ok(module)
}

/// Checks that the file holds as many weights as the config requires, before a model of this size
/// is allocated.
pub(crate) fn check_count(part: &str, required: u128, tensors: &[HostTensor]) -> Result<()> {
    let got: u128 = tensors.iter().map(|tensor| tensor.values.len() as u128).sum();
    ensure!(got == required, "the {part}'s config asks for {required} weights; the file holds {got}");
    Ok(())
}

#[derive(Default)]
struct Collect {
    path: Vec<String>,
    parameters: Vec<Parameter>,
}

impl ModuleVisitor for Collect {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let (id, shape) = (param.id, param.dims().to_vec());
        let values = param.val().without_autodiff().reshape([shape.iter().product::<usize>()]);
        let (name, role) = (self.path.join("."), Role::from_id(id));
        self.parameters.push(Parameter { name, id, role, shape, values });
    }
}

struct Replace<F> {
    path: Vec<String>,
    values: F,
    error: Option<anyhow::Error>,
}

impl<F: FnMut(&str, ParamId) -> Result<Option<(Vec<usize>, Tensor<1>)>>> ModuleMapper for Replace<F> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.join(".");
        let shaped = (self.values)(&name, param.id).and_then(|values| {
            let Some((shape, values)) = values else { return Ok(None) };
            let shape: [usize; D] = shape.try_into().map_err(|shape| {
                anyhow::anyhow!("weight {name} has shape {shape:?}; this model wants {D} dimensions")
            })?;
            Ok(Some(values.reshape(shape)))
        });
        match shaped {
            Ok(Some(values)) => param.map(|_| values),
            Ok(None) => param,
            Err(error) => {
                self.error.get_or_insert(error);
                param
            }
        }
    }
}

struct Empty;

impl ModuleMapper for Empty {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|old| Tensor::<D>::zeros([1; D], &old.device()).expand::<D, _>(old.shape()))
    }
}
