//! One head of one picture, forward and backward.

use std::mem::MaybeUninit;

use super::plan::{AttentionPlan, Block, QUERIES};
use crate::cpu::Body;
use crate::gemm::{FloatSlice, LANES, Micro, Out, Segment, Sink, Strides, Unit, panel_across, panel_along};
use crate::math::{Number, add_lanes, exp, with_numbers};
use crate::scratch::{Scratch, split};

/// Sizes of an attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) batch: usize,
    pub(super) len: usize,
    pub(super) n_heads: usize,
    /// Of a head.
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

/// What both passes read: a head's queries, keys and values, in working order.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    plan: &'a AttentionPlan,
    layout: Layout,
    /// Picture and head of it.
    at: [usize; 2],
    qkv: FloatSlice<'a>,
}

/// Where queries stand in `qkv`.
const Q: usize = 0;
/// Where keys stand.
const K: usize = 1;
/// Where values stand.
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

    /// The row of memory of the position at `place`.
    #[inline(always)]
    fn row(&self, place: usize) -> usize {
        self.at[0] * self.layout.len + self.plan.order[place]
    }

    /// The first column of the head.
    #[inline(always)]
    fn column(&self) -> usize {
        self.at[1] * self.layout.width
    }

    /// Query, key or value at `place`.
    #[inline(always)]
    fn get(&self, which: usize, place: usize) -> FloatSlice<'a> {
        let start = (self.row(place) * 3 + which) * self.layout.d() + self.column();
        self.qkv.slice(start, self.layout.width)
    }

    /// The head's part of a `[B, T, H · K]` tensor at `place`.
    #[inline(always)]
    fn part<'b>(&self, of: FloatSlice<'b>, place: usize) -> FloatSlice<'b> {
        of.slice(self.row(place) * self.layout.d() + self.column(), self.layout.width)
    }

    /// Panels of keys.
    #[inline(always)]
    fn panels(&self) -> usize {
        self.layout.len.div_ceil(LANES)
    }

    /// Panels of a head's columns.
    #[inline(always)]
    fn wide(&self) -> usize {
        self.layout.width.div_ceil(LANES)
    }

    /// Panels whose columns are places and whose K is the head's width.
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

    /// Panels whose columns are the head's and whose K is places.
    #[inline(always)]
    fn pack_columns<U: Unit>(&self, which: usize, packed: &mut [U]) {
        let (len, width) = (self.layout.len, self.layout.width);
        for (p, panel) in packed.chunks_exact_mut(self.panels() * LANES / U::VALUES * LANES).enumerate() {
            let columns = LANES.min(width - p * LANES);
            panel_across(|place| self.get(which, place).slice(p * LANES, columns), columns, len, panel);
        }
    }
}

/// Sizes of working memory, in units or numbers.
struct Sizes {
    /// A row of a head: its width, along K.
    row: usize,
    /// All keys (or values) as columns.
    places: usize,
    /// All keys (or values) as K.
    columns: usize,
    /// Scores of a block's queries.
    scores: usize,
}

impl Sizes {
    #[inline(always)]
    fn new<U: Unit>(head: &Head<'_>) -> Sizes {
        let row = head.layout.width.div_ceil(U::VALUES);
        let columns = head.wide() * LANES * head.panels() * LANES / U::VALUES;
        Sizes { row, places: head.panels() * LANES * row, columns, scores: QUERIES * head.panels() * LANES }
    }
}

/// `a · bᵀ` of a block's rows `a` and all places' rows `b` (packed as columns), for the panels that the block sees.
#[inline(always)]
fn scores<S: Micro<Unit: Unit>>(block: &Block, row: usize, a: &[S::Unit], b: &[S::Unit], scores: &mut [f32]) {
    let stride = block.panels() * LANES;
    let strides = Strides { row, step: 1, panel: row * LANES };
    let mut done = 0;
    for &(first, count) in &block.runs {
        let segment = Segment { a: a.as_ptr(), b: b[first * strides.panel..].as_ptr(), units: row };
        // SAFETY: `a` holds the block's rows, `b` all panels, both `row` units long.
        #[allow(unsafe_code)]
        unsafe {
            let sink = Copy { numbers: &mut scores[done * LANES..], stride };
            S::product(block.rows, count, &[segment], strides, sink);
        }
        done += count;
    }
}

