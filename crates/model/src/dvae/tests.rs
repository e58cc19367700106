//! Tests of the dVAE: parameter counts, initialisation, φ and its inverse, the likelihood,
//! gradients of the loss.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};

use super::*;
use crate::finite_differences::{Tolerance, check, exact, stirred};

fn config() -> DvaeConfig {
    DvaeConfig {
        image_size: 8,
        groups: 2,
        blocks_per_group: 1,
        n_hid: 4,
        n_init: 3,
        vocab: 6,
        min_log_b: -3.0,
    }
}

fn floats<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.without_autodiff().into_data().try_to_vec::<f32>().unwrap()
}

fn tensor<const D: usize>(shape: [usize; D], value: impl Fn(usize) -> f32) -> Tensor<D> {
    let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

#[test]
fn shapes_and_parameter_counts() {
    let dvae = Dvae::new(&config(), 0, &Device::flex());
    let x = tensor([2, 3, 8, 8], |i| (i % 7) as f32 / 7.0);
    let codes = dvae.encode(x.clone());
    assert_eq!(codes.dims(), [2, 4, 4]);
    assert_eq!(dvae.decode(codes).dims(), [2, 3, 8, 8]);
    let counted = [dvae.encoder.num_params(), dvae.decoder.num_params()].map(|n| n as u128);
    assert_eq!(config().n_parameters(), counted);
}

#[test]
fn the_released_architecture_has_the_released_parameter_counts() {
    let released = DvaeConfig::released();
    assert_eq!(released.n_parameters(), [53_786_240, 43_829_766]);
    assert_eq!((released.grid(), released.values_per_token()), (32, 192));
}

/// The released code draws weights from N(0, 1/√(c_in k²)); biases are 0.
#[test]
fn initial_weights_have_the_released_deviations() {
    let dvae = Dvae::new(&DvaeConfig { n_hid: 32, n_init: 16, vocab: 40, ..config() }, 5, &Device::flex());
    for weight in crate::nn::export(&dvae) {
        let n = weight.values.len() as f64;
        let std = (weight.values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n).sqrt();
        let wanted = match weight.shape[..] {
            [_, c_in, k, _] => 1.0 / ((c_in * k * k) as f64).sqrt(),
            _ => 0.0,
        };
        assert!(
            (std - wanted).abs() <= wanted * 5.0 / (2.0 * n).sqrt(),
            "{}: {std}, wanted {wanted}",
            weight.name
        );
    }
}

#[test]
fn code_lookup_equals_the_convolution_of_its_one_hot() {
    let dvae = Dvae::new(&config(), 0, &Device::flex());
    let codes: Vec<i32> = (0..16).map(|i| i % 6).collect();
    let one_hot = tensor([1, 4, 4, 6], |i| if codes[i / 6] == (i % 6) as i32 { 1.0 } else { 0.0 });
    let codes = Tensor::from_data(TensorData::new(codes.clone(), [1, 4, 4]), &Device::flex());
    let looked_up = floats(dvae.decoder.forward_codes(codes));
    for (a, b) in looked_up.iter().zip(floats(dvae.decoder.forward(one_hot))) {
        assert!((a - b).abs() < 1e-5);
    }
}

#[test]
fn f16_gradients_are_near_those_of_f32_and_logits_stay_f32() {
    let gradient = |storage: Option<SmallFloat>, scale: f32| {
        let dvae = Dvae::new(&config(), 0, exact()).stored(storage).train();
        let x = map_pixels(tensor([1, 3, 8, 8], |i| (i % 7) as f32 / 7.0)).autodiff();
        let logits = dvae.encoder.forward(x.clone());
        let stats = dvae.decoder.forward(burn::tensor::activation::softmax(logits.clone(), 3));
        let loss = elbo(exact(), x, stats, logits.clone(), 1.0, -3.0).loss;
        let values = crate::nn::host_gradients(&dvae, (loss * scale).backward());
        (values.concat().iter().map(|value| value / scale).collect::<Vec<f32>>(), floats(logits))
    };
    let half = Some(SmallFloat::F16);
    let ((wanted, _), (got, logits)) = (gradient(None, 1.0), gradient(half, 1024.0));
    let norm = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    let error: Vec<f32> = got.iter().zip(&wanted).map(|(got, wanted)| got - wanted).collect();
    let relative = norm(&error) / norm(&wanted);
    assert!(relative > 0.0 && relative < 0.01, "relative error {relative}");
    let rounded = |value: &f32| SmallFloat::F16.round(*value) == *value;
    assert!(!logits.iter().all(rounded), "logits lost bits");
    assert!(gradient(half, 1e30).0.iter().any(|value| !value.is_finite()));
}

/// A weight that is stored in 16 bits has a gradient of 16 bits.
#[test]
fn only_gradients_of_convolutions_next_to_the_codes_stay_f32() {
    let dvae = Dvae::new(&config(), 0, exact()).stored(Some(SmallFloat::F16)).train();
    let x = map_pixels(tensor([1, 3, 8, 8], |i| (i % 7) as f32 / 7.0)).autodiff();
    let logits = dvae.encoder.forward(x.clone());
    let stats = dvae.decoder.forward(burn::tensor::activation::softmax(logits.clone(), 3));
    let loss = elbo(exact(), x, stats, logits, 1.0, -3.0).loss;
    let gradients = crate::nn::host_gradients(&dvae, (loss * 1024.0).backward());
    for (weight, gradient) in crate::nn::export(&dvae).iter().zip(gradients) {
        let small = gradient.iter().all(|&value| SmallFloat::F16.round(value) == value);
        let next_to_codes = ["encoder.output.weight", "decoder.input.weight"].contains(&&*weight.name);
        let matrix = weight.shape.len() == 4;
        assert!(!matrix || small != next_to_codes, "{}: in 16 bits: {small}", weight.name);
    }
}

#[test]
fn phi_and_its_inverse() {
    let x = tensor([256], |i| i as f32 / 255.0);
    let mapped = map_pixels(x.clone());
    assert!(floats(mapped.clone()).iter().all(|v| (0.0999..=0.9001).contains(v)));
    for (a, b) in floats(unmap_pixels(mapped)).iter().zip(floats(x)) {
        assert!((a - b).abs() < 1e-6);
    }
    assert_eq!(floats(unmap_pixels(tensor([2], |i| i as f32))), [0.0, 1.0]); // clamped
}

#[test]
fn the_logit_laplace_density_integrates_to_one() {
    let n = 200_000;
    for (mu, log_b) in [(0.0, 0.0), (1.0, -1.0), (-2.0, 0.5)] {
        let x = tensor([1, 1, 1, n], |i| (i as f32 + 0.5) / n as f32).repeat_dim(1, 3);
        let stats = tensor([1, 6, 1, 1], |i| if i < 3 { mu } else { log_b }).expand([1, 6, 1, n]);
        let density = (-logit_laplace_nll(x, stats, -3.0)).exp().narrow(1, 0, 1);
        let integral = f64::from(floats(density).iter().sum::<f32>()) / n as f64;
        assert!((integral - 1.0).abs() < 1e-3, "μ {mu}, ln b {log_b}: {integral}");
    }
}

#[test]
fn the_two_forms_of_the_loss_agree() {
    let x = map_pixels(tensor([2, 3, 8, 8], |i| (i % 11) as f32 / 11.0));
    let stats = tensor([2, 6, 8, 8], |i| (i as f32).sin());
    let logits = tensor([2, 4, 4, 6], |i| (i as f32).cos());
    let beta = 1.7;
    let elbo = elbo(exact(), x.clone(), stats.clone(), logits.clone(), beta, -3.0);
    let nll_sum: f32 = floats(logit_laplace_nll(x, stats, -3.0)).iter().sum();
    let kl_sum = floats(kl_to_uniform(exact(), logits))[0] * (2 * 4 * 4) as f32;
    let sum_form = (nll_sum + beta as f32 * kl_sum) / (2 * 3 * 8 * 8) as f32;
    assert!((floats(elbo.loss)[0] - sum_form).abs() < 1e-4);
}

#[test]
fn kl_is_zero_for_uniform_and_ln_v_for_one_hot_posteriors() {
    assert!(floats(kl_to_uniform(exact(), tensor([1, 2, 2, 6], |_| 0.3)))[0].abs() < 1e-6);
    let sure = tensor([1, 2, 2, 6], |i| if i % 6 == 0 { 60.0 } else { 0.0 });
    assert!((floats(kl_to_uniform(exact(), sure))[0] - 6_f32.ln()).abs() < 1e-4);
}

#[test]
fn a_low_temperature_makes_the_relaxed_code_one_hot() {
    let logits = tensor([1, 2, 2, 6], |i| (i as f32).sin());
    let hard =
        gumbel_softmax(exact(), logits.clone(), tensor([1, 2, 2, 6], |i| (i as f32 * 1.3).cos()), 1e-3);
    let columns = floats(hard.clone().max_dim(3));
    assert!(columns.iter().all(|&top| top > 0.999));
    assert!(floats(hard.sum_dim(3)).iter().all(|sum| (sum - 1.0).abs() < 1e-5));
}

#[test]
fn the_loss_gradient_matches_finite_differences() {
    let loss = |dvae: &Dvae| {
        let x = map_pixels(tensor([2, 3, 8, 8], |i| ((i * 37) % 101) as f32 / 101.0));
        let logits = dvae.encoder.forward(x.clone());
        let codes = gumbel_softmax(exact(), logits.clone(), tensor([2, 4, 4, 6], |i| (i as f32).sin()), 0.7);
        elbo(exact(), x, dvae.decoder.forward(codes), logits, 2.0, -3.0).loss
    };
    // `stirred`: with zero biases, inactive units would be exactly at the kink of their ReLU. The
    // loss has other kinks (max-pool, |·|), so the step is small, and the tolerance allows for the
    // rounding of f32 sums.
    let model = stirred(Dvae::new(&config(), 3, exact()), 0.1);
    check(model, loss, 5e-4, Tolerance { absolute: 1e-3, relative: 0.05 });
}
