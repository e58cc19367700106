//! Compares every operation on a GPU, or on a software driver for GPUs, with its reference on the
//! CPU, forward and gradient. Without an adapter the tests are skipped, and say so.
#![cfg(any(feature = "vulkan", feature = "metal", feature = "webgpu"))]

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use burn::tensor::{Device, Tensor, TensorData};
use tessera_kernels::{
    Activation, AdamWStep, AttentionPlan, Cpu, GumbelNoise, OutputDtype, PreActivation, adamw_,
    adamw_reference, all_finite, conv2d, conv2d_add, conv2d_reference, cross_entropy,
    cross_entropy_reference, divide_, dot, dot_reference, ema_, ema_reference, gumbel_softmax_drawn,
    gumbel_softmax_drawn_reference, kl_to_uniform, kl_to_uniform_reference, layer_norm, layer_norm_reference,
    linear, linear_add, linear_reference, max_pool2, max_pool2_reference, pattern_attention,
    pattern_attention_reference, sum_of_squares, upsample2, upsample2_reference,
};

/// The largest difference from the CPU, relative to the largest value.
const TOLERANCE: f32 = 2e-4;

static DEVICE: LazyLock<Option<Device>> = LazyLock::new(|| match Device::wgpu_options().init() {
    Ok(device) => Some(device),
    Err(error) => {
        eprintln!("no GPU and no software driver, so the tests on a device are SKIPPED: {error}");
        None
    }
});

/// Waits until no other test uses the device. The tests share its memory, which one of them measures.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Products of f32 on the device.
fn exact() -> Cpu {
    Cpu::best().in_f32()
}

fn values(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
}

fn leaf<const D: usize>(shape: [usize; D], seed: usize, device: &Device) -> Tensor<D> {
    let data = TensorData::new(values(shape.iter().product(), seed), shape);
    Tensor::from_data(data, device).autodiff().require_grad()
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.without_autodiff().into_data().iter().collect()
}

fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-3_f32, |most, value| most.max(value.abs()));
    let off = found.iter().zip(expected).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(off <= TOLERANCE * largest, "{what}: off by {off}, and the largest value is {largest}");
}

/// Compares an operation of one tensor on the device with its reference on the CPU: the output, and
/// the gradient for an upstream gradient that is not uniform.
fn compare<const D: usize, const E: usize>(
    what: &str,
    shape: [usize; D],
    operation: impl Fn(Tensor<D>) -> Tensor<E>,
    reference: impl Fn(Tensor<D>) -> Tensor<E>,
) {
    let Some(device) = &*DEVICE else { return };
    let run = |device: &Device, f: &dyn Fn(Tensor<D>) -> Tensor<E>| {
        let x = leaf(shape, 1, device);
        let y = f(x.clone());
        let upstream =
            Tensor::<E>::from_data(TensorData::new(values(y.shape().num_elements(), 9), y.shape()), device);
        let mut gradients = (y.clone() * upstream.autodiff()).sum().backward();
        (host(y), host(x.grad_remove(&mut gradients).expect("x has a gradient")))
    };
    let (found, expected) = (run(device, &operation), run(&Device::flex(), &reference));
    assert_close(&format!("{what}, output"), &found.0, &expected.0);
    assert_close(&format!("{what}, gradient"), &found.1, &expected.1);
}

/// A constant on the device of `x`.
fn constant<const D: usize, const E: usize>(x: &Tensor<E>, shape: [usize; D], seed: usize) -> Tensor<D> {
    let data = TensorData::new(values(shape.iter().product(), seed), shape);
    Tensor::from_data(data, &x.device().without_autodiff()).autodiff()
}

