//! One query of each lane over its caption's states and its own.

use rayon::prelude::*;

use super::states::{States, Visible};
use crate::attention::head::softmax_row;
use crate::cpu::Body;
use crate::gemm::{LANES, Micro, Numbers, Segment, Sink, Strides, Unit, with_micro};
use crate::scratch::{Scratch, split};

/// Lanes times heads below which one thread does all.
const SERIAL: usize = 16;

/// Attention of lane `i`'s query over the states of owner `captions[i]` in `text` and of owner `i` in `own`:
/// `queries` holds rows `stride` long that start with a query `[H · K]`, `out` is `[lanes, H · K]`.
///
/// # Panics
/// If the sizes do not fit.
pub fn attend(
    queries: &[f32],
    stride: usize,
    (text, captions, text_visible): (&States, &[usize], &Visible),
    (own, own_visible): (&States, &Visible),
    out: &mut [f32],
) {
    let (n_heads, width, lanes) = (own.n_heads, own.width, captions.len());
    let fits = out.len() == lanes * n_heads * width
        && queries.len() >= lanes.saturating_sub(1) * stride + n_heads * width;
    assert!(fits, "attend: {} numbers of queries, {} of output, {lanes} lanes", queries.len(), out.len());
    let job = |(i, out): (usize, &mut [f32])| {
        let (lane, head) = (i / n_heads, i % n_heads);
        let query = &queries[lane * stride + head * width..][..width];
        let sources = [(text, captions[lane], text_visible), (own, lane, own_visible)];
        with_micro!(own.cpu, S => own.cpu.isa().run(Query::<S> { query, sources, head, out, simd: std::marker::PhantomData }));
    };
    match lanes * n_heads < SERIAL {
        true => out.chunks_exact_mut(width).enumerate().for_each(job),
        false => out.par_chunks_exact_mut(width).enumerate().for_each(job),
    }
}

/// One head of one lane.
struct Query<'a, S> {
    query: &'a [f32],
    /// Where states are, whose, and which are visible.
    sources: [(&'a States, usize, &'a Visible); 2],
    head: usize,
    out: &'a mut [f32],
    simd: std::marker::PhantomData<S>,
}

impl<S: Micro<Unit: Unit>> Body for Query<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let width = self.query.len();
        let [panels, row] =
            [self.sources.iter().map(|source| source.2.panels()).sum(), width.div_ceil(S::Unit::VALUES)];
        let wide = width.div_ceil(LANES) * LANES;
        let mut units = Scratch::<S::Unit>::new(row + panels * LANES / S::Unit::VALUES);
        let [query, weights] = split(&mut units, [row, panels * LANES / S::Unit::VALUES]);
        let mut numbers = Scratch::<f32>::new(panels * LANES + wide);
        let [scores, sums] = split(&mut numbers, [panels * LANES, wide]);
        S::Unit::along(Numbers::F32(self.query), query);
        let mut done = 0;
        for (states, owner, visible) in self.sources {
            let keys: &[S::Unit] = bytemuck::cast_slice(states.keys(owner, self.head));
            for &(first, count) in &visible.runs {
                let strides = Strides { row: 0, step: 1, panel: row * LANES };
                let segment =
                    Segment { a: query.as_ptr(), b: keys[first * strides.panel..].as_ptr(), units: row };
                // SAFETY: the query is `row` units long, and so are the panels.
                #[allow(unsafe_code)]
                unsafe {
                    S::product(1, count, &[segment], strides, Set(&mut scores[done..]));
                }
                done += count * LANES;
            }
        }
        let scale = 1.0 / (width as f32).sqrt();
        let total = self.softmax(scale, scores);
        S::Unit::along(Numbers::F32(scores), weights);
        sums.fill(0.0);
        let mut done = 0;
        for (states, owner, visible) in self.sources {
            let values: &[S::Unit] = bytemuck::cast_slice(states.values(owner, self.head));
            let units = LANES / S::Unit::VALUES;
            let strides = Strides { row: 0, step: 1, panel: states.panels * units * LANES };
            for &(first, count) in &visible.runs {
                let (a, b) = (weights[done * units..].as_ptr(), values[first * units * LANES..].as_ptr());
                let segment = Segment { a, b, units: count * units };
                // SAFETY: the weights cover the run's slots, and so do the values.
                #[allow(unsafe_code)]
                unsafe {
                    S::product(1, wide / LANES, &[segment], strides, Add(sums));
                }
                done += count;
            }
        }
        for (out, sum) in self.out.iter_mut().zip(sums) {
            *out = *sum / total;
        }
    }
}