/// `a · b` of a block's rows `a` over the panels it sees and all places (packed as K).
#[inline(always)]
fn weigh<S: Micro<Unit: Unit>>(
    head: &Head<'_>,
    block: &Block,
    a: &[S::Unit],
    b: &[S::Unit],
    sink: impl Sink,
) {
    let units = LANES / S::Unit::VALUES; // of a panel's keys
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
        S::product(block.rows, head.wide(), &segments, strides, sink);
    }
}

/// Keeps sums as they are.
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

/// Adds sums up.
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

/// The forward pass of a head.
pub(super) struct Forward<'a, S, T> {
    pub(super) head: Head<'a>,
    pub(super) output: Out<'a, MaybeUninit<T>>,
    /// Log-sum-exp of each place's scores.
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
            rows(block, size.row, queries, |place| head.get(Q, place));
            scores::<S>(block, size.row, queries, keys, &mut numbers);
            let sums = &mut self.sums[block.first..block.first + block.rows];
            let inverse = softmax(block, scale(&head), &mut numbers, sums);
            along(block, &numbers, weights);
            weigh::<S>(&head, block, weights, values, Averages { head, block, inverse, output: self.output });
        }
    }
}

/// Writes rows of the output, each over its softmax's sum.
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
        // SAFETY: this head's columns, each once.
        #[allow(unsafe_code)]
        let out = unsafe { self.output.row(head.row(self.block.first + m), head.column() + column, n) };
        for (out, sum) in out.iter_mut().zip(sums) {
            out.write(T::nearest(*sum * self.inverse[m]));
        }
    }
}

/// `1 / √K`
#[inline(always)]
fn scale(head: &Head<'_>) -> f32 {
    1.0 / (head.layout.width as f32).sqrt()
}

/// The block's rows as units along K.
#[inline(always)]
fn rows<'a, U: Unit>(block: &Block, row: usize, units: &mut [U], get: impl Fn(usize) -> FloatSlice<'a>) {
    for (m, units) in units.chunks_exact_mut(row).enumerate().take(block.rows) {
        U::along(get(block.first + m), units);
    }
}

/// Rows over the block's keys as units along them.
#[inline(always)]
fn along<U: Unit>(block: &Block, numbers: &[f32], units: &mut [U]) {
    let stride = block.panels() * LANES;
    let rows = numbers.chunks_exact(stride).zip(units.chunks_exact_mut(stride / U::VALUES));
    for (numbers, units) in rows.take(block.rows) {
        U::along(FloatSlice::F32(numbers), units);
    }
}

/// Rows over the block's keys as units across them: neighbouring rows face each other.
#[inline(always)]
fn across<U: Unit>(block: &Block, numbers: &[f32], units: &mut [U]) {
    let stride = block.panels() * LANES;
    let row = |m: usize| FloatSlice::F32(&numbers[m * stride..(m + 1) * stride]);
    for (units, m) in units.chunks_exact_mut(stride).zip((0..block.rows).step_by(U::VALUES)) {
        U::across(row(m), (m + 1 < block.rows).then(|| row(m + 1)), units);
    }
}

/// Scores become softmax weights before their division; returns the inverse of each row's sum, writes log-sum-exps.
#[inline(always)]
fn softmax(block: &Block, scale: f32, scores: &mut [f32], sums: &mut [f32]) -> [f32; QUERIES] {
    let panels = block.panels();
    let mut inverse = [0.0; QUERIES];
    let rows = scores.chunks_exact_mut(panels * LANES).zip(block.masks.chunks_exact(panels));
    for (((row, masks), sum), inverse) in rows.zip(sums).zip(&mut inverse) {
        let (top, total) = softmax_row(masks, scale, row);
        *sum = top + total.ln();
        *inverse = 1.0 / total;
    }
    inverse
}

/// A row of scores becomes `e^(scale · score - top)`, hidden ones 0; returns `top` and the row's sum.
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
        // SAFETY: this head's columns, each once.
        #[allow(unsafe_code)]
        let out = unsafe { self.d_qkv.row(head.row(self.first + m), first, n) };
        for (out, &sum) in out.iter_mut().zip(&*sums) {
            out.write(T::nearest(sum));
        }
    }
}

/// The backward pass of a head.
pub(super) struct Backward<'a, S, T> {
    pub(super) head: Head<'a>,
    pub(super) d_qkv: Out<'a, MaybeUninit<T>>,
    pub(super) sums: &'a [f32],
    pub(super) output: FloatSlice<'a>,
    pub(super) gradient: FloatSlice<'a>,
    pub(super) simd: std::marker::PhantomData<S>,
}

