//! Every kernel, forward and with its gradients, at the shapes of a small transformer and a small dVAE:
//! `cargo bench -p tessera-kernels`.
//!
//! Criterion's elements are floating-point operations, so `Gelem/s` is GFLOP/s, to be read beside the peak that is
//! printed first; for kernels that memory bounds they are bytes, so it prints GB/s.

#![allow(missing_docs)] // criterion's macros make public items

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tessera_kernels::{
    Activation, AdamW, Cpu, First, Output, Plan, Precision, conv2d, cross_entropy, gumbel_softmax,
    kl_to_uniform, layer_norm, linear, max_pool2, pattern_attention, peak_gflops, upsample2,
};

/// Rows: 8 streams of 320 positions.
const ROWS: usize = 2560;
/// Width.
const D: usize = 384;
/// Vocabulary.
const V: usize = 4096;

fn leaf<const N: usize>(shape: [usize; N]) -> Tensor<N> {
    let values = (0..shape.iter().product()).map(|i: usize| (i * 7919 % 1013) as f32 / 1013.0 - 0.5);
    let values = TensorData::new(values.collect::<Vec<f32>>(), shape);
    Tensor::from_data(values, &Device::flex().autodiff()).require_grad()
}

/// A kernel, forward alone and with its gradients, which are twice the work, on each kind of number.
fn kernel<const N: usize>(c: &mut Criterion, name: &str, work: Throughput, body: impl Fn() -> Tensor<N>) {
    let times = |n: u64| match work {
        Throughput::Elements(work) => Throughput::Elements(work * n),
        Throughput::Bytes(work) => Throughput::Bytes(work * n),
        _ => unreachable!("works are counted in operations or bytes"),
    };
    for precision in [Precision::F32, Precision::Auto] {
        let cpu = Cpu::new(precision).expect("both are on every processor");
        let mut group = c.benchmark_group(format!("{name}, {cpu}"));
        group.sample_size(20).throughput(times(1));
        group.bench_function("forward", |b| b.iter(|| cpu.scope(&body)));
        group.throughput(times(3));
        group.bench_function("with gradients", |b| b.iter(|| cpu.scope(|| body().sum().backward())));
        group.finish();
    }
}

fn peak(_: &mut Criterion) {
    for cpu in Cpu::all() {
        println!("measured peak, {cpu}: {:.0} GF/s", peak_gflops(cpu));
    }
}

fn product(m: usize, n: usize, k: usize) -> Throughput {
    Throughput::Elements(2 * (m * n * k) as u64)
}

/// One array of `values` f32 read, another written.
fn in_and_out(values: usize) -> Throughput {
    Throughput::Bytes(8 * values as u64)
}

fn transformer(c: &mut Criterion) {
    let (x, b, wide) = (leaf([ROWS, D]), leaf([D]), leaf([4 * D]));
    let w = leaf([D, 4 * D]);
    kernel(c, "linear", product(ROWS, 4 * D, D), || {
        linear(x.clone(), w.clone(), wide.clone(), Activation::None)
    });
    kernel(c, "linear + GELU", product(ROWS, 4 * D, D), || {
        linear(x.clone(), w.clone(), wide.clone(), Activation::Gelu)
    });
    kernel(c, "layer norm", in_and_out(ROWS * D), || layer_norm(x.clone(), b.clone(), b.clone(), 1e-5));
    let plan = Arc::new(Plan::new((0..320).collect(), |query, key| key <= query));
    let qkv = leaf([8, 320, 3 * D]);
    let pairs = 8 * 320 * 320 / 2;
    kernel(c, "causal attention", product(2, pairs, D), || pattern_attention(qkv.clone(), 6, &plan));
    let (head, bias) = (leaf([D, V]), leaf([V]));
    let targets: Vec<u32> = (0..ROWS).map(|row| (row * 7919 % V) as u32).collect();
    kernel(c, "cross-entropy", product(ROWS, V, D), || {
        cross_entropy(x.clone(), head.clone(), bias.clone(), &targets)
    });
}

fn dvae(c: &mut Criterion) {
    const CHANNELS: usize = 128;
    const PIXELS: usize = 8 * 32 * 32;
    let pictures = leaf([8, 32, 32, CHANNELS]);
    for k in [1, 3, 7] {
        let (w, b) = (leaf([CHANNELS, CHANNELS, k, k]), leaf([CHANNELS]));
        kernel(c, &format!("convolution {k}×{k}"), product(PIXELS, CHANNELS, k * k * CHANNELS), || {
            conv2d(pictures.clone(), w.clone(), b.clone(), First::Relu, Output::F32)
        });
    }
    kernel(c, "max-pool", Throughput::Bytes(5 * (PIXELS * CHANNELS) as u64), || max_pool2(pictures.clone()));
    kernel(c, "upsample", Throughput::Bytes(20 * (PIXELS * CHANNELS) as u64), || upsample2(pictures.clone()));
    let (logits, noise) = (leaf([PIXELS / 16, V]), leaf([PIXELS / 16, V]));
    kernel(c, "Gumbel softmax", Throughput::Bytes(12 * (PIXELS / 16 * V) as u64), || {
        gumbel_softmax(logits.clone(), noise.clone(), 0.5)
    });
    kernel(c, "KL to uniform", Throughput::Bytes(4 * (PIXELS / 16 * V) as u64), || {
        kl_to_uniform(logits.clone())
    });
}

fn optimiser(c: &mut Criterion) {
    const N: usize = 1 << 24;
    let [mut w, g, mut m, mut v] = [1.0, 0.1, 0.0, 0.0].map(|value| vec![value; N]);
    let adam = AdamW {
        gradient_scale: 1.0,
        beta1: 0.9,
        beta2: 0.96,
        step: 1e-3,
        inverse_variance: 1.0,
        shrink: 1.0,
        epsilon: 1e-8,
    };
    let mut group = c.benchmark_group("AdamW");
    group.throughput(Throughput::Bytes(7 * 4 * N as u64)); // four arrays read, three written
    group.bench_function("update", |b| b.iter(|| adam.update(&mut w, &g, &mut m, &mut v)));
    group.finish();
}

criterion_group!(benches, peak, transformer, dvae, optimiser);
criterion_main!(benches);
