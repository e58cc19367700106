//! Splitting of codes: each unused code of a dVAE takes over half of a code with a large
//! reconstruction error.
//!
//! This is not in the paper. With few training pictures, most of the codebook stays unused, because
//! a code that the encoder never chooses gets no gradient that would make it useful. Therefore the
//! codes with the largest reconstruction errors are split from time to time, as in the design of
//! vector quantisers by Linde, Buzo and Gray (1980): an unused code becomes a copy of the code with
//! a small difference, and each of the two gets half of the code's probability. The output of the
//! dVAE hardly changes at first; training then moves the two codes apart.

use anyhow::{Context, Result};
use rand_chacha::rand_core::Rng;
use tessera_base::random::uniform;
use tessera_model::nn::HostTensor;

/// The maximum random difference between a weight of either half and that of the split code,
/// relative to the root mean square of the code's weights.
const DIFFERENCE: f32 = 0.1;

/// A code is split only if it is the likeliest at more positions than this.
const SPLIT_ABOVE: u64 = 8;

/// How often each code is used on some pictures, and with which error.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Usage {
    /// For each code: the number of positions at which it is the likeliest.
    pub counts: Vec<u64>,
    /// For each code: the sum of the squared errors of the pixels at those positions.
    pub errors: Vec<f64>,
}

/// A code that is split, and the unused code that becomes its second half.
pub(crate) type Halves = (usize, usize);

impl Usage {
    /// Returns the codes to split, those with the largest errors first. Each is split at most once,
    /// and there are at most as many as unused codes.
    pub fn splits(&self) -> Vec<Halves> {
        let mut large: Vec<usize> =
            (0..self.counts.len()).filter(|&code| self.counts[code] > SPLIT_ABOVE).collect();
        large.sort_by(|&a, &b| self.errors[b].total_cmp(&self.errors[a]));
        let unused = (0..self.counts.len()).filter(|&code| self.counts[code] == 0);
        large.into_iter().zip(unused).collect()
    }
}

/// The weights of a dVAE that belong to its codes.
struct Codebook<'a> {
    /// `[V, C]`: maps the encoder's output to logits.
    logits: &'a mut [f32],
    /// `[V]`: the bias of the logits.
    bias: &'a mut [f32],
    /// `[D, V]`: the vectors of the codes that the decoder reads.
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

/// Splits codes of the dVAE with these weights. The change depends only on the arguments and the
/// state of `rng`.
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

/// Shifts the biases of the halves of each split code so that each half is the likelier one at
/// about half of the positions. The number in `halves` is the mean difference of their logits,
/// second minus first.
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

/// Copies `n` values to the places of the second half, and moves each value and its copy apart by a
/// small random difference. `places` maps an index to the places of the value and of its copy.
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
