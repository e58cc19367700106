//! The operations of a parameter update on flat tensors: AdamW, the moving average, and sums of
//! gradients.
//!
//! They take ownership of the tensors that they change. On the CPU they change the values in place
//! if no other tensor shares them, and copy them otherwise. On any other device they are composed
//! of Burn's operations; these compositions are also the references of the tests.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::{Device, Tensor, TensorData};

use crate::adamw::{self, AdamWStep};
use crate::cpu::Cpu;
use crate::op::floats;

/// Updates weights `w` and moments `m` and `v` with gradients `g` ([`AdamWStep::update`]). All are
/// flat and have the same length. Returns `[w, m, v]`.
///
/// # Panics
/// If the lengths differ.
pub fn adamw_(cpu: Cpu, step: &AdamWStep, [w, m, v]: [Tensor<1>; 3], g: &Tensor<1>) -> [Tensor<1>; 3] {
    if !is_on_host(&w) {
        return adamw_reference(step, [w, m, v], g);
    }
    let (mut w, mut m, mut v) = (host(w), host(m), host(v));
    read(g, |g| step.update(cpu, w.storage_mut(), g, m.storage_mut(), v.storage_mut()));
    [w, m, v].map(Tensor::from_primitive::<Flex>)
}

/// Computes the same by Burn's operations.
pub fn adamw_reference(step: &AdamWStep, [w, m, v]: [Tensor<1>; 3], g: &Tensor<1>) -> [Tensor<1>; 3] {
    let g = g.clone() * step.gradient_scale;
    let m = m * step.beta1 + g.clone() * (1.0 - step.beta1);
    let v = (v * step.beta2 + g.clone() * g * (1.0 - step.beta2)).clamp_max(step.variance_clip);
    let root = (v.clone() * step.inverse_variance).sqrt() + step.epsilon;
    [w * step.shrink - m.clone() * step.step / root, m, v]
}

/// Moves `average` towards `values`: `average + share · (values - average)`.
///
/// # Panics
/// If the lengths differ.
pub fn ema_(cpu: Cpu, average: Tensor<1>, values: &Tensor<1>, share: f32) -> Tensor<1> {
    if !is_on_host(&average) {
        return ema_reference(average, values, share);
    }
    changed(average, |average| read(values, |values| adamw::approach(cpu, average, values, share)))
}

/// Computes the same by Burn's operations.
pub fn ema_reference(average: Tensor<1>, values: &Tensor<1>, share: f32) -> Tensor<1> {
    average.clone() + (values.clone() - average) * share
}

/// Adds `values` to `sum`.
///
/// # Panics
/// If the lengths differ.
pub fn add_(cpu: Cpu, sum: Tensor<1>, values: &Tensor<1>) -> Tensor<1> {
    if !is_on_host(&sum) {
        return sum + values.clone();
    }
    changed(sum, |sum| read(values, |values| adamw::add(cpu, sum, values)))
}

/// Divides `values` by `divisor`.
pub fn divide_(cpu: Cpu, values: Tensor<1>, divisor: f32) -> Tensor<1> {
    if !is_on_host(&values) {
        return values / divisor;
    }
    changed(values, |values| adamw::divide(cpu, values, divisor))
}

/// Returns `Σ v²` of all tensors. On the CPU the sum is computed in f64 and is finite if all values
/// are; elsewhere it is computed in f32.
pub fn sum_of_squares<'a>(cpu: Cpu, tensors: impl IntoIterator<Item = &'a Tensor<1>>) -> f64 {
    let (mut sum, mut elsewhere) = (0.0, None::<Tensor<1>>);
    for tensor in tensors {
        if is_on_host(tensor) {
            sum += read(tensor, |values| adamw::sum_of_squares(cpu, values));
        } else {
            let squares = (tensor.clone() * tensor.clone()).sum();
            elsewhere = Some(elsewhere.map_or(squares.clone(), |sum| sum + squares));
        }
    }
    // One transfer for all tensors.
    sum + elsewhere.map_or(0.0, |sum| sum.into_scalar::<f64>())
}

/// Returns whether all values are finite.
pub fn all_finite(cpu: Cpu, values: &Tensor<1>) -> bool {
    match is_on_host(values) {
        true => read(values, |values| adamw::sum_of_squares(cpu, values).is_finite()),
        false => values.clone().is_finite().all().into_scalar::<bool>(),
    }
}

/// Returns `tensor` after `change` has changed its values on the host.
pub fn changed(tensor: Tensor<1>, change: impl FnOnce(&mut [f32])) -> Tensor<1> {
    if is_on_host(&tensor) {
        let mut values = host(tensor);
        change(values.storage_mut());
        return Tensor::from_primitive::<Flex>(values);
    }
    let device = tensor.device();
    let mut values: Vec<f32> = tensor.into_data().iter().collect();
    change(&mut values);
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), &device)
}

