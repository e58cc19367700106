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
//! In mixed precision the gradient of the residual stream stays in 32 bits. Only the gradient
//! inside a resblock's branch has 16 bits. It is multiplied by the gradient scale of that resblock,
//! so that it fits the range of 16-bit numbers (paper §D.1).

use anyhow::{Context, Result};
use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use tessera_kernels::{SmallFloat, dot};

use super::{Prior, PriorLoss, Stream};
use crate::nn::{Collected, stored};

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

/// The loss of a batch and its gradient.
pub struct PriorGradients {
    /// The loss and its parts.
    pub loss: PriorLoss,
    /// The gradient of each parameter, in the order of [`crate::nn::export`].
    pub gradients: Vec<Vec<f32>>,
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
    /// The start of the graph: a leaf with the values of the resblock's input.
    leaf: Tensor<3>,
    /// The resblock's output or, in mixed precision, the output of its branch alone.
    output: Tensor<3>,
}

impl Prior {
    /// Computes the loss of a batch of streams and its gradient. Both choices of `activations` give
    /// exactly the same values.
    ///
    /// # Errors
    /// If a gradient is not f32.
    pub fn gradients(
        &self,
        stream: &Stream,
        activations: Activations,
        mixed: Option<MixedPrecision<'_>>,
    ) -> Result<PriorGradients> {
        // `self` computes without building graphs. `tracked` has the same weights, but as leaves of
        // graphs.
        let tracked = self.clone().train();
        let mut collected = Collected::default();

        // Forward pass. `x` is the residual stream. It is detached: no gradient flows through it.
        let embedded = tracked.embed.forward(stream);
        let mut x = embedded.clone().without_autodiff();
        let mut saved = Vec::new();
        for i in 0..self.n_resblocks() {
            let input = x.clone();
            let graph = (activations == Activations::Keep).then(|| tracked.graph(i, input.clone(), mixed));
            let output = match &graph {
                Some(graph) => graph.output.clone().without_autodiff(),
                None => self.run_resblock(i, x.clone(), mixed),
            };
            x = if mixed.is_some() { x + output } else { output };
            saved.push(SavedForward { input, graph });
        }

        // Loss, and its gradient with respect to the output of the last resblock.
        let leaf = leaf(x);
        let loss = tracked.loss_of_states(leaf.clone(), stream);
        let mut overflowed = first_nonfinite(&loss, &saved, &leaf);
        let mut gradient_log2 = Vec::new();
        let mut gradients = loss.loss.backward();
        collected.take(&tracked.norm, &mut gradients)?;
        collected.take(&tracked.text_head, &mut gradients)?;
        collected.take(&tracked.image_head, &mut gradients)?;
        let gradient_of =
            |leaf: Tensor<3>, gradients: &mut _| leaf.grad_remove(gradients).context("no gradient");
        let mut x_gradient = gradient_of(leaf, &mut gradients)?;

        // Backward pass. Each graph has to start from a gradient of its output that is already
        // known. PyTorch's `output.backward(gradient)` is `dot(output, gradient).backward()` here.
        for (i, SavedForward { input, graph }) in saved.into_iter().enumerate().rev() {
            let Graph { leaf, output } = graph.unwrap_or_else(|| tracked.graph(i, input, mixed));
            let block = &tracked.blocks[i / 2];
            let Some(MixedPrecision { storage, scales }) = mixed else {
                let mut gradients = dot(self.cpu, output, x_gradient).backward();
                collected.take(block, &mut gradients)?;
                x_gradient = gradient_of(leaf, &mut gradients)?;
                continue;
            };
            gradient_log2.push(log2_rms(&x_gradient));
            // Non-finite values are replaced by 0 before and after the branch (§D.1). A non-finite
            // value before the branch also counts as an overflow of this resblock.
            let scaled = stored(self.cpu, x_gradient.clone() * scales[i], storage);
            let is_scaled_finite = is_finite(&scaled);
            let mut gradients = dot(self.cpu, output, without_nonfinite(scaled)).backward();
            if !(collected.take_scaled(block, &mut gradients, scales[i])? && is_scaled_finite) {
                // `first_nonfinite` may have added `i`, too. An index may therefore occur twice.
                overflowed.push(i);
            }
            let branch_gradient = stored(self.cpu, gradient_of(leaf, &mut gradients)?, storage);
            x_gradient = x_gradient + without_nonfinite(branch_gradient) / scales[i];
        }
        collected.take(&tracked.embed, &mut dot(self.cpu, embedded, x_gradient).backward())?;
        gradient_log2.reverse();
        Ok(PriorGradients { loss, gradients: collected.in_order(self), overflowed, gradient_log2 })
    }

    /// Returns the number of resblocks. Each layer has two, one attention and one MLP.
    pub fn n_resblocks(&self) -> usize {
        2 * self.blocks.len()
    }

    /// Runs resblock `i` (attention if `i` is even, else MLP): `[B, T, D]` → `[B, T, D]`. In mixed
    /// precision it returns only the output of the branch, and the caller adds it to `x`.
    fn run_resblock(&self, i: usize, x: Tensor<3>, mixed: Option<MixedPrecision<'_>>) -> Tensor<3> {
        let block = &self.blocks[i / 2];
        let [_, t, _] = x.dims();
        let plan = || self.plan(block.pattern, t);
        match (i % 2, mixed) {
            (0, None) => block.attention(x, &plan()),
            (_, None) => block.mlp(x),
            (0, Some(mixed)) => block.attention_branch(x, &plan(), mixed.storage),
            (_, Some(mixed)) => block.mlp_branch(x, mixed.storage),
        }
    }

    /// Runs resblock `i` and records its graph.
    fn graph(&self, i: usize, input: Tensor<3>, mixed: Option<MixedPrecision<'_>>) -> Graph {
        let leaf = leaf(input);
        Graph { output: self.run_resblock(i, leaf.clone(), mixed), leaf }
    }
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
