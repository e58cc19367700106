//! Benchmarks of drawing: sampling tokens, and decoding tokens to pixels.

use anyhow::Result;
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Int, Tensor, TensorData};
use rayon::prelude::*;
use tessera_base::{random::Purpose, random::item_rng, random::uniform};
use tessera_kernels::Cpu;
use tessera_kernels::decode::Weights;
use tessera_model::dvae::{Decoder as DvaeDecoder, Dvae, DvaeConfig};
use tessera_model::nn::{Compute, Init, Role};
use tessera_model::prior::{Layout, Logits, Pattern, Prior, PriorConfig, Wrap};
use tessera_model::sample::{Next, choose};
use tessera_model::{Event, Request, Sampler, Sampling, Tessera};

use super::{Benchmark, count};
use crate::commands::model_file;

/// Samples all tokens of `slots` pictures of `grid` × `grid` tokens after `text_len` positions of
/// text. The prior has 6 layers of width 384 with 6 heads, causal attention and 4096 codes.
///
/// As in `draw`, all slots are one batch, and the processor keeps weights in 8 bits. Tokens are sampled from
/// the unchanged distribution. The text is processed once for all slots.
pub fn decode(compute: &Compute, slots: usize, text_len: usize, grid: usize) -> Result<Benchmark> {
    let cpu = compute.cpu;
    let config = PriorConfig {
        text_len,
        text_vocab: 4096,
        grid,
        image_vocab: 4096,
        d_model: 384,
        n_layers: 6,
        n_heads: 6,
        conv_kernel: 3,
        conv_wrap: Wrap::Flat,
        logits: Logits::Auto,
        layout: Layout::default(),
    };
    let prior = Prior::new(&config, 1, compute).with_pattern(Pattern::Causal);
    let prior = prior.map(&mut DrawHead { config: &config, init: Init::new(2, compute) });
    let weights = drawn_with(compute);
    let sampler = Sampler::new(&prior, weights)?;
    let (drawn, vocab) = (slots * config.image_len(), config.image_vocab);
    // Each weight of the layers and the head is multiplied once per sampled token. The text is not
    // counted.
    let products = count::layers(config.n_layers, config.d_model) + config.d_model * vocab;
    let gflop = Some(2e-9 * (drawn * products) as f64);
    let run = move || {
        let captions = sampler.read(&[&[1, 2, 3]])?;
        let mut state = sampler.new_slots(slots);
        let mut tokens: Vec<u32> = vec![0; slots];
        for at in 0..config.image_len() {
            let next = |(slot, &previous)| Next { caption: 0, slot, at, previous };
            let next: Vec<Next> = tokens.iter().enumerate().map(next).collect();
            let logits = sampler.step(&captions, &mut state, &next)?;
            tokens =
                logits.par_chunks(vocab).enumerate().map(|(slot, row)| sample(cpu, row, at, slot)).collect();
        }
        Ok(())
    };
    Ok(Benchmark { run: Box::new(run), amount: drawn as f64, unit: "tokens/s", gflop, weights })
}

/// Gives the output head over picture tokens random weights. In a new prior they are zero, which
/// makes all tokens equally probable and sampling cheaper than in a trained prior.
struct DrawHead<'a> {
    config: &'a PriorConfig,
    init: Init,
}

impl ModuleMapper for DrawHead<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let is_head = param.dims()[..] == [self.config.d_model, self.config.image_vocab];
        if is_head { self.init.normal(Role::Head, param.dims(), 0.02) } else { param }
    }
}

/// How `draw` keeps the weights of the prior by default.
fn drawn_with(compute: &Compute) -> Weights {
    if compute.is_on_cpu() { Weights::Int8 } else { Weights::Full }
}

/// Samples the token of `slot` at position `at` from the unchanged distribution.
fn sample(cpu: Cpu, logits: &[f32], at: usize, slot: usize) -> u32 {
    let mut rng = item_rng(1, Purpose::Sample, at as u64, slot as u64);
    choose(cpu, logits, &Sampling::paper(), f64::from(uniform(&mut rng)))
}

/// Decodes 32 × 32 tokens to 256 × 256 pixels with a decoder of the released size.
pub fn released_decoder(compute: &Compute) -> Result<Benchmark> {
    let config = DvaeConfig::released();
    let Dvae { decoder, .. } = Dvae::new(&config, 1, compute);
    let tokens: Vec<i32> = (0..1024).map(|i| i * 7919 % 8192).collect();
    let tokens: Tensor<3, Int> = Tensor::from_data(TensorData::new(tokens, [1, 32, 32]), &compute.device);
    let run = move || {
        DvaeDecoder::forward_codes(&decoder, tokens.clone()).into_data();
        Ok(())
    };
    let [_, convolutions] = count::decoder(&config); // the first is an embedding lookup
    let (gflop, weights) = (Some(2e-9 * convolutions as f64), Weights::Full);
    Ok(Benchmark { run: Box::new(run), amount: 1.0, unit: "pictures/s", gflop, weights })
}

/// Draws nine pictures with the embedded model, including loading it.
pub fn draw_9(compute: &Compute) -> Result<Benchmark> {
    let (compute, weights) = (compute.clone(), drawn_with(compute));
    let run = move || {
        let tessera = Tessera::with_weights(&model_file(None)?, &compute, weights)?;
        let request =
            Request { prompt: "a red apple".into(), n: 9, seed: 1, previews: false, ..Request::default() };
        for event in tessera.draw(request)? {
            if let Event::Picture(picture) = event? {
                drop(picture);
            }
        }
        Ok(())
    };
    Ok(Benchmark { run: Box::new(run), amount: 9.0, unit: "pictures/s", gflop: None, weights })
}
