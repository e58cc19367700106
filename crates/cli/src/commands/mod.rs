//! What each command means.

pub mod data;
pub mod draw;
pub mod eval;
pub mod inspect;
pub mod train;

use std::path::Path;

use anyhow::{Context, Result};
use tessera_model::weights::ModelFile;

/// The model file at `path`, or the embedded one.
fn model_file(path: Option<&Path>) -> Result<ModelFile> {
    match path {
        Some(path) => ModelFile::read(path),
        None => ModelFile::from_bytes(tessera_pretrained::MODEL).context("the embedded model"),
    }
}
