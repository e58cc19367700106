//! The decoding engine: a prior whose weights are packed once, stepping all candidates together on the processor.
//!
//! A caption runs once, through the same blocks as in training; its states are shared by all candidates. A layer keeps
//! of a picture only what its pattern can still see ([`Pattern::cache_rows`]). Candidates that step together may be at different
//! places of their pictures. The test holds its logits equal to those of [`Prior::forward`].

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use burn::module::Param;
use burn::tensor::{FloatDType, Tensor};
use tessera_kernels::Cpu;
use tessera_kernels::decode::{
    Epilogue, KvCache, PackedLinear, Sequence, Visible, Weights, attend, normalise,
};

use crate::nn::{LayerNorm, Linear};
use crate::prior::{Block, Logits, Pattern, Prior, PriorConfig, Stream, caption_slots};

/// A prior, ready to draw.
pub struct Sampler {
    prior: Prior,
    layers: Vec<Layer>,
    norm: Norm,
    head: PackedLinear,
    /// `[image_vocab + 1, D]`
    image: Vec<f32>,
    /// `[grid², D]`
    positions: Vec<f32>,
    cpu: Cpu,
}

struct Norm {
    gain: Vec<f32>,
    bias: Vec<f32>,
}

struct Layer {
    attn_norm: Norm,
    qkv: PackedLinear,
    attn_out: PackedLinear,
    mlp_norm: Norm,
    mlp_in: PackedLinear,
    mlp_out: PackedLinear,
    pattern: Pattern,
    /// The cache rows that the query of each picture token sees.
    visible: Arc<[Visible]>,
}

/// Keys and values of captions, by layer; a caption is one sequence of each cache.
pub struct PrefixCache(Vec<KvCache>);

/// Candidates that are drawn together: keys and values of the pictures so far, by layer; a slot is one sequence of each cache.
pub struct KvSlots {
    states: Vec<KvCache>,
    n: usize,
    work: Work,
}

/// One row of a step: the token of one slot that comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// Which of the captions the slot has.
    pub caption: usize,
    /// Which of the slots; those of its tokens before this one must have been stepped through.
    pub slot: usize,
    /// The token's place in raster order; at 0 the slot starts anew.
    pub at: usize,
    /// The token before it; not looked at if there is none.
    pub previous: u32,
}

impl Next {
    /// The tokens at `at` of as many slots as `previous` has, each of the caption of its own number.
    pub fn all(at: usize, previous: &[u32]) -> Vec<Next> {
        let next = |(slot, &previous)| Next { caption: slot, slot, at, previous };
        previous.iter().enumerate().map(next).collect()
    }
}

impl Sampler {
    /// Packs the weights of `prior` for the processor; those of the layers and the head are kept as `weights` says.
    ///
    /// # Errors
    /// If they cannot be read from their device.
    pub fn new(prior: &Prior, weights: Weights) -> Result<Sampler> {
        let (cpu, config) = (prior.cpu(), prior.config());
        let mut seen: Vec<(Pattern, Arc<[Visible]>)> = Vec::new();
        let mut layers = Vec::new();
        for block in &prior.blocks {
            let known = seen.iter().find(|(pattern, _)| *pattern == block.pattern);
            let visible =
                known.map_or_else(|| all_visible(block.pattern, config), |(_, known)| known.clone());
            seen.push((block.pattern, visible.clone()));
            layers.push(Layer::new(cpu, block, weights, visible)?);
        }
        Ok(Sampler {
            layers,
            norm: Norm::new(&prior.norm)?,
            head: head(cpu, prior, weights)?,
            image: values(&prior.embed.image)?,
            positions: floats(prior.embed.image_positions())?,
            prior: prior.clone(),
            cpu,
        })
    }

    /// The instructions that its weights are packed for.
    pub fn cpu(&self) -> Cpu {
        self.cpu
    }

    /// The sizes.
    pub fn config(&self) -> &PriorConfig {
        self.prior.config()
    }

    /// Runs captions, each the BPE tokens of one, through the text positions.
    ///
    /// # Errors
    /// If a token is outside the vocabulary.
    pub fn read(&self, captions: &[&[u32]]) -> Result<PrefixCache> {
        let mut read = self.new_prefix_cache(captions.len());
        self.read_into(&mut read, &(0..captions.len()).collect::<Vec<_>>(), captions)?;
        Ok(read)
    }

