//! Tests of the captions that come from tables, folder names, and the output of img2dataset.

use std::fs::File;

use super::tests::{png, sized, write_file};
use super::*;
use crate::Dataset;

/// Creates the pictures `names` of 8x8 pixels under `pictures` in a new folder.
fn pictures(names: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("pictures")).unwrap();
    names.iter().for_each(|name| write_file(dir.path(), &format!("pictures/{name}"), &png(8, 8)));
    dir
}

/// The result of building a set: `source: caption | caption` per picture, and what was skipped.
fn build(dir: &tempfile::TempDir, captions: CaptionOptions) -> Result<(Vec<String>, Skipped)> {
    let out = dir.path().join("out");
    let options = FolderOptions { captions, ..sized(8) };
    let built = build_folder(&dir.path().join("pictures"), &out, &options);
    if let Err(error) = &built {
        assert!(!out.exists(), "an error must leave nothing behind");
        assert_eq!(format!("{error:#}").lines().count(), 1, "{error:#}");
    }
    let (_, skipped) = built?;
    let samples = Dataset::open(&out).unwrap().train;
    std::fs::remove_dir_all(&out).unwrap();
    let line = |sample: &Sample| format!("{}: {}", sample.meta.source, sample.captions.join(" | "));
    Ok((samples.iter().map(line).collect(), skipped))
}

fn lines(dir: &tempfile::TempDir) -> Vec<String> {
    build(dir, CaptionOptions::default()).unwrap().0
}

fn error(dir: &tempfile::TempDir, captions: CaptionOptions) -> String {
    format!("{:#}", build(dir, captions).unwrap_err())
}

fn table(dir: &tempfile::TempDir, name: &str) -> CaptionOptions {
    CaptionOptions { table: Some(dir.path().join(name)), ..CaptionOptions::default() }
}

#[test]
fn metadata_describes_the_pictures_of_its_folder() {
    let dir = pictures(&["a.png", "train/a.png", "train/deep/b.png", "train/c.png"]);
    write_file(dir.path(), "pictures/a.caption", b"top");
    let rows = br#"{"file_name": "a.png", "text": "inner"}
        {"file_name": "./deep/../deep/b.png", "text": "deep"}
        {"file_name": "../a.png", "text": "outer"}
        {"file_name": "b.png", "text": "not here"}
        {"file_name": "a.png", "text": "inner"}
        {"file_name": "a.png", "text": "again"}"#;
    write_file(dir.path(), "pictures/train/metadata.jsonl", rows);
    write_file(dir.path(), "pictures/train/deep/b.txt", b"ignored");
    let (found, skipped) = build(&dir, CaptionOptions::default()).unwrap();
    assert_eq!(found, ["a: outer", "train/a: inner | again", "train/deep/b: deep"]);
    let kinds = [SkipKind::NoCaption, SkipKind::NoPicture, SkipKind::SameCaption, SkipKind::TableInstead];
    assert_eq!(kinds.map(|kind| skipped.count(&kind)), [1, 1, 1, 2], "{skipped}");
    assert_eq!(skipped.total(), 5);
    for named in ["metadata.jsonl, line 4: b.png", "train/a.png: inner", "train/c.png"] {
        assert!(skipped.to_string().contains(named), "{named}: {skipped}");
    }
}

#[test]
fn metadata_may_be_csv_or_tsv() {
    for (name, text) in
        [("csv", "file_name,text\na.png,a cat\n"), ("tsv", "file_name\tcaption\na.png\ta cat\n")]
    {
        let dir = pictures(&["a.png"]);
        write_file(dir.path(), &format!("pictures/metadata.{name}"), text.as_bytes());
        let (found, skipped) = build(&dir, CaptionOptions::default()).unwrap();
        assert_eq!((found, skipped.total()), (vec!["a: a cat".to_string()], 0));
    }
}

#[test]
fn named_table_finds_pictures_by_any_path() {
    let dir =
        pictures(&["a.png", "b.jpg.png", "deep/c.png", "deep/d.png", "x/same.png", "y/same.png", "f.png"]);
    let rows = [
        "a.png,relative to the folder".to_string(),
        "b.jpg,without the ending".to_string(),
        "pictures/deep/c.png,relative to the table".to_string(),
        "d,the only one with this name".to_string(),
        "same.png,ambiguous".to_string(),
        format!("{},absolute", dir.path().join("pictures/x/same.png").display()),
        r".\y\same.png,of Windows".to_string(),
        "../other/f.png,outside".to_string(),
    ];
    let text = format!("file,text\n{}\n", rows.join("\n"));
    for name in ["table.csv", "pictures/table.csv"] {
        write_file(
            dir.path(),
            name,
            text.replace("pictures/deep", if name == "table.csv" { "pictures/deep" } else { "deep" })
                .as_bytes(),
        );
        let (found, skipped) = build(&dir, table(&dir, name)).unwrap();
        assert_eq!(
            found,
            [
                "a: relative to the folder",
                "b.jpg: without the ending",
                "deep/c: relative to the table",
                "deep/d: the only one with this name",
                "x/same: absolute",
                "y/same: of Windows"
            ]
        );
        let kinds = [SkipKind::NoCaption, SkipKind::NoPicture].map(|kind| skipped.count(&kind));
        assert_eq!((kinds, skipped.total()), ([1, 2], 3), "{skipped}");
        std::fs::remove_file(dir.path().join(name)).unwrap();
    }
}

