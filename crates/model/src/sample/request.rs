//! What to draw, and what happens while it is drawn.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail, ensure};
use image::RgbImage;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::prior::PriorConfig;

/// Separates the draws of tokens from every other use of a seed.
const TOKENS: u64 = u64::from_le_bytes(*b"drawings");
/// The same of which given tokens a variation draws anew.
const VARIED: u64 = u64::from_le_bytes(*b"variants");

/// How strongly drawing follows the words unless told otherwise: what evaluates best for the embedded model (its card
/// has the figures). It takes a model that was trained with dropped captions; [`default_guidance`] is that of any model.
pub const DEFAULT_GUIDANCE: f64 = 1.5;

/// Beyond this guidance makes logits that 32 bits cannot hold; what is drawn is noise long before.
const MAX_GUIDANCE: f64 = 1000.0;

/// Whether a model in whose training this share of captions was dropped has learnt what guidance needs; nothing if it is not known.
pub fn trained_for_guidance(caption_drop: Option<f32>) -> bool {
    caption_drop.is_some_and(|share| share > 0.0)
}

/// The guidance that such a model is drawn with unless told otherwise: 1, which is none, if it has not learnt that.
pub fn default_guidance(caption_drop: Option<f32>) -> f64 {
    if trained_for_guidance(caption_drop) { DEFAULT_GUIDANCE } else { 1.0 }
}

/// The share of the likeliest tokens that drawing chooses among unless told otherwise. By the figures in the card it
/// neither helps nor harms; to the eye the drawings are cleaner.
pub const DEFAULT_TOP_P: f64 = 0.7;

/// The share of the given tokens that variations draw anew unless told otherwise: at half they are hardly seen.
pub const DEFAULT_STRENGTH: f64 = 0.7;

/// Seeds that the program chooses are short, so that people can read them out and type them again.
const SEEDS: u64 = 1_000_000_000;

/// A seed that nobody chose: another one at each call.
pub fn random_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    RandomState::new().hash_one(now) % SEEDS
}

/// How tokens are picked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Divides the logits; 1 is the paper's, 0 the likeliest token always.
    pub temperature: f64,
    /// Only the `k` likeliest tokens.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together hold this probability.
    pub top_p: Option<f64>,
    /// Classifier-free guidance: `none + guidance · (caption − none)` on logits; 1 is off.
    pub guidance: f64,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling { top_p: Some(DEFAULT_TOP_P), guidance: DEFAULT_GUIDANCE, ..Sampling::paper() }
    }
}

impl Sampling {
    /// The model's own distribution, as the paper samples (paper §2.6): temperature 1, every token, no guidance.
    pub fn paper() -> Sampling {
        Sampling { temperature: 1.0, top_k: None, top_p: None, guidance: 1.0 }
    }

    /// Checks the ranges.
    pub fn check(&self) -> Result<()> {
        let t = self.temperature;
        ensure!(
            t >= 0.0 && t.is_finite(),
            "temperature {t}: wanted 0 or more (1 is the model's own distribution)"
        );
        ensure!(self.top_k != Some(0), "top-k 0: wanted at least 1 token");
        if let Some(p) = self.top_p {
            ensure!(p > 0.0 && p <= 1.0, "top-p {p}: wanted more than 0 and at most 1");
        }
        ensure!(
            self.guidance.abs() <= MAX_GUIDANCE,
            "guidance {}: wanted a number from -{MAX_GUIDANCE} to {MAX_GUIDANCE} (1 is off)",
            self.guidance
        );
        Ok(())
    }

    /// Whether the logits without the caption are needed, too.
    pub fn is_guided(&self) -> bool {
        self.guidance != 1.0
    }
}

