//! Writing a file so that it exists whole or not at all.
//!
//! A reader never meets half a shard: bytes go to a temporary name beside the target, are synced, then renamed.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A file under its temporary name, until [`WholeFile::keep`] gives it its own; dropped before that, it goes away.
pub struct WholeFile {
    target: PathBuf,
    partial: PathBuf,
    writer: Option<BufWriter<File>>,
}

impl WholeFile {
    /// Starts the file that will be called `target`, making its folder if need be.
    pub fn create(target: &Path) -> Result<Self> {
        let name = target.file_name().with_context(|| format!("{} names no file", target.display()))?;
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)
                .with_context(|| format!("cannot make the folder {}", parent.display()))?;
        }
        let partial = target.with_file_name(format!(".{}.partial", name.to_string_lossy()));
        let file = File::create(&partial).with_context(|| format!("cannot write {}", partial.display()))?;
        Ok(Self { target: target.to_path_buf(), partial, writer: Some(BufWriter::new(file)) })
    }

    /// Syncs the bytes to the disk and gives the file its name.
    pub fn keep(mut self) -> Result<()> {
        let writer = self.writer.take().context("the file was already closed")?;
        let file = writer.into_inner().map_err(|e| e.into_error());
        let file = file.with_context(|| format!("cannot write {}", self.partial.display()))?;
        file.sync_all().with_context(|| format!("cannot sync {}", self.partial.display()))?;
        fs::rename(&self.partial, &self.target)
            .with_context(|| format!("cannot rename {} to {}", self.partial.display(), self.target.display()))
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.writer.as_mut().map_or(Ok(0), |w| w.write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.writer.as_mut().map_or(Ok(()), |w| w.flush())
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        // After `keep` the partial name is gone and this does nothing.
        let _ = fs::remove_file(&self.partial);
    }
}

/// Writes `bytes` to `path`, whole or not at all.
///
/// What is not a file (a device, a pipe) is written to as it is; a link stays a link.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    if target.exists() && !target.is_file() {
        return fs::write(&target, bytes).with_context(|| format!("cannot write {}", path.display()));
    }
    let path = target.as_path();
    let mut file = WholeFile::create(path)?;
    file.write_all(bytes).with_context(|| format!("cannot write {}", path.display()))?;
    file.keep()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unkept_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        let mut file = WholeFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        write(&path, b"whole").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
