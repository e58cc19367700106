//! Utilities that several crates use. They depend on none of those crates.

#![forbid(unsafe_code)]

pub mod atomic;
mod fault;
mod hash;
pub mod label;
pub mod pixels;
pub mod random;
mod reporter;

pub use fault::{DeviceFailed, Fault, Internal};
pub use hash::fnv1a;
pub use reporter::{Progress, Reporter, Silent};
