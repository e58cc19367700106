//! The contrastive model that ranks what is drawn (paper §2.6, §3.1): CLIP (Radford et al. 2021), two towers that give a picture and its
//! caption the same direction.

mod block;
mod image_tower;
mod loss;
mod preprocess;
mod reranker;
mod text_tower;

use anyhow::{Result, ensure};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use tessera_kernels::Cpu;

pub use image_tower::ImageTower;
pub use loss::{ContrastiveLoss, contrastive, unit_rows};
pub use preprocess::{patches, square};
pub use reranker::{EncodedCaption, ReadCaption, Reranker, cosine_similarity};
pub use text_tower::TextTower;

use crate::nn::{Compute, Init};

/// Sizes of one tower's transformer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TowerConfig {
    /// Width of the residual stream.
    pub width: usize,
    /// Layers, each attention and an MLP.
    pub n_layers: usize,
    /// Attention heads; CLIP has one for each 64 of the width.
    pub n_heads: usize,
}

/// The nonlinearity of the MLPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gelu {
    /// `h · sigmoid(1.702 h)`: OpenAI's weights.
    Quick,
    /// `h · Φ(h)`: most of open_clip's weights.
    Exact,
}

/// How captions are cleaned before they are cut into tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cleaning {
    /// As the prior's captions are (paper §2.2).
    Tessera,
    /// As CLIP's are.
    Clip,
}

/// Sizes and conventions of a contrastive model; those of OpenAI's ViT-B/32 in brackets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipConfig {
    /// Side of the pictures in pixels (224).
    pub image_size: usize,
    /// Side of a patch in pixels (32).
    pub patch: usize,
    /// The image tower (768, 12, 12).
    pub image: TowerConfig,
    /// Positions of a caption with its two marks (77).
    pub context: usize,
    /// Ids of the text tower, the last two of which mark beginning and end (49408).
    pub text_vocab: usize,
    /// The text tower (512, 12, 8).
    pub text: TowerConfig,
    /// Numbers of an embedding (512).
    pub embed: usize,
    /// The nonlinearity (quick).
    pub gelu: Gelu,
    /// How captions are cleaned (clip).
    pub cleaning: Cleaning,
    /// Mean of each colour in 0 to 1 (0.4815, 0.4578, 0.4082).
    pub mean: [f32; 3],
    /// Standard deviation of each colour (0.2686, 0.2613, 0.2758).
    pub deviation: [f32; 3],
}

impl ClipConfig {
    /// Patches of a picture.
    pub fn n_patches(&self) -> usize {
        (self.image_size / self.patch).pow(2)
    }

    /// Most tokens of a caption that are read: the rest of the context are the two marks.
    pub fn max_caption(&self) -> usize {
        self.context - 2
    }

    /// The ids of a caption between its marks, zeros behind them, and how many of its tokens did not fit.
    pub fn slots(&self, tokens: &[u32]) -> (Vec<u32>, usize) {
        let kept = tokens.len().min(self.max_caption());
        let [begin, end] = [2, 1].map(|back| (self.text_vocab - back) as u32);
        let mut ids = vec![begin];
        ids.extend(&tokens[..kept]);
        ids.push(end);
        ids.resize(self.context, 0);
        (ids, tokens.len() - kept)
    }

    /// Number of weights, counted without building them.
    pub fn n_parameters(&self) -> u128 {
        let size = |size: usize| size as u128;
        let tower = |tower: &TowerConfig| {
            let d = size(tower.width);
            size(tower.n_layers) * (12 * d * d + 13 * d)
        };
        let (d, w) = (size(self.image.width), size(self.text.width));
        let inputs = 3 * size(self.patch) * size(self.patch);
        let image = d * (inputs + 1 + 1 + size(self.n_patches()) + 4 + size(self.embed));
        let text = w * (size(self.text_vocab) + size(self.context) + 2 + size(self.embed));
        image + tower(&self.image) + text + tower(&self.text) + 1
    }

