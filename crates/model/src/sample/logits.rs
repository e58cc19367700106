//! Samples one token from a row of logits, on the host: temperature, top-k, top-p, then inversion
//! of the cumulative distribution.

use tessera_kernels::Cpu;
use tessera_kernels::decode::{largest, softmax_weights};

use super::Sampling;

/// The number of weights per block. The search for the sampled token first finds its block, then
/// its place in the block.
const BLOCK: usize = 64;

/// Returns the token that the uniform random number `u` in [0, 1) selects from `logits`.
///
/// The paper samples at temperature 1 from all tokens. `top_k` and `top_p` first restrict the
/// choice to the most likely tokens. Temperature 0 gives the most likely token.
pub fn choose(cpu: Cpu, logits: &[f32], sampling: &Sampling, u: f64) -> u32 {
    let temperature = sampling.temperature as f32;
    if temperature < f32::MIN_POSITIVE {
        let top = largest(logits);
        return logits.iter().position(|logit| *logit == top).unwrap_or(0) as u32;
    }
    let weights = softmax_weights(cpu, logits, temperature);
    let order = match (sampling.top_k, sampling.top_p) {
        (None, None) => return pick(&weights, u) as u32,
        (top_k, None) => likeliest(logits, top_k.unwrap_or(logits.len())),
        (top_k, Some(top_p)) => nucleus(logits, top_k.unwrap_or(logits.len()), top_p, &weights),
    };
    let weights: Vec<f32> = order.iter().map(|&token| weights[token as usize]).collect();
    order[pick(&weights, u)]
}

/// The index that `u` in [0, 1) selects with a probability proportional to its weight.
fn pick(weights: &[f32], u: f64) -> usize {
    let sums: Vec<f64> = weights.chunks(BLOCK).map(sum).collect();
    let (block, rest) = invert(sums.iter().copied(), u * sums.iter().sum::<f64>());
    let first = block * BLOCK;
    let block = &weights[first..weights.len().min(first + BLOCK)];
    first + invert(block.iter().copied().map(f64::from), rest).0
}

/// Inverts the cumulative sum of `weights`: the index at which it exceeds `rest`, at most the last,
/// and `rest` minus the sum of all weights before this index.
fn invert(weights: impl ExactSizeIterator<Item = f64>, mut rest: f64) -> (usize, f64) {
    let last = weights.len().saturating_sub(1);
    for (i, weight) in weights.enumerate() {
        if rest < weight || i == last {
            return (i, rest);
        }
        rest -= weight;
    }
    (0, rest)
}

/// The sum of a block, in 16 partial sums, so that the compiler can vectorize the loop.
fn sum(weights: &[f32]) -> f64 {
    let mut lanes = [0.0_f32; 16];
    for weights in weights.chunks(16) {
        lanes.iter_mut().zip(weights).for_each(|(lane, weight)| *lane += weight);
    }
    lanes.into_iter().map(f64::from).sum()
}

/// The `n` most likely tokens (at least one), most likely first. Of equally likely tokens the
/// smaller id comes first.
fn likeliest(logits: &[f32], n: usize) -> Vec<u32> {
    let before = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let n = n.clamp(1, order.len());
    if n < order.len() {
        order.select_nth_unstable_by(n - 1, before);
        order.truncate(n);
    }
    order.sort_unstable_by(before);
    order
}

/// The fewest of the `top_k` most likely tokens that together have the fraction `top_p` of their
/// weight; at least one.
fn nucleus(logits: &[f32], top_k: usize, top_p: f64, weights: &[f32]) -> Vec<u32> {
    let weight = |token: &u32| f64::from(weights[*token as usize]);
    let all =
        if top_k < logits.len() { likeliest(logits, top_k) } else { (0..logits.len() as u32).collect() };
    let target = top_p * all.iter().map(weight).sum::<f64>();
    let mut tried = 64;
    loop {
        let mut order = likeliest(logits, tried.min(all.len()));
        let mut held = 0.0;
        let last = order.iter().position(|token| {
            held += weight(token);
            held >= target
        });
        if last.is_some() || order.len() == all.len() {
            order.truncate(last.map_or(order.len(), |last| last + 1));
            return order;
        }
        tried *= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [0.0, 2.0, 1.0, -5.0];

    fn draw(sampling: Sampling) -> [u32; 4] {
        let mut counts = [0; 4];
        (0..10_000)
            .for_each(|i| counts[choose(Cpu::best(), &LOGITS, &sampling, f64::from(i) / 1e4) as usize] += 1);
        counts
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let counts = draw(Sampling::paper());
        let total: f64 = LOGITS.iter().map(|&l| f64::from(l).exp()).sum();
        for (count, logit) in counts.iter().zip(LOGITS) {
            assert!((f64::from(*count) / 1e4 - f64::from(logit).exp() / total).abs() < 2e-4);
        }
    }

    #[test]
    fn top_k_top_p_and_temperature_zero_restrict() {
        assert_eq!(draw(Sampling { top_k: Some(2), ..Sampling::paper() })[..1], [0]);
        assert_eq!(draw(Sampling { top_p: Some(0.6), ..Sampling::paper() }), [0, 10_000, 0, 0]);
        assert_eq!(draw(Sampling { temperature: 0.0, ..Sampling::paper() }), [0, 10_000, 0, 0]);
    }

    #[test]
    fn choose_inverts_the_distribution_of_a_long_row() {
        let logits: Vec<f32> = (0..1000).map(|i| ((i * 37 % 101) as f32 * 0.9).sin() * 3.0).collect();
        let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let mut below = 0.0;
        for (token, &logit) in logits.iter().enumerate() {
            let middle = (below + 0.5 * f64::from(logit).exp()) / total;
            assert_eq!(choose(Cpu::best(), &logits, &Sampling::paper(), middle), token as u32);
            below += f64::from(logit).exp();
        }
        assert_eq!(choose(Cpu::best(), &logits, &Sampling::paper(), 1.0 - 1e-16), 999);
    }
}
