//! ★ The loss of stage 2, the prior (paper §2.2): text and image cross-entropy, weighted by 1/8 and
//! 7/8.
//!
//! [`Prior::loss`](super::Prior::loss) computes the two cross-entropies and passes them to
//! [`weighted_cross_entropy`].

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor, TensorData};

use super::Stream;

/// The weight of the text loss in the total loss (paper §2.2). The image loss has the weight 7/8.
const TEXT_WEIGHT: f64 = 1.0 / 8.0;

/// The loss and its parts, in nats.
#[derive(Debug, Clone)]
pub struct PriorLoss {
    /// The value that training minimises: `1/8 · text_per_token + 7/8 · image_per_token`, `[1]`.
    pub loss: Tensor<1>,
    /// The mean cross-entropy over all text positions, including padding, `[1]`.
    pub text_per_token: Tensor<1>,
    /// The mean cross-entropy over all image positions, `[1]`.
    pub image_per_token: Tensor<1>,
}

/// Computes the weighted sum of the text and the image loss (paper §2.2).
///
/// Both arguments are means in nats per token, `[1]`: the text loss is divided by the number of
/// text tokens, and the image loss by the number of image tokens.
pub fn weighted_cross_entropy(text_per_token: Tensor<1>, image_per_token: Tensor<1>) -> PriorLoss {
    let loss = text_per_token.clone() * TEXT_WEIGHT + image_per_token.clone() * (1.0 - TEXT_WEIGHT);
    PriorLoss { loss, text_per_token, image_per_token }
}

/// Computes the cross-entropy −ln p of each image token of `stream`, `[B, Ti]`, in nats. `image`
/// contains the logits, `[B, Ti, image_vocab]`. Evaluation uses this; training needs only the mean.
pub fn image_nats(image: Tensor<3>, stream: &Stream) -> Tensor<2> {
    let [b, t, v] = image.dims();
    let values: Vec<i32> = stream.image.iter().map(|&id| id as i32).collect();
    let targets: Tensor<2, Int> = Tensor::from_data(TensorData::new(values, [b * t, 1]), &image.device());
    -log_softmax(image.reshape([b * t, v]), 1).gather(1, targets).reshape([b, t])
}
