//! Benchmarks of training: updates on a constant batch, done by the trainer of the training loop.

use std::sync::Arc;

use anyhow::Result;
use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};
use tessera_kernels::decode::Weights;
use tessera_kernels::{AttentionPlan, Cpu, cross_entropy};
use tessera_model::dvae::{Dvae, DvaeConfig, GumbelNoise, elbo, gumbel_softmax_drawn, map_pixels};
use tessera_model::nn::{Compute, GradientSink, Init, LayerNorm, Role};
use tessera_model::prior::{Activations, Block, ChainOptions, Logits, Prior, PriorConfig, Stream};
use tessera_train::{Config, FitConfig, Loss, Slots, Sums, Task, Trainer, Training, Update, differentiate};

use super::{Benchmark, Setting, count};

/// A training task that always has the same batch.
struct Fixed<M, F> {
    gradient: F,
    model: std::marker::PhantomData<fn(M)>,
}

impl<M: Module + Sync, F: Fn(&M, &mut dyn GradientSink) -> Result<Sums> + Sync> Task for Fixed<M, F> {
    type Model = M;
    type Batch = ();

    fn accumulate(&self, model: &M, _: Vec<()>, _: Update, sink: &mut dyn GradientSink) -> Result<Sums> {
        (self.gradient)(model, sink)
    }
}

/// Makes a benchmark of one update of `model`, which processes `amount` items of `unit`.
fn step<M: Module + Sync + 'static>(
    on: &Setting,
    model: M,
    gradient: impl Fn(&M, &mut dyn GradientSink) -> Result<Sums> + Sync + 'static,
    amount: usize,
    unit: &'static str,
    gflop: f64,
) -> Result<Benchmark> {
    // All are leaked: the process runs only this benchmark.
    let task = Box::leak(Box::new(Fixed { gradient, model: std::marker::PhantomData }));
    let config: &'static FitConfig = Box::leak(Box::new(settings()?));
    let (batch, scales): (&'static (dyn Fn(u64, Slots) -> Result<()> + Sync), _) = (&|_, _| Ok(()), None);
    let slots = Slots::of_rank(1, 1, 0, 1);
    let (world, powersgd, cpu) = (on.world, on.powersgd, on.compute.cpu);
    let training =
        Training { task, batch, world, slots, config, cpu, scales, powersgd, loss_is_final_from: 0 };
    let mut trainer = Trainer::new(Box::leak(Box::new(training)), model, None)?;
    let run = move || trainer.step().map(drop);
    let (amount, gflop, weights) = (amount as f64, Some(gflop), Weights::Full);
    Ok(Benchmark { run: Box::new(run), amount, unit, gflop, weights })
}

/// A loss without other metrics.
fn only_loss(total: Tensor<1>) -> Loss {
    Loss { total, figures: Vec::new() }
}

/// The config of the update: AdamW with weight decay, without a moving average.
fn settings() -> Result<FitConfig> {
    let mut settings = Config::resolve("emoji", &[])?.train_prior;
    (settings.micro_batches, settings.ema_every) = (1, u64::MAX);
    Ok(settings)
}

/// Benchmark C: a GPT of 13,916,160 weights on 8 × 320 tokens.
pub fn gpt_step(on: &Setting) -> Result<Benchmark> {
    const BATCH: usize = 8;
    let model = Gpt::new(&on.compute);
    anyhow::ensure!(model.num_params() == 13_916_160, "the GPT has {} weights", model.num_params());
    let plan = Arc::new(AttentionPlan::new((0..Gpt::LEN).collect(), |query, key| key <= query));
    let tokens: Vec<u32> = (0..BATCH * Gpt::LEN).map(|i| (i * 7919 % Gpt::VOCAB) as u32).collect();
    // Each weight is multiplied once forward and twice backward. Attention is not counted.
    let products = count::layers(Gpt::LAYERS, Gpt::D) + Gpt::D * Gpt::VOCAB;
    let gflop = 6e-9 * (BATCH * Gpt::LEN * products) as f64;
    let gradient = move |model: &Gpt, sink: &mut dyn GradientSink| {
        differentiate(model, None, sink, |model| only_loss(model.loss(&tokens, &plan)))
    };
    step(on, model, gradient, BATCH * Gpt::LEN, "tokens/s", gflop)
}

/// A causal language model with learned position embeddings and an untied output head without bias.
#[derive(Module, Debug)]
struct Gpt {
    tokens: Param<Tensor<2>>,
    positions: Param<Tensor<2>>,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Param<Tensor<2>>,
    #[module(skip)]
    cpu: Cpu,
}

impl Gpt {
    const LEN: usize = 320;
    const VOCAB: usize = 4096;
    const D: usize = 384;
    const LAYERS: usize = 6;

    fn new(compute: &Compute) -> Gpt {
        let mut config = sizes();
        (config.d_model, config.n_layers, config.n_heads) = (Self::D, Self::LAYERS, 6);
        let mut init = Init::new(1, compute);
        Gpt {
            tokens: init.normal(Role::Embedding, [Self::VOCAB, Self::D], 0.02),
            positions: init.normal(Role::Embedding, [Self::LEN, Self::D], 0.02),
            blocks: (1..=config.n_layers).map(|layer| Block::new(&config, layer, &mut init)).collect(),
            norm: LayerNorm::new(&mut init, Self::D),
            head: init.normal(Role::Head, [Self::D, Self::VOCAB], 0.02),
            cpu: compute.cpu,
        }
    }

    /// Returns the loss of predicting each token from itself. It costs the same as predicting the
    /// next token.
    fn loss(&self, tokens: &[u32], plan: &Arc<AttentionPlan>) -> Tensor<1> {
        let (n, device) = (tokens.len(), self.tokens.val().device());
        let ids: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
        let ids: Tensor<1, Int> = Tensor::from_data(TensorData::new(ids, [n]), &device);
        let x = self.tokens.val().select(0, ids).reshape([n / Self::LEN, Self::LEN, Self::D]);
        let x = x + self.positions.val().unsqueeze();
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x, plan));
        let x = self.norm.forward(x).reshape([n, Self::D]);
        let bias = Tensor::zeros([Self::VOCAB], &device.without_autodiff());
        cross_entropy(self.cpu, x, self.head.val(), bias, tokens)
    }
}

