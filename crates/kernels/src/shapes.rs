//! Tests of all kernels at random shapes, including empty ones. Each kernel is compared with its
//! reference for f32 inputs and, where allowed, bf16 inputs. Shapes that do not fit must panic with
//! a message, and results must not depend on the number of threads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use burn::tensor::{FloatDType, Tensor};
use rayon::ThreadPoolBuilder;

use crate::decode::{Epilogue, KvCache, PackedLinear, Sequence, Visible, Weights, attend, int8_rounded};
use crate::testing::{
    F32, F32_AND_BF16, Leaves, assert_close, constant, hold, leaf, noise, outcome, tolerance, values,
};
use crate::{
    Activation, AttentionPlan, Cpu, OutputDtype, PreActivation, conv2d, conv2d_add, conv2d_reference,
    cross_entropy, cross_entropy_reference, dot, dot_reference, gumbel_softmax, gumbel_softmax_reference,
    kl_to_uniform, kl_to_uniform_reference, layer_norm, layer_norm_reference, linear, linear_add, linear_f32,
    linear_reference, max_pool2, max_pool2_reference, pattern_attention, pattern_attention_reference,
    upsample2, upsample2_reference,
};

/// Zero, the sizes at which tiles, panels, pairs and blocks end, one more and one less, and primes.
const SIZES: [usize; 15] = [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 47, 48, 49, 67];
/// The number of shapes per kernel.
const ROUNDS: usize = 20;

/// A random source of sizes, determined by its seed.
struct Draws {
    state: u64,
    /// The index of the size of each shape that is 0, if the shape has this many sizes.
    zero_at: usize,
}

impl Draws {
    /// Draws one of `sizes`.
    fn of(&mut self, sizes: &[usize]) -> usize {
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        sizes[(self.state >> 33) as usize % sizes.len()]
    }

    /// Draws sizes that may be 0.
    fn shape<const N: usize>(&mut self) -> [usize; N] {
        std::array::from_fn(|i| if i == self.zero_at { 0 } else { self.of(&SIZES) })
    }

    /// Draws sizes that are not 0.
    fn nonzero_shape<const N: usize>(&mut self) -> [usize; N] {
        std::array::from_fn(|_| self.of(&SIZES[1..]))
    }
}

/// Calls `body` for each round. In the last rounds each size is 0 once: at that point the reused
/// working memory contains values of earlier rounds.
fn rounds(seed: u64, body: impl Fn(&mut Draws)) {
    let mut draws = Draws { state: seed, zero_at: ROUNDS };
    for zero_at in (0..ROUNDS).rev() {
        draws.zero_at = zero_at;
        body(&mut draws);
    }
}

#[test]
fn linear_maps_of_random_shapes_match_reference() {
    let check = |[rows, d_in, d_out]: [usize; 3]| {
        let leaves = || (leaf([rows, d_in], 1), leaf([d_in, d_out], 2), leaf([d_out], 3));
        for activation in [Activation::None, Activation::Gelu] {
            hold(
                F32_AND_BF16,
                leaves,
                |cpu, (x, w, b), dtype| linear(cpu, x.cast(dtype), w, b, activation),
                |(x, w, b)| linear_reference(x, w, b, activation),
            );
        }
        hold(
            F32_AND_BF16,
            leaves,
            |cpu, (x, w, b), dtype| linear_f32(cpu, x.cast(dtype), w, b),
            |(x, w, b)| linear_reference(x, w, b, Activation::None),
        );
        hold(
            F32_AND_BF16,
            || (leaf([rows, d_in], 1), leaf([d_in, d_out], 2), leaf([d_out], 3), leaf([rows, d_out], 4)),
            |cpu, (x, w, b, residual), dtype| linear_add(cpu, x.cast(dtype), w, b, residual),
            |(x, w, b, residual)| residual + linear_reference(x, w, b, Activation::None),
        );
    };
    check([0, 67, 5]); // dW is then a product over no rows, with more columns than a block
    rounds(1, |draws| check(draws.shape()));
}

