//! Tests of `tessera draw --image` (paper §3.3): kept tokens do not change, and invalid requests
//! are errors.

use std::fs;
use std::path::Path;

use image::{GrayImage, Luma, RgbImage, RgbaImage};
use serde_json::Value;

use super::pipeline::pipeline;
use super::program::{entries, folder, mistake, succeed};

/// The number of cells along a side of a picture in the preset `tiny`.
const GRID: usize = 8;

/// Draws, and returns the tokens of each picture and the standard error.
fn tokens(dir: &Path, args: &[&str]) -> (Vec<Vec<u64>>, String) {
    let model = pipeline().model();
    let output = succeed(dir, &[&["draw", "--model", &model, "--json"], args].concat());
    let json: Value = serde_json::from_str(&output.stdout).unwrap();
    let picture = |picture: &Value| {
        let tokens: Vec<u64> =
            picture["tokens"].as_array().unwrap().iter().map(|token| token.as_u64().unwrap()).collect();
        assert_eq!(tokens.len(), GRID * GRID);
        tokens
    };
    (json["pictures"].as_array().unwrap().iter().map(picture).collect(), output.stderr)
}

/// Draws `cat.png` and returns its tokens.
fn cat(dir: &Path) -> Vec<u64> {
    tokens(dir, &["a cat", "-n", "1", "--seed", "4", "--out", "cat.png"]).0.remove(0)
}

/// Checks that the cells for which `keep` is true have the original tokens, and some others differ.
fn check_kept(drawn: &[Vec<u64>], original: &[u64], keep: impl Fn(usize, usize) -> bool) {
    let changed =
        |tokens: &Vec<u64>| (0..GRID * GRID).filter(|&at| tokens[at] != original[at]).collect::<Vec<_>>();
    for tokens in drawn {
        assert!(changed(tokens).iter().all(|at| !keep(at % GRID, at / GRID)), "{:?}", changed(tokens));
    }
    assert!(drawn.iter().any(|tokens| !changed(tokens).is_empty()), "nothing was drawn");
}

#[test]
fn draw_keeps_the_selected_cells_and_draws_the_rest() {
    let dir = folder();
    let dir = dir.path();
    let original = cat(dir);
    let go_on = |args: &[&str]| {
        let (drawn, stderr) =
            tokens(dir, &[&["an owl", "--image", "cat.png", "-n", "4", "--seed", "1"], args].concat());
        assert_eq!(stderr, "cat.png: drawn by this model; its own tokens are used\n");
        drawn
    };
    check_kept(&go_on(&["--keep-rows", "3"]), &original, |_, y| y < 3);
    check_kept(&go_on(&["--keep", "2,1,4,6", "--guidance", "1"]), &original, |x, y| {
        (2..6).contains(&x) && (1..7).contains(&y)
    });
    check_kept(&go_on(&["--keep-rows", "7", "--negative", "a cat"]), &original, |_, y| y < 7);
    // The mask is white in one cell and at the edge of another.
    let side =
        fs::read(dir.join("cat.png")).map(|bytes| image::load_from_memory(&bytes).unwrap().width()).unwrap();
    let cell = side / GRID as u32;
    let white = |x: u32, y: u32| (x / cell, y / cell) == (3, 3) || (x / cell, y) == (5, 6 * cell);
    GrayImage::from_fn(side, side, |x, y| Luma([if white(x, y) { 255 } else { 0 }]))
        .save(dir.join("mask.png"))
        .unwrap();
    check_kept(&go_on(&["--mask", "mask.png"]), &original, |x, y| (x, y) != (3, 3) && (x, y) != (5, 6));
    // The same command draws the same pictures.
    assert_eq!(go_on(&["--keep-rows", "3"]), go_on(&["--keep-rows", "3"]));
}

#[test]
fn variations_differ_more_with_more_strength() {
    let dir = folder();
    let original = cat(dir.path());
    let vary = |strength: &str| {
        let args = ["--image", "cat.png", "--variations", "--strength", strength, "-n", "6", "--seed", "2"];
        let (drawn, _) = tokens(dir.path(), &args);
        let changed = |tokens: &Vec<u64>| tokens.iter().zip(&original).filter(|(a, b)| a != b).count();
        drawn.iter().map(changed).sum::<usize>()
    };
    assert_eq!(vary("0"), 0);
    let [some, more] = [vary("0.3"), vary("0.9")];
    assert!(0 < some && some < more, "{some} {more}");
    // Without a prompt, the prompt of the picture is used.
    let json = succeed(dir.path(), &["inspect", "drawing.png", "--json"]).stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["prompts"][0], &json["strength"]), (&"a cat".into(), &0.9.into()));
}

