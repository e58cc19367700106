//! Finds the pictures and captions in a folder at any depth, and counts all other files.
//!
//! Captions are in text files next to the pictures, in their JSON, or in tables.
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
    Json,
    Tar,
    /// Another file, with its ending in lower case.
    Other(String),
}

impl FileKind {
    /// Returns the kind for an ending without its dot.
    pub(crate) fn of_ending(ending: &OsStr) -> FileKind {
        let ending = ending.to_string_lossy().to_lowercase();
        match ending.as_str() {
            "png" | "jpg" | "jpeg" | "jfif" | "jpe" | "webp" => FileKind::Picture,
            "txt" | "caption" => FileKind::Text,
            "json" => FileKind::Json,
            "tar" => FileKind::Tar,
            _ => FileKind::Other(ending),
        }
    }
}

/// The names of tables of captions in the convention of Hugging Face's image folders.
const TABLES: [&str; 3] = ["metadata.jsonl", "metadata.csv", "metadata.tsv"];

/// A picture and the files with the same name.
#[derive(Debug, Clone)]
pub(crate) struct PictureFile {
    /// The picture's path within the folder, without the ending. Names are bytes and are not
    /// decoded.
    pub(crate) name: PathBuf,
    pub(crate) image: PathBuf,
    /// The caption file: `.txt`, or else `.caption`.
    pub(crate) text: Option<PathBuf>,
    /// The metadata that img2dataset stores.
    pub(crate) json: Option<PathBuf>,
}

/// The pictures under a folder, sorted by name, and what was skipped.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) pictures: Vec<PictureFile>,
    /// Tables that describe the pictures of their folder.
    pub(crate) tables: Vec<PathBuf>,
    pub(crate) tars: Vec<PathBuf>,
    pub(crate) skipped: Skipped,
}

impl Found {
    /// Returns the pictures and what was skipped, including all tables, tars and JSON files.
    pub(crate) fn only_pictures(self) -> (Vec<PictureFile>, Skipped) {
        let Found { pictures, tables, tars, mut skipped } = self;
        let json = pictures.iter().filter_map(|picture| picture.json.as_ref());
        tables.iter().chain(&tars).chain(json).for_each(|path| note_ending(path, &mut skipped));
        (pictures, skipped)
    }
}

/// Records a file as skipped because of its ending.
pub(crate) fn note_ending(path: &Path, skipped: &mut Skipped) {
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    skipped.note(SkipKind::Ending(ending), path.display());
}

/// Finds the pictures under `dir`, except the files and folders `except`. Hidden files are ignored.
///
/// # Errors
/// If `dir` itself cannot be read.
pub(crate) fn find_pictures(dir: &Path, except: &[&Path]) -> Result<Found> {
    let real = |path: &Path| path.canonicalize().ok();
    let except = except.iter().filter_map(|path| real(path)).filter(|path| real(dir).as_ref() != Some(path));
    let except: Vec<PathBuf> = except.collect();
    let mut walk = Walk { seen: except.iter().cloned().collect(), except, ..Walk::default() };
    fs::read_dir(dir).with_context(|| format!("cannot read the folder {}", dir.display()))?;
    walk.folder(dir);
    // Links are followed last, so that files inside the folder get their real names.
    while !walk.links.is_empty() {
        let mut links = std::mem::take(&mut walk.links);
        links.sort();
        links.iter().for_each(|link| walk.folder(link));
    }
    Ok(walk.pair(dir))
}

/// Records the pictures in a folder of tars as skipped.
pub(crate) fn note_beside_tars(dir: &Path, skipped: &mut Skipped) -> Result<()> {
    let pictures = find_pictures(dir, &[])?.pictures;
    pictures.iter().for_each(|file| skipped.note(SkipKind::BesideTars, file.image.display()));
    Ok(())
}

#[derive(Default)]
struct Walk {
    images: Vec<PathBuf>,
    texts: Vec<PathBuf>,
    json: Vec<PathBuf>,
    tables: Vec<PathBuf>,
    tars: Vec<PathBuf>,
    /// Links to folders that are not followed yet.
    links: Vec<PathBuf>,
    /// The canonical paths of what is not read.
    except: Vec<PathBuf>,
    /// The canonical paths of the folders that were read or are not read.
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
        let is_it = |except: &PathBuf| path.canonicalize().is_ok_and(|path| path == *except);
        if self.except.iter().any(|except| except.file_name() == path.file_name() && is_it(except)) {
            return;
        }
        if path.file_name().is_some_and(|name| TABLES.iter().any(|table| name == *table)) {
            return self.tables.push(path);
        }
        match FileKind::of_ending(path.extension().unwrap_or_default()) {
            FileKind::Picture => self.images.push(path),
            FileKind::Text => self.texts.push(path),
            FileKind::Json => self.json.push(path),
            FileKind::Tar => self.tars.push(path),
            FileKind::Other(_) => note_ending(&path, &mut self.skipped),
        }
    }

    /// Gives each picture the files with the same name.
    fn pair(self, dir: &Path) -> Found {
        let Walk { mut images, mut texts, json, tables, mut tars, mut skipped, .. } = self;
        // Of two caption files with the same name, the `.txt` is later and therefore kept.
        texts.sort_by_key(|text| text.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("txt")));
        let (mut texts, mut json) =
            (Companions::new(dir, texts, &mut skipped), Companions::new(dir, json, &mut skipped));
        images.sort();
        let mut pictures = Vec::with_capacity(images.len());
        for image in images {
            let name = name_within(dir, &image);
            let (text, json) = (texts.take(&name), json.take(&name));
            pictures.push(PictureFile { name, image, text, json });
        }
        texts.unused().for_each(|text| skipped.note(SkipKind::NoPicture, text.display()));
        json.unused().for_each(|json| note_ending(&json, &mut skipped));
        tars.sort();
        Found { pictures, tables, tars, skipped }
    }
}

