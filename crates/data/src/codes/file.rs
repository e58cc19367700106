//! The tensor file of a code set, written and read in pieces: memory does not grow with the number
//! of codes.
//!
//! Its bytes are those that [`Kind::write`] returns for the single tensor `codes`. `Kind` needs the
//! complete file in memory, so the checksum is computed here: that of the bytes before the codes,
//! which contain the digits, combined with that of the codes.

use std::borrow::Cow;
use std::fmt::Display;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, TensorInfo, TensorView};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tessera_container::{Contents, Kind};

/// The name of the tensor.
const TENSOR: &str = "codes";
/// The number of bytes that are read at a time to verify a file. It is even, so no code is split.
const CHUNK: usize = 4 << 20;
/// The number of bytes that hold the length of the safetensors header.
const LENGTH_BYTES: usize = 8;
/// The maximum length of a safetensors header.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// The placeholder for the checksum's digits while the checksum is computed.
const BLANK: &[u8; 8] = b"00000000";
/// The bytes before the checksum's digits.
const LABEL: &[u8] = br#"\"checksum\":\""#;
const NOT_COMPLETE: &str = "not a safetensors file, or one that is damaged or cut short";

/// Checksums and the highest value of codes that are written or read in pieces.
#[derive(Debug, Clone, Default)]
pub(super) struct Summary {
    /// The number of bytes, two for each code.
    pub n_bytes: usize,
    /// The highest code, if there is any.
    pub highest: Option<u16>,
    /// The CRC-32, for the fingerprint.
    pub crc32: crc32fast::Hasher,
    /// The CRC-32C, for the checksum of the file.
    crc32c: u32,
}

impl Summary {
    /// Adds the bytes of complete codes.
    pub fn add(&mut self, bytes: &[u8]) {
        self.n_bytes += bytes.len();
        self.highest = self.highest.max(codes_in(bytes).max());
        self.crc32.update(bytes);
        self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
    }

    /// Checks that all codes are in the codebook.
    pub fn check(&self, vocab: usize) -> Result<()> {
        let highest = self.highest.map_or(0, usize::from);
        ensure!(self.highest.is_none() || highest < vocab, "code {highest} is outside a codebook of {vocab}");
        Ok(())
    }
}

/// Returns the codes in their bytes.
pub(super) fn codes_in(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
}

/// Returns the bytes of a file before its codes, which have this shape and summary.
pub(super) fn head(
    kind: Kind,
    header: &impl Serialize,
    shape: [usize; 4],
    codes: &Summary,
) -> Result<Vec<u8>> {
    let none = TensorView::new(Dtype::U16, vec![0], &[])?;
    let without_codes = kind.write(header, vec![(TENSOR.to_string(), none)])?;
    let (_, metadata) = SafeTensors::read_metadata(&without_codes)?;
    let info = TensorInfo { dtype: Dtype::U16, shape: shape.to_vec(), data_offsets: (0, codes.n_bytes) };
    let metadata = Metadata::new(metadata.metadata().clone(), vec![(TENSOR.to_string(), info)])?;
    let mut json = serde_json::to_vec(&metadata)?;
    json.resize(json.len().next_multiple_of(LENGTH_BYTES), b' ');
    let mut head = [&(json.len() as u64).to_le_bytes()[..], &json].concat();
    let at = checksum_at(&head).context("the header has no place for a checksum")?;
    put_checksum(&mut head, at, codes);
    Ok(head)
}

/// The codes of an open file.
#[derive(Debug)]
pub(super) struct CodeFile {
    file: File,
    path: PathBuf,
    /// The position of the first code in bytes.
    start: u64,
}

/// A verified file.
pub(super) struct Opened<H> {
    pub codes: CodeFile,
    pub header: H,
    /// The number of pictures, the number of copies of each, and the sides of the token grid.
    pub shape: [usize; 4],
    pub summary: Summary,
    /// Whether the file has a checksum and it is correct.
    pub verified: bool,
}

impl CodeFile {
    /// Verifies a file by reading it once.
    ///
    /// # Errors
    /// As for [`Kind::read`], and if the file has other tensors than the codes.
    pub fn open<H: DeserializeOwned>(kind: Kind, file: File, path: &Path) -> Result<Opened<H>> {
        let size = file.metadata()?.len();
        let head = read_head(&file, size).context(NOT_COMPLETE)?;
        let metadata: Metadata = serde_json::from_slice(&head[LENGTH_BYTES..]).context(NOT_COMPLETE)?;
        ensure!((head.len() + metadata.data_len()) as u64 == size, NOT_COMPLETE);
        let codes = CodeFile { file, path: path.to_path_buf(), start: head.len() as u64 };
        let summary = codes.summary(metadata.data_len())?;
        if let Some(at) = checksum_at(&head) {
            let mut correct = head.clone();
            put_checksum(&mut correct, at, &summary);
            let [found, wanted] = [&correct, &head].map(|bytes| digits(bytes, at));
            ensure!(found == wanted, "it is damaged: its bytes have the checksum {found}, wanted {wanted}");
        }
        let (header, verified) = header(kind, &metadata)?;
        let shape = shape(&metadata)?;
        Ok(Opened { codes, header, shape, summary, verified })
    }