/// Passes the values of a tensor to `use_values`, on the CPU without copying them.
pub fn read<T>(tensor: &Tensor<1>, use_values: impl FnOnce(&[f32]) -> T) -> T {
    if is_on_host(tensor) {
        return use_values(floats(&primitive(tensor.clone()).to_contiguous()));
    }
    use_values(&tensor.to_data().iter().collect::<Vec<f32>>())
}

/// Whether the values are in CPU memory and belong to no autodiff graph.
fn is_on_host(tensor: &Tensor<1>) -> bool {
    tensor.device() == Device::flex()
}

/// Returns the tensor as one whose storage contains exactly its values.
fn host(tensor: Tensor<1>) -> FlexTensor {
    let n = tensor.dims()[0];
    let tensor = primitive(tensor);
    match tensor.is_contiguous() && tensor.storage::<f32>().len() == n {
        true => tensor,
        false => crate::op::tensor(floats(&tensor.to_contiguous()).to_vec(), &[n]),
    }
}

fn primitive(tensor: Tensor<1>) -> FlexTensor {
    tensor.try_into_primitive::<Flex>().expect("a tensor on the CPU is one of the CPU's backend")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adamw::tests::ADAM;
    use crate::testing::{assert_close, noise};

    const N: usize = 40_000;

    fn flat(values: Vec<f32>) -> Tensor<1> {
        let n = values.len();
        Tensor::from_data(TensorData::new(values, [n]), &Device::flex())
    }

    fn values(tensor: &Tensor<1>) -> Vec<f32> {
        read(tensor, <[f32]>::to_vec)
    }

    #[test]
    fn update_matches_reference() {
        let [w, g, m] = [1, 2, 3].map(|seed| flat(noise(N, seed)));
        let v = flat(noise(N, 4).into_iter().map(|v| v * v).collect());
        let expected = adamw_reference(&ADAM, [w.clone(), m.clone(), v.clone()], &g);
        for cpu in Cpu::all() {
            let found = adamw_(cpu, &ADAM, [w.clone(), m.clone(), v.clone()], &g);
            for (name, (found, expected)) in
                ["weights", "mean", "variance"].iter().zip(found.iter().zip(&expected))
            {
                assert_close(&format!("{name}, {cpu}"), &values(found), &values(expected), 1e-5);
            }
        }
    }

    #[test]
    fn averages_sums_and_quotients_match_references() {
        let [a, b] = [1, 2].map(|seed| flat(noise(N, seed)));
        let squares: f64 = [&a, &b].map(|x| (x.clone() * x.clone()).sum().into_scalar::<f64>()).iter().sum();
        for cpu in Cpu::all() {
            let nearer = ema_(cpu, a.clone(), &b, 0.25);
            assert_close("average", &values(&nearer), &values(&ema_reference(a.clone(), &b, 0.25)), 1e-6);
            assert_eq!(values(&add_(cpu, a.clone(), &b)), values(&(a.clone() + b.clone())));
            assert_eq!(values(&divide_(cpu, a.clone(), 3.0)), values(&(a.clone() / 3.0)));
            assert!((sum_of_squares(cpu, [&a, &b]) / squares - 1.0).abs() < 1e-4);
            assert!(all_finite(cpu, &a));
            assert!(!all_finite(cpu, &changed(a.clone(), |values| values[N - 1] = f32::NEG_INFINITY)));
        }
    }

    /// The address of a tensor's values.
    fn address(tensor: &Tensor<1>) -> *const f32 {
        read(tensor, <[f32]>::as_ptr)
    }

    #[test]
    fn values_are_changed_in_place_unless_they_are_shared() {
        let cpu = Cpu::best();
        let [w, g, m] = [1, 2, 3].map(|seed| flat(noise(N, seed)));
        let v = flat(vec![1.0; N]);
        let before = [address(&w), address(&m), address(&v)];
        let [w, m, v] = adamw_(cpu, &ADAM, [w, m, v], &g);
        assert_eq!([address(&w), address(&m), address(&v)], before);
        let w = ema_(cpu, w, &g, 0.5);
        assert_eq!(address(&w), before[0]);
        let (shared, copy) = (w.clone(), values(&w));
        let w = add_(cpu, w, &g);
        assert_ne!(address(&w), before[0]);
        assert_eq!(values(&shared)[..9], copy[..9]);
        assert_ne!(values(&w)[..9], copy[..9]);
        // A tensor that is a part of another one's storage leaves the rest alone.
        let part = shared.clone().narrow(0, 3, 5);
        assert_eq!(values(&divide_(cpu, part, 2.0)), copy[3..8].iter().map(|x| x / 2.0).collect::<Vec<_>>());
        assert_eq!(values(&shared), copy);
    }
}
