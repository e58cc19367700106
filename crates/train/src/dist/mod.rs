//! Training on more than one device (paper §2.5, §E): its memory and traffic, and sums of
//! compressed gradients over replicas. Training itself still runs in one process.

pub mod comm;
mod matrix;
pub mod plan;
pub mod powersgd;