    /// Room for `n` captions, to be read later.
    pub fn new_prefix_cache(&self, n: usize) -> PrefixCache {
        let states = |_: &Layer| KvCache::new(self.cpu, n, self.heads(), self.config().text_len);
        PrefixCache(self.layers.iter().map(states).collect())
    }

    /// Runs captions as [`Sampler::read`] does and puts caption `i` in the place of prefix `prefixes[i]`.
    ///
    /// # Errors
    /// If a token is outside the vocabulary.
    pub fn read_into(&self, read: &mut PrefixCache, prefixes: &[usize], captions: &[&[u32]]) -> Result<()> {
        let config = self.config();
        let cache_rows = captions.iter().flat_map(|caption| caption_slots(caption, config).0).collect();
        let layers = self.prior.text_states(&Stream::new(captions.len(), cache_rows, Vec::new(), config)?);
        let (d, t) = (config.d_model, config.text_len);
        for (states, qkv) in read.0.iter_mut().zip(layers) {
            for (row, qkv) in floats(qkv)?.chunks_exact(3 * d).enumerate() {
                states.put(prefixes[row / t], row % t, &qkv[d..2 * d], &qkv[2 * d..]);
            }
        }
        Ok(())
    }

    /// Room for `n` pictures.
    pub fn new_slots(&self, n: usize) -> KvSlots {
        let cache_rows = |layer: &Layer| layer.pattern.cache_rows(self.config().grid);
        let states = |layer: &Layer| KvCache::new(self.cpu, n, self.heads(), cache_rows(layer));
        KvSlots { states: self.layers.iter().map(states).collect(), n, work: Work::default() }
    }

    /// Heads, and the width of one.
    fn heads(&self) -> [usize; 2] {
        let config = self.config();
        [config.n_heads, config.d_model / config.n_heads]
    }

    /// Logits `[rows, image_vocab]` of the tokens that come next, one row for each entry of `next`.
    ///
    /// # Errors
    /// If a token before is unknown, a picture is complete, or there is no such slot.
    ///
    /// # Panics
    /// If a slot comes twice, or there is no such caption.
    pub fn step<'a>(&self, read: &PrefixCache, slots: &'a mut KvSlots, next: &[Next]) -> Result<&'a [f32]> {
        // Handing work to the pool's threads costs less from one of them.
        rayon::scope(|_| self.step_inside(read, slots, next))?;
        Ok(&slots.work.logits)
    }

    fn step_inside(&self, read: &PrefixCache, slots: &mut KvSlots, next: &[Next]) -> Result<()> {
        let config = self.config();
        for row in next {
            ensure!(row.at < config.image_len(), "a picture has {} tokens", config.image_len());
            ensure!(row.slot < slots.n, "slot {} of {}", row.slot, slots.n);
        }
        let mut x = self.embed(next)?;
        let KvSlots { states, work, .. } = slots;
        work.fit(next.len(), config);
        let text = Visible::new(0..config.text_len);
        for ((layer, text_states), states) in self.layers.iter().zip(&read.0).zip(states) {
            layer.step(self.cpu, &mut x, work, (text_states, &text), (states, next, config.grid));
        }
        self.norm.apply(self.cpu, &x, &mut work.normed);
        self.head.apply(&work.normed, Epilogue::Set, &mut work.logits);
        Ok(())
    }

    /// Inputs `[rows, D]`: the token before, or the start, plus the position.
    fn embed(&self, next: &[Next]) -> Result<Vec<f32>> {
        let (config, d) = (self.config(), self.config().d_model);
        let mut x = Vec::with_capacity(next.len() * d);
        for &Next { at, previous, .. } in next {
            let token = if at == 0 { config.image_vocab } else { previous as usize };
            let row = self.image.get(token * d..(token + 1) * d);
            let row = row
                .with_context(|| format!("picture token {token}: wanted less than {}", config.image_vocab))?;
            let position = &self.positions[at * d..(at + 1) * d];
            x.extend(row.iter().zip(position).map(|(token, position)| token + position));
        }
        Ok(x)
    }
}