#[test]
fn captions_in_a_table_replace_caption_files() {
    let dir = pictures(&["a.png", "b.png", "c.png"]);
    ["a", "b"].iter().for_each(|name| write_file(dir.path(), &format!("pictures/{name}.txt"), b"old"));
    write_file(dir.path(), "t.csv", b"image,caption\na.png,new\na.png,newer\nc.png,\n");
    let (found, skipped) = build(&dir, table(&dir, "t.csv")).unwrap();
    assert_eq!(found, ["a: new | newer", "b: old"]);
    assert_eq!([SkipKind::TableInstead, SkipKind::NoCaption].map(|kind| skipped.count(&kind)), [1, 1]);
}

#[test]
fn changed_table_is_noticed() {
    let dir = pictures(&["a.png"]);
    let options = FolderOptions { captions: table(&dir, "t.csv"), ..sized(8) };
    let build = |text: &str| {
        write_file(dir.path(), "t.csv", text.as_bytes());
        build_folder(&dir.path().join("pictures"), &dir.path().join("out"), &options)
    };
    let first = build("file,text\na.png,cat\n").unwrap();
    assert_eq!(build("id,file,text\n7,a.png,cat\n").unwrap(), first, "the captions are the same");
    let error = build("file,text\na.png,dog\n").unwrap_err().to_string();
    assert!(error.contains("have changed since"), "{error}");
}

#[test]
fn two_tables_for_the_same_pictures_are_an_error() {
    let dir = pictures(&["a.png", "deep/b.png"]);
    let row = |name: &str| write_file(dir.path(), name, b"file_name,text\na.png,cat\n");
    ["pictures/metadata.csv", "pictures/deep/metadata.tsv", "t.csv"].into_iter().for_each(row);
    let found = error(&dir, table(&dir, "t.csv"));
    assert!(found.contains("two tables of captions: ") && found.contains("leave out --captions"), "{found}");
    row("pictures/metadata.jsonl");
    let found = error(&dir, CaptionOptions::default());
    assert!(found.contains("metadata.csv and ") && found.contains("metadata.jsonl; remove one"), "{found}");
    // Tables of different folders do not conflict, and a table may be named explicitly.
    std::fs::remove_file(dir.path().join("pictures/metadata.jsonl")).unwrap();
    assert_eq!(lines(&dir), ["a: cat"]);
    std::fs::remove_file(dir.path().join("pictures/deep/metadata.tsv")).unwrap();
    assert_eq!(build(&dir, table(&dir, "pictures/metadata.csv")).unwrap().0, ["a: cat"]);
}

#[test]
fn invalid_tables_and_columns_are_errors() {
    let dir = pictures(&["a.png"]);
    write_file(dir.path(), "t.csv", b"id,words\n1,cat\n");
    let found = error(&dir, table(&dir, "t.csv"));
    assert!(found.contains("t.csv: no column with the pictures' file names"), "{found}");
    assert!(error(&dir, table(&dir, "none.csv")).contains("cannot read"), "{found}");
    let columns = CaptionOptions { text_column: Some("x".into()), ..CaptionOptions::default() };
    let found = error(&dir, columns);
    assert!(found.contains("--text-column needs a table of captions: --captions FILE"), "{found}");
    write_file(dir.path(), "t.csv", b"file,text\nb.png,cat\n");
    let found = error(&dir, table(&dir, "t.csv"));
    assert!(
        found.contains("1 caption without a picture") && found.contains("t.csv, line 2: b.png"),
        "{found}"
    );
}

#[test]
fn folder_names_are_captions_only_if_asked_for() {
    let dir = pictures(&["red_apples/a.png", "red_apples/deep/b.png", "top.png", "cats/c.png"]);
    let found = error(&dir, CaptionOptions::default());
    for wanted in ["4 pictures without a caption", "NAME.txt", "metadata.jsonl", "--folder-names", "\"cats\""]
    {
        assert!(found.contains(wanted), "{wanted}: {found}");
    }
    write_file(dir.path(), "pictures/cats/c.txt", b"a cat");
    let folder_names = CaptionOptions { folder_names: true, ..CaptionOptions::default() };
    let (found, skipped) = build(&dir, folder_names).unwrap();
    assert_eq!(found, ["cats/c: a cat", "red_apples/a: red apples", "red_apples/deep/b: deep"]);
    assert_eq!((skipped.count(&SkipKind::NoCaption), skipped.total()), (1, 1), "{skipped}");
}

#[test]
fn pictures_in_one_folder_get_no_hint_about_folder_names() {
    let found = error(&pictures(&["a.png"]), CaptionOptions::default());
    assert!(found.contains("--captions FILE") && !found.contains("--folder-names"), "{found}");
}

