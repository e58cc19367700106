//! Tests of code sets.

use std::collections::HashMap;
use std::fs;
use std::io::{Seek, SeekFrom, Write};

use safetensors::tensor::{Dtype, TensorView};

use super::*;

/// A code set in memory.
struct Written {
    layout: CodeLayout,
    codes: Vec<u16>,
    items: Vec<CodeItem>,
}

impl Written {
    /// Returns two copies of three pictures with the codes 0 to 95.
    fn small() -> Written {
        let items = (0..3).map(|n| CodeItem {
            key: format!("{n:09}"),
            captions: vec![format!("caption {n}")],
            concept: format!("concept {n}"),
            style: "flat".into(),
        });
        let origin = Some(Origin { config: "1".into(), data: "2".into() });
        let layout = CodeLayout { grid: 4, vocab: 96, copies: 2, dvae: "abc".into(), origin };
        Written { layout, codes: (0..3 * 2 * 16).collect(), items: items.collect() }
    }

    /// Writes the set, `n` codes at a time.
    fn write_in_pieces(&self, stem: &Path, n: usize) -> Result<()> {
        let mut writer = CodeWriter::create(stem, self.layout.clone())?;
        self.codes.chunks(n).try_for_each(|codes| writer.add_codes(codes))?;
        self.items.iter().try_for_each(|item| writer.add_item(item))?;
        writer.finish()
    }

    fn write(&self, stem: &Path) -> Result<()> {
        self.write_in_pieces(stem, 1000)
    }

    fn opened(&self) -> CodeSet {
        let dir = tempfile::tempdir().unwrap();
        self.write(&dir.path().join("train")).unwrap();
        CodeSet::open(&dir.path().join("train")).unwrap()
    }
}

/// Returns a folder with a small set, the set's stem, and the path of its tensor file.
fn small_files() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let stem = dir.path().join("train");
    Written::small().write(&stem).unwrap();
    let path = dir.path().join("train.safetensors");
    (dir, stem, path)
}

/// Overwrites a few bytes of a file.
fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}

fn open_error(stem: &Path) -> String {
    format!("{:#}", CodeSet::open(stem).unwrap_err())
}

/// Runs that were started by earlier versions are resumed only if the fingerprint is the same.
#[test]
fn fingerprint_is_that_of_earlier_versions() {
    assert_eq!(Written::small().opened().fingerprint(), "v2-6a8f0f43");
}

#[test]
fn any_difference_changes_the_fingerprint() {
    let with = |change: &dyn Fn(&mut Written)| {
        let mut set = Written::small();
        change(&mut set);
        set.opened().fingerprint()
    };
    let all = [
        with(&|_| {}),
        with(&|set| set.codes[7] += 1),
        with(&|set| (set.layout.grid, set.layout.copies) = (2, 8)),
        with(&|set| set.layout.vocab += 1),
        with(&|set| set.items[1].captions = vec!["ab".into(), "c".into()]),
        with(&|set| set.items[1].captions = vec!["a".into(), "bc".into()]),
        with(&|set| set.items[1].style = "noto".into()),
        with(&|set| (set.items[1].key, set.items[1].captions) = ("a".into(), vec!["bc".into()])),
        with(&|set| (set.items[1].key, set.items[1].captions) = ("ab".into(), vec!["c".into()])),
    ];
    let different: std::collections::HashSet<&String> = all.iter().collect();
    assert_eq!(different.len(), all.len(), "{all:?}");
}

#[test]
fn set_round_trips() {
    let (set, Written { layout, codes, items }) = (Written::small().opened(), Written::small());
    let read: Vec<u16> =
        (0..3).flat_map(|item| [0, 1].map(|copy| set.tokens(item, copy).unwrap()).concat()).collect();
    assert_eq!((read, &set.items), (codes, &items));
    assert_eq!((set.grid, set.vocab, set.copies), (layout.grid, layout.vocab, layout.copies));
    assert_eq!((set.dvae, set.origin, set.unverified), (layout.dvae, layout.origin, false));
}

