//! Forward and backward pass of one attention head of one sequence.
//!
//! Both passes go through the plan's blocks of queries. With `s = 1 / √K`, the forward pass
//! computes `S = Q Kᵀ`, `lse = ln Σ exp(s S)`, `P = exp(s S - lse)` and `O = P V`; masked pairs
//! have `P = 0`. The backward pass recomputes `P` from `lse`; its formulas are at [`Backward`].

use std::mem::MaybeUninit;

use super::plan::{AttentionPlan, Block, QUERIES};
use crate::cpu::Body;
use crate::gemm::{FloatSlice, LANES, Micro, Out, Segment, Sink, Strides, Unit, panel_across, panel_along};
use crate::math::{Number, add_lanes, exp, with_numbers};
use crate::scratch::{Scratch, split};

/// The sizes of an attention call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) batch: usize,
    pub(super) len: usize,
    pub(super) n_heads: usize,
    /// The width of a head.
    pub(super) width: usize,
}

impl Layout {
    pub(super) fn d(self) -> usize {
        self.n_heads * self.width
    }

    pub(super) fn heads(self) -> usize {
        self.batch * self.n_heads
    }

    pub(super) fn rows(self) -> usize {
        self.batch * self.len
    }
}

/// The queries, keys and values of one head, addressed by place. Both passes read them.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    plan: &'a AttentionPlan,
    layout: Layout,
    /// The index of the sequence in the batch, and of the head in the sequence.
    at: [usize; 2],
    qkv: FloatSlice<'a>,
}

/// Index of the queries in a row of `qkv`.
const Q: usize = 0;
/// Index of the keys.
const K: usize = 1;
/// Index of the values.
const V: usize = 2;

impl<'a> Head<'a> {
    pub(super) fn new(
        plan: &'a AttentionPlan,
        layout: Layout,
        index: usize,
        qkv: FloatSlice<'a>,
    ) -> Head<'a> {
        Head { plan, layout, at: [index / layout.n_heads, index % layout.n_heads], qkv }
    }

    /// The row of memory that holds the position at `place`.
    #[inline(always)]
    fn row(&self, place: usize) -> usize {
        self.at[0] * self.layout.len + self.plan.order[place]
    }

    /// The first column of the head.
    #[inline(always)]
    fn column(&self) -> usize {
        self.at[1] * self.layout.width
    }

    /// Returns the query, key or value (`which`) at `place`.
    #[inline(always)]
    fn get(&self, which: usize, place: usize) -> FloatSlice<'a> {
        let start = (self.row(place) * 3 + which) * self.layout.d() + self.column();
        self.qkv.slice(start, self.layout.width)
    }

    /// Returns the head's columns of a `[B, T, H · K]` tensor at `place`.
    #[inline(always)]
    fn part<'b>(&self, tensor: FloatSlice<'b>, place: usize) -> FloatSlice<'b> {
        tensor.slice(self.row(place) * self.layout.d() + self.column(), self.layout.width)
    }

    /// The number of panels that hold all keys.
    #[inline(always)]
    fn panels(&self) -> usize {
        self.layout.len.div_ceil(LANES)
    }

    /// The number of panels that hold the head's columns.
    #[inline(always)]
    fn width_panels(&self) -> usize {
        self.layout.width.div_ceil(LANES)
    }

    /// Packs panels whose columns are places. They are multiplied along the head's width.
    #[inline(always)]
    fn pack_places<U: Unit>(&self, which: usize, packed: &mut [U]) {
        let (len, width) = (self.layout.len, self.layout.width);
        for (p, panel) in packed.chunks_exact_mut(width.div_ceil(U::VALUES) * LANES).enumerate() {
            panel_along(
                |column| self.get(which, p * LANES + column),
                LANES.min(len - p * LANES),
                width,
                panel,
            );
        }
    }

    /// Packs panels whose columns are the head's columns. They are multiplied along the places.
    #[inline(always)]
    fn pack_columns<U: Unit>(&self, which: usize, packed: &mut [U]) {
        let (len, width) = (self.layout.len, self.layout.width);
        for (p, panel) in packed.chunks_exact_mut(self.panels() * LANES / U::VALUES * LANES).enumerate() {
            let columns = LANES.min(width - p * LANES);
            panel_across(|place| self.get(which, place).slice(p * LANES, columns), columns, len, panel);
        }
    }
}

/// Sizes of buffers, in units (packed operands) or in f32 values (scores).
struct Sizes {
    /// Units of one query, key or value, packed along the head's width.
    row: usize,
    /// Units of all keys (or values), packed by `pack_places`.
    places: usize,
    /// Units of all keys (or values), packed by `pack_columns`.
    columns: usize,
    /// f32 scores of one block of queries, if it attends to all keys.
    scores: usize,
}

