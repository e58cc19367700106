//! Stage 2 (paper §2.2): one autoregressive transformer that models caption and picture tokens as a
//! single stream.

mod block;
mod chain;
mod embed;
mod loss;
mod pattern;
mod stream;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, ensure};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use tessera_kernels::{AttentionPlan, Cpu, cross_entropy};

pub use block::Block;
pub use chain::{Activations, BlockSource, ChainOptions, MixedPrecision, PriorBackward};
pub use embed::Embedding;
pub use loss::{PriorLoss, image_nats, weighted_cross_entropy};
pub use pattern::{Layout, Pattern, PatternName, Wrap};
pub use stream::{Stream, caption_slots};

use crate::nn::{Compute, Init, LayerNorm, Linear};

/// The sizes of a prior. The paper's values are in brackets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriorConfig {
    /// Text positions of the stream (256).
    pub text_len: usize,
    /// Text tokens of the vocabulary, without the pads (16384).
    pub text_vocab: usize,
    /// Picture tokens along one side of the picture (32).
    pub grid: usize,
    /// Number of picture codes (8192).
    pub image_vocab: usize,
    /// Width of the residual stream (3968).
    pub d_model: usize,
    /// Number of layers, each of one attention and one MLP residual block (64).
    pub n_layers: usize,
    /// Number of attention heads (62).
    pub n_heads: usize,
    /// Side of the last layer's convolutional attention window (11).
    pub conv_kernel: usize,
    /// How that window wraps at the end of a row.
    #[serde(default)]
    pub conv_wrap: Wrap,
    /// Precision of the final layer norm, the output heads and the gradient of the logits: `f32` as
    /// in the paper (§D.2), or `auto` for the precision of the layers. Logits are accumulated and
    /// stored in 32 bits in both cases.
    #[serde(default)]
    pub logits: Logits,
    /// Which attention pattern each layer uses (row, column, row, row, repeated; the last layer is
    /// convolutional).
    #[serde(default)]
    pub layout: Layout,
}

/// Precision of the final layer norm, the output heads and the gradient of the logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Logits {
    /// That of the layers: bf16 products if the layers use them, and 8-bit weights if sampling uses
    /// them.
    #[default]
    Auto,
    /// 32 bits (paper §D.2: logits in 16 bits changed the training curve).
    F32,
}

impl Logits {
    /// What the final norm and the heads compute with, in a model whose layers compute with `cpu`.
    pub fn cpu(self, cpu: Cpu) -> Cpu {
        match self {
            Logits::Auto => cpu,
            Logits::F32 => cpu.in_f32(),
        }
    }
}

impl PriorConfig {
    /// The sizes of the paper's prior, which has 12 billion parameters (§2.2, §B.1).
    pub fn paper() -> PriorConfig {
        PriorConfig {
            text_len: 256,
            text_vocab: 16_384,
            grid: 32,
            image_vocab: 8192,
            d_model: 3968,
            n_layers: 64,
            n_heads: 62,
            conv_kernel: 11,
            conv_wrap: Wrap::Flat,
            logits: Logits::F32,
            layout: Layout::default(),
        }
    }

    /// Number of picture positions of the stream.
    pub fn image_len(&self) -> usize {
        self.grid * self.grid
    }

    /// Number of positions of the stream.
    pub fn stream_len(&self) -> usize {
        self.text_len + self.image_len()
    }

    /// The most tokens of a caption that the model reads. The input is shifted by one position for
    /// the start token, so the last text slot is predicted but never read.
    pub fn max_caption(&self) -> usize {
        self.text_len - 1
    }

    /// Number of weights, computed from the sizes alone.
    pub fn n_parameters(&self) -> u128 {
        let [text_len, text_vocab, grid, image_vocab, d, layers] =
            [self.text_len, self.text_vocab, self.grid, self.image_vocab, self.d_model, self.n_layers]
                .map(|size| size as u128);
        let slots = text_vocab.saturating_add(text_len);
        let rows = slots + 1 + text_len + image_vocab + 1 + 2 * grid;
        let layer = d.saturating_mul(d).saturating_mul(12).saturating_add(13 * d);
        let heads = (d + 1).saturating_mul(slots + image_vocab) + 2 * d;
        rows.saturating_mul(d).saturating_add(layers.saturating_mul(layer)).saturating_add(heads)
    }

