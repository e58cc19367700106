//! Resolves what a user asked to draw for a model, in the same way for the command line and the
//! server.

#![forbid(unsafe_code)]

mod parameters;
mod picture;

pub use parameters::{Model, parameters};
pub use picture::{KeepSpec, PicturePrompt, PromptError, resolve};