impl Sizes {
    #[inline(always)]
    fn new<U: Unit>(head: &Head<'_>) -> Sizes {
        let row = head.layout.width.div_ceil(U::VALUES);
        let columns = head.width_panels() * LANES * head.panels() * LANES / U::VALUES;
        Sizes { row, places: head.panels() * LANES * row, columns, scores: QUERIES * head.panels() * LANES }
    }
}

/// Computes `scores = a · bᵀ` for the block's panels. `a` holds the block's rows, `b` the rows of
/// all places, packed as columns; both are `row` units long.
#[inline(always)]
fn scores<S: Micro<Unit: Unit>>(block: &Block, row: usize, a: &[S::Unit], b: &[S::Unit], scores: &mut [f32]) {
    let stride = block.panels() * LANES;
    let strides = Strides { row, step: 1, panel: row * LANES };
    // Scores are dense: the block's panels follow each other without the gaps between its runs.
    let mut done = 0;
    for &(first, count) in &block.runs {
        let segment = Segment { a: a.as_ptr(), b: b[first * strides.panel..].as_ptr(), units: row };
        // SAFETY: `a` holds the block's rows and `b` all panels, both `row` units long.
        #[allow(unsafe_code)]
        unsafe {
            let sink = Copy { numbers: &mut scores[done * LANES..], stride };
            S::product(block.rows, count, &[segment], strides, sink);
        }
        done += count;
    }
}

/// Computes `a · b`, which sums over the block's keys: `a` holds the block's rows over its panels
/// of keys, `b` all places of the head's columns. Each run of panels is one segment of K, so keys
/// that the block may not attend to are skipped.
#[inline(always)]
fn weighted_sums<S: Micro<Unit: Unit>>(
    head: &Head<'_>,
    block: &Block,
    a: &[S::Unit],
    b: &[S::Unit],
    sink: impl Sink,
) {
    let units = LANES / S::Unit::VALUES; // per panel of keys
    let strides = Strides { row: block.panels() * units, step: 1, panel: head.panels() * units * LANES };
    let mut done = 0;
    let segment = |&(first, count): &(usize, usize)| {
        let (a, b) = (a[done * units..].as_ptr(), b[first * units * LANES..].as_ptr());
        done += count;
        Segment { a, b, units: count * units }
    };
    let segments: Vec<Segment<S::Unit>> = block.runs.iter().map(segment).collect();
    // SAFETY: `a` holds the block's rows over its panels, `b` all places.
    #[allow(unsafe_code)]
    unsafe {
        S::product(block.rows, head.width_panels(), &segments, strides, sink);
    }
}

/// Stores the sums.
struct Copy<'a> {
    numbers: &'a mut [f32],
    stride: usize,
}

impl Sink for Copy<'_> {
    #[inline(always)]
    fn row(&mut self, m: usize, panel: usize, sums: &mut [f32]) {
        let start = m * self.stride + panel * LANES;
        self.numbers[start..start + sums.len()].copy_from_slice(sums);
    }
}

/// Adds the sums to what is there.
struct Add<'a> {
    numbers: &'a mut [f32],
    stride: usize,
}

impl Sink for Add<'_> {
    #[inline(always)]
    fn row(&mut self, m: usize, panel: usize, sums: &mut [f32]) {
        let start = m * self.stride + panel * LANES;
        for (number, sum) in self.numbers[start..start + sums.len()].iter_mut().zip(sums) {
            *number += *sum;
        }
    }
}

/// The forward pass of one head.
pub(super) struct Forward<'a, S, T> {
    pub(super) head: Head<'a>,
    pub(super) output: Out<'a, MaybeUninit<T>>,
    /// The log-sum-exp of the scaled scores of each place; written.
    pub(super) sums: &'a mut [f32],
    pub(super) simd: std::marker::PhantomData<S>,
}

impl<S: Micro<Unit: Unit>, T: Number> Body for Forward<'_, S, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (head, size) = (self.head, Sizes::new::<S::Unit>(&self.head));
        let sizes = [size.places, size.columns, QUERIES * size.row, size.scores / S::Unit::VALUES];
        let mut units = Scratch::<S::Unit>::new(sizes.iter().sum());
        let [keys, values, queries, weights] = split(&mut units, sizes);
        head.pack_places(K, keys);
        head.pack_columns(V, values);
        let mut numbers = Scratch::<f32>::new(size.scores);
        for block in &head.plan.blocks {
            pack_rows(block, size.row, queries, |place| head.get(Q, place));
            // S = Q Kᵀ
            scores::<S>(block, size.row, queries, keys, &mut numbers);
            // P · total = exp(s S - top), in place. The division by `total` follows on the output.
            let sums = &mut self.sums[block.first..block.first + block.rows];
            let inverse = softmax(block, scale(&head), &mut numbers, sums);
            // O = P V
            pack_along_keys(block, &numbers, weights);
            weighted_sums::<S>(
                &head,
                block,
                weights,
                values,
                Averages { head, block, inverse, output: self.output },
            );
        }
    }
}

