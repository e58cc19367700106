//! The text tower: a causal transformer over a caption between a begin and an end token. The final
//! state of the end token gives the caption's embedding.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};
use tessera_kernels::{AttentionPlan, Cpu};

use super::block::Block;
use super::image_tower::project;
use super::{ClipConfig, TowerConfig};
use crate::nn::{Init, LayerNorm, Role};

/// Maps captions `[B, T]` to embeddings `[B, E]`, which are not of unit length.
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
    cpu: Cpu,
}

impl TextTower {
    /// A tower with CLIP's initial weights: tokens N(0, 0.02), positions N(0, 0.01), projection
    /// N(0, 1/√D).
    pub(super) fn new(config: &ClipConfig, init: &mut Init) -> TextTower {
        let TowerConfig { width: d, n_layers, .. } = config.text;
        TextTower {
            tokens: init.normal(Role::Embedding, [config.text_vocab, d], 0.02),
            positions: init.normal(Role::Embedding, [config.context, d], 0.01),
            blocks: (0..n_layers).map(|_| Block::new(&config.text, config.gelu, init)).collect(),
            norm_out: LayerNorm::new(init, d),
            projection: init.normal(Role::Head, [d, config.embed], 1.0 / (d as f64).sqrt()),
            cpu: init.cpu(),
        }
    }

    /// Runs the tower: `B` rows of `context` ids → `[B, E]`.
    ///
    /// The end token of a row is its largest id; ids after it have no effect. Positions after the
    /// last end token of the batch are not computed, since most captions are much shorter than the
    /// context.
    pub(super) fn forward(&self, ids: &[u32]) -> Tensor<2> {
        let ([_, d], [context, _]) = (self.tokens.dims(), self.positions.dims());
        let ends: Vec<usize> = ids.chunks(context).map(end).collect();
        let (b, t) = (ends.len(), ends.iter().max().map_or(1, |last| last + 1));
        let read = ids.chunks(context).flat_map(|ids| &ids[..t]).map(|&id| id as i32).collect();
        let positions = self.positions.val().narrow(0, 0, t).unsqueeze();
        // [B, T, D]
        let x = self.tokens.val().select(0, self.indices(read)).reshape([b, t, d]) + positions;
        let plan = Arc::new(AttentionPlan::new((0..t).collect(), |query, key| key <= query));
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x, &plan));
        let ends = ends.iter().enumerate().map(|(row, end)| (row * t + end) as i32).collect();
        let x = x.reshape([b * t, d]).select(0, self.indices(ends)); // [B, D]
        project(self.cpu, self.norm_out.forward(x), &self.projection)
    }

    fn indices(&self, values: Vec<i32>) -> Tensor<1, Int> {
        let n = values.len();
        Tensor::from_data(TensorData::new(values, [n]), &self.tokens.val().device())
    }
}

/// The position of the end token: the first occurrence of the largest id.
fn end(ids: &[u32]) -> usize {
    let largest = ids.iter().max();
    ids.iter().position(|id| Some(id) == largest).unwrap_or(0)
}