#[test]
fn convolutions_of_random_shapes_match_reference() {
    rounds(2, |draws| {
        let [height, width, n_in, n_out] = draws.shape();
        let [batch, k] = [draws.of(&[0, 1, 2, 3]), draws.of(&[1, 3, 5, 7])];
        let [x, residual] = [[batch, height, width, n_in], [batch, height, width, n_out]];
        for output in [OutputDtype::Compute, OutputDtype::F32, OutputDtype::F32Exact] {
            hold(
                F32_AND_BF16,
                || (leaf(x, 1), leaf([n_out, n_in, k, k], 2), leaf([n_out], 3)),
                |cpu, (x, w, b), dtype| conv2d(cpu, x.cast(dtype), w, b, PreActivation::Relu, output),
                |(x, w, b)| conv2d_reference(x, w, b, PreActivation::Relu),
            );
        }
        hold(
            F32_AND_BF16,
            || (leaf(x, 1), leaf([n_out, n_in, k, k], 2), leaf([n_out], 3), leaf(residual, 4)),
            |cpu, (x, w, b, residual), dtype| conv2d_add(cpu, x.cast(dtype), w, b, residual, 0.3),
            |(x, w, b, residual)| residual + conv2d_reference(x, w, b, PreActivation::Relu) * 0.3,
        );
    });
}

#[test]
fn layer_norms_and_losses_of_random_shapes_match_reference() {
    rounds(3, |draws| {
        let [rows, d] = draws.shape();
        let wide = d + 3; // rows of two values become ±1, and their gradient is rounding error
        hold(
            F32,
            || (leaf([rows, wide], 1), leaf([wide], 2), leaf([wide], 3)),
            |cpu, (x, gain, bias), _| layer_norm(cpu, x, gain, bias, 1e-5),
            |(x, gain, bias)| layer_norm_reference(x, gain, bias, 1e-5),
        );
        let [rows, more] = draws.nonzero_shape();
        let v = more + 2; // the gradients of two codes cancel, which could leave rounding error
        let targets: Vec<u32> = (0..rows).map(|row| (row * 7919 % v) as u32).collect();
        hold(
            F32_AND_BF16,
            || (leaf([rows, d], 1), leaf([d, v], 2), leaf([v], 3)),
            |cpu, (x, w, b), dtype| cross_entropy(cpu, x.cast(dtype), w, b, &targets),
            |(x, w, b)| cross_entropy_reference(x, w, b, &targets),
        );
    });
}

#[test]
fn attention_of_random_shapes_matches_reference() {
    rounds(4, |draws| {
        let ([t], [width]) = (draws.shape(), draws.nonzero_shape());
        let [batch, heads, stride] = [draws.of(&[0, 1, 2]), draws.of(&[1, 2, 5]), draws.of(&[1, 2, 3, 11])];
        let attends = |query: usize, key: usize| key <= query && (query - key).is_multiple_of(stride);
        let order = if stride < 3 { (0..t).collect() } else { (0..t).rev().collect() };
        let plan = Arc::new(AttentionPlan::new(order, attends));
        hold(
            F32_AND_BF16,
            || (leaf([batch, t, 3 * heads * width], 1),),
            |cpu, (qkv,), dtype| pattern_attention(cpu, qkv.cast(dtype), heads, &plan),
            |(qkv,)| pattern_attention_reference(qkv, heads, &plan),
        );
    });
}

#[test]
fn pooling_and_codes_of_random_shapes_match_reference() {
    rounds(5, |draws| {
        let [batch, height, width, channels] = draws.shape();
        let [large, small] = [[batch, 2 * height, 2 * width, channels], [batch, height, width, channels]];
        hold(F32, || (leaf(large, 1),), |cpu, (x,), _| max_pool2(cpu, x), |(x,)| max_pool2_reference(x));
        hold(F32, || (leaf(small, 1),), |cpu, (x,), _| upsample2(cpu, x), |(x,)| upsample2_reference(x));
        let [rows, v] = draws.shape();
        hold(
            F32,
            || (leaf([rows, v], 1), leaf([rows, v], 2)),
            |cpu, (logits, noise), _| gumbel_softmax(cpu, logits, noise, 0.3),
            |(logits, noise)| gumbel_softmax_reference(logits, noise, 0.3),
        );
        hold(
            F32_AND_BF16,
            || (leaf([rows, v], 1), leaf([rows, v], 2)), // inputs whose sums are not near 0
            |cpu, (a, b), dtype| dot(cpu, (a + 2.0).cast(dtype), (b + 2.0).cast(dtype)),
            |(a, b)| dot_reference(a + 2.0, b + 2.0),
        );
        let shape: [usize; 2] = draws.nonzero_shape();
        hold(
            F32,
            || (leaf(shape, 1),),
            |cpu, (logits,), _| kl_to_uniform(cpu, logits * 3.0),
            |(logits,)| kl_to_uniform_reference(logits * 3.0),
        );
    });
}

