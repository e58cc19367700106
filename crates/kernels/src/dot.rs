//! The product of two tensors as one number: how a gradient that is known is handed to a graph.

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::cpu::{Cpu, vectorized};
use crate::math::sum3;
use crate::op::{Input, Op, apply, floats, tensor};

/// Values that one task sums.
const PART: usize = 1 << 14;

/// `Σ a · b` of two f32 tensors of one shape → `[1]`. Its gradient with respect to `a` is `b`: differentiating
/// `dot(y, g)` continues the backward pass from the gradient `g` of `y`.
///
/// # Panics
/// If the shapes differ.
pub fn dot<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<1> {
    let shapes = [a.dims(), b.dims()];
    assert!(shapes[0] == shapes[1], "dot: {:?} and {:?}", shapes[0], shapes[1]);
    match (Input::new(a.clone()), Input::new(b.clone())) {
        (Some(a), Some(b)) => apply(Dot { cpu: Cpu::current() }, [a, b]),
        _ => dot_reference(a, b),
    }
}

/// [`dot`] in Burn's operations.
pub fn dot_reference<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<1> {
    let b = if a.device().is_autodiff() { b.autodiff() } else { b };
    (a * b).sum()
}

#[derive(Debug, Clone)]
struct Dot {
    cpu: Cpu,
}

impl Op<2> for Dot {
    type Saved = ();

    fn forward(&self, [a, b]: [&FlexTensor; 2], keep: bool) -> (FlexTensor, Option<()>) {
        let parts = floats(a).par_chunks(PART).zip(floats(b).par_chunks(PART));
        let sums: Vec<f32> = parts.map(|(a, b)| dot_part(self.cpu.isa(), a, b)).collect();
        let sum: f64 = sums.into_iter().map(f64::from).sum();
        (tensor(vec![sum as f32], &[1]), keep.then_some(()))
    }

    fn backward(
        &self,
        [a, b]: [&FlexTensor; 2],
        _: &(),
        gradient: &FlexTensor,
        [want_a, want_b]: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let scale = floats(gradient)[0];
        [want_a.then(|| scaled(b, scale)), want_b.then(|| scaled(a, scale))]
    }
}

/// `values · factor`; as they are for a factor of 1, the usual one.
fn scaled(values: &FlexTensor, factor: f32) -> FlexTensor {
    if factor == 1.0 {
        return values.clone();
    }
    let scaled: Vec<f32> = floats(values).par_iter().map(|value| value * factor).collect();
    tensor(scaled, &crate::op::dims(values))
}

vectorized! {
    fn dot_part(a: &[f32], b: &[f32]) -> f32 {
        sum3(a, b, a, |a, b, _| a * b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{grad, hold_equal, leaf};

    #[test]
    fn dot_is_its_reference() {
        hold_equal(
            || (leaf([3, 5, 7], 1), leaf([3, 5, 7], 2)),
            |(a, b)| dot(a.clone(), b.clone()),
            |(a, b)| (a.clone() * b.clone()).sum(),
            |(a, b), g| vec![grad(a, g), grad(b, g)],
        );
    }
}
