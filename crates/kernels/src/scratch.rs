//! Working memory that a thread reuses, so that kernels do not request pages from the system again
//! and again.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::{AnyBitPattern, NoUninit, Pod, Zeroable};

/// A cache line. Memory that is read a register at a time is aligned to it.
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

impl Default for Line {
    fn default() -> Line {
        Line([0; 64])
    }
}

thread_local! {
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer from the thread's working memory. It first contains values that earlier uses left
/// there.
pub(crate) struct Scratch<T> {
    lines: Vec<Line>,
    len: usize,
    values: PhantomData<T>,
}

impl<T: AnyBitPattern + NoUninit> Scratch<T> {
    /// Takes a buffer of `len` values.
    pub(crate) fn new(len: usize) -> Scratch<T> {
        let mut lines = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
        let needed = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        if lines.len() < needed {
            lines.clear(); // so that `resize` does not copy the old content
            lines.resize(needed, Line::default());
        }
        Scratch { lines, len, values: PhantomData }
    }
}

impl<T> Drop for Scratch<T> {
    fn drop(&mut self) {
        FREE.with_borrow_mut(|free| free.push(std::mem::take(&mut self.lines)));
    }
}

impl<T: AnyBitPattern + NoUninit> Deref for Scratch<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `lines` is aligned for `T`, any bytes are a valid `T`, and `len` of them fit into
        // the lines.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(self.lines.as_ptr().cast::<T>(), self.len)
        }
    }
}

impl<T: AnyBitPattern + NoUninit> DerefMut for Scratch<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; `T` has no padding, so the lines remain valid bytes.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast::<T>(), self.len)
        }
    }
}

/// Splits `values` into consecutive parts of these sizes.
///
/// # Panics
/// If the sizes add up to more than there is.
#[inline(always)]
pub(crate) fn split<T, const N: usize>(mut values: &mut [T], sizes: [usize; N]) -> [&mut [T]; N] {
    sizes.map(|size| values.split_off_mut(..size).expect("the parts fit"))
}
