//! Stage 1 (paper §2.1): the discrete VAE that turns a picture into a grid of tokens and back.
//!
//! The architecture is that of the released code (openai/DALL-E) with free sizes. The resolution is
//! halved between each two of `groups` groups, so the side of a token is `2^(groups-1)` pixels. The
//! paper has 4 groups of 2 blocks, n_hid 256 and 8192 codes.

mod block;
mod decoder;
mod encoder;
mod loss;
mod pixels;

use anyhow::{Result, ensure};
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};
use tessera_kernels::{Cpu, SmallFloat};

pub use block::ResBlock;
pub use decoder::Decoder;
pub use encoder::Encoder;
pub use loss::{Elbo, elbo, logit_laplace_nll};
pub use pixels::{EPS, map_pixels, unmap_pixels};
pub use tessera_kernels::{GumbelNoise, gumbel_softmax, gumbel_softmax_drawn, kl_to_uniform};

use crate::nn::{Compute, Init};

/// The sizes of a dVAE. The paper's values are in brackets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DvaeConfig {
    /// The side of the square picture in pixels.
    pub image_size: usize,
    /// Number of groups of blocks. Between two groups the encoder halves and the decoder doubles
    /// the resolution (4).
    pub groups: usize,
    /// Number of residual blocks per group (2).
    pub blocks_per_group: usize,
    /// Channels of the first encoder group. Each later group has twice as many (256).
    pub n_hid: usize,
    /// Channels of a codebook vector, the decoder's input (128).
    pub n_init: usize,
    /// Number of codes (8192).
    pub vocab: usize,
    /// Lower bound on ln b of the logit-Laplace likelihood. Without a bound the likelihood of the
    /// flat parts of a picture can grow without limit. The paper names no bound.
    pub min_log_b: f64,
}

impl DvaeConfig {
    /// The sizes of the released dVAE (paper §2.1, §A.1 and the released code). `min_log_b` is ours.
    pub fn released() -> DvaeConfig {
        DvaeConfig {
            image_size: 256,
            groups: 4,
            blocks_per_group: 2,
            n_hid: 256,
            n_init: 128,
            vocab: 8192,
            min_log_b: -3.0,
        }
    }

    /// The side of a token in pixels.
    pub fn factor(&self) -> usize {
        1 << (self.groups - 1)
    }

    /// The number of tokens along one side of the grid.
    pub fn grid(&self) -> usize {
        self.image_size / self.factor()
    }

    /// The number of pixel values (of three channels) per token, by which β is divided: 192 in the
    /// paper.
    pub fn values_per_token(&self) -> usize {
        3 * self.factor() * self.factor()
    }

    /// Checks that the sizes are in range and fit each other.
    pub fn check(&self) -> Result<()> {
        ensure!((1..=8).contains(&self.groups), "dvae.groups = {}: wanted 1 to 8", self.groups);
        ensure!(
            (1..=256).contains(&self.blocks_per_group),
            "dvae.blocks_per_group = {}: wanted 1 to 256",
            self.blocks_per_group
        );
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

    /// Number of weights of the encoder and of the decoder, computed from the sizes alone.
    pub fn n_parameters(&self) -> [u128; 2] {
        let conv =
            |c_in: u128, c_out: u128, k: u128| c_in.saturating_mul(c_out).saturating_mul(k * k) + c_out;
        let id = |i: u128, o: u128| if i == o { 0 } else { conv(i, o, 1) };
        let block = |i: u128, o: u128, [k1, k2, k3, k4]: [usize; 4]| {
            let [k1, k2, k3, k4] = [k1, k2, k3, k4].map(|k| k as u128);
            let h = o / 4;
            conv(i, h, k1) + conv(h, h, k2) + conv(h, h, k3) + conv(h, o, k4) + id(i, o)
        };
        let side = |mut i: u128, widths: &mut dyn Iterator<Item = usize>, kernels| {
            let mut sum = 0;
            for width in widths {
                let o = (self.n_hid as u128) << width;
                for _ in 0..self.blocks_per_group {
                    sum += block(std::mem::replace(&mut i, o), o, kernels);
                }
            }
            sum
        };
        let [n_hid, n_init, vocab] = [self.n_hid, self.n_init, self.vocab].map(|size| size as u128);
        let encoder = conv(3, n_hid, 7)
            + side(n_hid, &mut (0..self.groups), encoder::KERNELS)
            + conv(n_hid << (self.groups - 1), vocab, 1);
        let decoder = conv(vocab, n_init, 1)
            + side(n_init, &mut (0..self.groups).rev(), decoder::KERNELS)
            + conv(n_hid, 6, 1);
        [encoder, decoder]
    }

    /// The factor of every residual path: 1 / n_layers², where n_layers is the number of blocks.
    pub(crate) fn post_gain(&self) -> f64 {
        1.0 / ((self.groups * self.blocks_per_group) as f64).powi(2)
    }
}

/// The discrete VAE: an encoder and a decoder.
#[derive(Module, Debug)]
pub struct Dvae {
    /// Maps a picture to logits over codes.
    pub encoder: Encoder,
    /// Maps (relaxed) one-hot codes to the parameters of the likelihood of the pixels.
    pub decoder: Decoder,
}

impl Dvae {
    /// A dVAE with random weights drawn from `seed`.
    pub fn new(config: &DvaeConfig, seed: u64, compute: impl Into<Compute>) -> Dvae {
        Dvae::with(config, Init::new(seed, compute))
    }

    /// A dVAE whose weights are zero, to be replaced by imported ones.
    pub(crate) fn blank(config: &DvaeConfig, compute: impl Into<Compute>) -> Dvae {
        Dvae::with(config, Init::blank(compute))
    }

    fn with(config: &DvaeConfig, mut init: Init) -> Dvae {
        Dvae { encoder: Encoder::new(config, &mut init), decoder: Decoder::new(config, &mut init) }
    }

    /// The dVAE with `storage` as the 16-bit format of all convolutions in training, except those
    /// next to the codes, which keep 32 bits (paper §A.1).
    pub fn stored(mut self, storage: Option<SmallFloat>) -> Dvae {
        self.encoder.store(storage);
        self.decoder.store(storage);
        self
    }

    /// The instructions and the precision that the dVAE computes with on the processor.
    pub fn cpu(&self) -> Cpu {
        self.encoder.cpu()
    }

    /// The device of the weights.
    pub fn device(&self) -> Device {
        self.encoder.device()
    }

    /// Encodes pictures to tokens: `[B, 3, S, S]` in [0, 1] → `[B, G, G]`.
    ///
    /// A token is the most likely code of its cell; no noise is added (paper §2.1).
    pub fn encode(&self, pictures: Tensor<4>) -> Tensor<3, Int> {
        self.encoder.forward(map_pixels(pictures)).argmax(3).squeeze_dim(3)
    }

    /// Decodes tokens to pictures: `[B, G, G]` → `[B, 3, S, S]` in [0, 1].
    pub fn decode(&self, codes: Tensor<3, Int>) -> Tensor<4> {
        let stats = self.decoder.forward_codes(codes);
        unmap_pixels(burn::tensor::activation::sigmoid(stats.narrow(1, 0, 3)))
    }
}

#[cfg(test)]
mod tests;