    /// Checks that the sizes are in range and fit each other.
    pub fn check(&self) -> Result<()> {
        ensure!(self.text_len >= 2, "prior.text_len = {}: wanted at least 2", self.text_len);
        ensure!(self.text_vocab >= 1, "prior.text_vocab = 0: wanted at least 1");
        ensure!((1..=256).contains(&self.grid), "prior.grid = {}: wanted 1 to 256", self.grid);
        ensure!(self.image_vocab >= 2, "prior.image_vocab = {}: wanted at least 2", self.image_vocab);
        ensure!(self.n_layers >= 1, "prior.n_layers = 0: wanted at least 1");
        ensure!(
            self.n_heads >= 1 && self.d_model >= 1 && self.d_model.is_multiple_of(self.n_heads),
            "prior.d_model = {}: wanted a multiple of prior.n_heads = {}",
            self.d_model,
            self.n_heads
        );
        for (name, size, most) in [
            ("text_len", self.text_len, 1 << 16),
            ("text_vocab", self.text_vocab, 1 << 24),
            ("image_vocab", self.image_vocab, 1 << 24),
            ("d_model", self.d_model, 1 << 20),
            ("n_layers", self.n_layers, 1 << 16),
        ] {
            ensure!(size <= most, "prior.{name} = {size}: wanted at most {most}");
        }
        self.layout.check()?;
        let largest = 2 * self.grid + 1; // covers the complete grid from any position
        ensure!(
            self.conv_kernel % 2 == 1 && self.conv_kernel <= largest,
            "prior.conv_kernel = {}: wanted an odd number up to {largest}",
            self.conv_kernel
        );
        Ok(())
    }
}

/// The transformer of stage 2.
#[derive(Module, Debug)]
pub struct Prior {
    pub(crate) embed: Embedding,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm: LayerNorm,
    text_head: Linear,
    pub(crate) image_head: Linear,
    #[module(skip)]
    config: PriorConfig,
    /// What the layers compute with; the final norm and the heads have a [`Cpu`] of their own.
    #[module(skip)]
    cpu: Cpu,
    #[module(skip)]
    plans: Plans,
}

/// The attention plans built so far, by pattern and length. All clones of a prior share them.
type Plans = Arc<Mutex<HashMap<(Pattern, usize), Arc<AttentionPlan>>>>;

impl Prior {
    /// A prior with random weights drawn from `seed`, initialised as in the table of Child et al.
    /// 2019 (paper §B.1): matrices N(0, 0.125/√fan_in), the output matrices of residual blocks
    /// scaled further by 1/√(2·layers), logit matrices 0.
    pub fn new(config: &PriorConfig, seed: u64, compute: impl Into<Compute>) -> Prior {
        Prior::with(config, Init::new(seed, compute))
    }

    /// A prior whose weights are zero, to be replaced by imported ones.
    pub(crate) fn blank(config: &PriorConfig, compute: impl Into<Compute>) -> Prior {
        Prior::with(config, Init::blank(compute))
    }

    fn with(config: &PriorConfig, mut init: Init) -> Prior {
        let (cpu, d) = (init.cpu(), config.d_model);
        let embed = Embedding::new(config, &mut init);
        let blocks = (1..=config.n_layers).map(|layer| Block::new(config, layer, &mut init)).collect();
        init.set_cpu(config.logits.cpu(cpu));
        Prior {
            embed,
            blocks,
            norm: LayerNorm::new(&mut init, d),
            text_head: Linear::head(&mut init, [d, config.text_vocab + config.text_len], 0.0),
            image_head: Linear::head(&mut init, [d, config.image_vocab], 0.0),
            config: config.clone(),
            cpu,
            plans: Plans::default(),
        }
    }

    /// The same weights with `pattern` in every layer, for comparisons with models that have one
    /// pattern.
    pub fn with_pattern(mut self, pattern: Pattern) -> Prior {
        self.blocks.iter_mut().for_each(|block| block.pattern = pattern);
        self
    }

