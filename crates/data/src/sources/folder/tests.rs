//! Tests of building a set from a folder with caption files; see `captions_tests.rs` for others.

use std::fs;

use super::*;
use crate::Dataset;

/// Returns options for shorter sides of 8 to `size` pixels, without held-out pictures.
pub(super) fn sized(size: u32) -> FolderOptions {
    FolderOptions {
        size,
        least: 8,
        small: Small::LeftOut,
        val_share: Share::percent(0),
        seed: 0,
        captions: CaptionOptions::default(),
    }
}

fn entries_of(dir: &Path) -> Vec<Entry> {
    find_entries(dir, &dir.join("out"), &CaptionOptions::default()).unwrap().0
}

pub(super) fn write_file(dir: &Path, name: &str, bytes: &[u8]) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

pub(super) fn png(width: u32, height: u32) -> Vec<u8> {
    picture::encode_png(&RgbImage::from_pixel(width, height, image::Rgb([9, 90, 200]))).unwrap()
}

/// The captions of the training pictures.
fn captions(dataset: &Path) -> Vec<String> {
    let train = Dataset::open(dataset).unwrap().train;
    train.into_iter().map(|sample| sample.captions.concat()).collect()
}

#[test]
fn pairs_are_stored_uncropped_and_others_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let (from, out) = (dir.path().join("mine"), dir.path().join("out"));
    write_file(&from, "deep/er/boat.png", &png(80, 40));
    write_file(&from, "deep/er/boat.txt", "a boat\nthe boat\n".as_bytes());
    write_file(&from, "mid.PNG", &png(20, 24));
    write_file(&from, "mid.txt", b"a middling thing");
    write_file(&from, "tiny.PNG", &png(8, 7));
    write_file(&from, "tiny.txt", b"a tiny thing");
    write_file(&from, "broken.jpg", b"not a jpeg");
    write_file(&from, "broken.txt", b"a broken thing");
    write_file(&from, "alone.webp", &png(8, 8));
    write_file(&from, "words.txt", b"only words");
    write_file(&from, "boat.tags", b"a tag");
    let (counts, skipped) = build_folder(&from, &out, &sized(32)).unwrap();
    assert_eq!((counts.pictures(), counts.captions, counts.enlarged), (2, 3, 0));
    let kinds = [
        SkipKind::Damaged,
        SkipKind::TooSmall,
        SkipKind::NoCaption,
        SkipKind::NoPicture,
        SkipKind::Ending("tags".into()),
    ];
    assert_eq!(kinds.map(|kind| skipped.count(&kind)), [1; 5], "{skipped}");
    assert!(skipped.to_string().contains("tiny: 8x7 pixels, wanted 8"), "{skipped}");

    let set = Dataset::open(&out).unwrap();
    assert_eq!(set.train[0].captions, ["a boat", "the boat"]);
    assert_eq!((set.train[0].meta.concept.as_str(), set.train[0].meta.style.as_str()), ("boat", "own"));
    let sizes: Vec<(u32, u32)> = set.train.iter().map(|sample| sample.image.dimensions()).collect();
    assert_eq!(sizes, [(64, 32), (20, 24)], "at most 32, and never enlarged");
    assert_eq!(build_folder(&from, &out, &sized(32)).unwrap(), (counts, skipped));
    let error = build_folder(&from, &out, &sized(16)).unwrap_err().to_string();
    assert!(error.contains("other settings"), "{error}");

    let enlarged = FolderOptions { small: Small::Enlarged, ..sized(32) };
    let (counts, _) = build_folder(&from, &dir.path().join("out2"), &enlarged).unwrap();
    assert_eq!((counts.pictures(), counts.enlarged), (3, 1));
    let set = Dataset::open(&dir.path().join("out2")).unwrap();
    assert_eq!(set.train[2].image.dimensions(), (9, 8));
}

#[test]
fn set_does_not_depend_on_the_location_of_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (from, copy, out) = (dir.path().join("P"), dir.path().join("P2"), dir.path().join("out"));
    for at in [&from, &copy] {
        write_file(at, "deep/a.png", &png(8, 8));
        write_file(at, "deep/a.txt", b"a thing");
    }
    let first = build_folder(&from, &out, &sized(8)).unwrap();
    write_file(&from, "deep/a.png", &png(8, 8)); // the same bytes with a new modification time
    for again in [from.clone(), dir.path().join("./P/"), copy.clone()] {
        assert_eq!(build_folder(&again, &out, &sized(8)).unwrap(), first);
    }
    // A record of version 1 is compared by its fingerprint of version 1.
    let record = out.join("dataset.json");
    let (text, found) = (fs::read_to_string(&record).unwrap(), fingerprints(&entries_of(&from)));
    assert!(text.contains(&found.now), "{text}");
    fs::write(&record, text.replace(&found.now, &found.version_1)).unwrap();
    assert_eq!(build_folder(&from, &out, &sized(8)).unwrap(), first);
    write_file(&copy, "deep/a.txt", b"a think");
    let error = build_folder(&copy, &out, &sized(8)).unwrap_err().to_string();
    assert!(error.contains("have changed since"), "{error}");
}

