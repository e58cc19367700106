//! One layer of the prior: an attention and an MLP residual block (paper §B.1, Child et al. 2019
//! §5-6).

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Tensor;
use tessera_kernels::{Activation, AttentionPlan, Cpu, SmallFloat, pattern_attention};

use super::{Pattern, PriorConfig};
use crate::nn::{Init, LayerNorm, Linear, stored};

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
    pub(crate) pattern: Pattern,
    #[module(skip)]
    pub(crate) n_heads: usize,
    #[module(skip)]
    pub(crate) cpu: Cpu,
}

impl Block {
    /// A layer with the sizes of `config`. `layer` counts from 1 and determines the attention
    /// pattern.
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
            mlp_out: Linear::second(init, [4 * d, d], std(4 * d) * residual),
            pattern: config.layout.pattern(layer, config),
            n_heads: config.n_heads,
            cpu: init.cpu(),
        }
    }

    /// The layer with its matrices rounded to 8 bits.
    pub(super) fn in_int8(self) -> Block {
        Block {
            qkv: self.qkv.in_int8(),
            attn_out: self.attn_out.in_int8(),
            mlp_in: self.mlp_in.in_int8(),
            mlp_out: self.mlp_out.in_int8(),
            ..self
        }
    }

    /// The layer with its matrices in the dtype that its device multiplies.
    pub(super) fn narrowed(self) -> Block {
        Block {
            qkv: self.qkv.narrowed(),
            attn_out: self.attn_out.narrowed(),
            mlp_in: self.mlp_in.narrowed(),
            mlp_out: self.mlp_out.narrowed(),
            ..self
        }
    }

    /// Runs the layer: `[B, T, D]` → `[B, T, D]`. `plan` is that of the layer's pattern over `T`
    /// positions.
    pub fn forward(&self, x: Tensor<3>, plan: &Arc<AttentionPlan>) -> Tensor<3> {
        self.forward_with_states(x, plan).0
    }

    /// Like [`Block::forward`]; also returns the queries, keys and values, `[B, T, 3D]`.
    pub(super) fn forward_with_states(
        &self,
        x: Tensor<3>,
        plan: &Arc<AttentionPlan>,
    ) -> (Tensor<3>, Tensor<3>) {
        let (x, qkv) = self.attention(x, plan, Output::Sum);
        (self.mlp(x, Output::Sum), qkv)
    }

    /// Runs the attention resblock on `x`, `[B, T, D]`. Also returns the queries, keys and values,
    /// `[B, T, 3D]`.
    pub(super) fn attention(
        &self,
        x: Tensor<3>,
        plan: &Arc<AttentionPlan>,
        output: Output,
    ) -> (Tensor<3>, Tensor<3>) {
        let storage = output.storage();
        let h = stored(self.cpu, self.attn_norm.forward(x.clone()), storage);
        let qkv = stored(self.cpu, self.qkv.stored(h, Activation::None, storage), storage);
        let attended = pattern_attention(self.cpu, qkv.clone(), self.n_heads, plan);
        (self.output(x, &self.attn_out, stored(self.cpu, attended, storage), output), qkv)
    }

    /// Runs the MLP resblock on `x`, `[B, T, D]`.
    pub(super) fn mlp(&self, x: Tensor<3>, output: Output) -> Tensor<3> {
        let storage = output.storage();
        let h = stored(self.cpu, self.mlp_norm.forward(x.clone()), storage);
        let h = stored(self.cpu, self.mlp_in.stored(h, Activation::Gelu, storage), storage);
        self.output(x, &self.mlp_out, h, output)
    }

    /// Applies the last linear layer of a branch, and adds the residual stream `x` if `output` says
    /// so.
    fn output(&self, x: Tensor<3>, last: &Linear, h: Tensor<3>, output: Output) -> Tensor<3> {
        match output {
            Output::Sum => last.add_to(x, h),
            Output::Branch(storage) => stored(self.cpu, last.stored(h, Activation::None, storage), storage),
        }
    }
}

/// What a resblock returns for the residual stream `x`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Output {
    /// `x + branch(x)`. The product at the end of the branch adds `x` without another pass.
    Sum,
    /// `branch(x)`, whose weights and activations are rounded to a 16-bit format (`None` keeps 32
    /// bits). In mixed precision the caller adds `x` in 32 bits (paper §D).
    Branch(Option<SmallFloat>),
}

impl Output {
    fn storage(self) -> Option<SmallFloat> {
        match self {
            Output::Sum => None,
            Output::Branch(storage) => storage,
        }
    }
}
