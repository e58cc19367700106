//! Safetensors files with a JSON header that holds a format version and a checksum of the complete
//! file.
//!
//! Model files, code files and checkpoints use this container. The header is the only entry of the
//! safetensors metadata: the format does not preserve the order of several entries, and the same
//! content should always give the same bytes. The checksum (CRC-32C, 8 hex digits) covers every
//! byte of the file, with the character `0` in place of its own digits. Files from before checksums
//! were introduced can still be read; their [`Contents::verified`] is false.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::error::Error;
use std::fmt::{Display, Formatter};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::{SafeTensors, View};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The placeholder for the checksum's digits while the checksum is computed.
const BLANK: &[u8; 8] = b"00000000";
/// The bytes before the checksum's digits. The header is a JSON string inside JSON, so its quotes
/// are escaped.
const LABEL: &[u8] = br#"\"checksum\":\""#;

/// A kind of file.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// The header's key in the safetensors metadata.
    pub key: &'static str,
    /// The description of such a file in messages, with an article, such as "a model file".
    pub name: &'static str,
    /// The format version that is written. Older versions can be read.
    pub format: u32,
    /// The first format version with a checksum.
    pub checked: u32,
}

/// Hashes of the config and the data that a file was made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The hash of the config.
    pub config: String,
    /// The fingerprints of the inputs.
    pub data: String,
}

/// Returns a short hash of a text, in the form that [`Origin`] uses.
pub fn hash(text: &str) -> String {
    format!("{:08x}", crc32c::crc32c(text.as_bytes()))
}

/// Returns the warning for a file without a checksum.
pub fn unverified(file: impl Display) -> String {
    format!("warning: {file} was written before files had a checksum: damage to it would go unnoticed")
}

/// The contents of a file.
pub struct Contents<'a, H> {
    /// The header's fields other than the format version and the checksum.
    pub header: H,
    /// The tensors.
    pub tensors: SafeTensors<'a>,
    /// Whether the file has a checksum and it is correct. Damage to a file without one may go
    /// unnoticed.
    pub verified: bool,
}

/// The error for a file that is intact but has a newer format version than this program supports.
#[derive(Debug)]
pub struct Newer {
    kind: Kind,
    format: u32,
}

impl Display for Newer {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        let (Kind { name, format, .. }, theirs) = (self.kind, self.format);
        write!(
            f,
            "{name} of format version {theirs}, written by a newer version of Tessera; this one reads up to {format}"
        )
    }
}

impl Error for Newer {}

#[derive(Serialize)]
struct Envelope<'a, H> {
    format: u32,
    checksum: &'a str,
    #[serde(flatten)]
    header: &'a H,
}

#[derive(Deserialize)]
struct Version {
    #[serde(alias = "version")]
    format: u32,
    checksum: Option<String>,
}

impl Kind {
    /// Returns the bytes of a file with this header and these tensors. The header's fields must not
    /// be called `format`, `version` or `checksum`.
    ///
    /// # Errors
    /// If safetensors rejects the tensors or the header cannot be serialized as JSON.
    pub fn write<V: View>(&self, header: &impl Serialize, tensors: Vec<(String, V)>) -> Result<Vec<u8>> {
        let mut bytes = safetensors::serialize(tensors, Some(self.metadata(header)?))?;
        let at = checksum_at(&bytes).context("the header has no place for a checksum")?;
        let checksum = format!("{:08x}", checksum(&bytes, at));
        bytes[at..at + BLANK.len()].copy_from_slice(checksum.as_bytes());
        Ok(bytes)
    }

    /// Writes a file with `header` and `tensors`, one tensor after another, and syncs it. The file is
    /// not complete if this fails.
    ///
    /// # Errors
    /// If the header cannot be serialized as JSON, or the file cannot be written.
    pub fn write_file<V: View>(
        &self,
        path: &Path,
        header: &impl Serialize,
        tensors: Vec<(String, V)>,
    ) -> Result<()> {
        let written = || -> Result<()> {
            safetensors::serialize_to_file(tensors, Some(self.metadata(header)?), path)?;
            let mut file = File::options().read(true).write(true).open(path)?;
            let mut length = [0; 8];
            file.read_exact(&mut length)?;
            let mut start = length.to_vec();
            Read::by_ref(&mut file).take(u64::from_le_bytes(length)).read_to_end(&mut start)?;
            let at = checksum_at(&start).context("the header has no place for a checksum")?;
            // The digits are still those of `BLANK`.
            let mut checksum = crc32c::crc32c(&start);
            let mut rest = BufReader::with_capacity(1 << 20, &file);
            while let bytes @ [_, ..] = rest.fill_buf()? {
                checksum = crc32c::crc32c_append(checksum, bytes);
                let n = bytes.len();
                rest.consume(n);
            }
            file.seek(SeekFrom::Start(at as u64))?;
            write!(file, "{checksum:08x}")?;
            Ok(file.sync_all()?)
        };
        written().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Returns the metadata with `header` and the place of the checksum.
    fn metadata(&self, header: &impl Serialize) -> Result<HashMap<String, String>> {
        let blank = std::str::from_utf8(BLANK)?;
        let header = serde_json::to_string(&Envelope { format: self.format, checksum: blank, header })?;
        Ok(HashMap::from([(self.key.to_string(), header)]))
    }

    /// Reads the bytes of a file and verifies its checksum.
    ///
    /// # Errors
    /// Returns [`Newer`] if the format version is not known yet, and another error if the file is
    /// of another kind, damaged or cut short.
    pub fn read<'a, H: DeserializeOwned>(&self, bytes: &'a [u8]) -> Result<Contents<'a, H>> {
        let name = self.name;
        let (_, metadata) = SafeTensors::read_metadata(bytes)
            .context("not a safetensors file, or one that is damaged or cut short")?;
        let header = metadata.metadata().as_ref().and_then(|entries| entries.get(self.key));
        let header = header.with_context(|| format!("a safetensors file, but not {name}"))?;
        let Version { format, checksum } = serde_json::from_str(header).context("its header is damaged")?;
        if let Some(expected) = &checksum {
            verify(bytes, expected)?;
        }
        if format > self.format {
            bail!(Newer { kind: *self, format });
        }
        ensure!(
            checksum.is_some() || format < self.checked,
            "it is damaged: files of format version {format} have a checksum, and this one has none"
        );
        Ok(Contents {
            header: serde_json::from_str(header).context("its header is damaged")?,
            tensors: SafeTensors::deserialize(bytes).context("its tensors are damaged")?,
            verified: checksum.is_some(),
        })
    }
}

