//! Text files, whoever made them: a bound on their size, then [`decode_text`].

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tessera_text::decode_text;

/// The largest text file that is read unless a caller knows better.
const MAX_BYTES: u64 = 1 << 30;

/// The text of a file.
///
/// # Errors
/// If it cannot be read or is not text; the message names the file.
pub fn read_text(path: &Path) -> Result<String> {
    read_text_of_at_most(path, MAX_BYTES)
}

/// The text of a file that should have at most `limit` bytes.
pub(crate) fn read_text_of_at_most(path: &Path, limit: u64) -> Result<String> {
    let bytes = read_at_most(path, limit)?;
    decode_text(&bytes).with_context(|| path.display().to_string())
}

/// The bytes of a file that should have at most `limit` of them.
pub(crate) fn read_at_most(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let cannot = || format!("cannot read {}", path.display());
    let size = fs::metadata(path).with_context(cannot)?.len();
    ensure!(size <= limit, "{} has {size} bytes, more than the {limit} allowed", path.display());
    fs::read(path).with_context(cannot)
}
