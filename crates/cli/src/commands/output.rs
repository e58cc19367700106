//! Output files of commands: checked before the work, written after it.

use std::fmt::Display;
use std::io::Cursor;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use image::codecs::jpeg::JpegEncoder;
use image::{ImageFormat, RgbImage};
use tessera_base::atomic::{self, Destination};
use tessera_data::png_text::{self, Effort};

use super::say;
use crate::stderr::note;

/// Quality of JPEG files, of 100.
const JPEG_QUALITY: u8 = 90;

/// What is in an output file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Picture,
    Animation,
    Plot,
    Page,
    /// A model, whose file may have any name.
    Model,
}

impl Content {
    /// The endings of its file names; any if there are none.
    fn endings(self) -> &'static [&'static str] {
        match self {
            Content::Picture => &["png", "jpg", "jpeg", "webp"],
            Content::Animation => &["gif"],
            Content::Plot => &["svg"],
            Content::Page => &["html", "htm"],
            Content::Model => &[],
        }
    }

    /// Refuses a name that claims another format. A name without an ending claims none.
    fn check_ending(self, path: &Path) -> Result<()> {
        let ending = ending(path);
        let endings = self.endings();
        ensure!(
            ending.is_empty() || endings.is_empty() || endings.contains(&ending.as_str()),
            "cannot write {}: a file of this kind is called .{}{}",
            path.display(),
            endings.join(", ."),
            if self == Content::Picture && ending == "gif" { "; --gif writes an animation" } else { "" }
        );
        Ok(())
    }
}

fn ending(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

/// The output files of one command, all of which can be written.
#[derive(Default)]
pub struct Outputs {
    to_stdout: bool,
}

impl Outputs {
    /// Checks `files`, before any work. With `--json`, standard output is taken.
    ///
    /// # Errors
    /// If one cannot be written, its ending is of another format, or two are the same file.
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

    /// Says what was done: on standard output, or beside it if a file goes there.
    pub fn say(&self, line: impl Display) -> Result<()> {
        if self.to_stdout {
            note!("{line}");
            return Ok(());
        }
        say(line)
    }

    /// Whether standard output is for people, and not one of the files.
    pub fn stdout_is_free(&self) -> bool {
        !self.to_stdout
    }
}

/// Whether `path` is a file, and not a pipe, a device or standard output.
pub fn is_file(path: &Path) -> bool {
    matches!(Destination::of(path), Ok(Destination::File(_)) | Err(_))
}

/// Writes `image` in the format of the path's ending, as PNG if it has none. A PNG carries `text`; the others cannot.
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