/// For each picture token the cache rows that its query sees.
fn all_visible(pattern: Pattern, config: &PriorConfig) -> Arc<[Visible]> {
    let grid = config.grid;
    let visible = |at: usize| {
        let keys = (0..=at).filter(|&key| pattern.sees_image(at, key, grid));
        Visible::new(keys.map(|key| pattern.cache_row(key, grid)))
    };
    (0..config.image_len()).map(visible).collect()
}

/// Rows that a step works in.
#[derive(Default)]
struct Work {
    normed: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    hidden: Vec<f32>,
    logits: Vec<f32>,
}

impl Work {
    fn fit(&mut self, rows: usize, config: &PriorConfig) {
        let d = config.d_model;
        self.normed.resize(rows * d, 0.0);
        self.qkv.resize(rows * 3 * d, 0.0);
        self.attended.resize(rows * d, 0.0);
        self.hidden.resize(rows * 4 * d, 0.0);
        self.logits.resize(rows * config.image_vocab, 0.0);
    }
}

impl Layer {
    fn new(cpu: Cpu, block: &Block, weights: Weights, visible: Arc<[Visible]>) -> Result<Layer> {
        let packed = |linear: &Linear| packed(cpu, linear, weights);
        Ok(Layer {
            attn_norm: Norm::new(&block.attn_norm)?,
            qkv: packed(&block.qkv)?,
            attn_out: packed(&block.attn_out)?,
            mlp_norm: Norm::new(&block.mlp_norm)?,
            mlp_in: packed(&block.mlp_in)?,
            mlp_out: packed(&block.mlp_out)?,
            pattern: block.pattern,
            visible,
        })
    }

    /// Moves the residual stream `x` `[rows, D]` through the layer, whose new states go to `states`.
    fn step(
        &self,
        cpu: Cpu,
        x: &mut [f32],
        work: &mut Work,
        text: (&KvCache, &Visible),
        (states, next, grid): (&mut KvCache, &[Next], usize),
    ) {
        self.attn_norm.apply(cpu, x, &mut work.normed);
        self.qkv.apply(&work.normed, Epilogue::Set, &mut work.qkv);
        let d = self.attn_norm.gain.len();
        let places: Vec<_> =
            next.iter().map(|row| (row.slot, self.pattern.cache_row(row.at, grid))).collect();
        states.put_rows(&places, &work.qkv);
        let slot =
            |row: &Next| Sequence { caption: row.caption, own: row.slot, visible: &self.visible[row.at] };
        let slots: Vec<Sequence> = next.iter().map(slot).collect();
        attend(&work.qkv, 3 * d, &slots, text, states, &mut work.attended);
        self.attn_out.apply(&work.attended, Epilogue::Add, x);
        self.mlp_norm.apply(cpu, x, &mut work.normed);
        self.mlp_in.apply(&work.normed, Epilogue::Gelu, &mut work.hidden);
        self.mlp_out.apply(&work.hidden, Epilogue::Add, x);
    }
}

impl Norm {
    fn new(norm: &LayerNorm) -> Result<Norm> {
        Ok(Norm { gain: values(&norm.gain)?, bias: values(&norm.bias)? })
    }

    fn apply(&self, cpu: Cpu, x: &[f32], out: &mut [f32]) {
        normalise(cpu, x, &self.gain, &self.bias, LayerNorm::EPSILON as f32, out);
    }
}

/// The head over picture tokens: logits in 32 bits want its weights as they are.
fn head(cpu: Cpu, prior: &Prior, weights: Weights) -> Result<PackedLinear> {
    let logits = prior.config().logits;
    let weights = match logits {
        Logits::Auto => weights,
        Logits::F32 => Weights::Full,
    };
    packed(logits.cpu(cpu), &prior.image_head, weights)
}

fn packed(cpu: Cpu, linear: &Linear, weights: Weights) -> Result<PackedLinear> {
    Ok(PackedLinear::new(cpu, &values(&linear.weight)?, values(&linear.bias)?, weights))
}

fn values<const D: usize>(param: &Param<Tensor<D>>) -> Result<Vec<f32>> {
    floats(param.val())
}

fn floats<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    let data = tensor.without_autodiff().cast(FloatDType::F32).into_data();
    data.try_to_vec::<f32>().map_err(|error| anyhow::anyhow!("{error:?}"))
}
