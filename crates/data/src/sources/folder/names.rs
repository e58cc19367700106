//! Finds the picture that a table of captions names.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf, absolute};

use anyhow::{Context, Result};

use super::Entry;

/// The pictures of a folder by name.
pub(super) struct Names {
    /// The folder, as given and without links.
    roots: Vec<PathBuf>,
    /// The positions of the pictures by their paths in the folder, with and without the ending.
    paths: HashMap<PathBuf, usize>,
    /// The positions by the last component alone, or `None` if it is ambiguous.
    files: HashMap<OsString, Option<usize>>,
}

impl Names {
    pub(super) fn new(dir: &Path, entries: &[Entry]) -> Result<Names> {
        let root = absolute_of(dir)?;
        let roots = [Some(root), dir.canonicalize().ok()].into_iter().flatten().collect();
        let mut names = Names { roots, paths: HashMap::new(), files: HashMap::new() };
        for (position, entry) in entries.iter().enumerate() {
            for name in [entry.file(), entry.name.clone()] {
                if let Some(file) = name.file_name() {
                    let same = names.files.entry(file.to_owned()).or_insert(Some(position));
                    *same = same.filter(|other| *other == position);
                }
                names.paths.entry(name).or_insert(position);
            }
        }
        Ok(names)
    }

    /// Returns the position of the picture `name`, which is relative to one of `folders`.
    pub(super) fn find(&self, name: &str, folders: &[PathBuf]) -> Option<usize> {
        let find = |name: &str| folders.iter().find_map(|folder| self.path(&folder.join(name)));
        // Tables from Windows have backslashes.
        find(name).or_else(|| find(&name.replace('\\', "/")))
    }

    /// Returns the position of the only picture with the file name `name`.
    pub(super) fn find_file(&self, name: &str) -> Option<usize> {
        *self.files.get(Path::new(name).as_os_str())?
    }

    fn path(&self, path: &Path) -> Option<usize> {
        let path = without_dots(path);
        let inside = self.roots.iter().find_map(|root| path.strip_prefix(root).ok());
        inside.and_then(|inside| self.paths.get(inside)).copied()
    }
}

/// Returns the absolute path of `path` without `.` and `..`. Links are not followed.
pub(super) fn absolute_of(path: &Path) -> Result<PathBuf> {
    let path = absolute(path).with_context(|| format!("cannot find {}", path.display()))?;
    Ok(without_dots(&path))
}

fn without_dots(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => drop(clean.pop()),
            other => clean.push(other),
        }
    }
    clean
}
