//! Compares convolutions with their references: every filter size, odd channel counts, and sizes
//! that do not fill tiles.

use super::*;
use burn::tensor::DType;

use crate::testing::{assert_close, grad, hold_equal, leaf, values};

/// `[B, H, W, n_in, n_out, k]` of each case.
const SIZES: [[usize; 6]; 8] = [
    [1, 1, 1, 1, 1, 1],
    [1, 1, 1, 3, 2, 3],
    [2, 5, 7, 3, 5, 3],
    [3, 8, 8, 12, 48, 3],
    [2, 9, 6, 17, 50, 1],
    [1, 16, 16, 48, 13, 3],
    [2, 11, 13, 3, 16, 7],
    [1, 40, 24, 34, 33, 3],
];

#[test]
fn conv2d_matches_reference() {
    for [batch, height, width, n_in, n_out, k] in SIZES {
        for (first, output) in [
            (PreActivation::Relu, OutputDtype::Compute),
            (PreActivation::Nothing, OutputDtype::F32),
            (PreActivation::Relu, OutputDtype::F32Exact),
        ] {
            hold_equal(
                || (leaf([batch, height, width, n_in], 1), leaf([n_out, n_in, k, k], 2), leaf([n_out], 3)),
                |cpu, (x, w, b)| conv2d(cpu, x.clone(), w.clone(), b.clone(), first, output),
                |(x, w, b)| conv2d_reference(x.clone(), w.clone(), b.clone(), first),
                |(x, w, b), g| vec![grad(x, g), grad(w, g), grad(b, g)],
            );
        }
    }
}

#[test]
fn composed_convolutions_match_reference() {
    for [batch, height, width, n_in, n_out, k] in SIZES {
        let leaves =
            || (leaf([batch, height, width, n_in], 1), leaf([n_out, n_in, k, k], 2), leaf([n_out], 3));
        for (first, output, bits) in [
            (PreActivation::Relu, OutputDtype::Compute, 16),
            (PreActivation::Nothing, OutputDtype::F32, 32),
            (PreActivation::Relu, OutputDtype::F32Exact, 32),
        ] {
            hold_equal(
                leaves,
                |cpu, (x, w, b)| {
                    let y = conv2d_composed(cpu, x.clone(), w.clone(), b.clone(), first, output);
                    let narrow = cpu.elsewhere() == burn::tensor::FloatDType::BF16 && bits == 16;
                    assert_eq!(y.dtype(), if narrow { DType::BF16 } else { DType::F32 });
                    y
                },
                |(x, w, b)| conv2d_reference(x.clone(), w.clone(), b.clone(), first),
                |(x, w, b), g| vec![grad(x, g), grad(w, g), grad(b, g)],
            );
        }
        hold_equal(
            || (leaves(), leaf([batch, height, width, n_out], 4)),
            |cpu, ((x, w, b), r)| conv2d_add_composed(cpu, x.clone(), w.clone(), b.clone(), r.clone(), 0.3),
            |((x, w, b), r)| {
                r.clone() + conv2d_reference(x.clone(), w.clone(), b.clone(), PreActivation::Relu) * 0.3
            },
            |((x, w, b), r), g| vec![grad(x, g), grad(w, g), grad(b, g), grad(r, g)],
        );
    }
}

/// Bottleneck convolutions multiply f32 at any precision.
#[test]
fn composed_f32_exact_convolution_is_exact() {
    let (x, w, b) = (leaf([2, 5, 7, 3], 1), leaf([5, 3, 1, 1], 2), leaf([5], 3));
    for cpu in Cpu::all() {
        let got = conv2d_composed(
            cpu,
            x.clone(),
            w.clone(),
            b.clone(),
            PreActivation::Nothing,
            OutputDtype::F32Exact,
        );
        let expected = conv2d_reference(x.clone(), w.clone(), b.clone(), PreActivation::Nothing);
        assert_close("exact", &values(got), &values(expected), 2e-6);
    }
}

#[test]
fn conv2d_add_matches_reference() {
    for [batch, height, width, n_in, n_out, k] in SIZES {
        hold_equal(
            || {
                let residual = leaf([batch, height, width, n_out], 4);
                (
                    leaf([batch, height, width, n_in], 1),
                    leaf([n_out, n_in, k, k], 2),
                    leaf([n_out], 3),
                    residual,
                )
            },
            |cpu, (x, w, b, r)| conv2d_add(cpu, x.clone(), w.clone(), b.clone(), r.clone(), 0.3),
            |(x, w, b, r)| {
                r.clone() + conv2d_reference(x.clone(), w.clone(), b.clone(), PreActivation::Relu) * 0.3
            },
            |(x, w, b, r), g| vec![grad(x, g), grad(w, g), grad(b, g), grad(r, g)],
        );
    }
}

#[test]
fn conv2d_of_an_empty_batch_is_empty() {
    let cpu = Cpu::best();
    let y = conv2d(
        cpu,
        leaf([0, 4, 4, 3], 1),
        leaf([5, 3, 3, 3], 2),
        leaf([5], 3),
        PreActivation::Relu,
        OutputDtype::Compute,
    );
    assert_eq!(y.dims(), [0, 4, 4, 5]);
}

#[test]
#[should_panic(expected = "do not fit")]
fn conv2d_shape_mismatch_panics() {
    let cpu = Cpu::best();
    conv2d(
        cpu,
        leaf([1, 4, 4, 3], 1),
        leaf([5, 4, 3, 3], 2),
        leaf([5], 3),
        PreActivation::Relu,
        OutputDtype::Compute,
    );
}
