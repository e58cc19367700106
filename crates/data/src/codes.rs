//! Pictures as image tokens: `encode` writes them once, and training of the prior reads them every
//! step.
//!
//! §2.2 trains the prior on the dVAE's argmax codes. Each picture is stored in several augmented
//! copies, because cropping has to happen before the encoder. There are two files:
//! `STEM.safetensors` with the tensor `codes` (u16, `[n, copies, grid, grid]`, raster order), and
//! `STEM.jsonl` with one [`CodeItem`] per line. The first file contains a checksum of itself
//! (`tessera_container`) and one of the second file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use tessera_container::{Contents, Kind, Newer, Origin};

use crate::fingerprint::Fingerprint;
use tessera_base::atomic;

/// The image tokens of one split of a dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CodeSet {
    /// The side of the token grid (32 in the paper).
    pub grid: usize,
    /// The size of the codebook (8192 in the paper). Every code is less than it.
    pub vocab: usize,
    /// The number of encoded copies of each picture.
    pub copies: usize,
    /// The tokens, ordered by item, then copy, then raster position.
    pub codes: Vec<u16>,
    /// The description of each picture.
    pub items: Vec<CodeItem>,
    /// The fingerprint of the dVAE's weights. Codes of different dVAEs are not comparable.
    pub dvae: String,
    /// The hashes of the config and the data set that the codes were made from. `None` for older
    /// files, which do not record them.
    pub origin: Option<Origin>,
    /// Whether the file was read and has no checksum, so that damage to it may go unnoticed.
    pub unverified: bool,
}

/// The description of one picture of a [`CodeSet`]: everything except its tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodeItem {
    /// The picture's name in the dataset.
    pub key: String,
    /// The captions: several wordings for the same picture.
    pub captions: Vec<String>,
    /// The concept that the picture shows.
    pub concept: String,
    /// The style of the picture.
    pub style: String,
}

/// The kind of the tensor file. Format version 2 added the checksum and the origin.
const KIND: Kind = Kind { key: "tessera.codes", name: "a set of codes", format: 2, checked: 2 };

#[derive(Serialize, Deserialize)]
struct Header {
    vocab: usize,
    dvae: String,
    items_crc32: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    origin: Option<Origin>,
}

impl CodeSet {
    /// Returns the number of pictures.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether the set has no pictures.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Returns the `grid * grid` tokens of one copy of one picture in raster order, or `None` if
    /// the item or copy does not exist.
    pub fn tokens(&self, item: usize, copy: usize) -> Option<&[u16]> {
        let n_tokens = self.grid * self.grid;
        let start = (item * self.copies + copy) * n_tokens;
        if copy < self.copies { self.codes.get(start..start + n_tokens) } else { None }
    }

    /// Returns a hash of the complete content. Sets with different content have different
    /// fingerprints.
    pub fn fingerprint(&self) -> String {
        let mut fingerprint = Fingerprint::new();
        for number in [self.grid, self.vocab, self.copies, self.items.len()] {
            fingerprint.number(number);
        }
        let codes: Vec<u8> = self.codes.iter().flat_map(|code| code.to_le_bytes()).collect();
        fingerprint.bytes(&codes);
        for CodeItem { key, captions, concept, style } in &self.items {
            [key, concept, style].into_iter().for_each(|text| fingerprint.bytes(text.as_bytes()));
            fingerprint.texts(captions);
        }
        fingerprint.finish()
    }

    /// Writes `STEM.jsonl` and `STEM.safetensors`, each completely or not at all.
    pub fn write(&self, path_stem: &Path) -> Result<()> {
        self.check().context("refusing to write an inconsistent code set")?;
        let (tensor_path, items_path) = paths(path_stem)?;
        let mut items = Vec::new();
        for item in &self.items {
            serde_json::to_writer(&mut items, item).with_context(|| format!("item {}", item.key))?;
            items.push(b'\n');
        }
        let header = Header {
            vocab: self.vocab,
            dvae: self.dvae.clone(),
            items_crc32: crc32fast::hash(&items),
            origin: self.origin.clone(),
        };
        let bytes: Vec<u8> = self.codes.iter().flat_map(|code| code.to_le_bytes()).collect();
        let shape = vec![self.items.len(), self.copies, self.grid, self.grid];
        let view = TensorView::new(Dtype::U16, shape, &bytes).context("cannot lay out the codes")?;
        let file = KIND.write(&header, vec![("codes".into(), view)]).context("cannot lay out the codes")?;
        atomic::write(&items_path, &items)?;
        atomic::write(&tensor_path, &file)
    }

