//! Atomic writes: an output file either exists completely or not at all.
//!
//! The bytes go to a temporary file in the target's folder, which is synced and then renamed.
//! Outputs that cannot be replaced by renaming are written in place: standard output, pipes,
//! devices, files opened by a redirection, and mounted files.

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tempfile::{Builder, NamedTempFile};

/// The maximum length of a chain of links. A longer chain is treated as a loop.
const MAX_LINKS: usize = 40;

/// The start of the name of a temporary file.
const PREFIX: &str = ".tessera-";
/// The end of the name of a temporary file.
const SUFFIX: &str = ".partial";

/// The output that a path refers to, after its links are followed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Destination {
    /// Standard output, under any of its names.
    Stdout,
    /// A pipe, a device, or a file that a redirection has opened. Bytes are appended to it.
    Stream(PathBuf),
    /// A file, which may not exist yet. It is replaced.
    File(PathBuf),
}

impl Destination {
    /// Follows the links of `path`.
    ///
    /// # Errors
    /// If `path` is a folder, or cannot be a file because its folder is missing or its name is too
    /// long.
    pub fn of(path: &Path) -> Result<Destination> {
        let mut next = path.to_path_buf();
        for _ in 0..MAX_LINKS {
            let (folder, at) = resolved(&next)?;
            if is_descriptors(&folder) {
                return Ok(if at.ends_with("1") { Destination::Stdout } else { Destination::Stream(at) });
            }
            match fs::symlink_metadata(&at) {
                Ok(meta) if meta.is_symlink() => next = folder.join(fs::read_link(&at)?),
                Ok(meta) if meta.is_dir() => bail!("{} is a folder; wanted a file", path.display()),
                Ok(meta) if meta.is_file() => return Ok(Destination::File(at)),
                Ok(_) => return Ok(Destination::Stream(at)),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Destination::File(at)),
                Err(error) => return Err(error.into()),
            }
        }
        bail!("{} is a loop of links", path.display())
    }
}

/// Returns the folder of `path` with all links resolved, and the path of the file in that folder.
fn resolved(path: &Path) -> Result<(PathBuf, PathBuf)> {
    let slash = path.as_os_str().as_encoded_bytes().ends_with(b"/");
    let name = path.file_name().filter(|_| !slash);
    let name = name.with_context(|| format!("{} names no file", path.display()))?;
    let folder = folder_of(path);
    let found = fs::canonicalize(folder).with_context(|| format!("no folder {}", folder.display()))?;
    let at = found.join(name);
    Ok((found, at))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether the entries of a folder are the open file descriptors of a process (Linux).
fn is_descriptors(folder: &Path) -> bool {
    folder.starts_with("/proc") && folder.ends_with("fd")
}

/// Checks whether `path` can be written, so that a command can fail before it does any work.
/// Changes nothing.
///
/// # Errors
/// If `path` cannot be written.
pub fn check(path: &Path) -> Result<Destination> {
    let destination = Destination::of(path)?;
    let Destination::File(file) = &destination else { return Ok(destination) };
    let exists = file.exists();
    if exists {
        File::options().write(true).open(file)?;
    }
    match temporary(file) {
        Err(error) if !(exists && denies_new_files(&error)) => Err(error.into()),
        Ok(_) | Err(_) => Ok(destination),
    }
}

/// Writes `bytes` to `path`, completely or not at all. Creates the folder if necessary.
///
/// Streams are written directly; it is not an error if the reader closes its end early. A link
/// stays a link.
///
/// # Errors
/// If `path` cannot be written. An existing file then keeps its content.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    make_folder(path)?;
    let written = match Destination::of(path)? {
        Destination::File(file) => replace(&file, bytes),
        Destination::Stdout => write_stream(&mut io::stdout().lock(), bytes),
        Destination::Stream(at) => {
            File::options().append(true).open(at).and_then(|mut file| write_stream(&mut file, bytes))
        }
    };
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn make_folder(path: &Path) -> Result<()> {
    let folder = folder_of(path);
    fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))
}

