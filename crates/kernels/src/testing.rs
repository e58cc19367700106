//! Helpers for kernel tests: random tensors, and the comparison of a kernel with its reference,
//! forward and backward.

use burn::tensor::{Device, FloatDType, Gradients, Tensor, TensorData};

use crate::cpu::Cpu;

/// The allowed error of bf16 products, relative to the largest value.
const BF16_TOLERANCE: f32 = 2e-2;

/// Returns `n` numbers between -1 and 1, determined by `seed`.
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

/// Returns a random leaf that requires a gradient.
pub(crate) fn leaf<const D: usize>(shape: [usize; D], seed: u64) -> Tensor<D> {
    constant(noise(shape.iter().product(), seed), shape).require_grad()
}

/// Returns a tensor of `values`.
pub(crate) fn constant<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff())
}

/// Returns the values of a tensor of any dtype.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let tensor = tensor.cast(FloatDType::F32);
    tensor.into_data().try_to_vec::<f32>().expect("f32 after the cast")
}

/// Returns the allowed error of kernels of `cpu`, relative to the largest value.
pub(crate) fn tolerance(cpu: Cpu) -> f32 {
    if cpu.bf16() { BF16_TOLERANCE } else { 2e-5 }
}

/// Asserts that `got` equals `wanted` to within `tolerance` times the largest expected value.
pub(crate) fn assert_close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let off = (got - expected).abs();
        assert!(
            off <= tolerance * largest.max(1e-3),
            "{what}: value {i} is {got}, wanted {expected} (largest {largest})"
        );
    }
}

/// Compares a kernel with its reference for each instruction set: the output, and the gradients of
/// all leaves for a random gradient of the output. `leaves` is called again for each run.
pub(crate) fn hold_equal<const D: usize, Leaves>(
    leaves: impl Fn() -> Leaves,
    kernel: impl Fn(Cpu, &Leaves) -> Tensor<D>,
    reference: impl Fn(&Leaves) -> Tensor<D>,
    gradients: impl Fn(&Leaves, &Gradients) -> Vec<Vec<f32>>,
) {
    hold_within(tolerance, leaves, kernel, reference, gradients);
}

/// Does the same as [`hold_equal`] with a given tolerance.
///
/// Burn's operations do not accept every empty shape. An empty output is therefore not compared
/// with the reference: its gradients must be 0, because they are sums of nothing.
fn hold_within<const D: usize, Leaves>(
    tolerance: impl Fn(Cpu) -> f32,
    leaves: impl Fn() -> Leaves,
    kernel: impl Fn(Cpu, &Leaves) -> Tensor<D>,
    reference: impl Fn(&Leaves) -> Tensor<D>,
    gradients: impl Fn(&Leaves, &Gradients) -> Vec<Vec<f32>>,
) {
    let mut expected = None;
    for cpu in Cpu::all() {
        let got = outcome(&leaves(), |leaves| kernel(cpu, leaves), &gradients);
        let expected: &mut Vec<Vec<f32>> = expected.get_or_insert_with(|| match got[0].is_empty() {
            true => got.iter().map(|values| vec![0.0; values.len()]).collect(),
            false => outcome(&leaves(), &reference, &gradients),
        });
        for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
            let what = if i == 0 { "output".into() } else { format!("gradient {}", i - 1) };
            assert_close(&format!("{what}, {cpu}"), got, expected, tolerance(cpu));
        }
    }
}

/// Returns the output of `body`, then the gradients of its leaves for a random gradient of the
/// output.
pub(crate) fn outcome<const D: usize, Leaves>(
    leaves: &Leaves,
    body: impl Fn(&Leaves) -> Tensor<D>,
    gradients: impl Fn(&Leaves, &Gradients) -> Vec<Vec<f32>>,
) -> Vec<Vec<f32>> {
    let output = body(leaves).cast(FloatDType::F32);
    let weights = constant(noise(output.shape().num_elements(), 99), output.dims());
    let found = (output.clone() * weights).sum().backward();
    let output = values(output.without_autodiff());
    std::iter::once(output).chain(gradients(leaves, &found)).collect()
}

/// Returns the gradient of a leaf.
pub(crate) fn grad<const D: usize>(leaf: &Tensor<D>, gradients: &Gradients) -> Vec<f32> {
    let gradient = leaf.grad(gradients).expect("a leaf has a gradient");
    assert_eq!(gradient.dims(), leaf.dims(), "a leaf and its gradient");
    values(gradient)
}

/// A tuple of leaves of any ranks.
pub(crate) trait Leaves: Clone {
    /// Returns the sizes of the leaves.
    fn shapes(&self) -> Vec<Vec<usize>>;
    /// Returns the gradients of the leaves.
    fn gradients(&self, gradients: &Gradients) -> Vec<Vec<f32>>;
}

macro_rules! leaves {
    ($($rank:ident $leaf:ident),+) => {
        impl<$(const $rank: usize),+> Leaves for ($(Tensor<$rank>,)+) {
            fn shapes(&self) -> Vec<Vec<usize>> {
                let ($($leaf,)+) = self;
                vec![$($leaf.dims().to_vec()),+]
            }

            fn gradients(&self, gradients: &Gradients) -> Vec<Vec<f32>> {
                let ($($leaf,)+) = self;
                vec![$(grad($leaf, gradients)),+]
            }
        }
    };
}
leaves!(A a);
leaves!(A a, B b);
leaves!(A a, B b, C c);
leaves!(A a, B b, C c, D d);

/// The input dtypes of a kernel that only reads f32.
pub(crate) const F32: &[FloatDType] = &[FloatDType::F32];
/// The input dtypes of a kernel that also reads another kernel's bf16 output.
pub(crate) const F32_AND_BF16: &[FloatDType] = &[FloatDType::F32, FloatDType::BF16];

/// Calls [`hold_equal`] for each of these input dtypes; `kernel` casts its input to the given one.
/// A failure prints the shapes.
pub(crate) fn hold<const D: usize, L: Leaves>(
    dtypes: &[FloatDType],
    leaves: impl Fn() -> L,
    kernel: impl Fn(Cpu, L, FloatDType) -> Tensor<D>,
    reference: impl Fn(L) -> Tensor<D>,
) {
    for &dtype in dtypes {
        let _context = FailureContext(format!("{:?} in {dtype:?}", leaves().shapes()));
        hold_within(
            |cpu| if dtype == FloatDType::BF16 { BF16_TOLERANCE } else { tolerance(cpu) },
            &leaves,
            |cpu, leaves| kernel(cpu, leaves.clone(), dtype),
            |leaves| reference(leaves.clone()),
            L::gradients,
        );
    }
}

/// Prints a text if the test panics before this is dropped.
struct FailureContext(String);

impl Drop for FailureContext {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("at {}", self.0);
        }
    }
}
