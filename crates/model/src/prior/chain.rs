//! ★ The gradient of the prior, computed one resblock at a time (paper §2.4, §D).
//!
//! The prior is a chain of residual blocks ("resblocks"), attention and MLP in turn. A resblock
//! computes `x + branch(x)`, where `x` is the residual stream. The forward pass runs the resblocks
//! from the first to the last, the backward pass from the last to the first. Each resblock has an
//! autodiff graph of its own, which turns the gradient of the resblock's output into the gradient
//! of its input.
//!
//! The graph is kept from the forward pass or, to save memory, rebuilt from the resblock's input
//! during the backward pass (activation checkpointing). Both settings give the same gradients.
//!
//! Both ends of the chain are open. A [`BlockSource`] provides each layer when it is needed, from
//! memory or from elsewhere. A [`GradientSink`] takes the gradients of each part of the prior as
//! soon as they are known.
//!
//! In mixed precision the gradient of the residual stream stays in 32 bits. Only the gradient
//! inside a resblock's branch has 16 bits. It is multiplied by the gradient scale of that resblock,
//! so that it fits the range of 16-bit numbers (paper §D.1).

use anyhow::{Context, Result};
use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use tessera_kernels::{SmallFloat, dot, widened};

use super::block::Output;
use super::{Block, Prior, PriorLoss, Stream};
use crate::nn::{GradientSink, Part, stored, take_gradients};

/// Which activations the forward pass keeps for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// The forward pass keeps all activations inside the resblocks.
    Keep,
    /// The forward pass keeps only the input of each resblock, and the backward pass recomputes the
    /// other activations. This needs less memory and a third more computation.
    Recompute,
}

/// Mixed precision: numbers of 16 bits inside the resblocks, with one gradient scale per resblock
/// (paper §D.1).
///
/// In the backward pass, the gradient that enters a resblock's branch is multiplied by the
/// resblock's scale and rounded to `storage`. The gradient that leaves the branch is rounded as
/// well and divided by the scale. Before and after the branch, non-finite values are replaced by 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MixedPrecision<'a> {
    /// The 16-bit format of activations, weights and their gradients; `None` keeps 32 bits.
    pub storage: Option<SmallFloat>,
    /// The gradient scale of each resblock.
    pub scales: &'a [f32],
}

/// Provides the layers of a prior to the chain: those of a prior in memory, or layers that are
/// fetched before they are used and dropped afterwards.
pub trait BlockSource: Sync {
    /// Returns layer `layer`, counted from 0.
    ///
    /// # Errors
    /// If it cannot be fetched.
    fn get(&self, layer: usize) -> Result<Block>;
    /// Announces that layer `layer` will be needed next.
    fn prefetch(&self, _layer: usize) {}
    /// Says that layer `layer` is not needed until it is announced again.
    fn release(&self, _layer: usize) {}
}

impl BlockSource for &[Block] {
    fn get(&self, layer: usize) -> Result<Block> {
        <[Block]>::get(self, layer).cloned().with_context(|| format!("there is no layer {layer}"))
    }
}

/// How the chain computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChainOptions<'a> {
    /// Which activations are kept.
    pub activations: Activations,
    /// Mixed precision; `None` computes in the dtypes of the kernels.
    pub mixed: Option<MixedPrecision<'a>>,
}

/// The loss of a batch, and what the backward pass found.
pub struct PriorBackward {
    /// The loss and its parts.
    pub loss: PriorLoss,
    /// The indices of resblocks with a non-finite value, in the order in which they were found.
    ///
    /// If the loss is non-finite, the list begins with the first resblock whose output is
    /// non-finite. In mixed precision it also contains every resblock with a non-finite gradient.
    /// An index may therefore occur twice.
    pub overflowed: Vec<usize>,
    /// The size of the gradient that enters each resblock in the backward pass: log₂ of the root
    /// mean square of the gradient of its output, before scaling. The list is empty without mixed
    /// precision.
    pub gradient_log2: Vec<f64>,
}

/// One resblock's values that the forward pass keeps for the backward pass.
struct SavedForward {
    /// The resblock's input, `[B, T, D]`, detached from all graphs.
    input: Tensor<3>,
    /// The resblock's graph, or `None` if the backward pass rebuilds it.
    graph: Option<Graph>,
}

