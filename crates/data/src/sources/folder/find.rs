//! Finds the pictures of a folder and where their captions come from.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use tessera_text::normalise;

use super::names::{Names, absolute_of};
use super::table::{Columns, Table};
use super::{CaptionOptions, Entry};
use crate::files::{Found, PictureFile, find_pictures, note_ending};
use crate::place::Place;
use crate::shard::list_samples;
use crate::skipped::{SkipKind, Skipped};

/// Finds the captioned pictures under `dir`, sorted by name. Pictures without a caption and
/// captions without a picture are recorded as skipped.
///
/// # Errors
/// If no picture has a caption, or a table or a tar cannot be read.
pub(super) fn find_entries(
    dir: &Path,
    out: &Path,
    options: &CaptionOptions,
) -> Result<(Vec<Entry>, Skipped)> {
    let mut except = vec![out];
    except.extend(options.table.as_deref());
    let Found { pictures, tables, tars, mut skipped } = find_pictures(dir, &except)?;
    let tables = read_tables(tables, options)?;
    let is_tars = pictures.is_empty() && !tars.is_empty();
    let entries = match is_tars {
        true => in_tars(dir, &tars, &mut skipped)?,
        false => {
            tars.iter().for_each(|tar| note_ending(tar, &mut skipped));
            pictures.into_iter().map(Entry::of_files).collect()
        }
    };
    let mut entries = distinct(entries, &mut skipped);
    for table in tables {
        add_captions(dir, &mut entries, table, options, &mut skipped)?;
    }
    entries.iter_mut().for_each(|entry| entry.finish_captions(options, &mut skipped));
    let (mut captioned, others): (Vec<Entry>, Vec<Entry>) =
        entries.into_iter().partition(Entry::may_have_caption);
    others.iter().for_each(|entry| skipped.note(SkipKind::NoCaption, entry.file().display()));
    ensure!(!captioned.is_empty(), "{}", no_captions(dir, &others, &skipped));
    captioned.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((captioned, skipped))
}

/// Returns the message about a folder without captioned pictures.
fn no_captions(dir: &Path, uncaptioned: &[Entry], skipped: &Skipped) -> String {
    let folder = uncaptioned.iter().find_map(|entry| folder_caption(&entry.within));
    let hint = folder.map(|folder| {
        format!(", or --folder-names to use the names of folders, such as {folder:?}, as captions")
    });
    format!(
        "no captioned pictures under {}: {}; wanted NAME.txt or NAME.caption next to NAME.png (or jpg, jpeg, webp), \
         a metadata.jsonl, or --captions FILE{}",
        dir.display(),
        skipped.brief(),
        hint.unwrap_or_default()
    )
}

/// Reads the tables of captions: the given one, or those in the folder.
fn read_tables(found: Vec<PathBuf>, options: &CaptionOptions) -> Result<Vec<Table>> {
    let CaptionOptions { table, image_column, text_column, .. } = options;
    let mut folders = BTreeMap::new();
    for path in &found {
        if let Some(other) = folders.insert(path.parent(), path) {
            bail!(
                "two tables of captions for the same pictures: {} and {}; remove one of them",
                other.display(),
                path.display()
            );
        }
    }
    if let (Some(table), Some(other)) = (table, found.first()) {
        bail!(
            "two tables of captions: {} (--captions) and {}; remove one of them, or leave out --captions",
            table.display(),
            other.display()
        );
    }
    let paths: Vec<PathBuf> = table.iter().cloned().chain(found).collect();
    for (flag, column) in [("--image-column", image_column), ("--text-column", text_column)] {
        ensure!(
            column.is_none() || !paths.is_empty(),
            "{flag} needs a table of captions: --captions FILE, or a metadata.jsonl in the folder"
        );
    }
    let columns = Columns { image: image_column.as_deref(), text: text_column.as_deref() };
    paths.iter().map(|path| Table::read(path, columns)).collect()
}

