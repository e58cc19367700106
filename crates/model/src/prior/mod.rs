//! Stage 2 (paper §2.2): one autoregressive transformer over caption and picture tokens as a single stream.

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
pub use chain::{Activations, MixedPrecision, PriorGradients};
pub use embed::Embedding;
pub use loss::{PriorLoss, image_nats, weighted_cross_entropy};
pub use pattern::{Layout, Pattern, PatternName, Wrap};
pub use stream::{Stream, caption_slots};

use crate::nn::{Compute, Init, LayerNorm, Linear};

/// Sizes of a prior; the paper's in brackets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriorConfig {
    /// Text positions of the stream (256).
    pub text_len: usize,
    /// Text tokens of the vocabulary, pads not counted (16384).
    pub text_vocab: usize,
    /// Picture tokens along one side (32).
    pub grid: usize,
    /// Number of picture codes (8192).
    pub image_vocab: usize,
    /// Width of the residual stream (3968).
    pub d_model: usize,
    /// Layers, each one attention and one MLP residual block (64).
    pub n_layers: usize,
    /// Attention heads (62).
    pub n_heads: usize,
    /// Side of the last layer's convolutional attention window (11).
    pub conv_kernel: usize,
    /// What that window does at the end of a row.
    #[serde(default)]
    pub conv_wrap: Wrap,
    /// What the last norm, the heads and the gradient of the logits compute in: `f32`, the paper's (§D.2), or `auto`, as the
    /// layers do. Logits are summed and kept in 32 bits with both.
    #[serde(default)]
    pub logits: Logits,
    /// Which attention pattern each layer uses (row, column, row, row, and so on; the last layer
    /// convolutional).
    #[serde(default)]
    pub layout: Layout,
}

/// What the last norm, the heads and the gradient of the logits compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Logits {
    /// As the layers: bf16 products where they have them, and 8-bit weights where drawing has them.
    #[default]
    Auto,
    /// 32 bits (paper §D.2: logits in 16 bits moved the training curve).
    F32,
}

impl Logits {
    /// The choice of numbers for what makes logits, in a model that otherwise computes by `cpu`.
    pub fn cpu(self, cpu: Cpu) -> Cpu {
        match self {
            Logits::Auto => cpu,
            Logits::F32 => cpu.in_f32(),
        }
    }
}

impl PriorConfig {
    /// Picture tokens of the stream.
    pub fn image_len(&self) -> usize {
        self.grid * self.grid
    }

    /// Positions of the stream.
    pub fn stream_len(&self) -> usize {
        self.text_len + self.image_len()
    }

    /// Most tokens of a caption that are read: the inputs are shifted behind the start token, so the last text slot is
    /// only ever predicted.
    pub fn max_caption(&self) -> usize {
        self.text_len - 1
    }

    /// Number of weights, counted without building them.
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

    /// Checks that the sizes fit each other.
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
        let whole = 2 * self.grid + 1; // the whole grid from anywhere
        ensure!(
            self.conv_kernel % 2 == 1 && self.conv_kernel <= whole,
            "prior.conv_kernel = {}: wanted an odd number up to {whole}",
            self.conv_kernel
        );
        Ok(())
    }
}

/// The transformer.
#[derive(Module, Debug)]
pub struct Prior {
    pub(crate) embed: Embedding,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm: LayerNorm,
    text_head: Linear,
    pub(crate) image_head: Linear,
    #[module(skip)]
    config: PriorConfig,
    /// What the layers compute with; the last norm and the heads have their own.
    #[module(skip)]
    cpu: Cpu,
    #[module(skip)]
    plans: Plans,
}

/// Plans of attention made so far, by pattern and length; shared by all clones of a prior.
type Plans = Arc<Mutex<HashMap<(Pattern, usize), Arc<AttentionPlan>>>>;

impl Prior {
    /// A prior with weights drawn from `seed`, by the table of Child et al. 2019 (paper §B.1): matrices
    /// N(0, 0.125/√fan_in), residual outputs scaled further by 1/√(2·layers), logit matrices 0.
    pub fn new(config: &PriorConfig, seed: u64, compute: impl Into<Compute>) -> Prior {
        Prior::with(config, Init::new(seed, compute))
    }

    /// A prior whose weights are zero, to be imported.
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

    /// The same weights with `pattern` in every layer: for comparing with models that have one.
    pub fn with_pattern(mut self, pattern: Pattern) -> Prior {
        self.blocks.iter_mut().for_each(|block| block.pattern = pattern);
        self
    }

    /// The same prior with the matrices that drawing multiplies in 8 bits, as the decoder keeps them.
    pub fn in_int8(mut self) -> Prior {
        self.blocks = self.blocks.into_iter().map(Block::in_int8).collect();
        self.image_head = match self.config.logits {
            Logits::Auto => self.image_head.in_int8(),
            Logits::F32 => self.image_head,
        };
        self
    }

    /// The sizes.
    pub fn config(&self) -> &PriorConfig {
        &self.config
    }

    /// What its layers compute with on the processor.
    pub fn cpu(&self) -> Cpu {
        self.cpu
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.embed.device()
    }

    /// Logits of every position's next token: text `[B, Tt, text_vocab + Tt]` and image `[B, Ti, image_vocab]`.
    ///
    /// `Ti` is the number of image tokens in `stream`: all of them in training, fewer in tests.
    pub fn forward(&self, stream: &Stream) -> (Tensor<3>, Tensor<3>) {
        let (text, image) = self.normed(self.states(stream));
        (self.text_head.forward(text), self.image_head.forward(image))
    }

    /// The loss of a batch of streams (paper §2.2), without ever holding their logits.
    pub fn loss(&self, stream: &Stream) -> PriorLoss {
        self.loss_of_states(self.states(stream), stream)
    }

    /// The loss of what leaves the last block, `[B, T, D]`.
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

    /// What leaves the last block, `[B, T, D]`.
    fn states(&self, stream: &Stream) -> Tensor<3> {
        let x = self.embed.forward(stream);
        let [_, t, _] = x.dims();
        self.blocks.iter().fold(x, |x, block| block.forward(x, &self.plan(block.pattern, t)))
    }

    /// States `[B, T, D]` normed: `[B, Tt, D]` at text and `[B, Ti, D]` at picture positions.
    fn normed(&self, x: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let [_, t, _] = x.dims();
        let x = self.norm.forward(x);
        let text_len = self.config.text_len;
        (x.clone().narrow(1, 0, text_len), x.narrow(1, text_len, t - text_len))
    }

    /// The plan of `pattern` over the first `t` positions.
    fn plan(&self, pattern: Pattern, t: usize) -> Arc<AttentionPlan> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.entry((pattern, t)).or_insert_with(|| Arc::new(pattern.plan(&self.config, t))).clone()
    }

    /// Queries, keys and values `[B, text_len, 3D]` of each layer at the text positions.
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