impl<S: Micro<Unit: Unit>, T: Number> Body for Backward<'_, S, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (head, size) = (self.head, Sizes::new::<S::Unit>(&self.head));
        let width = head.wide() * LANES;
        let [rows_along, rows_across] = [QUERIES * size.row, width * QUERIES / S::Unit::VALUES];
        let block_scores = size.scores / S::Unit::VALUES;
        let sizes = [size.places, size.places, size.columns, rows_along, rows_across, block_scores];
        let mut units = Scratch::<S::Unit>::new(sizes.iter().sum());
        let [keys, values, key_columns, along_k, across_k, weights] = split(&mut units, sizes);
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
            rows(block, size.row, along_k, |place| head.get(Q, place));
            scores::<S>(block, size.row, along_k, keys, p);
            probabilities(block, scale(&head), p, self.sums);
            across(block, p, weights);
            self.columns(block, across_k, |place| head.part(self.gradient, place));
            self.gather(block, weights, across_k, dv);
            rows(block, size.row, along_k, |place| head.part(self.gradient, place));
            scores::<S>(block, size.row, along_k, values, dp);
            score_gradients(block, scale(&head), p, dp, |m| self.dot(block.first + m));
            across(block, dp, weights);
            self.columns(block, across_k, |place| head.get(Q, place));
            self.gather(block, weights, across_k, dk);
            along(block, dp, weights);
            let sink = Gradient { head, which: Q, first: block.first, d_qkv: self.d_qkv };
            weigh::<S>(&head, block, weights, key_columns, sink);
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
    /// `output · gradient` at `place`.
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

    /// Panels of the head's columns whose K is the block's rows.
    #[inline(always)]
    fn columns<'b>(&self, block: &Block, packed: &mut [S::Unit], get: impl Fn(usize) -> FloatSlice<'b>) {
        for (p, panel) in packed.chunks_exact_mut(QUERIES / S::Unit::VALUES * LANES).enumerate() {
            let columns = LANES.min(self.head.layout.width - p * LANES);
            panel_across(|m| get(block.first + m).slice(p * LANES, columns), columns, block.rows, panel);
        }
    }

    /// Adds `weightsᵀ · rows` to the gradients of the block's keys or values.
    #[inline(always)]
    fn gather(&self, block: &Block, weights: &[S::Unit], rows: &[S::Unit], gradients: &mut [f32]) {
        let width = self.head.wide() * LANES;
        let strides =
            Strides { row: 1, step: block.panels() * LANES, panel: QUERIES / S::Unit::VALUES * LANES };
        let mut done = 0;
        for &(first, count) in &block.runs {
            let (a, units) = (weights[done * LANES..].as_ptr(), block.rows.div_ceil(S::Unit::VALUES));
            let segment = Segment { a, b: rows.as_ptr(), units };
            // SAFETY: `weights` has a unit for each key of the block at each step, `rows` a panel for each column.
            #[allow(unsafe_code)]
            unsafe {
                let sink = Add { numbers: &mut gradients[first * LANES * width..], stride: width };
                S::product(count * LANES, self.head.wide(), &[segment], strides, sink);
            }
            done += count;
        }
    }
}

/// Scores become the softmax's weights, by the log-sum-exps of the forward pass.
#[inline(always)]
fn probabilities(block: &Block, scale: f32, scores: &mut [f32], sums: &[f32]) {
    let panels = block.panels();
    let rows = scores.chunks_exact_mut(panels * LANES).zip(block.masks.chunks_exact(panels));
    for ((row, masks), &sum) in rows.zip(&sums[block.first..]) {
        for (scores, &mask) in row.as_chunks_mut::<LANES>().0.iter_mut().zip(masks) {
            for (lane, score) in scores.iter_mut().enumerate() {
                let weight = exp(*score * scale - sum);
                *score = if mask >> lane & 1 == 1 { weight } else { 0.0 };
            }
        }
    }
}

/// Gradients of weights become those of scores: `p · (dp - dot) · scale`.
#[inline(always)]
fn score_gradients(block: &Block, scale: f32, p: &[f32], dp: &mut [f32], dot: impl Fn(usize) -> f32) {
    let stride = block.panels() * LANES;
    for (m, (p, dp)) in p.chunks_exact(stride).zip(dp.chunks_exact_mut(stride)).enumerate().take(block.rows) {
        let dot = dot(m);
        dp.iter_mut().zip(p).for_each(|(dp, p)| *dp = p * (*dp - dot) * scale);
    }
}
