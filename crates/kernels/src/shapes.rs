//! Every kernel held equal to its reference at shapes drawn by chance, and alone at shapes of nothing.

use std::sync::Arc;

use crate::testing::{assert_close, grad, hold_equal, leaf, tolerance, values};
use crate::{
    Activation, Cpu, First, Output, Plan, conv2d, conv2d_reference, cross_entropy, cross_entropy_reference,
    gumbel_softmax, layer_norm, layer_norm_reference, linear, linear_reference, max_pool2, pattern_attention,
    pattern_attention_reference, upsample2,
};

/// Sizes at which tiles, panels, pairs and blocks end, one more, one less, and primes.
const SIZES: [usize; 14] = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 47, 48, 49, 67];

/// Draws from a list, a function of the seed.
struct Draws(u64);

impl Draws {
    fn of(&mut self, sizes: &[usize]) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        sizes[(self.0 >> 33) as usize % sizes.len()]
    }

    fn shape<const N: usize>(&mut self) -> [usize; N] {
        std::array::from_fn(|_| self.of(&SIZES))
    }
}

#[test]
fn linear_maps_of_any_shape() {
    let mut draws = Draws(1);
    for _ in 0..20 {
        let [rows, d_in, d_out] = draws.shape();
        hold_equal(
            || (leaf([rows, d_in], 1), leaf([d_in, d_out], 2), leaf([d_out], 3)),
            |(x, w, b)| linear(x.clone(), w.clone(), b.clone(), Activation::Gelu),
            |(x, w, b)| linear_reference(x.clone(), w.clone(), b.clone(), Activation::Gelu),
            |(x, w, b), g| vec![grad(x, g), grad(w, g), grad(b, g)],
        );
    }
}

#[test]
fn convolutions_of_any_shape() {
    let mut draws = Draws(2);
    for _ in 0..20 {
        let [height, width, n_in, n_out] = draws.shape();
        let [batch, k] = [draws.of(&[1, 2, 3]), draws.of(&[1, 3, 5, 7])];
        hold_equal(
            || (leaf([batch, height, width, n_in], 1), leaf([n_out, n_in, k, k], 2), leaf([n_out], 3)),
            |(x, w, b)| conv2d(x.clone(), w.clone(), b.clone(), First::Relu, Output::Kernel),
            |(x, w, b)| conv2d_reference(x.clone(), w.clone(), b.clone(), First::Relu),
            |(x, w, b), g| vec![grad(x, g), grad(w, g), grad(b, g)],
        );
    }
}

#[test]
fn layer_norms_and_losses_of_any_shape() {
    let mut draws = Draws(3);
    for _ in 0..20 {
        let [rows, d, v] = draws.shape();
        let d = d + 2; // two values alone become ±1, and their gradient is rounding
        hold_equal(
            || (leaf([rows, d], 1), leaf([d], 2), leaf([d], 3)),
            |(x, gain, bias)| layer_norm(x.clone(), gain.clone(), bias.clone(), 1e-5),
            |(x, gain, bias)| layer_norm_reference(x.clone(), gain.clone(), bias.clone(), 1e-5),
            |(x, gain, bias), g| vec![grad(x, g), grad(gain, g), grad(bias, g)],
        );
        let targets: Vec<u32> = (0..rows).map(|row| (row * 7919 % v) as u32).collect();
        hold_equal(
            || (leaf([rows, d], 1), leaf([d, v], 2), leaf([v], 3)),
            |(x, w, b)| cross_entropy(x.clone(), w.clone(), b.clone(), &targets),
            |(x, w, b)| cross_entropy_reference(x.clone(), w.clone(), b.clone(), &targets),
            |(x, w, b), g| vec![grad(x, g), grad(w, g), grad(b, g)],
        );
    }
}

#[test]
fn attention_of_any_shape_and_pattern() {
    let mut draws = Draws(4);
    for round in 0..20 {
        let [t, width] = draws.shape();
        let [batch, heads, stride] = [draws.of(&[1, 2]), draws.of(&[1, 2, 5]), draws.of(&[1, 2, 3, 11])];
        let sees = |query: usize, key: usize| key <= query && (query - key).is_multiple_of(stride);
        let order = if round % 2 == 0 { (0..t).collect() } else { (0..t).rev().collect() };
        let plan = Arc::new(Plan::new(order, sees));
        hold_equal(
            || leaf([batch, t, 3 * heads * width], 1),
            |qkv| pattern_attention(qkv.clone(), heads, &plan),
            |qkv| pattern_attention_reference(qkv.clone(), heads, &plan),
            |qkv, g| vec![grad(qkv, g)],
        );
    }
}

#[test]
fn shapes_of_nothing_give_nothing_and_sums_of_nothing_give_the_bias() {
    for cpu in Cpu::all() {
        cpu.scope(|| {
            for [rows, d_in, d_out] in [[0, 4, 3], [4, 3, 0], [0, 0, 0], [4, 0, 3]] {
                let (x, w, b) = (leaf([rows, d_in], 1), leaf([d_in, d_out], 2), leaf([d_out], 3));
                let y = linear(x, w, b.clone(), Activation::None);
                assert_eq!(y.dims(), [rows, d_out]);
                let wanted = values(b).repeat(rows);
                assert_close(
                    &cpu.to_string(),
                    &values(y.clone().without_autodiff()),
                    &wanted,
                    tolerance(cpu),
                );
                y.sum().backward();
            }
            for [batch, height, n_in, n_out] in [[0, 4, 3, 2], [1, 0, 3, 2], [1, 4, 3, 0], [1, 4, 0, 2]] {
                let (x, w) = (leaf([batch, height, 5, n_in], 1), leaf([n_out, n_in, 3, 3], 2));
                let b = leaf([n_out], 3);
                let y = conv2d(x, w, b.clone(), First::Relu, Output::F32);
                assert_eq!(y.dims(), [batch, height, 5, n_out]);
                let wanted = values(b).repeat(batch * height * 5);
                assert_eq!(values(y.clone().without_autodiff()), wanted, "{cpu}");
                y.sum().backward();
            }
            let nothing = || leaf([0, 4, 4, 3], 1);
            assert_eq!(max_pool2(nothing()).dims(), [0, 2, 2, 3]);
            assert_eq!(upsample2(nothing()).dims(), [0, 8, 8, 3]);
            assert_eq!(gumbel_softmax(nothing(), nothing(), 1.0).dims(), [0, 4, 4, 3]);
            assert_eq!(layer_norm(leaf([0, 5], 1), leaf([5], 2), leaf([5], 3), 1e-5).dims(), [0, 5]);
            let plan = Arc::new(Plan::new((0..3).collect(), |query, key| key <= query));
            assert_eq!(pattern_attention(leaf([0, 3, 12], 1), 2, &plan).dims(), [0, 3, 4]);
        });
    }
}
