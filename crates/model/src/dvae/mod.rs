//! Stage 1 (paper §2.1): the discrete VAE that turns a picture into a grid of tokens and back.
//!
//! The architecture is the released one (openai/DALL-E), its sizes free: `groups` groups halve the resolution between
//! them, so a token covers `2^(groups-1)` pixels a side; the paper has 4 groups of 2 blocks, n_hid 256, 8192 codes.

mod decoder;
mod encoder;
mod loss;
mod pixels;
mod relax;

use anyhow::{Result, ensure};
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};

pub use decoder::{DecBlock, Decoder};
pub use encoder::{EncBlock, Encoder};
pub use loss::{Elbo, elbo, kl_to_uniform, logit_laplace_nll};
pub use pixels::{EPS, map_pixels, unmap_pixels};
pub use relax::{gumbel_noise, gumbel_softmax};

use crate::nn::Init;

/// Sizes of a dVAE. `configs/paper.toml` holds the paper's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DvaeConfig {
    /// Side of the square picture in pixels.
    pub image_size: usize,
    /// Groups of blocks; between two groups the encoder halves and the decoder doubles the resolution (4).
    pub groups: usize,
    /// Residual blocks a group (2).
    pub blocks_per_group: usize,
    /// Channels of the first encoder group; each later group has twice as many (256).
    pub n_hid: usize,
    /// Channels of a code's vector, the decoder's input (128).
    pub n_init: usize,
    /// Number of codes (8192).
    pub vocab: usize,
    /// Lower bound on ln b of the logit-Laplace likelihood; below it the flat parts of a picture can buy likelihood
    /// without end. The paper names no bound.
    pub min_log_b: f64,
}

impl DvaeConfig {
    /// Pixels a token covers, along one side.
    pub fn factor(&self) -> usize {
        1 << (self.groups - 1)
    }

    /// Tokens along one side of the grid.
    pub fn grid(&self) -> usize {
        self.image_size / self.factor()
    }

    /// Pixel values (of three channels) per token: the paper's 192, the divisor of β.
    pub fn values_per_token(&self) -> usize {
        3 * self.factor() * self.factor()
    }

    /// Checks that the sizes fit each other.
    pub fn check(&self) -> Result<()> {
        ensure!((1..=8).contains(&self.groups), "dvae.groups = {}: wanted 1 to 8", self.groups);
        ensure!(self.blocks_per_group >= 1, "dvae.blocks_per_group = 0: wanted at least 1");
        ensure!(
            self.n_hid >= 4 && self.n_hid.is_multiple_of(4),
            "dvae.n_hid = {}: wanted a multiple of 4",
            self.n_hid
        );
        ensure!(self.n_init >= 1, "dvae.n_init = 0: wanted at least 1");
        ensure!((2..=65_536).contains(&self.vocab), "dvae.vocab = {}: wanted 2 to 65536 codes", self.vocab);
        ensure!(
            self.image_size > 0 && self.image_size.is_multiple_of(self.factor()),
            "dvae.image_size = {}: wanted a multiple of {} (2^(groups-1))",
            self.image_size,
            self.factor()
        );
        Ok(())
    }

    /// The scale of every residual path: 1 / n_layers².
    pub(crate) fn post_gain(&self) -> f64 {
        1.0 / ((self.groups * self.blocks_per_group) as f64).powi(2)
    }
}

/// Encoder and decoder.
#[derive(Module, Debug)]
pub struct Dvae {
    /// Picture → logits over codes.
    pub encoder: Encoder,
    /// (Relaxed) one-hot codes → likelihood parameters of the picture.
    pub decoder: Decoder,
}

impl Dvae {
    /// A dVAE with weights drawn from `seed`.
    pub fn new(config: &DvaeConfig, seed: u64, device: &Device) -> Dvae {
        let mut init = Init::new(seed, device);
        Dvae { encoder: Encoder::new(config, &mut init), decoder: Decoder::new(config, &mut init) }
    }

    /// Tokens of pictures: the likeliest code of each cell, without noise (paper §2.1).
    ///
    /// `[B, 3, S, S]` in [0, 1] → `[B, G, G]`
    pub fn encode(&self, pictures: Tensor<4>) -> Tensor<3, Int> {
        self.encoder.forward(map_pixels(pictures)).argmax(1).squeeze_dim(1)
    }

    /// Pictures of tokens. `[B, G, G]` → `[B, 3, S, S]` in [0, 1]
    pub fn decode(&self, codes: Tensor<3, Int>) -> Tensor<4> {
        let stats = self.decoder.forward_codes(codes);
        unmap_pixels(burn::tensor::activation::sigmoid(stats.narrow(1, 0, 3)))
    }
}

#[cfg(test)]
mod tests;
