//! Fingerprints (hashes) of data. Records store them to detect that the data have changed.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The prefix of this version's fingerprints. Fingerprints of version 1 have no prefix, and their
/// hash does not include field lengths.
const VERSION: &str = "v2-";

/// A hash of fields. The length of each field is hashed too, so moving bytes from one field to the
/// next changes the hash.
pub(crate) struct Fingerprint(crc32fast::Hasher);

impl Fingerprint {
    pub(crate) fn new() -> Fingerprint {
        Fingerprint(crc32fast::Hasher::new())
    }

    pub(crate) fn bytes(&mut self, field: &[u8]) {
        self.number(field.len());
        self.0.update(field);
    }

    /// Hashes a field of `n` bytes, given the hash of its bytes.
    pub(crate) fn hashed_bytes(&mut self, n: usize, hash: &crc32fast::Hasher) {
        self.number(n);
        self.0.combine(hash);
    }

    /// Appends fields that were hashed separately.
    pub(crate) fn append(&mut self, fields: &Fingerprint) {
        self.0.combine(&fields.0);
    }

    pub(crate) fn number(&mut self, field: usize) {
        self.0.update(&(field as u64).to_le_bytes());
    }

    /// Hashes a list of texts and its length.
    pub(crate) fn texts(&mut self, texts: &[String]) {
        self.number(texts.len());
        texts.iter().for_each(|text| self.bytes(text.as_bytes()));
    }

    pub(crate) fn finish(self) -> String {
        format!("{VERSION}{:08x}", self.0.finalize())
    }
}

/// Whether a recorded fingerprint is of an earlier version than `now`, so that the two cannot be
/// compared.
pub fn is_older_fingerprint(recorded: &str, now: &str) -> bool {
    now.starts_with(VERSION) && !recorded.starts_with(VERSION)
}

/// Returns a checksum of a file's content, or 0 if the file cannot be read.
pub(crate) fn file_sum(path: &Path) -> u32 {
    File::open(path).and_then(checksum).unwrap_or(0)
}

/// Returns a checksum of all bytes of `reader`.
pub(crate) fn checksum(mut reader: impl Read) -> io::Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hasher.finalize()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(fields: &[&str]) -> String {
        let mut fingerprint = Fingerprint::new();
        fields.iter().for_each(|field| fingerprint.bytes(field.as_bytes()));
        fingerprint.finish()
    }

    #[test]
    fn moving_bytes_between_fields_changes_the_fingerprint() {
        let two_fields = fingerprint(&["ab", "c"]);
        assert_eq!(two_fields, fingerprint(&["ab", "c"]));
        let others: [&[&str]; 4] = [&["a", "bc"], &["abc"], &["ab", "c", ""], &["", "ab", "c"]];
        assert!(others.iter().all(|other| fingerprint(other) != two_fields));
    }

    #[test]
    fn fields_hashed_in_advance_give_the_same_fingerprint() {
        let (mut hash, mut field) = (crc32fast::Hasher::new(), Fingerprint::new());
        hash.update(b"b");
        field.bytes(b"c");
        let mut combined = Fingerprint::new();
        combined.bytes(b"a");
        combined.hashed_bytes(1, &hash);
        combined.append(&field);
        assert_eq!(combined.finish(), fingerprint(&["a", "b", "c"]));
    }

    #[test]
    fn fingerprints_of_earlier_versions_are_recognised() {
        let now = fingerprint(&["a"]);
        assert!(is_older_fingerprint("1234abcd", &now));
        assert!(!is_older_fingerprint(&fingerprint(&["b"]), &now));
        assert!(!is_older_fingerprint("1234abcd", "5678abcd"));
    }

    #[test]
    fn file_sum_depends_on_the_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let long = vec![7; 200_000];
        std::fs::write(&path, &long).unwrap();
        assert_eq!((file_sum(&path), file_sum(&dir.path().join("b"))), (crc32fast::hash(&long), 0));
    }
}
