//! Writes code sets while they are encoded, so that they need not fit in memory.

use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tessera_base::atomic::WholeFile;
use tessera_container::Origin;

use super::file::{Summary, head};
use super::{CodeItem, Header, KIND, paths};

/// The properties of a code set that are known before its pictures are encoded. The fields are those
/// of [`CodeSet`](super::CodeSet).
#[derive(Debug, Clone, Default)]
pub struct CodeLayout {
    /// The side of the token grid.
    pub grid: usize,
    /// The size of the codebook.
    pub vocab: usize,
    /// The number of encoded copies of each picture.
    pub copies: usize,
    /// The fingerprint of the dVAE's weights.
    pub dvae: String,
    /// The hashes of the config and the data set that the codes are made from.
    pub origin: Option<Origin>,
}

/// Writes a code set in pieces. Until [`CodeWriter::finish`], they are in temporary files without a
/// name, of which nothing remains if the program is killed.
pub struct CodeWriter {
    layout: CodeLayout,
    tensor_path: PathBuf,
    items_path: PathBuf,
    /// One JSON line for each picture.
    items: BufWriter<File>,
    items_crc32: crc32fast::Hasher,
    n_items: usize,
    codes: BufWriter<File>,
    summary: Summary,
}

impl CodeWriter {
    /// Begins a code set that will be `STEM.safetensors` and `STEM.jsonl`. Creates the folder if
    /// necessary.
    pub fn create(path_stem: &Path, layout: CodeLayout) -> Result<CodeWriter> {
        let (tensor_path, items_path) = paths(path_stem)?;
        let folder = path_stem.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let temporary = || {
            std::fs::create_dir_all(folder).and_then(|()| tempfile::tempfile_in(folder)).map(BufWriter::new)
        };
        let cannot_write = || format!("cannot write to {}", folder.display());
        Ok(CodeWriter {
            layout,
            tensor_path,
            items_path,
            items: temporary().with_context(cannot_write)?,
            items_crc32: crc32fast::Hasher::new(),
            n_items: 0,
            codes: temporary().with_context(cannot_write)?,
            summary: Summary::default(),
        })
    }

    /// Adds the description of the next picture.
    pub fn add_item(&mut self, item: &CodeItem) -> Result<()> {
        let mut line = serde_json::to_vec(item).with_context(|| format!("item {}", item.key))?;
        line.push(b'\n');
        self.items_crc32.update(&line);
        self.n_items += 1;
        self.items.write_all(&line).with_context(|| format!("cannot write {}", self.items_path.display()))
    }

    /// Adds the next codes, ordered by item, then copy, then raster position. It does not matter
    /// where one picture ends.
    pub fn add_codes(&mut self, codes: &[u16]) -> Result<()> {
        let bytes: Vec<u8> = codes.iter().flat_map(|code| code.to_le_bytes()).collect();
        self.summary.add(&bytes);
        self.codes.write_all(&bytes).with_context(|| format!("cannot write {}", self.tensor_path.display()))
    }

    /// Writes `STEM.jsonl` and `STEM.safetensors`, each completely or not at all.
    ///
    /// # Errors
    /// If the codes are not those of the items, or a file cannot be written.
    pub fn finish(self) -> Result<()> {
        let CodeLayout { grid, vocab, copies, dvae, origin } = self.layout;
        let (n_codes, wanted) = (self.summary.n_bytes / 2, self.n_items * copies * grid * grid);
        ensure!(
            n_codes == wanted,
            "refusing to write an inconsistent code set: {n_codes} codes for {} items, {copies} copies and a grid \
             of {grid}: wanted {wanted}",
            self.n_items
        );
        self.summary.check(vocab).context("refusing to write an inconsistent code set")?;
        let header = Header { vocab, dvae, items_crc32: self.items_crc32.finalize(), origin };
        let head = head(KIND, &header, [self.n_items, copies, grid, grid], &self.summary)
            .context("cannot lay out the codes")?;
        let items = copied(&[], self.items, &self.items_path)?;
        let codes = copied(&head, self.codes, &self.tensor_path)?;
        items.keep()?;
        codes.keep()
    }
}

/// Writes `head` and the content of `temporary` to a new file, which is not yet kept.
fn copied(head: &[u8], temporary: BufWriter<File>, path: &Path) -> Result<WholeFile> {
    let mut file = WholeFile::create(path)?;
    let copy = || -> io::Result<()> {
        let mut temporary = temporary.into_inner().map_err(|error| error.into_error())?;
        temporary.rewind()?;
        file.write_all(head)?;
        io::copy(&mut temporary, &mut file)?;
        Ok(())
    };
    copy().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file)
}
