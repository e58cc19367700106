//! Benchmarks of all kernels, forward and with gradients, at the shapes of a small transformer and
//! a small dVAE: `cargo bench -p tessera-kernels`.
//!
//! The rate of a kernel is its arithmetic in GFLOP/s or, if memory bandwidth limits it, the bytes
//! that it must read and write in GB/s. It is also shown as a percentage of a limit measured just
//! before: the CPU's peak, or the bandwidth of arrays that are too large for a cache. More than
//! 100% means that a cache holds some of the bytes, or that integers are multiplied.

#![allow(missing_docs)] // criterion's macros make public items

use std::cell::Cell;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor, TensorData};
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rayon::prelude::*;
use tessera_kernels::decode::{Epilogue, KvCache, PackedLinear, Sequence, Visible, Weights, attend};
use tessera_kernels::{
    Activation, AdamWStep, AttentionPlan, Cpu, GumbelNoise, OutputDtype, PreActivation, Precision, adamw_,
    conv2d, conv2d_add, cross_entropy, dot, ema_, gumbel_softmax, gumbel_softmax_drawn, kl_to_uniform,
    layer_norm, linear, linear_add, linear_f32, max_pool2, pattern_attention, peak_gflops, sum_of_squares,
    upsample2,
};

/// Text positions.
const TEXT: usize = 64;
/// The side of the grid of image tokens.
const GRID: usize = 16;
/// Positions of a sequence.
const T: usize = TEXT + GRID * GRID;
/// Sequences.
const B: usize = 8;
/// Rows of all sequences.
const ROWS: usize = B * T;
/// The model's width.
const D: usize = 384;
/// Attention heads.
const HEADS: usize = 6;
/// The size of the vocabulary.
const V: usize = 4096;

/// The work of one call.
#[derive(Clone, Copy)]
enum Work {
    /// Multiplications and additions.
    Flop(usize),
    /// Bytes read and written.
    Bytes(usize),
}

impl Work {
    /// Returns the work that `cpu` can do per nanosecond.
    fn limit(self, cpu: Cpu) -> f64 {
        match self {
            Work::Flop(_) => peak_gflops(cpu),
            Work::Bytes(_) => bandwidth(),
        }
    }

    fn throughput(self) -> Throughput {
        match self {
            Work::Flop(n) => Throughput::Elements(n as u64),
            Work::Bytes(n) => Throughput::BytesDecimal(n as u64),
        }
    }
}

/// Returns the bandwidth in GB/s: 10⁹ bytes per second that all threads read and write in `a += b`,
/// the best of five measurements.
fn bandwidth() -> f64 {
    const N: usize = 1 << 24;
    const PART: usize = 1 << 14;
    let [mut a, b] = [0.0_f32, 1.0].map(|value| vec![value; N]);
    let mut seconds = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        let parts = a.par_chunks_mut(PART).zip(b.par_chunks(PART));
        parts.for_each(|(a, b)| a.iter_mut().zip(b).for_each(|(a, b)| *a += b));
        black_box(&mut a);
        seconds = seconds.min(start.elapsed().as_secs_f64());
    }
    (3 * size_of::<f32>() * N) as f64 / seconds / 1e9
}

thread_local! {
    /// The [`Work::limit`] of the benchmark that is running.
    static LIMIT: Cell<f64> = const { Cell::new(f64::NAN) };
}

/// Wall time, with rates next to their limit.
struct Rates;

impl Measurement for Rates {
    type Intermediate = Instant;
    type Value = Duration;

    fn start(&self) -> Instant {
        WallTime.start()
    }

    fn end(&self, start: Instant) -> Duration {
        WallTime.end(start)
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        self
    }
}

impl ValueFormatter for Rates {
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_values(typical, values)
    }

    fn scale_throughputs(&self, _: f64, work: &Throughput, values: &mut [f64]) -> &'static str {
        let (n, unit) = match *work {
            Throughput::Elements(n) => (n, "GFLOP/s"),
            Throughput::BytesDecimal(n) => (n, "GB/s"),
            _ => unreachable!("works are counted in operations or bytes"),
        };
        values.iter_mut().for_each(|nanoseconds| *nanoseconds = n as f64 / *nanoseconds);
        unit
    }

    fn scale_for_machines(&self, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_for_machines(values)
    }

    fn format_throughput(&self, work: &Throughput, nanoseconds: f64) -> String {
        let mut rate = [nanoseconds];
        let unit = self.scale_throughputs(nanoseconds, work, &mut rate);
        format!("{:.1} {unit} ({:.0}%)", rate[0], 100.0 * rate[0] / LIMIT.get())
    }
}

