//! Attention of one query per sequence over the caption's and the sequence's own KV cache.
//!
//! Sequences with the same caption share its keys and values, so several queries are multiplied by
//! them together. Each sequence may be at another position of its picture, and then attends to
//! other rows of its own cache.

use std::ops::Range;

use rayon::prelude::*;

use super::kv_cache::{KvCache, Visible};
use crate::attention::head::softmax_row;
use crate::cpu::Body;
use crate::gemm::{FloatSlice, LANES, Micro, Out, Segment, Sink, Strides, Unit, with_micro};
use crate::scratch::{Scratch, split};

/// If there are fewer sequences times heads than this, one thread computes all.
const SERIAL: usize = 16;
/// The maximum number of sequences per job: the number of rows of a tall tile.
const TOGETHER: usize = 8;

/// The cached keys and values that a query attends to.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// The index of the caption's keys and values in the text cache.
    pub caption: usize,
    /// The index of the sequence's own keys and values in the picture cache.
    pub own: usize,
    /// The rows of its own cache that the query attends to.
    pub visible: &'a Visible,
}

/// Computes the attention of each sequence's query over its caption's keys and values in `text`,
/// with the same visible rows for all sequences, and over its own in `own`. `queries` holds one row
/// per sequence, `stride` values apart, that starts with the query `[H · K]`; `out` is
/// `[sequences, H · K]`.
///
/// # Panics
/// If the sizes do not fit.
pub fn attend(
    queries: &[f32],
    stride: usize,
    sequences: &[Sequence],
    (text, text_visible): (&KvCache, &Visible),
    own: &KvCache,
    out: &mut [f32],
) {
    let (n_heads, width) = (own.n_heads, own.width);
    let fits = out.len() == sequences.len() * n_heads * width
        && queries.len() >= sequences.len().saturating_sub(1) * stride + n_heads * width;
    assert!(
        fits,
        "attend: {} values of queries, {stride} per row, and {} of output; \
         wanted rows for {} sequences of {n_heads} heads of width {width}",
        queries.len(),
        out.len(),
        sequences.len()
    );
    let kind = |kv_cache: &KvCache| (kv_cache.cpu, kv_cache.n_heads, kv_cache.width);
    assert!(
        kind(text) == kind(own),
        "attend: the text's KV cache is {:?} and the pictures' is {:?}, wanted the same",
        kind(text),
        kind(own)
    );
    let seen = sequences.iter().map(|sequence| ("picture", own, sequence.visible));
    for (name, kv_cache, visible) in seen.chain([("text", text, text_visible)]) {
        let (wanted, got) = (visible.panels_reached(), kv_cache.panels);
        assert!(
            got >= wanted,
            "attend: {got} panels of the {name} KV cache, wanted {wanted} to hold the visible cache rows"
        );
    }
    let groups = groups(sequences);
    let out = Out::new(out, n_heads * width);
    let job = |i: usize| {
        let (first, sequences, head) =
            (groups[i / n_heads].start, &sequences[groups[i / n_heads].clone()], i % n_heads);
        let text = (text, text_visible);
        with_micro!(own.cpu, S => {
            let simd = std::marker::PhantomData;
            own.cpu.supported().run(Queries::<S> { queries, stride, first, sequences, head, text, own, out, simd });
        });
    };
    match sequences.len() * n_heads < SERIAL {
        true => (0..groups.len() * n_heads).for_each(job),
        false => (0..groups.len() * n_heads).into_par_iter().for_each(job),
    }
}

/// Groups neighbouring sequences of one caption, at most [`TOGETHER`] per group.
fn groups(sequences: &[Sequence]) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    for sequences in sequences.chunk_by(|a, b| a.caption == b.caption).flat_map(|same| same.chunks(TOGETHER))
    {
        let first = groups.last().map_or(0, |group| group.end);
        groups.push(first..first + sequences.len());
    }
    groups
}

/// One head of a group of sequences with the same caption.
struct Queries<'a, S> {
    queries: &'a [f32],
    stride: usize,
    /// The row of the group's first sequence.
    first: usize,
    sequences: &'a [Sequence<'a>],
    head: usize,
    text: (&'a KvCache, &'a Visible),
    own: &'a KvCache,
    out: Out<'a, f32>,
    simd: std::marker::PhantomData<S>,
}

