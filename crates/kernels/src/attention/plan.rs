//! Which query may attend to which key, in the form that the kernels read: blocks of queries,
//! panels of 16 keys, and one mask bit per pair.
//!
//! A *position* is an index into the sequence. A *place* is an index into the plan's working order,
//! which puts queries that attend to the same keys next to each other.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::gemm::LANES;

/// The number of queries in a block.
pub(super) const QUERIES: usize = 64;
/// The value added to the score of a key that a query may not attend to.
const HIDDEN: f32 = -1e9;

/// The attention pattern over `len` positions, cut into blocks for the kernels. Build it once per
/// pattern.
#[derive(Clone)]
pub struct AttentionPlan {
    len: usize,
    /// The position at each place of the working order.
    pub(super) order: Vec<usize>,
    pub(super) blocks: Vec<Block>,
    /// Copies of the plan in the memory of devices.
    on_devices: Arc<Mutex<Vec<OnDevice>>>,
}

/// A device and the plan in its memory.
type OnDevice = (Device, Arc<DevicePlan>);

/// A plan in a device's memory.
pub(super) struct DevicePlan {
    /// The position at each place, and the place of each position, `[T]` each. `None` if the
    /// working order is the sequence's order.
    orders: Option<[Tensor<1, Int>; 2]>,
    /// The additive mask of each block, `[1, 1, rows, keys]`.
    pub(super) blocks: Vec<Tensor<4>>,
}

impl DevicePlan {
    /// Reorders `[B, T, D]` from sequence order to working order.
    pub(super) fn to_working_order(&self, x: Tensor<3>) -> Tensor<3> {
        match &self.orders {
            Some([positions, _]) => x.select(1, positions.clone()),
            None => x,
        }
    }

    /// Inverts [`DevicePlan::to_working_order`].
    pub(super) fn to_stream_order(&self, x: Tensor<3>) -> Tensor<3> {
        match &self.orders {
            Some([_, places]) => x.select(1, places.clone()),
            None => x,
        }
    }
}

/// A block of queries at neighbouring places, and the panels of keys that at least one of them may
/// attend to.
#[derive(Clone)]
pub(super) struct Block {
    /// The first place, and the number of places.
    pub(super) first: usize,
    pub(super) rows: usize,
    /// Runs of neighbouring panels: the first panel and the number of panels of each.
    pub(super) runs: Vec<(usize, usize)>,
    /// One mask per row and panel, row by row: bit `i` is set if the row's query may attend to key
    /// `i` of the panel.
    pub(super) masks: Vec<u16>,
}

impl Block {
    /// The number of panels in all runs.
    pub(super) fn panels(&self) -> usize {
        self.runs.iter().map(|&(_, count)| count).sum()
    }

    /// The places of the block's keys, as runs of neighbours: the first place and the number of
    /// places of each. `len` is the number of places in the plan.
    fn key_runs(&self, len: usize) -> impl Iterator<Item = (usize, usize)> {
        let run = move |&(first, count): &(usize, usize)| {
            (first * LANES, len.min((first + count) * LANES) - first * LANES)
        };
        self.runs.iter().map(run)
    }

    /// Returns the keys in the block's runs, cut out of `all`, which holds `len` keys along
    /// dimension `dim`.
    pub(super) fn keys(&self, all: &Tensor<4>, dim: usize, len: usize) -> Tensor<4> {
        let parts = self.key_runs(len).map(|(first, count)| all.clone().narrow(dim, first, count));
        Tensor::cat(parts.collect(), dim)
    }

    /// Returns the block's additive mask, `[1, 1, rows, keys]`.
    fn mask(&self, len: usize, device: &Device) -> Tensor<4> {
        let keys: usize = self.key_runs(len).map(|(_, count)| count).sum();
        // Only the plan's last panel can have fewer than 16 keys. It is the last panel of any block
        // that contains it, so `key / LANES` is the right panel for every key.
        let row = |row: usize| {
            let masks = &self.masks[row * self.panels()..(row + 1) * self.panels()];
            (0..keys).map(move |key| match masks[key / LANES] >> (key % LANES) & 1 {
                0 => HIDDEN,
                _ => 0.0,
            })
        };
        let values: Vec<f32> = (0..self.rows).flat_map(row).collect();
        Tensor::from_data(TensorData::new(values, [1, 1, self.rows, keys]), device)
    }
}