    /// Reads the files that [`CodeSet::write`] wrote.
    pub fn read(path_stem: &Path) -> Result<Self> {
        let (tensor_path, items_path) = paths(path_stem)?;
        let file = fs::read(&tensor_path).with_context(|| {
            format!("no codes at {}; make them with `tessera encode`", tensor_path.display())
        })?;
        let path = tensor_path.display();
        Self::parse(&file, &items_path).map_err(|error| match error.is::<Newer>() {
            true => error.context(path.to_string()),
            false => error.context(format!("{path} cannot be used; make it again with `tessera encode`")),
        })
    }

    fn parse(file: &[u8], items_path: &Path) -> Result<Self> {
        let Contents { header, tensors, verified } = KIND.read::<Header>(file)?;
        let tensor = tensors.tensor("codes").context("it has no tensor `codes`")?;
        let &[n_items, copies, grid, grid_x] = tensor.shape() else {
            bail!("its codes have the shape {:?}, wanted [n, copies, grid, grid]", tensor.shape());
        };
        ensure!(tensor.dtype() == Dtype::U16, "its codes are {:?}, wanted U16", tensor.dtype());
        ensure!(grid == grid_x, "its grid is {grid}x{grid_x}, wanted a square");
        let codes =
            tensor.data().chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();

        let items = read_items(items_path, header.items_crc32)?;
        ensure!(
            items.len() == n_items,
            "it has {n_items} items, {} has {}",
            items_path.display(),
            items.len()
        );
        let Header { vocab, dvae, origin, .. } = header;
        let set = Self { grid, vocab, copies, codes, items, dvae, origin, unverified: !verified };
        set.check()?;
        Ok(set)
    }

    /// Checks that the fields are consistent.
    fn check(&self) -> Result<()> {
        let expected = self.items.len() * self.copies * self.grid * self.grid;
        ensure!(
            self.codes.len() == expected,
            "{} codes for {} items, {} copies and a grid of {}: wanted {expected}",
            self.codes.len(),
            self.items.len(),
            self.copies,
            self.grid
        );
        let highest = self.codes.iter().max().map_or(0, |&code| usize::from(code) + 1);
        ensure!(
            highest <= self.vocab,
            "code {} is outside a codebook of {}",
            highest.saturating_sub(1),
            self.vocab
        );
        Ok(())
    }
}

/// Returns the paths of `STEM.safetensors` and `STEM.jsonl`.
fn paths(path_stem: &Path) -> Result<(PathBuf, PathBuf)> {
    let name = path_stem.file_name().with_context(|| format!("{} names no file", path_stem.display()))?;
    let name = name.to_string_lossy();
    Ok((
        path_stem.with_file_name(format!("{name}.safetensors")),
        path_stem.with_file_name(format!("{name}.jsonl")),
    ))
}