#[test]
fn file_written_in_pieces_has_the_bytes_of_the_container() {
    let (dir, stem, path) = small_files();
    let set = Written::small();
    let CodeLayout { vocab, dvae, origin, .. } = set.layout.clone();
    let items = fs::read(dir.path().join("train.jsonl")).unwrap();
    let header = Header { vocab, dvae, items_crc32: crc32fast::hash(&items), origin };
    let codes: Vec<u8> = set.codes.iter().flat_map(|code| code.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::U16, vec![3, 2, 4, 4], &codes).unwrap();
    let expected = KIND.write(&header, vec![("codes".to_string(), view)]).unwrap();
    for n in [1, 7, 96] {
        set.write_in_pieces(&stem, n).unwrap();
        assert_eq!(fs::read(&path).unwrap(), expected, "{n} codes at a time");
    }
}

#[test]
fn tokens_are_ordered_by_item_then_copy() {
    let set = Written::small().opened();
    assert_eq!(set.tokens(1, 1).unwrap(), (48..64).collect::<Vec<u16>>());
    assert_eq!((set.token(1, 1, 0).unwrap(), set.token(2, 0, 15).unwrap()), (48, 79));
    for error in [set.tokens(0, 2).unwrap_err(), set.tokens(3, 0).unwrap_err()] {
        assert!(error.to_string().contains("it has 2 copies of 3 pictures"), "{error}");
    }
    assert!(set.token(0, 0, 16).is_err());
}

/// An open set has no copy of the tokens: what is written to the file later is read.
#[test]
fn tokens_are_read_from_the_file_when_they_are_needed() {
    let (_dir, stem, path) = small_files();
    let set = CodeSet::open(&stem).unwrap();
    let start = fs::metadata(&path).unwrap().len() - 2 * 96;
    overwrite(&path, start + 2 * 33, &[7, 0]);
    assert_eq!(set.tokens(1, 0).unwrap()[..3], [32, 7, 34]);
    overwrite(&path, start + 2 * 33, &[96, 0]);
    let error = set.tokens(1, 0).unwrap_err().to_string();
    assert!(error.contains("code 96 is outside a codebook of 96") && error.contains("changed"), "{error}");
    assert_eq!(set.token(1, 0, 0).unwrap(), 32);
    File::options().write(true).open(&path).unwrap().set_len(start + 2 * 16).unwrap();
    assert!(set.tokens(0, 0).is_ok());
    let error = set.tokens(0, 1).unwrap_err().to_string();
    assert!(error.contains("train.safetensors, which was complete when it was opened"), "{error}");
}

#[test]
fn open_set_keeps_its_tokens_when_it_is_encoded_again() {
    let (_dir, stem, _) = small_files();
    let set = CodeSet::open(&stem).unwrap();
    Written { codes: vec![5; 96], ..Written::small() }.write(&stem).unwrap();
    assert_eq!(set.tokens(0, 0).unwrap(), (0..16).collect::<Vec<u16>>());
}

/// The buffers of a writer and of an open set have the same size for any number of codes.
#[test]
fn set_larger_than_all_buffers_is_written_and_verified() {
    let dir = tempfile::tempdir().unwrap();
    let stem = dir.path().join("train");
    let picture: Vec<u16> = (0..1 << 18).map(|place| (place % 8191) as u16).collect();
    let layout = CodeLayout { grid: 512, vocab: 8192, copies: 1, ..CodeLayout::default() };
    let mut writer = CodeWriter::create(&stem, layout).unwrap();
    for _ in 0..9 {
        writer.add_codes(&picture).unwrap();
        writer.add_item(&Written::small().items[0]).unwrap();
    }
    writer.finish().unwrap();
    let set = CodeSet::open(&stem).unwrap();
    assert!(!set.unverified && set.tokens(8, 0).unwrap() == picture);
    // Damage in the last chunk is detected.
    let path = dir.path().join("train.safetensors");
    let end = fs::metadata(&path).unwrap().len();
    overwrite(&path, end - 1, &[1]);
    assert!(
        open_error(&stem).contains("it is damaged: its bytes have the checksum"),
        "{}",
        open_error(&stem)
    );
}

#[test]
fn unfinished_set_leaves_no_file_and_keeps_the_previous_one() {
    let (dir, stem, path) = small_files();
    let before = fs::read(&path).unwrap();
    let mut writer = CodeWriter::create(&stem, Written::small().layout).unwrap();
    writer.add_codes(&[1; 16]).unwrap();
    writer.add_item(&Written::small().items[0]).unwrap();
    let names = || fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(names(), 2, "the temporary files have names");
    drop(writer);
    assert_eq!((names(), fs::read(&path).unwrap()), (2, before));
}

