//! What each command means.

pub mod bench;
pub mod convert;
pub mod data;
pub mod draw;
pub mod eval;
pub mod gallery;
pub mod inspect;
pub mod manual;
mod output;
pub mod pack;
pub mod plan;
pub mod reconstruct;
pub mod serve;
pub mod train;
pub mod train_pictures;

use std::error::Error;
use std::fmt::{Display, Formatter};
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use tessera_container::unverified;
use tessera_kernels::decode::Weights as Kept;
use tessera_kernels::{Cpu, Precision};
use tessera_model::Tessera;
use tessera_model::weights::{EMBEDDED, ModelFile, model_bytes, model_id};

use crate::args::Weights;
use crate::stderr::note;

/// The model file at `path`, or the embedded one.
fn model_file(path: Option<&Path>) -> Result<ModelFile> {
    identified_model(path).map(|(file, _)| file)
}

/// The model file at `path`, or the embedded one, and its fingerprint.
fn identified_model(path: Option<&Path>) -> Result<(ModelFile, String)> {
    let path = path.unwrap_or(Path::new(EMBEDDED));
    let bytes = model_bytes(path)?;
    Ok((model_of(&bytes, path)?, model_id(&bytes)))
}

/// The model in the bytes of the file at `path`; a warning is given if it has no checksum.
fn model_of(bytes: &[u8], path: &Path) -> Result<ModelFile> {
    let file = ModelFile::from_file(bytes, path)?;
    if file.unverified {
        note!("{}", unverified(path.display()));
    }
    Ok(file)
}

/// What to compute with if weights are kept so; what `absent` says if that is left open.
fn cpu(weights: Option<Weights>, absent: impl Into<Precision>) -> Result<Cpu> {
    let precision = match weights {
        Some(Weights::F32) => Precision::F32,
        Some(Weights::Bf16) => Precision::Bf16,
        Some(Weights::Int8) | None => absent.into(),
    };
    Cpu::new(precision).map_err(anyhow::Error::msg)
}

/// The model of a file, its weights kept as `weights` says, or as the file suggests.
fn tessera_of(file: &ModelFile, weights: Option<Weights>, cpu: Cpu) -> Result<Tessera> {
    match weights {
        Some(Weights::F32 | Weights::Bf16) => Tessera::with_weights(file, cpu, Kept::Full),
        Some(Weights::Int8) => Tessera::with_weights(file, cpu, Kept::Int8).context("--weights int8"),
        None => Tessera::new(file, cpu),
    }
}

/// The model at `path`, or the embedded one, ready to draw, and its fingerprint; its reranker is that of another file if one is named.
fn tessera(
    path: Option<&Path>,
    rerank: Option<&Path>,
    weights: Option<Weights>,
) -> Result<(Tessera, String)> {
    let cpu = cpu(weights, Precision::Auto)?;
    let (file, id) = identified_model(path)?;
    let mut tessera = tessera_of(&file, weights, cpu)?;
    if let Some(path) = rerank {
        let reranker = model_file(Some(path))?.reranker(cpu);
        tessera.reranker = Some(reranker.with_context(|| path.display().to_string())?);
    }
    Ok((tessera, id))
}

/// The bytes of a file.
fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Says that a model draws without guidance because its file does not say more.
fn warn_without_guidance(tessera: &Tessera) {
    if tessera.caption_drop.is_none() {
        note!(
            "warning: the model file does not say whether captions were dropped in training, so it draws with guidance 1; if they were, \
             `tessera pack MODEL --dtype exact --caption-drop SHARE --out NEW` writes a file that says so"
        );
    }
}

/// What a model is called: a file's name alone, since where it lies is nobody's business who gets a picture.
fn model_name(path: Option<&Path>) -> String {
    path.map_or("embedded".into(), |path| path.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

/// The error for output that nobody reads any more: a command ends there, quietly, as other Unix tools do.
#[derive(Debug)]
pub struct ClosedOutput;

impl Display for ClosedOutput {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        f.write_str("standard output was closed")
    }
}

impl Error for ClosedOutput {}

/// The input/output error of every Unix: what a terminal that is gone answers.
const EIO: i32 = 5;

/// Prints a line of the result.
///
/// # Errors
/// [`ClosedOutput`] if its reader has seen enough and closed the pipe, or its terminal is gone.
fn say(line: impl Display) -> Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if is_gone(&error) => bail!(ClosedOutput),
        said => said.context("cannot write to standard output"),
    }
}

/// Whether an error says that nobody reads standard output any more: a closed pipe, or a terminal that is gone.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe || cfg!(unix) && error.raw_os_error() == Some(EIO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn output_that_nobody_reads_is_told_from_a_full_disk() {
        let of_system = |code| is_gone(&io::Error::from_raw_os_error(code));
        assert_eq!(
            [libc::EPIPE, libc::EIO, libc::ENOSPC, libc::EBADF].map(of_system),
            [true, true, false, false]
        );
        assert!(is_gone(&ErrorKind::BrokenPipe.into()) && !is_gone(&ErrorKind::Other.into()));
    }
}
