//! Tests of the prior: parameter count, initialisation, causality, gradients, mixed precision.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use tessera_kernels::{Cpu, SmallFloat};

use super::*;
use crate::finite_differences::{Tolerance, check, exact, stirred};
use crate::nn::{GradientSink, GradientSums, ParamGradient, Part, host_gradients};

pub(super) fn config() -> PriorConfig {
    PriorConfig {
        text_len: 3,
        text_vocab: 7,
        grid: 3,
        image_vocab: 5,
        d_model: 8,
        n_layers: 4,
        n_heads: 2,
        conv_kernel: 3,
        conv_wrap: Wrap::Flat,
        logits: Logits::Auto,
        layout: Layout::default(),
    }
}

/// A small prior in which no weight is at its initial value, so that the heads are not zero.
fn prior() -> Prior {
    prior_on(Cpu::best())
}

fn prior_on(cpu: Cpu) -> Prior {
    stirred(Prior::new(&config(), 1, cpu), 0.3)
}

fn stream() -> Stream {
    let text = [[1, 4, 9], [6, 8, 9]].concat(); // slots 7.. are pads
    let image = [[0, 1, 2, 3, 4, 0, 1, 2, 3], [4, 4, 3, 3, 2, 2, 1, 1, 0]].concat();
    Stream::new(2, text, image, &config()).unwrap()
}

#[test]
fn replaced_input_tokens_change_only_later_logits() {
    let (prior, plain) = (prior(), stream());
    let mut seen = plain.image.clone();
    seen[3] = 0;
    let disturbed = plain.clone().seeing(seen, &config()).unwrap();
    assert_eq!(disturbed.image, plain.image);
    let logits = |stream: &Stream| floats(prior.forward(stream).1);
    let (before, after) = (logits(&plain), logits(&disturbed));
    let row = |place: usize| place * 5..(place + 1) * 5;
    assert!((0..4).all(|place| before[row(place)] == after[row(place)]));
    assert!(before[row(4)] != after[row(4)]);
    let error = |seen| plain.clone().seeing(seen, &config()).unwrap_err().to_string();
    assert!(error(vec![0; 3]).contains("3 picture tokens to read, wanted 18"));
    assert!(error(vec![9; 18]).contains("picture token 9"));
}

fn floats<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.without_autodiff().into_data().try_to_vec::<f32>().unwrap()
}

#[test]
fn shapes_and_parameter_count() {
    let c = config();
    let (text, image) = prior().forward(&stream());
    assert_eq!((text.dims(), image.dims()), ([2, 3, 10], [2, 9, 5]));
    let d = c.d_model;
    let embed = (7 + 3 + 1) * d + 3 * d + (5 + 1) * d + 2 * 3 * d;
    let layer = 12 * d * d + (3 * d + d + 4 * d + d) + 4 * d; // matrices, biases, two layer norms
    let heads = 2 * d + (d + 1) * 10 + (d + 1) * 5;
    assert_eq!(prior().num_params(), embed + 4 * layer + heads);
    assert_eq!(c.n_parameters(), prior().num_params() as u128);
}

#[test]
fn the_papers_prior_has_twelve_billion_parameters() {
    let billions = PriorConfig::paper().n_parameters() as f64 / 1e9;
    assert!((12.0..12.5).contains(&billions), "{billions}");
}

#[test]
fn every_token_of_the_longest_caption_is_read() {
    let read = |last: u32| {
        let (slots, lost) = caption_slots(&[1, last], &config());
        assert_eq!((slots.len(), lost), (3, 0));
        logits(&prior(), &Stream::new(1, slots, vec![0], &config()).unwrap()).pop()
    };
    assert_ne!(read(2), read(5));
    assert_eq!(caption_slots(&[1, 2, 3], &config()).1, 1);
}

