//! The contrastive model that ranks candidates (paper §2.6, §3.1): CLIP (Radford et al. 2021), an
//! image and a text tower that embed a picture and its caption in nearly the same direction.

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

/// The sizes of one tower's transformer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TowerConfig {
    /// The width of the residual stream.
    pub width: usize,
    /// The number of layers, each of attention and an MLP.
    pub n_layers: usize,
    /// The number of attention heads; CLIP's heads are 64 wide.
    pub n_heads: usize,
}

/// The activation function of the MLPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gelu {
    /// `h · sigmoid(1.702 h)`, as in OpenAI's models.
    Quick,
    /// `h · Φ(h)`, as in most models of open_clip.
    Exact,
}

/// How captions are cleaned before they are tokenized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cleaning {
    /// Like the captions of the prior (paper §2.2).
    Tessera,
    /// Like the captions of CLIP.
    Clip,
}

/// The sizes and conventions of a contrastive model. The values of OpenAI's ViT-B/32 are in
/// brackets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipConfig {
    /// The side of the pictures in pixels (224).
    pub image_size: usize,
    /// The side of a patch in pixels (32).
    pub patch: usize,
    /// The image tower (768, 12, 12).
    pub image: TowerConfig,
    /// The number of text positions, including the begin and the end token (77).
    pub context: usize,
    /// The number of ids of the text tower; the last two are the begin and the end token (49408).
    pub text_vocab: usize,
    /// The text tower (512, 12, 8).
    pub text: TowerConfig,
    /// The dimension of the embeddings (512).
    pub embed: usize,
    /// The activation function (quick).
    pub gelu: Gelu,
    /// How captions are cleaned (clip).
    pub cleaning: Cleaning,
    /// The mean of each colour channel, in 0 to 1 (0.4815, 0.4578, 0.4082).
    pub mean: [f32; 3],
    /// The standard deviation of each colour channel (0.2686, 0.2613, 0.2758).
    pub deviation: [f32; 3],
}

impl ClipConfig {
    /// The number of patches of a picture.
    pub fn n_patches(&self) -> usize {
        (self.image_size / self.patch).pow(2)
    }

    /// The most tokens of a caption that the model reads; the begin and the end token take two more
    /// positions.
    pub fn max_caption(&self) -> usize {
        self.context - 2
    }

    /// The ids of a caption: the begin token, its tokens, the end token, then zeros. Also returns
    /// the number of tokens that did not fit.
    pub fn slots(&self, tokens: &[u32]) -> (Vec<u32>, usize) {
        let kept = tokens.len().min(self.max_caption());
        let [begin, end] = [2, 1].map(|back| (self.text_vocab - back) as u32);
        let mut ids = vec![begin];
        ids.extend(&tokens[..kept]);
        ids.push(end);
        ids.resize(self.context, 0);
        (ids, tokens.len() - kept)
    }

    /// The number of weights, computed from the sizes alone.
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

    /// Checks that the sizes are in range and fit each other.
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

/// The name of the weight that holds the logarithm of the scale of cosines.
pub const LOG_SCALE: &str = "log_scale";

/// The largest value of this weight: `exp` of it, the scale of cosines, is 100.
pub const MAX_LOG_SCALE: f32 = 4.605_170_2;

/// A contrastive model: both towers and the scale of cosines.
#[derive(Module, Debug)]
pub struct Clip {
    pub(crate) image: ImageTower,
    pub(crate) text: TextTower,
    /// The logarithm of the factor by which cosines are multiplied, `[1]`.
    pub(crate) log_scale: Param<Tensor<1>>,
    #[module(skip)]
    config: ClipConfig,
    #[module(skip)]
    cpu: Cpu,
}

impl Clip {
    /// A model with CLIP's initial weights, drawn from `seed`. Cosines are multiplied by 1/0.07.
    pub fn new(config: &ClipConfig, seed: u64, compute: impl Into<Compute>) -> Clip {
        Clip::with(config, Init::new(seed, compute))
    }

    /// A model whose weights are zero, to be replaced by imported ones.
    pub(crate) fn blank(config: &ClipConfig, compute: impl Into<Compute>) -> Clip {
        Clip::with(config, Init::blank(compute))
    }

    fn with(config: &ClipConfig, mut init: Init) -> Clip {
        let image = ImageTower::new(config, &mut init);
        let text = TextTower::new(config, &mut init);
        let log_scale = init.zeros([1]).map(|zero| zero + -(0.07_f64.ln()));
        Clip { image, text, log_scale, config: config.clone(), cpu: init.cpu() }
    }

    /// The sizes of the model.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// The instructions and the precision that the model computes with on the processor.
    pub fn cpu(&self) -> Cpu {
        self.cpu
    }

    /// The device of the weights.
    pub fn device(&self) -> Device {
        self.log_scale.val().device()
    }

    /// Embeds pictures: patches `[B, n, 3·P²]` (from [`patches`]) → embeddings `[B, E]` of unit
    /// length.
    pub fn embed_images(&self, patches: Tensor<3>) -> Tensor<2> {
        unit_rows(self.image_states(patches))
    }

    /// Like [`Clip::embed_images`], but not scaled to unit length.
    pub fn image_states(&self, patches: Tensor<3>) -> Tensor<2> {
        self.image.forward(patches)
    }

    /// Embeds captions: `context` ids each (from [`ClipConfig::slots`]) → embeddings `[B, E]` of
    /// unit length.
    pub fn embed_texts(&self, ids: &[u32]) -> Tensor<2> {
        unit_rows(self.text.forward(ids))
    }

    /// The factor by which cosines are multiplied, `[1]`. Training keeps it at most 100.
    pub fn scale(&self) -> Tensor<1> {
        self.log_scale.val().exp()
    }
}

#[cfg(test)]
mod tests;
