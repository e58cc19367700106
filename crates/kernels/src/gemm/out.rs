//! A matrix that many threads write, each thread its own tiles.

use std::marker::PhantomData;

/// Rows of `stride` values, borrowed so that several threads can write to different parts.
#[derive(Debug, Clone, Copy)]
pub struct Out<'a, T> {
    start: *mut T,
    len: usize,
    stride: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: this is a `&mut [T]` whose parts are only reached through `Out::row`, whose caller
// guarantees that threads use different parts.
#[allow(unsafe_code)]
unsafe impl<T: Send> Sync for Out<'_, T> {}

// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl<T: Send> Send for Out<'_, T> {}

impl<'a, T> Out<'a, T> {
    /// Borrows `values` as a matrix with rows of `stride` values.
    pub fn new(values: &'a mut [T], stride: usize) -> Out<'a, T> {
        Out { start: values.as_mut_ptr(), len: values.len(), stride, borrowed: PhantomData }
    }

    /// Returns the distance from a row to the next.
    #[inline(always)]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Returns `len` values of row `m`, from column `n` on.
    ///
    /// # Safety
    /// Nothing else may hold a reference to any of these values at the same time.
    ///
    /// # Panics
    /// If the values are outside the matrix.
    #[inline(always)]
    #[allow(unsafe_code, clippy::mut_from_ref)]
    pub unsafe fn row(&self, m: usize, n: usize, len: usize) -> &mut [T] {
        let start = m * self.stride + n;
        assert!(start + len <= self.len, "row {m}, columns {n}..{} of {} values", n + len, self.len);
        // SAFETY: the range is inside the borrowed slice, and the caller guarantees exclusive
        // access.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}