#[test]
fn packed_maps_of_random_shapes_match_reference() {
    rounds(6, |draws| {
        let ([rows, d_in], [d_out]) = (draws.shape(), draws.nonzero_shape());
        let [x, weight, bias] =
            [(rows * d_in, 1), (d_in * d_out, 2), (d_out, 3)].map(|(n, seed)| noise(n, seed));
        for (kept, weights) in
            [(Weights::Full, weight.clone()), (Weights::Int8, int8_rounded(&weight, d_out))]
        {
            let w = constant(weights, [d_in, d_out]);
            let expected = linear_reference(leaf([rows, d_in], 1), w, leaf([d_out], 3), Activation::None);
            let expected = values(expected.without_autodiff());
            for cpu in Cpu::all() {
                let mut got = noise(rows * d_out, 4);
                let map = PackedLinear::new(cpu, &weight, bias.clone(), kept);
                map.apply(&x, Epilogue::Set, &mut got);
                let what = format!("{kept:?} [{rows}, {d_in}] to {d_out}, {cpu}");
                assert_close(&what, &got, &expected, tolerance(cpu));
                map.apply(&x, Epilogue::Add, &mut got);
                let twice: Vec<f32> = expected.iter().map(|value| 2.0 * value).collect();
                assert_close(&what, &got, &twice, tolerance(cpu));
            }
        }
    });
}

#[test]
fn decoding_attention_equals_last_query_of_full_attention() {
    rounds(7, |draws| {
        let ([texts], [sequences, width, cache_rows]) = (draws.shape(), draws.nonzero_shape());
        let [heads, stride] = [draws.of(&[1, 2, 5]), draws.of(&[1, 2, 3, 11])];
        let (t, d) = (texts + cache_rows, heads * width);
        let visible = |cache_row: usize| (cache_rows - 1 - cache_row).is_multiple_of(stride);
        let captions: Vec<usize> = (0..sequences).map(|sequence| sequence / 3 % 2).collect();
        let state =
            |sequence: usize, cache_row: usize| noise(3 * d, (1 + 1000 * sequence + cache_row) as u64);
        let own = |sequence: usize, cache_row: usize| state(2 + sequence, cache_row);

        let attends = |query: usize, key: usize| query == key || key < texts || visible(key - texts);
        let plan = AttentionPlan::new((0..t).collect(), attends);
        let stream = |sequence: usize| {
            let text =
                (0..texts).flat_map(|cache_row| state(captions[sequence], cache_row)).collect::<Vec<f32>>();
            [text, (0..cache_rows).flat_map(|cache_row| own(sequence, cache_row)).collect()].concat()
        };
        let qkv = constant((0..sequences).flat_map(stream).collect(), [sequences, t, 3 * d]);
        let all = values(pattern_attention_reference(qkv, heads, &plan).without_autodiff());
        let expected: Vec<f32> =
            all.chunks(t * d).flat_map(|sequence| sequence[(t - 1) * d..].to_vec()).collect();

        for cpu in Cpu::all() {
            let mut text = KvCache::new(cpu, 2, [heads, width], texts);
            for (caption, cache_row) in
                (0..2).flat_map(|caption| (0..texts).map(move |cache_row| (caption, cache_row)))
            {
                let qkv = state(caption, cache_row);
                text.put(caption, cache_row, &qkv[d..2 * d], &qkv[2 * d..]);
            }
            let mut pictures = KvCache::new(cpu, sequences, [heads, width], cache_rows);
            let rows = |cache_row: usize| {
                (0..sequences).flat_map(|sequence| own(sequence, cache_row)).collect::<Vec<f32>>()
            };
            let places =
                |cache_row: usize| (0..sequences).map(|sequence| (sequence, cache_row)).collect::<Vec<_>>();
            (0..cache_rows).for_each(|cache_row| pictures.put_rows(&places(cache_row), &rows(cache_row)));
            let (text_visible, own_visible) = (
                Visible::new(0..texts),
                Visible::new((0..cache_rows).filter(|&cache_row| visible(cache_row))),
            );
            let mut got = vec![0.0; sequences * d];
            let sequence = |own| Sequence { caption: captions[own], own, visible: &own_visible };
            let (queries, sequence_list) =
                (rows(cache_rows - 1), (0..sequences).map(sequence).collect::<Vec<_>>());
            attend(&queries, 3 * d, &sequence_list, (&text, &text_visible), &pictures, &mut got);
            let what =
                format!("{sequences} sequences, {texts} + {cache_rows} cache rows, {heads} × {width}, {cpu}");
            assert_close(&what, &got, &expected, tolerance(cpu));
        }
    });
}