    /// Reads the codes once.
    fn summary(&self, n_bytes: usize) -> Result<Summary> {
        let mut summary = Summary::default();
        let mut chunk = vec![0; CHUNK.min(n_bytes)];
        while summary.n_bytes < n_bytes {
            let chunk = &mut chunk[..CHUNK.min(n_bytes - summary.n_bytes)];
            read_exact_at(&self.file, chunk, self.start + summary.n_bytes as u64)?;
            summary.add(chunk);
        }
        Ok(summary)
    }

    /// Reads `n` codes, beginning with code `first` of the file.
    pub fn read(&self, first: usize, n: usize) -> Result<Vec<u16>> {
        let mut bytes = vec![0; 2 * n];
        read_exact_at(&self.file, &mut bytes, self.start + 2 * first as u64).with_context(|| {
            format!("cannot read {}, which was complete when it was opened", self.shown())
        })?;
        Ok(codes_in(&bytes).collect())
    }

    /// Returns the path for messages.
    pub fn shown(&self) -> impl Display {
        self.path.display()
    }
}

/// Reads the bytes before the tensors of a file of `size` bytes. Returns `None` if it is too short.
fn read_head(file: &File, size: u64) -> Option<Vec<u8>> {
    let mut length = [0; LENGTH_BYTES];
    read_exact_at(file, &mut length, 0).ok()?;
    let length = u64::from_le_bytes(length);
    let end = length.checked_add(LENGTH_BYTES as u64)?;
    let mut head = vec![0; (length <= MAX_HEADER_BYTES && end <= size).then_some(end as usize)?];
    read_exact_at(file, &mut head, 0).ok().map(|()| head)
}

/// Returns the header in the metadata of a file, and whether the file must have a checksum.
fn header<H: DeserializeOwned>(kind: Kind, metadata: &Metadata) -> Result<(H, bool)> {
    // `Kind` reads the header from a file with the same metadata, but without tensors.
    let no_tensors: [(&str, TensorView); 0] = [];
    let mut bytes = safetensors::serialize(no_tensors, metadata.metadata().clone())?;
    if let Some(at) = checksum_at(&bytes) {
        put_checksum(&mut bytes, at, &Summary::default());
    }
    let Contents { header, verified, .. } = kind.read(&bytes)?;
    Ok((header, verified))
}

/// Returns the shape of the codes.
fn shape(metadata: &Metadata) -> Result<[usize; 4]> {
    let tensor = metadata.info(TENSOR).context("it has no tensor `codes`")?;
    let Ok(shape) = <[usize; 4]>::try_from(tensor.shape.as_slice()) else {
        bail!("its codes have the shape {:?}, wanted [n, copies, grid, grid]", tensor.shape);
    };
    ensure!(tensor.dtype == Dtype::U16, "its codes are {:?}, wanted U16", tensor.dtype);
    ensure!(shape[2] == shape[3], "its grid is {}x{}, wanted a square", shape[2], shape[3]);
    let n_tensors = metadata.tensors().len();
    ensure!(n_tensors == 1, "it has {n_tensors} tensors, wanted only `codes`");
    Ok(shape)
}

/// Returns the position of the checksum's digits.
fn checksum_at(head: &[u8]) -> Option<usize> {
    let at = head.windows(LABEL.len()).position(|window| window == LABEL)? + LABEL.len();
    (at + BLANK.len() <= head.len()).then_some(at)
}

/// Writes the checksum of a file to its place in `head`, the bytes before the codes.
fn put_checksum(head: &mut [u8], at: usize, codes: &Summary) {
    head[at..at + BLANK.len()].copy_from_slice(BLANK);
    let checksum = crc32c::crc32c_combine(crc32c::crc32c(head), codes.crc32c, codes.n_bytes);
    head[at..at + BLANK.len()].copy_from_slice(format!("{checksum:08x}").as_bytes());
}

/// Returns the checksum's digits.
fn digits(head: &[u8], at: usize) -> Cow<'_, str> {
    String::from_utf8_lossy(&head[at..at + BLANK.len()])
}

/// Fills `bytes` from a position of a file. Several threads may do so at the same time.
#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

/// Fills `bytes` from a position of a file. Several threads may do so at the same time.
#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, bytes, offset)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let rest = bytes;
        (bytes, offset) = (&mut rest[n..], offset + n as u64);
    }
    Ok(())
}
