//! One layer: an attention and an MLP residual block on the residual stream (paper §B.1, Child et al. 2019 §5-6).

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Tensor;
use tessera_kernels::{Activation, Plan, pattern_attention};

use super::{Pattern, PriorConfig};
use crate::nn::{Init, LayerNorm, Linear, attention, merge_heads, split_heads};

/// `h += attention(norm(h)); h += mlp(norm(h))`
#[derive(Module, Debug)]
pub struct Block {
    attn_norm: LayerNorm,
    qkv: Linear,
    attn_out: Linear,
    mlp_norm: LayerNorm,
    mlp_in: Linear,
    mlp_out: Linear,
    #[module(skip)]
    pub(super) pattern: Pattern,
    #[module(skip)]
    n_heads: usize,
}

/// Keys and values of the positions that a layer has seen, `[B, H, t, K]` each.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    keys_values: Option<(Tensor<4>, Tensor<4>)>,
}

impl KvCache {
    /// Appends new states and returns all of them.
    fn push(&mut self, k: Tensor<4>, v: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let all = match self.keys_values.take() {
            Some((keys, values)) => (Tensor::cat(vec![keys, k], 2), Tensor::cat(vec![values, v], 2)),
            None => (k, v),
        };
        self.keys_values.insert(all).clone()
    }

    /// Each stream of the batch `lanes` times, copies side by side: `[B, ..]` → `[B · lanes, ..]`.
    pub fn repeat_each(&self, lanes: usize) -> KvCache {
        let repeat = |x: &Tensor<4>| {
            let [b, h, t, k] = x.dims();
            x.clone().reshape([b, 1, h, t * k]).repeat_dim(1, lanes).reshape([b * lanes, h, t, k])
        };
        KvCache { keys_values: self.keys_values.as_ref().map(|(k, v)| (repeat(k), repeat(v))) }
    }
}

impl Block {
    /// A layer of `config`'s sizes; `layer` counts from 1 and decides the attention pattern.
    pub fn new(config: &PriorConfig, layer: usize, init: &mut Init) -> Block {
        let d = config.d_model;
        let std = |fan_in: usize| 0.125 / (fan_in as f64).sqrt();
        let residual = 1.0 / (2.0 * config.n_layers as f64).sqrt();
        Block {
            attn_norm: LayerNorm::new(init, d),
            qkv: Linear::new(init, [d, 3 * d], std(d)),
            attn_out: Linear::new(init, [d, d], std(d) * residual),
            mlp_norm: LayerNorm::new(init, d),
            mlp_in: Linear::new(init, [d, 4 * d], std(d)),
            mlp_out: Linear::new(init, [4 * d, d], std(4 * d) * residual),
            pattern: Pattern::of_layer(layer, config.n_layers, config.conv_kernel),
            n_heads: config.n_heads,
        }
    }

    /// `x` `[B, T, D]` and the plan of the layer's pattern over `T` positions → `[B, T, D]`
    pub fn forward(&self, x: Tensor<3>, plan: &Arc<Plan>) -> Tensor<3> {
        let qkv = self.qkv.activated(self.attn_norm.forward(x.clone()), Activation::None); // [B, T, 3D]
        self.residuals(x, pattern_attention(qkv, self.n_heads, plan))
    }

    /// The same for new positions `[B, t, D]` behind the cached ones; `mask` is `[1, 1, t, cached + t]`.
    pub(super) fn forward_cached(&self, x: Tensor<3>, mask: Tensor<4>, cache: &mut KvCache) -> Tensor<3> {
        let [q, k, v] = self.heads(x.clone());
        let (k, v) = cache.push(k, v);
        self.residuals(x, merge_heads(attention(q, k, v, mask)))
    }

    /// Queries, keys and values, `[B, H, T, K]` each.
    fn heads(&self, x: Tensor<3>) -> [Tensor<4>; 3] {
        let d = x.dims()[2];
        let qkv = self.qkv.forward(self.attn_norm.forward(x)); // [B, T, 3D]
        [0, 1, 2].map(|i| split_heads(qkv.clone().narrow(2, i * d, d), self.n_heads))
    }

    /// Adds what the attention found, `[B, T, D]`, then the MLP of the sum.
    fn residuals(&self, x: Tensor<3>, attended: Tensor<3>) -> Tensor<3> {
        let x = self.attn_out.add_to(x, attended);
        let h = self.mlp_in.activated(self.mlp_norm.forward(x.clone()), Activation::Gelu);
        self.mlp_out.add_to(x, h)
    }
}
