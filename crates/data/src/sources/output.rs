//! The output folder of a source. Folders of other programs are never changed, and unfinished sets
//! are recognised.
//!
//! `dataset.json` is first written without counts, and again with counts when every shard is
//! complete. A folder whose record has counts is therefore complete. A folder whose record has none
//! was interrupted and is built again. A folder without `dataset.json` is not changed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Counts;
use crate::shard::{Packed, ShardWriter, Split};
use crate::skipped::Skipped;
use tessera_base::atomic;

/// The content of `dataset.json`. The recipe contains all settings that determine the bytes of the
/// shards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Record {
    recipe: Value,
    /// The fingerprint of the pictures and captions that the set is made of.
    #[serde(default)]
    files: String,
    counts: Option<Counts>,
    #[serde(default)]
    skipped: Skipped,
}

/// The fingerprints of the pictures and captions that a set is made of. Empty if it is not made of
/// files.
#[derive(Debug, Default)]
pub(super) struct Fingerprints {
    /// The fingerprint for new records.
    pub(super) now: String,
    /// The fingerprint in the format of version 1, for comparison with older records.
    pub(super) version_1: String,
}

/// The state of the output folder.
pub(super) enum Opened {
    /// The folder already contains the same complete set.
    Complete(Counts, Skipped),
    /// The folder is empty; the shards of an interrupted attempt have been removed.
    Ready(Box<Output>),
}

/// A set that is being written.
pub(super) struct Output {
    dir: PathBuf,
    recipe: Value,
    files: String,
    train: ShardWriter,
    val: ShardWriter,
}

/// Returns the record of the complete set in `dir` that `recipe` describes and that is made of
/// `files`. Returns `None` if there is none; `dir` can then be prepared for it. Nothing is written.
pub(super) fn find(dir: &Path, recipe: &Value, files: &Fingerprints) -> Result<Option<(Counts, Skipped)>> {
    let Fingerprints { now, version_1 } = files;
    let Some(found) = read_record(dir)? else { return Ok(None) };
    match found.counts {
        Some(_) if found.recipe == *recipe && ![now, version_1].contains(&&found.files) => bail!(
            "the pictures or captions have changed since {} was made of them (there: {}; now: {now}); \
             delete it or choose another folder",
            dir.display(),
            found.files
        ),
        Some(counts) if found.recipe == *recipe && dir.join(Split::Train.name()).is_dir() => {
            Ok(Some((counts, found.skipped)))
        }
        Some(_) if found.recipe != *recipe => bail!(
            "{} holds a set made with other settings:\n  there: {}\n  requested: {recipe}\ndelete it or choose another folder",
            dir.display(),
            found.recipe
        ),
        _ => Ok(None),
    }
}

/// Checks `dir` and prepares it for the set that `recipe` describes and that is made of `files`.
pub(super) fn open(dir: &Path, recipe: Value, files: &Fingerprints) -> Result<Opened> {
    if let Some((counts, skipped)) = find(dir, &recipe, files)? {
        return Ok(Opened::Complete(counts, skipped));
    }
    clear(dir)?;
    let files = files.now.clone();
    let record =
        Record { recipe: recipe.clone(), files: files.clone(), counts: None, skipped: Skipped::default() };
    write_record(dir, &record)?;
    Ok(Opened::Ready(Box::new(Output {
        dir: dir.to_path_buf(),
        recipe,
        files,
        train: ShardWriter::new(&dir.join(Split::Train.name()), ShardWriter::PER_SHARD),
        val: ShardWriter::new(&dir.join(Split::Val.name()), ShardWriter::PER_SHARD),
    })))
}

impl Output {
    /// Adds a sample to one of the splits.
    pub(super) fn write(&mut self, split: Split, sample: &Packed) -> Result<()> {
        match split {
            Split::Train => self.train.write(sample),
            Split::Val => self.val.write(sample),
        }
    }

    /// Closes the shards and marks the set as complete.
    pub(super) fn finish(self, counts: &Counts, skipped: &Skipped) -> Result<()> {
        let Output { dir, recipe, files, train, val } = self;
        train.finish()?;
        val.finish()?;
        write_record(&dir, &Record { recipe, files, counts: Some(counts.clone()), skipped: skipped.clone() })
    }
}

fn write_record(dir: &Path, record: &Record) -> Result<()> {
    let mut text = serde_json::to_string_pretty(record).context("cannot write dataset.json")?;
    text.push('\n');
    atomic::write(&record_path(dir), text.as_bytes())
}

fn record_path(dir: &Path) -> PathBuf {
    dir.join("dataset.json")
}

/// Reads the record of an earlier run. Returns `None` if the folder is empty or does not exist, and
/// an error if it contains other files.
fn read_record(dir: &Path) -> Result<Option<Record>> {
    let path = record_path(dir);
    if path.is_file() {
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let record = serde_json::from_slice(&text).with_context(|| {
            format!("{} is not a record of `tessera data`; choose another folder", path.display())
        })?;
        return Ok(Some(record));
    }
    if !dir.exists() {
        return Ok(None);
    }
    let mut entries =
        fs::read_dir(dir).with_context(|| format!("cannot read the folder {}", dir.display()))?;
    if entries.any(|entry| !entry.is_ok_and(|entry| atomic::is_leftover(&entry.path()))) {
        bail!("{} is not empty and was not made by `tessera data`; choose another folder", dir.display());
    }
    Ok(None)
}

/// Removes the shards of an interrupted attempt.
fn clear(dir: &Path) -> Result<()> {
    for split in Split::ALL {
        let shards = dir.join(split.name());
        if shards.is_dir() {
            fs::remove_dir_all(&shards).with_context(|| format!("cannot clear {}", shards.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::shard::test_sample;

    fn fingerprints(name: &str) -> Fingerprints {
        Fingerprints { now: name.to_string(), version_1: format!("{name} of version 1") }
    }

    fn ready(dir: &Path, recipe: Value) -> Output {
        match open(dir, recipe, &fingerprints("two")).unwrap() {
            Opened::Ready(output) => *output,
            Opened::Complete(..) => panic!("already complete"),
        }
    }

    #[test]
    fn complete_set_is_recognised_and_partial_set_is_rebuilt() {
        let dir = tempfile::tempdir().unwrap();
        let mut output = ready(dir.path(), json!({"size": 8}));
        output.write(Split::Train, &Packed::new(&test_sample(0, Split::Train)).unwrap()).unwrap();
        drop(output);
        let mut output = ready(dir.path(), json!({"size": 8}));
        output.write(Split::Train, &Packed::new(&test_sample(1, Split::Train)).unwrap()).unwrap();
        let counts = Counts { concepts: 1, ..Counts::default() };
        output.finish(&counts, &Skipped::default()).unwrap();
        let Opened::Complete(found, _) = open(dir.path(), json!({"size": 8}), &fingerprints("two")).unwrap()
        else {
            panic!("made again")
        };
        assert_eq!(found, counts);
        let error = |size: u32, files| {
            open(dir.path(), json!({"size": size}), &fingerprints(files)).err().unwrap().to_string()
        };
        assert!(error(9, "two").contains("other settings"));
        assert!(error(8, "three").contains("have changed since"));
    }

    #[test]
    fn folder_with_other_files_is_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "important").unwrap();
        assert!(
            open(dir.path(), json!({}), &fingerprints("")).err().unwrap().to_string().contains("not empty")
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
