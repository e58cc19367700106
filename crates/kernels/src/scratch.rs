//! Working memory that a thread uses again and again: no page is asked of the system twice.

use std::cell::RefCell;

use bytemuck::{AnyBitPattern, NoUninit};

/// Bytes of a cache line, to which scratch memory is aligned.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

thread_local! {
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Lends `len` values to `body`. What they hold is left over from earlier uses.
pub(crate) fn scratch<T: AnyBitPattern + NoUninit, R>(len: usize, body: impl FnOnce(&mut [T]) -> R) -> R {
    let mut lines = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    let needed = (len * size_of::<T>()).div_ceil(size_of::<Line>());
    if lines.len() < needed {
        lines.resize(needed, Line([0; 64]));
    }
    // SAFETY: `lines` is aligned for `T`, any bytes are a `T`, and `len` of them fit the lines.
    #[allow(unsafe_code)]
    let values = unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<T>(), len) };
    let result = body(values);
    FREE.with_borrow_mut(|free| free.push(lines));
    result
}

/// Cuts `values` into parts of these sizes.
///
/// # Panics
/// If they are more than there are.
pub(crate) fn split<T, const N: usize>(mut values: &mut [T], sizes: [usize; N]) -> [&mut [T]; N] {
    sizes.map(|size| values.split_off_mut(..size).expect("the parts fit"))
}
