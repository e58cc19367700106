//! Reads text files of any origin: checks their size, then decodes them with [`decode_text`].

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tessera_text::decode_text;

/// The default maximum size of a text file.
const MAX_BYTES: u64 = 1 << 30;

/// Reads the text of a file.
///
/// # Errors
/// If the file cannot be read or is not text. The message names the file.
pub fn read_text(path: &Path) -> Result<String> {
    read_text_of_at_most(path, MAX_BYTES)
}

/// Reads the text of a file; more than `limit` bytes are an error.
pub(crate) fn read_text_of_at_most(path: &Path, limit: u64) -> Result<String> {
    let bytes = read_at_most(path, limit)?;
    decode_text(&bytes).with_context(|| path.display().to_string())
}

/// Reads the bytes of a file; more than `limit` bytes are an error.
pub(crate) fn read_at_most(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let read_error = || format!("cannot read {}", path.display());
    let size = fs::metadata(path).with_context(read_error)?.len();
    ensure!(size <= limit, "{} has {size} bytes, more than the {limit} allowed", path.display());
    fs::read(path).with_context(read_error)
}