/// Version 1 computed the CRC-32 of each name and of the checksums of its files.
#[test]
fn fingerprint_of_version_1_is_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    write_file(dir.path(), "a.png", b"picture");
    write_file(dir.path(), "a.txt", b"words");
    let entries = entries_of(dir.path());
    assert_eq!(fingerprints(&entries).version_1, "1 pairs, c8db550e");
}

#[test]
fn two_readable_pictures_give_one_of_each_split() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("in");
    for seed in 0..20 {
        let (held, out) =
            (Share::percent(if seed % 2 == 0 { 1 } else { 99 }), dir.path().join(format!("out{seed}")));
        for name in ["a", "b", "damaged"] {
            write_file(
                &from,
                &format!("{name}.png"),
                &if name == "damaged" { Vec::new() } else { png(8, 8) },
            );
            write_file(&from, &format!("{name}.txt"), b"a thing");
        }
        let options = FolderOptions { val_share: held, seed, ..sized(8) };
        let (counts, _) = build_folder(&from, &out, &options).unwrap();
        assert_eq!((counts.in_split(Split::Train), counts.in_split(Split::Val)), (1, 1), "seed {seed}");
    }
}

#[test]
fn non_text_captions_are_damaged_and_empty_ones_missing() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("in");
    let texts: [(&str, &[u8]); 6] = [
        ("marked", b"\xef\xbb\xbfa fox"),
        ("utf16", b"\xff\xfea\0 \0c\0a\0t\0\n\0"),
        ("windows", b"a cat\x92s ear"),
        ("picture", b"\x89PNG\r\n\x1a\n\0\0"),
        ("nothing", b"\0\0"),
        ("invisible", b"\xe2\x80\x8b\n"),
    ];
    for (name, text) in texts {
        write_file(&from, &format!("{name}.png"), &png(8, 8));
        write_file(&from, &format!("{name}.txt"), text);
    }
    let out = dir.path().join("out");
    let (_, skipped) = build_folder(&from, &out, &sized(8)).unwrap();
    assert_eq!(captions(&out), ["a fox", "a cat"]);
    let counts = [SkipKind::Damaged, SkipKind::NoCaption].map(|kind| skipped.count(&kind));
    assert_eq!(counts, [2, 2], "{skipped}");
    assert!(skipped.to_string().contains("windows.txt: not UTF-8: byte 0x92"), "{skipped}");
}

#[cfg(unix)]
#[test]
fn names_in_other_encodings_stay_distinct() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("in");
    fs::create_dir(&from).unwrap();
    let write = |name: &[u8], bytes: &[u8]| {
        fs::write(from.join(std::ffi::OsStr::from_bytes(name)), bytes).unwrap();
    };
    write(b"K\xf6ln.png", &png(8, 8));
    write(b"K\xe4ln.txt", b"another town");
    for name in [b"S\xfc\xdf", b"S\xe4\xdf"] {
        write(&[&name[..], b".png"].concat(), &png(8, 8));
        write(&[&name[..], b".txt"].concat(), &[&b"number "[..], name[1].to_string().as_bytes()].concat());
    }
    let out = dir.path().join("out");
    let (_, skipped) = build_folder(&from, &out, &sized(8)).unwrap();
    assert_eq!(captions(&out), ["number 228", "number 252"]);
    let counts = [SkipKind::NoCaption, SkipKind::NoPicture].map(|kind| skipped.count(&kind));
    assert_eq!(counts, [1, 1], "{skipped}");
}

#[test]
fn about_the_given_share_is_held_out() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..40 {
        write_file(dir.path(), &format!("in/{n}.png"), &png(8, 8));
        write_file(dir.path(), &format!("in/{n}.txt"), b"a thing");
    }
    let options = FolderOptions { val_share: Share::percent(25), ..sized(8) };
    let (counts, _) = build_folder(&dir.path().join("in"), &dir.path().join("out"), &options).unwrap();
    assert!((3..20).contains(&counts.in_split(Split::Val)), "{counts}");
}

#[test]
fn empty_folder_is_an_error_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let error = build_folder(dir.path(), &dir.path().join("out"), &sized(32)).unwrap_err().to_string();
    assert!(error.contains("NAME.txt"), "{error}");
    assert!(!dir.path().join("out").exists());
}
