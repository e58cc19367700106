//! Finds the pictures and captions in a folder at any depth, and counts all other files.
//!
//! A folder that is reached through several links is read only once, so loops of links are
//! harmless.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::skipped::{SkipKind, Skipped};

/// The kind of a file, derived from the ending of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FileKind {
    Picture,
    Text,
    /// Another file, with its ending in lower case.
    Other(String),
}

impl FileKind {
    /// Returns the kind for an ending without its dot.
    pub(crate) fn of_ending(ending: &OsStr) -> FileKind {
        let ending = ending.to_string_lossy().to_lowercase();
        match ending.as_str() {
            "png" | "jpg" | "jpeg" | "jfif" | "jpe" | "webp" => FileKind::Picture,
            "txt" => FileKind::Text,
            _ => FileKind::Other(ending),
        }
    }
}

/// A picture and the caption file with the same name.
#[derive(Debug, Clone)]
pub(crate) struct PictureFile {
    /// The picture's path within the folder, without the ending. Names are bytes and are not
    /// decoded.
    pub(crate) name: PathBuf,
    pub(crate) image: PathBuf,
    pub(crate) text: Option<PathBuf>,
}

/// The pictures under a folder, sorted by name, and what was skipped.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) pictures: Vec<PictureFile>,
    pub(crate) skipped: Skipped,
}

/// Finds the pictures under `dir`, except those under `except`. Hidden files are ignored.
///
/// # Errors
/// If `dir` itself cannot be read.
pub(crate) fn find_pictures(dir: &Path, except: Option<&Path>) -> Result<Found> {
    let mut walk = Walk::default();
    let real = |path: &Path| path.canonicalize().ok();
    walk.seen.extend(except.and_then(real).filter(|except| real(dir).as_ref() != Some(except)));
    fs::read_dir(dir).with_context(|| format!("cannot read the folder {}", dir.display()))?;
    walk.folder(dir);
    // Links are followed last, so that files inside the folder get their real names.
    while !walk.links.is_empty() {
        let mut links = std::mem::take(&mut walk.links);
        links.sort();
        links.iter().for_each(|link| walk.folder(link));
    }
    Ok(walk.pair_captions(dir))
}

/// Records the pictures in a folder of tars as skipped.
pub(crate) fn note_beside_tars(dir: &Path, skipped: &mut Skipped) -> Result<()> {
    let pictures = find_pictures(dir, None)?.pictures;
    pictures.iter().for_each(|file| skipped.note(SkipKind::BesideTars, file.image.display()));
    Ok(())
}

#[derive(Default)]
struct Walk {
    images: Vec<PathBuf>,
    texts: Vec<PathBuf>,
    /// Links to folders that are not followed yet.
    links: Vec<PathBuf>,
    /// The canonical paths of the folders that were read.
    seen: HashSet<PathBuf>,
    skipped: Skipped,
}

impl Walk {
    fn folder(&mut self, dir: &Path) {
        if let Err(error) = self.try_folder(dir) {
            self.skipped.note(SkipKind::Unreadable, format!("{}: {error}", dir.display()));
        }
    }

