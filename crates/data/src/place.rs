//! The places that pictures and captions are read from: files, or members of tars.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Take};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use tessera_text::decode_text;

use crate::fingerprint::{checksum, file_sum};
use crate::pictures::{MAX_IMAGE_BYTES, MAX_TEXT_BYTES};
use crate::text_file::{read_at_most, read_text_of_at_most};

/// The maximum size of a picture in a tar.
const MAX_MEMBER_BYTES: u64 = 64 << 20;

/// A place that bytes are read from.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    File(PathBuf),
    Member(Member),
}

/// The bytes of one file in a tar.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) tar: Arc<Path>,
    /// The distance from the start of the tar in bytes.
    pub(crate) start: u64,
    pub(crate) size: u64,
}

impl Place {
    /// Returns the path of the file, or of the tar that contains it.
    pub(crate) fn file(&self) -> &Path {
        match self {
            Place::File(path) => path,
            Place::Member(member) => &member.tar,
        }
    }

    /// Reads the bytes of a picture.
    pub(crate) fn read_picture(&self) -> Result<Vec<u8>> {
        match self {
            Place::File(path) => read_at_most(path, MAX_IMAGE_BYTES),
            Place::Member(member) => member.read(MAX_MEMBER_BYTES),
        }
    }

    /// Reads the text of a caption file or of the JSON of a picture.
    pub(crate) fn read_text(&self) -> Result<String> {
        match self {
            Place::File(path) => read_text_of_at_most(path, MAX_TEXT_BYTES),
            Place::Member(member) => decode_text(&member.read(MAX_TEXT_BYTES)?),
        }
    }

    /// Returns a checksum of the content, or 0 if it cannot be read.
    pub(crate) fn sum(&self) -> u32 {
        match self {
            Place::File(path) => file_sum(path),
            Place::Member(member) => member.open().and_then(checksum).unwrap_or(0),
        }
    }

    /// Returns the size in bytes, or 0 if it cannot be read.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Place::File(path) => path.metadata().map_or(0, |file| file.len()),
            Place::Member(member) => member.size,
        }
    }
}

impl Member {
    fn open(&self) -> io::Result<Take<File>> {
        let mut tar = File::open(&self.tar)?;
        tar.seek(SeekFrom::Start(self.start))?;
        Ok(tar.take(self.size))
    }

    fn read(&self, limit: u64) -> Result<Vec<u8>> {
        let Member { tar, size, .. } = self;
        ensure!(*size <= limit, "it has {size} bytes, more than the {limit} allowed in a tar");
        // The tar is at least as large as its members, so the claimed size is true.
        let mut bytes = Vec::with_capacity(usize::try_from(*size)?);
        let read = self.open().and_then(|mut member| member.read_to_end(&mut bytes));
        read.with_context(|| format!("cannot read {}", tar.display()))?;
        ensure!(bytes.len() as u64 == *size, "{} has become shorter", tar.display());
        Ok(bytes)
    }
}
