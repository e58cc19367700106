//! Writing a file so that it exists complete or not at all.
//!
//! A reader never meets half a shard: bytes go to a temporary file beside the target, are synced, then renamed. What cannot be
//! replaced like that is written in place: standard output, pipes, devices, open files of a redirection, mounted files.

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tempfile::{Builder, NamedTempFile};

/// Links that are followed from one to the next; more are taken for a ring.
const MOST_LINKS: usize = 40;

/// Begins and ends the names of temporary files.
const PREFIX: &str = ".tessera-";
const SUFFIX: &str = ".partial";

/// Where a path leads, its links followed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Destination {
    /// Standard output, by any of its names.
    Stdout,
    /// A pipe, a device, or a file that a redirection has opened: it is written in place, behind what it holds.
    Stream(PathBuf),
    /// A file, which may not exist yet: it is replaced.
    File(PathBuf),
}

impl Destination {
    /// Follows `path`.
    ///
    /// # Errors
    /// If it is a folder or can be no file: its folder is missing, or its name too long.
    pub fn of(path: &Path) -> Result<Destination> {
        let mut next = path.to_path_buf();
        for _ in 0..MOST_LINKS {
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
        bail!("{} is a ring of links", path.display())
    }
}

/// The folder of `path`, without links, and the path in it.
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

/// Whether the entries of a folder are the open files of a process (Linux).
fn is_descriptors(folder: &Path) -> bool {
    folder.starts_with("/proc") && folder.ends_with("fd")
}

/// Finds out, before any work, whether `path` can be written; nothing is changed, and nothing left behind.
///
/// # Errors
/// If it cannot.
pub fn check(path: &Path) -> Result<Destination> {
    let destination = Destination::of(path)?;
    let Destination::File(file) = &destination else { return Ok(destination) };
    let exists = file.exists();
    if exists {
        File::options().write(true).open(file)?;
    }
    match temporary(file) {
        Err(error) if !(exists && admits_no_file(&error)) => Err(error.into()),
        Ok(_) | Err(_) => Ok(destination),
    }
}

/// Writes `bytes` to `path`, completely or not at all, making its folder if need be.
///
/// Streams are written to as they are; that their reader has seen enough is no error. A link stays a link.
///
/// # Errors
/// If `path` cannot be written; a file that was there keeps what it held.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    make_folder(path)?;
    let written = match Destination::of(path)? {
        Destination::File(file) => replace(&file, bytes),
        Destination::Stdout => pour(&mut io::stdout().lock(), bytes),
        Destination::Stream(at) => {
            File::options().append(true).open(at).and_then(|mut file| pour(&mut file, bytes))
        }
    };
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn make_folder(path: &Path) -> Result<()> {
    let folder = folder_of(path);
    fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))
}

fn pour(stream: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    match stream.write_all(bytes).and_then(|()| stream.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        poured => poured,
    }
}

fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    match temporary(file) {
        Ok(mut partial) => {
            partial.write_all(bytes)?;
            put_in_place(partial, file)
        }
        Err(error) if file.exists() && admits_no_file(&error) => overwrite(file, bytes),
        Err(error) => Err(error),
    }
}

/// A temporary file beside `file`, with a name that nothing else has and the access rights that `file` has or would get.
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

/// Whether `path` has the name of a temporary file. Only a program that was killed leaves one.
pub fn is_leftover(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(PREFIX) && name.ends_with(SUFFIX)
}

/// Whether an error says that a folder takes no new file, though those in it may be written.
fn admits_no_file(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
}

/// Syncs `partial` and gives it the name `file`. A file that another is mounted on cannot be renamed over.
fn put_in_place(partial: NamedTempFile, file: &Path) -> io::Result<()> {
    partial.as_file().sync_all()?;
    match partial.persist(file) {
        Err(error) if matches!(error.error.kind(), ErrorKind::ResourceBusy | ErrorKind::CrossesDevices) => {
            overwrite(file, &fs::read(error.file.path())?)
        }
        persisted => persisted.map(drop).map_err(|error| error.error),
    }
}

/// Writes over a file that cannot be replaced; if that fails, what it held is put back.
fn overwrite(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let before = fs::read(file)?;
    // It is cut only after it is written, so that no more space is needed than it has.
    let put = |bytes: &[u8]| {
        let mut file = File::options().write(true).open(file)?;
        file.write_all(bytes)?;
        file.set_len(bytes.len() as u64)?;
        file.sync_all()
    };
    put(bytes).inspect_err(|_| drop(put(&before)))
}

/// A file under its temporary name, until [`WholeFile::keep`] gives it its own; dropped before that, it goes away.
pub struct WholeFile {
    target: PathBuf,
    partial: BufWriter<NamedTempFile>,
}

impl WholeFile {
    /// Starts the file that will be called `target`, making its folder if need be.
    pub fn create(target: &Path) -> Result<Self> {
        make_folder(target)?;
        let Destination::File(file) = Destination::of(target)? else {
            bail!("{} is a pipe or a device; wanted a file", target.display())
        };
        let partial = temporary(&file).with_context(|| format!("cannot write {}", target.display()))?;
        Ok(Self { target: file, partial: BufWriter::new(partial) })
    }

    /// Syncs the bytes to the disk and gives the file its name.
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

/// Refuses two outputs that are one file.
///
/// # Errors
/// If two of `destinations` are alike.
pub fn check_distinct(destinations: &[(&Path, Destination)]) -> Result<()> {
    let mut sorted: Vec<_> = destinations.iter().collect();
    sorted.sort_by(|(_, a), (_, b)| a.cmp(b));
    for pair in sorted.windows(2) {
        let [(a, first), (b, second)] = [pair[0], pair[1]];
        ensure!(
            first != second,
            "{} and {} are the same file; give each output a name of its own",
            a.display(),
            b.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