#[test]
fn linear_maps_and_norms_on_a_device_match_the_cpu() {
    let _turn = turn();
    for activation in [Activation::None, Activation::Gelu] {
        let parts = |x: &Tensor<3>| (constant(x, [24, 40], 2), constant(x, [40], 3));
        compare(
            "linear",
            [2, 9, 24],
            |x| {
                let (w, b) = parts(&x);
                linear(exact(), x, w, b, activation)
            },
            |x| {
                let (w, b) = parts(&x);
                linear_reference(x, w, b, activation)
            },
        );
    }
    compare(
        "linear with residual",
        [2, 9, 24],
        |x| linear_add(exact(), x.clone(), constant(&x, [24, 24], 2), constant(&x, [24], 3), x),
        |x| {
            x.clone()
                + linear_reference(
                    x.clone(),
                    constant(&x, [24, 24], 2),
                    constant(&x, [24], 3),
                    Activation::None,
                )
        },
    );
    compare(
        "layer norm",
        [3, 5, 48],
        |x| layer_norm(exact(), x.clone(), constant(&x, [48], 2), constant(&x, [48], 3), 1e-5),
        |x| layer_norm_reference(x.clone(), constant(&x, [48], 2), constant(&x, [48], 3), 1e-5),
    );
    compare(
        "dot",
        [4, 6, 5],
        |x| dot(exact(), x.clone(), constant(&x, [4, 6, 5], 4).without_autodiff()),
        |x| dot_reference(x.clone(), constant(&x, [4, 6, 5], 4).without_autodiff()),
    );
}

/// Text positions and an image grid, as in the prior.
const TEXT: usize = 7;
const GRID: usize = 6;

fn plan(sees: impl Fn(usize, usize) -> bool, by_column: bool) -> Arc<AttentionPlan> {
    let cell = |place: usize| match by_column {
        true => place % GRID * GRID + place / GRID,
        false => place,
    };
    let order = (0..TEXT).chain((0..GRID * GRID).map(|place| TEXT + cell(place))).collect();
    let attends =
        move |query: usize, key: usize| key <= query && (key < TEXT || sees(query - TEXT, key - TEXT));
    Arc::new(AttentionPlan::new(order, attends))
}

#[test]
fn sparse_attention_on_a_device_matches_the_dense_mask() {
    let _turn = turn();
    let plans = [
        ("causal", plan(|_, _| true, false)),
        ("row", plan(|query, key| query - key <= GRID, false)),
        ("column", plan(|query, key| (query - key).is_multiple_of(GRID), true)),
        (
            "convolution",
            plan(|query, key| (0..=1).any(|rows| (query - key).abs_diff(rows * GRID) <= 1), false),
        ),
    ];
    for (name, plan) in plans {
        compare(
            name,
            [2, TEXT + GRID * GRID, 3 * 2 * 8],
            |x| pattern_attention(exact(), x, 2, &plan),
            |x| pattern_attention_reference(x, 2, &plan),
        );
    }
}

/// The bytes that the graph of a row layer of `len` positions keeps on the device for the backward
/// pass.
fn bytes_of_row_attention(device: &Device, len: usize) -> f64 {
    const ROW: usize = 32;
    let attends = |query: usize, key: usize| key <= query && query - key <= ROW;
    let plan = Arc::new(AttentionPlan::new((0..len).collect(), attends));
    let used = || {
        device.sync().expect("the device works");
        device.memory_pool_usage().expect("it reports its memory").bytes_in_use as f64
    };
    let qkv = leaf([1, len, 3 * 16], 1, device);
    pattern_attention(exact(), qkv.clone(), 2, &plan).into_data(); // uploads the masks
    let before = used();
    let attended = pattern_attention(exact(), qkv, 2, &plan);
    let bytes = used() - before;
    drop(attended);
    bytes
}

#[test]
fn memory_of_a_row_layer_on_a_device_grows_linearly() {
    let _turn = turn();
    let Some(device) = &*DEVICE else { return };
    let bytes = [512, 1024, 2048].map(|len| bytes_of_row_attention(device, len));
    eprintln!("a row layer of 512, 1,024 and 2,048 positions keeps {bytes:?} bytes");
    assert!(bytes[0] > 0.0);
    for pair in bytes.windows(2) {
        assert!(pair[1] < 2.2 * pair[0], "{bytes:?}");
    }
}

