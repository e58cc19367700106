//! ★ The prior as a chain of resblocks (paper §5): run forward one after another, then backward one after another.
//!
//! Each resblock is differentiated by itself, from the gradient of what leaves it to that of what enters it. Its graph is
//! kept from the forward pass or, to save memory, made again from its input when its turn comes (activation
//! checkpointing): that is the only difference between the two settings, and the gradients are the same.
//!
//! In mixed precision the residual stream carries the gradient in 32 bits, and what goes through a resblock's branch is scaled
//! and stored at its door (paper §D.1).

use anyhow::{Context, Result};
use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use tessera_kernels::{SmallFloat, dot};

use super::{Prior, PriorLoss, Stream};
use crate::nn::{Collected, stored};

/// What the forward pass keeps for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// All that happens inside resblocks.
    Keep,
    /// What enters each resblock; the rest is computed again: less memory, a third more work.
    Recompute,
}

/// Numbers of 16 bits inside resblocks. A gradient is multiplied by the resblock's scale and stored before it goes through the
/// branch; what leaves it is stored, freed of what is not finite, and divided again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MixedPrecision<'a> {
    /// What activations, weights and their gradients are stored as; 32 bits if nothing is named.
    pub storage: Option<SmallFloat>,
    /// One for each resblock.
    pub scales: &'a [f32],
}

/// The loss of a batch and its gradient.
pub struct PriorGradients {
    /// The loss and its parts.
    pub loss: PriorLoss,
    /// The gradient of each parameter, in the order of [`crate::nn::export`].
    pub gradients: Vec<Vec<f32>>,
    /// Resblocks, counted from 0, where something was not finite, in the order in which it was met. If the loss is not: the
    /// first whose output is not. In mixed precision: all with a gradient that is not.
    pub overflowed: Vec<usize>,
    /// In mixed precision: the size of the gradient toward each resblock, before it is scaled, as the binary logarithm
    /// of its root mean square.
    pub entering: Vec<f64>,
}

/// What the forward pass leaves of a resblock.
struct Link {
    /// What entered it, `[B, T, D]`, not on a graph.
    input: Tensor<3>,
    /// The graph from a leaf in its place to what left it.
    kept: Option<Graph>,
}

struct Graph {
    leaf: Tensor<3>,
    output: Tensor<3>,
}

impl Prior {
    /// The loss of a batch of streams and its gradient, which is the same to the bit whatever is kept.
    ///
    /// # Errors
    /// If a gradient is not f32.
    pub fn gradients(
        &self,
        stream: &Stream,
        activations: Activations,
        mixed: Option<MixedPrecision<'_>>,
    ) -> Result<PriorGradients> {
        let tracked = self.clone().train();
        let mut collected = Collected::default();
        let embedded = tracked.embed.forward(stream);
        let mut x = embedded.clone().without_autodiff();
        let mut links = Vec::new();
        for i in 0..self.n_resblocks() {
            let input = x.clone();
            let kept = (activations == Activations::Keep).then(|| tracked.graph(i, input.clone(), mixed));
            let output = match &kept {
                Some(graph) => graph.output.clone().without_autodiff(),
                None => self.through(i, x.clone(), mixed),
            };
            x = if mixed.is_some() { x + output } else { output };
            links.push(Link { input, kept });
        }

        let leaf = leaf(x);
        let loss = tracked.loss_of_states(leaf.clone(), stream);
        let mut overflowed = broken(&loss, &links, &leaf);
        let mut entering = Vec::new();
        let mut gradients = loss.loss.backward();
        collected.take(&tracked.norm, &mut gradients)?;
        collected.take(&tracked.text_head, &mut gradients)?;
        collected.take(&tracked.image_head, &mut gradients)?;
        let enters = |leaf: Tensor<3>, gradients: &mut _| leaf.grad_remove(gradients).context("no gradient");
        let mut toward = enters(leaf, &mut gradients)?;

        for (i, link) in links.into_iter().enumerate().rev() {
            let Graph { leaf, output } = link.kept.unwrap_or_else(|| tracked.graph(i, link.input, mixed));
            let block = &tracked.blocks[i / 2];
            let Some(MixedPrecision { storage, scales }) = mixed else {
                let mut gradients = dot(self.cpu, output, toward).backward();
                collected.take(block, &mut gradients)?;
                toward = enters(leaf, &mut gradients)?;
                continue;
            };
            entering.push(log2_rms(&toward));
            // A filter before and one behind the branch (§D.1); what the first takes away must not go unseen.
            let scaled = stored(self.cpu, toward.clone() * scales[i], storage);
            let whole = is_finite(&scaled);
            let mut gradients = dot(self.cpu, output, finite(scaled)).backward();
            if !(collected.take_scaled(block, &mut gradients, scales[i])? && whole) {
                overflowed.push(i); // again, if it was the first on the way forward
            }
            let leaving = stored(self.cpu, enters(leaf, &mut gradients)?, storage);
            toward = toward + finite(leaving) / scales[i];
        }
        collected.take(&tracked.embed, &mut dot(self.cpu, embedded, toward).backward())?;
        entering.reverse();
        Ok(PriorGradients { loss, gradients: collected.in_order(self), overflowed, entering })
    }

    /// Attention and MLP resblocks, together.
    pub fn n_resblocks(&self) -> usize {
        2 * self.blocks.len()
    }

    /// Resblock `i`, attention and MLP in turn, or in mixed precision what it adds. `[B, T, D]` → `[B, T, D]`
    fn through(&self, i: usize, x: Tensor<3>, mixed: Option<MixedPrecision<'_>>) -> Tensor<3> {
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

    fn graph(&self, i: usize, input: Tensor<3>, mixed: Option<MixedPrecision<'_>>) -> Graph {
        let leaf = leaf(input);
        Graph { output: self.through(i, leaf.clone(), mixed), leaf }
    }
}

fn log2_rms(x: &Tensor<3>) -> f64 {
    0.5 * x.clone().powf_scalar(2.0).mean().into_scalar::<f64>().log2()
}

/// If the loss is not finite: the first resblock whose output is not; `end` is that of the last.
fn broken(loss: &PriorLoss, links: &[Link], end: &Tensor<3>) -> Vec<usize> {
    if loss.loss.clone().without_autodiff().into_scalar::<f32>().is_finite() {
        return Vec::new();
    }
    let outputs = links.iter().skip(1).map(|link| &link.input).chain([end]);
    outputs.enumerate().find(|(_, x)| !is_finite(x)).map(|(i, _)| i).into_iter().collect()
}

fn is_finite(x: &Tensor<3>) -> bool {
    x.clone().without_autodiff().is_finite().all().into_scalar::<bool>()
}

/// `x` with 0 for what is not finite, so that one resblock's overflow is not also that of all before it (§D.1).
fn finite(x: Tensor<3>) -> Tensor<3> {
    let bad = x.clone().is_finite().bool_not();
    x.mask_fill(bad, 0.0)
}

/// The start of a graph.
fn leaf(x: Tensor<3>) -> Tensor<3> {
    x.autodiff().require_grad()
}
