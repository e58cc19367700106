//! A matrix that many threads write, each its own tiles.

use std::marker::PhantomData;

/// Rows of `stride` values, borrowed for writing by tiles.
#[derive(Debug, Clone, Copy)]
pub struct Out<'a, T> {
    start: *mut T,
    len: usize,
    stride: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` whose parts are only reached through `Out::row`, whose caller keeps threads apart.
#[allow(unsafe_code)]
unsafe impl<T: Send> Sync for Out<'_, T> {}

// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl<T: Send> Send for Out<'_, T> {}

impl<'a, T> Out<'a, T> {
    /// A matrix of rows `stride` long.
    pub fn new(values: &'a mut [T], stride: usize) -> Out<'a, T> {
        Out { start: values.as_mut_ptr(), len: values.len(), stride, borrowed: PhantomData }
    }

    /// From a row to the next.
    #[inline(always)]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// `len` values of row `m` from column `n` on.
    ///
    /// # Safety
    /// Nobody else holds any of these values meanwhile.
    ///
    /// # Panics
    /// If they lie outside the matrix.
    #[inline(always)]
    #[allow(unsafe_code, clippy::mut_from_ref)]
    pub unsafe fn row(&self, m: usize, n: usize, len: usize) -> &mut [T] {
        let start = m * self.stride + n;
        assert!(start + len <= self.len, "row {m}, columns {n}..{} of {} values", n + len, self.len);
        // SAFETY: inside the borrowed slice, and the caller keeps others away.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}
