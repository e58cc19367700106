//! Compares ten training steps with PyTorch's, with the same initial weights, data and noise.
//!
//! `fixtures/golden/make.py` computed PyTorch's values.

use std::path::PathBuf;

use burn::tensor::{Tensor, TensorData};
use safetensors::SafeTensors;
use tessera_kernels::Cpu;
use tessera_model::DeviceChoice;
use tessera_model::dvae::{Dvae, DvaeConfig, elbo, gumbel_softmax, map_pixels};
use tessera_model::nn::{Compute, GradientSink, GradientSums, HostTensor, export, import};
use tessera_model::prior::{Activations, ChainOptions, Layout, Logits, Prior, PriorConfig, Stream, Wrap};

use crate::config::{Config, FitConfig};
use crate::gradient::{Loss, differentiate};
use crate::optim::Moments;
use crate::params::{ParamStore, Which};

/// The maximum differences from PyTorch: of the loss of each step, and of each final weight.
const LOSS: f64 = 1e-4;
const WEIGHT: f32 = 1e-3;

/// A file of PyTorch's values.
struct Golden(Vec<u8>);

impl Golden {
    fn read(name: &str) -> Golden {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/golden").join(name);
        Golden(std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    /// Returns the values of the tensor `name`, each decoded from four bytes.
    fn words<T>(&self, name: &str, decode: fn([u8; 4]) -> T) -> Vec<T> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let view = tensors.tensor(name).unwrap();
        view.data().as_chunks::<4>().0.iter().map(|bytes| decode(*bytes)).collect()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name, f32::from_le_bytes)
    }

    /// Returns the part of `values` that belongs to `step`.
    fn step<T: Clone>(&self, values: &[T], step: usize) -> Vec<T> {
        let row = values.len() / self.floats("losses").len();
        values[step * row..(step + 1) * row].to_vec()
    }

    /// Returns the weights `when.NAME`, in the order and with the shapes of `like`.
    fn weights(&self, when: &str, like: &[HostTensor]) -> Vec<HostTensor> {
        let golden = |weight: &HostTensor| HostTensor {
            values: self.floats(&format!("{when}.{}", weight.name)),
            ..weight.clone()
        };
        like.iter().map(golden).collect()
    }
}

/// Trains with `loss`, which passes the gradients of a step to a sink, and compares the losses and
/// the final weights with PyTorch's.
fn compare<M: burn::module::Module>(
    golden: &Golden,
    model: M,
    config: &FitConfig,
    loss: impl Fn(&M, usize, &mut dyn GradientSink) -> f64,
) {
    let model = import(model.clone(), &golden.weights("before", &export(&model))).unwrap();
    let mut params = ParamStore::new(&model, Moments::Full);
    for (step, expected) in golden.floats("losses").into_iter().enumerate() {
        let mut sums = GradientSums::new(exact());
        let found = loss(&params.load(model.clone(), Which::Value).unwrap(), step, &mut sums);
        assert!((found - f64::from(expected)).abs() < LOSS, "step {step}: loss {found}, wanted {expected}");
        params.adamw_(exact(), (&sums, 1.0), config, config.lr);
    }
    let weights = params.to_host(Which::Value);
    for (got, expected) in weights.iter().zip(golden.weights("after", &weights)) {
        let off = got.values.iter().zip(&expected.values).map(|(got, expected)| (got - expected).abs());
        let off = off.enumerate().filter(|(i, _)| !is_bias_of_keys(got, *i)).map(|(_, off)| off);
        let off = off.fold(0.0, f32::max);
        assert!(off < WEIGHT, "{}: off by {off}", got.name);
    }
}

/// Returns whether weight `i` is a bias of attention keys. Such a bias adds the same number to all
/// scores of a query, so that the softmax and the loss do not depend on it. Its gradient is only
/// rounding error, which Adam turns into steps of full size. These weights are not compared.
fn is_bias_of_keys(weight: &HostTensor, i: usize) -> bool {
    let third = weight.values.len() / 3;
    weight.name.ends_with("qkv.bias") && (third..2 * third).contains(&i)
}

fn settings(beta2: f64, weight_decay: f64, clip: f64, variance_clip: f64) -> FitConfig {
    let tiny = Config::resolve("tiny", &[]).unwrap().train_prior;
    FitConfig { lr: 1e-3, beta1: 0.9, beta2, weight_decay, clip, variance_clip, ..tiny }
}

fn exact() -> Cpu {
    Cpu::best().in_f32()
}

/// The processor and, in a build for GPUs, the first adapter.
fn devices() -> Vec<Compute> {
    let mut all = vec![Compute::from(exact())];
    match DeviceChoice::Gpu(0).open() {
        Ok(device) => all.push(Compute { device, cpu: exact() }),
        Err(error) => eprintln!("compared on the processor only: {error}"),
    }
    all
}

#[test]
fn ten_steps_of_a_prior_match_pytorch() {
    let golden = Golden::read("prior.safetensors");
    let config = PriorConfig {
        text_len: 5,
        text_vocab: 11,
        grid: 4,
        image_vocab: 13,
        d_model: 24,
        n_layers: 5,
        n_heads: 3,
        conv_kernel: 3,
        conv_wrap: Wrap::Flat,
        logits: Logits::Auto,
        layout: Layout::default(),
    };
    let ids = |name: &str| golden.words(name, u32::from_le_bytes);
    let (text, image) = (ids("text"), ids("image"));
    let loss = |prior: &Prior, step: usize, sink: &mut dyn GradientSink| {
        let stream = Stream::new(3, golden.step(&text, step), golden.step(&image, step), &config).unwrap();
        let options = ChainOptions { activations: Activations::Recompute, mixed: None };
        let found = prior.backward(&stream, &prior.blocks(), sink, options).unwrap();
        found.loss.loss.without_autodiff().into_scalar::<f64>()
    };
    for compute in devices() {
        let prior = Prior::new(&config, 0, &compute);
        compare(&golden, prior, &settings(0.96, 4.5e-2, 4.0, 5.0), loss);
    }
}

#[test]
fn ten_steps_of_a_dvae_match_pytorch() {
    let golden = Golden::read("dvae.safetensors");
    let config = DvaeConfig {
        image_size: 8,
        groups: 2,
        blocks_per_group: 1,
        n_hid: 8,
        n_init: 5,
        vocab: 7,
        min_log_b: -20.0,
    };
    let (pictures, noise) = (golden.floats("pictures"), golden.floats("gumbel"));
    let loss = |dvae: &Dvae, step: usize, sink: &mut dyn GradientSink| {
        let device = dvae.device();
        let tensor =
            |values, shape| -> Tensor<4> { Tensor::from_data(TensorData::new(values, shape), &device) };
        let x = map_pixels(tensor(golden.step(&pictures, step), [2, 3, 8, 8])).autodiff();
        let noise = tensor(golden.step(&noise, step), [2, 4, 4, 7]).autodiff();
        let sums = differentiate(dvae, None, sink, |dvae| {
            let logits = dvae.encoder.forward(x.clone());
            let stats = dvae.decoder.forward(gumbel_softmax(exact(), logits.clone(), noise, 0.7));
            Loss { total: elbo(exact(), x, stats, logits, 1.5, config.min_log_b).loss, figures: Vec::new() }
        });
        sums.unwrap().loss
    };
    for compute in devices() {
        let dvae = Dvae::new(&config, 0, &compute);
        compare(&golden, dvae, &settings(0.999, 1e-4, f64::INFINITY, f64::INFINITY), loss);
    }
}