/// Writes rows of the output, divided by the sums of their softmax.
struct Averages<'a, T> {
    head: Head<'a>,
    block: &'a Block,
    inverse: [f32; QUERIES],
    output: Out<'a, MaybeUninit<T>>,
}

impl<T: Number> Sink for Averages<'_, T> {
    #[inline(always)]
    fn row(&mut self, m: usize, panel: usize, sums: &mut [f32]) {
        let (head, column) = (&self.head, panel * LANES);
        let n = sums.len().min(head.layout.width - column);
        // SAFETY: each value of this head's columns is written once.
        #[allow(unsafe_code)]
        let out = unsafe { self.output.row(head.row(self.block.first + m), head.column() + column, n) };
        for (out, sum) in out.iter_mut().zip(sums) {
            out.write(T::nearest(*sum * self.inverse[m]));
        }
    }
}

/// The scale of scores, `1 / √K`.
#[inline(always)]
fn scale(head: &Head<'_>) -> f32 {
    1.0 / (head.layout.width as f32).sqrt()
}

/// Packs the block's rows (queries, or gradients of outputs) along the head's width.
#[inline(always)]
fn pack_rows<'a, U: Unit>(block: &Block, row: usize, units: &mut [U], get: impl Fn(usize) -> FloatSlice<'a>) {
    for (m, units) in units.chunks_exact_mut(row).enumerate().take(block.rows) {
        U::along(get(block.first + m), units);
    }
}

/// Packs the block's scores as a left operand whose K runs along the keys.
#[inline(always)]
fn pack_along_keys<U: Unit>(block: &Block, numbers: &[f32], units: &mut [U]) {
    let stride = block.panels() * LANES;
    let rows = numbers.chunks_exact(stride).zip(units.chunks_exact_mut(stride / U::VALUES));
    for (numbers, units) in rows.take(block.rows) {
        U::along(FloatSlice::F32(numbers), units);
    }
}

/// Packs the block's scores transposed, as a left operand whose K runs along the queries: a unit
/// holds one key's scores for neighbouring queries.
#[inline(always)]
fn pack_across_keys<U: Unit>(block: &Block, numbers: &[f32], units: &mut [U]) {
    let stride = block.panels() * LANES;
    let row = |m: usize| FloatSlice::F32(&numbers[m * stride..(m + 1) * stride]);
    for (units, m) in units.chunks_exact_mut(stride).zip((0..block.rows).step_by(U::VALUES)) {
        U::across(row(m), (m + 1 < block.rows).then(|| row(m + 1)), units);
    }
}

/// Replaces scores by softmax weights that are not yet divided by their sum. Writes the log-sum-exp
/// of each row to `lse` and returns the inverse of each row's sum.
#[inline(always)]
fn softmax(block: &Block, scale: f32, scores: &mut [f32], lse: &mut [f32]) -> [f32; QUERIES] {
    let panels = block.panels();
    let mut inverse = [0.0; QUERIES];
    let rows = scores.chunks_exact_mut(panels * LANES).zip(block.masks.chunks_exact(panels));
    for (((row, masks), lse), inverse) in rows.zip(lse).zip(&mut inverse) {
        let (top, total) = softmax_row(masks, scale, row);
        *lse = top + total.ln();
        *inverse = 1.0 / total;
    }
    inverse
}

/// Replaces a row of scores by `e^(scale · score - top)`, and masked ones by 0. Returns `top`, the
/// largest scaled score, and the sum of the row.
#[inline(always)]
pub(crate) fn softmax_row(masks: &[u16], scale: f32, row: &mut [f32]) -> (f32, f32) {
    let mut tops = [f32::NEG_INFINITY; LANES];
    for (scores, &mask) in row.as_chunks_mut::<LANES>().0.iter_mut().zip(masks) {
        for lane in 0..LANES {
            scores[lane] = if mask >> lane & 1 == 1 { scores[lane] * scale } else { f32::NEG_INFINITY };
            tops[lane] = if scores[lane] > tops[lane] { scores[lane] } else { tops[lane] };
        }
    }
    let top = tops.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut total = [0.0; LANES];
    for (scores, &mask) in row.as_chunks_mut::<LANES>().0.iter_mut().zip(masks) {
        for lane in 0..LANES {
            let weight = exp(scores[lane] - top);
            scores[lane] = if mask >> lane & 1 == 1 { weight } else { 0.0 };
            total[lane] += scores[lane];
        }
    }
    (top, add_lanes(total))
}

