//! Weights outside of a tensor library: as named host arrays, and in files (Tessera's own format,
//! and those of published models).

mod clip;
mod encoding;
mod file;
mod openai_dvae;
mod pickle;
mod stand_in;
mod torch_file;

pub use clip::{ClipHints, read_clip};
pub use encoding::StorageDtype;
pub use file::{EMBEDDED, Int8Change, ModelConfig, ModelFile, model_bytes, model_id};
pub use openai_dvae::read_openai_dvae;
pub use torch_file::read as read_torch_file;

pub use crate::nn::{HostTensor, export, import};