impl AttentionPlan {
    /// Builds the plan for positions `0 .. order.len()`, where `attends(query, key)` says whether
    /// the query may attend to the key.
    ///
    /// `order` is the working order and lists every position once. Each group of 64 neighbours in
    /// it becomes a block, so the plan is cheapest when neighbours attend to the same keys. For
    /// column attention over a grid, put the positions of a column next to each other.
    ///
    /// # Panics
    /// If `order` is not a permutation, or a position may not attend to itself.
    pub fn new(order: Vec<usize>, attends: impl Fn(usize, usize) -> bool) -> AttentionPlan {
        let len = order.len();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..len), "an order of {len} positions must name each of them once");
        assert!((0..len).all(|position| attends(position, position)), "every position must attend to itself");
        let mask = |query: usize, panel: usize| {
            let keys = panel * LANES..len.min((panel + 1) * LANES);
            keys.fold(0, |mask, key| {
                mask | u16::from(attends(order[query], order[key])) << (key - panel * LANES)
            })
        };
        let block = |first: usize| {
            let rows = QUERIES.min(len - first);
            let all: Vec<Vec<u16>> = (0..len.div_ceil(LANES))
                .map(|panel| (first..first + rows).map(|query| mask(query, panel)).collect())
                .collect();
            let panels: Vec<usize> =
                (0..all.len()).filter(|&panel| all[panel].iter().any(|&mask| mask != 0)).collect();
            let masks = (0..rows)
                .flat_map(|row| panels.iter().map(|&panel| all[panel][row]).collect::<Vec<_>>())
                .collect();
            Block { first, rows, runs: runs(&panels), masks }
        };
        let blocks = (0..len).step_by(QUERIES).map(block).collect();
        AttentionPlan { len, order, blocks, on_devices: Arc::default() }
    }

    /// Returns the plan in the memory of `device`; it is copied there on first use.
    pub(super) fn device_masks(&self, device: &Device) -> Arc<DevicePlan> {
        let mut known = self.on_devices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, plan)) = known.iter().find(|(known_device, _)| known_device == device) {
            return plan.clone();
        }
        let indices = |values: Vec<i32>| Tensor::from_data(TensorData::new(values, [self.len]), device);
        let in_order = self.order.iter().copied().eq(0..self.len);
        let orders = (!in_order).then(|| {
            let mut places = vec![0; self.len];
            self.order.iter().enumerate().for_each(|(place, &position)| places[position] = place as i32);
            [indices(self.order.iter().map(|&position| position as i32).collect()), indices(places)]
        });
        let blocks = self.blocks.iter().map(|block| block.mask(self.len, device)).collect();
        let plan = Arc::new(DevicePlan { orders, blocks });
        known.push((device.clone(), plan.clone()));
        plan
    }

    /// Returns the number of positions.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are no positions.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the number of query-key pairs that the kernels multiply. This is at least the number
    /// of visible pairs.
    pub fn pairs(&self) -> usize {
        self.blocks.iter().map(|block| block.rows * block.panels() * LANES).sum()
    }

    /// Returns the pattern as an additive mask, `[1, 1, len, len]`, in sequence order.
    pub fn mask(&self, device: &Device) -> Tensor<4> {
        let mut values = vec![HIDDEN; self.len * self.len];
        for block in &self.blocks {
            let keys: Vec<usize> = block
                .runs
                .iter()
                .flat_map(|&(first, count)| first * LANES..(first + count) * LANES)
                .collect();
            for row in 0..block.rows {
                let masks = &block.masks[row * block.panels()..(row + 1) * block.panels()];
                for (i, &key) in keys.iter().enumerate() {
                    if masks[i / LANES] >> (i % LANES) & 1 == 1 {
                        values[self.order[block.first + row] * self.len + self.order[key]] = 0.0;
                    }
                }
            }
        }
        Tensor::from_data(TensorData::new(values, [1, 1, self.len, self.len]), device)
    }
}

impl fmt::Debug for AttentionPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plan of {} positions, {} blocks, {} pairs", self.len, self.blocks.len(), self.pairs())
    }
}

/// Groups a rising list of panels into runs of neighbours: the first panel and the number of panels
/// of each.
pub(crate) fn runs(panels: &[usize]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &panel in panels {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == panel => *count += 1,
            _ => runs.push((panel, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mask_in_any_order_equals_the_predicate() {
        let attends = |query: usize, key: usize| key <= query && (query - key).is_multiple_of(3);
        let shuffled: Vec<usize> = (0..100).map(|place| place * 37 % 100).collect();
        for order in [(0..100).collect(), shuffled] {
            let plan = AttentionPlan::new(order, attends);
            let mask = plan.mask(&Device::flex()).into_data().try_to_vec::<f32>().unwrap();
            for query in 0..100 {
                for key in 0..100 {
                    assert_eq!(mask[query * 100 + key] == 0.0, attends(query, key), "{query} {key}");
                }
            }
        }
    }

    #[test]
    fn column_order_saves_pairs_of_column_attention() {
        let column = |query: usize, key: usize| key <= query && (query - key).is_multiple_of(32);
        let raster = AttentionPlan::new((0..1024).collect(), column);
        let columns =
            AttentionPlan::new((0..1024).map(|place| place % 32 * 32 + place / 32).collect(), column);
        assert!(columns.pairs() * 8 < raster.pairs(), "{columns:?} against {raster:?}");
    }
}
