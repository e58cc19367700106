//! What a user asked to draw, resolved for a model: the same for the command and the server.

#![forbid(unsafe_code)]

mod parameters;
mod picture;

pub use parameters::{Model, parameters};
pub use picture::{KeepSpec, PicturePrompt, PromptError, resolve};
