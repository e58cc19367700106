//! The image tower: a vision transformer over patches and a class token. The final state of the
//! class token gives the picture's embedding.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use tessera_kernels::{AttentionPlan, Cpu, layer_norm_reference, linear_f32};

use super::block::Block;
use super::{ClipConfig, TowerConfig};
use crate::nn::{Init, LayerNorm, Role};

/// Maps patches `[B, n, 3·P²]` to embeddings `[B, E]`, which are not of unit length.
#[derive(Module, Debug)]
pub struct ImageTower {
    /// `[3·P², D]`: the convolution whose stride is the patch size, without a bias. Its rows are
    /// ordered by channel, then row, then column of the patch.
    pub(crate) patch: Param<Tensor<2>>,
    /// `[D]`
    pub(crate) class: Param<Tensor<1>>,
    /// `[1 + n, D]`
    pub(crate) positions: Param<Tensor<2>>,
    pub(crate) norm_in: LayerNorm,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm_out: LayerNorm,
    /// `[D, E]`
    pub(crate) projection: Param<Tensor<2>>,
    #[module(skip)]
    plan: Arc<AttentionPlan>,
    #[module(skip)]
    cpu: Cpu,
}

impl ImageTower {
    /// A tower with CLIP's initial weights: class token, positions and projection N(0, 1/√D).
    pub(super) fn new(config: &ClipConfig, init: &mut Init) -> ImageTower {
        let TowerConfig { width: d, n_layers, .. } = config.image;
        let std = 1.0 / (d as f64).sqrt();
        let inputs = 3 * config.patch * config.patch;
        let len = 1 + config.n_patches();
        ImageTower {
            // The variance with which PyTorch initialises a convolution; CLIP does not change it.
            patch: init.normal(Role::Head, [inputs, d], 1.0 / (3.0 * inputs as f64).sqrt()),
            class: init.normal(Role::Embedding, [d], std),
            positions: init.normal(Role::Embedding, [len, d], std),
            norm_in: LayerNorm::new(init, d),
            blocks: (0..n_layers).map(|_| Block::new(&config.image, config.gelu, init)).collect(),
            norm_out: LayerNorm::new(init, d),
            projection: init.normal(Role::Head, [d, config.embed], std),
            plan: Arc::new(AttentionPlan::new((0..len).collect(), |_, _| true)),
            cpu: init.cpu(),
        }
    }

    /// Runs the tower: `[B, n, 3·P²]` → `[B, E]`.
    pub(super) fn forward(&self, patches: Tensor<3>) -> Tensor<2> {
        let [b, _, _] = patches.dims();
        let [d] = self.class.dims();
        let no_bias = Tensor::zeros([d], &patches.device());
        let patches = linear_f32(self.cpu, patches, self.patch.val(), no_bias); // [B, n, D]
        let class = self.class.val().reshape([1, 1, d]).expand([b, 1, d]);
        // [B, 1 + n, D]
        let x = Tensor::cat(vec![class, patches], 1) + self.positions.val().unsqueeze();
        // This norm produces the residual stream, which has 32 bits; `LayerNorm::forward` may give
        // bf16.
        let x = layer_norm_reference(x, self.norm_in.gain.val(), self.norm_in.bias.val(), LayerNorm::EPSILON);
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x, &self.plan));
        let class = x.narrow(1, 0, 1).reshape([b, d]);
        project(self.cpu, self.norm_out.forward(class), &self.projection)
    }
}

/// `x W` in f32: `[B, D]` → `[B, E]`.
pub(super) fn project(cpu: Cpu, x: Tensor<2>, projection: &Param<Tensor<2>>) -> Tensor<2> {
    let [_, e] = projection.dims();
    let no_bias = Tensor::zeros([e], &projection.val().device());
    linear_f32(cpu, x, projection.val(), no_bias)
}
