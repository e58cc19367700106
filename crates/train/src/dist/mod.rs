//! Training on more than one device (paper §2.5, §E): messages between processes, sums of compressed
//! gradients, and how much memory and traffic a configuration needs.

pub mod comm;
pub(crate) mod gather;
pub(crate) mod gradients;
pub mod lane;
pub mod launch;
mod matrix;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod plan;
pub mod powersgd;
pub mod shards;
pub mod simulate;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod threads;
pub mod trace;
pub mod world;
