//! One layer of either tower: attention and an MLP on the residual stream, each after a layer norm
//! (CLIP, Radford et al. 2021).

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Tensor, activation::gelu};
use tessera_kernels::{Activation, AttentionPlan, Cpu, pattern_attention};

use super::{Gelu, TowerConfig};
use crate::nn::{Init, LayerNorm, Linear};

/// One layer: `h += attention(norm(h)); h += mlp(norm(h))`.
#[derive(Module, Debug)]
pub struct Block {
    pub(crate) attn_norm: LayerNorm,
    pub(crate) qkv: Linear,
    pub(crate) attn_out: Linear,
    pub(crate) mlp_norm: LayerNorm,
    pub(crate) mlp_in: Linear,
    pub(crate) mlp_out: Linear,
    #[module(skip)]
    n_heads: usize,
    #[module(skip)]
    gelu: Gelu,
    #[module(skip)]
    cpu: Cpu,
}

impl Block {
    /// A layer with CLIP's initial weights: N(0, 1/√D) for the queries, keys and values, N(0,
    /// 1/√(2D)) for the input of the MLP, and N(0, 1/√(D · 2 · layers)) for the two outputs to the
    /// residual stream.
    pub(super) fn new(config: &TowerConfig, gelu: Gelu, init: &mut Init) -> Block {
        let d = config.width;
        let std = |fan: usize| 1.0 / (fan as f64).sqrt();
        let residual = std(d) * std(2 * config.n_layers);
        Block {
            attn_norm: LayerNorm::new(init, d),
            qkv: Linear::new(init, [d, 3 * d], std(d)),
            attn_out: Linear::new(init, [d, d], residual),
            mlp_norm: LayerNorm::new(init, d),
            mlp_in: Linear::new(init, [d, 4 * d], std(2 * d)),
            mlp_out: Linear::new(init, [4 * d, d], residual),
            n_heads: config.n_heads,
            gelu,
            cpu: init.cpu(),
        }
    }

    /// Runs the layer: `[B, T, D]` → `[B, T, D]`. `plan` says which of the `T` positions attend to
    /// which.
    pub(super) fn forward(&self, x: Tensor<3>, plan: &Arc<AttentionPlan>) -> Tensor<3> {
        let qkv = self.qkv.activated(self.attn_norm.forward(x.clone()), Activation::None);
        let x = self.attn_out.add_to(x, pattern_attention(self.cpu, qkv, self.n_heads, plan));
        let h = self.mlp_norm.forward(x.clone());
        let h = match self.gelu {
            Gelu::Quick => self.mlp_in.activated(h, Activation::Gelu),
            Gelu::Exact => gelu(self.mlp_in.activated(h, Activation::None)),
        };
        self.mlp_out.add_to(x, h)
    }
}