impl<S: Micro<Unit: Unit>> Body for Queries<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (sequences, width, caption) = (self.sequences.len(), self.own.width, self.sequences[0].caption);
        let text = self.text.1.panels() * LANES;
        let most = self.sequences.iter().map(|sequence| sequence.visible.panels()).max().unwrap_or(0);
        let [row, seen] = [width.div_ceil(S::Unit::VALUES), text + most * LANES];
        let (weight_row, wide) = (seen / S::Unit::VALUES, width.next_multiple_of(LANES));
        let mut units = Scratch::<S::Unit>::new(sequences * (row + weight_row));
        let [queries, weights] = split(&mut units, [sequences * row, sequences * weight_row]);
        let mut numbers = Scratch::<f32>::new(sequences * (seen + wide));
        let [scores, sums] = split(&mut numbers, [sequences * seen, sequences * wide]);
        for (i, query) in queries.chunks_exact_mut(row).enumerate() {
            let start = (self.first + i) * self.stride + self.head * width;
            S::Unit::along(FloatSlice::F32(&self.queries[start..start + width]), query);
        }
        // A row of scores has the text's visible panels first, then the sequence's own. All queries
        // are multiplied by the shared text together, then each one by its own keys.
        self.scores(self.text, caption, queries, scores, seen);
        let mut totals = [0.0; TOGETHER];
        for (i, (sequence, scores)) in self.sequences.iter().zip(scores.chunks_exact_mut(seen)).enumerate() {
            let (text, own) = scores.split_at_mut(text);
            let own = &mut own[..sequence.visible.panels() * LANES];
            self.scores((self.own, sequence.visible), sequence.own, &queries[i * row..][..row], own, seen);
            totals[i] = self.softmax(1.0 / (width as f32).sqrt(), text, (own, sequence.visible));
        }
        // Sums of values, weighted in the same order. They are divided by the softmax's total at
        // the end.
        S::Unit::along(FloatSlice::F32(scores), weights);
        sums.fill(0.0);
        self.add_weighted_values(self.text, caption, weights, weight_row, sums);
        for ((i, sequence), sums) in self.sequences.iter().enumerate().zip(sums.chunks_exact_mut(wide)) {
            let weights = &weights[i * weight_row + text / S::Unit::VALUES..(i + 1) * weight_row];
            self.add_weighted_values((self.own, sequence.visible), sequence.own, weights, weight_row, sums);
        }
        for (i, (sums, total)) in sums.chunks_exact(wide).zip(totals).enumerate() {
            // SAFETY: each value of this head's columns in these sequences' rows is written once.
            #[allow(unsafe_code)]
            let out = unsafe { self.out.row(self.first + i, self.head * width, width) };
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out = *sum / total);
        }
    }
}

impl<S: Micro<Unit: Unit>> Queries<'_, S> {
    /// Writes the products of `queries` with the visible keys of `sequence`, in rows `stride`
    /// apart.
    #[inline(always)]
    fn scores(
        &self,
        (kv_cache, visible): (&KvCache, &Visible),
        sequence: usize,
        queries: &[S::Unit],
        scores: &mut [f32],
        stride: usize,
    ) {
        let row = kv_cache.width.div_ceil(S::Unit::VALUES);
        let keys: &[S::Unit] = bytemuck::cast_slice(kv_cache.keys(sequence, self.head));
        let strides = Strides { row, step: 1, panel: row * LANES };
        let mut done = 0;
        for &(first, count) in &visible.runs {
            let segment =
                Segment { a: queries.as_ptr(), b: keys[first * strides.panel..].as_ptr(), units: row };
            // SAFETY: queries are `row` units long, and so are the columns of the panels.
            #[allow(unsafe_code)]
            unsafe {
                let sink = Set { numbers: &mut scores[done..], stride };
                S::product(queries.len() / row, count, &[segment], strides, sink);
            }
            done += count * LANES;
        }
    }

    /// Adds the visible values of `sequence`, multiplied by `weights`, to the rows of `sums`. Rows
    /// of `weights` are `stride` units apart.
    #[inline(always)]
    fn add_weighted_values(
        &self,
        (kv_cache, visible): (&KvCache, &Visible),
        sequence: usize,
        weights: &[S::Unit],
        stride: usize,
        sums: &mut [f32],
    ) {
        let (units, wide) = (LANES / S::Unit::VALUES, kv_cache.width.next_multiple_of(LANES));
        let rows = sums.len() / wide;
        let values: &[S::Unit] = bytemuck::cast_slice(kv_cache.values(sequence, self.head));
        let strides = Strides { row: stride, step: 1, panel: kv_cache.panels * units * LANES };
        let mut done = 0;
        for &(first, count) in &visible.runs {
            let (a, b) = (weights[done * units..].as_ptr(), values[first * units * LANES..].as_ptr());
            let segment = Segment { a, b, units: count * units };
            // SAFETY: each row of weights covers the run's cache rows, and so do the values.
            #[allow(unsafe_code)]
            unsafe {
                let sink = Add { numbers: &mut *sums, stride: wide };
                S::product(rows, wide / LANES, &[segment], strides, sink);
            }
            done += count;
        }
    }

    /// Computes one softmax over both sources, without the division by the total, which it returns.
    /// Each source is first normalised with its own maximum, then rescaled to the common one.
    #[inline(always)]
    fn softmax(&self, scale: f32, text: &mut [f32], (own, visible): (&mut [f32], &Visible)) -> f32 {
        let (text_top, text_total) = softmax_row(&self.text.1.masks, scale, text);
        let (own_top, own_total) = softmax_row(&visible.masks, scale, own);
        let top = text_top.max(own_top);
        let [text_factor, own_factor] = [text_top, own_top].map(|part| (part - top).exp());
        text.iter_mut().for_each(|weight| *weight *= text_factor);
        own.iter_mut().for_each(|weight| *weight *= own_factor);
        text_total * text_factor + own_total * own_factor
    }
}