impl<S> Query<'_, S> {
    /// One softmax over both sources; returns what the weights are to be divided by.
    #[inline(always)]
    fn softmax(&self, scale: f32, scores: &mut [f32]) -> f32 {
        let [(_, _, text), (_, _, own)] = self.sources;
        let (text_scores, own_scores) = scores.split_at_mut(text.panels() * LANES);
        let (text_top, text_total) = softmax_row(&text.masks, scale, text_scores);
        let (own_top, own_total) = softmax_row(&own.masks, scale, own_scores);
        let top = text_top.max(own_top);
        let [text_factor, own_factor] = [text_top, own_top].map(|part| (part - top).exp());
        text_scores.iter_mut().for_each(|weight| *weight *= text_factor);
        own_scores.iter_mut().for_each(|weight| *weight *= own_factor);
        text_total * text_factor + own_total * own_factor
    }
}

/// Keeps sums, panel behind panel.
struct Set<'a>(&'a mut [f32]);

impl Sink for Set<'_> {
    #[inline(always)]
    fn row(&mut self, _: usize, panel: usize, sums: &mut [f32]) {
        self.0[panel * LANES..][..sums.len()].copy_from_slice(sums);
    }
}

/// Adds sums up, panel behind panel.
struct Add<'a>(&'a mut [f32]);

impl Sink for Add<'_> {
    #[inline(always)]
    fn row(&mut self, _: usize, panel: usize, sums: &mut [f32]) {
        for (number, sum) in self.0[panel * LANES..][..sums.len()].iter_mut().zip(sums) {
            *number += *sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::testing::{assert_close, noise, tolerance};

    /// Softmax-weighted mean of values, in f64.
    fn reference(query: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f32> {
        let dot =
            |key: &Vec<f32>| query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>();
        let weights: Vec<f64> =
            keys.iter().map(|key| (dot(key) / (query.len() as f64).sqrt()).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mean = |i: usize| {
            values.iter().zip(&weights).map(|(value, w)| f64::from(value[i]) * w).sum::<f64>() / total
        };
        (0..query.len()).map(|i| mean(i) as f32).collect()
    }

    #[test]
    fn a_query_sees_its_caption_and_its_own_visible_slots() {
        for (n_heads, width, texts, slots) in [(1, 3, 5, 1), (2, 20, 24, 40), (3, 16, 16, 33)] {
            let d = n_heads * width;
            let visible: Vec<usize> = (0..slots).filter(|slot| slot % 7 != 3).collect();
            for cpu in Cpu::all() {
                let mut text = States::new(cpu, 2, [n_heads, width], texts);
                let mut own = States::new(cpu, 3, [n_heads, width], slots);
                let state = |owner: usize, slot: usize, which: u64| {
                    noise(d, (owner * 100 + slot) as u64 * 10 + which)
                };
                (0..2)
                    .for_each(|o| (0..texts).for_each(|s| text.put(o, s, &state(o, s, 1), &state(o, s, 2))));
                (0..3).for_each(|o| (0..slots).for_each(|s| own.put(o, s, &state(o, s, 3), &state(o, s, 4))));
                let (queries, captions) = (noise(3 * d, 5), [1, 0, 1]);
                let mut out = vec![0.0; 3 * d];
                let text_visible = Visible::new(0..texts);
                let own_visible = Visible::new(visible.clone());
                attend(&queries, d, (&text, &captions, &text_visible), (&own, &own_visible), &mut out);
                for (lane, caption) in captions.into_iter().enumerate() {
                    for head in 0..n_heads {
                        let part = |all: Vec<f32>| all[head * width..(head + 1) * width].to_vec();
                        let both = |text: u64, own: u64| -> Vec<Vec<f32>> {
                            let texts = (0..texts).map(|slot| part(state(caption, slot, text)));
                            texts.chain(visible.iter().map(|&slot| part(state(lane, slot, own)))).collect()
                        };
                        let at = lane * d + head * width;
                        let wanted = reference(&queries[at..at + width], &both(1, 3), &both(2, 4));
                        assert_close(
                            &format!("lane {lane}, {cpu}"),
                            &out[at..at + width],
                            &wanted,
                            tolerance(cpu),
                        );
                    }
                }
            }
        }
    }
}
