//! Weights outside a tensor engine: as named host arrays, and in files.

mod clip;
mod file;
mod openai_dvae;
mod pickle;
mod torch_file;

pub use clip::read_clip;
pub use file::{ModelConfig, ModelFile, Storage, model_id};
pub use openai_dvae::read_openai_dvae;
pub use torch_file::read as read_torch_file;

pub use crate::nn::{HostTensor, export, gradients, import};