/// Stores the sums.
struct Set<'a> {
    numbers: &'a mut [f32],
    stride: usize,
}

impl Sink for Set<'_> {
    #[inline(always)]
    fn row(&mut self, row: usize, panel: usize, sums: &mut [f32]) {
        self.numbers[row * self.stride + panel * LANES..][..sums.len()].copy_from_slice(sums);
    }
}

/// Adds the sums to what is there.
struct Add<'a> {
    numbers: &'a mut [f32],
    stride: usize,
}

impl Sink for Add<'_> {
    #[inline(always)]
    fn row(&mut self, row: usize, panel: usize, sums: &mut [f32]) {
        let numbers = &mut self.numbers[row * self.stride + panel * LANES..][..sums.len()];
        numbers.iter_mut().zip(sums).for_each(|(number, sum)| *number += *sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::testing::{assert_close, noise, tolerance};

    /// Returns the softmax-weighted mean of values, computed in f64.
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

    /// The captions of sequences: one alone, a pair, then more than are multiplied together.
    const CAPTIONS: [usize; 13] = [1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1];

    /// The order of sequences differs from that of cache entries, one cache entry is not used, and
    /// each sequence is at another position.
    #[test]
    fn query_attends_to_its_caption_and_its_own_visible_rows() {
        for (n_heads, width, texts, cache_rows) in [(1, 3, 5, 1), (2, 20, 24, 40), (3, 16, 16, 33)] {
            let d = n_heads * width;
            let own_of = |row: usize| (row * 5 + 2) % 14;
            let visible_rows = |row: usize| {
                (0..cache_rows)
                    .filter(move |cache_row| cache_row % 7 != 3 && cache_row % (row + 1) == 0)
                    .collect::<Vec<usize>>()
            };
            let visible: Vec<Visible> =
                (0..CAPTIONS.len()).map(|row| Visible::new(visible_rows(row))).collect();
            for cpu in Cpu::all() {
                let mut text = KvCache::new(cpu, 2, [n_heads, width], texts);
                let mut own = KvCache::new(cpu, 14, [n_heads, width], cache_rows);
                let state = |sequence: usize, cache_row: usize, which: u64| {
                    noise(d, (sequence * 100 + cache_row) as u64 * 10 + which)
                };
                (0..2)
                    .for_each(|o| (0..texts).for_each(|s| text.put(o, s, &state(o, s, 1), &state(o, s, 2))));
                (0..14).for_each(|o| {
                    (0..cache_rows).for_each(|s| own.put(o, s, &state(o, s, 3), &state(o, s, 4)))
                });
                let queries = noise(CAPTIONS.len() * d, 5);
                let mut out = vec![0.0; CAPTIONS.len() * d];
                let sequence = |(i, &caption)| Sequence { caption, own: own_of(i), visible: &visible[i] };
                let sequences: Vec<Sequence> = CAPTIONS.iter().enumerate().map(sequence).collect();
                attend(&queries, d, &sequences, (&text, &Visible::new(0..texts)), &own, &mut out);
                for (row, caption) in CAPTIONS.into_iter().enumerate() {
                    for head in 0..n_heads {
                        let part = |all: Vec<f32>| all[head * width..(head + 1) * width].to_vec();
                        let both = |text: u64, own: u64| -> Vec<Vec<f32>> {
                            let texts = (0..texts).map(|cache_row| part(state(caption, cache_row, text)));
                            let own = visible_rows(row).into_iter().map(|s| part(state(own_of(row), s, own)));
                            texts.chain(own).collect()
                        };
                        let at = row * d + head * width;
                        let expected = reference(&queries[at..at + width], &both(1, 3), &both(2, 4));
                        assert_close(
                            &format!("row {row}, {cpu}"),
                            &out[at..at + width],
                            &expected,
                            tolerance(cpu),
                        );
                    }
                }
            }
        }
    }
}
