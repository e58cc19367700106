//! The KV cache of one layer, in the packed layout that the micro-kernel reads. A cache row holds
//! the key and the value of one position.

use rayon::prelude::*;

use crate::attention::plan::runs;
use crate::cpu::Cpu;
use crate::gemm::{FloatSlice, LANES, Unit, with_micro};

/// Sequences whose keys and values one task writes: a few microseconds of work.
const SEQUENCES: usize = 16;

/// The keys and values of one layer for several sequences (captions or candidates).
#[derive(Debug, Clone)]
pub struct KvCache {
    pub(super) cpu: Cpu,
    pub(super) n_heads: usize,
    /// The width of a head.
    pub(super) width: usize,
    /// The number of panels of 16 cache rows.
    pub(super) panels: usize,
    /// For each sequence and head: panels of 16 cache rows, multiplied along the head's width.
    keys: Vec<u32>,
    /// For each sequence and head: panels of 16 columns of the head, multiplied along the cache
    /// rows.
    values: Vec<u32>,
}

impl KvCache {
    /// Makes a cache of zeros with room for `cache_rows` keys and values per sequence.
    ///
    /// # Panics
    /// If there are no heads, or their width is 0.
    pub fn new(cpu: Cpu, sequences: usize, [n_heads, width]: [usize; 2], cache_rows: usize) -> KvCache {
        assert!(
            n_heads > 0 && width > 0,
            "a KV cache of {n_heads} heads of width {width}, wanted at least 1 of each"
        );
        let panels = cache_rows.div_ceil(LANES);
        let mut kv_cache = KvCache { cpu, n_heads, width, panels, keys: Vec::new(), values: Vec::new() };
        kv_cache.keys = vec![0; sequences * n_heads * kv_cache.key_units()];
        kv_cache.values = vec![0; sequences * n_heads * kv_cache.value_units()];
        kv_cache
    }

    /// Returns the number of values in a unit.
    pub(super) fn steps(&self) -> usize {
        if self.cpu.bf16() { 2 } else { 1 }
    }

    /// Returns the number of units of one head's keys.
    fn key_units(&self) -> usize {
        self.panels * LANES * self.width.div_ceil(self.steps())
    }

    /// Returns the number of units of one head's values.
    fn value_units(&self) -> usize {
        self.width.div_ceil(LANES) * LANES * self.panels * LANES / self.steps()
    }

    pub(super) fn keys(&self, sequence: usize, head: usize) -> &[u32] {
        let start = (sequence * self.n_heads + head) * self.key_units();
        &self.keys[start..start + self.key_units()]
    }

    pub(super) fn values(&self, sequence: usize, head: usize) -> &[u32] {
        let start = (sequence * self.n_heads + head) * self.value_units();
        &self.values[start..start + self.value_units()]
    }

    /// Writes a key and a value, `[H · K]` each, to a cache row of `sequence`.
    ///
    /// # Panics
    /// If there is no such sequence or cache row, or the widths do not fit.
    pub fn put(&mut self, sequence: usize, cache_row: usize, keys: &[f32], values: &[f32]) {
        let place = self.place(cache_row);
        let d = place.n_heads * place.width;
        assert!(
            keys.len() == d && values.len() == d,
            "KV cache: a key of {} values and a value of {}, wanted {d} each",
            keys.len(),
            values.len()
        );
        let (key_units, value_units) = (place.n_heads * self.key_units(), place.n_heads * self.value_units());
        place.put(
            &mut self.keys[sequence * key_units..][..key_units],
            &mut self.values[sequence * value_units..][..value_units],
            keys,
            values,
        );
    }

    /// Writes one key and value for each of several sequences. `places` lists
    /// `(sequence, cache_row)`, and `qkv` holds a row `[3 · H · K]` of query, key and value for
    /// each.
    ///
    /// # Panics
    /// If there is no such sequence or cache row, a sequence is listed twice, or the widths do not
    /// fit.
    pub fn put_rows(&mut self, places: &[(usize, usize)], qkv: &[f32]) {
        let d = self.n_heads * self.width;
        assert!(
            qkv.len() == places.len() * 3 * d,
            "KV cache: {} values of queries, keys and values for {} sequences, wanted 3 · {d} each",
            qkv.len(),
            places.len()
        );
        let (key_units, value_units) = (self.n_heads * self.key_units(), self.n_heads * self.value_units());
        let mut rows = vec![None; self.keys.len() / key_units];
        for ((sequence, cache_row), qkv) in places.iter().zip(qkv.chunks_exact(3 * d)) {
            assert!(rows[*sequence].is_none(), "KV cache: two rows for sequence {sequence}, wanted one");
            rows[*sequence] = Some((self.place(*cache_row), qkv));
        }
        let sequences =
            self.keys.par_chunks_exact_mut(key_units).zip(self.values.par_chunks_exact_mut(value_units));
        sequences.zip(rows).with_min_len(SEQUENCES).for_each(|((keys, values), row)| {
            if let Some((place, qkv)) = row {
                place.put(keys, values, &qkv[d..2 * d], &qkv[2 * d..]);
            }
        });
    }

