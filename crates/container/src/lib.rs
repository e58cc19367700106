//! Safetensors files that can be verified: a JSON header with a format version and a checksum of every byte.
//!
//! Model files, codes and checkpoints are such files. The header is the only entry of the safetensors metadata, because the
//! format does not keep the order of several and the same content should have the same bytes. Its checksum (CRC-32C, 8 hex
//! digits) covers the complete file, with zeros in place of these digits. Files from before there were checksums are read,
//! and [`Contents::verified`] is false.

use std::collections::HashMap;
use std::error::Error;
use std::fmt::{Display, Formatter};

use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::{SafeTensors, View};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Stands in the place of the checksum while it is computed.
const BLANK: &[u8; 8] = b"00000000";
/// What precedes the checksum: the header is a JSON string inside of JSON, so its quotes are escaped.
const LABEL: &[u8] = br#"\"checksum\":\""#;

/// A kind of file.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// The header's key in the safetensors metadata.
    pub key: &'static str,
    /// What such a file is, for messages.
    pub name: &'static str,
    /// The format version that is written. Older versions are read; the first with a checksum is [`Kind::checked`].
    pub format: u32,
    /// The first format version with a checksum.
    pub checked: u32,
}

/// Hashes of what a file was made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Hash of the config.
    pub config: String,
    /// Fingerprints of the inputs.
    pub data: String,
}

/// A short hash of a text, as [`Origin`] holds it.
pub fn hash(text: &str) -> String {
    format!("{:08x}", crc32c::crc32c(text.as_bytes()))
}

/// The warning for a file without a checksum.
pub fn unverified(file: impl Display) -> String {
    format!("warning: {file} was written before files had a checksum: damage to it would go unnoticed")
}

/// A file as it was read.
pub struct Contents<'a, H> {
    /// The header's fields besides format and checksum.
    pub header: H,
    /// The tensors.
    pub tensors: SafeTensors<'a>,
    /// Whether the file has a checksum, which is then right. Damage to one without may go unnoticed.
    pub verified: bool,
}

/// The error for a file that is not damaged, but has a format version that this program does not know yet.
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
    /// The bytes of a file with `header`, whose fields must not be called `format`, `version` or `checksum`.
    ///
    /// # Errors
    /// If the tensors do not fit each other or the header cannot be written as JSON.
    pub fn write<V: View>(&self, header: &impl Serialize, tensors: Vec<(String, V)>) -> Result<Vec<u8>> {
        let blank = std::str::from_utf8(BLANK)?;
        let header = serde_json::to_string(&Envelope { format: self.format, checksum: blank, header })?;
        let metadata = HashMap::from([(self.key.to_string(), header)]);
        let mut bytes = safetensors::serialize(tensors, Some(metadata))?;
        let at = checksum_at(&bytes).context("the header has no place for a checksum")?;
        let checksum = format!("{:08x}", checksum(&bytes, at));
        bytes[at..at + BLANK.len()].copy_from_slice(checksum.as_bytes());
        Ok(bytes)
    }

    /// Reads the bytes of a file and verifies its checksum.
    ///
    /// # Errors
    /// [`Newer`] if the format version is not known yet; another error if it is of another kind, damaged or cut short.
    pub fn read<'a, H: DeserializeOwned>(&self, bytes: &'a [u8]) -> Result<Contents<'a, H>> {
        let name = self.name;
        let (_, metadata) = SafeTensors::read_metadata(bytes)
            .context("not a safetensors file, or one that is damaged or cut short")?;
        let header = metadata.metadata().as_ref().and_then(|entries| entries.get(self.key));
        let header = header.with_context(|| format!("a safetensors file, but not {name}"))?;
        let Version { format, checksum } = serde_json::from_str(header).context("its header is damaged")?;
        if let Some(wanted) = &checksum {
            verify(bytes, wanted)?;
        }
        if format > self.format {
            bail!(Newer { kind: *self, format });
        }
        ensure!(
            checksum.is_some() || format < self.checked,
            "it is damaged: format version {format} has a checksum, and it holds none"
        );
        Ok(Contents {
            header: serde_json::from_str(header).context("its header is damaged")?,
            tensors: SafeTensors::deserialize(bytes).context("its tensors are damaged")?,
            verified: checksum.is_some(),
        })
    }
}

fn verify(bytes: &[u8], wanted: &str) -> Result<()> {
    let at = checksum_at(bytes).context("it is damaged: its checksum is not in its place")?;
    let found = format!("{:08x}", checksum(bytes, at));
    ensure!(found == *wanted, "it is damaged: its bytes have the checksum {found}, wanted {wanted}");
    Ok(())
}

/// Where the digits of the checksum are.
fn checksum_at(bytes: &[u8]) -> Option<usize> {
    let at = bytes.windows(LABEL.len()).position(|window| window == LABEL)? + LABEL.len();
    (at + BLANK.len() <= bytes.len()).then_some(at)
}

/// CRC-32C of the file with zeros in place of the checksum.
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
        // What looks like a checksum inside of a field is not taken for the file's.
        Header { note: "\"checksum\":\"12345678\"".to_string() }
    }

    fn written(kind: Kind) -> Vec<u8> {
        let view = TensorView::new(Dtype::U8, vec![3, 3], b"012345678").unwrap();
        kind.write(&header(), vec![("x".to_string(), view)]).unwrap()
    }

    /// The bytes of a file without a checksum.
    fn unchecked(header: &str) -> Vec<u8> {
        let metadata = HashMap::from([(KIND.key.to_string(), header.to_string())]);
        let view = TensorView::new(Dtype::U8, vec![2], b"ab").unwrap();
        safetensors::serialize([("x", view)], Some(metadata)).unwrap()
    }

    fn error(bytes: &[u8]) -> anyhow::Error {
        KIND.read::<Header>(bytes).err().unwrap()
    }

    #[test]
    fn a_file_comes_back_verified_and_has_the_same_bytes_each_time() {
        let bytes = written(KIND);
        let read = KIND.read::<Header>(&bytes).unwrap();
        assert!(read.verified && read.header == header());
        assert_eq!(read.tensors.tensor("x").unwrap().data(), b"012345678");
        assert_eq!(bytes, written(KIND));
    }

    #[test]
    fn every_flipped_bit_is_an_error_and_never_called_newer() {
        let bytes = written(KIND);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let error = error(&damaged);
            assert!(!error.is::<Newer>(), "bit {bit}: {error:#}");
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = written(KIND);
        (0..bytes.len()).for_each(|len| drop(error(&bytes[..len])));
    }

    #[test]
    fn a_newer_format_is_told_apart_from_damage() {
        let newer = error(&written(Kind { format: 3, ..KIND }));
        assert!(
            newer.is::<Newer>() && newer.to_string().contains("format version 3, written by a newer version")
        );
        assert!(newer.context("x.safetensors").is::<Newer>(), "also below a context");
        assert!(error(&unchecked(r#"{"format":9,"other":1}"#)).is::<Newer>());
    }

    #[test]
    fn a_file_from_before_checksums_is_read_unverified() {
        let bytes = unchecked(r#"{"version":1,"note":"old"}"#);
        let read = KIND.read::<Header>(&bytes).unwrap();
        assert!(!read.verified && read.header.note == "old");
        let lost = error(&unchecked(r#"{"format":2,"note":"new"}"#)).to_string();
        assert!(lost.contains("has a checksum, and it holds none"), "{lost}");
    }

    #[test]
    fn another_kind_of_file_is_named() {
        let other = Kind { key: "other", ..KIND };
        assert!(error(&written(other)).to_string().contains("not a test file"));
    }
}
