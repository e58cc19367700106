//! Tensors in, numbers and plots out: how good a dVAE's reconstructions are, and how much a prior listens to words.

mod conditioning;
mod curves;
mod recon;

pub use conditioning::{Conditioning, Conditions, Figure, LabelledCodes, conditioning};
pub use curves::curves;
pub use recon::{Recon, recon};
