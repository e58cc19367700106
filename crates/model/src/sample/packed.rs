//! Sampling on the processor: the weights are packed once, and a step multiplies plain arrays.

use std::sync::Arc;

use anyhow::Result;
use tessera_kernels::Cpu;
use tessera_kernels::decode::{
    Epilogue, KvCache, PackedLinear, Sequence, Visible, Weights, attend, normalise,
};

use super::sampler::{Next, floats, values};
use crate::nn::{LayerNorm, Linear};
use crate::prior::{Block, Logits, Pattern, Prior, PriorConfig, Stream};

/// The weights of a prior, packed for the processor.
pub(super) struct Packed {
    layers: Vec<Layer>,
    norm: Norm,
    head: PackedLinear,
    /// The embeddings of picture tokens, `[image_vocab + 1, D]`.
    image: Vec<f32>,
    /// The embeddings of image positions, `[grid², D]`.
    positions: Vec<f32>,
    config: PriorConfig,
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

impl Packed {
    /// Packs the weights of `prior`. `weights` is the precision of the matrices of the layers and of
    /// the head.
    pub(super) fn new(prior: &Prior, weights: Weights) -> Result<Packed> {
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
        Ok(Packed {
            layers,
            norm: Norm::new(&prior.norm)?,
            head: head(cpu, prior, weights)?,
            image: values(&prior.embed.image)?,
            positions: floats(prior.embed.image_positions())?,
            config: config.clone(),
            cpu,
        })
    }

    /// Empty caches, one per layer, for `n` captions.
    pub(super) fn text_caches(&self, n: usize) -> Vec<KvCache> {
        let cache = |_: &Layer| KvCache::new(self.cpu, n, self.heads(), self.config.text_len);
        self.layers.iter().map(cache).collect()
    }

    /// Empty caches, one per layer, for `n` pictures in progress.
    pub(super) fn picture_caches(&self, n: usize) -> Vec<KvCache> {
        let rows = |layer: &Layer| layer.pattern.cache_rows(self.config.grid);
        let cache = |layer: &Layer| KvCache::new(self.cpu, n, self.heads(), rows(layer));
        self.layers.iter().map(cache).collect()
    }

    /// Runs the captions of `stream` through the text positions of `prior`, and stores the keys and
    /// values of caption `i` as sequence `prefixes[i]` of `caches`.
    pub(super) fn read_into(
        &self,
        prior: &Prior,
        stream: &Stream,
        prefixes: &[usize],
        caches: &mut [KvCache],
    ) -> Result<()> {
        let (d, t) = (self.config.d_model, self.config.text_len);
        for (cache, qkv) in caches.iter_mut().zip(prior.text_states(stream)) {
            for (row, qkv) in floats(qkv)?.chunks_exact(3 * d).enumerate() {
                cache.put(prefixes[row / t], row % t, &qkv[d..2 * d], &qkv[2 * d..]);
            }
        }
        Ok(())
    }

    /// The number of heads and the width of a head.
    fn heads(&self) -> [usize; 2] {
        [self.config.n_heads, self.config.d_model / self.config.n_heads]
    }

    /// Computes the logits of the next tokens into `work.logits`, `[rows, image_vocab]`.
    pub(super) fn step(&self, text: &[KvCache], pictures: &mut [KvCache], work: &mut Work, next: &[Next]) {
        let config = &self.config;
        let mut x = self.embed(next);
        work.fit(next.len(), config);
        let visible = Visible::new(0..config.text_len);
        for ((layer, text), pictures) in self.layers.iter().zip(text).zip(pictures) {
            layer.step(self.cpu, &mut x, work, (text, &visible), (pictures, next, config.grid));
        }
        self.norm.apply(self.cpu, &x, &mut work.normed);
        self.head.apply(&work.normed, Epilogue::Set, &mut work.logits);
    }

    /// The inputs, `[rows, D]`: the embedding of the previous token, or of the start token, plus
    /// that of the position.
    fn embed(&self, next: &[Next]) -> Vec<f32> {
        let d = self.config.d_model;
        let mut x = Vec::with_capacity(next.len() * d);
        for next in next {
            let token = next.input(&self.config);
            let row = &self.image[token * d..(token + 1) * d];
            let position = &self.positions[next.at * d..(next.at + 1) * d];
            x.extend(row.iter().zip(position).map(|(token, position)| token + position));
        }
        x
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
pub(super) struct Work {
    normed: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    hidden: Vec<f32>,
    pub(super) logits: Vec<f32>,
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
