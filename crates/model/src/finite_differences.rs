//! A check for tests: compares the gradient of every parameter with a central difference of the
//! loss.

use burn::module::Module;
use burn::tensor::Tensor;
use tessera_kernels::Cpu;

use crate::nn::{export, host_gradients, import};

/// How far the central difference may be from the gradient: `absolute + relative · |gradient|`.
pub(crate) struct Tolerance {
    pub(crate) absolute: f64,
    pub(crate) relative: f64,
}

/// Changes the middle value of each parameter by `±step` and compares the change of `loss` with the
/// gradient of this value.
pub(crate) fn check<M: Module>(model: M, loss: impl Fn(&M) -> Tensor<1>, step: f32, tolerance: Tolerance) {
    let train = model.clone().train();
    let gradients = host_gradients(&train, loss(&train).backward());
    let weights = export(&model);
    for (index, gradient) in gradients.iter().enumerate() {
        let at = gradient.len() / 2;
        let shifted = |by: f32| {
            let mut weights = weights.clone();
            weights[index].values[at] += by;
            loss(&import(model.clone(), &weights).unwrap()).into_scalar::<f64>()
        };
        let numeric = (shifted(step) - shifted(-step)) / (2.0 * f64::from(step));
        let exact = f64::from(gradient[at]);
        let close = (numeric - exact).abs() < tolerance.absolute + tolerance.relative * exact.abs();
        assert!(close, "{}[{at}]: {numeric} numeric, {exact} exact", weights[index].name);
    }
}

/// The best instructions of this processor with f32 products.
pub(crate) fn exact() -> Cpu {
    Cpu::best().in_f32()
}

/// `model` with a small change to every weight, so that biases and zero matrices are not zero.
pub(crate) fn stirred<M: Module>(model: M, by: f32) -> M {
    let mut weights = export(&model);
    let values = weights.iter_mut().flat_map(|weight| &mut weight.values);
    values.enumerate().for_each(|(i, value)| *value += by * (i as f32 * 1.7).sin());
    import(model, &weights).unwrap()
}