/// Lists the pictures in tars.
fn in_tars(dir: &Path, tars: &[PathBuf], skipped: &mut Skipped) -> Result<Vec<Entry>> {
    ensure!(
        !dir.join("dataset.json").is_file(),
        "{} is already a data set of `tessera data`; give it to --data, or give a folder of pictures here",
        dir.display()
    );
    let mut entries = Vec::new();
    for tar in tars {
        let folder = tar.with_extension("");
        let folder = folder.strip_prefix(dir).unwrap_or(&folder);
        for sample in list_samples(tar, skipped)? {
            let name = sample.name();
            let Some((image, ending)) = sample.image else {
                skipped.note(SkipKind::NoPicture, name);
                continue;
            };
            let within = path_of(&sample.key);
            let within = within.strip_prefix("/").map_or_else(|_| within.clone(), Path::to_path_buf);
            entries.push(Entry {
                name: folder.join(&within),
                within,
                ending,
                image,
                text: sample.txt,
                json: sample.json,
                given: Vec::new(),
                folder: None,
            });
        }
    }
    Ok(entries)
}

/// Returns the path with the bytes of a name in a tar. Bytes that are not UTF-8 are escaped, so
/// different names stay different.
fn path_of(name: &[u8]) -> PathBuf {
    match str::from_utf8(name) {
        Ok(name) => PathBuf::from(name),
        Err(_) => PathBuf::from(name.escape_ascii().to_string()),
    }
}

/// Removes all but the first of the pictures with the same name, except for the ending.
fn distinct(entries: Vec<Entry>, skipped: &mut Skipped) -> Vec<Entry> {
    let mut names = HashSet::new();
    let mut is_first = |entry: &Entry| {
        let is_first = names.insert(entry.name.clone());
        if !is_first {
            skipped.note(SkipKind::SameName, entry.file().display());
        }
        is_first
    };
    entries.into_iter().filter(|entry| is_first(entry)).collect()
}

/// Gives the pictures their captions in a table.
fn add_captions(
    dir: &Path,
    entries: &mut [Entry],
    table: Table,
    options: &CaptionOptions,
    skipped: &mut Skipped,
) -> Result<()> {
    let names = Names::new(dir, entries)?;
    let is_given = options.table.is_some();
    let own = table.path.parent().unwrap_or(Path::new("")).join(".");
    let folders = match is_given {
        true => [dir, &own, Path::new(".")].map(absolute_of).into_iter().collect::<Result<Vec<_>>>()?,
        false => vec![absolute_of(&own)?],
    };
    for row in table.rows {
        let found = names.find(&row.image, &folders);
        // A table in the folder describes the pictures next to it, and no others.
        match found.or_else(|| names.find_file(&row.image).filter(|_| is_given)) {
            Some(position) => entries[position].given.extend(row.captions),
            None => {
                let at = format!("{}, line {}: {}", table.path.display(), row.line, row.image);
                skipped.note(SkipKind::NoPicture, at);
            }
        }
    }
    Ok(())
}

/// Returns the name of the last folder of a picture's path as a caption.
fn folder_caption(within: &Path) -> Option<String> {
    let name = within.parent()?.file_name()?.to_str()?.replace('_', " ");
    Some(name.trim().to_string()).filter(|name| !normalise(name).is_empty())
}

impl Entry {
    fn of_files(file: PictureFile) -> Entry {
        let PictureFile { name, image, text, json } = file;
        Entry {
            within: name.clone(),
            name,
            ending: image.extension().unwrap_or_default().to_string_lossy().into_owned(),
            image: Place::File(image),
            text: text.map(Place::File),
            json: json.map(Place::File),
            given: Vec::new(),
            folder: None,
        }
    }

    /// Returns the path of the picture in the folder, with the ending.
    pub(super) fn file(&self) -> PathBuf {
        let mut file = self.name.clone().into_os_string();
        file.push(".");
        file.push(OsStr::new(&self.ending));
        file.into()
    }

    /// Chooses among the sources of captions that are known now.
    fn finish_captions(&mut self, options: &CaptionOptions, skipped: &mut Skipped) {
        if options.folder_names {
            self.folder = folder_caption(&self.within);
        }
        if self.given.is_empty() {
            return;
        }
        let mut seen = HashSet::new();
        let (first, repeated): (Vec<String>, Vec<String>) =
            std::mem::take(&mut self.given).into_iter().partition(|caption| seen.insert(caption.clone()));
        self.given = first;
        let file = self.file();
        repeated.iter().for_each(|caption| {
            skipped.note(SkipKind::SameCaption, format!("{}: {caption}", file.display()))
        });
        if self.text.take().is_some() {
            skipped.note(SkipKind::TableInstead, file.display());
        }
    }

    fn may_have_caption(&self) -> bool {
        !self.given.is_empty() || self.text.is_some() || self.json.is_some() || self.folder.is_some()
    }
}
