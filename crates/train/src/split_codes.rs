//! Splitting of codes: unused codes of a dVAE take over half of a code with a large error.
//!
//! This is ours and not the paper's. With few training pictures most of the codebook stays unused:
//! a code that the encoder never chooses gets no gradient that would make it useful. So from time
//! to time each of the codes with the largest reconstruction error is split, as in the design of
//! vector quantisers by Linde, Buzo and Gray (1980): an unused code becomes a copy of it with a
//! small difference, and each of the two gets half of its probability. The output of the dVAE
//! hardly changes; training then moves the two apart.

use anyhow::{Context, Result};
use rand_chacha::rand_core::Rng;
use tessera_base::random::uniform;
use tessera_model::nn::HostTensor;

/// The difference between the two halves of a code, relative to the size of its weights.
const DIFFERENCE: f32 = 0.1;

/// A code is split only if it stands at more positions than this.
const FEW: u64 = 8;

/// How a codebook is used on some pictures.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Usage {
    /// Positions at which each code is the likeliest.
    pub counts: Vec<u64>,
    /// The squared error of the pixels of those positions.
    pub errors: Vec<f64>,
}

impl Usage {
    /// Pairs of a code to split and the unused code that becomes its other half: the largest errors
    /// first, each code at most once.
    fn splits(&self) -> Vec<(usize, usize)> {
        let mut large: Vec<usize> = (0..self.counts.len()).filter(|&code| self.counts[code] > FEW).collect();
        large.sort_by(|&a, &b| self.errors[b].total_cmp(&self.errors[a]));
        let unused = (0..self.counts.len()).filter(|&code| self.counts[code] == 0);
        large.into_iter().zip(unused).collect()
    }
}

/// Splits codes of the dVAE with these weights. Each call with the same `usage` and the same random
/// numbers makes the same change. Returns the number of codes that were split.
///
/// # Errors
/// If these are not the weights of a dVAE with that many codes.
pub(crate) fn split_codes(weights: &mut [HostTensor], usage: &Usage, rng: &mut impl Rng) -> Result<usize> {
    let splits = usage.splits();
    let vocab = usage.counts.len();
    let [logits, bias, codebook] = ["encoder.output.weight", "encoder.output.bias", "decoder.input.weight"]
        .map(|name| weights.iter().position(|weight| weight.name == name));
    let missing = "the weights are not those of a dVAE";
    let (logits, bias, codebook) =
        (logits.context(missing)?, bias.context(missing)?, codebook.context(missing)?);
    for &(code, unused) in &splits {
        let row = weights[logits].values.len() / vocab;
        divide(&mut weights[logits].values, |i| (code * row + i, unused * row + i), row, rng);
        let values = &mut weights[bias].values;
        values[code] -= std::f32::consts::LN_2;
        values[unused] = values[code];
        let column = weights[codebook].values.len() / vocab;
        divide(&mut weights[codebook].values, |i| (i * vocab + code, i * vocab + unused), column, rng);
    }
    Ok(splits.len())
}

/// Makes the `n` values at the second of `places` those at the first, moved apart by a small random
/// difference.
fn divide(values: &mut [f32], places: impl Fn(usize) -> (usize, usize), n: usize, rng: &mut impl Rng) {
    let squares: f32 = (0..n).map(|i| values[places(i).0].powi(2)).sum();
    let size = DIFFERENCE * (squares / n as f32).sqrt();
    for i in 0..n {
        let (from, to) = places(i);
        let difference = size * (2.0 * uniform(rng) - 1.0);
        values[to] = values[from] - difference;
        values[from] += difference;
    }
}