/// Writes rows of the gradient of queries, keys or values.
struct Gradient<'a, T> {
    head: Head<'a>,
    which: usize,
    /// The place of row 0.
    first: usize,
    d_qkv: Out<'a, MaybeUninit<T>>,
}

impl<T: Number> Sink for Gradient<'_, T> {
    #[inline(always)]
    fn row(&mut self, m: usize, panel: usize, sums: &mut [f32]) {
        let (head, layout, column) = (&self.head, self.head.layout, panel * LANES);
        let n = sums.len().min(layout.width - column);
        let first = self.which * layout.d() + head.column() + column;
        // SAFETY: each value of this head's columns is written once.
        #[allow(unsafe_code)]
        let out = unsafe { self.d_qkv.row(head.row(self.first + m), first, n) };
        for (out, &sum) in out.iter_mut().zip(&*sums) {
            out.write(T::nearest(sum));
        }
    }
}

/// The backward pass of one head, with `s = 1 / √K` and `dO` the gradient of the output `O`:
///
/// ```text
/// P  = exp(s Q Kᵀ - lse)       recomputed from the saved log-sum-exps
/// dV = Pᵀ dO
/// dP = dO Vᵀ
/// D  = rowsum(dO ∘ O)          equal to rowsum(dP ∘ P), but cheaper
/// dS = s P ∘ (dP - D)          gradient of the softmax; the scale s is included
/// dK = dSᵀ Q
/// dQ = dS K
/// ```
///
/// A block of queries completes its rows of `dQ`. It adds to `dK` and `dV`, which are written after
/// the last block.
pub(super) struct Backward<'a, S, T> {
    pub(super) head: Head<'a>,
    /// The gradient of `qkv`; written.
    pub(super) d_qkv: Out<'a, MaybeUninit<T>>,
    /// The log-sum-exp of the scaled scores of each place, `lse`.
    pub(super) sums: &'a [f32],
    /// The output of the forward pass, `O`.
    pub(super) output: FloatSlice<'a>,
    /// The gradient of the output, `dO`.
    pub(super) gradient: FloatSlice<'a>,
    pub(super) simd: std::marker::PhantomData<S>,
}

impl<S: Micro<Unit: Unit>, T: Number> Body for Backward<'_, S, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (head, size) = (self.head, Sizes::new::<S::Unit>(&self.head));
        let width = head.width_panels() * LANES;
        let [rows_along, rows_across] = [QUERIES * size.row, width * QUERIES / S::Unit::VALUES];
        let block_scores = size.scores / S::Unit::VALUES;
        let sizes = [size.places, size.places, size.columns, rows_along, rows_across, block_scores];
        let mut units = Scratch::<S::Unit>::new(sizes.iter().sum());
        let [keys, values, key_columns, block_rows, block_columns, weights] = split(&mut units, sizes);
        // K and V as right operands of Q Kᵀ and dO Vᵀ, and K as that of dS K.
        head.pack_places(K, keys);
        head.pack_places(V, values);
        head.pack_columns(K, key_columns);
        let gradients = head.panels() * LANES * width;
        let sizes = [size.scores, size.scores, gradients, gradients];
        let mut numbers = Scratch::<f32>::new(sizes.iter().sum());
        let [p, dp, dk, dv] = split(&mut numbers, sizes);
        dk.fill(0.0);
        dv.fill(0.0);
        for block in &head.plan.blocks {
            // P = exp(s Q Kᵀ - lse)
            pack_rows(block, size.row, block_rows, |place| head.get(Q, place));
            scores::<S>(block, size.row, block_rows, keys, p);
            probabilities(block, scale(&head), p, self.sums);
            // dV += Pᵀ dO
            pack_across_keys(block, p, weights);
            self.pack_block_columns(block, block_columns, |place| head.part(self.gradient, place));
            self.add_transposed_product(block, weights, block_columns, dv);
            // dP = dO Vᵀ
            pack_rows(block, size.row, block_rows, |place| head.part(self.gradient, place));
            scores::<S>(block, size.row, block_rows, values, dp);
            // dS = s P ∘ (dP - D), stored in `dp`; `self.dot` is D
            score_gradients(block, scale(&head), p, dp, |m| self.dot(block.first + m));
            // dK += dSᵀ Q
            pack_across_keys(block, dp, weights);
            self.pack_block_columns(block, block_columns, |place| head.get(Q, place));
            self.add_transposed_product(block, weights, block_columns, dk);
            // dQ = dS K
            pack_along_keys(block, dp, weights);
            let sink = Gradient { head, which: Q, first: block.first, d_qkv: self.d_qkv };
            weighted_sums::<S>(&head, block, weights, key_columns, sink);
        }
        for (which, gradients) in [(K, dk), (V, dv)] {
            let mut sink = Gradient { head, which, first: 0, d_qkv: self.d_qkv };
            for (place, row) in gradients.chunks_exact_mut(width).enumerate().take(head.layout.len) {
                sink.row(place, 0, row);
            }
        }
    }
}

