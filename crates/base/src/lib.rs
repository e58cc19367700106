//! Small things that several crates need and that depend on none of them.

#![forbid(unsafe_code)]

pub mod atomic;
mod fault;
mod hash;
pub mod label;
pub mod pixels;
pub mod random;
mod reporter;

pub use fault::{Fault, Internal};
pub use hash::fnv1a;
pub use reporter::{Progress, Reporter, Silent};