fn write_stream(stream: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    match stream.write_all(bytes).and_then(|()| stream.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    match temporary(file) {
        Ok(mut partial) => {
            partial.write_all(bytes)?;
            put_in_place(partial, file)
        }
        Err(error) if file.exists() && denies_new_files(&error) => overwrite(file, bytes),
        Err(error) => Err(error),
    }
}

/// Creates a temporary file in the folder of `file`. Its name is unique, and it has the permissions
/// that `file` has or would get.
fn temporary(file: &Path) -> io::Result<NamedTempFile> {
    let mut builder = Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let partial = builder.tempfile_in(folder_of(file))?;
    if let Ok(meta) = fs::metadata(file) {
        partial.as_file().set_permissions(meta.permissions())?;
    }
    Ok(partial)
}

/// Whether `path` has the name of a temporary file. Such a file remains only if the program was
/// killed.
pub fn is_leftover(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(PREFIX) && name.ends_with(SUFFIX)
}

/// Whether an error means that no file can be created in a folder. Existing files in it may still
/// be writable.
fn denies_new_files(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
}

/// Syncs `partial` and renames it to `file`. A file that is a mount point cannot be replaced by
/// renaming, so it is overwritten.
fn put_in_place(partial: NamedTempFile, file: &Path) -> io::Result<()> {
    partial.as_file().sync_all()?;
    match partial.persist(file) {
        Err(error) if matches!(error.error.kind(), ErrorKind::ResourceBusy | ErrorKind::CrossesDevices) => {
            overwrite(file, &fs::read(error.file.path())?)
        }
        persisted => persisted.map(drop).map_err(|error| error.error),
    }
}

/// Overwrites a file that cannot be replaced. If that fails, its previous content is restored.
fn overwrite(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let before = fs::read(file)?;
    // The file is truncated only after writing, so its old disk space suffices to restore its
    // content.
    let put = |bytes: &[u8]| {
        let mut file = File::options().write(true).open(file)?;
        file.write_all(bytes)?;
        file.set_len(bytes.len() as u64)?;
        file.sync_all()
    };
    put(bytes).inspect_err(|_| drop(put(&before)))
}

/// A file that has a temporary name until [`WholeFile::keep`] renames it. Dropping it before that
/// deletes it.
pub struct WholeFile {
    target: PathBuf,
    partial: BufWriter<NamedTempFile>,
}

impl WholeFile {
    /// Creates the temporary file for `target`, and the folder if necessary.
    pub fn create(target: &Path) -> Result<Self> {
        make_folder(target)?;
        let Destination::File(file) = Destination::of(target)? else {
            bail!("{} is a pipe or a device; wanted a file", target.display())
        };
        let partial = temporary(&file).with_context(|| format!("cannot write {}", target.display()))?;
        Ok(Self { target: file, partial: BufWriter::new(partial) })
    }

    /// Syncs the bytes to the disk and renames the file to its target.
    pub fn keep(self) -> Result<()> {
        let partial = self.partial.into_inner().map_err(|error| error.into_error());
        let kept = partial.and_then(|partial| put_in_place(partial, &self.target));
        kept.with_context(|| format!("cannot write {}", self.target.display()))
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.partial.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.partial.flush()
    }
}

/// Checks that all outputs are different files.
///
/// # Errors
/// If two of `destinations` are equal.
pub fn check_distinct(destinations: &[(&Path, Destination)]) -> Result<()> {
    let mut sorted: Vec<_> = destinations.iter().collect();
    sorted.sort_by(|(_, a), (_, b)| a.cmp(b));
    for pair in sorted.windows(2) {
        let [(a, first), (b, second)] = [pair[0], pair[1]];
        ensure!(
            first != second,
            "{} and {} are the same file; give each output a different name",
            a.display(),
            b.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
