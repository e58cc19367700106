//! What the tests of kernels share: random tensors, and a kernel held against its reference, forward and gradient.

use burn::tensor::{Device, Tensor, TensorData};

use crate::cpu::Cpu;

/// `n` numbers between -1 and 1, a function of `seed`.
pub(crate) fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// A leaf of noise.
pub(crate) fn leaf<const D: usize>(shape: [usize; D], seed: u64) -> Tensor<D> {
    let values = TensorData::new(noise(shape.iter().product(), seed), shape);
    Tensor::from_data(values, &Device::flex().autodiff()).require_grad()
}

/// The values of a tensor of any kind of number.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let tensor = tensor.cast(burn::tensor::FloatDType::F32);
    tensor.into_data().try_to_vec::<f32>().expect("f32 after the cast")
}

/// How far kernels of `cpu` may be from the exact value, relative to the largest.
pub(crate) fn tolerance(cpu: Cpu) -> f32 {
    if cpu.bf16() { 2e-2 } else { 2e-5 }
}

/// Asserts that `got` is `wanted` to within `tolerance` of its largest value.
pub(crate) fn assert_close(what: &str, got: &[f32], wanted: &[f32], tolerance: f32) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    let largest = wanted.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        let off = (got - wanted).abs();
        assert!(
            off <= tolerance * largest.max(1e-3),
            "{what}: value {i} is {got}, wanted {wanted} (largest {largest})"
        );
    }
}

/// Holds a kernel against its reference on every choice of instructions: the output, and the gradients of all leaves
/// under random weights of the output. `Leaves` are made anew for each run.
pub(crate) fn hold_equal<const D: usize, Leaves>(
    leaves: impl Fn() -> Leaves,
    kernel: impl Fn(&Leaves) -> Tensor<D>,
    reference: impl Fn(&Leaves) -> Tensor<D>,
    gradients: impl Fn(&Leaves, &burn::tensor::Gradients) -> Vec<Vec<f32>>,
) {
    let run = |body: &dyn Fn(&Leaves) -> Tensor<D>| {
        let leaves = leaves();
        let output = body(&leaves).cast(burn::tensor::FloatDType::F32);
        let weights = values(output.clone().without_autodiff());
        let n = weights.len();
        let weights = TensorData::new(noise(n, 99), output.shape());
        let weights: Tensor<D> = Tensor::from_data(weights, &Device::flex().autodiff());
        let gradient = (output.clone() * weights).sum().backward();
        (values(output.without_autodiff()), gradients(&leaves, &gradient))
    };
    let (wanted, wanted_gradients) = run(&reference);
    for cpu in Cpu::all() {
        let (got, got_gradients) = cpu.scope(|| run(&kernel));
        assert_close(&format!("output, {cpu}"), &got, &wanted, tolerance(cpu));
        for (i, (got, wanted)) in got_gradients.iter().zip(&wanted_gradients).enumerate() {
            assert_close(&format!("gradient {i}, {cpu}"), got, wanted, tolerance(cpu));
        }
    }
}

/// The gradient of a leaf.
pub(crate) fn grad<const D: usize>(leaf: &Tensor<D>, gradients: &burn::tensor::Gradients) -> Vec<f32> {
    values(leaf.grad(gradients).expect("a leaf has a gradient"))
}