/// Trains on one sequence of the paper's length: 256 text and 1024 picture tokens.
pub fn paper_step(on: &Setting) -> Result<Benchmark> {
    stream_step(on, sizes(), 1, Activations::Keep)
}

/// Does the same with a deep and narrow prior, to measure the memory for activations inside
/// resblocks if they are kept or recomputed.
pub fn depth(on: &Setting, n_layers: usize, activations: Activations) -> Result<Benchmark> {
    stream_step(on, PriorConfig { n_layers, d_model: 128, n_heads: 2, ..sizes() }, 1, activations)
}

/// Trains the emoji prior on one batch, with logits in the layers' dtype or in 32 bits.
pub fn emoji_step(on: &Setting, logits: Logits) -> Result<Benchmark> {
    let Config { prior, train_prior, .. } = Config::resolve("emoji", &[])?;
    stream_step(on, PriorConfig { logits, ..prior }, train_prior.batch, Activations::Keep)
}

/// Trains four layers of the paper's width, with its embeddings and heads, on four sequences of its
/// length.
pub fn paper_layers(on: &Setting) -> Result<Benchmark> {
    stream_step(on, PriorConfig { n_layers: 4, ..PriorConfig::paper() }, 4, Activations::Recompute)
}

fn stream_step(
    on: &Setting,
    config: PriorConfig,
    batch: usize,
    activations: Activations,
) -> Result<Benchmark> {
    let ids = |n: usize, vocab: usize| (0..batch * n).map(|i| (i * 7919 % vocab) as u32).collect();
    let text = ids(config.text_len, config.text_vocab);
    let image = ids(config.image_len(), config.image_vocab);
    let stream = Stream::new(batch, text, image, &config)?;
    let amount = batch * config.stream_len();
    // As in `gpt_step`. Each position goes through one of the two output heads.
    let heads = batch
        * (config.text_len * (config.text_vocab + config.text_len) + config.image_len() * config.image_vocab);
    let products = amount * count::layers(config.n_layers, config.d_model) + heads * config.d_model;
    let gflop = 6e-9 * products as f64;
    let options = ChainOptions { activations, mixed: None };
    let gradient = move |model: &Prior, sink: &mut dyn GradientSink| {
        let found = model.backward(&stream, &model.blocks(), sink, options)?;
        let (loss, metrics) = only_loss(found.loss.loss).values();
        Ok(Sums::of_part(loss, metrics))
    };
    step(on, Prior::new(&config, 1, &on.compute), gradient, amount, "tokens/s", gflop)
}

/// Trains a dVAE of the released architecture, a quarter as wide, on 4 pictures of 128 × 128.
pub fn dvae_step(on: &Setting) -> Result<Benchmark> {
    elbo_step(on, DvaeConfig { image_size: 128, n_hid: 64, ..DvaeConfig::released() }, 4)
}

/// Trains a dVAE of the released size on 8 pictures of 256 × 256, the batch of one of the paper's 64
/// GPUs (§A.2).
pub fn released_dvae(on: &Setting) -> Result<Benchmark> {
    elbo_step(on, DvaeConfig::released(), 8)
}

fn elbo_step(on: &Setting, config: DvaeConfig, batch: usize) -> Result<Benchmark> {
    let (side, min_log_b) = (config.image_size, config.min_log_b);
    let (device, cpu) = (&on.compute.device, on.compute.cpu);
    let values = (0..batch * 3 * side * side).map(|i| (i * 7919 % 256) as f32 / 255.0);
    let pictures = TensorData::new(values.collect::<Vec<f32>>(), [batch, 3, side, side]);
    let x: Tensor<4> = map_pixels(Tensor::from_data(pictures, device));
    let model = Dvae::new(&config, 1, &on.compute);
    let loss = move |model: &Dvae| {
        let x = x.clone().autodiff();
        let logits = model.encoder.forward(x.clone());
        let codes =
            gumbel_softmax_drawn(cpu, logits.clone(), GumbelNoise { seed: 1, step: 0, first_row: 0 }, 1.0);
        only_loss(elbo(cpu, x, model.decoder.forward(codes), logits, 6.6, min_log_b).loss)
    };
    // Convolutions are computed once forward and twice backward. The pictures need no gradient.
    let ([first, encoder], decoder) = (count::encoder(&config), count::decoder(&config));
    let products = 4 * first + 6 * (encoder + decoder[0] + decoder[1]);
    let gflop = 1e-9 * (batch * products) as f64;
    let gradient = move |model: &Dvae, sink: &mut dyn GradientSink| differentiate(model, None, sink, &loss);
    step(on, model, gradient, batch, "pictures/s", gflop)
}

/// The paper's sequence and vocabularies with a small transformer.
fn sizes() -> PriorConfig {
    PriorConfig { d_model: 512, n_layers: 8, n_heads: 8, logits: Logits::Auto, ..PriorConfig::paper() }
}
