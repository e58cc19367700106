//! Runs each command: one module per command.

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
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tessera_container::unverified;
use tessera_kernels::decode::Weights as Kept;
use tessera_model::Tessera;
use tessera_model::dvae::DvaeConfig;
use tessera_model::nn::Compute;
use tessera_model::weights::{EMBEDDED, ModelFile, model_bytes, model_id};
use tessera_train::dist::launch::LaunchOptions;

use crate::args::{ModelArgs, OnDevice, PrecisionFlag, Weights};
use crate::stderr::{self, note};

/// Reads the model file at `path`, or the embedded one.
fn model_file(path: Option<&Path>) -> Result<ModelFile> {
    identified_model(path).map(|(file, _)| file)
}

/// Reads the model file at `path`, or the embedded one. Also returns its fingerprint.
fn identified_model(path: Option<&Path>) -> Result<(ModelFile, String)> {
    let path = path.unwrap_or(Path::new(EMBEDDED));
    let bytes = model_bytes(path)?;
    Ok((model_of(&bytes, path)?, model_id(&bytes)))
}

/// Parses the bytes of the model file at `path`, and warns if it has no checksum.
fn model_of(bytes: &[u8], path: &Path) -> Result<ModelFile> {
    let file = ModelFile::from_file(bytes, path)?;
    if file.unverified {
        note!("{}", unverified(path.display()));
    }
    Ok(file)
}

/// Checks that `file`, which was read from `path` or is the embedded model, has all parts that draw.
fn ensure_draws(file: &ModelFile, path: Option<&Path>) -> Result<()> {
    let config = &file.config;
    let parts = [
        ("dVAE", config.dvae.is_some()),
        ("prior", config.prior.is_some()),
        ("tokenizer", file.tokenizer.is_some()),
    ];
    let missing: Vec<&str> =
        parts.into_iter().filter(|(_, is_there)| !is_there).map(|(part, _)| part).collect();
    ensure!(
        missing.is_empty(),
        "{} has no {}, so it cannot draw; use a file of `train prior`, or leave --model out for the embedded model",
        path.unwrap_or(Path::new(EMBEDDED)).display(),
        missing.join(" and no ")
    );
    Ok(())
}

/// Returns the config of the dVAE in `file`, which was read from `path` or is the embedded model.
fn dvae_config<'a>(file: &'a ModelFile, path: Option<&Path>) -> Result<&'a DvaeConfig> {
    file.config.dvae.as_ref().with_context(|| {
        let path = path.unwrap_or(Path::new(EMBEDDED)).display();
        format!("{path} has no dVAE; use a file of `train dvae` or `train prior`")
    })
}

/// Returns how the processes that `mpirun` or `srun` started find each other.
fn launch_options(shards: Option<usize>, patience: Duration, is_traced: bool) -> LaunchOptions {
    let report = |reason: &str| {
        stderr::error(reason);
        stderr::flush();
    };
    LaunchOptions { shards, patience, is_traced, report }
}

/// Opens the device for weights that are kept as `weights` says, or of the precision `absent`.
fn compute(on: OnDevice, weights: Option<Weights>, absent: PrecisionFlag) -> Result<Compute> {
    let precision = match weights {
        Some(Weights::F32) => PrecisionFlag::F32,
        Some(Weights::Bf16) => PrecisionFlag::Bf16,
        Some(Weights::Int8) | None => absent,
    };
    precision.compute(on.device)
}

/// Builds the model of a file. Its weights are kept as `weights` says, or as the file suggests. A GPU
/// would gain nothing from 8-bit weights, because it multiplies them in 16 bits or more.
fn tessera_of(file: &ModelFile, weights: Option<Weights>, compute: &Compute) -> Result<Tessera> {
    match weights {
        Some(Weights::F32 | Weights::Bf16) => Tessera::with_weights(file, compute, Kept::Full),
        Some(Weights::Int8) => {
            if !compute.is_on_cpu() {
                note!("--weights int8: a GPU rounds the weights to 8 bits, but keeps them in 16 or 32");
            }
            Tessera::with_weights(file, compute, Kept::Int8).context("--weights int8")
        }
        None if compute.is_on_cpu() => Tessera::new(file, compute),
        None => Tessera::with_weights(file, compute, Kept::Full),
    }
}

/// Loads the model that the flags name for drawing. Also returns its fingerprint. Its reranker comes
/// from the file `rerank` if there is one.
fn tessera(which: &ModelArgs, rerank: Option<&Path>) -> Result<(Tessera, String)> {
    let compute = compute(which.on, which.weights, PrecisionFlag::Auto)?;
    let (file, id) = identified_model(which.model.as_deref())?;
    ensure_draws(&file, which.model.as_deref())?;
    let mut tessera = tessera_of(&file, which.weights, &compute)?;
    if let Some(path) = rerank {
        let reranker = model_file(Some(path))?.reranker(&compute);
        tessera.reranker = Some(reranker.with_context(|| path.display().to_string())?);
    }
    Ok((tessera, id))
}

/// Reads a file.
fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Warns if a model draws without guidance because its file does not contain how it was trained.
fn warn_without_guidance(tessera: &Tessera) {
    if tessera.caption_drop.is_none() {
        note!(
            "warning: the model file does not say whether captions were dropped in training, so it draws with guidance 1; if they were, \
             `tessera pack MODEL --dtype exact --caption-drop SHARE --out NEW` writes a file that says so"
        );
    }
}

/// Returns the name of a model: the file's name without its folder, which is private.
fn model_name(path: Option<&Path>) -> String {
    path.map_or("embedded".into(), |path| path.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

/// The error for standard output that is closed. The command then ends without a message, as other
/// Unix tools do.
#[derive(Debug)]
pub struct ClosedOutput;

impl Display for ClosedOutput {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        f.write_str("standard output was closed")
    }
}

impl Error for ClosedOutput {}

/// The error of a command whose reason is already reported. The program ends with this exit code.
#[derive(Debug)]
pub struct Reported(pub u8);

impl Display for Reported {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        write!(f, "ended with exit code {}", self.0)
    }
}

impl Error for Reported {}

/// The input/output error of every Unix, which a terminal returns that no longer exists.
const EIO: i32 = 5;

/// Prints a line of the result.
///
/// # Errors
/// [`ClosedOutput`] if the reader has closed the pipe, or the terminal no longer exists.
fn say(line: impl Display) -> Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if is_gone(&error) => bail!(ClosedOutput),
        said => said.context("cannot write to standard output"),
    }
}

/// Whether an error means that standard output is closed: the reader closed the pipe, or the
/// terminal no longer exists.
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