impl<S: Micro<Unit: Unit>, T: Number> Backward<'_, S, T> {
    /// Returns `D` of one query, the dot product of its output and the output's gradient.
    #[inline(always)]
    fn dot(&self, place: usize) -> f32 {
        with_numbers!(self.head.part(self.output, place), output => {
            with_numbers!(self.head.part(self.gradient, place), gradient => {
                let mut lanes = [0.0; LANES];
                for (output, gradient) in output.chunks(LANES).zip(gradient.chunks(LANES)) {
                    let pairs = output.iter().zip(gradient);
                    lanes.iter_mut().zip(pairs).for_each(|(lane, (a, b))| *lane += a.value() * b.value());
                }
                add_lanes(lanes)
            })
        })
    }

    /// Packs the block's rows as a right operand: columns are the head's, and K runs along the
    /// queries.
    #[inline(always)]
    fn pack_block_columns<'b>(
        &self,
        block: &Block,
        packed: &mut [S::Unit],
        get: impl Fn(usize) -> FloatSlice<'b>,
    ) {
        for (p, panel) in packed.chunks_exact_mut(QUERIES / S::Unit::VALUES * LANES).enumerate() {
            let columns = LANES.min(self.head.layout.width - p * LANES);
            panel_across(|m| get(block.first + m).slice(p * LANES, columns), columns, block.rows, panel);
        }
    }

    /// Adds `aᵀ · b` to the gradients of the block's keys or values. `a` holds the block's scores,
    /// packed across keys; `b` the block's rows, packed by `pack_block_columns`.
    #[inline(always)]
    fn add_transposed_product(&self, block: &Block, a: &[S::Unit], b: &[S::Unit], gradients: &mut [f32]) {
        let width = self.head.width_panels() * LANES;
        let strides =
            Strides { row: 1, step: block.panels() * LANES, panel: QUERIES / S::Unit::VALUES * LANES };
        let mut done = 0;
        for &(first, count) in &block.runs {
            let (a, units) = (a[done * LANES..].as_ptr(), block.rows.div_ceil(S::Unit::VALUES));
            let segment = Segment { a, b: b.as_ptr(), units };
            // SAFETY: each step of `a` has one unit per key of the block, and `b` has a panel for
            // each 16 columns.
            #[allow(unsafe_code)]
            unsafe {
                let sink = Add { numbers: &mut gradients[first * LANES * width..], stride: width };
                S::product(count * LANES, self.head.width_panels(), &[segment], strides, sink);
            }
            done += count;
        }
    }
}

/// Replaces scores by the softmax's probabilities, `exp(scale · score - lse)`, and masked ones by
/// 0.
#[inline(always)]
fn probabilities(block: &Block, scale: f32, scores: &mut [f32], lse: &[f32]) {
    let panels = block.panels();
    let rows = scores.chunks_exact_mut(panels * LANES).zip(block.masks.chunks_exact(panels));
    for ((row, masks), &lse) in rows.zip(&lse[block.first..]) {
        for (scores, &mask) in row.as_chunks_mut::<LANES>().0.iter_mut().zip(masks) {
            for (lane, score) in scores.iter_mut().enumerate() {
                let weight = exp(*score * scale - lse);
                *score = if mask >> lane & 1 == 1 { weight } else { 0.0 };
            }
        }
    }
}

/// Replaces gradients of probabilities by gradients of scores: `dp = scale · p · (dp - dot)`.
#[inline(always)]
fn score_gradients(block: &Block, scale: f32, p: &[f32], dp: &mut [f32], dot: impl Fn(usize) -> f32) {
    let stride = block.panels() * LANES;
    for (m, (p, dp)) in p.chunks_exact(stride).zip(dp.chunks_exact_mut(stride)).enumerate().take(block.rows) {
        let dot = dot(m);
        dp.iter_mut().zip(p).for_each(|(dp, p)| *dp = p * (*dp - dot) * scale);
    }
}