    fn place(&self, cache_row: usize) -> Place {
        let KvCache { cpu, n_heads, width, panels, .. } = *self;
        assert!(
            cache_row < panels * LANES,
            "KV cache: cache row {cache_row}, wanted less than {}",
            panels * LANES
        );
        Place { cpu, n_heads, width, panels, cache_row }
    }
}

/// The cache row that a key and a value are written to.
#[derive(Clone, Copy)]
struct Place {
    cpu: Cpu,
    n_heads: usize,
    width: usize,
    panels: usize,
    cache_row: usize,
}

impl Place {
    /// Writes `key` and `value`, `[H · K]` each, into the panels of their sequence.
    fn put(&self, keys: &mut [u32], values: &mut [u32], key: &[f32], value: &[f32]) {
        let Place { cpu, n_heads, width, panels, cache_row } = *self;
        let of_head =
            keys.chunks_exact_mut(keys.len() / n_heads).zip(values.chunks_exact_mut(values.len() / n_heads));
        for ((keys, values), (key, value)) in
            of_head.zip(key.chunks_exact(width).zip(value.chunks_exact(width)))
        {
            let panel_units = keys.len() / panels;
            let panel = &mut keys[cache_row / LANES * panel_units..][..panel_units];
            with_micro!(cpu, S => {
                type U = <S as crate::gemm::Simd>::Unit;
                put_key::<U>(bytemuck::cast_slice_mut(panel), cache_row % LANES, key);
                put_value::<U>(bytemuck::cast_slice_mut(values), panels * LANES / U::VALUES, cache_row, value);
            });
        }
    }
}

/// Writes a key into its column of a panel.
fn put_key<U: Unit>(panel: &mut [U], column: usize, key: &[f32]) {
    for (steps, unit) in key.chunks(U::VALUES).zip(panel[column..].iter_mut().step_by(LANES)) {
        U::along(FloatSlice::F32(steps), std::slice::from_mut(unit));
    }
}

/// Writes a value into step `cache_row` of its panels, each `units` of K long.
fn put_value<U: Unit>(panels: &mut [U], units: usize, cache_row: usize, value: &[f32]) {
    for (panel, value) in panels.chunks_exact_mut(units * LANES).zip(value.chunks(LANES)) {
        let row = &mut panel[cache_row / U::VALUES * LANES..][..value.len()];
        row.iter_mut().zip(value).for_each(|(unit, &value)| unit.put(cache_row % U::VALUES, value));
    }
}

/// The cache rows that a query attends to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visible {
    /// Runs of neighbouring panels: the first panel and the number of panels of each.
    pub(super) runs: Vec<(usize, usize)>,
    /// For each panel of the runs: bit `i` is set if cache row `i` of the panel is visible.
    pub(super) masks: Vec<u16>,
}

impl Visible {
    /// Makes the given cache rows visible.
    pub fn new(cache_rows: impl IntoIterator<Item = usize>) -> Visible {
        let mut masks: Vec<u16> = Vec::new();
        for cache_row in cache_rows {
            let panel = cache_row / LANES;
            masks.resize(masks.len().max(panel + 1), 0);
            masks[panel] |= 1 << (cache_row % LANES);
        }
        let panels: Vec<usize> = (0..masks.len()).filter(|&panel| masks[panel] != 0).collect();
        let masks = panels.iter().map(|&panel| masks[panel]).collect();
        Visible { runs: runs(&panels), masks }
    }

    /// Returns the number of panels up to the last visible one.
    pub(super) fn panels_reached(&self) -> usize {
        self.runs.last().map_or(0, |&(first, count)| first + count)
    }

    /// Returns the number of panels in all runs.
    pub(super) fn panels(&self) -> usize {
        self.masks.len()
    }
}
