//! `tessera data folder` with captions from tables, folder names, and the output of img2dataset.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use tessera_data::Dataset;

use super::program::{arg, entries, folder, mistake, succeed};

/// A folder with the pictures `names` of 8x8 pixels in `pictures`.
fn pictures(names: &[&str]) -> TempDir {
    let dir = folder();
    for name in names {
        let path = dir.path().join("pictures").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::RgbImage::from_pixel(8, 8, image::Rgb([200, 30, 30])).save(path).unwrap();
    }
    dir
}

/// The command for `dir`, without held-out pictures, and with more flags.
fn args<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    let args = ["data", "folder", "pictures", "--out", "data", "--size", "8", "--holdout", "0"];
    [&args[..], flags].concat()
}

/// Runs the command and returns the first caption of each picture, and the output.
fn captions(dir: &Path, flags: &[&str]) -> (Vec<String>, String) {
    let said = succeed(dir, &args(flags));
    let set = Dataset::open(&dir.join("data")).unwrap().train;
    (set.into_iter().map(|mut sample| sample.captions.remove(0)).collect(), said.stdout)
}

/// Runs the command, which must fail in one line and write nothing, and returns the line.
fn refused(dir: &Path, flags: &[&str]) -> String {
    let before = entries(dir);
    let error = mistake(dir, &args(flags));
    assert_eq!(entries(dir), before, "{error}");
    error
}

#[test]
fn metadata_and_caption_files_are_read_without_flags() {
    let dir = pictures(&["a.png", "b.png", "c.png"]);
    let rows = "{\"file_name\": \"a.png\", \"text\": \"a cat\"}\n{\"file_name\": \"z.png\", \"text\": \"a zebra\"}\n";
    fs::write(dir.path().join("pictures/metadata.jsonl"), rows).unwrap();
    fs::write(dir.path().join("pictures/b.caption"), "a boat\n").unwrap();
    let (found, stdout) = captions(dir.path(), &[]);
    assert_eq!(found, ["a cat", "a boat"]);
    assert!(
        stdout.contains("skipped 2: 1 picture without a caption, 1 caption without a picture"),
        "{stdout}"
    );
    assert!(stdout.contains("pictures/metadata.jsonl, line 2: z.png"), "{stdout}");
}

#[test]
fn columns_of_a_table_have_customary_or_given_names() {
    let dir = pictures(&["a.png"]);
    fs::write(dir.path().join("t.csv"), "image,caption,title\na.png,\"a cat, sitting\",Cat 7\n").unwrap();
    assert_eq!(captions(dir.path(), &["--captions", "t.csv"]).0, ["a cat, sitting"]);
    fs::remove_dir_all(dir.path().join("data")).unwrap();
    let flags = ["--captions", "t.csv", "--image-column", "image", "--text-column", "title"];
    assert_eq!(captions(dir.path(), &flags).0, ["Cat 7"]);
    fs::remove_dir_all(dir.path().join("data")).unwrap();
    fs::write(dir.path().join("t.txt"), "image\tcaption\na.png\ta dog\na.png\ta dog\n").unwrap();
    let (found, stdout) = captions(dir.path(), &["--captions", "t.txt"]);
    assert_eq!(found, ["a dog"]);
    assert!(stdout.contains("skipped 1: 1 repeated caption"), "{stdout}");
}

#[test]
fn folder_names_are_captions_if_asked_for() {
    let dir = pictures(&["red_apples/a.png", "cats/b.png"]);
    let error = refused(dir.path(), &[]);
    assert!(error.contains("2 pictures without a caption") && error.contains("--folder-names"), "{error}");
    assert_eq!(captions(dir.path(), &["--folder-names"]).0, ["cats", "red apples"]);
}

#[test]
fn tars_of_img2dataset_are_read() {
    let dir = pictures(&["000000000.png", "000000001.png"]);
    let shards = dir.path().join("shards");
    fs::create_dir(&shards).unwrap();
    let mut tar = tar::Builder::new(fs::File::create(shards.join("00000.tar")).unwrap());
    for (name, text) in [("000000000.txt", "a cat"), ("000000001.json", "{\"caption\": \"a dog\"}")] {
        fs::write(dir.path().join("pictures").join(name), text).unwrap();
    }
    for name in entries(&dir.path().join("pictures")) {
        tar.append_path_with_name(dir.path().join("pictures").join(&name), name).unwrap();
    }
    tar.finish().unwrap();
    let unpacked = captions(dir.path(), &[]).0;
    fs::remove_dir_all(dir.path().join("data")).unwrap();
    fs::remove_dir_all(dir.path().join("pictures")).unwrap();
    fs::rename(shards, dir.path().join("pictures")).unwrap();
    assert_eq!(captions(dir.path(), &[]).0, unpacked);
    assert_eq!(unpacked, ["a cat", "a dog"]);
}

#[test]
fn invalid_captions_are_refused_in_one_line() {
    let dir = pictures(&["a.png"]);
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let error = refused(dir.path(), &[]);
    assert!(error.contains("1 picture without a caption") && error.contains("--captions FILE"), "{error}");
    write("t.csv", "image,words\na.png,a cat\n");
    let error = refused(dir.path(), &["--captions", "t.csv"]);
    for wanted in ["t.csv: no column with the captions", "\"image\", \"words\"", "--text-column NAME"] {
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
    let error = refused(dir.path(), &["--captions", "t.csv", "--text-column", "word"]);
    assert!(error.contains("no column \"word\" (--text-column)"), "{error}");
    let error = refused(dir.path(), &["--image-column", "image"]);
    assert!(error.contains("--image-column needs a table of captions"), "{error}");
    let error = refused(dir.path(), &["--captions", "none.csv"]);
    assert!(error.contains("cannot read none.csv"), "{error}");
    write("t.csv", "image,text\nb.png,a cat\n");
    let error = refused(dir.path(), &["--captions", "t.csv"]);
    assert!(error.contains("1 caption without a picture (t.csv, line 2: b.png"), "{error}");
    write("pictures/metadata.jsonl", "{\"file_name\": \"a.png\", \"text\": \"a cat\"}\n");
    let error = refused(dir.path(), &["--captions", "t.csv"]);
    assert!(
        error.contains("two tables of captions: t.csv (--captions) and pictures/metadata.jsonl"),
        "{error}"
    );
    write("pictures/metadata.csv", "file_name,text\na.png,a cat\n");
    let error = refused(dir.path(), &[]);
    assert!(
        error.contains("two tables of captions for the same pictures") && error.contains("remove one"),
        "{error}"
    );
}

/// A tar of a few kilobytes that claims a name and a sparse picture of gigabytes each.
#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_claims_of_a_tar() {
    let dir = folder();
    fs::create_dir(dir.path().join("pictures")).unwrap();
    let mut long_name = tar::Header::new_gnu();
    long_name.set_path("x").unwrap();
    long_name.set_entry_type(tar::EntryType::GNULongName);
    long_name.set_size(4 << 30);
    long_name.set_cksum();
    let path = dir.path().join("pictures/x.tar");
    fs::write(&path, long_name.as_bytes()).unwrap();
    // The rest of the tar is a hole in the file.
    fs::File::options().write(true).open(&path).unwrap().set_len((4 << 30) + 4096).unwrap();
    let script = format!("ulimit -v 3000000; exec {} {}", env!("CARGO_BIN_EXE_tessera"), args(&[]).join(" "));
    let output = std::process::Command::new("sh").args(["-c", &script]).current_dir(arg(dir.path())).output();
    let output = output.unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("takes more than 1048576 bytes"), "{stderr}");
}