#[test]
fn truncated_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let stem = dir.path().join("train");
    assert!(open_error(&stem).contains("tessera encode"));
    for (name, expected) in [("train.safetensors", "cut short"), ("train.jsonl", "checksum")] {
        Written::small().write(&stem).unwrap();
        let path = dir.path().join(name);
        let bytes = fs::read(&path).unwrap();
        for keep in (0..bytes.len()).step_by(5).chain([bytes.len() - 1]) {
            fs::write(&path, &bytes[..keep]).unwrap();
            assert!(open_error(&stem).contains(expected), "{name} cut at {keep}: {}", open_error(&stem));
        }
        fs::remove_file(&path).unwrap();
        CodeSet::open(&stem).unwrap_err();
    }
}

#[test]
fn every_flipped_bit_is_an_error_other_than_newer() {
    let (_dir, stem, path) = small_files();
    let bytes = fs::read(&path).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &damaged).unwrap();
        let error = CodeSet::open(&stem).unwrap_err();
        assert!(!error.is::<Newer>(), "bit {bit}: {error:#}");
        assert!(error.to_string().contains("make it again with `tessera encode`"), "bit {bit}: {error:#}");
    }
}

#[test]
fn set_of_a_newer_version_is_distinguished_from_damage() {
    let (_dir, stem, path) = small_files();
    let newer = Kind { format: 9, ..KIND };
    let codes = TensorView::new(Dtype::U8, vec![3], b"abc").unwrap();
    let bytes = newer.write(&HashMap::from([("other", 1)]), vec![("packed".to_string(), codes)]).unwrap();
    fs::write(&path, bytes).unwrap();
    let error = CodeSet::open(&stem).unwrap_err();
    assert!(error.is::<Newer>() && format!("{error:#}").contains("format version 9"), "{error:#}");
}

#[test]
fn files_that_hold_something_else_are_errors() {
    let (_dir, stem, path) = small_files();
    let header = Header { vocab: 96, dvae: String::new(), items_crc32: 0, origin: None };
    let put = |kind: Kind, shape: &[usize], dtype| {
        let bytes = [0; 64];
        let view = TensorView::new(dtype, shape.to_vec(), &bytes[..64]).unwrap();
        fs::write(&path, kind.write(&header, vec![("codes".to_string(), view)]).unwrap()).unwrap();
        open_error(&stem)
    };
    let error = put(Kind { key: "other", ..KIND }, &[2, 1, 4, 4], Dtype::U16);
    assert!(error.contains("but not a set of codes"), "{error}");
    let error = put(KIND, &[2, 16], Dtype::U16);
    assert!(error.contains("its codes have the shape [2, 16]"), "{error}");
    let error = put(KIND, &[2, 1, 8, 4], Dtype::U8);
    assert!(error.contains("its codes are U8"), "{error}");
    let error = put(KIND, &[2, 1, 2, 8], Dtype::U16);
    assert!(error.contains("its grid is 2x8"), "{error}");
}

#[test]
fn old_set_without_checksum_is_unverified() {
    let (dir, stem, path) = small_files();
    let items_crc32 = crc32fast::hash(&fs::read(dir.path().join("train.jsonl")).unwrap());
    let header = format!(r#"{{"version":1,"vocab":96,"dvae":"abc","items_crc32":{items_crc32}}}"#);
    let header = HashMap::from([(KIND.key.to_string(), header)]);
    let codes: Vec<u8> = Written::small().codes.iter().flat_map(|code| code.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::U16, vec![3, 2, 4, 4], &codes).unwrap();
    fs::write(&path, safetensors::serialize([("codes", view)], Some(header)).unwrap()).unwrap();
    let set = CodeSet::open(&stem).unwrap();
    assert_eq!((set.origin.as_ref(), set.unverified, set.token(2, 1, 15).unwrap()), (None, true, 95));
    assert_eq!(set.fingerprint(), Written::small().opened().fingerprint());
}

#[test]
fn inconsistent_codes_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let write_error = |change: &dyn Fn(&mut CodeLayout)| {
        let mut set = Written::small();
        change(&mut set.layout);
        format!("{:#}", set.write(&dir.path().join("x")).unwrap_err())
    };
    let error = write_error(&|layout| layout.vocab = 95);
    assert!(error.contains("code 95 is outside a codebook of 95"), "{error}");
    let error = write_error(&|layout| layout.copies = 3);
    assert!(error.contains("96 codes for 3 items, 3 copies and a grid of 4: wanted 144"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
