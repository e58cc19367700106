//! Tests of `tessera data folder` with good and bad files.

use std::fs;
use std::path::Path;

use tessera_data::Dataset;

use super::program::{Finished, command, entries, fixture, folder, mistake, succeed};

/// Writes a small picture with two captions.
fn captioned(dir: &Path, name: &str) {
    captioned_of(dir, name, [20, 16]);
}

/// Writes a picture of this size with two captions.
fn captioned_of(dir: &Path, name: &str, [width, height]: [u32; 2]) {
    let image = image::RgbImage::from_pixel(width, height, image::Rgb([200, 30, 30]));
    image.save(dir.join(format!("{name}.png"))).unwrap();
    fs::write(dir.join(format!("{name}.txt")), "a red square\nred\n").unwrap();
}

#[test]
fn data_folder_skips_counts_and_names_bad_files() {
    let dir = folder();
    let pictures = dir.path().join("pictures");
    fs::create_dir(&pictures).unwrap();
    (0..8).for_each(|i| captioned(&pictures, &format!("good{i}")));
    captioned(&pictures, "corrupt");
    let whole = fs::read(pictures.join("corrupt.png")).unwrap();
    fs::write(pictures.join("corrupt.png"), &whole[..whole.len() / 2]).unwrap();
    fs::write(pictures.join("orphan.txt"), "a caption of nothing\n").unwrap();

    let args = ["data", "folder", "pictures", "--out", "data", "--size", "16", "--holdout", "0"];
    let output = succeed(dir.path(), &args);
    let summary = "skipped 2: 1 damaged, 1 caption without a picture";
    assert!(output.stdout.contains(summary), "{}", output.stdout);
    assert!(output.stdout.contains("corrupt") && output.stdout.contains("orphan"), "{}", output.stdout);
    let counts = "8 pictures: 8 to train on, 0 held out; 16 captions\n";
    assert!(output.stdout.contains(counts), "{}", output.stdout);
    assert!(dir.path().join("data/train/00000.tar").exists());
    assert_eq!(succeed(dir.path(), &args).stdout, output.stdout, "the second run prints the same");
}

#[test]
fn data_folder_stores_pictures_in_the_size_the_stage_needs() {
    let dir = folder();
    let pictures = dir.path().join("pictures");
    fs::create_dir(&pictures).unwrap();
    captioned_of(&pictures, "wide", [600, 400]);
    for (out, flags, wanted) in [
        ("emoji", &[][..], (108, 72)),
        ("paper", &["--config", "paper"], (576, 384)),
        ("codes", &["--config", "paper", "--stage", "2"], (432, 288)),
        ("own", &["--size", "100"], (150, 100)),
    ] {
        let args = ["data", "folder", "pictures", "--out", out, "--holdout", "0"];
        succeed(dir.path(), &[&args, flags].concat());
        let set = Dataset::open(&dir.path().join(out)).unwrap();
        assert_eq!(set.train[0].image.dimensions(), wanted, "{out}");
    }
}

#[test]
fn data_folder_leaves_out_small_pictures_without_enlarge() {
    let dir = folder();
    let pictures = dir.path().join("pictures");
    fs::create_dir(&pictures).unwrap();
    captioned(&pictures, "small");
    let args = ["data", "folder", "pictures", "--out", "data"];
    let error = Finished::of(command(dir.path(), &args).output().unwrap());
    assert_eq!(error.code, Some(2));
    for wanted in ["no picture is left", "small: 20x16 pixels, wanted 48", "--enlarge", "--config"] {
        assert!(error.stderr.contains(wanted), "{wanted}: {}", error.stderr);
    }
    let output = succeed(dir.path(), &[&args[..], &["--enlarge"]].concat());
    assert!(output.stdout.contains("1 to train on, 0 held out; 2 captions, 1 enlarged"), "{}", output.stdout);
    assert_eq!(Dataset::open(&dir.path().join("data")).unwrap().train[0].image.dimensions(), (60, 48));
}

#[test]
fn data_folder_warns_about_too_few_held_out_pictures() {
    let dir = folder();
    let pictures = dir.path().join("pictures");
    fs::create_dir(&pictures).unwrap();
    (201..213).for_each(|number| captioned(&pictures, &format!("IMG_{number}")));
    let args = ["data", "folder", "pictures", "--out", "data", "--size", "16"];
    let output = succeed(dir.path(), &args);
    let warning =
        "warning: only 1 picture is held out; evaluation needs 20. More pictures, or a larger --holdout";
    assert!(output.stderr.contains(warning), "{}", output.stderr);
    let set = Dataset::open(&dir.path().join("data")).unwrap();
    assert_eq!((set.train.len(), set.val.len()), (11, 1));
}

#[test]
fn data_folder_without_pictures_is_an_error() {
    let dir = folder();
    fs::create_dir(dir.path().join("empty")).unwrap();
    let error = mistake(dir.path(), &["data", "folder", "empty", "--out", "data"]);
    assert!(error.contains("no captioned pictures under empty") && error.contains("NAME.txt"), "{error}");
    assert_eq!(entries(dir.path()), ["empty"]);
}

#[test]
fn data_folder_that_does_not_exist_is_an_error() {
    let dir = folder();
    let error = mistake(dir.path(), &["data", "folder", "none", "--out", "data"]);
    assert!(error.contains("none"), "{error}");
    assert!(entries(dir.path()).is_empty());
}

#[test]
fn training_without_a_data_set_says_how_to_make_one() {
    let dir = folder();
    let error = mistake(dir.path(), &["train", "bpe", "--config", "tiny", "--data", ".", "--run", "bpe"]);
    assert!(error.contains("make them with `tessera data emoji` or `tessera data folder`"), "{error}");
    assert!(entries(dir.path()).is_empty());
}

#[test]
fn data_folder_keeps_a_data_set_with_other_settings() {
    let dir = folder();
    captioned(dir.path(), "one");
    let args = |size| ["data", "folder", ".", "--out", "data", "--holdout", "0", "--size", size];
    succeed(dir.path(), &args("16"));
    let shard = dir.path().join("data/train/00000.tar");
    let before = fs::read(&shard).unwrap();
    let output = Finished::of(command(dir.path(), &args("24")).output().unwrap());
    assert_eq!(output.code, Some(2));
    assert!(output.stderr.contains("delete it or choose another folder"), "{}", output.stderr);
    assert!(fs::read(&shard).unwrap() == before);
}

#[test]
fn data_emoji_refuses_an_invalid_background() {
    let dir = folder();
    let packages = fixture();
    let error = mistake(
        dir.path(),
        &["data", "emoji", "--packages", &packages, "--out", "d", "--background", "white"],
    );
    assert!(error.contains("--background \"white\": wanted six hex digits"), "{error}");
}
