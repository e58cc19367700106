//! Tests that all commands refuse damaged pictures.

use std::fs;
use std::path::Path;

use image::RgbImage;

use super::program::{Finished, command, folder, mistake, succeed};

/// Reads `fixtures/jpeg/NAME`.
fn jpeg(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/jpeg").join(name)).unwrap()
}

/// Writes JPEGs that are truncated or end with zeros, and returns their names.
fn damaged(dir: &Path) -> [&'static str; 3] {
    let whole = jpeg("baseline.jpg");
    let zeros = [&whole[..whole.len() / 2], &vec![0; whole.len() / 2]].concat();
    let progressive = jpeg("progressive.jpg");
    for (name, bytes) in [
        ("cut", &whole[..whole.len() * 3 / 5]),
        ("zeros", &zeros),
        ("progressive", &progressive[..progressive.len() * 3 / 5]),
    ] {
        fs::write(dir.join(format!("{name}.jpg")), bytes).unwrap();
    }
    ["cut.jpg", "zeros.jpg", "progressive.jpg"]
}

#[test]
fn truncated_jpeg_is_an_error_in_every_command() {
    let dir = folder();
    let dir = dir.path();
    let names = damaged(dir);
    RgbImage::new(53, 43).save(dir.join("whole.png")).unwrap();
    for name in names {
        for args in [
            &["reconstruct", name][..],
            &["draw", "a", "-n", "1", "--image", name, "--keep-rows", "2"],
            &["draw", "a", "-n", "1", "--image", "whole.png", "--mask", name],
        ] {
            let error = mistake(dir, args);
            assert!(
                error.contains(&format!("{name}: the picture is damaged: it is cut short")),
                "{args:?}: {error}"
            );
        }
    }
    fs::create_dir(dir.join("set")).unwrap();
    fs::copy(dir.join("cut.jpg"), dir.join("set/cut.jpg")).unwrap();
    RgbImage::new(9, 9).save(dir.join("set/whole.png")).unwrap();
    // A damaged picture in a folder is skipped with a note. One picture is left, which is too few.
    let output = Finished::of(command(dir, &["eval", "kid", "set", "set"]).output().unwrap());
    assert_eq!(output.code, Some(2), "{}", output.stdout);
    assert!(output.stderr.contains("cut.jpg: the picture is damaged: it is cut short"), "{}", output.stderr);
    assert!(
        output.stderr.ends_with("error: 1 and 1 feature vectors; wanted at least 2 of each\n"),
        "{}",
        output.stderr
    );
}

#[test]
fn data_folder_counts_truncated_jpegs_as_damaged() {
    let dir = folder();
    let pictures = dir.path().join("pictures");
    fs::create_dir(&pictures).unwrap();
    damaged(&pictures);
    for i in 0..8_u8 {
        RgbImage::from_pixel(53, 43, image::Rgb([i * 9; 3]))
            .save(pictures.join(format!("good{i}.png")))
            .unwrap();
        fs::write(pictures.join(format!("good{i}.txt")), "grey\n").unwrap();
    }
    for name in ["cut", "zeros", "progressive"] {
        fs::write(pictures.join(format!("{name}.txt")), "a wave\n").unwrap();
    }
    let args = ["data", "folder", "pictures", "--out", "data", "--size", "32", "--holdout", "0"];
    let output = succeed(dir.path(), &args).stdout;
    assert!(output.contains("3 damaged"), "{output}");
}
