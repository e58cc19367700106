//! The sampler: a prior whose weights are packed once, and which computes the logits of many
//! candidates together on the processor.
//!
//! A caption runs once, through the same blocks as in training; all its candidates share its KV
//! cache. For a picture, each layer caches only the positions that its attention pattern can still
//! reach ([`Pattern::cache_rows`]). Candidates in the same step may be at different positions. A
//! test checks that the logits equal those of [`Prior::forward`].

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use burn::module::Param;
use burn::tensor::{FloatDType, Tensor};
use tessera_base::Internal;
use tessera_kernels::Cpu;
use tessera_kernels::decode::{
    Epilogue, KvCache, PackedLinear, Sequence, Visible, Weights, attend, normalise,
};

use crate::nn::{LayerNorm, Linear};
use crate::prior::{Block, Logits, Pattern, Prior, PriorConfig, Stream, caption_slots};

/// A prior that is ready for sampling.
pub struct Sampler {
    prior: Prior,
    layers: Vec<Layer>,
    norm: Norm,
    head: PackedLinear,
    /// The embeddings of picture tokens, `[image_vocab + 1, D]`.
    image: Vec<f32>,
    /// The embeddings of image positions, `[grid², D]`.
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
    /// For each image position: the cache rows that its query attends to.
    visible: Arc<[Visible]>,
}

/// The keys and values of captions, one cache per layer. A caption is one sequence of each cache.
pub struct PrefixCache(Vec<KvCache>);

/// The keys and values of pictures in progress, one cache per layer. A slot is one sequence of each
/// cache.
pub struct KvSlots {
    states: Vec<KvCache>,
    n: usize,
    work: Work,
}

/// One row of a step: the next token of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// The index of the slot's caption in the prefix cache.
    pub caption: usize,
    /// The index of the slot. Earlier steps must have processed all earlier positions of its
    /// picture.
    pub slot: usize,
    /// The position of the next token in raster order. At 0 the slot starts a new picture.
    pub at: usize,
    /// The token before this position; ignored at position 0.
    pub previous: u32,
}

impl Next {
    /// Rows for position `at` of the first slots, one for each token of `previous`. Slot `i` has
    /// caption `i`.
    pub fn all(at: usize, previous: &[u32]) -> Vec<Next> {
        let next = |(slot, &previous)| Next { caption: slot, slot, at, previous };
        previous.iter().enumerate().map(next).collect()
    }
}

impl Sampler {
    /// Packs the weights of `prior` for the processor. `weights` is the precision of the matrices
    /// of the layers and of the head.
    ///
    /// # Errors
    /// If the weights cannot be read from their device.
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

    /// The instructions and the precision that the weights are packed for.
    pub fn cpu(&self) -> Cpu {
        self.cpu
    }

    /// The sizes of the prior.
    pub fn config(&self) -> &PriorConfig {
        self.prior.config()
    }

    /// Runs captions through the text positions and returns their keys and values. A caption is a
    /// slice of BPE tokens.
    ///
    /// # Errors
    /// If a token is outside the vocabulary.
    pub fn read(&self, captions: &[&[u32]]) -> Result<PrefixCache> {
        let mut read = self.new_prefix_cache(captions.len());
        self.read_into(&mut read, &(0..captions.len()).collect::<Vec<_>>(), captions)?;
        Ok(read)
    }

    /// An empty cache for `n` captions, to be filled by [`Sampler::read_into`].
    pub fn new_prefix_cache(&self, n: usize) -> PrefixCache {
        let states = |_: &Layer| KvCache::new(self.cpu, n, self.heads(), self.config().text_len);
        PrefixCache(self.layers.iter().map(states).collect())
    }

    /// Like [`Sampler::read`], but stores the keys and values of caption `i` as sequence
    /// `prefixes[i]` of `read`.
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

    /// A cache for `n` pictures in progress.
    pub fn new_slots(&self, n: usize) -> KvSlots {
        let cache_rows = |layer: &Layer| layer.pattern.cache_rows(self.config().grid);
        let states = |layer: &Layer| KvCache::new(self.cpu, n, self.heads(), cache_rows(layer));
        KvSlots { states: self.layers.iter().map(states).collect(), n, work: Work::default() }
    }

    /// The number of heads and the width of a head.
    fn heads(&self) -> [usize; 2] {
        let config = self.config();
        [config.n_heads, config.d_model / config.n_heads]
    }

    /// Computes the logits of the next tokens, `[rows, image_vocab]`, one row per entry of `next`.
    ///
    /// # Errors
    /// If a previous token is outside the vocabulary, a picture is already complete, or there is no
    /// such slot.
    ///
    /// # Panics
    /// If `next` contains a slot twice, or there is no such caption.
    pub fn step<'a>(&self, read: &PrefixCache, slots: &'a mut KvSlots, next: &[Next]) -> Result<&'a [f32]> {
        // Starting parallel work has less overhead on a thread of the pool than outside of it.
        rayon::scope(|_| self.step_inside(read, slots, next))?;
        Ok(&slots.work.logits)
    }

    fn step_inside(&self, read: &PrefixCache, slots: &mut KvSlots, next: &[Next]) -> Result<()> {
        let config = self.config();
        for row in next {
            ensure!(
                row.at < config.image_len(),
                "position {}: a picture has {} tokens",
                row.at,
                config.image_len()
            );
            ensure!(row.slot < slots.n, "slot {}: there are {} slots", row.slot, slots.n);
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

    /// The inputs, `[rows, D]`: the embedding of the previous token, or of the start token, plus
    /// that of the position.
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

/// For each image position: the cache rows that its query attends to.
fn all_visible(pattern: Pattern, config: &PriorConfig) -> Arc<[Visible]> {
    let grid = config.grid;
    let visible = |at: usize| {
        let keys = (0..=at).filter(|&key| pattern.attends_in_image(at, key, grid));
        Visible::new(keys.map(|key| pattern.cache_row(key, grid)))
    };
    (0..config.image_len()).map(visible).collect()
}

/// The buffers of a step, each with one row per sequence.
#[derive(Default)]
struct Work {
    normed: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    hidden: Vec<f32>,
    logits: Vec<f32>,
}

impl Work {
    /// Resizes the buffers to `rows` rows.
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

    /// Runs the layer on the residual stream `x`, `[rows, D]`, and stores the new keys and values
    /// in `states`.
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

/// The head over picture tokens. Logits in 32 bits need its weights unrounded.
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
    Ok(data.try_to_vec::<f32>().map_err(Internal::debug)?)
}
