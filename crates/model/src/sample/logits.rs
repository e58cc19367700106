//! One token from a row of logits, on the host: temperature, top-k, top-p, then the inverse of the distribution function.

use super::Sampling;

/// The token that the uniform number `u` in [0, 1) picks from `logits`.
///
/// The paper samples at temperature 1 from everything; `top_k` and `top_p` restrict to the likeliest tokens first.
/// Temperature 0 is the likeliest token.
pub fn choose(logits: &[f32], sampling: &Sampling, u: f64) -> u32 {
    let top = top(logits);
    if sampling.temperature <= 0.0 {
        return logits.iter().position(|logit| *logit == top).unwrap_or(0) as u32;
    }
    let weight = |&token: &u32| (f64::from(logits[token as usize] - top) / sampling.temperature).exp();
    let order = match (sampling.top_k, sampling.top_p) {
        (None, None) => (0..logits.len() as u32).collect(),
        (top_k, None) => likeliest(logits, top_k.unwrap_or(logits.len())),
        (top_k, Some(top_p)) => nucleus(logits, top_k.unwrap_or(logits.len()), top_p, weight),
    };
    let weights: Vec<f64> = order.iter().map(weight).collect();
    let mut left = u * weights.iter().sum::<f64>();
    for (token, weight) in order.iter().zip(&weights) {
        left -= weight;
        if left < 0.0 {
            return *token;
        }
    }
    order[order.len() - 1]
}

/// The largest logit; found lane by lane, so that the loop becomes vector code.
fn top(logits: &[f32]) -> f32 {
    let mut tops = [f32::NEG_INFINITY; 16];
    for logits in logits.chunks(16) {
        tops.iter_mut().zip(logits).for_each(|(top, &logit)| *top = if logit > *top { logit } else { *top });
    }
    tops.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// The `n` likeliest tokens (at least one), likeliest first; among equals the smaller comes first.
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

/// The fewest of the `top_k` likeliest tokens that hold the share `top_p` of their weight; at least one.
fn nucleus(logits: &[f32], top_k: usize, top_p: f64, weight: impl Fn(&u32) -> f64) -> Vec<u32> {
    let all =
        if top_k < logits.len() { likeliest(logits, top_k) } else { (0..logits.len() as u32).collect() };
    let wanted = top_p * all.iter().map(&weight).sum::<f64>();
    let mut tried = 64;
    loop {
        let mut order = likeliest(logits, tried.min(all.len()));
        let mut held = 0.0;
        let last = order.iter().position(|token| {
            held += weight(token);
            held >= wanted
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
