//! Small things that several crates need and that depend on none of them.

#![forbid(unsafe_code)]

pub mod pixels;
mod reporter;

pub use reporter::{Progress, Reporter, Silent};
