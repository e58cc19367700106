//! More than one device (paper §2.5, §E): what it takes, and how replicas add up compressed gradients. Training itself still
//! runs in one process.

pub mod comm;
mod matrix;
pub mod plan;
pub mod powersgd;
