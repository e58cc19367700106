//! The decoding engine: a prior whose weights are packed once, stepping all candidates together on the processor.
//!
//! A caption runs once, through the same blocks as in training; its states are shared by all candidates. A layer keeps
//! of a picture only what its pattern can still see ([`Pattern::slots`]). The test holds its logits equal to those of
//! [`Prior::forward`].

use anyhow::{Context, Result, ensure};
use burn::module::Param;
use burn::tensor::{FloatDType, Tensor};
use tessera_kernels::Cpu;
use tessera_kernels::decode::{Finish, PackedLinear, States, Visible, Weights, attend, normalise};

use crate::nn::{LayerNorm, Linear};
use crate::prior::{Block, Pattern, Prior, PriorConfig, Stream, caption_slots};

/// A prior, ready to draw.
pub struct Decoder {
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
}

/// States of captions, one owner each, by layer.
pub struct Captions(Vec<States>);

/// Candidates that are drawn together.
pub struct Lanes {
    /// Whose caption each lane has.
    captions: Vec<usize>,
    /// The picture token that comes next.
    at: usize,
    /// States of the pictures so far, by layer.
    states: Vec<States>,
    work: Work,
}

impl Lanes {
    /// Picture tokens drawn so far.
    pub fn at(&self) -> usize {
        self.at
    }
}

impl Decoder {
    /// Packs the weights of `prior` for the processor; those of the layers and the head are kept as `weights` says.
    ///
    /// # Errors
    /// If they cannot be read from their device.
    pub fn new(prior: &Prior, weights: Weights) -> Result<Decoder> {
        let cpu = Cpu::current();
        let layer = |block: &Block| Layer::new(cpu, block, weights);
        let layers = prior.blocks.iter().map(layer).collect::<Result<_>>()?;
        Ok(Decoder {
            layers,
            norm: Norm::new(&prior.norm)?,
            head: packed(cpu, &prior.image_head, weights)?,
            image: values(&prior.embed.image)?,
            positions: floats(prior.embed.image_positions())?,
            prior: prior.clone(),
            cpu,
        })
    }

    /// The sizes.
    pub fn config(&self) -> &PriorConfig {
        self.prior.config()
    }

    /// Runs captions, each the BPE tokens of one, through the text positions.
    ///
    /// # Errors
    /// If a token is outside the vocabulary.
    pub fn read(&self, captions: &[&[u32]]) -> Result<Captions> {
        let (config, n) = (self.config(), captions.len());
        let slots = captions.iter().flat_map(|caption| caption_slots(caption, config).0).collect();
        let layers = self.prior.text_states(&Stream::new(n, slots, Vec::new(), config)?);
        let (d, t) = (config.d_model, config.text_len);
        let states = |qkv: Tensor<3>| -> Result<States> {
            let qkv = floats(qkv)?;
            let mut states = States::new(self.cpu, n, self.heads(), t);
            for (row, qkv) in qkv.chunks_exact(3 * d).enumerate() {
                states.put(row / t, row % t, &qkv[d..2 * d], &qkv[2 * d..]);
            }
            Ok(states)
        };
        Ok(Captions(layers.into_iter().map(states).collect::<Result<_>>()?))
    }

    /// Empty pictures, one for each entry of `captions`, which says whose caption it has.
    pub fn start(&self, captions: Vec<usize>) -> Lanes {
        let slots = |layer: &Layer| layer.pattern.slots(self.config().grid);
        let states = |layer: &Layer| States::new(self.cpu, captions.len(), self.heads(), slots(layer));
        let states = self.layers.iter().map(states).collect();
        Lanes { at: 0, states, work: Work::new(captions.len(), self.config()), captions }
    }

    /// Heads, and the width of one.
    fn heads(&self) -> [usize; 2] {
        let config = self.config();
        [config.n_heads, config.d_model / config.n_heads]
    }

