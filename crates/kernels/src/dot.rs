//! The dot product of two tensors. It is the way to start a backward pass from a gradient that is
//! already known.

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::cpu::{Cpu, vectorized};
use crate::gemm::FloatSlice;
use crate::math::{Number, sum3, with_numbers};
use crate::op::{Op, apply, dims, floats, inputs, numbers, tensor};

/// Values that one task sums.
const PART: usize = 1 << 14;

/// Computes `Σ a · b` of two tensors with the same shape and dtype → `[1]` in f32. Its gradient
/// with respect to `a` is `b`, so differentiating `dot(cpu, y, g)` continues the backward pass from
/// the gradient `g` of `y`.
///
/// # Panics
/// If the shapes or dtypes differ.
pub fn dot<const D: usize>(cpu: Cpu, a: Tensor<D>, b: Tensor<D>) -> Tensor<1> {
    let [left, right] = [&a, &b].map(|tensor| (tensor.dims(), tensor.dtype()));
    assert!(left == right, "dot: {left:?} and {right:?} are not alike");
    match inputs!(a, b) {
        Some(inputs) => apply(Dot { cpu }, inputs),
        None => dot_reference(a, b),
    }
}

/// Computes [`dot`] with Burn's operations.
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
        let sum = match (numbers(a), numbers(b)) {
            (FloatSlice::F32(a), FloatSlice::F32(b)) => self.sum(a, b),
            (FloatSlice::Bf16(a), FloatSlice::Bf16(b)) => self.sum(a, b),
            _ => unreachable!("`dot` takes two of one kind"),
        };
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

impl Dot {
    fn sum<T: Number>(&self, a: &[T], b: &[T]) -> f64 {
        let parts = a.par_chunks(PART).zip(b.par_chunks(PART));
        let sums: Vec<f32> = parts.map(|(a, b)| dot_part(self.cpu.supported(), a, b)).collect();
        sums.into_iter().map(f64::from).sum()
    }
}

/// Returns `values · factor`, without a copy if the factor is 1, which is usual.
fn scaled(values: &FlexTensor, factor: f32) -> FlexTensor {
    if factor == 1.0 {
        return values.clone();
    }
    with_numbers!(numbers(values), numbers => tensor(times(numbers, factor), &dims(values)))
}

fn times<T: Number>(values: &[T], factor: f32) -> Vec<T> {
    values.par_iter().map(|value| T::nearest(value.value() * factor)).collect()
}

vectorized! {
    fn dot_part[T: Number](a: &[T], b: &[T]) -> f32 {
        sum3(a, b, a, |a, b, _| a * b)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::FloatDType;

    use super::*;
    use crate::testing::{grad, hold_equal, leaf, values};

    #[test]
    fn dot_matches_reference() {
        hold_equal(
            || (leaf([3, 5, 7], 1), leaf([3, 5, 7], 2)),
            |cpu, (a, b)| dot(cpu, a.clone(), b.clone()),
            |(a, b)| dot_reference(a.clone(), b.clone()),
            |(a, b), g| vec![grad(a, g), grad(b, g)],
        );
    }

    #[test]
    fn bf16_dot_gradient_is_the_other_tensor() {
        let cpu = Cpu::best();
        let [a, b] = [1, 2].map(|seed| leaf([3, 70], seed).cast(FloatDType::BF16));
        let (a, b) = (a.without_autodiff().autodiff().require_grad(), b.without_autodiff());
        let gradient = a.grad(&dot(cpu, a.clone(), b.clone()).backward()).expect("a leaf has a gradient");
        assert_eq!(values(gradient), values(b.clone()));
        let [exact, got] =
            [dot_reference(a.clone().cast(FloatDType::F32), b.clone().cast(FloatDType::F32)), dot(cpu, a, b)]
                .map(|sum| values(sum.without_autodiff())[0]);
        assert!((got - exact).abs() < 1e-4 * exact.abs().max(1.0), "{got}, wanted {exact}");
    }

    #[test]
    #[should_panic(expected = "are not alike")]
    fn dot_of_different_dtypes_panics() {
        dot(Cpu::best(), leaf([3], 1), leaf([3], 2).cast(FloatDType::BF16));
    }
}
