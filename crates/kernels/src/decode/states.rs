//! Cached keys and values, laid out as the micro-kernel reads them, one slot a state.

use crate::attention::plan::runs;
use crate::cpu::Cpu;
use crate::gemm::{LANES, Numbers, Unit, with_micro};

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
    pub fn new(cpu: Cpu, owners: usize, [n_heads, width]: [usize; 2], slots: usize) -> States {
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
        let d = self.n_heads * self.width;
        assert!(
            slot < self.panels * LANES && keys.len() == d && values.len() == d,
            "slot {slot} of width {d}"
        );
        let (key_units, value_units, steps) = (self.key_units(), self.value_units(), self.steps());
        let row = self.width.div_ceil(steps);
        for head in 0..self.n_heads {
            let at = owner * self.n_heads + head;
            let (key, value) =
                (&keys[head * self.width..][..self.width], &values[head * self.width..][..self.width]);
            let stored = &mut self.keys[at * key_units..][..key_units];
            let panel = &mut stored[slot / LANES * row * LANES..][..row * LANES];
            let columns = &mut self.values[at * value_units..][..value_units];
            with_micro!(self.cpu, S => {
                type U = <S as crate::gemm::Simd>::Unit;
                put_key::<U>(bytemuck::cast_slice_mut(panel), slot % LANES, key);
                put_value::<U>(bytemuck::cast_slice_mut(columns), self.panels * LANES / steps, slot, value);
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

    /// Panels in all runs.
    pub(super) fn panels(&self) -> usize {
        self.masks.len()
    }
}
