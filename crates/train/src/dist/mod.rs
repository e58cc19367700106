//! Training on more than one device (paper §2.5, §E): messages between processes, sums of compressed
//! gradients, and how much memory and traffic a configuration needs.

pub mod comm;
pub mod lane;
mod matrix;
pub mod plan;
pub mod powersgd;
pub mod threads;
pub mod world;