fn time<T>(
    c: &mut Criterion<Rates>,
    cpu: Cpu,
    [group, name]: [&str; 2],
    work: Work,
    mut body: impl FnMut(Cpu) -> T,
) {
    LIMIT.set(work.limit(cpu));
    let mut group = c.benchmark_group(group);
    group.sample_size(20).throughput(work.throughput());
    group.bench_function(name, |b| b.iter(|| body(cpu)));
    group.finish();
}

/// Times a kernel forward, and with its gradients for a given gradient of the output. The dot
/// product that starts the backward pass takes time but is not counted as work.
fn both<const N: usize>(
    c: &mut Criterion<Rates>,
    cpu: Cpu,
    name: &str,
    [forward, all]: [Work; 2],
    body: impl Fn(Cpu) -> Tensor<N>,
) {
    time(c, cpu, [name, "forward"], forward, &body);
    let output_gradient = body(cpu).without_autodiff();
    time(c, cpu, [name, "with gradients"], all, |cpu| {
        dot(cpu, body(cpu), output_gradient.clone()).backward()
    });
}

/// Times a kernel that is limited by arithmetic, at each precision. Its gradients are twice the
/// work of the forward pass.
fn product<const N: usize>(
    c: &mut Criterion<Rates>,
    name: &str,
    flop: usize,
    body: impl Fn(Cpu) -> Tensor<N>,
) {
    for cpu in kinds() {
        both(c, cpu, &format!("{name}, {cpu}"), [Work::Flop(flop), Work::Flop(3 * flop)], &body);
    }
}

/// Times a kernel that is limited by memory bandwidth. `bytes` are for forward, and with gradients.
fn stream<const N: usize>(
    c: &mut Criterion<Rates>,
    name: &str,
    bytes: [usize; 2],
    body: impl Fn(Cpu) -> Tensor<N>,
) {
    both(c, Cpu::best(), name, bytes.map(Work::Bytes), body);
}

/// Times one pass over arrays.
fn pass<T>(c: &mut Criterion<Rates>, name: &str, bytes: usize, body: impl FnMut(Cpu) -> T) {
    time(c, Cpu::best(), [name, "pass"], Work::Bytes(bytes), body);
}

/// Returns the best choice of this CPU at each precision.
fn kinds() -> Vec<Cpu> {
    let kind = |precision| Cpu::new(precision).expect("every processor has both");
    let mut kinds = [Precision::F32, Precision::Auto].map(kind).to_vec();
    kinds.dedup();
    kinds
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 7919 % 1013) as f32 / 1013.0 - 0.5).collect()
}

fn leaf<const N: usize>(shape: [usize; N]) -> Tensor<N> {
    let values = TensorData::new(values(shape.iter().product()), shape);
    Tensor::from_data(values, &Device::flex().autodiff()).require_grad()
}

fn limits(_: &mut Criterion<Rates>) {
    for cpu in Cpu::all() {
        println!("measured peak, {cpu}: {:.0} GFLOP/s", peak_gflops(cpu));
    }
    println!("measured bandwidth: {:.1} GB/s", bandwidth());
}

