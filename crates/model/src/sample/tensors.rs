//! Sampling on a device with Burn's operations: the weights, the KV caches and a step stay on the
//! device, and only the logits are transferred.
//!
//! A cache of a layer is divided into *lanes*: the rows that one query may attend to. The column
//! pattern has one lane per column of the grid, the others have one lane.

use burn::tensor::{Bool, Device, IndexingUpdateOp, Int, Tensor, TensorData};
use tessera_kernels::Activation;
use tessera_kernels::decode::{CachedKeys, attend_composed};

use super::sampler::Next;
use crate::prior::{Block, Pattern, Prior, PriorConfig, Stream};

/// A prior whose steps run on its device.
pub(super) struct Tensors {
    prior: Prior,
    /// The embeddings of image positions, `[grid², D]`.
    positions: Tensor<2>,
    /// The different patterns of the layers.
    lanes: Vec<Lanes>,
    device: Device,
}

/// How a pattern's cache is divided, and which rows of its lane each position attends to.
struct Lanes {
    pattern: Pattern,
    /// The number of lanes of a picture.
    n: usize,
    /// The number of rows of a lane.
    rows: usize,
    /// `[grid², rows]`: true for rows that the query at this position does not attend to.
    hidden: Tensor<2, Bool>,
}

/// The keys and values of one layer, `[sequences · rows, D]` each. A sequence is a caption or a lane
/// of a picture.
pub(super) struct TensorCache {
    keys: Tensor<2>,
    values: Tensor<2>,
    rows: usize,
}

/// What a step needs for all layers with the same pattern.
struct Places {
    /// The sequence of each row: the lane of its slot that it attends to.
    sequences: Tensor<1, Int>,
    /// The cache row that receives its key and value.
    rows: Tensor<1, Int>,
    /// `[rows, cache rows of a lane]`
    hidden: Tensor<2, Bool>,
}

impl Tensors {
    /// Prepares a prior whose matrices are [`Prior::narrowed`].
    pub(super) fn new(prior: &Prior) -> Tensors {
        let device = prior.device().without_autodiff();
        let mut lanes: Vec<Lanes> = Vec::new();
        for block in &prior.blocks {
            if !lanes.iter().any(|known| known.pattern == block.pattern) {
                lanes.push(Lanes::new(block.pattern, prior.config(), &device));
            }
        }
        let positions = prior.embed.image_positions();
        Tensors { prior: prior.clone(), positions, lanes, device }
    }

    /// The index of a pattern in `lanes`.
    fn index_of(&self, pattern: Pattern) -> usize {
        let found = self.lanes.iter().position(|lanes| lanes.pattern == pattern);
        found.expect("`new` collects the patterns of all layers")
    }

    /// Empty caches, one per layer, for `n` captions.
    pub(super) fn text_caches(&self, n: usize) -> Vec<TensorCache> {
        let rows = self.prior.config().text_len;
        self.prior.blocks.iter().map(|_| self.cache(n, rows)).collect()
    }

    /// Empty caches, one per layer, for `n` pictures in progress.
    pub(super) fn picture_caches(&self, n: usize) -> Vec<TensorCache> {
        let cache = |block: &Block| {
            let lanes = &self.lanes[self.index_of(block.pattern)];
            self.cache(n * lanes.n, lanes.rows)
        };
        self.prior.blocks.iter().map(cache).collect()
    }

    fn cache(&self, sequences: usize, rows: usize) -> TensorCache {
        let shape = [sequences * rows, self.prior.config().d_model];
        let zeros = || tessera_kernels::narrowed(self.prior.cpu(), Tensor::zeros(shape, &self.device));
        TensorCache { keys: zeros(), values: zeros(), rows }
    }

    /// Runs the captions of `stream` through the text positions of `prior`, and stores the keys and
    /// values of caption `i` as sequence `prefixes[i]` of `caches`.
    pub(super) fn read_into(
        &self,
        prior: &Prior,
        stream: &Stream,
        prefixes: &[usize],
        caches: &mut [TensorCache],
    ) {
        let text_len = self.prior.config().text_len;
        let rows = prefixes.iter().flat_map(|prefix| prefix * text_len..(prefix + 1) * text_len);
        let rows = self.ints(rows);
        for (cache, qkv) in caches.iter_mut().zip(prior.text_states(stream)) {
            let [b, t, width] = qkv.dims();
            cache.put(&rows, &qkv.reshape([b * t, width]));
        }
    }

