//! Weights outside a tensor engine: as named host arrays, and in files.

mod file;
mod params;

pub use file::{ModelConfig, ModelFile, Storage};
pub use params::{Collected, HostTensor, export, gradients, import};