    /// Checks that the sizes fit each other.
    pub fn check(&self) -> Result<()> {
        let (side, patch) = (self.image_size, self.patch);
        ensure!(
            (1..=1 << 10).contains(&side) && patch >= 1 && side.is_multiple_of(patch),
            "rerank.image_size = {side}: wanted a multiple of rerank.patch = {patch}, at most 1024"
        );
        ensure!((3..=1 << 12).contains(&self.context), "rerank.context = {}: wanted 3 to 4096", self.context);
        ensure!(
            (3..=1 << 24).contains(&self.text_vocab),
            "rerank.text_vocab = {}: wanted 3 to 2^24",
            self.text_vocab
        );
        ensure!((1..=1 << 16).contains(&self.embed), "rerank.embed = {}: wanted 1 to 65536", self.embed);
        for (name, tower) in [("image", &self.image), ("text", &self.text)] {
            let TowerConfig { width, n_layers, n_heads } = *tower;
            ensure!(
                (1..=1 << 16).contains(&width) && n_heads >= 1 && width.is_multiple_of(n_heads),
                "rerank.{name}.width = {width}: wanted a multiple of rerank.{name}.n_heads = {n_heads}, at most 65536"
            );
            ensure!(
                (1..=1 << 10).contains(&n_layers),
                "rerank.{name}.n_layers = {n_layers}: wanted 1 to 1024"
            );
        }
        let spread = self.deviation.iter().all(|deviation| *deviation > 0.0 && deviation.is_finite());
        ensure!(spread, "rerank.deviation = {:?}: wanted numbers above 0", self.deviation);
        Ok(())
    }
}

/// The name of its weight that holds the temperature.
pub const LOG_SCALE: &str = "log_scale";

/// The largest temperature, `exp` of which multiplies the cosines: 100.
pub const MAX_LOG_SCALE: f32 = 4.605_170_2;

/// Both towers and the temperature.
#[derive(Module, Debug)]
pub struct Clip {
    pub(crate) image: ImageTower,
    pub(crate) text: TextTower,
    /// `[1]`: the logarithm of what multiplies cosines.
    pub(crate) log_scale: Param<Tensor<1>>,
    #[module(skip)]
    config: ClipConfig,
    #[module(skip)]
    cpu: Cpu,
}

impl Clip {
    /// A model with CLIP's first weights, a function of `seed`; cosines are multiplied by 1/0.07.
    pub fn new(config: &ClipConfig, seed: u64, compute: impl Into<Compute>) -> Clip {
        Clip::with(config, Init::new(seed, compute))
    }

    /// A model whose weights are zero, to be imported.
    pub(crate) fn blank(config: &ClipConfig, compute: impl Into<Compute>) -> Clip {
        Clip::with(config, Init::blank(compute))
    }

    fn with(config: &ClipConfig, mut init: Init) -> Clip {
        let image = ImageTower::new(config, &mut init);
        let text = TextTower::new(config, &mut init);
        let log_scale = init.zeros([1]).map(|zero| zero + -(0.07_f64.ln()));
        Clip { image, text, log_scale, config: config.clone(), cpu: init.cpu() }
    }

    /// Its sizes.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// What it computes with on the processor.
    pub fn cpu(&self) -> Cpu {
        self.cpu
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.log_scale.val().device()
    }

    /// Patches `[B, n, 3·P²]` (of [`patches`]) → embeddings `[B, E]` of unit length.
    pub fn embed_images(&self, patches: Tensor<3>) -> Tensor<2> {
        unit_rows(self.image_states(patches))
    }

    /// The same before they are given unit length.
    pub fn image_states(&self, patches: Tensor<3>) -> Tensor<2> {
        self.image.forward(patches)
    }

    /// Captions, `context` ids each (of [`ClipConfig::slots`]) → embeddings `[B, E]` of unit length.
    pub fn embed_texts(&self, ids: &[u32]) -> Tensor<2> {
        unit_rows(self.text.forward(ids))
    }

    /// What multiplies cosines, `[1]`; at most 100.
    pub fn scale(&self) -> Tensor<1> {
        self.log_scale.val().exp()
    }
}

#[cfg(test)]
mod tests;