#[test]
fn draw_fits_pictures_of_any_shape_and_prints_how() {
    let dir = folder();
    let dir = dir.path();
    let picture = RgbImage::from_fn(90, 60, |x, y| image::Rgb([255 - x as u8, 200 - y as u8, 50]));
    picture.save(dir.join("photo.jpg")).unwrap();
    let go_on = |args: &[&str]| {
        tokens(dir, &[&["an owl", "--image", "photo.jpg", "--keep-rows", "4", "-n", "1"], args].concat())
    };
    let (crop, stderr) = go_on(&[]);
    assert_eq!(stderr, "photo.jpg: 90x60 pixels, its middle 60x60, scaled to 32x32\n");
    let (pad, stderr) = go_on(&["--fit", "pad"]);
    assert_eq!(stderr, "photo.jpg: 90x60 pixels, all of it with white borders, scaled to 32x32\n");
    assert_ne!(crop[0][..4 * GRID], pad[0][..4 * GRID]);
    // A drawing that was painted over does not match its recorded tokens, so it is encoded again.
    cat(dir);
    let text = fs::read(dir.join("cat.png"))
        .map(|bytes| tessera_data::png_text::read(std::io::Cursor::new(bytes)).unwrap().unwrap());
    let black = RgbImage::new(128, 128);
    fs::write(
        dir.join("painted.png"),
        tessera_data::png_text::encode(&black, text.unwrap(), tessera_data::png_text::Effort::Small).unwrap(),
    )
    .unwrap();
    let (_, stderr) = tokens(dir, &["an owl", "--image", "painted.png", "--keep-rows", "4", "-n", "1"]);
    assert_eq!(stderr, "painted.png: 128x128 pixels, scaled to 32x32\n");
    // Without a flag, transparent cells are drawn.
    let clear = RgbaImage::from_fn(32, 32, |_, y| image::Rgba([200, 0, 0, if y < 16 { 255 } else { 0 }]));
    clear.save(dir.join("clear.png")).unwrap();
    let (drawn, _) = tokens(dir, &["an owl", "--image", "clear.png", "-n", "3", "--seed", "1"]);
    assert!(drawn.windows(2).all(|pair| pair[0][..32] == pair[1][..32] && pair[0][32..] != pair[1][32..]));
}

#[test]
fn invalid_picture_prompts_are_errors_of_one_line() {
    let dir = folder();
    let dir = dir.path();
    RgbImage::new(40, 40).save(dir.join("a.png")).unwrap();
    RgbImage::new(41, 40).save(dir.join("other.png")).unwrap();
    fs::write(dir.join("text.png"), "not a picture").unwrap();
    let before = entries(dir);
    for (args, wanted) in [
        (&["--image", "a.png"][..], "--image needs one of --keep-rows, --keep, --mask, --variations"),
        (&["--image", "none.png", "--keep-rows", "1"], "cannot read none.png"),
        (&["--image", "text.png", "--keep-rows", "1"], "text.png: not a PNG, JPEG or WebP picture"),
        (&["--image", "a.png", "--keep-rows", "8"], "keep 8 rows: wanted 1 to 7, of 8"),
        (&["--image", "a.png", "--keep", "7,0,2,1"], "within 8x8 cells"),
        (&["--image", "a.png", "--mask", "other.png"], "41x40 pixels: wanted 40x40, as large as the picture"),
        (&["--image", "a.png", "--mask", "a.png"], "there is nothing to draw"),
        (&["--image", "a.png", "--variations", "--strength", "2"], "strength 2: wanted 0 to 1"),
        (&["--negative", "red", "--guidance", "1"], "works through guidance"),
    ] {
        let error = mistake(dir, &[&["draw", "an owl", "--model", &pipeline().model()], args].concat());
        assert!(error.contains(wanted), "{args:?}: {error}");
    }
    assert_eq!(entries(dir), before);
}