    /// Logits `[lanes, image_vocab]` of each lane's next token, given its token before (none at first).
    ///
    /// # Errors
    /// If there is not one known token a lane, or the pictures are complete.
    pub fn step<'a>(&self, read: &Captions, lanes: &'a mut Lanes, previous: &[u32]) -> Result<&'a [f32]> {
        // Inside the pool, handing work to its threads costs a fraction of what it does from outside.
        rayon::scope(|_| self.step_inside(read, lanes, previous))?;
        Ok(&lanes.work.logits)
    }

    fn step_inside(&self, read: &Captions, lanes: &mut Lanes, previous: &[u32]) -> Result<()> {
        let config = self.config();
        ensure!(lanes.at < config.image_len(), "a picture has {} tokens", config.image_len());
        let mut x = self.embed(lanes, previous)?;
        let work = &mut lanes.work;
        let text = Visible::new(0..config.text_len);
        let mut seen: Vec<(Pattern, Visible)> = Vec::new();
        for ((layer, text_states), states) in self.layers.iter().zip(&read.0).zip(&mut lanes.states) {
            if !seen.iter().any(|(pattern, _)| *pattern == layer.pattern) {
                seen.push((layer.pattern, visible(layer.pattern, lanes.at, config.grid)));
            }
            let (_, own) =
                seen.iter().find(|(pattern, _)| *pattern == layer.pattern).context("just pushed")?;
            let slot = layer.pattern.slot(lanes.at, config.grid);
            let text = (text_states, lanes.captions.as_slice(), &text);
            layer.step(self.cpu, &mut x, work, text, (states, own, slot));
        }
        lanes.at += 1;
        self.norm.apply(self.cpu, &x, &mut work.normed);
        self.head.apply(&work.normed, Finish::Set, &mut work.logits);
        Ok(())
    }

    /// Inputs `[lanes, D]`: the token before, or the start, plus the position.
    fn embed(&self, lanes: &Lanes, previous: &[u32]) -> Result<Vec<f32>> {
        let (config, n) = (self.config(), lanes.captions.len());
        let d = config.d_model;
        let start = vec![config.image_vocab as u32; n];
        let tokens = if lanes.at == 0 { &start[..] } else { previous };
        ensure!(tokens.len() == n, "{} tokens for {n} lanes", tokens.len());
        let position = &self.positions[lanes.at * d..(lanes.at + 1) * d];
        let mut x = Vec::with_capacity(n * d);
        for &token in tokens {
            let row = self.image.get(token as usize * d..(token as usize + 1) * d);
            let row = row
                .with_context(|| format!("picture token {token}: wanted less than {}", config.image_vocab))?;
            x.extend(row.iter().zip(position).map(|(token, position)| token + position));
        }
        Ok(x)
    }
}

/// The slots that the query of picture token `at` sees.
fn visible(pattern: Pattern, at: usize, grid: usize) -> Visible {
    let keys = (0..=at).filter(|&key| pattern.sees_image(at, key, grid));
    Visible::new(keys.map(|key| pattern.slot(key, grid)))
}

/// Rows that a step works in.
struct Work {
    normed: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    hidden: Vec<f32>,
    logits: Vec<f32>,
}

impl Work {
    fn new(lanes: usize, config: &PriorConfig) -> Work {
        let (d, rows) = (config.d_model, |width: usize| vec![0.0; lanes * width]);
        Work {
            normed: rows(d),
            qkv: rows(3 * d),
            attended: rows(d),
            hidden: rows(4 * d),
            logits: rows(config.image_vocab),
        }
    }
}

impl Layer {
    fn new(cpu: Cpu, block: &Block, weights: Weights) -> Result<Layer> {
        let packed = |linear: &Linear| packed(cpu, linear, weights);
        Ok(Layer {
            attn_norm: Norm::new(&block.attn_norm)?,
            qkv: packed(&block.qkv)?,
            attn_out: packed(&block.attn_out)?,
            mlp_norm: Norm::new(&block.mlp_norm)?,
            mlp_in: packed(&block.mlp_in)?,
            mlp_out: packed(&block.mlp_out)?,
            pattern: block.pattern,
        })
    }

    /// Moves the residual stream `x` `[lanes, D]` through the layer; the new state goes to `slot`.
    fn step(
        &self,
        cpu: Cpu,
        x: &mut [f32],
        work: &mut Work,
        text: (&States, &[usize], &Visible),
        (states, visible, slot): (&mut States, &Visible, usize),
    ) {
        self.attn_norm.apply(cpu, x, &mut work.normed);
        self.qkv.apply(&work.normed, Finish::Set, &mut work.qkv);
        let d = self.attn_norm.gain.len();
        states.put_all(slot, &work.qkv);
        attend(&work.qkv, 3 * d, text, (states, visible), &mut work.attended);
        self.attn_out.apply(&work.attended, Finish::Add, x);
        self.mlp_norm.apply(cpu, x, &mut work.normed);
        self.mlp_in.apply(&work.normed, Finish::Gelu, &mut work.hidden);
        self.mlp_out.apply(&work.hidden, Finish::Add, x);
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