fn verify(bytes: &[u8], expected: &str) -> Result<()> {
    let at = checksum_at(bytes).context("it is damaged: its checksum is not in its place")?;
    let found = format!("{:08x}", checksum(bytes, at));
    ensure!(found == *expected, "it is damaged: its bytes have the checksum {found}, wanted {expected}");
    Ok(())
}

/// Returns the position of the checksum's digits.
fn checksum_at(bytes: &[u8]) -> Option<usize> {
    let at = bytes.windows(LABEL.len()).position(|window| window == LABEL)? + LABEL.len();
    (at + BLANK.len() <= bytes.len()).then_some(at)
}

/// Computes the CRC-32C of the file with the character `0` in place of the checksum's digits.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let before = crc32c::crc32c_append(crc32c::crc32c(&bytes[..at]), BLANK);
    crc32c::crc32c_append(before, &bytes[at + BLANK.len()..])
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::{Dtype, TensorView};

    use super::*;

    const KIND: Kind = Kind { key: "test", name: "a test file", format: 2, checked: 2 };

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Header {
        note: String,
    }

    fn header() -> Header {
        // A field may contain text that looks like a checksum.
        Header { note: "\"checksum\":\"12345678\"".to_string() }
    }

    fn file_bytes(kind: Kind) -> Vec<u8> {
        let view = TensorView::new(Dtype::U8, vec![3, 3], b"012345678").unwrap();
        kind.write(&header(), vec![("x".to_string(), view)]).unwrap()
    }

    /// Returns the bytes of a file with this header text, which has no checksum.
    fn without_checksum(header: &str) -> Vec<u8> {
        let metadata = HashMap::from([(KIND.key.to_string(), header.to_string())]);
        let view = TensorView::new(Dtype::U8, vec![2], b"ab").unwrap();
        safetensors::serialize([("x", view)], Some(metadata)).unwrap()
    }

    fn error(bytes: &[u8]) -> anyhow::Error {
        KIND.read::<Header>(bytes).err().unwrap()
    }

    #[test]
    fn file_read_back_is_verified_and_writes_are_deterministic() {
        let bytes = file_bytes(KIND);
        let read = KIND.read::<Header>(&bytes).unwrap();
        assert!(read.verified && read.header == header());
        assert_eq!(read.tensors.tensor("x").unwrap().data(), b"012345678");
        assert_eq!(bytes, file_bytes(KIND));
    }

    #[test]
    fn file_written_tensor_by_tensor_has_the_same_bytes() {
        let big: Vec<u8> = (0..3_000_000_u32).map(|i| i as u8).collect();
        let tensors = || {
            let view = |bytes| TensorView::new(Dtype::U8, vec![3_000_000], bytes).unwrap();
            vec![("a".to_string(), view(&big)), ("b".to_string(), view(&big))]
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        KIND.write_file(file.path(), &header(), tensors()).unwrap();
        let bytes = std::fs::read(file.path()).unwrap();
        assert!(bytes == KIND.write(&header(), tensors()).unwrap());
        let missing = file.path().join("x");
        let error = KIND.write_file(&missing, &header(), tensors()).unwrap_err();
        assert!(error.to_string().starts_with("cannot write "), "{error}");
    }

    #[test]
    fn every_flipped_bit_is_an_error_other_than_newer() {
        let bytes = file_bytes(KIND);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let error = error(&damaged);
            assert!(!error.is::<Newer>(), "bit {bit}: {error:#}");
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = file_bytes(KIND);
        (0..bytes.len()).for_each(|len| drop(error(&bytes[..len])));
    }

    #[test]
    fn newer_format_is_distinguished_from_damage() {
        let newer = error(&file_bytes(Kind { format: 3, ..KIND }));
        assert!(
            newer.is::<Newer>() && newer.to_string().contains("format version 3, written by a newer version")
        );
        assert!(newer.context("x.safetensors").is::<Newer>(), "also below a context");
        assert!(error(&without_checksum(r#"{"format":9,"other":1}"#)).is::<Newer>());
    }

    #[test]
    fn old_file_without_checksum_is_read_unverified() {
        let bytes = without_checksum(r#"{"version":1,"note":"old"}"#);
        let read = KIND.read::<Header>(&bytes).unwrap();
        assert!(!read.verified && read.header.note == "old");
        let lost = error(&without_checksum(r#"{"format":2,"note":"new"}"#)).to_string();
        assert!(lost.contains("have a checksum, and this one has none"), "{lost}");
    }

    #[test]
    fn file_of_another_kind_is_an_error_that_names_the_kind() {
        let other = Kind { key: "other", ..KIND };
        assert!(error(&file_bytes(other)).to_string().contains("not a test file"));
    }
}
