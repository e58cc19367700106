//! How much the caption matters: the image loss of held-out pictures with their own caption and
//! with other captions.
//!
//! The most informative figure is the gap to captions that are shuffled among pictures of the *same
//! style*. Shuffling over all pictures mostly measures whether the model knows the names of the
//! styles.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::Serialize;
use tessera_model::Sampler;
use tessera_model::prior::{Prior, Stream, caption_slots, image_nats};
use tessera_model::sample::Next;

use crate::recon::mean_se;

/// The batch size of the forward passes.
const BATCH: usize = 32;

/// A picture's tokens, the tokens of its caption, and its style.
#[derive(Debug, Clone)]
pub struct LabelledCodes {
    /// The image tokens in raster order.
    pub codes: Vec<u32>,
    /// The BPE tokens of the caption.
    pub caption: Vec<u32>,
    /// The name of the style. The same-style shuffle exchanges captions within a style.
    pub style: String,
}

/// A mean and its standard error, in nats per image token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figure {
    /// The mean.
    pub mean: f64,
    /// The standard error over pictures.
    pub se: f64,
}

/// A figure for each condition.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Conditions {
    /// The value with the caption of another picture of the same style.
    pub same_style: Figure,
    /// The value with the caption of any other picture.
    pub shuffled: Figure,
    /// The value without a caption: all text tokens are padding.
    pub none: Figure,
}

/// The mean image loss per token with the true caption, and how much other captions increase it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Conditioning {
    /// The number of pictures.
    pub pictures: usize,
    /// The image loss in nats per token with the true caption.
    pub true_caption: Figure,
    /// The image loss under the other conditions.
    pub loss: Conditions,
    /// The paired difference to the loss with the true caption: how much the caption matters.
    pub gap: Conditions,
    /// The effect of the sampler's precision, if it was measured.
    pub drawn: Option<DrawnLoss>,
}

/// The image loss with the true caption, computed by the sampler token by token, as when drawing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DrawnLoss {
    /// The loss.
    pub loss: Figure,
    /// The paired difference to the loss of the forward pass.
    pub gap: Figure,
}

/// Computes the loss of `items` under each condition and, if a `sampler` of the prior is given,
/// also with the sampler. The shuffles are rotations, so the result depends only on the items.
///
/// # Errors
/// If there are fewer than two items.
pub fn conditioning(
    prior: &Prior,
    sampler: Option<&Sampler>,
    items: &[LabelledCodes],
) -> Result<Conditioning> {
    ensure!(
        items.len() >= 2,
        "exchanging captions needs at least 2 held-out pictures, found {}; raise --holdout of `tessera data`",
        items.len()
    );
    let identity: Vec<usize> = (0..items.len()).collect();
    let caption = |index: usize| items[index].caption.as_slice();
    let with_captions = |order: Vec<usize>| losses(prior, items, |i| caption(order[i]));
    let truth = with_captions(identity.clone())?;
    let same_style = with_captions(rotate_within_styles(items))?;
    let shuffled = with_captions(rotate(&identity))?;
    let none = losses(prior, items, |_| &[])?;
    let drawn = sampler.map(|sampler| losses_as_drawn(sampler, items)).transpose()?;
    let figure = |values: &[f64]| {
        let (mean, se) = mean_se(values);
        Figure { mean, se }
    };
    let gap = |other: &[f64]| figure(&other.iter().zip(&truth).map(|(o, t)| o - t).collect::<Vec<_>>());
    Ok(Conditioning {
        pictures: items.len(),
        true_caption: figure(&truth),
        loss: Conditions {
            same_style: figure(&same_style),
            shuffled: figure(&shuffled),
            none: figure(&none),
        },
        gap: Conditions { same_style: gap(&same_style), shuffled: gap(&shuffled), none: gap(&none) },
        drawn: drawn.map(|drawn| DrawnLoss { loss: figure(&drawn), gap: gap(&drawn) }),
    })
}

/// The mean image loss of each picture with its own caption, computed by the sampler.
fn losses_as_drawn(sampler: &Sampler, items: &[LabelledCodes]) -> Result<Vec<f64>> {
    let config = sampler.config();
    let mut losses = Vec::new();
    for batch in items.chunks(BATCH) {
        let captions: Vec<&[u32]> = batch.iter().map(|item| item.caption.as_slice()).collect();
        let prefixes = sampler.read(&captions)?;
        let mut slots = sampler.new_slots(batch.len());
        let mut nats = vec![0.0; batch.len()];
        let mut previous = vec![0; batch.len()];
        for at in 0..config.image_len() {
            let logits = sampler.step(&prefixes, &mut slots, &Next::all(at, &previous))?;
            previous = batch.iter().map(|item| item.codes[at]).collect();
            for ((nats, row), &code) in nats.iter_mut().zip(logits.chunks(config.image_vocab)).zip(&previous)
            {
                *nats += cross_entropy(row, code as usize) / config.image_len() as f64;
            }
        }
        losses.extend(nats);
    }
    Ok(losses)
}

/// The cross-entropy in nats: −ln of the softmax of `logits` at `index`.
fn cross_entropy(logits: &[f32], index: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    total.ln() - f64::from(logits[index] - max)
}

/// The mean image loss of each picture if picture `i` has the caption `caption(i)`.
fn losses<'a>(
    prior: &Prior,
    items: &'a [LabelledCodes],
    caption: impl Fn(usize) -> &'a [u32],
) -> Result<Vec<f64>> {
    let config = prior.config();
    let mut losses = Vec::new();
    for (batch, start) in items.chunks(BATCH).zip((0..).step_by(BATCH)) {
        let text = (0..batch.len()).flat_map(|i| caption_slots(caption(start + i), config).0).collect();
        let image = batch.iter().flat_map(|item| item.codes.iter().copied()).collect();
        let stream = Stream::new(batch.len(), text, image, config)?;
        let (_, logits) = prior.forward(&stream);
        let nats = image_nats(logits, &stream).mean_dim(1); // [B, 1]
        losses.extend(nats.into_data().iter::<f64>());
    }
    Ok(losses)
}

/// Rotates the indices by about half the list, so that neighbours, which often show the same
/// concept, do not exchange captions.
fn rotate(indices: &[usize]) -> Vec<usize> {
    let by = indices.len().div_ceil(2);
    indices.iter().cycle().skip(by).take(indices.len()).copied().collect()
}

/// For each item, returns the index of another item of its style, or its own index if there is no
/// other.
fn rotate_within_styles(items: &[LabelledCodes]) -> Vec<usize> {
    let mut styles: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, item) in items.iter().enumerate() {
        styles.entry(&item.style).or_default().push(index);
    }
    let mut order = vec![0; items.len()];
    for members in styles.values() {
        for (&from, to) in members.iter().zip(rotate(members)) {
            order[from] = to;
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_style_shuffle_moves_every_item_within_its_style() {
        let styles = ["a", "b", "a", "b", "a", "b", "b"];
        let item = |style: &&str| LabelledCodes { codes: vec![], caption: vec![], style: style.to_string() };
        let items: Vec<_> = styles.iter().map(item).collect();
        let order = rotate_within_styles(&items);
        for (from, &to) in order.iter().enumerate() {
            assert_ne!(from, to);
            assert_eq!(styles[from], styles[to]);
        }
    }
}