/// The deviations are those of Child et al. 2019 §5-6, which the paper follows (§B.1).
#[test]
fn initial_weights_have_the_deviations_of_sparse_transformers() {
    let config = PriorConfig { d_model: 64, text_vocab: 400, grid: 16, image_vocab: 300, ..config() };
    let prior = Prior::new(&config, 5, &Device::flex());
    let residual = 1.0 / (2.0 * config.n_layers as f64).sqrt();
    for weight in crate::nn::export(&prior) {
        let n = weight.values.len() as f64;
        let std = (weight.values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n).sqrt();
        let name = weight.name.rsplit_once("blocks.").map_or(&*weight.name, |(_, rest)| &rest[2..]);
        let wanted = match name {
            "embed.text" | "embed.text_position" | "embed.image" => 0.125 / 8.0,
            "embed.row" | "embed.column" => 0.125 / 128_f64.sqrt(),
            "qkv.weight" | "mlp_in.weight" => 0.125 / 8.0,
            "attn_out.weight" => 0.125 / 8.0 * residual,
            "mlp_out.weight" => 0.125 / 16.0 * residual,
            gain if gain.ends_with("gain") => 1.0,
            _ => 0.0, // biases and heads
        };
        // The tolerance is five standard deviations of an estimate from `n` values.
        assert!(
            (std - wanted).abs() <= wanted * 5.0 / (2.0 * n).sqrt(),
            "{}: {std}, wanted {wanted}",
            weight.name
        );
    }
}

#[test]
fn zero_heads_start_at_the_uniform_loss() {
    let loss = Prior::new(&config(), 1, &Device::flex()).loss(&stream());
    let expected = 10_f32.ln() / 8.0 + 7.0 / 8.0 * 5_f32.ln();
    assert!((floats(loss.loss)[0] - expected).abs() < 1e-5);
}

/// Changes each token in turn and checks which logits change.
#[test]
fn no_logit_depends_on_its_own_or_a_later_token() {
    let prior = prior();
    let base = logits(&prior, &stream());
    let n = config().stream_len();
    for changed in 0..n {
        let mut other = stream();
        match changed < 3 {
            true => other.text[changed] = 0,
            false => other.seen[changed - 3] = (other.seen[changed - 3] + 1) % 5,
        }
        let moved = logits(&prior, &other);
        for at in 0..n {
            let same = base[at] == moved[at];
            assert!(at > changed || same, "logits at {at} depend on token {changed}");
        }
        // The tokens of the last text slot and of the last cell are never read.
        let read = changed != 2 && changed != n - 1;
        assert_eq!(base[n - 1] != moved[n - 1] || (changed >= 3 && base != moved), read, "token {changed}");
    }
}

/// Logits of the first stream, one row per position.
fn logits(prior: &Prior, stream: &Stream) -> Vec<Vec<f32>> {
    let (text, image) = prior.forward(stream);
    let rows = |x: Tensor<3>| {
        let width = x.dims()[2];
        floats(x.narrow(0, 0, 1)).chunks(width).map(<[f32]>::to_vec).collect::<Vec<_>>()
    };
    [rows(text), rows(image)].concat()
}

#[test]
fn gradients_reach_only_earlier_embeddings() {
    // d logit / d embedding row is zero for tokens that occur only at or after the logit's
    // position.
    let prior = prior().train();
    let stream = Stream::new(1, vec![1, 2, 3], vec![0, 1, 2, 3, 4, 4, 4, 4, 4], &config()).unwrap();
    let (_, image) = prior.forward(&stream);
    // The logits of cell 2 read tokens 0 and 1.
    let gradients = image.narrow(1, 2, 1).sum().backward();
    let table: &Param<Tensor<2>> = &prior.embed.image;
    let rows = floats(table.val().grad(&gradients).unwrap());
    let norm = |row: usize| rows[row * 8..(row + 1) * 8].iter().map(|v| v.abs()).sum::<f32>();
    assert!(norm(0) > 0.0 && norm(1) > 0.0);
    assert_eq!((norm(2), norm(3), norm(4)), (0.0, 0.0, 0.0));
}

#[test]
fn the_loss_gradient_matches_finite_differences() {
    let loss = |prior: &Prior| prior.loss(&stream()).loss;
    check(prior_on(exact()), loss, 3e-3, Tolerance { absolute: 2e-4, relative: 0.02 });
}

