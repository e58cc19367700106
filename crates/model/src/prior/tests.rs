//! The prior against its definition: parameter count, causality by gradient, the cache, finite differences.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::*;
use crate::weights::{export, import};

fn config() -> PriorConfig {
    PriorConfig {
        text_len: 3,
        text_vocab: 7,
        grid: 3,
        image_vocab: 5,
        d_model: 8,
        n_layers: 4,
        n_heads: 2,
        conv_kernel: 3,
    }
}

/// A prior whose weights are all far from zero, heads included.
fn prior() -> Prior {
    let prior = Prior::new(&config(), 1, &Device::default());
    let mut weights = export(&prior);
    for (i, value) in weights.iter_mut().flat_map(|w| &mut w.values).enumerate() {
        *value += 0.3 * ((i * 7919) as f32).sin();
    }
    import(prior, &weights).unwrap()
}

fn stream() -> Stream {
    let text = [[1, 4, 9], [6, 8, 9]].concat(); // slots 7.. are pads
    let image = [[0, 1, 2, 3, 4, 0, 1, 2, 3], [4, 4, 3, 3, 2, 2, 1, 1, 0]].concat();
    Stream::new(2, text, image, &config()).unwrap()
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
}

#[test]
fn zero_heads_start_at_the_uniform_loss() {
    let (text, image) = Prior::new(&config(), 1, &Device::default()).forward(&stream());
    let loss = weighted_cross_entropy(text, image, &stream());
    let expected = 10_f32.ln() / 8.0 + 7.0 / 8.0 * 5_f32.ln();
    assert!((floats(loss.loss)[0] - expected).abs() < 1e-5);
}

/// The gradient of one image logit with respect to the summed position inputs of every token.
///
/// Each image position has one row and column cell, so the token it reads is found by changing that token instead.
#[test]
fn no_logit_depends_on_its_own_or_a_later_token() {
    let prior = prior();
    let base = logits(&prior, &stream());
    let n = config().stream_len();
    for changed in 0..n {
        let mut other = stream();
        match changed < 3 {
            true => other.text[changed] = 0,
            false => other.image[changed - 3] = (other.image[changed - 3] + 1) % 5,
        }
        let moved = logits(&prior, &other);
        for at in 0..n {
            let same = base[at] == moved[at];
            assert!(at > changed || same, "logits at {at} depend on token {changed}");
        }
        // Tokens of the last text slot and of the last cell are never an input.
        let read = changed != 2 && changed != n - 1;
        assert_eq!(base[n - 1] != moved[n - 1] || (changed >= 3 && base != moved), read, "token {changed}");
    }
}

/// Logits of the first stream, one row a position.
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
    // d logit / d embedding row is zero for tokens that occur only at or behind the logit's position.
    let device = Device::default();
    let prior = Prior::new(&config(), 1, &device).train();
    let stream = Stream::new(1, vec![1, 2, 3], vec![0, 1, 2, 3, 4, 4, 4, 4, 4], &config()).unwrap();
    let weights: Vec<_> = export(&prior)
        .into_iter()
        .map(|mut w| {
            w.values.iter_mut().enumerate().for_each(|(i, v)| *v += 0.2 * ((i * 31) as f32).cos());
            w
        })
        .collect();
    let prior = import(prior, &weights).unwrap().train();
    let (_, image) = prior.forward(&stream);
    let gradients = image.narrow(1, 2, 1).sum().backward(); // the logits of cell 2 read tokens 0 and 1
    let table: &Param<Tensor<2>> = &prior.embed.image;
    let rows = floats(table.val().grad(&gradients).unwrap());
    let norm = |row: usize| rows[row * 8..(row + 1) * 8].iter().map(|v| v.abs()).sum::<f32>();
    assert!(norm(0) > 0.0 && norm(1) > 0.0);
    assert_eq!((norm(2), norm(3), norm(4)), (0.0, 0.0, 0.0));
}

#[test]
fn cached_decoding_equals_the_full_forward() {
    let (prior, stream) = (prior(), stream());
    let (_, full) = prior.forward(&stream);
    let mut cache = prior.cache();
    prior.prefill(&stream, &mut cache);
    for at in 0..9 {
        let previous: Vec<u32> = stream.image.chunks(9).filter_map(|row| row[..at].last().copied()).collect();
        let step = floats(prior.next_image(&previous, 2, at, &mut cache));
        let row = floats(full.clone().narrow(1, at, 1));
        for (a, b) in step.iter().zip(&row) {
            assert!((a - b).abs() < 1e-4, "position {at}: {a} is not {b}");
        }
    }
}

#[test]
fn the_loss_gradient_matches_finite_differences() {
    let loss = |prior: &Prior| {
        let (text, image) = prior.forward(&stream());
        weighted_cross_entropy(text, image, &stream()).loss
    };
    let model = prior();
    let train = model.clone().train();
    let gradients = crate::weights::gradients(&train, loss(&train).backward()).unwrap();
    let weights = export(&model);
    for (index, gradient) in gradients.iter().enumerate() {
        let at = gradient.len() / 2;
        let shifted = |by: f32| {
            let mut weights = weights.clone();
            weights[index].values[at] += by;
            f64::from(floats(loss(&import(model.clone(), &weights).unwrap()))[0])
        };
        let numeric = (shifted(3e-3) - shifted(-3e-3)) / 6e-3;
        let exact = f64::from(gradient[at]);
        let close = (numeric - exact).abs() < 2e-4 + 0.02 * exact.abs();
        assert!(close, "{}[{at}]: {numeric} numeric, {exact} exact", weights[index].name);
    }
}
