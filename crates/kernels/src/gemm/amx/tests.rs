//! Compares products of tile registers with those of vector registers, for many sizes.

use super::*;
use crate::cpu::{Isa, Supported};
use crate::gemm::{FloatSlice, Unit};
use crate::testing::{assert_close, noise};

/// Stores the sums of a product; the second field is the row stride.
struct Keep<'a>(&'a mut [f32], usize);

impl Sink for Keep<'_> {
    fn row(&mut self, row: usize, panel: usize, sums: &mut [f32]) {
        let start = row * self.1 + panel * LANES;
        self.0[start..start + sums.len()].copy_from_slice(sums);
    }
}

fn units(seed: u64, len: usize) -> Vec<Pair> {
    let mut units = vec![0; len];
    Pair::along(FloatSlice::F32(&noise(2 * len, seed)), &mut units);
    units
}

/// Multiplies `rows` by `panels` over segments of these lengths. The left operand's rows run across
/// K if `across`, else along it.
fn product<S: Micro<Unit = Pair>>(rows: usize, panels: usize, lengths: &[usize], across: bool) -> Vec<f32> {
    let total: usize = lengths.iter().sum();
    let (a, b) = (units(1, rows * total), units(2, panels * LANES * total));
    let (row, step) = if across { (1, rows) } else { (total, 1) };
    let mut first = 0;
    let segment = |&units: &usize| {
        let segment = Segment { a: a[first * step..].as_ptr(), b: b[first * LANES..].as_ptr(), units };
        first += units;
        segment
    };
    let segments: Vec<Segment<Pair>> = lengths.iter().map(segment).collect();
    let mut sums = vec![f32::NAN; rows * panels * LANES];
    // SAFETY: the test returns early without tile registers; `a` and `b` hold all units.
    unsafe {
        let strides = Strides { row, step, panel: total * LANES };
        S::product(rows, panels, &segments, strides, Keep(&mut sums, panels * LANES));
    }
    sums
}

#[test]
fn tile_register_products_match_vector_registers() {
    if Supported::best().isa() != Isa::Amx {
        return;
    }
    for rows in [1, 2, 15, 16, 17, 31, 32, 33, 47, 64, 71] {
        for panels in 1..=5 {
            for lengths in
                [&[16][..], &[1], &[17], &[40], &[192], &[24, 24, 24], &[8, 40], &[14, 14], &[5, 7]]
            {
                for across in [false, true] {
                    let tiles = product::<Amx>(rows, panels, lengths, across);
                    let vectors = product::<Avx512Bf16>(rows, panels, lengths, across);
                    let what = format!("{rows} rows, {panels} panels, {lengths:?}, across: {across}");
                    assert_close(&what, &tiles, &vectors, 1e-5);
                }
            }
        }
    }
}