#[test]
fn chain_gradients_equal_those_of_a_single_graph() {
    let stream = stream();
    for cpu in Cpu::all() {
        let prior = prior_on(cpu);
        let train = prior.clone().train();
        let loss = train.loss(&stream).loss;
        let expected = host_gradients(&train, loss.clone().backward());
        for activations in [Activations::Keep, Activations::Recompute] {
            let got = backward(&prior, &stream, activations, None);
            assert_eq!(floats(got.found.loss.loss), floats(loss.clone()));
            assert_eq!(got.gradients, expected, "{cpu}, {activations:?}");
        }
    }
}

/// What a backward pass returns, and the gradients in the order of the parameters.
struct Differentiated {
    found: PriorBackward,
    gradients: Vec<Vec<f32>>,
}

fn backward(
    prior: &Prior,
    stream: &Stream,
    activations: Activations,
    mixed: Option<MixedPrecision>,
) -> Differentiated {
    let mut sums = GradientSums::new(prior.cpu());
    let options = ChainOptions { activations, mixed };
    let found = prior.backward(stream, &prior.blocks(), &mut sums, options).unwrap();
    Differentiated { found, gradients: sums.to_host(prior) }
}

/// A source that holds at most the layers that were announced, and a sink that only remembers the
/// order of the parts.
struct Fetched<'a> {
    layers: &'a [Block],
    held: Mutex<BTreeSet<usize>>,
    most: AtomicUsize,
}

impl BlockSource for Fetched<'_> {
    fn get(&self, layer: usize) -> anyhow::Result<Block> {
        self.prefetch(layer);
        BlockSource::get(&self.layers, layer)
    }

    fn prefetch(&self, layer: usize) {
        let mut held = self.held.lock().unwrap();
        held.insert(layer);
        self.most.fetch_max(held.len(), Ordering::Relaxed);
    }

    fn release(&self, layer: usize) {
        self.held.lock().unwrap().remove(&layer);
    }
}

struct Order(Vec<Part>);

impl GradientSink for Order {
    fn take(&mut self, part: Part, gradients: Vec<ParamGradient>, _: Option<f32>) -> anyhow::Result<bool> {
        assert!(!gradients.is_empty());
        self.0.push(part);
        Ok(true)
    }
}

#[test]
fn layers_are_fetched_one_ahead_and_gradients_leave_part_by_part() {
    let prior = prior_on(exact());
    let source = Fetched { layers: prior.blocks(), held: Mutex::default(), most: AtomicUsize::new(0) };
    let mut order = Order(Vec::new());
    let options = ChainOptions { activations: Activations::Recompute, mixed: None };
    prior.backward(&stream(), &source, &mut order, options).unwrap();
    assert_eq!((source.most.into_inner(), source.held.into_inner().unwrap().len()), (2, 0));
    let resblocks = (0..prior.n_resblocks()).rev().map(Part::Resblock);
    let expected: Vec<Part> = [Part::Heads].into_iter().chain(resblocks).chain([Part::Embed]).collect();
    assert_eq!(order.0, expected);
}

/// Gradients of the small prior with f32 products: in mixed precision with `scales`, and without.
fn mixed_and_plain(storage: Option<SmallFloat>, scales: &[f32]) -> [Differentiated; 2] {
    let (prior, stream) = (prior_on(exact()), stream());
    let gradients = |mixed| backward(&prior, &stream, Activations::Keep, mixed);
    [gradients(Some(MixedPrecision { storage, scales })), gradients(None)]
}

#[test]
fn in_32_bits_no_scale_changes_a_gradient() {
    let scales: Vec<f32> = (0..prior().n_resblocks()).map(|i| (i as f32 * 3.0 - 4.0).exp2()).collect();
    let [scaled, plain] = mixed_and_plain(None, &scales);
    assert!(scaled.found.overflowed.is_empty());
    for (scaled, plain) in scaled.gradients.iter().zip(&plain.gradients) {
        let size = plain.iter().fold(0.0_f32, |size, value| size.max(value.abs()));
        assert!(scaled.iter().zip(plain).all(|(a, b)| (a - b).abs() <= 1e-4 * size), "{scaled:?}\n{plain:?}");
    }
}