#[test]
fn convolutions_and_pooling_on_a_device_match_the_cpu() {
    let _turn = turn();
    for (side, first) in [(1, PreActivation::Nothing), (3, PreActivation::Relu)] {
        let parts = |x: &Tensor<4>| (constant(x, [6, 5, side, side], 2), constant(x, [6], 3));
        compare(
            "convolution",
            [2, 8, 6, 5],
            |x| {
                let (w, b) = parts(&x);
                conv2d(exact(), x, w, b, first, OutputDtype::F32)
            },
            |x| {
                let (w, b) = parts(&x);
                conv2d_reference(x, w, b, first)
            },
        );
    }
    let parts = |x: &Tensor<4>| (constant(x, [5, 5, 3, 3], 2), constant(x, [5], 3));
    compare(
        "convolution with residual",
        [2, 8, 6, 5],
        |x| {
            let (w, b) = parts(&x);
            conv2d_add(exact(), x.clone(), w, b, x, 0.5)
        },
        |x| {
            let (w, b) = parts(&x);
            x.clone() + conv2d_reference(x, w, b, PreActivation::Relu) * 0.5
        },
    );
    compare("pooling", [2, 8, 6, 5], |x| max_pool2(exact(), x), max_pool2_reference);
    compare("upsampling", [2, 4, 3, 5], |x| upsample2(exact(), x), upsample2_reference);
}

#[test]
fn noise_and_codes_on_a_device_match_the_cpu() {
    let _turn = turn();
    let noise = GumbelNoise { seed: 0x0123_4567_89ab_cdef, step: 1 << 40, first_row: 9 };
    compare(
        "Gumbel softmax with drawn noise",
        [2, 9, 70],
        |x| gumbel_softmax_drawn(exact(), x, noise, 0.7),
        |x| gumbel_softmax_drawn_reference(exact(), x, noise, 0.7),
    );
    compare(
        "KL to uniform",
        [2, 9, 70],
        |x| kl_to_uniform(exact(), x * 3.0),
        |x| kl_to_uniform_reference(x * 3.0),
    );
    let targets: Vec<u32> = (0..11).map(|i| i * 5 % 23).collect();
    compare(
        "cross-entropy",
        [11, 16],
        |x| cross_entropy(exact(), x.clone(), constant(&x, [16, 23], 2), constant(&x, [23], 3), &targets),
        |x| cross_entropy_reference(x.clone(), constant(&x, [16, 23], 2), constant(&x, [23], 3), &targets),
    );
}

#[test]
fn updates_on_a_device_match_the_cpu() {
    let _turn = turn();
    let Some(device) = &*DEVICE else { return };
    let flat =
        |seed, device: &Device| Tensor::<1>::from_data(TensorData::new(values(5000, seed), [5000]), device);
    let adam = AdamWStep {
        gradient_scale: 0.5,
        beta1: 0.9,
        beta2: 0.96,
        step: 0.1,
        inverse_variance: 3.0,
        shrink: 0.99,
        epsilon: 1e-8,
        variance_clip: 0.5,
    };
    let state = |device: &Device| [flat(1, device), flat(2, device), flat(3, device).abs() + 0.1];
    let found = adamw_(exact(), &adam, state(device), &flat(4, device));
    let expected = adamw_reference(&adam, state(&Device::flex()), &flat(4, &Device::flex()));
    for (found, expected) in found.into_iter().zip(expected) {
        assert_close("AdamW", &host(found), &host(expected));
    }
    let moved = ema_(exact(), flat(1, device), &flat(2, device), 0.3);
    let expected = ema_reference(flat(1, &Device::flex()), &flat(2, &Device::flex()), 0.3);
    assert_close("average", &host(moved), &host(expected));
    assert_close(
        "quotient",
        &host(divide_(exact(), flat(1, device), 4.0)),
        &host(flat(1, &Device::flex()) / 4.0),
    );
    let squares = |device: &Device| sum_of_squares(exact(), [&flat(1, device), &flat(2, device)]);
    assert!((squares(device) / squares(&Device::flex()) - 1.0).abs() < 1e-4);
    assert!(all_finite(exact(), &flat(1, device)));
    assert!(!all_finite(exact(), &(flat(1, device) / 0.0)));
}