/// What to draw.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The caption.
    pub prompt: String,
    /// What guidance steers away from, instead of from no caption at all.
    pub negative: String,
    /// Number of pictures that are drawn.
    pub n: usize,
    /// Of those only so many are yielded, at the end and best first, by the model's own reranker (paper §2.6); all of them as they
    /// come if absent.
    pub best: Option<usize>,
    /// The same seed gives the same pictures.
    pub seed: u64,
    /// How tokens are picked.
    pub sampling: Sampling,
    /// Tokens that are given, by position in raster order, and not drawn: a picture prompt (paper §3.3) is the tokens of the top
    /// rows. Empty, or one entry for each position.
    pub given: Vec<Option<u32>>,
    /// The share of the given tokens that each picture draws anew, others than the next picture: variations. 0 keeps all.
    pub strength: f64,
    /// Whether to decode and yield the pictures so far after every row of cells.
    pub previews: bool,
}

impl Default for Request {
    fn default() -> Request {
        Request {
            prompt: String::new(),
            negative: String::new(),
            n: 1,
            best: None,
            seed: 0,
            sampling: Sampling::default(),
            given: Vec::new(),
            strength: 0.0,
            previews: true,
        }
    }
}

impl Request {
    /// Checks the ranges, and that the given tokens fit the model.
    pub(super) fn check(&self, config: &PriorConfig) -> Result<()> {
        self.sampling.check()?;
        ensure!(self.n > 0, "0 pictures: wanted at least 1");
        ensure!(
            self.negative.is_empty() || self.sampling.is_guided(),
            "a negative prompt works through guidance, which is off at 1: choose another"
        );
        ensure!((0.0..=1.0).contains(&self.strength), "strength {}: wanted 0 to 1", self.strength);
        let (len, vocab) = (config.image_len(), config.image_vocab);
        ensure!(
            self.given.is_empty() || self.given.len() == len,
            "{} given tokens: wanted none, or one entry for each of {len} positions",
            self.given.len()
        );
        match self.given.iter().flatten().find(|&&token| token as usize >= vocab) {
            Some(token) => bail!("given token {token}: wanted one of {vocab} codes"),
            None => Ok(()),
        }
    }

    /// The token that is not drawn but given at `position` of a candidate.
    pub(super) fn given(&self, candidate: usize, position: usize) -> Option<u32> {
        let token = self.given.get(position).copied().flatten()?;
        (unit([self.seed, VARIED, candidate as u64, position as u64]) >= self.strength).then_some(token)
    }

    /// Uniform in [0, 1): the draw of one token.
    pub(super) fn unit(&self, candidate: usize, position: usize) -> f64 {
        unit([self.seed, TOKENS, candidate as u64, position as u64])
    }
}

/// Uniform in [0, 1), a function of `key` alone.
fn unit(key: [u64; 4]) -> f64 {
    let mut bytes = [0; 32];
    for (slot, number) in bytes.chunks_exact_mut(8).zip(key) {
        slot.copy_from_slice(&number.to_le_bytes());
    }
    (ChaCha8Rng::from_seed(bytes).next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// A finished picture.
#[derive(Debug, Clone)]
pub struct Picture {
    /// Which of the request's pictures, from 0.
    pub index: usize,
    /// Its tokens in raster order.
    pub tokens: Vec<u32>,
    /// Its pixels.
    pub image: RgbImage,
    /// How well it fits the caption, if pictures are ranked: a cosine.
    pub score: Option<f32>,
}

/// A token that was just drawn, or given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// Of which of the request's pictures, from 0.
    pub picture: usize,
    /// Its place in raster order.
    pub position: usize,
    /// The code.
    pub code: u32,
}

/// What happens while drawing.
#[derive(Debug, Clone)]
pub enum Event {
    /// One more token of each picture that is drawn now.
    Tokens {
        /// Those tokens.
        new: Vec<Token>,
        /// Tokens drawn so far, over all pictures.
        done: usize,
        /// Tokens to draw in all.
        total: usize,
    },
    /// A row of cells is complete: the pictures so far, cells to come in white. Only if [`Request::previews`] is set.
    Preview(Vec<Picture>),
    /// A picture is complete.
    Picture(Picture),
}
