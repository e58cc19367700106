//! What the tests of kernels share: random tensors, and a kernel held against its reference, forward and gradient.

use burn::tensor::{Device, FloatDType, Gradients, Tensor, TensorData};

use crate::cpu::Cpu;

/// How far from the exact value products of bf16 may be, relative to the largest.
const BF16_TOLERANCE: f32 = 2e-2;

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
    constant(noise(shape.iter().product(), seed), shape).require_grad()
}

/// A tensor of `values`.
pub(crate) fn constant<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff())
}

/// The values of a tensor of any kind of number.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let tensor = tensor.cast(FloatDType::F32);
    tensor.into_data().try_to_vec::<f32>().expect("f32 after the cast")
}

/// How far kernels of `cpu` may be from the exact value, relative to the largest.
pub(crate) fn tolerance(cpu: Cpu) -> f32 {
    if cpu.bf16() { BF16_TOLERANCE } else { 2e-5 }
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
    kernel: impl Fn(Cpu, &Leaves) -> Tensor<D>,
    reference: impl Fn(&Leaves) -> Tensor<D>,
    gradients: impl Fn(&Leaves, &Gradients) -> Vec<Vec<f32>>,
) {
    hold_within(tolerance, leaves, kernel, reference, gradients);
}

/// [`hold_equal`] to within a tolerance of its own.
///
/// Burn's operations do not take every shape of nothing. An output of nothing is held to what follows from that: its
/// gradients are sums of nothing.
fn hold_within<const D: usize, Leaves>(
    tolerance: impl Fn(Cpu) -> f32,
    leaves: impl Fn() -> Leaves,
    kernel: impl Fn(Cpu, &Leaves) -> Tensor<D>,
    reference: impl Fn(&Leaves) -> Tensor<D>,
    gradients: impl Fn(&Leaves, &Gradients) -> Vec<Vec<f32>>,
) {
    let mut wanted = None;
    for cpu in Cpu::all() {
        let got = outcome(&leaves(), |leaves| kernel(cpu, leaves), &gradients);
        let wanted: &mut Vec<Vec<f32>> = wanted.get_or_insert_with(|| match got[0].is_empty() {
            true => got.iter().map(|values| vec![0.0; values.len()]).collect(),
            false => outcome(&leaves(), &reference, &gradients),
        });
        for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
            let what = if i == 0 { "output".into() } else { format!("gradient {}", i - 1) };
            assert_close(&format!("{what}, {cpu}"), got, wanted, tolerance(cpu));
        }
    }
}

/// The output of `body`, then the gradients of its leaves under random weights of the output.
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

/// The gradient of a leaf.
pub(crate) fn grad<const D: usize>(leaf: &Tensor<D>, gradients: &Gradients) -> Vec<f32> {
    let gradient = leaf.grad(gradients).expect("a leaf has a gradient");
    assert_eq!(gradient.dims(), leaf.dims(), "a leaf and its gradient");
    values(gradient)
}

/// Leaves of any ranks.
pub(crate) trait Leaves: Clone {
    /// Their sizes.
    fn shapes(&self) -> Vec<Vec<usize>>;
    /// Their gradients.
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

/// What a kernel that takes f32 alone is held on.
pub(crate) const F32: &[FloatDType] = &[FloatDType::F32];
/// What a kernel is held on that also reads what another left in bf16.
pub(crate) const F32_AND_BF16: &[FloatDType] = &[FloatDType::F32, FloatDType::BF16];

/// [`hold_equal`], for each kind of number that `kernel` is told to cast its input to. If it fails, it says at which
/// shapes.
pub(crate) fn hold<const D: usize, L: Leaves>(
    kinds: &[FloatDType],
    leaves: impl Fn() -> L,
    kernel: impl Fn(Cpu, L, FloatDType) -> Tensor<D>,
    reference: impl Fn(L) -> Tensor<D>,
) {
    for &kind in kinds {
        let _said = Said(format!("{:?} in {kind:?}", leaves().shapes()));
        hold_within(
            |cpu| if kind == FloatDType::BF16 { BF16_TOLERANCE } else { tolerance(cpu) },
            &leaves,
            |cpu, leaves| kernel(cpu, leaves.clone(), kind),
            |leaves| reference(leaves.clone()),
            L::gradients,
        );
    }
}

/// Says where a test was when it fails.
struct Said(String);

impl Drop for Said {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("at {}", self.0);
        }
    }
}
