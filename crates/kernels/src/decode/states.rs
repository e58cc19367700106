//! Cached keys and values, laid out as the micro-kernel reads them, one slot a state.

use rayon::prelude::*;

use crate::attention::plan::runs;
use crate::cpu::Cpu;
use crate::gemm::{LANES, Numbers, Unit, with_micro};

/// Owners whose states are written by one task: a few microseconds of work.
const OWNERS: usize = 16;

/// Keys and values of one layer for several owners (captions, or candidates).
#[derive(Debug, Clone)]
pub struct States {
    pub(super) cpu: Cpu,
    pub(super) n_heads: usize,
    /// Of a head.
    pub(super) width: usize,
    /// Panels of slots.
    pub(super) panels: usize,
    /// For each owner and head: panels of 16 slots, K the head's width.
    keys: Vec<u32>,
    /// For each owner and head: panels of 16 columns, K the slots.
    values: Vec<u32>,
}

impl States {
    /// Room for `slots` states of each owner, all zero.
    ///
    /// # Panics
    /// If there are no heads, or they have no width.
    pub fn new(cpu: Cpu, owners: usize, [n_heads, width]: [usize; 2], slots: usize) -> States {
        assert!(
            n_heads > 0 && width > 0,
            "states of {n_heads} heads of width {width}, wanted at least 1 of each"
        );
        let panels = slots.div_ceil(LANES);
        let mut states = States { cpu, n_heads, width, panels, keys: Vec::new(), values: Vec::new() };
        states.keys = vec![0; owners * n_heads * states.key_units()];
        states.values = vec![0; owners * n_heads * states.value_units()];
        states
    }

    /// Steps of K in a unit.
    pub(super) fn steps(&self) -> usize {
        if self.cpu.bf16() { 2 } else { 1 }
    }

    /// Units of a head's keys.
    fn key_units(&self) -> usize {
        self.panels * LANES * self.width.div_ceil(self.steps())
    }

    /// Units of a head's values.
    fn value_units(&self) -> usize {
        self.width.div_ceil(LANES) * LANES * self.panels * LANES / self.steps()
    }

    pub(super) fn keys(&self, owner: usize, head: usize) -> &[u32] {
        let start = (owner * self.n_heads + head) * self.key_units();
        &self.keys[start..start + self.key_units()]
    }

    pub(super) fn values(&self, owner: usize, head: usize) -> &[u32] {
        let start = (owner * self.n_heads + head) * self.value_units();
        &self.values[start..start + self.value_units()]
    }

    /// Writes the state of `owner` in `slot`: keys and values `[H · K]`.
    ///
    /// # Panics
    /// If there is no such owner or slot, or the widths do not fit.
    pub fn put(&mut self, owner: usize, slot: usize, keys: &[f32], values: &[f32]) {
        let place = self.place(slot);
        let d = place.n_heads * place.width;
        assert!(keys.len() == d && values.len() == d, "slot {slot} of width {d}");
        let (key_units, value_units) = (place.n_heads * self.key_units(), place.n_heads * self.value_units());
        place.put(
            &mut self.keys[owner * key_units..][..key_units],
            &mut self.values[owner * value_units..][..value_units],
            keys,
            values,
        );
    }

    /// Writes one state of each of several owners, `(owner, slot)`, from their rows `[3 · H · K]` of queries, keys and values.
    ///
    /// # Panics
    /// If there is no such owner or slot, an owner comes twice, or the widths do not fit.
    pub fn put_rows(&mut self, places: &[(usize, usize)], qkv: &[f32]) {
        let d = self.n_heads * self.width;
        assert!(
            qkv.len() == places.len() * 3 * d,
            "{} rows of width {d}: {} numbers",
            places.len(),
            qkv.len()
        );
        let (key_units, value_units) = (self.n_heads * self.key_units(), self.n_heads * self.value_units());
        let mut rows = vec![None; self.keys.len() / key_units];
        for ((owner, slot), qkv) in places.iter().zip(qkv.chunks_exact(3 * d)) {
            assert!(rows[*owner].is_none(), "two states of owner {owner}");
            rows[*owner] = Some((self.place(*slot), qkv));
        }
        let owners =
            self.keys.par_chunks_exact_mut(key_units).zip(self.values.par_chunks_exact_mut(value_units));
        owners.zip(rows).with_min_len(OWNERS).for_each(|((keys, values), row)| {
            if let Some((place, qkv)) = row {
                place.put(keys, values, &qkv[d..2 * d], &qkv[2 * d..]);
            }
        });
    }

