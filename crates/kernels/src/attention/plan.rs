//! Who may look at whom, as the kernels see it: blocks of queries, panels of keys, a bit for each pair.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::gemm::LANES;

/// Queries that are worked on together.
pub(super) const QUERIES: usize = 64;
/// Added to the score of a key that a query may not see.
const HIDDEN: f32 = -1e9;

/// Which of `len` positions each position may look at, cut for the kernels. Made once for a pattern.
#[derive(Clone)]
pub struct AttentionPlan {
    len: usize,
    /// The position at each place of the working order.
    pub(super) order: Vec<usize>,
    pub(super) blocks: Vec<Block>,
    /// Copies of the plan in the memory of devices.
    on_devices: Arc<Mutex<Vec<OnDevice>>>,
}

/// A device, and the plan in its memory.
type OnDevice = (Device, Arc<DevicePlan>);

/// A plan in a device's memory.
pub(super) struct DevicePlan {
    /// The position at each place and the place of each position, `[T]` each; none if they are the same.
    orders: Option<[Tensor<1, Int>; 2]>,
    /// The additive mask of each block, `[1, 1, rows, keys]`.
    pub(super) blocks: Vec<Tensor<4>>,
}

impl DevicePlan {
    /// Positions `[B, T, D]` in working order.
    pub(super) fn to_working_order(&self, x: Tensor<3>) -> Tensor<3> {
        match &self.orders {
            Some([positions, _]) => x.select(1, positions.clone()),
            None => x,
        }
    }

    /// The inverse of [`DevicePlan::to_working_order`].
    pub(super) fn to_stream_order(&self, x: Tensor<3>) -> Tensor<3> {
        match &self.orders {
            Some([_, places]) => x.select(1, places.clone()),
            None => x,
        }
    }
}

/// Neighbouring places, as queries, and the panels of keys that any of them sees.
#[derive(Clone)]
pub(super) struct Block {
    /// The first place, and how many there are.
    pub(super) first: usize,
    pub(super) rows: usize,
    /// Runs of neighbouring panels: the first one, and how many there are.
    pub(super) runs: Vec<(usize, usize)>,
    /// For each row and panel in turn: bit `i` is set if the row sees the panel's key `i`.
    pub(super) masks: Vec<u16>,
}

impl Block {
    /// Panels in all runs.
    pub(super) fn panels(&self) -> usize {
        self.runs.iter().map(|&(_, count)| count).sum()
    }

    /// Places of the keys in all runs, of `len` in all: runs of neighbours, the first one and how many there are.
    fn key_runs(&self, len: usize) -> impl Iterator<Item = (usize, usize)> {
        let run = move |&(first, count): &(usize, usize)| {
            (first * LANES, len.min((first + count) * LANES) - first * LANES)
        };
        self.runs.iter().map(run)
    }

    /// The keys in all runs, of `len` along dimension `dim`.
    pub(super) fn keys(&self, all: &Tensor<4>, dim: usize, len: usize) -> Tensor<4> {
        let parts = self.key_runs(len).map(|(first, count)| all.clone().narrow(dim, first, count));
        Tensor::cat(parts.collect(), dim)
    }

    /// The additive mask of its queries and the keys in all runs, `[1, 1, rows, keys]`.
    fn mask(&self, len: usize, device: &Device) -> Tensor<4> {
        let keys: usize = self.key_runs(len).map(|(_, count)| count).sum();
        // Only the last panel of all can be cut short, and it is the last of the block.
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
    /// The plan of `sees(query, key)` among positions `0 .. order.len()`.
    ///
    /// `order` lists every position once. Queries that stand together in it are worked on together, so the fewer keys
    /// they see between them the better: a grid's columns should stand together if states look along columns.
    ///
    /// # Panics
    /// If `order` is not a permutation, or a position does not see itself.
    pub fn new(order: Vec<usize>, sees: impl Fn(usize, usize) -> bool) -> AttentionPlan {
        let len = order.len();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..len), "an order of {len} positions must name each of them once");
        assert!((0..len).all(|position| sees(position, position)), "every position must see itself");
        let mask = |query: usize, panel: usize| {
            let keys = panel * LANES..len.min((panel + 1) * LANES);
            keys.fold(0, |mask, key| {
                mask | u16::from(sees(order[query], order[key])) << (key - panel * LANES)
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

    /// The plan in the memory of `device`, brought there once.
    pub(super) fn device_masks(&self, device: &Device) -> Arc<DevicePlan> {
        let mut known = self.on_devices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, plan)) = known.iter().find(|(of, _)| of == device) {
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

    /// Number of positions.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no positions.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Pairs of query and key that the kernels multiply; at least those that see each other.
    pub fn pairs(&self) -> usize {
        self.blocks.iter().map(|block| block.rows * block.panels() * LANES).sum()
    }

    /// The additive mask `[1, 1, len, len]` that says the same.
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

/// Runs of neighbours in a rising list.
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
    fn the_mask_is_what_sees_says_in_any_order() {
        let sees = |query: usize, key: usize| key <= query && (query - key).is_multiple_of(3);
        let turned: Vec<usize> = (0..100).map(|place| place * 37 % 100).collect();
        for order in [(0..100).collect(), turned] {
            let plan = AttentionPlan::new(order, sees);
            let mask = plan.mask(&Device::flex()).into_data().try_to_vec::<f32>().unwrap();
            for query in 0..100 {
                for key in 0..100 {
                    assert_eq!(mask[query * 100 + key] == 0.0, sees(query, key), "{query} {key}");
                }
            }
        }
    }

    #[test]
    fn an_order_that_fits_saves_work() {
        let column = |query: usize, key: usize| key <= query && (query - key).is_multiple_of(32);
        let raster = AttentionPlan::new((0..1024).collect(), column);
        let columns =
            AttentionPlan::new((0..1024).map(|place| place % 32 * 32 + place / 32).collect(), column);
        assert!(columns.pairs() * 8 < raster.pairs(), "{columns:?} against {raster:?}");
    }
}
