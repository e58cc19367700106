//! The drawing loop: candidates in groups of lanes, each lane a function of (seed, candidate, position) alone.
//!
//! The caption is run once and shared by all candidates. Rows of the decoder and pictures of the dVAE do not depend on each other, so the same
//! candidate has the same bits whatever `n` is.

use anyhow::{Result, bail, ensure};
use burn::tensor::{Int, Tensor, TensorData};
use image::RgbImage;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::decode::{Captions, Decoder, Lanes};
use super::{Ranking, choose};
use crate::dvae::Dvae;
use crate::prior::PriorConfig;

/// Most candidates that step together.
const LANES: usize = 64;
/// Pictures that are decoded together.
const PICTURES: usize = 16;

/// Separates drawing from every other use of a seed.
const PURPOSE: u64 = u64::from_le_bytes(*b"drawings");

/// How strongly drawing follows the words unless told otherwise: what evaluates best for the embedded model (its card
/// has the figures). It takes a model that was trained with dropped captions, as all presets are.
pub const DEFAULT_GUIDANCE: f64 = 1.5;

/// The share of the likeliest tokens that drawing chooses among unless told otherwise. By the figures in the card it
/// neither helps nor harms; to the eye the drawings are cleaner.
pub const DEFAULT_TOP_P: f64 = 0.7;

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
}

/// What to draw.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The caption.
    pub prompt: String,
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
    /// Whether to decode and yield the pictures so far after every row of cells.
    pub previews: bool,
}

impl Default for Request {
    fn default() -> Request {
        let sampling = Sampling::default();
        let given = Vec::new();
        Request { prompt: String::new(), n: 1, best: None, seed: 0, sampling, given, previews: true }
    }
}

impl Sampling {
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
        ensure!(self.guidance.is_finite(), "guidance {}: wanted a finite number (1 is off)", self.guidance);
        Ok(())
    }
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

/// What happens while drawing.
#[derive(Debug, Clone)]
pub enum Event {
    /// One more token of each picture in a group: tokens done so far and in all, over all pictures.
    Tokens {
        /// Tokens drawn.
        done: usize,
        /// Tokens to draw.
        total: usize,
    },
    /// A row of cells is complete: the pictures so far, cells to come in white. Only if [`Request::previews`] is set.
    Preview(Vec<Picture>),
    /// A picture is complete.
    Picture(Picture),
}

/// An iterator over the events of a request.
pub struct Drawing<'a> {
    decoder: &'a Decoder,
    dvae: &'a Dvae,
    request: Request,
    /// The caption's states, and the empty caption's behind them if guidance is on.
    captions: Captions,
    /// First candidate of the current group.
    first: usize,
    /// The current group with its caption, and without behind it if guidance is on.
    lanes: Lanes,
    /// The group's tokens so far, `[lane][position]`.
    tokens: Vec<Vec<u32>>,
    queue: std::collections::VecDeque<Event>,
    /// Where finished pictures go instead of the queue.
    ranking: Option<Ranking<'a>>,
}

