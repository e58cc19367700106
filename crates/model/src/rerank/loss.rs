//! ★ The loss of the contrastive model (CLIP, Radford et al. 2021, §2.3): for each picture of a
//! batch, the model predicts which caption belongs to it, and for each caption, which picture.

use burn::tensor::{Int, Tensor, TensorData, activation::log_softmax};

/// Scales each row of `[B, E]` to unit length.
pub fn unit_rows(x: Tensor<2>) -> Tensor<2> {
    let length = x.clone().powi_scalar(2).sum_dim(1).sqrt().clamp_min(1e-12); // [B, 1]
    x / length
}

/// The loss and its two parts. Each is a mean cross-entropy in nats per pair, `[1]`.
#[derive(Debug, Clone)]
pub struct ContrastiveLoss {
    /// The value that training minimises: the mean of the two parts.
    pub loss: Tensor<1>,
    /// The cross-entropy of choosing the caption of each picture among all captions of the batch.
    pub image_to_text: Tensor<1>,
    /// The cross-entropy of choosing the picture of each caption among all pictures of the batch.
    pub text_to_image: Tensor<1>,
}

/// Computes the symmetric cross-entropy of a batch of pairs, with the logits
/// `scale · images · textsᵀ`.
///
/// - `images`, `texts`: embeddings of unit length, `[B, E]`. Row `i` of both belongs to pair `i`,
///   so the correct classes are on the diagonal of the logits.
/// - `scale`: the inverse temperature, by which the cosines are multiplied, `[1]`.
pub fn contrastive(images: Tensor<2>, texts: Tensor<2>, scale: Tensor<1>) -> ContrastiveLoss {
    let logits = images.matmul(texts.transpose()) * scale.unsqueeze(); // [B, B]
    let image_to_text = cross_entropy_of_diagonal(logits.clone());
    let text_to_image = cross_entropy_of_diagonal(logits.transpose());
    let loss = (image_to_text.clone() + text_to_image.clone()) * 0.5;
    ContrastiveLoss { loss, image_to_text, text_to_image }
}

/// Computes the mean cross-entropy of the rows of `logits`, `[B, B]`. The correct class of row `i`
/// is `i`.
fn cross_entropy_of_diagonal(logits: Tensor<2>) -> Tensor<1> {
    let [b, _] = logits.dims();
    let diagonal = TensorData::new((0..b as i32).collect::<Vec<_>>(), [b, 1]);
    let diagonal: Tensor<2, Int> = Tensor::from_data(diagonal, &logits.device());
    log_softmax(logits, 1).gather(1, diagonal).mean().neg()
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn rows(values: &[f32], e: usize) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values.to_vec(), [values.len() / e, e]), &Device::flex())
    }

    fn number(x: Tensor<1>) -> f64 {
        x.into_scalar::<f64>()
    }

    #[test]
    fn unit_rows_have_length_one() {
        let unit = unit_rows(rows(&[3.0, 4.0, 0.0, -2.0], 2)).into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(unit, [0.6, 0.8, 0.0, -1.0]);
    }

    #[test]
    fn contrastive_loss_equals_the_formula_for_two_pairs() {
        // The pictures are the two axes. The first caption equals the first picture, the second
        // lies halfway between both. With a scale of 2 the logits are [[2, √2], [0, √2]].
        let half = std::f32::consts::FRAC_1_SQRT_2;
        let scale = rows(&[2.0], 1).reshape([1]);
        let loss = contrastive(rows(&[1.0, 0.0, 0.0, 1.0], 2), rows(&[1.0, 0.0, half, half], 2), scale);
        let root = 2f64.sqrt();
        let cross_entropy = |correct: f64, other: f64| (1.0 + (other - correct).exp()).ln();
        let by_row = (cross_entropy(2.0, root) + cross_entropy(root, 0.0)) / 2.0;
        let by_column = (cross_entropy(2.0, 0.0) + cross_entropy(root, root)) / 2.0;
        assert!((number(loss.image_to_text) - by_row).abs() < 1e-6);
        assert!((number(loss.text_to_image) - by_column).abs() < 1e-6);
        assert!((number(loss.loss) - (by_row + by_column) / 2.0).abs() < 1e-6);
    }

    #[test]
    fn perfect_pairs_cost_zero_and_equal_embeddings_ln_b() {
        let scale = || rows(&[100.0], 1).reshape([1]);
        let axes = || rows(&[1.0, 0.0, 0.0, 1.0], 2);
        assert!(number(contrastive(axes(), axes(), scale()).loss) < 1e-6);
        let same = || rows(&[1.0, 0.0, 1.0, 0.0, 1.0, 0.0], 2);
        assert!((number(contrastive(same(), same(), scale()).loss) - 3f64.ln()).abs() < 1e-6);
    }
}
