//! Damaged pictures are refused wherever pictures come in.

use std::fs;
use std::path::Path;

use image::RgbImage;

use super::program::{Said, command, folder, mistake, succeed};

/// `fixtures/jpeg/NAME`.
fn jpeg(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/jpeg").join(name)).unwrap()
}

/// Writes JPEGs that are cut short or have zeros for a tail, and returns their names.
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
fn a_cut_jpeg_is_refused_by_every_command() {
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
    // A damaged picture of a folder is passed over and named, and one picture is too few.
    let said = Said::of(command(dir, &["eval", "kid", "set", "set"]).output().unwrap());
    assert_eq!(said.code, Some(2), "{}", said.stdout);
    assert!(said.stderr.contains("cut.jpg: the picture is damaged: it is cut short"), "{}", said.stderr);
    assert!(
        said.stderr.ends_with("error: 1 and 1 feature vectors; wanted at least 2 of each\n"),
        "{}",
        said.stderr
    );
}

#[test]
fn cut_jpegs_are_counted_as_damaged_in_folders() {
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
    let said = succeed(dir.path(), &args).stdout;
    assert!(said.contains("3 damaged"), "{said}");
}
