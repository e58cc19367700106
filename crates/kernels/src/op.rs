//! The bridge to Burn: an operation on host memory with a handwritten backward pass, as a node of
//! Burn's autodiff graph.
//!
//! An [`Op`] only gets tensors of Burn's CPU backend. For tensors on any other device, every public
//! operation of this crate composes Burn's own operations; that composition is also the reference
//! that tests compare with.

use std::fmt::Debug;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex, TensorMetadata};
use burn::tensor::{DType, Shape, Tensor, TensorData};
use half::bf16;

use crate::gemm::FloatSlice;

/// A tensor in the autodiff graph.
type Node = FloatTensor<Autodiff<Flex>>;

/// An operation with `N` inputs.
pub(crate) trait Op<const N: usize>: Clone + Debug + Send + 'static {
    /// What the backward pass needs in addition to the inputs.
    type Saved: Clone + Debug + Send + 'static;

    /// Returns the output and, with `keep`, what the backward pass needs.
    fn forward(&self, inputs: [&FlexTensor; N], keep: bool) -> (FlexTensor, Option<Self::Saved>);

    /// Returns the gradients of the inputs that have `needs_grad`, given the gradient of the
    /// output.
    fn backward(
        &self,
        inputs: [&FlexTensor; N],
        saved: &Self::Saved,
        gradient: &FlexTensor,
        needs_grad: [bool; N],
    ) -> [Option<FlexTensor>; N];
}

/// An input: a node of the graph, or a constant.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    Constant(FlexTensor),
    Node(Node),
}

impl Input {
    /// Returns `None` if the tensor is on another kind of device.
    pub(crate) fn new<const D: usize>(tensor: Tensor<D>) -> Option<Input> {
        match tensor.clone().try_into_primitive::<Flex>() {
            Ok(constant) => Some(Input::Constant(constant.to_contiguous())),
            Err(_) => tensor.try_into_primitive::<Autodiff<Flex>>().ok().map(Input::Node),
        }
    }

    fn value(&self) -> FlexTensor {
        match self {
            Input::Constant(value) => value.clone(),
            Input::Node(node) => node.primitive().to_contiguous(),
        }
    }

    fn is_tracked(&self) -> bool {
        matches!(self, Input::Node(node) if node.is_tracked())
    }

    fn node(&self) -> Node {
        match self {
            Input::Constant(value) => Node::new(value.clone()),
            Input::Node(node) => node.clone(),
        }
    }
}

/// Makes an array of the [`Input`]s of tensors. It is `None` if one of them is on another kind of
/// device.
macro_rules! inputs {
    ($($tensor:ident),+) => {
        (|| Some([$($crate::op::Input::new($tensor.clone())?),+]))()
    };
}
pub(crate) use inputs;

/// Runs `op`. If an input is a node of the graph, the output is one, too.
pub(crate) fn apply<O: Op<N>, const N: usize, const D: usize>(op: O, inputs: [Input; N]) -> Tensor<D> {
    let values = inputs.each_ref().map(Input::value);
    let keep = inputs.iter().any(Input::is_tracked);
    let (output, saved) = op.forward(values.each_ref(), keep);
    if inputs.iter().all(|input| matches!(input, Input::Constant(_))) {
        return Tensor::from_primitive::<Flex>(output);
    }
    let nodes = inputs.map(|input| input.node());
    let guards = nodes.each_ref().map(Node::node);
    let output = match Step(op.clone()).prepare::<NoCheckpointing>(guards).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let saved = saved.expect("forward keeps what backward needs when an input is tracked");
            prep.finish((values, saved), output)
        }
        OpsKind::UnTracked(prep) => prep.finish(output),
    };
    Tensor::from_primitive::<Autodiff<Flex>>(output)
}

/// `O` as a step of Burn's backward pass.
#[derive(Debug)]
struct Step<O>(O);

impl<O: Op<N>, const N: usize> Backward<Flex, N> for Step<O> {
    type State = ([FlexTensor; N], O::Saved);

    fn backward(self, ops: Ops<Self::State, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = gradients.consume::<Flex>(&ops.node).to_contiguous();
        let (inputs, saved) = ops.state;
        let needs_grad = ops.parents.each_ref().map(Option::is_some);
        let input_gradients = self.0.backward(inputs.each_ref(), &saved, &gradient, needs_grad);
        for (parent, gradient) in ops.parents.into_iter().zip(input_gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                gradients.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

/// Returns the values of a contiguous tensor.
///
/// # Panics
/// If they are neither f32 nor bf16.
pub(crate) fn numbers(tensor: &FlexTensor) -> FloatSlice<'_> {
    if let Some(values) = tensor.as_slice::<f32>() {
        return FloatSlice::F32(values);
    }
    match tensor.as_slice::<bf16>() {
        Some(values) => FloatSlice::Bf16(values),
        None => panic!("a kernel was given {:?}, wanted contiguous f32 or bf16", tensor.dtype()),
    }
}

/// Returns the values of a contiguous f32 tensor.
///
/// # Panics
/// If they are not f32.
pub(crate) fn floats(tensor: &FlexTensor) -> &[f32] {
    match numbers(tensor) {
        FloatSlice::F32(values) => values,
        FloatSlice::Bf16(_) => panic!("a kernel was given bf16, wanted f32"),
    }
}

/// Returns the sizes of a tensor's dimensions.
pub(crate) fn dims(tensor: &FlexTensor) -> Vec<usize> {
    tensor.shape().to_vec()
}

/// Makes a tensor of `values`.
pub(crate) fn tensor<E: burn::tensor::Element>(values: Vec<E>, shape: &[usize]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, Shape::from(shape.to_vec())))
}

/// Returns whether a tensor is bf16.
pub(crate) fn is_bf16(tensor: &FlexTensor) -> bool {
    tensor.dtype() == DType::BF16
}
