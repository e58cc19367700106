//! Compares models on a GPU, or on a software driver for GPUs, with the same models on the CPU.
//! Without an adapter the tests are skipped, and say so.
#![cfg(any(feature = "vulkan", feature = "metal", feature = "webgpu"))]
#![allow(clippy::unwrap_used)]

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, TensorData};
use tessera_kernels::decode::Weights;
use tessera_kernels::{Cpu, SmallFloat};
use tessera_model::nn::{Compute, GradientSums};
use tessera_model::prior::{
    Activations, ChainOptions, Layout, Logits, MixedPrecision, Prior, PriorConfig, Stream, Wrap,
};
use tessera_model::weights::ModelFile;
use tessera_model::{DeviceChoice, Event, Request, Sampling, Tessera};

/// The first adapter, if there is one.
fn gpu() -> Option<DeviceChoice> {
    let choice = DeviceChoice::Gpu(0);
    match choice.open() {
        Ok(_) => Some(choice),
        Err(error) => {
            eprintln!("no GPU and no software driver, so this test on a device is SKIPPED: {error}");
            None
        }
    }
}

fn exact() -> Cpu {
    Cpu::best().in_f32()
}

/// Draws with guidance, always the most probable token. The second row of cells is given.
fn tokens(file: &ModelFile, compute: Compute) -> Vec<Vec<u32>> {
    let tessera = Tessera::with_weights(file, compute, Weights::Full).unwrap();
    let sampling = Sampling { temperature: 0.0, ..tessera.sampling() };
    let given = (0..144).map(|at| (12..24).contains(&at).then_some(at as u32)).collect();
    let request = Request { n: 2, best: None, sampling, given, ..tessera.request("a red apple") };
    let picture = |event| match event {
        Ok(Event::Picture(picture)) => Some(picture.tokens),
        Ok(_) => None,
        Err(error) => panic!("{error}"),
    };
    tessera.draw(request).unwrap().filter_map(picture).collect()
}

#[test]
fn drawing_on_a_device_equals_the_cpus() {
    let Some(gpu) = gpu() else { return };
    let file = ModelFile::from_bytes(tessera_pretrained::MODEL).unwrap();
    let device = Compute { device: gpu.open().unwrap(), cpu: exact() };
    let (found, expected) = (tokens(&file, device), tokens(&file, exact().into()));
    assert_eq!(found, expected);
    assert_eq!(expected[0][12..24], (12..24).collect::<Vec<u32>>());
}

/// Adds numbers of up to 0.2 to all weights. In a new prior the heads are zero, so that no gradient
/// enters the resblocks.
struct Stir {
    seed: usize,
}

impl ModuleMapper for Stir {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.seed += 1;
        let n = param.shape().num_elements();
        let noise = (0..n).map(|i| ((i * 7919 + self.seed * 104_729) % 2003) as f32 / 5007.5 - 0.2);
        let noise = TensorData::new(noise.collect::<Vec<f32>>(), param.shape());
        param.map(|values| {
            let device = values.device();
            values + Tensor::from_data(noise, &device)
        })
    }
}

#[test]
fn f16_gradients_on_a_device_match_those_in_f32() {
    let Some(gpu) = gpu() else { return };
    if !gpu.has_f16().unwrap() {
        eprintln!("the adapter does not compute with f16, so this test on a device is SKIPPED");
        return;
    }
    let config = PriorConfig {
        text_len: 6,
        text_vocab: 20,
        grid: 4,
        image_vocab: 30,
        d_model: 32,
        n_layers: 4,
        n_heads: 2,
        conv_kernel: 3,
        conv_wrap: Wrap::Flat,
        logits: Logits::F32,
        layout: Layout::default(),
    };
    let ids = |n: u32, vocab: u32| (0..2 * n).map(|i| i * 7 % vocab).collect();
    let stream = Stream::new(2, ids(6, 20), ids(16, 30), &config).unwrap();
    let gradients = |compute: &Compute, mixed: Option<MixedPrecision>| {
        let prior = Prior::new(&config, 1, compute).map(&mut Stir { seed: 0 });
        let mut sums = GradientSums::new(compute.cpu);
        let options = ChainOptions { activations: Activations::Keep, mixed };
        let found = prior.backward(&stream, &prior.blocks(), &mut sums, options).unwrap();
        (found.overflowed, sums.to_host(&prior).concat())
    };
    let (_, expected) = gradients(&exact().into(), None);
    let f16 = gpu.compute(exact(), tessera_model::device::DeviceDtype::F16).unwrap();
    let with_scale = |scale: f32| {
        let mixed = MixedPrecision { storage: Some(SmallFloat::F16), scales: &[scale; 8] };
        gradients(&f16, Some(mixed))
    };
    let (overflowed, found) = with_scale(1024.0);
    assert!(overflowed.is_empty(), "{overflowed:?}");
    let rms =
        |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let error =
        rms(&mut found.iter().zip(&expected).map(|(a, b)| a - b)) / rms(&mut expected.iter().copied());
    // f16 has 11 significant bits.
    assert!((1e-6..5e-3).contains(&error), "a relative error of {error}");
    // The numbers are really of 16 bits: a large scale overflows in every resblock.
    let (mut overflowed, _) = with_scale(2.0_f32.powi(40));
    overflowed.sort_unstable();
    overflowed.dedup();
    assert_eq!(overflowed, (0..8).collect::<Vec<_>>());
}
