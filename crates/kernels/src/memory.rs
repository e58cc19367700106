//! Vectors whose values are written once, without being zeroed first.

use std::mem::MaybeUninit;

/// Returns a vector of `len` values that `fill` writes.
///
/// # Safety
/// `fill` must write every value.
#[allow(unsafe_code)]
pub(crate) unsafe fn filled<T>(len: usize, fill: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    fill(&mut values.spare_capacity_mut()[..len]);
    // SAFETY: the caller guarantees that every value is written.
    unsafe { values.set_len(len) };
    values
}
