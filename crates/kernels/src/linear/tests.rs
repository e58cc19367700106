//! Tests of the linear map against its reference.

use burn::tensor::FloatDType;

use super::*;
use crate::testing::{grad, hold_equal, leaf};

#[test]
fn linear_at_awkward_sizes_matches_reference() {
    for [rows, d_in, d_out] in [[1, 1, 1], [7, 13, 5], [67, 48, 50], [130, 31, 17]] {
        for activation in [Activation::None, Activation::Gelu] {
            hold_equal(
                || (leaf([1, rows, d_in], 1), leaf([d_in, d_out], 2), leaf([d_out], 3)),
                |cpu, (x, w, b)| linear(cpu, x.clone(), w.clone(), b.clone(), activation),
                |(x, w, b)| linear_reference(x.clone(), w.clone(), b.clone(), activation),
                |(x, w, b), g| vec![grad(x, g), grad(w, g), grad(b, g)],
            );
        }
    }
}

#[test]
fn composed_linear_maps_match_reference() {
    let leaves = || (leaf([67, 32], 1), leaf([32, 40], 2), leaf([40], 3), leaf([67, 40], 4));
    type Body = fn(Cpu, Tensor<2>, Tensor<2>, Tensor<1>, Tensor<2>) -> Tensor<2>;
    let pairs: [[Body; 2]; 4] = [
        [
            |cpu, x, w, b, _| linear_composed(cpu, x, w, b, Activation::None),
            |_, x, w, b, _| linear_reference(x, w, b, Activation::None),
        ],
        [
            |cpu, x, w, b, _| linear_composed(cpu, x, w, b, Activation::Gelu),
            |_, x, w, b, _| linear_reference(x, w, b, Activation::Gelu),
        ],
        [
            |_, x, w, b, _| linear_f32_composed(x.cast(FloatDType::BF16), w, b),
            |_, x, w, b, _| {
                linear_reference(x.cast(FloatDType::BF16).cast(FloatDType::F32), w, b, Activation::None)
            },
        ],
        [linear_add_composed, |_, x, w, b, r| r + linear_reference(x, w, b, Activation::None)],
    ];
    for [composed, reference] in pairs {
        let run = |body: Body| {
            move |cpu, (x, w, b, r): &(Tensor<2>, Tensor<2>, Tensor<1>, Tensor<2>)| {
                body(cpu, x.clone(), w.clone(), b.clone(), r.clone())
            }
        };
        let reference = |leaves: &_| run(reference)(Cpu::best(), leaves);
        hold_equal(leaves, run(composed), reference, |(x, w, b, _), g| {
            vec![grad(x, g), grad(w, g), grad(b, g)]
        });
    }
}

#[test]
fn linear_f32_matches_reference_and_stays_f32() {
    hold_equal(
        || (leaf([67, 32], 1), leaf([32, 40], 2), leaf([40], 3)),
        |cpu, (x, w, b)| {
            let y = linear_f32(cpu, x.clone(), w.clone(), b.clone());
            assert_eq!(y.dtype(), burn::tensor::DType::F32);
            y
        },
        |(x, w, b)| linear_reference(x.clone(), w.clone(), b.clone(), Activation::None),
        |(x, w, b), g| vec![grad(x, g), grad(w, g), grad(b, g)],
    );
}

#[test]
fn linear_add_matches_reference() {
    hold_equal(
        || (leaf([67, 32], 1), leaf([32, 40], 2), leaf([40], 3), leaf([67, 40], 4)),
        |cpu, (x, w, b, r)| linear_add(cpu, x.clone(), w.clone(), b.clone(), r.clone()),
        |(x, w, b, r)| r.clone() + linear_reference(x.clone(), w.clone(), b.clone(), Activation::None),
        |(x, w, b, r), g| vec![grad(x, g), grad(w, g), grad(b, g), grad(r, g)],
    );
}

#[test]
#[should_panic(expected = "wanted [.., 5]")]
fn linear_shape_mismatch_panics() {
    linear(Cpu::best(), leaf([3, 4], 1), leaf([5, 6], 2), leaf([6], 3), Activation::None);
}
