//! One token from a row of logits, on the host: temperature, top-k, top-p, then the inverse of the distribution function.

use super::Sampling;

/// The token that the uniform number `u` in [0, 1) picks from `logits`.
///
/// The paper samples at temperature 1 from everything; `top_k` and `top_p` restrict to the likeliest tokens first.
/// Temperature 0 is the likeliest token.
pub fn choose(logits: &[f32], sampling: &Sampling, u: f64) -> u32 {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    if sampling.temperature <= 0.0 || sampling.top_k.is_some() || sampling.top_p.is_some() {
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    }
    if sampling.temperature <= 0.0 {
        return order[0];
    }
    order.truncate(sampling.top_k.unwrap_or(logits.len()).max(1));
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |&token: &u32| (f64::from(logits[token as usize] - top) / sampling.temperature).exp();
    let mut weights: Vec<f64> = order.iter().map(weight).collect();
    if let Some(top_p) = sampling.top_p {
        weights.truncate(nucleus(&weights, top_p));
    }
    let mut left = u * weights.iter().sum::<f64>();
    for (token, weight) in order.iter().zip(&weights) {
        left -= weight;
        if left < 0.0 {
            return *token;
        }
    }
    order[weights.len() - 1]
}

/// How many of the sorted `weights` it takes to hold the share `top_p` of their sum; at least one.
fn nucleus(weights: &[f64], top_p: f64) -> usize {
    let wanted = top_p * weights.iter().sum::<f64>();
    let mut held = 0.0;
    let whole = weights.iter().position(|weight| {
        held += weight;
        held >= wanted
    });
    whole.map_or(weights.len(), |last| last + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [0.0, 2.0, 1.0, -5.0];

    fn draw(sampling: Sampling) -> [u32; 4] {
        let mut counts = [0; 4];
        (0..10_000).for_each(|i| counts[choose(&LOGITS, &sampling, f64::from(i) / 1e4) as usize] += 1);
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
}