/// The files of img2dataset in one shard, with and without a caption file, and its statistics.
fn img2dataset() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("00000/000000000.jpg", png(8, 8)),
        ("00000/000000000.txt", b"a cat".to_vec()),
        (
            "00000/000000000.json",
            br#"{"caption": "a cat", "url": "https://example.org/cat.jpg", "width": 8}"#.to_vec(),
        ),
        ("00000/000000001.jpg", png(8, 8)),
        ("00000/000000001.json", br#"{"caption": "a dog", "url": null}"#.to_vec()),
        ("00000/000000002.jpg", png(8, 8)),
        ("00000/000000002.json", br#"{"caption": null}"#.to_vec()),
    ]
}

fn write_tar(path: &Path, members: &[(&str, Vec<u8>)]) {
    let mut builder = tar::Builder::new(File::create(path).unwrap());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    builder.into_inner().unwrap();
}

#[test]
fn img2dataset_gives_the_same_set_as_files_and_as_tars() {
    let (files, tars) = (pictures(&[]), pictures(&[]));
    let flat = img2dataset().into_iter().map(|(name, bytes)| (name.strip_prefix("00000/").unwrap(), bytes));
    img2dataset()
        .iter()
        .for_each(|(name, bytes)| write_file(files.path(), &format!("pictures/{name}"), bytes));
    write_file(tars.path(), "pictures/00000_stats.json", b"{}");
    write_tar(&tars.path().join("pictures/00000.tar"), &flat.collect::<Vec<_>>());
    for dir in [&files, &tars] {
        let (counts, skipped) =
            build_folder(&dir.path().join("pictures"), &dir.path().join("out"), &sized(8)).unwrap();
        assert_eq!((counts.pictures(), skipped.count(&SkipKind::NoCaption)), (2, 1), "{skipped}");
        assert!(skipped.to_string().contains("000000002: its .json has no caption"), "{skipped}");
    }
    let [a, b] = [&files, &tars].map(|dir| Dataset::open(&dir.path().join("out")).unwrap().train);
    assert_eq!(a, b);
    assert_eq!(
        (a[1].meta.source.as_str(), a[1].captions.as_slice()),
        ("00000/000000001", &["a dog".to_string()][..])
    );
    assert_eq!(a[0].meta.url.as_deref(), Some("https://example.org/cat.jpg"));
}

#[test]
fn key_in_a_tar_ends_at_the_first_dot() {
    let dir = pictures(&[]);
    let members = [
        ("cats/1.seg.png", png(8, 8)),
        ("cats/1.png", png(8, 8)),
        ("cats/1.caption", b"one".to_vec()),
        ("cats/2.webp", png(8, 8)),
    ];
    write_tar(&dir.path().join("pictures/x.y.tar"), &members);
    let (found, skipped) = build(&dir, CaptionOptions::default()).unwrap();
    assert_eq!(found, ["x.y/cats/1: one"]);
    assert_eq!(
        (skipped.count(&SkipKind::Ending("seg.png".into())), skipped.count(&SkipKind::NoCaption)),
        (1, 1)
    );
    // A table and folder names work as with files.
    write_file(dir.path(), "t.csv", b"key,text\n2,two\n");
    let options = CaptionOptions { folder_names: true, ..table(&dir, "t.csv") };
    assert_eq!(build(&dir, options).unwrap().0, ["x.y/cats/1: one", "x.y/cats/2: two"]);
    let options = CaptionOptions { folder_names: true, ..CaptionOptions::default() };
    assert_eq!(build(&dir, options).unwrap().0, ["x.y/cats/1: one", "x.y/cats/2: cats"]);
}

#[test]
fn pictures_take_precedence_over_tars_next_to_them() {
    let dir = pictures(&["a.png"]);
    write_file(dir.path(), "pictures/a.txt", b"a thing");
    write_tar(&dir.path().join("pictures/x.tar"), &img2dataset());
    let (found, skipped) = build(&dir, CaptionOptions::default()).unwrap();
    assert_eq!((found.len(), skipped.count(&SkipKind::Ending("tar".into()))), (1, 1));
}

#[test]
fn data_set_as_input_is_an_error() {
    let dir = pictures(&[]);
    let own = pictures(&["a.png"]);
    write_file(own.path(), "pictures/a.txt", b"a thing");
    build_folder(&own.path().join("pictures"), &dir.path().join("pictures"), &sized(8)).unwrap();
    let found = error(&dir, CaptionOptions::default());
    assert!(found.contains("is already a data set of `tessera data`; give it to --data"), "{found}");
}

#[test]
fn truncated_tar_is_an_error_and_writes_nothing() {
    let dir = pictures(&[]);
    let path = dir.path().join("pictures/x.tar");
    write_tar(&path, &img2dataset());
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..2000]).unwrap();
    assert!(error(&dir, CaptionOptions::default()).contains("x.tar is not a complete tar file"));
}

#[test]
fn unusable_pictures_alone_write_nothing() {
    let dir = pictures(&["a.png"]);
    write_file(dir.path(), "pictures/a.json", b"{");
    let found = error(&dir, CaptionOptions::default());
    assert!(
        found.contains("no picture is left to train on: 1 damaged (a: its .json is not a JSON object"),
        "{found}"
    );
}