#[test]
fn empty_outputs_have_the_right_shape() {
    for cpu in Cpu::all() {
        let pictures = |channels: usize| leaf([0, 4, 6, channels], 1);
        let mapped = |rows: usize, d_out: usize| {
            linear(cpu, leaf([rows, 4], 1), leaf([4, d_out], 2), leaf([d_out], 3), Activation::None)
        };
        assert_eq!([mapped(0, 3).dims(), mapped(5, 0).dims()], [[0, 3], [5, 0]]);
        let filters = (leaf([2, 3, 3, 3], 2), leaf([2], 3));
        let y = conv2d(cpu, pictures(3), filters.0, filters.1, PreActivation::Relu, OutputDtype::Compute);
        assert_eq!(y.dims(), [0, 4, 6, 2]);
        assert_eq!(max_pool2(cpu, pictures(3)).dims(), [0, 2, 3, 3]);
        assert_eq!(upsample2(cpu, pictures(3)).dims(), [0, 8, 12, 3]);
        assert_eq!(gumbel_softmax(cpu, pictures(3), pictures(3), 1.0).dims(), [0, 4, 6, 3]);
        assert_eq!(layer_norm(cpu, leaf([0, 5], 1), leaf([5], 2), leaf([5], 3), 1e-5).dims(), [0, 5]);
        let plan = Arc::new(AttentionPlan::new((0..3).collect(), |query, key| key <= query));
        assert_eq!(pattern_attention(cpu, leaf([0, 3, 12], 1), 2, &plan).dims(), [0, 3, 4]);
    }
}

#[test]
fn shape_mismatches_panic_with_got_and_wanted() {
    let (cpu, x) = (Cpu::best(), || leaf([3, 4], 1));
    let plan = |len: usize| Arc::new(AttentionPlan::new((0..len).collect(), |query, key| key <= query));
    let packed = |bias: Vec<f32>| PackedLinear::new(cpu, &[1.0; 12], bias, Weights::Int8);
    let attend_with_sizes = |own_width: usize, seen: usize| {
        let [text, own] = [4, own_width].map(|width| KvCache::new(cpu, 1, [1, width], 16));
        let sequence = Sequence { caption: 0, own: 0, visible: &Visible::new(0..seen) };
        attend(&[0.0; 8], 8, &[sequence], (&text, &Visible::new(0..1)), &own, &mut vec![0.0; own_width]);
    };
    let mismatches: [(&dyn Fn(), [&str; 2]); 20] = [
        (&|| drop(linear(cpu, x(), leaf([5, 6], 2), leaf([6], 3), Activation::None)), ["[3, 4]", "[.., 5]"]),
        (&|| drop(linear_f32(cpu, x(), leaf([4, 6], 2), leaf([7], 3))), ["[7]", "[6]"]),
        (&|| drop(linear_add(cpu, x(), leaf([4, 6], 2), leaf([6], 3), x())), ["[3, 4]", "[3, 6]"]),
        (
            &|| {
                drop(conv2d(
                    cpu,
                    leaf([1, 2, 2, 3], 1),
                    leaf([5, 3, 2, 2], 2),
                    leaf([5], 3),
                    PreActivation::Relu,
                    OutputDtype::F32,
                ))
            },
            ["[5, 3, 2, 2]", "k odd"],
        ),
        (
            &|| {
                let [x, residual] = [leaf([1, 2, 2, 3], 1), leaf([1, 2, 2, 3], 4)];
                drop(conv2d_add(cpu, x, leaf([5, 3, 1, 1], 2), leaf([5], 3), residual, 1.0));
            },
            ["[1, 2, 2, 3]", "[1, 2, 2, 5]"],
        ),
        (
            &|| drop(layer_norm(cpu, leaf([3, 0], 1), leaf([0], 2), leaf([0], 3), 1e-5)),
            ["0 gains", "at least one"],
        ),
        (&|| drop(layer_norm(cpu, x(), leaf([5], 2), leaf([4], 3), 1e-5)), ["5 gains", "each of 4"]),
        (
            &|| drop(cross_entropy(cpu, leaf([0, 4], 1), leaf([4, 6], 2), leaf([6], 3), &[])),
            ["[0, 4]", "a row or more"],
        ),
        (
            &|| drop(cross_entropy(cpu, x(), leaf([4, 0], 2), leaf([0], 3), &[0; 3])),
            ["target 0", "less than 0"],
        ),
        (&|| drop(pattern_attention(cpu, leaf([1, 3, 6], 1), 0, &plan(3))), ["[1, 3, 6]", "0 heads"]),
        (&|| drop(pattern_attention(cpu, leaf([1, 3, 0], 1), 1, &plan(3))), ["[1, 3, 0]", "a multiple of 3"]),
        (&|| drop(pattern_attention(cpu, leaf([1, 3, 6], 1), 1, &plan(4))), ["[1, 3, 6]", "[.., 4,"]),
        (&|| drop(max_pool2(cpu, leaf([1, 3, 2, 1], 1))), ["3×2", "even sides"]),
        (&|| drop(gumbel_softmax(cpu, x(), leaf([3, 5], 2), 1.0)), ["[3, 4]", "[3, 5]"]),
        (&|| drop(dot(cpu, x(), x().cast(FloatDType::BF16))), ["F32", "BF16"]),
        (&|| drop(packed(Vec::new())), ["12 weights", "0 biases"]),
        (
            &|| packed(vec![0.0; 3]).apply(&[0.0; 5], Epilogue::Set, &mut [0.0; 3]),
            ["[4, 3]", "5 numbers into 3"],
        ),
        (&|| drop(KvCache::new(cpu, 1, [2, 0], 4)), ["2 heads of width 0", "at least 1"]),
        (&|| attend_with_sizes(4, 40), ["1 panels of the picture KV cache", "wanted 3"]),
        (&|| attend_with_sizes(8, 1), ["1, 4)", "1, 8)"]),
    ];
    for (body, words) in mismatches {
        let panic = catch_unwind(AssertUnwindSafe(body)).expect_err("a refusal");
        let message = panic.downcast::<String>().expect("a message with numbers");
        assert!(words.iter().all(|word| message.contains(word)), "{message}: wanted {words:?} in it");
    }
}