#[test]
fn the_first_resblock_whose_output_is_not_finite_is_named() {
    let first = |name: &str, mixed| {
        let mut weights = crate::nn::export(&prior());
        let bias = weights.iter_mut().find(|weight| weight.name == name).unwrap();
        bias.values[0] = f32::NAN;
        let prior = crate::nn::import(prior_on(exact()), &weights).unwrap();
        let got = backward(&prior, &stream(), Activations::Recompute, mixed);
        got.found.overflowed.first().copied()
    };
    for mixed in [None, Some(MixedPrecision { storage: None, scales: &[1.0; 8] })] {
        assert_eq!(first("blocks.0.mlp_out.bias", mixed), Some(1), "{mixed:?}");
        assert_eq!(first("blocks.2.attn_out.bias", mixed), Some(4), "{mixed:?}");
    }
}

/// This is why each resblock has its own scale (paper §2.4): one that is too small for a resblock
/// loses the gradients of that resblock only.
#[test]
fn an_underflow_in_16_bits_stays_in_its_resblock() {
    let n = prior().n_resblocks();
    let lost = |scales: &[f32]| -> Vec<bool> {
        let [scaled, _] = mixed_and_plain(Some(SmallFloat::F16), scales);
        let weights = crate::nn::export(&prior());
        let all_zero = |name: &str| {
            let at = weights.iter().position(|weight| weight.name == name).unwrap();
            scaled.gradients[at].iter().all(|&value| value == 0.0)
        };
        let names = ["attn_out.weight", "mlp_out.weight"];
        (0..n).map(|i| all_zero(&format!("blocks.{}.{}", i / 2, names[i % 2]))).collect()
    };
    let small = 2.0_f32.powi(-24);
    assert_eq!(lost(&vec![256.0; n]), vec![false; n]);
    assert_eq!(lost(&vec![small; n]), vec![true; n]);
    for under in 0..n {
        let scales: Vec<f32> = (0..n).map(|i| if i == under { small } else { 256.0 }).collect();
        assert_eq!(lost(&scales), (0..n).map(|i| i == under).collect::<Vec<_>>());
    }
}

#[test]
fn an_overflow_in_16_bits_stays_in_its_resblock() {
    let n = prior().n_resblocks();
    for over in 0..n {
        let scales: Vec<f32> = (0..n).map(|i| if i == over { 1e30 } else { 256.0 }).collect();
        let [scaled, plain] = mixed_and_plain(Some(SmallFloat::F16), &scales);
        assert_eq!(scaled.found.overflowed, [over]);
        // The gradient of the embeddings has passed through all resblocks.
        let size = |all: &Differentiated| all.gradients[0].iter().map(|value| value * value).sum::<f32>();
        assert!(
            size(&scaled).is_finite() && size(&scaled) > 0.0,
            "{} without, {} with",
            size(&plain),
            size(&scaled)
        );
    }
}

/// With `Logits::F32` the losses and all gradients from the heads on are bit-identical to those of
/// f32, even if the layers multiply bf16. With `Logits::Auto` they are not.
#[test]
fn f32_logits_have_the_loss_and_gradients_of_f32() {
    let x: Vec<f32> = (0..2 * 12 * 8).map(|i| (i as f32 * 0.37).sin()).collect();
    let found = |logits: Logits, cpu: Cpu| {
        let prior = stirred(Prior::new(&PriorConfig { logits, ..config() }, 1, cpu), 0.3).train();
        let leaf = Tensor::<3>::from_data(TensorData::new(x.clone(), [2, 12, 8]), &Device::flex());
        let leaf = leaf.autodiff().require_grad();
        let loss = prior.loss_of_states(leaf.clone(), &stream());
        let mut gradients = loss.loss.backward();
        let toward = floats(leaf.grad_remove(&mut gradients).unwrap());
        let head = prior.image_head.weight.val().grad_remove(&mut gradients).unwrap();
        (floats(loss.loss), toward, floats(head))
    };
    for cpu in Cpu::all() {
        let exact = found(Logits::Auto, cpu.in_f32());
        assert_eq!(found(Logits::F32, cpu), exact, "{cpu}");
        assert_eq!(found(Logits::Auto, cpu) == exact, !cpu.bf16(), "{cpu}");
    }
}

#[test]
fn config_without_logits_is_read_as_auto() {
    let mut old = serde_json::to_value(config()).unwrap();
    assert!(old.as_object_mut().unwrap().remove("logits").is_some());
    assert_eq!(serde_json::from_value::<PriorConfig>(old).unwrap(), config());
}
