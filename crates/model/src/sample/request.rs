//! What to draw ([`Request`]) and how ([`Sampling`]), and what happens while drawing ([`Event`]).

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail, ensure};
use image::RgbImage;
use serde::{Deserialize, Serialize};
use tessera_base::random::{Purpose, item_rng, uniform_f64};

use crate::prior::PriorConfig;

/// The default guidance of models that were trained with dropped captions. It has the best metrics
/// for the embedded model (see its card). [`default_guidance`] gives the default of any model.
pub const DEFAULT_GUIDANCE: f64 = 1.5;

/// The largest guidance. A larger one could make logits that f32 cannot represent; much smaller
/// ones already give only noise.
const MAX_GUIDANCE: f64 = 1000.0;

/// Whether a model supports guidance: this requires that a fraction of the captions was dropped in
/// training. `caption_drop` is this fraction, `None` if it is not known.
pub fn trained_for_guidance(caption_drop: Option<f32>) -> bool {
    caption_drop.is_some_and(|share| share > 0.0)
}

/// The default guidance of such a model: [`DEFAULT_GUIDANCE`], or 1 (off) if the model does not
/// support guidance.
pub fn default_guidance(caption_drop: Option<f32>) -> f64 {
    if trained_for_guidance(caption_drop) { DEFAULT_GUIDANCE } else { 1.0 }
}

/// The default of [`Sampling::top_p`]. According to the metrics in the card it makes no difference;
/// to the eye the pictures are cleaner.
pub const DEFAULT_TOP_P: f64 = 0.7;

/// The default of [`Request::strength`] for variations. At 0.5 the changes are hardly visible.
pub const DEFAULT_STRENGTH: f64 = 0.7;

/// The number of pictures of a prompt unless the user chooses another.
pub const DEFAULT_N: usize = 9;

/// The number of candidates from which each of these pictures is selected, if they are ranked.
pub const CANDIDATES_EACH: usize = 4;

/// Random seeds are smaller than this, so that people can read and type them easily.
const SEEDS: u64 = 1_000_000_000;

/// A random seed, different at each call.
pub fn random_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    RandomState::new().hash_one(now) % SEEDS
}

/// How tokens are sampled from the logits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// The logits are divided by it. 1 is the paper's choice; 0 always gives the most likely token.
    pub temperature: f64,
    /// Samples only from the `k` most likely tokens.
    pub top_k: Option<usize>,
    /// Samples only from the fewest most likely tokens whose probabilities add up to this value.
    pub top_p: Option<f64>,
    /// Classifier-free guidance: the logits are `without + guidance · (with − without)`, with and
    /// without the caption. 1 is off.
    pub guidance: f64,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling { top_p: Some(DEFAULT_TOP_P), guidance: DEFAULT_GUIDANCE, ..Sampling::paper() }
    }
}

impl Sampling {
    /// The sampling of the paper (§2.6), from the unchanged distribution of the model: temperature
    /// 1, all tokens, no guidance.
    pub fn paper() -> Sampling {
        Sampling { temperature: 1.0, top_k: None, top_p: None, guidance: 1.0 }
    }

    /// Checks that all parameters are in range.
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

    /// Whether guidance is on, which also needs the logits without the caption.
    pub fn is_guided(&self) -> bool {
        self.guidance != 1.0
    }
}

/// What to draw.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The caption.
    pub prompt: String,
    /// The negative prompt: guidance steers away from it instead of from the empty caption.
    pub negative: String,
    /// The number of pictures to draw.
    pub n: usize,
    /// If present: the number of pictures that the model's reranker selects from those drawn
    /// (paper §2.6); only they are yielded, at the end, best first. If absent, every picture is
    /// yielded when it is finished.
    pub best: Option<usize>,
    /// The seed. The same seed gives the same pictures.
    pub seed: u64,
    /// How tokens are sampled.
    pub sampling: Sampling,
    /// Tokens that are given and not sampled, by position in raster order. A picture prompt
    /// (paper §3.3) gives those of the top rows. Empty, or one entry per position.
    pub given: Vec<Option<u32>>,
    /// For variations: the fraction of the given tokens that each picture samples again; which ones
    /// differs from picture to picture. 0 keeps all of them.
    pub strength: f64,
    /// Whether to decode and yield the unfinished pictures after each row of cells.
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
    /// Checks that all parameters are in range and that the given tokens fit the model.
    pub(super) fn check(&self, config: &PriorConfig) -> Result<()> {
        self.sampling.check()?;
        ensure!(self.n > 0, "0 pictures: wanted at least 1");
        ensure!(
            self.negative.is_empty() || self.sampling.is_guided(),
            "a negative prompt works through guidance, which is off at 1: choose another guidance"
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

    /// The token that is given at `position` of a candidate; `None` if it is to be sampled.
    pub(super) fn given(&self, candidate: usize, position: usize) -> Option<u32> {
        let token = self.given.get(position).copied().flatten()?;
        (self.uniform(Purpose::RedrawnCell, candidate, position) >= self.strength).then_some(token)
    }

    fn uniform(&self, purpose: Purpose, candidate: usize, position: usize) -> f64 {
        uniform_f64(&mut item_rng(self.seed, purpose, candidate as u64, position as u64))
    }

    /// The random number in [0, 1) that samples the token at `position` of a candidate.
    pub(super) fn unit(&self, candidate: usize, position: usize) -> f64 {
        self.uniform(Purpose::DrawnToken, candidate, position)
    }
}

/// A finished picture.
#[derive(Debug, Clone)]
pub struct Picture {
    /// The index of the picture in its request, from 0.
    pub index: usize,
    /// The tokens in raster order.
    pub tokens: Vec<u32>,
    /// The pixels.
    pub image: RgbImage,
    /// How well the picture fits the caption, a cosine similarity; only if pictures are ranked.
    pub score: Option<f32>,
}

/// A token that was just sampled or taken from the given ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// The index of the picture in its request, from 0.
    pub picture: usize,
    /// The position in raster order.
    pub position: usize,
    /// The code.
    pub code: u32,
}

/// What happens while a request is drawn.
#[derive(Debug, Clone)]
pub enum Event {
    /// One more token of each picture that is being drawn.
    Tokens {
        /// The new tokens.
        new: Vec<Token>,
        /// The number of tokens so far, over all pictures.
        done: usize,
        /// The number of tokens of all pictures when they are complete.
        total: usize,
    },
    /// The unfinished pictures after a complete row of cells. Cells whose token is neither sampled
    /// nor given are white. Only if [`Request::previews`] is set.
    Preview(Vec<Picture>),
    /// A finished picture.
    Picture(Picture),
}
