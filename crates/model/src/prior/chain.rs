//! ★ The prior as a chain of resblocks (paper §5): run forward one after another, then backward one after another.
//!
//! Each resblock is differentiated by itself, from the gradient of what leaves it to that of what enters it. Its graph is
//! kept from the forward pass or, to save memory, made again from its input when its turn comes (activation
//! checkpointing): that is the only difference between the two settings, and the gradients are the same.

use anyhow::{Context, Result};
use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use tessera_kernels::dot;

use super::{Prior, PriorLoss, Stream};
use crate::weights::Collected;

/// What the forward pass keeps for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// All that happens inside resblocks.
    Keep,
    /// What enters each resblock; the rest is computed again: less memory, a third more work.
    Recompute,
}

/// The loss of a batch and its gradient.
pub struct PriorGradients {
    /// The loss and its parts.
    pub loss: PriorLoss,
    /// The gradient of each parameter, in the order of [`crate::weights::export`].
    pub gradients: Vec<Vec<f32>>,
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
    pub fn gradients(&self, stream: &Stream, activations: Activations) -> Result<PriorGradients> {
        let tracked = self.clone().train();
        let mut collected = Collected::default();
        let embedded = tracked.embed.forward(stream);
        let mut x = embedded.clone().without_autodiff();
        let mut links = Vec::new();
        for i in 0..self.n_resblocks() {
            let input = x.clone();
            let kept = (activations == Activations::Keep).then(|| tracked.graph(i, input.clone()));
            x = match &kept {
                Some(graph) => graph.output.clone().without_autodiff(),
                None => self.resblock(i, x),
            };
            links.push(Link { input, kept });
        }

        let leaf = leaf(x);
        let loss = tracked.loss_of_states(leaf.clone(), stream);
        let mut gradients = loss.loss.backward();
        collected.take(&tracked.norm, &mut gradients)?;
        collected.take(&tracked.text_head, &mut gradients)?;
        collected.take(&tracked.image_head, &mut gradients)?;
        let enters = |leaf: Tensor<3>, gradients: &mut _| leaf.grad_remove(gradients).context("no gradient");
        let mut toward = enters(leaf, &mut gradients)?;

        for (i, link) in links.into_iter().enumerate().rev() {
            let Graph { leaf, output } = link.kept.unwrap_or_else(|| tracked.graph(i, link.input));
            let mut gradients = dot(output, toward).backward();
            collected.take(&tracked.blocks[i / 2], &mut gradients)?;
            toward = enters(leaf, &mut gradients)?;
        }
        collected.take(&tracked.embed, &mut dot(embedded, toward).backward())?;
        Ok(PriorGradients { loss, gradients: collected.in_order(self) })
    }

    fn n_resblocks(&self) -> usize {
        2 * self.blocks.len()
    }

    /// Resblock `i`: attention and MLP in turn. `[B, T, D]` → `[B, T, D]`
    fn resblock(&self, i: usize, x: Tensor<3>) -> Tensor<3> {
        let block = &self.blocks[i / 2];
        let [_, t, _] = x.dims();
        match i % 2 {
            0 => block.attention(x, &self.plan(block.pattern, t)),
            _ => block.mlp(x),
        }
    }

    fn graph(&self, i: usize, input: Tensor<3>) -> Graph {
        let leaf = leaf(input);
        Graph { output: self.resblock(i, leaf.clone()), leaf }
    }
}

/// The start of a graph.
fn leaf(x: Tensor<3>) -> Tensor<3> {
    x.autodiff().require_grad()
}