    /// Computes the logits of the next tokens, `[rows, image_vocab]`.
    pub(super) fn step(
        &self,
        text: &[TensorCache],
        pictures: &mut [TensorCache],
        next: &[Next],
    ) -> Tensor<2> {
        let config = self.prior.config();
        let at = self.ints(next.iter().map(|next| next.at));
        let tokens = self.ints(next.iter().map(|next| next.input(config)));
        let captions = self.captions(next);
        let places: Vec<Places> = self.lanes.iter().map(|lanes| self.places(lanes, next, &at)).collect();
        let embedded = self.prior.embed.image.val().select(0, tokens);
        let mut x = embedded + self.positions.clone().select(0, at);
        for ((block, text), cache) in self.prior.blocks.iter().zip(text).zip(pictures) {
            let places = &places[self.index_of(block.pattern)];
            let qkv = block.qkv.activated(block.attn_norm.forward(x.clone()), Activation::None);
            cache.put(&places.rows, &qkv);
            let own = cache.of(&places.sequences, block.n_heads, Some(places.hidden.clone()));
            let queries = heads(qkv.narrow(1, 0, config.d_model), block.n_heads);
            let attended =
                attend_composed(block.cpu, queries, &[text.of(&captions, block.n_heads, None), own]);
            x = block.attn_out.add_to(x, attended);
            let hidden = block.mlp_in.activated(block.mlp_norm.forward(x.clone()), Activation::Gelu);
            x = block.mlp_out.add_to(x, hidden);
        }
        self.prior.image_head.forward(self.prior.norm.forward(x))
    }

    /// The captions of the rows; one that all rows share occurs once.
    fn captions(&self, next: &[Next]) -> Tensor<1, Int> {
        let first = next.iter().take(1).map(|next| next.caption);
        match next.iter().all(|row| row.caption == next[0].caption) {
            true => self.ints(first),
            false => self.ints(next.iter().map(|next| next.caption)),
        }
    }

    fn places(&self, lanes: &Lanes, next: &[Next], at: &Tensor<1, Int>) -> Places {
        let grid = self.prior.config().grid;
        let place = |next: &Next| {
            let row = lanes.pattern.cache_row(next.at, grid);
            (next.slot * lanes.n + row / lanes.rows, next.slot * lanes.n * lanes.rows + row)
        };
        Places {
            sequences: self.ints(next.iter().map(|next| place(next).0)),
            rows: self.ints(next.iter().map(|next| place(next).1)),
            hidden: lanes.hidden.clone().select(0, at.clone()),
        }
    }

    fn ints(&self, values: impl Iterator<Item = usize>) -> Tensor<1, Int> {
        let values: Vec<i32> = values.map(|value| value as i32).collect();
        let n = values.len();
        Tensor::from_data(TensorData::new(values, [n]), &self.device)
    }
}

impl Lanes {
    fn new(pattern: Pattern, config: &PriorConfig, device: &Device) -> Lanes {
        let (grid, cells) = (config.grid, config.image_len());
        let n = match pattern {
            Pattern::Column => grid,
            Pattern::Causal | Pattern::Row | Pattern::Conv { .. } => 1,
        };
        let rows = pattern.cache_rows(grid) / n;
        let mut hidden = vec![true; cells * rows];
        for query in 0..cells {
            for key in (0..=query).filter(|&key| pattern.attends_in_image(query, key, grid)) {
                hidden[query * rows + pattern.cache_row(key, grid) % rows] = false;
            }
        }
        let hidden = Tensor::from_data(TensorData::new(hidden, [cells, rows]), device);
        Lanes { pattern, n, rows, hidden }
    }
}

impl TensorCache {
    /// Stores the keys and values of `qkv`, `[n, 3D]`, in these rows.
    fn put(&mut self, rows: &Tensor<1, Int>, qkv: &Tensor<2>) {
        let d = qkv.dims()[1] / 3;
        let put = |cache: &mut Tensor<2>, part: usize| {
            let new = qkv.clone().narrow(1, part * d, d);
            cache.inplace(|cache| cache.select_assign(0, rows.clone(), new, IndexingUpdateOp::Assign));
        };
        put(&mut self.keys, 1);
        put(&mut self.values, 2);
    }

    /// The keys and values of some sequences, `[n, rows, H, K]`.
    fn of(&self, sequences: &Tensor<1, Int>, n_heads: usize, hidden: Option<Tensor<2, Bool>>) -> CachedKeys {
        let chosen = |cache: &Tensor<2>| {
            let [all, d] = cache.dims();
            let cache = cache.clone().reshape([all / self.rows, self.rows * d]);
            let [n] = sequences.dims();
            cache.select(0, sequences.clone()).reshape([n, self.rows, n_heads, d / n_heads])
        };
        CachedKeys { keys: chosen(&self.keys), values: chosen(&self.values), hidden }
    }
}

/// `[n, D]` → `[n, H, K]`.
fn heads(x: Tensor<2>, n_heads: usize) -> Tensor<3> {
    let [n, d] = x.dims();
    x.reshape([n, n_heads, d / n_heads])
}