fn read_items(path: &Path, expected_crc32: u32) -> Result<Vec<CodeItem>> {
    let bytes = fs::read(path).with_context(|| format!("its items are missing: {}", path.display()))?;
    ensure!(
        crc32fast::hash(&bytes) == expected_crc32,
        "{} is cut short or belongs to other codes (its checksum is wrong)",
        path.display()
    );
    let lines = bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines
        .enumerate()
        .map(|(n, line)| {
            serde_json::from_slice(line).with_context(|| format!("line {} of {}", n + 1, path.display()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small_set() -> CodeSet {
        let items = (0..3).map(|n| CodeItem {
            key: format!("{n:09}"),
            captions: vec![format!("caption {n}")],
            concept: format!("concept {n}"),
            style: "flat".into(),
        });
        let codes = (0..3 * 2 * 16).collect();
        let origin = Some(Origin { config: "1".into(), data: "2".into() });
        let (items, dvae) = (items.collect(), "abc".into());
        CodeSet { grid: 4, vocab: 96, copies: 2, codes, items, dvae, origin, unverified: false }
    }

    #[test]
    fn any_difference_changes_the_fingerprint() {
        let with = |change: &dyn Fn(&mut CodeSet)| {
            let mut set = small_set();
            change(&mut set);
            set.fingerprint()
        };
        let all = [
            with(&|_| {}),
            with(&|set| set.codes[7] += 1),
            with(&|set| (set.grid, set.copies) = (2, 8)),
            with(&|set| set.vocab += 1),
            with(&|set| set.items[1].captions = vec!["ab".into(), "c".into()]),
            with(&|set| set.items[1].captions = vec!["a".into(), "bc".into()]),
            with(&|set| set.items[1].style = "noto".into()),
            with(&|set| (set.items[1].key, set.items[1].captions) = ("a".into(), vec!["bc".into()])),
            with(&|set| (set.items[1].key, set.items[1].captions) = ("ab".into(), vec!["c".into()])),
        ];
        let different: std::collections::HashSet<&String> = all.iter().collect();
        assert_eq!(different.len(), all.len(), "{all:?}");
    }

    fn read_error(stem: &Path) -> String {
        format!("{:#}", CodeSet::read(stem).unwrap_err())
    }

    #[test]
    fn set_round_trips_and_writes_are_deterministic() {
        let dir = tempfile::tempdir().unwrap();
        let stem = dir.path().join("train");
        small_set().write(&stem).unwrap();
        assert_eq!(CodeSet::read(&stem).unwrap(), small_set());
        let first = fs::read(dir.path().join("train.safetensors")).unwrap();
        small_set().write(&stem).unwrap();
        assert_eq!(fs::read(dir.path().join("train.safetensors")).unwrap(), first);
    }

    #[test]
    fn tokens_are_ordered_by_item_then_copy() {
        let set = small_set();
        assert_eq!(set.tokens(1, 1).unwrap()[0], 16 * 3);
        assert_eq!(set.tokens(2, 1).unwrap().len(), 16);
        assert!(set.tokens(0, 2).is_none() && set.tokens(3, 0).is_none());
    }

    #[test]
    fn truncated_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let stem = dir.path().join("train");
        assert!(read_error(&stem).contains("tessera encode"));
        for (name, expected) in [("train.safetensors", "cut short"), ("train.jsonl", "checksum")] {
            small_set().write(&stem).unwrap();
            let path = dir.path().join(name);
            let bytes = fs::read(&path).unwrap();
            for keep in [0, 5, bytes.len() / 2, bytes.len() - 1] {
                fs::write(&path, &bytes[..keep]).unwrap();
                assert!(read_error(&stem).contains(expected), "{name} cut at {keep}: {}", read_error(&stem));
            }
            fs::remove_file(&path).unwrap();
            CodeSet::read(&stem).unwrap_err();
        }
    }

    #[test]
    fn flipped_bit_is_an_error_and_old_set_is_unverified() {
        let dir = tempfile::tempdir().unwrap();
        let (stem, path) = (dir.path().join("train"), dir.path().join("train.safetensors"));
        small_set().write(&stem).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        // Code 95 becomes 351. With a larger codebook, only the checksum detects the damage.
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(
            read_error(&stem).contains("it is damaged: its bytes have the checksum"),
            "{}",
            read_error(&stem)
        );

        let items_crc32 = crc32fast::hash(&fs::read(dir.path().join("train.jsonl")).unwrap());
        let header = format!(r#"{{"version":1,"vocab":96,"dvae":"abc","items_crc32":{items_crc32}}}"#);
        let header = std::collections::HashMap::from([(KIND.key.to_string(), header)]);
        let codes: Vec<u8> = small_set().codes.iter().flat_map(|code| code.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::U16, vec![3, 2, 4, 4], &codes).unwrap();
        fs::write(&path, safetensors::serialize([("codes", view)], Some(header)).unwrap()).unwrap();
        let expected = CodeSet { origin: None, unverified: true, ..small_set() };
        assert_eq!(CodeSet::read(&stem).unwrap(), expected);
    }

    #[test]
    fn inconsistent_codes_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let set = CodeSet { vocab: 95, ..small_set() };
        assert!(format!("{:#}", set.write(&dir.path().join("x")).unwrap_err()).contains("code 95"));
        let set = CodeSet { copies: 3, ..small_set() };
        assert!(set.write(&dir.path().join("x")).is_err());
    }
}
