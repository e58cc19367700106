//! Tensors in, numbers out: how good a dVAE's reconstructions are, and how much a prior listens to words.

mod conditioning;
mod recon;

pub use conditioning::{Conditioning, Conditions, Figure, LabelledCodes, conditioning};
pub use recon::{Recon, recon};
