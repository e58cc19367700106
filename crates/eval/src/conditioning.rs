//! How much the words matter: the image loss of held-out pictures under their own caption and under others.
//!
//! The gap to a caption shuffled among pictures of the *same style* is the honest figure; a shuffle over everything
//! mostly measures whether the model knows the name of the style.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::Serialize;
use tessera_model::Sampler;
use tessera_model::prior::{Prior, Stream, caption_slots, image_nats};
use tessera_model::sample::Next;

use crate::recon::mean_se;

/// Streams scored at once.
const BATCH: usize = 32;

/// One picture: its tokens, its caption's tokens and its style.
#[derive(Debug, Clone)]
pub struct LabelledCodes {
    /// Picture tokens in raster order.
    pub codes: Vec<u32>,
    /// BPE tokens of its caption.
    pub caption: Vec<u32>,
    /// Name of its style; pictures share captions within it in the same-style shuffle.
    pub style: String,
}

/// A mean and its standard error, in nats per image token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figure {
    /// The mean.
    pub mean: f64,
    /// Its standard error over pictures.
    pub se: f64,
}

/// A figure for each condition.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Conditions {
    /// A caption of another picture in the same style.
    pub same_style: Figure,
    /// A caption of any other picture.
    pub shuffled: Figure,
    /// No caption: all pads.
    pub none: Figure,
}

/// Mean image loss per token, and what each wrong condition adds to it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Conditioning {
    /// Number of pictures.
    pub pictures: usize,
    /// Image loss in nats per token under the true caption.
    pub true_caption: Figure,
    /// Image loss under the other conditions.
    pub loss: Conditions,
    /// Paired difference to the true caption's loss: how much the words matter.
    pub gap: Conditions,
    /// What the rounded numbers of drawing change, if that was measured.
    pub drawn: Option<DrawnLoss>,
}

/// Image loss under the true caption by the sampler, token by token, as pictures are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DrawnLoss {
    /// The loss.
    pub loss: Figure,
    /// Paired difference to the loss of the forward pass.
    pub gap: Figure,
}

/// Scores `items` under each condition and, with a `sampler` of the prior, as pictures are drawn. Shuffles are rotations,
/// so the result is a function of the items alone.
///
/// # Errors
/// If there are fewer than two items.
pub fn conditioning(
    prior: &Prior,
    sampler: Option<&Sampler>,
    items: &[LabelledCodes],
) -> Result<Conditioning> {
    ensure!(items.len() >= 2, "{} pictures: wanted at least 2 to exchange captions", items.len());
    let own: Vec<usize> = (0..items.len()).collect();
    let caption = |index: usize| items[index].caption.as_slice();
    let under = |order: Vec<usize>| losses(prior, items, |i| caption(order[i]));
    let truth = under(own.clone())?;
    let same_style = under(rotate_within_styles(items))?;
    let shuffled = under(rotate(&own))?;
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

/// Mean image loss of each picture under its own caption, by the sampler.
fn losses_as_drawn(sampler: &Sampler, items: &[LabelledCodes]) -> Result<Vec<f64>> {
    let config = sampler.config();
    let mut losses = Vec::new();
    for batch in items.chunks(BATCH) {
        let captions: Vec<&[u32]> = batch.iter().map(|item| item.caption.as_slice()).collect();
        let read = sampler.read(&captions)?;
        let mut lanes = sampler.new_slots(batch.len());
        let mut nats = vec![0.0; batch.len()];
        let mut previous = vec![0; batch.len()];
        for at in 0..config.image_len() {
            let logits = sampler.step(&read, &mut lanes, &Next::all(at, &previous))?;
            previous = batch.iter().map(|item| item.codes[at]).collect();
            for ((nats, row), &code) in nats.iter_mut().zip(logits.chunks(config.image_vocab)).zip(&previous)
            {
                *nats += surprise(row, code as usize) / config.image_len() as f64;
            }
        }
        losses.extend(nats);
    }
    Ok(losses)
}

/// −ln of the softmax of `logits` at `index`.
fn surprise(logits: &[f32], index: usize) -> f64 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|logit| f64::from(logit - top).exp()).sum();
    total.ln() - f64::from(logits[index] - top)
}

/// Mean image loss of each picture when picture `i` has caption `caption(i)`.
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

/// Each index moved on by about half the list, so that neighbours (often one concept) do not exchange captions.
fn rotate(indices: &[usize]) -> Vec<usize> {
    let by = indices.len().div_ceil(2);
    indices.iter().cycle().skip(by).take(indices.len()).copied().collect()
}

/// For each item the index of another item of its style (its own, if it is alone).
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
    fn a_same_style_shuffle_stays_in_its_style_and_moves_everyone() {
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
