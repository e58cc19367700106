//! The output files of commands. They are checked before the computation and written after it.

use std::fmt::Display;
use std::fs;
use std::io::{Cursor, ErrorKind};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use image::codecs::jpeg::JpegEncoder;
use image::{ImageFormat, RgbImage};
use tessera_base::atomic::{self, Destination};
use tessera_data::png_text::{self, Effort};

use super::say;
use crate::stderr::note;

/// The quality of JPEG files, out of 100.
const JPEG_QUALITY: u8 = 90;

/// The kind of content of an output file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Picture,
    Animation,
    Plot,
    Page,
    /// A model. Its file may have any extension.
    Model,
}

impl Content {
    /// The allowed file extensions. An empty list allows all.
    fn endings(self) -> &'static [&'static str] {
        match self {
            Content::Picture => &["png", "jpg", "jpeg", "webp"],
            Content::Animation => &["gif"],
            Content::Plot => &["svg"],
            Content::Page => &["html", "htm"],
            Content::Model => &[],
        }
    }

    /// Returns an error if the extension belongs to another format. A name without an extension is
    /// allowed.
    fn check_ending(self, path: &Path) -> Result<()> {
        let ending = ending(path);
        let endings = self.endings();
        ensure!(
            ending.is_empty() || endings.is_empty() || endings.contains(&ending.as_str()),
            "cannot write {}: unsupported extension .{ending}; use {}{}",
            path.display(),
            alternatives(endings),
            if self == Content::Picture && ending == "gif" { "; --gif writes an animation" } else { "" }
        );
        Ok(())
    }
}

/// Returns a list of extensions for a message, as in `.png, .jpg or .webp`.
fn alternatives(endings: &[&str]) -> String {
    match endings {
        [first @ .., second_last, last] => {
            let before: String = first.iter().map(|ending| format!(".{ending}, ")).collect();
            format!("{before}.{second_last} or .{last}")
        }
        _ => endings.iter().map(|ending| format!(".{ending}")).collect(),
    }
}

/// Returns the file extension in lower case; empty if there is none.
fn ending(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

/// The output files of one command, after the check that all of them can be written.
#[derive(Default)]
pub struct Outputs {
    to_stdout: bool,
}

impl Outputs {
    /// Checks `files` before the computation. With `json`, none of them may be standard output.
    ///
    /// # Errors
    /// If a file cannot be written, its extension belongs to another format, or two are the same
    /// file.
    pub fn check(files: &[(&Path, Content)], json: bool) -> Result<Outputs> {
        let mut destinations = Vec::new();
        for &(path, content) in files {
            let found = atomic::check(path);
            let found =
                found.with_context(|| format!("cannot write {}; choose another name", path.display()))?;
            if let Destination::File(_) = found {
                content.check_ending(path)?;
            }
            destinations.push((path, found));
        }
        atomic::check_distinct(&destinations)?;
        let to_stdout = destinations.iter().any(|(_, found)| *found == Destination::Stdout);
        if to_stdout && json {
            bail!("--json writes to standard output, as does a file called `-`; give the file another name");
        }
        Ok(Outputs { to_stdout })
    }

    /// Prints a result line to standard output, or to standard error if a file goes to standard
    /// output.
    pub fn say(&self, line: impl Display) -> Result<()> {
        if self.to_stdout {
            note!("{line}");
            return Ok(());
        }
        say(line)
    }

    /// Whether no file is written to standard output.
    pub fn stdout_is_free(&self) -> bool {
        !self.to_stdout
    }
}

/// Checks that the folder `path` can get results: it does not exist, is empty, or contains one of the
/// files `ours` of earlier results. `wanted` names these results, and says what to do.
pub fn check_folder(path: &Path, ours: &[&str], wanted: &str) -> Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("cannot read the folder {}", path.display()))?,
    };
    let is_empty = entries.flatten().all(|entry| atomic::is_leftover(&entry.path()));
    let is_ours = ours.iter().any(|name| path.join(name).exists());
    ensure!(is_empty || is_ours, "{} is not empty and holds no {wanted}", path.display());
    Ok(())
}

/// Whether `path` is a regular file, not a pipe, a device or standard output.
pub fn is_file(path: &Path) -> bool {
    matches!(Destination::of(path), Ok(Destination::File(_)) | Err(_))
}

/// Writes `image` in the format of the path's extension, or as PNG if it has none. `text` is stored
/// in PNGs only.
pub fn write_picture(path: &Path, image: &RgbImage, text: Option<String>) -> Result<()> {
    let cannot = || format!("cannot encode {}", path.display());
    let mut bytes = Cursor::new(Vec::new());
    match (ending(path).as_str(), text) {
        ("jpg" | "jpeg", _) => {
            let encoder = JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY);
            image.write_with_encoder(encoder).with_context(cannot)?;
        }
        ("webp", _) => image.write_to(&mut bytes, ImageFormat::WebP).with_context(cannot)?,
        (_, Some(text)) => bytes = Cursor::new(png_text::encode(image, text, Effort::Small)?),
        (_, None) => image.write_to(&mut bytes, ImageFormat::Png).with_context(cannot)?,
    }
    atomic::write(path, bytes.get_ref())
}