    fn try_folder(&mut self, dir: &Path) -> std::io::Result<()> {
        if !self.seen.insert(dir.canonicalize()?) {
            if dir.is_symlink() {
                self.skipped.note(SkipKind::SameFolder, dir.display());
            }
            return Ok(());
        }
        let mut entries = fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            match fs::metadata(&path) {
                Err(error) => self.skipped.note(SkipKind::Unreadable, format!("{}: {error}", path.display())),
                Ok(meta) if meta.is_file() => self.file(path),
                Ok(meta) if !meta.is_dir() => {
                    self.skipped
                        .note(SkipKind::Unreadable, format!("{}: not a regular file", path.display()));
                }
                Ok(_) if path.is_symlink() => self.links.push(path),
                Ok(_) => self.folder(&path),
            }
        }
        Ok(())
    }

    fn file(&mut self, path: PathBuf) {
        match FileKind::of_ending(path.extension().unwrap_or_default()) {
            FileKind::Picture => self.images.push(path),
            FileKind::Text => self.texts.push(path),
            FileKind::Other(ending) => self.skipped.note(SkipKind::Ending(ending), path.display()),
        }
    }

    fn pair_captions(self, dir: &Path) -> Found {
        let Walk { mut images, texts, mut skipped, .. } = self;
        let name = |file: &Path| {
            let name = file.with_extension("");
            name.strip_prefix(dir).unwrap_or(&name).to_path_buf()
        };
        let mut captions: BTreeMap<PathBuf, (PathBuf, bool)> = BTreeMap::new();
        for text in texts {
            if let Some((second, _)) = captions.insert(name(&text), (text, false)) {
                skipped.note(SkipKind::SameName, second.display());
            }
        }
        images.sort();
        let mut pictures = Vec::with_capacity(images.len());
        for image in images {
            let name = name(&image);
            let text = captions.get_mut(&name).map(|(text, used)| {
                *used = true;
                text.clone()
            });
            pictures.push(PictureFile { name, image, text });
        }
        for (text, _) in captions.into_values().filter(|(_, used)| !used) {
            skipped.note(SkipKind::NoPicture, text.display());
        }
        Found { pictures, skipped }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create_file(dir: &Path, name: &str) {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }

    fn names(found: &Found) -> Vec<&str> {
        found.pictures.iter().map(|file| file.name.to_str().unwrap()).collect()
    }

    #[test]
    fn all_picture_endings_are_found_and_other_files_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        for name in
            ["a.png", "a.txt", "b.JFIF", "deep/c.jpe", "d.gif", "e.caption", "README", ".hidden.png", "f.txt"]
        {
            create_file(dir.path(), name);
        }
        let found = find_pictures(dir.path(), None).unwrap();
        assert_eq!(names(&found), ["a", "b", "deep/c"]);
        assert_eq!(found.pictures[0].text, Some(dir.path().join("a.txt")));
        let count = |ending: &str| found.skipped.count(&SkipKind::Ending(ending.into()));
        assert_eq!((count("gif"), count("caption"), count("")), (1, 1, 1));
        assert_eq!((found.skipped.count(&SkipKind::NoPicture), found.skipped.total()), (1, 4));
    }

    #[test]
    fn files_under_the_excepted_folder_are_not_found() {
        let dir = tempfile::tempdir().unwrap();
        create_file(dir.path(), "a.png");
        create_file(dir.path(), "out/b.png");
        let found = find_pictures(dir.path(), Some(&dir.path().join("./out"))).unwrap();
        assert_eq!((names(&found), found.skipped.total()), (vec!["a"], 0));
    }

    #[cfg(unix)]
    #[test]
    fn linked_folders_are_read_once_and_broken_links_skipped() {
        use std::os::unix::fs::symlink;
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        create_file(dir.path(), "real/a.png");
        create_file(other.path(), "b.png");
        symlink(other.path(), dir.path().join("linked")).unwrap();
        symlink(dir.path(), dir.path().join("real/loop")).unwrap();
        symlink(dir.path().join("real"), dir.path().join("again")).unwrap();
        symlink("nowhere", dir.path().join("dead.png")).unwrap();
        let found = find_pictures(dir.path(), None).unwrap();
        assert_eq!(names(&found), ["linked/b", "real/a"]);
        let count = |kind| found.skipped.count(&kind);
        assert_eq!((count(SkipKind::SameFolder), count(SkipKind::Unreadable)), (2, 1), "{}", found.skipped);
    }

    #[cfg(unix)]
    #[test]
    fn unreadable_folder_is_skipped() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        create_file(dir.path(), "a.png");
        create_file(dir.path(), "locked/b.png");
        let locked = dir.path().join("locked");
        fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
        let may_read = fs::read_dir(&locked).is_ok(); // true for root
        let found = find_pictures(dir.path(), None).unwrap();
        fs::set_permissions(&locked, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(found.pictures.len(), if may_read { 2 } else { 1 });
        assert_eq!(found.skipped.count(&SkipKind::Unreadable), u64::from(!may_read));
    }
}