    /// The same prior with the matrices that sampling multiplies rounded to 8 bits, as the sampler
    /// stores them.
    pub fn in_int8(mut self) -> Prior {
        self.blocks = self.blocks.into_iter().map(Block::in_int8).collect();
        self.image_head = match self.config.logits {
            Logits::Auto => self.image_head.in_int8(),
            Logits::F32 => self.image_head,
        };
        self
    }

    /// The same prior for sampling on a device: the matrices of its layers are in the dtype that the
    /// device multiplies, and no weight requires a gradient.
    pub(crate) fn narrowed(mut self) -> Prior {
        self.blocks = self.blocks.into_iter().map(Block::narrowed).collect();
        self.valid()
    }

    /// The sizes of this prior.
    pub fn config(&self) -> &PriorConfig {
        &self.config
    }

    /// The instructions and the precision that the layers compute with on the processor.
    pub fn cpu(&self) -> Cpu {
        self.cpu
    }

    /// The device of the weights.
    pub fn device(&self) -> Device {
        self.embed.device()
    }

    /// Logits of the token at every position: text `[B, Tt, text_vocab + Tt]` and image
    /// `[B, Ti, image_vocab]`.
    ///
    /// `Ti` is the number of image tokens in `stream`: all of them in training, fewer in tests.
    pub fn forward(&self, stream: &Stream) -> (Tensor<3>, Tensor<3>) {
        let (text, image) = self.normed(self.states(stream));
        (self.text_head.forward(text), self.image_head.forward(image))
    }

    /// The loss of a batch of streams (paper §2.2). The logits are never in memory as a complete
    /// tensor.
    pub fn loss(&self, stream: &Stream) -> PriorLoss {
        self.loss_of_states(self.states(stream), stream)
    }

    /// The loss, computed from the output of the last block, `[B, T, D]`.
    fn loss_of_states(&self, x: Tensor<3>, stream: &Stream) -> PriorLoss {
        let nats = |x: Tensor<3>, head: &Linear, targets: &[u32]| {
            let [b, t, d] = x.dims();
            cross_entropy(head.cpu, x.reshape([b * t, d]), head.weight.val(), head.bias.val(), targets)
        };
        let (text, image) = self.normed(x);
        let text = nats(text, &self.text_head, &stream.text);
        let image = nats(image, &self.image_head, &stream.image);
        weighted_cross_entropy(text, image)
    }

    /// The output of the last block, `[B, T, D]`.
    fn states(&self, stream: &Stream) -> Tensor<3> {
        let x = self.embed.forward(stream);
        let [_, t, _] = x.dims();
        self.blocks.iter().fold(x, |x, block| block.forward(x, &self.plan(block.pattern, t)))
    }

    /// Applies the final layer norm to `x`, `[B, T, D]`, and splits the result into the text
    /// positions, `[B, Tt, D]`, and the picture positions, `[B, Ti, D]`.
    fn normed(&self, x: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let [_, t, _] = x.dims();
        let x = self.norm.forward(x);
        let text_len = self.config.text_len;
        (x.clone().narrow(1, 0, text_len), x.narrow(1, text_len, t - text_len))
    }

    /// The attention plan of `pattern` over the first `t` positions.
    fn plan(&self, pattern: Pattern, t: usize) -> Arc<AttentionPlan> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.entry((pattern, t)).or_insert_with(|| Arc::new(pattern.plan(&self.config, t))).clone()
    }

    /// The queries, keys and values of each layer at the text positions, `[B, text_len, 3D]`.
    pub(crate) fn text_states(&self, stream: &Stream) -> Vec<Tensor<3>> {
        let mut x = self.embed.text(stream);
        let step = |block: &Block| {
            let plan = self.plan(block.pattern, self.config.text_len);
            let (next, qkv) = block.forward_with_states(x.clone(), &plan);
            x = next;
            qkv
        };
        self.blocks.iter().map(step).collect()
    }
}

#[cfg(test)]
mod tests;
