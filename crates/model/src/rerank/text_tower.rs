//! The text tower: a causal transformer over a caption between two marks, whose state at the second mark is the caption's.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};
use tessera_kernels::Plan;

use super::block::Block;
use super::image_tower::project;
use super::{ClipConfig, TowerConfig};
use crate::nn::{Init, LayerNorm};

/// Captions `[B, T]` → embeddings `[B, E]`, not yet of unit length.
#[derive(Module, Debug)]
pub struct TextTower {
    /// `[V, D]`
    pub(crate) tokens: Param<Tensor<2>>,
    /// `[T, D]`
    pub(crate) positions: Param<Tensor<2>>,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm_out: LayerNorm,
    /// `[D, E]`
    pub(crate) projection: Param<Tensor<2>>,
    #[module(skip)]
    plan: Arc<Plan>,
}

impl TextTower {
    /// CLIP's first weights: tokens N(0, 0.02), positions N(0, 0.01), projection N(0, 1/√D).
    pub(super) fn new(config: &ClipConfig, init: &mut Init) -> TextTower {
        let TowerConfig { width: d, n_layers, .. } = config.text;
        TextTower {
            tokens: init.normal([config.text_vocab, d], 0.02),
            positions: init.normal([config.context, d], 0.01),
            blocks: (0..n_layers).map(|_| Block::new(&config.text, config.gelu, init)).collect(),
            norm_out: LayerNorm::new(init, d),
            projection: init.normal([d, config.embed], 1.0 / (d as f64).sqrt()),
            plan: Arc::new(Plan::new((0..config.context).collect(), |query, key| key <= query)),
        }
    }

    /// Rows of `context` ids, each with its end mark, the largest id, somewhere (what is behind it is not seen) → `[B, E]`
    pub(super) fn forward(&self, ids: &[u32]) -> Tensor<2> {
        let ([_, d], [t, _]) = (self.tokens.dims(), self.positions.dims());
        let b = ids.len() / t;
        let device = self.tokens.val().device();
        let indices = |values: Vec<i32>| -> Tensor<1, Int> {
            let n = values.len();
            Tensor::from_data(TensorData::new(values, [n]), &device)
        };
        let x = self.tokens.val().select(0, indices(ids.iter().map(|&id| id as i32).collect()));
        let x = x.reshape([b, t, d]) + self.positions.val().unsqueeze(); // [B, T, D]
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x, &self.plan));
        let ends = ids.chunks(t).enumerate().map(|(row, ids)| (row * t + end(ids)) as i32).collect();
        let x = x.reshape([b * t, d]).select(0, indices(ends)); // [B, D]
        project(self.norm_out.forward(x), &self.projection)
    }
}

/// Where the largest id first stands.
fn end(ids: &[u32]) -> usize {
    let largest = ids.iter().max();
    ids.iter().position(|id| Some(id) == largest).unwrap_or(0)
}