    fn place(&self, slot: usize) -> Place {
        let States { cpu, n_heads, width, panels, .. } = *self;
        assert!(slot < panels * LANES, "slot {slot} of {}", panels * LANES);
        Place { cpu, n_heads, width, panels, slot }
    }
}

/// Where a state goes.
#[derive(Clone, Copy)]
struct Place {
    cpu: Cpu,
    n_heads: usize,
    width: usize,
    panels: usize,
    slot: usize,
}

impl Place {
    /// Writes `key` and `value` `[H · K]` into their owner's panels.
    fn put(&self, keys: &mut [u32], values: &mut [u32], key: &[f32], value: &[f32]) {
        let Place { cpu, n_heads, width, panels, slot } = *self;
        let of_head =
            keys.chunks_exact_mut(keys.len() / n_heads).zip(values.chunks_exact_mut(values.len() / n_heads));
        for ((keys, values), (key, value)) in
            of_head.zip(key.chunks_exact(width).zip(value.chunks_exact(width)))
        {
            let panel_units = keys.len() / panels;
            let panel = &mut keys[slot / LANES * panel_units..][..panel_units];
            with_micro!(cpu, S => {
                type U = <S as crate::gemm::Simd>::Unit;
                put_key::<U>(bytemuck::cast_slice_mut(panel), slot % LANES, key);
                put_value::<U>(bytemuck::cast_slice_mut(values), panels * LANES / U::VALUES, slot, value);
            });
        }
    }
}

/// Writes a key into its column of a panel.
fn put_key<U: Unit>(panel: &mut [U], column: usize, key: &[f32]) {
    for (steps, unit) in key.chunks(U::VALUES).zip(panel[column..].iter_mut().step_by(LANES)) {
        U::along(Numbers::F32(steps), std::slice::from_mut(unit));
    }
}

/// Writes a value across its panels, `units` of K long each.
fn put_value<U: Unit>(panels: &mut [U], units: usize, slot: usize, value: &[f32]) {
    for (panel, value) in panels.chunks_exact_mut(units * LANES).zip(value.chunks(LANES)) {
        let row = &mut panel[slot / U::VALUES * LANES..][..value.len()];
        row.iter_mut().zip(value).for_each(|(unit, &value)| unit.put(slot % U::VALUES, value));
    }
}

/// The slots that a query may look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visible {
    /// Runs of neighbouring panels: the first one, and how many there are.
    pub(super) runs: Vec<(usize, usize)>,
    /// For each panel of the runs: bit `i` is set if slot `i` of it is visible.
    pub(super) masks: Vec<u16>,
}

impl Visible {
    /// The given slots.
    pub fn new(slots: impl IntoIterator<Item = usize>) -> Visible {
        let mut masks: Vec<u16> = Vec::new();
        for slot in slots {
            let panel = slot / LANES;
            masks.resize(masks.len().max(panel + 1), 0);
            masks[panel] |= 1 << (slot % LANES);
        }
        let panels: Vec<usize> = (0..masks.len()).filter(|&panel| masks[panel] != 0).collect();
        let masks = panels.iter().map(|&panel| masks[panel]).collect();
        Visible { runs: runs(&panels), masks }
    }

    /// Panels up to the last visible one.
    pub(super) fn panels_reached(&self) -> usize {
        self.runs.last().map_or(0, |&(first, count)| first + count)
    }

    /// Panels in all runs.
    pub(super) fn panels(&self) -> usize {
        self.masks.len()
    }
}
