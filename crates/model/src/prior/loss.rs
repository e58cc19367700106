//! ★ The loss of stage 2 (paper §2.2): text and image cross-entropy, weighted by 1/8 and 7/8.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor, TensorData};

use super::Stream;

/// Weight of the text loss in the total loss; the image loss has the rest (paper §2.2).
const TEXT_WEIGHT: f64 = 1.0 / 8.0;

/// The loss and its parts, in nats.
#[derive(Debug, Clone)]
pub struct PriorLoss {
    /// `1/8 · text_per_token + 7/8 · image_per_token`, `[1]`: what training minimises.
    pub loss: Tensor<1>,
    /// Mean cross-entropy over all text positions, pads included, `[1]`.
    pub text_per_token: Tensor<1>,
    /// Mean cross-entropy over all image positions, `[1]`.
    pub image_per_token: Tensor<1>,
}

/// The weighted sum of the text and the image loss (paper §2.2).
///
/// Both arguments are cross-entropies divided by the number of tokens of their own modality: mean
/// nats per token, `[1]`.
pub fn weighted_cross_entropy(text_per_token: Tensor<1>, image_per_token: Tensor<1>) -> PriorLoss {
    let loss = text_per_token.clone() * TEXT_WEIGHT + image_per_token.clone() * (1.0 - TEXT_WEIGHT);
    PriorLoss { loss, text_per_token, image_per_token }
}

/// The cross-entropy −ln p of each picture token of `stream`, `[B, Ti]`, under the logits `image`,
/// `[B, Ti, image_vocab]`.
pub fn image_nats(image: Tensor<3>, stream: &Stream) -> Tensor<2> {
    let [b, t, v] = image.dims();
    let values: Vec<i32> = stream.image.iter().map(|&id| id as i32).collect();
    let targets: Tensor<2, Int> = Tensor::from_data(TensorData::new(values, [b * t, 1]), &image.device());
    -log_softmax(image.reshape([b * t, v]), 1).gather(1, targets).reshape([b, t])
}
