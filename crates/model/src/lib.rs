//! The paper's models: the dVAE, the prior, the reranker, sampling, and the file that holds a
//! model.
//!
//! Start with [`Tessera`]:
//!
//! ```
//! use tessera_model::Tessera;
//!
//! # std::env::set_current_dir(std::env::temp_dir())?;
//! let tessera = Tessera::embedded()?;
//! let pictures = tessera.draw_all("a red apple")?;
//! pictures[0].image.save("apple.png")?; // the best of 9
//! # assert_eq!(pictures.len(), 9);
//! # std::fs::remove_file("apple.png")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The modules `dvae`, `prior` and `sample` implement paper §2.1, §2.2 and §2.6.
//!
//! # Features
//!
//! - `embedded` (default): the embedded model, 12 MB. Without it, models come from files alone.
//! - `vulkan`, `metal`, `webgpu` or `cuda`: models may be on a GPU ([`DeviceChoice::open`]).

#![forbid(unsafe_code)]

pub mod device;
pub mod dvae;
mod error;
#[cfg(test)]
mod finite_differences;
pub mod nn;
pub mod pil;
pub mod prior;
pub mod rerank;
pub mod sample;
mod tessera;
pub mod weights;

pub use image;
pub use tessera_kernels::Cpu;
pub use tessera_text::Unknown;

pub use device::{DeviceChoice, DeviceDtype};
pub use error::Error;
pub use sample::{Batch, Drawing, Event, Job, Parameters, Picture, Request, Sampler, Sampling};
pub use tessera::{ReadPrompt, Tessera};