/// Asserts that the output of `kernel` and all gradients are identical, bit for bit, in pools of 1,
/// 2 and 5 threads.
fn hold_same_in_any_pool<const D: usize, L: Leaves>(
    name: &str,
    leaves: impl Fn() -> L + Sync,
    kernel: impl Fn(Cpu, L) -> Tensor<D> + Sync,
) {
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<u32>>();
    for cpu in Cpu::all() {
        let run = || outcome(&leaves(), |leaves| kernel(cpu, leaves.clone()), L::gradients);
        let [one, two, five] = [1, 2, 5].map(|threads| {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(run).into_iter().map(bits).collect::<Vec<_>>()
        });
        assert!(one == two && one == five, "{name}, {cpu}: results depend on the number of threads");
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    hold_same_in_any_pool(
        "linear",
        || (leaf([200, 130], 1), leaf([130, 150], 2), leaf([150], 3)),
        |cpu, (x, w, b)| linear(cpu, x, w, b, Activation::Gelu),
    );
    hold_same_in_any_pool(
        "conv2d",
        || (leaf([3, 20, 17, 20], 1), leaf([34, 20, 3, 3], 2), leaf([34], 3)),
        |cpu, (x, w, b)| conv2d(cpu, x, w, b, PreActivation::Relu, OutputDtype::Compute),
    );
    let plan = Arc::new(AttentionPlan::new((0..150).collect(), |query, key| key <= query));
    hold_same_in_any_pool(
        "attention",
        || (leaf([2, 150, 3 * 3 * 20], 1),),
        |cpu, (qkv,)| pattern_attention(cpu, qkv, 3, &plan),
    );
    hold_same_in_any_pool(
        "layer norm",
        || (leaf([300, 70], 1), leaf([70], 2), leaf([70], 3)),
        |cpu, (x, gain, bias)| layer_norm(cpu, x, gain, bias, 1e-5),
    );
    let targets: Vec<u32> = (0..300).map(|row| row * 7919 % 8000).collect(); // logits in two chunks
    hold_same_in_any_pool(
        "cross-entropy",
        || (leaf([300, 16], 1), leaf([16, 8000], 2), leaf([8000], 3)),
        |cpu, (x, w, b)| cross_entropy(cpu, x, w, b, &targets),
    );
}
