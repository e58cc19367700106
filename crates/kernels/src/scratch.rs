//! Working memory that a thread uses again and again: no page is asked of the system twice.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::{AnyBitPattern, NoUninit, Pod, Zeroable};

/// A cache line, to which memory that is read a register at a time is aligned.
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

/// Values on loan from the thread's working memory. What they hold at first is left over from earlier uses.
pub(crate) struct Scratch<T> {
    lines: Vec<Line>,
    len: usize,
    values: PhantomData<T>,
}

impl<T: AnyBitPattern + NoUninit> Scratch<T> {
    /// `len` values.
    pub(crate) fn new(len: usize) -> Scratch<T> {
        let mut lines = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
        let needed = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        if lines.len() < needed {
            lines.clear(); // nothing in it is worth copying
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
        // SAFETY: `lines` is aligned for `T`, any bytes are a `T`, and `len` of them fit the lines.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(self.lines.as_ptr().cast::<T>(), self.len)
        }
    }
}

impl<T: AnyBitPattern + NoUninit> DerefMut for Scratch<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; `T` has no padding, so that the lines stay bytes.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast::<T>(), self.len)
        }
    }
}

/// Cuts `values` into parts of these sizes.
///
/// # Panics
/// If they are more than there are.
#[inline(always)]
pub(crate) fn split<T, const N: usize>(mut values: &mut [T], sizes: [usize; N]) -> [&mut [T]; N] {
    sizes.map(|size| values.split_off_mut(..size).expect("the parts fit"))
}
