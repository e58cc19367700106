//! The epilogues that several kernels use.

use std::mem::MaybeUninit;

use super::{Out, TileEpilogue};
use crate::math::{Number, gelu, write};

/// Writes the sums.
pub(crate) struct Store<'a, T> {
    pub(crate) out: Out<'a, MaybeUninit<T>>,
}

impl<T: Number> TileEpilogue for Store<'_, T> {
    #[inline(always)]
    fn take(&self, m: usize, n: usize, sums: &mut [f32]) {
        // SAFETY: `gemm` passes each sum once.
        #[allow(unsafe_code)]
        unsafe {
            write(self.out.row(m, n, sums.len()), sums);
        }
    }
}

/// Writes `sums + bias`, or the GELU of it. If `pre` is given, it receives the pre-activation.
pub(crate) struct Affine<'a, T> {
    pub(crate) bias: &'a [f32],
    pub(crate) gelu: bool,
    pub(crate) pre: Option<Out<'a, MaybeUninit<T>>>,
    pub(crate) out: Out<'a, MaybeUninit<T>>,
}

impl<T: Number> TileEpilogue for Affine<'_, T> {
    #[inline(always)]
    fn take(&self, m: usize, n: usize, sums: &mut [f32]) {
        let sums = sums.iter().zip(&self.bias[n..n + sums.len()]).map(|(sum, bias)| sum + bias);
        // SAFETY: `gemm` and `convolve` pass each sum once.
        #[allow(unsafe_code)]
        unsafe {
            let out = self.out.row(m, n, sums.len());
            // Each case is a single loop. A second loop would read, with vectors of another width,
            // what the first wrote, and would wait until all earlier writes are done.
            match (&self.pre, self.gelu) {
                (Some(pre), _) => {
                    let pre = pre.row(m, n, sums.len());
                    for ((out, pre), sum) in out.iter_mut().zip(pre).zip(sums) {
                        pre.write(T::nearest(sum));
                        out.write(T::nearest(gelu(sum)));
                    }
                }
                (None, true) => out.iter_mut().zip(sums).for_each(|(out, sum)| {
                    out.write(T::nearest(gelu(sum)));
                }),
                (None, false) => out.iter_mut().zip(sums).for_each(|(out, sum)| {
                    out.write(T::nearest(sum));
                }),
            }
        }
    }
}

/// Writes `residual + gain · (sums + bias)`.
pub(crate) struct ScaledAdd<'a> {
    pub(crate) bias: &'a [f32],
    pub(crate) residual: &'a [f32],
    pub(crate) gain: f32,
    pub(crate) out: Out<'a, MaybeUninit<f32>>,
}

impl TileEpilogue for ScaledAdd<'_> {
    #[inline(always)]
    fn take(&self, m: usize, n: usize, sums: &mut [f32]) {
        let start = m * self.bias.len() + n;
        let (bias, residual) = (&self.bias[n..n + sums.len()], &self.residual[start..start + sums.len()]);
        // SAFETY: `gemm` and `convolve` pass each sum once.
        #[allow(unsafe_code)]
        let out = unsafe { self.out.row(m, n, sums.len()) };
        for (((out, sum), bias), residual) in out.iter_mut().zip(sums).zip(bias).zip(residual) {
            out.write(residual + self.gain * (*sum + bias));
        }
    }
}
