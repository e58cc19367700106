//! The CPU's measured peak: the rate of the micro-kernel when all its data are in the L1 cache.

use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::cpu::Cpu;
use crate::gemm::{LANES, Micro, Segment, Sink, Strides, Unit, with_micro};

/// The time for which a thread multiplies.
const TIME: Duration = Duration::from_millis(30);
/// Units of K: panels take 12 KB.
const UNITS: usize = 64;

/// Returns the 10⁹ multiplications and additions per second (GFLOP/s) that `cpu` does with all
/// threads of the pool: the best of five measurements.
pub fn peak_gflops(cpu: Cpu) -> f64 {
    let threads = rayon::current_num_threads();
    let one = |_| with_micro!(cpu, S => thread_gflops::<S>());
    let all = |_| (0..threads).into_par_iter().with_max_len(1).map(one).sum::<f64>();
    (0..5).map(all).fold(0.0, f64::max)
}

fn thread_gflops<S: Micro<Unit: Unit>>() -> f64 {
    let [rows, panels] = S::BEST;
    let (a, b) = (vec![S::Unit::default(); rows * UNITS], vec![S::Unit::default(); panels * UNITS * LANES]);
    let segment = Segment { a: a.as_ptr(), b: b.as_ptr(), units: UNITS };
    let strides = Strides { row: UNITS, step: 1, panel: UNITS * LANES };
    let flops = 2 * rows * panels * LANES * UNITS * S::Unit::VALUES;
    let (start, mut tiles) = (Instant::now(), 0_u64);
    while start.elapsed() < TIME {
        for _ in 0..64 {
            // SAFETY: `a` holds the rows and `b` the panels that the strides describe, and this CPU
            // has the instructions of `cpu`.
            #[allow(unsafe_code)]
            unsafe {
                S::product(rows, panels, &[segment], strides, Forget);
            }
        }
        tiles += 64;
    }
    tiles as f64 * flops as f64 / start.elapsed().as_secs_f64() / 1e9
}

/// Discards sums, but keeps the compiler from removing their computation.
struct Forget;

impl Sink for Forget {
    #[inline(always)]
    fn row(&mut self, _: usize, _: usize, sums: &mut [f32]) {
        std::hint::black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peak_of_every_instruction_set_is_positive() {
        assert!(Cpu::all().into_iter().all(|cpu| peak_gflops(cpu) > 0.1));
    }
}