fn transformer(c: &mut Criterion<Rates>) {
    let (x, b, wide) = (leaf([ROWS, D]), leaf([D]), leaf([4 * D]));
    let (up, down, inner) = (leaf([D, 4 * D]), leaf([4 * D, D]), leaf([ROWS, 4 * D]));
    let mlp = 2 * ROWS * D * 4 * D;
    product(c, "linear", mlp, |cpu| linear(cpu, x.clone(), up.clone(), wide.clone(), Activation::None));
    product(c, "linear + GELU", mlp, |cpu| {
        linear(cpu, x.clone(), up.clone(), wide.clone(), Activation::Gelu)
    });
    product(c, "linear + residual", mlp, |cpu| {
        linear_add(cpu, inner.clone(), down.clone(), b.clone(), x.clone())
    });
    let (head, bias) = (leaf([D, V]), leaf([V]));
    let logits = 2 * ROWS * D * V;
    product(c, "linear in f32", logits, |cpu| linear_f32(cpu, x.clone(), head.clone(), bias.clone()));
    let targets: Vec<u32> = (0..ROWS).map(|row| (row * 7919 % V) as u32).collect();
    let plain = [&x, &head].map(|tensor| tensor.clone().without_autodiff());
    let plain_bias = bias.clone().without_autodiff();
    for cpu in kinds() {
        let name = format!("cross-entropy, {cpu}");
        // If the inputs are leaves, the forward pass also computes their gradients.
        time(c, cpu, [&name, "forward"], Work::Flop(logits), |cpu| {
            cross_entropy(cpu, plain[0].clone(), plain[1].clone(), plain_bias.clone(), &targets)
        });
        time(c, cpu, [&name, "with gradients"], Work::Flop(3 * logits), |cpu| {
            cross_entropy(cpu, x.clone(), head.clone(), bias.clone(), &targets).backward()
        });
    }
    for cpu in kinds() {
        let out = if cpu.bf16() { 2 } else { 4 };
        let bytes = [4 + out, (4 + out) + (4 + out + 4)].map(|bytes| Work::Bytes(ROWS * D * bytes));
        both(c, cpu, &format!("layer norm, {cpu}"), bytes, |cpu| {
            layer_norm(cpu, x.clone(), b.clone(), b.clone(), 1e-5)
        });
    }
    let output_gradient = leaf([ROWS, 4 * D]);
    pass(c, "dot", 2 * 4 * ROWS * 4 * D, |cpu| dot(cpu, inner.clone(), output_gradient.clone()));
}

/// An attention pattern among the cells of the grid (paper §B.1).
struct Pattern {
    name: &'static str,
    /// Whether a cell attends to the cell this many positions before it.
    attends: fn(usize) -> bool,
    /// The cell at each place of the working order.
    cell: fn(usize) -> usize,
}

const PATTERNS: [Pattern; 4] = [
    Pattern { name: "causal", attends: |_| true, cell: |place| place },
    Pattern { name: "row", attends: |back| back <= GRID, cell: |place| place },
    Pattern {
        name: "column",
        attends: |back| back.is_multiple_of(GRID),
        cell: |place| place % GRID * GRID + place / GRID,
    },
    Pattern {
        name: "convolutional",
        attends: |back| (0..=3).any(|rows| back.abs_diff(rows * GRID) <= 3), // 7 × 7
        cell: |place| place,
    },
];

/// Counts the arithmetic of visible pairs only.
fn attention(c: &mut Criterion<Rates>) {
    let qkv = leaf([B, T, 3 * D]);
    for Pattern { name, attends, cell } in PATTERNS {
        let attends = |query: usize, key: usize| key <= query && (key < TEXT || attends(query - key));
        let pairs = (0..T).map(|query| (0..T).filter(|&key| attends(query, key)).count()).sum::<usize>();
        let order = (0..TEXT).chain((0..GRID * GRID).map(|place| TEXT + cell(place))).collect();
        let plan = Arc::new(AttentionPlan::new(order, attends));
        let flop = 2 * 2 * B * pairs * D;
        product(c, &format!("{name} attention"), flop, |cpu| {
            pattern_attention(cpu, qkv.clone(), HEADS, &plan)
        });
    }
}

fn dvae(c: &mut Criterion<Rates>) {
    const CHANNELS: usize = 128;
    const PIXELS: usize = 8 * 32 * 32;
    const N: usize = PIXELS * CHANNELS;
    let (pictures, b) = (leaf([8, 32, 32, CHANNELS]), leaf([CHANNELS]));
    let filters = |k: usize| leaf([CHANNELS, CHANNELS, k, k]);
    let flop = |k: usize| 2 * k * k * N * CHANNELS;
    for k in [1, 3, 7] {
        let w = filters(k);
        product(c, &format!("convolution {k}×{k}"), flop(k), |cpu| {
            conv2d(cpu, pictures.clone(), w.clone(), b.clone(), PreActivation::Relu, OutputDtype::F32)
        });
    }
    let (w, residual) = (filters(3), leaf([8, 32, 32, CHANNELS]));
    product(c, "convolution 3×3 + residual", flop(3), |cpu| {
        conv2d_add(cpu, pictures.clone(), w.clone(), b.clone(), residual.clone(), 0.3)
    });
    // Forward reads four values for each one that it writes. The gradient reads both sizes and
    // writes the large one.
    stream(c, "max-pool", [5 * N, 5 * N + 9 * N], |cpu| max_pool2(cpu, pictures.clone()));
    stream(c, "upsample", [20 * N, 2 * 20 * N], |cpu| upsample2(cpu, pictures.clone()));
}