/// The autodiff graph of one resblock.
struct Graph {
    /// The layer, whose parameters are leaves of the graph.
    block: Block,
    /// The start of the graph: a leaf with the values of the resblock's input.
    leaf: Tensor<3>,
    /// The resblock's output or, in mixed precision, the output of its branch alone.
    output: Tensor<3>,
}

impl Prior {
    /// Computes the loss of a batch of streams, and passes its gradient to `sink`, part by part:
    /// first that of the heads, then those of the resblocks from the last to the first, then that
    /// of the embeddings. `blocks` provides the layers; [`Prior::blocks`] are those of this prior.
    /// All choices of `options.activations` give exactly the same values.
    ///
    /// # Errors
    /// If a layer cannot be fetched, or `sink` fails.
    pub fn backward(
        &self,
        stream: &Stream,
        blocks: &dyn BlockSource,
        sink: &mut dyn GradientSink,
        options: ChainOptions,
    ) -> Result<PriorBackward> {
        let ChainOptions { activations, mixed } = options;
        let output = mixed.map_or(Output::Sum, |mixed| Output::Branch(mixed.storage));
        let ends = Prior { blocks: Vec::new(), ..self.clone() }.train();
        let embedded = ends.embed.forward(stream);
        let (x, saved) =
            self.run_forward(embedded.clone().without_autodiff(), blocks, activations, output)?;

        // Loss, and its gradient with respect to the output of the last resblock.
        let leaf = leaf(x);
        let loss = ends.loss_of_states(leaf.clone(), stream);
        let mut overflowed = first_nonfinite(&loss, &saved, &leaf);
        let mut gradient_log2 = Vec::new();
        let mut gradients = loss.loss.backward();
        let mut of_heads = take_gradients(&ends.norm, &mut gradients);
        for head in [&ends.text_head, &ends.image_head] {
            of_heads.extend(take_gradients(head, &mut gradients));
        }
        sink.take(Part::Heads, of_heads, None)?;
        let gradient_of =
            |leaf: Tensor<3>, gradients: &mut _| leaf.grad_remove(gradients).context("no gradient");
        let mut x_gradient = gradient_of(leaf, &mut gradients)?;

        // Backward pass. Each graph has to start from a gradient of its output that is already
        // known. PyTorch's `output.backward(gradient)` is `dot(output, gradient).backward()` here.
        for (i, SavedForward { input, graph }) in saved.into_iter().enumerate().rev() {
            let Graph { block, leaf, output } = match graph {
                Some(graph) => graph,
                None => self.graph(i, fetched(blocks, i, (i / 2).checked_sub(1))?, input, output),
            };
            if i.is_multiple_of(2) {
                blocks.release(i / 2);
            }
            let Some(MixedPrecision { storage, scales }) = mixed else {
                let mut gradients = dot(self.cpu, output, x_gradient).backward();
                sink.take(Part::Resblock(i), take_gradients(&block, &mut gradients), None)?;
                x_gradient = gradient_of(leaf, &mut gradients)?;
                continue;
            };
            gradient_log2.push(log2_rms(&x_gradient));
            // Non-finite values are replaced by 0 before and after the branch (§D.1). A non-finite
            // value before the branch also counts as an overflow of this resblock.
            let scaled = stored(self.cpu, x_gradient.clone() * scales[i], storage);
            let is_scaled_finite = is_finite(&scaled);
            let mut gradients = dot(self.cpu, output, without_nonfinite(scaled)).backward();
            let of_block = take_gradients(&block, &mut gradients);
            if !(sink.take(Part::Resblock(i), of_block, Some(scales[i]))? && is_scaled_finite) {
                overflowed.push(i); // the second entry of `i` if its output was non-finite, too
            }
            let branch_gradient = stored(self.cpu, gradient_of(leaf, &mut gradients)?, storage);
            x_gradient = x_gradient + without_nonfinite(widened(branch_gradient)) / scales[i];
        }
        let mut gradients = dot(self.cpu, embedded, x_gradient).backward();
        sink.take(Part::Embed, take_gradients(&ends.embed, &mut gradients), None)?;
        gradient_log2.reverse();
        Ok(PriorBackward { loss, overflowed, gradient_log2 })
    }