impl<'a> Drawing<'a> {
    /// Starts to draw `request.n` pictures of the caption whose BPE tokens are `caption`.
    ///
    /// # Errors
    /// If a sampling parameter is out of range, `n` is 0, or the given tokens do not fit the model.
    pub fn new(
        decoder: &'a Decoder,
        dvae: &'a Dvae,
        caption: &[u32],
        request: Request,
    ) -> Result<Drawing<'a>> {
        request.sampling.check()?;
        ensure!(request.n > 0, "0 pictures: wanted at least 1");
        check_given(&request.given, decoder.config())?;
        let captions: &[&[u32]] = if guided(&request) { &[caption, &[]] } else { &[caption] };
        let captions = decoder.read(captions)?;
        let (first, lanes, tokens) = (0, decoder.start(Vec::new()), Vec::new());
        let queue = std::collections::VecDeque::new();
        let mut drawing =
            Drawing { decoder, dvae, request, captions, first, lanes, tokens, queue, ranking: None };
        drawing.start_group();
        Ok(drawing)
    }

    /// Yields only the pictures that `ranking` keeps, at the end, best first.
    pub fn ranked(self, ranking: Ranking<'a>) -> Drawing<'a> {
        Drawing { ranking: Some(ranking), ..self }
    }

    fn start_group(&mut self) {
        let n = self.live();
        let captions = [vec![0; n], vec![1; if guided(&self.request) { n } else { 0 }]].concat();
        self.lanes = self.decoder.start(captions);
        self.tokens = vec![Vec::new(); n];
    }

    /// Candidates of the current group.
    fn live(&self) -> usize {
        (self.request.n - self.first).min(LANES)
    }

    /// Draws one token in every lane.
    fn step(&mut self) -> Result<()> {
        let config = self.decoder.config();
        let (at, vocab) = (self.lanes.at(), config.image_vocab);
        let mut last: Vec<u32> = self.tokens.iter().filter_map(|lane| lane.last().copied()).collect();
        if guided(&self.request) {
            last.extend_from_within(..);
        }
        let logits = self.decoder.step(&self.captions, &mut self.lanes, &last)?;
        let (with, without) = logits.split_at(self.tokens.len() * vocab);
        let (request, first) = (&self.request, self.first as u64);
        let given = request.given.get(at).copied().flatten();
        self.tokens.par_iter_mut().enumerate().for_each(|(lane, tokens)| {
            if let Some(token) = given {
                return tokens.push(token);
            }
            let row = lane * vocab..(lane + 1) * vocab;
            let u = unit(request.seed, first + lane as u64, at as u64);
            tokens.push(match guided(request) {
                true => {
                    let row = guide(&with[row.clone()], &without[row], request.sampling.guidance as f32);
                    choose(&row, &request.sampling, u)
                }
                false => choose(&with[row], &request.sampling, u),
            });
        });
        self.report(at + 1, config.grid, config.image_len())
    }

    fn report(&mut self, done: usize, grid: usize, image_len: usize) -> Result<()> {
        let total = self.request.n * image_len;
        self.queue.push_back(Event::Tokens { done: self.first * image_len + done * self.live(), total });
        if done == image_len {
            let pictures = self.pictures(grid)?;
            self.first += self.live();
            let finished = match &mut self.ranking {
                None => pictures,
                Some(ranking) => {
                    ranking.add(pictures)?;
                    if self.first < self.request.n { Vec::new() } else { ranking.take() }
                }
            };
            self.queue.extend(finished.into_iter().map(Event::Picture));
            if self.first < self.request.n {
                self.start_group();
            }
        } else if self.request.previews && done.is_multiple_of(grid) {
            self.queue.push_back(Event::Preview(self.pictures(grid)?));
        }
        Ok(())
    }

    /// The pictures of the current group as far as they are drawn.
    fn pictures(&self, grid: usize) -> Result<Vec<Picture>> {
        let drawn = self.tokens[0].len();
        let padded = |lane: &Vec<u32>| {
            let rest = (drawn..grid * grid).map(|_| 0);
            lane.iter().map(|&token| token as i32).chain(rest).collect::<Vec<i32>>()
        };
        let mut images = Vec::new();
        for lanes in self.tokens.chunks(PICTURES) {
            let codes: Vec<i32> = lanes.iter().flat_map(padded).collect();
            let codes = TensorData::new(codes, [lanes.len(), grid, grid]);
            let codes: Tensor<3, Int> = Tensor::from_data(codes, &self.dvae.device());
            images.extend(to_images(self.dvae.decode(codes))?);
        }
        let lanes = images.into_iter().zip(&self.tokens).enumerate();
        let picture = |(lane, (mut image, tokens)): (usize, (RgbImage, &Vec<u32>))| {
            whiten_from_row(&mut image, drawn / grid, grid);
            Picture { index: self.first + lane, tokens: tokens.clone(), image, score: None }
        };
        Ok(lanes.map(picture).collect())
    }
}

impl Iterator for Drawing<'_> {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Result<Event>> {
        if let Some(event) = self.queue.pop_front() {
            return Some(Ok(event));
        }
        if self.first >= self.request.n {
            return None;
        }
        match self.step() {
            Ok(()) => self.queue.pop_front().map(Ok),
            Err(error) => {
                self.first = self.request.n;
                Some(Err(error))
            }
        }
    }
}

fn check_given(given: &[Option<u32>], config: &PriorConfig) -> Result<()> {
    let (len, vocab) = (config.image_len(), config.image_vocab);
    ensure!(
        given.is_empty() || given.len() == len,
        "{} given tokens: wanted none, or one entry for each of {len} positions",
        given.len()
    );
    match given.iter().flatten().find(|&&token| token as usize >= vocab) {
        Some(token) => bail!("given token {token}: wanted one of {vocab} codes"),
        None => Ok(()),
    }
}

fn guided(request: &Request) -> bool {
    request.sampling.guidance != 1.0
}

fn guide(with: &[f32], without: &[f32], guidance: f32) -> Vec<f32> {
    with.iter().zip(without).map(|(with, without)| without + guidance * (with - without)).collect()
}

/// Uniform in [0, 1): the draw of one token.
fn unit(seed: u64, candidate: u64, position: u64) -> f64 {
    let mut key = [0; 32];
    for (slot, number) in key.chunks_exact_mut(8).zip([seed, PURPOSE, candidate, position]) {
        slot.copy_from_slice(&number.to_le_bytes());
    }
    (ChaCha8Rng::from_seed(key).next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// `[B, 3, S, S]` in [0, 1] → pictures.
pub(crate) fn to_images(x: Tensor<4>) -> Result<Vec<RgbImage>> {
    let [_, _, height, width] = x.dims();
    let values =
        x.permute([0, 2, 3, 1]).into_data().try_to_vec::<f32>().map_err(|e| anyhow::anyhow!("{e:?}"))?;
    let image = |values: &[f32]| {
        let bytes = values.iter().map(|v| (v * 255.0).round() as u8).collect();
        RgbImage::from_raw(width as u32, height as u32, bytes)
    };
    let images: Option<Vec<RgbImage>> = values.chunks_exact(height * width * 3).map(image).collect();
    images.ok_or_else(|| anyhow::anyhow!("a picture has the wrong number of values"))
}

fn whiten_from_row(image: &mut RgbImage, row: usize, grid: usize) {
    let (width, height) = image.dimensions();
    for y in row as u32 * height / grid as u32..height {
        (0..width).for_each(|x| image.put_pixel(x, y, image::Rgb([255; 3])));
    }
}