/// Returns the path of a file within `dir`, without the ending.
fn name_within(dir: &Path, file: &Path) -> PathBuf {
    let name = file.with_extension("");
    name.strip_prefix(dir).unwrap_or(&name).to_path_buf()
}

/// Files that belong to the pictures with the same names, and whether a picture has each.
struct Companions(BTreeMap<PathBuf, (PathBuf, bool)>);

impl Companions {
    /// Of several files with the same name the last is kept.
    fn new(dir: &Path, files: Vec<PathBuf>, skipped: &mut Skipped) -> Companions {
        let mut companions: BTreeMap<PathBuf, (PathBuf, bool)> = BTreeMap::new();
        for file in files {
            if let Some((other, _)) = companions.insert(name_within(dir, &file), (file, false)) {
                skipped.note(SkipKind::SameName, other.display());
            }
        }
        Companions(companions)
    }

    fn take(&mut self, name: &Path) -> Option<PathBuf> {
        self.0.get_mut(name).map(|(file, used)| {
            *used = true;
            file.clone()
        })
    }

    fn unused(self) -> impl Iterator<Item = PathBuf> {
        self.0.into_values().filter(|(_, used)| !used).map(|(file, _)| file)
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
            ["a.png", "a.txt", "b.JFIF", "deep/c.jpe", "d.gif", "e.tags", "README", ".hidden.png", "f.txt"]
        {
            create_file(dir.path(), name);
        }
        let found = find_pictures(dir.path(), &[]).unwrap();
        assert_eq!(names(&found), ["a", "b", "deep/c"]);
        assert_eq!(found.pictures[0].text, Some(dir.path().join("a.txt")));
        let count = |ending: &str| found.skipped.count(&SkipKind::Ending(ending.into()));
        assert_eq!((count("gif"), count("tags"), count("")), (1, 1, 1));
        assert_eq!((found.skipped.count(&SkipKind::NoPicture), found.skipped.total()), (1, 4));
    }

    #[test]
    fn files_under_the_excepted_folder_are_not_found() {
        let dir = tempfile::tempdir().unwrap();
        create_file(dir.path(), "a.png");
        create_file(dir.path(), "out/b.png");
        let found = find_pictures(dir.path(), &[&dir.path().join("./out")]).unwrap();
        assert_eq!((names(&found), found.skipped.total()), (vec!["a"], 0));
    }

    #[test]
    fn pictures_have_the_files_with_the_same_name() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.png", "a.caption", "b.png", "b.TXT", "b.caption", "a.json", "c.json", "x.tar"] {
            create_file(dir.path(), name);
        }
        create_file(dir.path(), "deep/metadata.jsonl");
        let found = find_pictures(dir.path(), &[&dir.path().join("x.tar")]).unwrap();
        let at = |name: &str| Some(dir.path().join(name));
        assert_eq!([&found.pictures[0].text, &found.pictures[1].text], [&at("a.caption"), &at("b.TXT")]);
        assert_eq!([&found.pictures[0].json, &found.pictures[1].json], [&at("a.json"), &None]);
        assert_eq!(
            (found.tables.as_slice(), found.tars.len()),
            (&[at("deep/metadata.jsonl").unwrap()][..], 0)
        );
        let kinds = [SkipKind::SameName, SkipKind::Ending("json".into())];
        assert_eq!(kinds.map(|kind| found.skipped.count(&kind)), [1, 1], "{}", found.skipped);
        let (_, skipped) = found.only_pictures();
        assert_eq!(skipped.count(&SkipKind::Ending("json".into())), 2);
        assert_eq!(skipped.count(&SkipKind::Ending("jsonl".into())), 1);
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
        let found = find_pictures(dir.path(), &[]).unwrap();
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
        let found = find_pictures(dir.path(), &[]).unwrap();
        fs::set_permissions(&locked, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(found.pictures.len(), if may_read { 2 } else { 1 });
        assert_eq!(found.skipped.count(&SkipKind::Unreadable), u64::from(!may_read));
    }
}