    /// Runs the forward pass from `x`, the embedded stream. The residual stream is detached: no
    /// gradient flows through it. Returns the output of the last resblock, and what each resblock
    /// keeps for the backward pass.
    fn run_forward(
        &self,
        mut x: Tensor<3>,
        blocks: &dyn BlockSource,
        activations: Activations,
        output: Output,
    ) -> Result<(Tensor<3>, Vec<SavedForward>)> {
        let (n, mut saved) = (self.n_resblocks(), Vec::new());
        for i in 0..n {
            let input = x.clone();
            let block = fetched(blocks, i, (i + 2 < n).then_some(i / 2 + 1))?;
            let (graph, out) = match activations {
                Activations::Keep => {
                    let graph = self.graph(i, block, input.clone(), output);
                    let out = graph.output.clone().without_autodiff();
                    (Some(graph), out)
                }
                Activations::Recompute => (None, self.run_resblock(i, &block, input.clone(), output)),
            };
            x = match output {
                Output::Sum => out,
                Output::Branch(_) => x + widened(out),
            };
            saved.push(SavedForward { input, graph });
            if !i.is_multiple_of(2) {
                blocks.release(i / 2);
            }
        }
        Ok((x, saved))
    }

    /// Returns the layers.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Returns the number of resblocks. Each layer has two, one attention and one MLP.
    pub fn n_resblocks(&self) -> usize {
        2 * self.config.n_layers
    }

    /// Runs resblock `i`, the attention of layer `block` if `i` is even, else its MLP: `[B, T, D]` →
    /// `[B, T, D]`.
    fn run_resblock(&self, i: usize, block: &Block, x: Tensor<3>, output: Output) -> Tensor<3> {
        let [_, t, _] = x.dims();
        match i % 2 {
            0 => block.attention(x, &self.plan(block.pattern, t), output).0,
            _ => block.mlp(x, output),
        }
    }

    /// Runs resblock `i` and records its graph.
    fn graph(&self, i: usize, block: Block, input: Tensor<3>, output: Output) -> Graph {
        let (block, leaf) = (block.train(), leaf(input));
        Graph { output: self.run_resblock(i, &block, leaf.clone(), output), block, leaf }
    }
}

/// Fetches the layer of resblock `i`, and announces layer `next`.
fn fetched(blocks: &dyn BlockSource, i: usize, next: Option<usize>) -> Result<Block> {
    let block = blocks.get(i / 2)?;
    next.iter().for_each(|&layer| blocks.prefetch(layer));
    Ok(block)
}

/// Returns log₂ of the root mean square of `x`.
fn log2_rms(x: &Tensor<3>) -> f64 {
    0.5 * x.clone().powf_scalar(2.0).mean().into_scalar::<f64>().log2()
}

/// If the loss is non-finite, returns the index of the first resblock whose output is non-finite,
/// otherwise nothing. `end` is the output of the last resblock.
fn first_nonfinite(loss: &PriorLoss, saved: &[SavedForward], end: &Tensor<3>) -> Vec<usize> {
    if loss.loss.clone().without_autodiff().into_scalar::<f32>().is_finite() {
        return Vec::new();
    }
    // The output of each resblock is the input of the next.
    let outputs = saved.iter().skip(1).map(|block| &block.input).chain([end]);
    outputs.enumerate().find(|(_, x)| !is_finite(x)).map(|(i, _)| i).into_iter().collect()
}

/// Returns whether all values of `x` are finite.
fn is_finite(x: &Tensor<3>) -> bool {
    x.clone().without_autodiff().is_finite().all().into_scalar::<bool>()
}

/// Replaces the non-finite values of `x` by 0, so that an overflow in one resblock does not spread
/// to all resblocks before it (§D.1).
fn without_nonfinite(x: Tensor<3>) -> Tensor<3> {
    let nonfinite = x.clone().is_finite().bool_not();
    x.mask_fill(nonfinite, 0.0)
}

/// Returns `x` as the leaf of a new graph.
fn leaf(x: Tensor<3>) -> Tensor<3> {
    x.autodiff().require_grad()
}