fn codes(c: &mut Criterion<Rates>) {
    const ROWS: usize = 512;
    const N: usize = ROWS * V;
    let (logits, noise) = (leaf([ROWS, V]), leaf([ROWS, V]));
    stream(c, "Gumbel softmax", [12 * N, 2 * 12 * N], |cpu| {
        gumbel_softmax(cpu, logits.clone(), noise.clone(), 0.5)
    });
    stream(c, "KL to uniform", [4 * N, 4 * N + 8 * N], |cpu| kl_to_uniform(cpu, logits.clone()));
    let noise = GumbelNoise { seed: 1, step: 2, first_row: 0 };
    stream(c, "Gumbel softmax, drawn", [8 * N, 2 * 8 * N], |cpu| {
        gumbel_softmax_drawn(cpu, logits.clone(), noise, 0.5)
    });
}

fn optimizer(c: &mut Criterion<Rates>) {
    const N: usize = 1 << 24;
    let [w, g, m, v] = [1.0, 0.1, 0.0, 0.0].map(|value| Tensor::<1>::full([N], value, &Device::flex()));
    let (mut state, mut average) = (Some([w.clone(), m, v]), Some(w));
    let adam = AdamWStep {
        gradient_scale: 1.0,
        beta1: 0.9,
        beta2: 0.96,
        step: 1e-3,
        inverse_variance: 1.0,
        shrink: 1.0,
        epsilon: 1e-8,
        variance_clip: 5.0,
    };
    // Reads four arrays, writes three.
    pass(c, "AdamW", 7 * 4 * N, |cpu| state = state.take().map(|state| adamw_(cpu, &adam, state, &g)));
    pass(c, "sum of squares", 4 * N, |cpu| sum_of_squares(cpu, [&g]));
    pass(c, "moving average", 3 * 4 * N, |cpu| average = average.take().map(|w| ema_(cpu, w, &g, 1e-3)));
}

/// Times one token of each of several sequences: a linear map of their rows, and attention of one
/// query each over the cached keys and values.
fn decoding(c: &mut Criterion<Rates>) {
    const LANES: usize = 64;
    let (weight, x) = (values(D * 4 * D), values(LANES * D));
    for cpu in kinds() {
        let map = PackedLinear::new(cpu, &weight, values(4 * D), Weights::Int8);
        for rows in [1, 16, LANES] {
            let (name, work) = match rows {
                1 => ("1 row".into(), Work::Bytes(D * 4 * D)), // limited by reading the weights
                _ => (format!("{rows} rows"), Work::Flop(2 * rows * D * 4 * D)),
            };
            let (x, mut out) = (&x[..rows * D], vec![0.0; rows * 4 * D]);
            let group = format!("packed map in 8 bits, {cpu}");
            time(c, cpu, [&group, &name], work, |_| map.apply(x, Epilogue::Set, &mut out));
        }
        let [mut text, mut own] = [(1, TEXT), (LANES, GRID * GRID)]
            .map(|(sequences, cache_rows)| KvCache::new(cpu, sequences, [HEADS, D / HEADS], cache_rows));
        let qkv = values(LANES * 3 * D);
        (0..TEXT).for_each(|cache_row| text.put_rows(&[(0, cache_row)], &qkv[..3 * D]));
        let places = |cache_row: usize| (0..LANES).map(|sequence| (sequence, cache_row)).collect::<Vec<_>>();
        (0..GRID * GRID).for_each(|cache_row| own.put_rows(&places(cache_row), &qkv));
        let [text_visible, own_visible] = [TEXT, GRID * GRID].map(|cache_rows| Visible::new(0..cache_rows));
        let mut out = vec![0.0; LANES * D];
        // The text's keys and values stay in a CPU cache.
        let bytes = 2 * LANES * GRID * GRID * D * if cpu.bf16() { 2 } else { 4 };
        let sequences: Vec<Sequence> =
            (0..LANES).map(|own| Sequence { caption: 0, own, visible: &own_visible }).collect();
        let names = [&format!("attention of one query, {cpu}"), "64 sequences"];
        time(c, cpu, names, Work::Bytes(bytes), |_| {
            attend(&qkv, 3 * D, &sequences, (&text, &text_visible), &own, &mut out)
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(Rates);
    targets = limits, transformer, attention, dvae, codes, optimizer, decoding
}
criterion_main!(benches);
