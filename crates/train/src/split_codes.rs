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

/// A code that is split, and the unused code that becomes its other half.
pub(crate) type Halves = (usize, usize);

impl Usage {
    /// The codes to split: those with the largest errors, each at most once, as long as there are
    /// unused codes.
    pub fn splits(&self) -> Vec<Halves> {
        let mut large: Vec<usize> = (0..self.counts.len()).filter(|&code| self.counts[code] > FEW).collect();
        large.sort_by(|&a, &b| self.errors[b].total_cmp(&self.errors[a]));
        let unused = (0..self.counts.len()).filter(|&code| self.counts[code] == 0);
        large.into_iter().zip(unused).collect()
    }
}

/// The weights of a dVAE that belong to its codes.
struct Codebook<'a> {
    /// `[V, C]`, the map to the logits.
    logits: &'a mut [f32],
    /// `[V]`
    bias: &'a mut [f32],
    /// `[D, V]`, what the decoder reads.
    vectors: &'a mut [f32],
}

impl Codebook<'_> {
    fn of(weights: &mut [HostTensor]) -> Result<Codebook<'_>> {
        let [mut logits, mut bias, mut vectors] = [const { None }; 3];
        for weight in weights {
            match weight.name.as_str() {
                "encoder.output.weight" => logits = Some(weight.values.as_mut_slice()),
                "encoder.output.bias" => bias = Some(weight.values.as_mut_slice()),
                "decoder.input.weight" => vectors = Some(weight.values.as_mut_slice()),
                _ => {}
            }
        }
        let missing = "the weights are not those of a dVAE";
        Ok(Codebook {
            logits: logits.context(missing)?,
            bias: bias.context(missing)?,
            vectors: vectors.context(missing)?,
        })
    }
}

/// Splits codes of the dVAE with these weights. The same random numbers make the same change.
///
/// # Errors
/// If these are not the weights of a dVAE.
pub(crate) fn split_codes(weights: &mut [HostTensor], splits: &[Halves], rng: &mut impl Rng) -> Result<()> {
    let Codebook { logits, bias, vectors } = Codebook::of(weights)?;
    let vocab = bias.len();
    for &(code, unused) in splits {
        let row = logits.len() / vocab;
        divide(logits, |i| (code * row + i, unused * row + i), row, rng);
        bias[code] -= std::f32::consts::LN_2;
        bias[unused] = bias[code];
        let column = vectors.len() / vocab;
        divide(vectors, |i| (i * vocab + code, i * vocab + unused), column, rng);
    }
    Ok(())
}

/// Moves the biases of two halves so that each wins at about half of the positions: `excess` is the
/// mean of how far the logit of the second half is above that of the first.
///
/// # Errors
/// As for [`split_codes`].
pub(crate) fn balance(weights: &mut [HostTensor], halves: &[(Halves, f32)]) -> Result<()> {
    let Codebook { bias, .. } = Codebook::of(weights)?;
    for &((code, unused), excess) in halves {
        bias[code] += excess / 2.0;
        bias[unused] -= excess / 2.0;
    }
    Ok(())
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
