//! ★ The loss of stage 2 (paper §2.2): text and image cross-entropy, weighted 1/8 and 7/8.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor, TensorData};

use super::Stream;

/// Share of the text loss in the total (paper §2.2).
const TEXT_WEIGHT: f64 = 1.0 / 8.0;

/// The loss and its parts, in nats.
#[derive(Debug, Clone)]
pub struct PriorLoss {
    /// `1/8 text + 7/8 image`, `[1]`
    pub loss: Tensor<1>,
    /// Mean over all text slots, pads included, `[1]`
    pub text_per_token: Tensor<1>,
    /// Mean over picture tokens, `[1]`
    pub image_per_token: Tensor<1>,
}

/// Each modality's cross-entropy is divided by its own number of tokens, then weighted (paper §2.2).
///
/// `text` `[B, Tt, text_vocab + Tt]` and `image` `[B, Ti, image_vocab]` are logits; targets are those of `stream`.
pub fn weighted_cross_entropy(text: Tensor<3>, image: Tensor<3>, stream: &Stream) -> PriorLoss {
    let text_per_token = token_nats(text, &stream.text).mean();
    let image_per_token = token_nats(image, &stream.image).mean();
    let loss = text_per_token.clone() * TEXT_WEIGHT + image_per_token.clone() * (1.0 - TEXT_WEIGHT);
    PriorLoss { loss, text_per_token, image_per_token }
}

/// −ln p of every picture token, `[B, Ti]`.
pub fn image_nats(image: Tensor<3>, stream: &Stream) -> Tensor<2> {
    let [b, t, _] = image.dims();
    token_nats(image, &stream.image).reshape([b, t])
}

/// −ln p(target), `[B·T, 1]`; logits `[B, T, V]` in f32.
fn token_nats(logits: Tensor<3>, targets: &[u32]) -> Tensor<2> {
    let [b, t, v] = logits.dims();
    let values: Vec<i32> = targets.iter().map(|&id| id as i32).collect();
    let targets: Tensor<2, Int> = Tensor::from_data(TensorData::new(values, [b * t, 1]), &logits.device());
    -log_softmax(logits.reshape([b * t, v]), 1).gather(1, targets)
}
