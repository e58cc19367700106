//! The paper's models: the dVAE, the prior, the reranker, sampling, and the file that holds a
//! model.
//!
//! Start with [`Tessera`]. The modules `dvae`, `prior` and `sample` implement paper §2.1, §2.2 and
//! §2.6.

#![forbid(unsafe_code)]

pub mod dvae;
#[cfg(test)]
mod finite_differences;
pub mod nn;
pub mod pil;
pub mod prior;
pub mod rerank;
pub mod sample;
mod tessera;
pub mod weights;

pub use tessera_kernels::Cpu;
pub use tessera_text::Unknown;

pub use sample::{Batch, Drawing, Event, Job, Parameters, Picture, Request, Sampler, Sampling};
pub use tessera::{ReadPrompt, Tessera};
