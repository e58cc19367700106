//! ★ The contrastive loss: which caption belongs to which picture, both ways round (CLIP, Radford et al. 2021, §2.3).

use burn::tensor::{Int, Tensor, TensorData, activation::log_softmax};

/// `[B, E]` → rows of unit length.
pub fn unit_rows(x: Tensor<2>) -> Tensor<2> {
    let length = x.clone().powi_scalar(2).sum_dim(1).sqrt().clamp_min(1e-12);
    x / length
}

/// What [`contrastive`] returns, `[1]` each.
#[derive(Debug, Clone)]
pub struct ContrastiveLoss {
    /// Mean of the two cross-entropies, in nats a pair.
    pub loss: Tensor<1>,
    /// Of the right caption among all, for each picture.
    pub image_to_text: Tensor<1>,
    /// Of the right picture among all, for each caption.
    pub text_to_image: Tensor<1>,
}

/// The symmetric cross-entropy of `scale · images · textsᵀ` toward its diagonal: `images` and `texts` `[B, E]` of unit length, pair by
/// pair, `scale` `[1]`.
pub fn contrastive(images: Tensor<2>, texts: Tensor<2>, scale: Tensor<1>) -> ContrastiveLoss {
    let logits = images.matmul(texts.transpose()) * scale.unsqueeze(); // [B, B]
    let image_to_text = cross_entropy_of_diagonal(logits.clone());
    let text_to_image = cross_entropy_of_diagonal(logits.transpose());
    let loss = (image_to_text.clone() + text_to_image.clone()) * 0.5;
    ContrastiveLoss { loss, image_to_text, text_to_image }
}

/// −mean of the diagonal of `log_softmax` of the rows.
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
    fn rows_come_out_with_length_one() {
        let unit = unit_rows(rows(&[3.0, 4.0, 0.0, -2.0], 2)).into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(unit, [0.6, 0.8, 0.0, -1.0]);
    }

    #[test]
    fn the_loss_is_what_is_worked_out_by_hand() {
        // Pictures along the axes; the first caption like the first, the second halfway between. With a scale of 2 the logits are
        // [[2, √2], [0, √2]].
        let half = std::f32::consts::FRAC_1_SQRT_2;
        let scale = rows(&[2.0], 1).reshape([1]);
        let loss = contrastive(rows(&[1.0, 0.0, 0.0, 1.0], 2), rows(&[1.0, 0.0, half, half], 2), scale);
        let root = 2f64.sqrt();
        let surprise = |right: f64, other: f64| (1.0 + (other - right).exp()).ln();
        let by_row = (surprise(2.0, root) + surprise(root, 0.0)) / 2.0;
        let by_column = (surprise(2.0, 0.0) + surprise(root, root)) / 2.0;
        assert!((number(loss.image_to_text) - by_row).abs() < 1e-6);
        assert!((number(loss.text_to_image) - by_column).abs() < 1e-6);
        assert!((number(loss.loss) - (by_row + by_column) / 2.0).abs() < 1e-6);
    }

    #[test]
    fn pairs_that_are_alike_cost_nothing_and_all_the_same_cost_a_guess() {
        let scale = || rows(&[100.0], 1).reshape([1]);
        let axes = || rows(&[1.0, 0.0, 0.0, 1.0], 2);
        assert!(number(contrastive(axes(), axes(), scale()).loss) < 1e-6);
        let same = || rows(&[1.0, 0.0, 1.0, 0.0, 1.0, 0.0], 2);
        assert!((number(contrastive(same(), same(), scale()).loss) - 3f64.ln()).abs() < 1e-6);
    }
}
