//! Measures how much 8-bit weights change the predictions of a prior. It uses pictures that the
//! prior draws, because a model file contains no others.

use anyhow::{Result, ensure};
use tessera_kernels::decode::Weights;

use super::{Next, Request, Sampler, Sampling, choose};
use crate::prior::Prior;

/// The number of pictures that are drawn for the measurement.
const PICTURES: usize = 16;

/// The mean of KL(p ‖ q) over the tokens of some pictures, in nats. p is the distribution of the
/// next token according to `prior`, q that according to `packed` with 8-bit weights.
///
/// The pictures are sampled from p. Each has a caption of one token; these tokens are spread over
/// the vocabulary.
///
/// # Errors
/// If the two priors differ in their sizes, or the result is not finite.
pub fn int8_nats_per_token(prior: &Prior, packed: Prior) -> Result<f64> {
    let config = prior.config().clone();
    ensure!(config == *packed.config(), "the two priors have different sizes");
    let (full, int8) = (Sampler::new(prior, Weights::Full)?, Sampler::new(&packed.in_int8(), Weights::Int8)?);
    let captions: Vec<[u32; 1]> =
        (0..PICTURES).map(|picture| [(picture * config.text_vocab / PICTURES) as u32]).collect();
    let captions: Vec<&[u32]> = captions.iter().map(|caption| &caption[..]).collect();
    let read = [full.read(&captions)?, int8.read(&captions)?];
    let mut slots = [full.new_slots(PICTURES), int8.new_slots(PICTURES)];
    let (request, sampling) = (Request::default(), Sampling::paper());
    let mut previous = vec![0; PICTURES];
    let mut nats = 0.0;
    for at in 0..config.image_len() {
        let next = Next::all(at, &previous);
        let [p_slots, q_slots] = &mut slots;
        let p = full.step(&read[0], p_slots, &next)?.chunks(config.image_vocab);
        let q = int8.step(&read[1], q_slots, &next)?.chunks(config.image_vocab);
        for (picture, (p, q)) in p.zip(q).enumerate() {
            nats += divergence(p, q);
            previous[picture] = choose(prior.cpu(), p, &sampling, request.unit(picture, at));
        }
    }
    let mean = nats / (PICTURES * config.image_len()) as f64;
    ensure!(mean.is_finite(), "the model's logits are not finite; are its weights damaged?");
    Ok(mean)
}

/// KL(p ‖ q) of the softmaxes of two rows of logits.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let log_total = |row: &[f32]| {
        let top = row.iter().fold(f32::NEG_INFINITY, |top, &logit| top.max(logit));
        f64::from(top) + row.iter().map(|&logit| f64::from(logit - top).exp()).sum::<f64>().ln()
    };
    let (p_total, q_total) = (log_total(p), log_total(q));
    let term = |(&p, &q): (&f32, &f32)| {
        let log_p = f64::from(p) - p_total;
        log_p.exp() * (log_p - (f64::from(q) - q_total))
    };
    p.iter().zip(q).map(term).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_equals_scipys() {
        // scipy.stats.entropy([0.5, 0.5], [0.25, 0.75]) = 0.14384103622589045
        let [p, q] = [[0.5_f32, 0.5], [0.25, 0.75]].map(|row| row.map(|p| p.ln() + 3.0));
        assert!((divergence(&p, &q) - 0.143_841_036).abs() < 1e-6);
        assert!(divergence(&p, &p).abs() < 1e-9);
    }
}
