//! What each command means.

pub mod bench;
pub mod convert;
pub mod data;
pub mod draw;
pub mod eval;
pub mod inspect;
pub mod plan;
pub mod reconstruct;
pub mod train;

use std::fmt::Display;
use std::io::{ErrorKind, Write};
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

/// Prints a line. A reader that has seen enough and closed the pipe is no error.
fn say(line: impl Display) -> Result<()> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        said => said.context("cannot write to standard output"),
    }
}
