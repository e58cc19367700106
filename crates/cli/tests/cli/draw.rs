//! Tests of `tessera draw` and `tessera inspect`.

use std::fs;
use std::path::Path;

use image::AnimationDecoder;
use serde_json::Value;

use super::pipeline::pipeline;
use super::program::{Finished, entries, folder, mistake, picture, succeed};

/// The side of a picture in the preset `tiny`, which `draw` enlarges four times.
const CELL: u32 = 4 * 32;

fn draw(dir: &Path, args: &[&str]) -> Finished {
    succeed(dir, &[&["draw", "--model", &pipeline().model()], args].concat())
}

fn draw_mistake(args: &[&str]) -> String {
    let dir = folder();
    let error = mistake(dir.path(), &[&["draw", "--model", &pipeline().model()], args].concat());
    assert!(entries(dir.path()).is_empty(), "{args:?} left {:?}", entries(dir.path()));
    error
}

#[test]
fn draw_writes_a_grid_whose_parameters_inspect_reads() {
    let dir = folder();
    let args = ["A red  APPLE", "--seed", "7", "--temperature", "0.5", "--top-k", "20", "--out", "apple.png"];
    let output = draw(dir.path(), &args);
    assert_eq!(output.stdout, "apple.png (seed 7)\n");
    assert_eq!(entries(dir.path()), ["apple.png"]);
    assert_eq!(picture(dir.path(), "apple.png").dimensions(), (3 * CELL + 4, 3 * CELL + 4));

    let json = succeed(dir.path(), &["inspect", "apple.png", "--json"]).stdout;
    let read: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&read["prompts"][0], &read["seed"], &read["n"]),
        (&"a red apple".into(), &7.into(), &9.into())
    );
    assert_eq!(
        (&read["temperature"], &read["top_k"], &read["top_p"]),
        (&0.5.into(), &20.into(), &0.7.into())
    );
    assert_eq!(read["model"], "model.tessera.safetensors"); // without its folder
    let table = succeed(dir.path(), &["inspect", "apple.png"]).stdout;
    assert!(table.lines().any(|line| line.starts_with("prompts") && line.contains("a red apple")), "{table}");
}

#[test]
fn same_seed_draws_the_same_pictures_for_any_number() {
    let dir = folder();
    for n in ["2", "5"] {
        let out = format!("of{n}.png");
        draw(dir.path(), &["a cat", "-n", n, "--seed", "3", "--separate", "--guidance", "2", "--out", &out]);
    }
    let names = ["of2-1.png", "of2-2.png", "of5-1.png", "of5-2.png", "of5-3.png", "of5-4.png", "of5-5.png"];
    assert_eq!(entries(dir.path()), names, "one file per picture and no grid");
    for i in [1, 2] {
        let (of_2, of_5) = (format!("of2-{i}.png"), format!("of5-{i}.png"));
        assert_eq!(picture(dir.path(), &of_2), picture(dir.path(), &of_5), "picture {i}");
    }
    assert_eq!(picture(dir.path(), "of2-1.png").dimensions(), (CELL, CELL));
    assert_ne!(picture(dir.path(), "of5-1.png"), picture(dir.path(), "of5-2.png"), "candidates differ");
}

/// Seeds from the clock's milliseconds would be close to each other.
#[test]
fn default_seed_is_random_and_short() {
    let dir = folder();
    let seed = || {
        let output = draw(dir.path(), &["a cat", "-n", "1"]).stdout;
        let seed = output.trim_end().strip_prefix("drawing.png (seed ").unwrap().strip_suffix(')').unwrap();
        seed.parse::<u64>().unwrap()
    };
    let [one, two] = [seed(), seed()];
    assert!(one.abs_diff(two) > 60_000 && one.max(two) < 1_000_000_000, "{one} and {two}");
}

#[test]
fn best_pictures_come_first_with_their_scores() {
    let (dir, reranker) = (folder(), pipeline().reranker());
    let ranked = |best: &str, of: &str, out: &str| {
        let rerank = ["--rerank", &reranker, "--best", best, "--of", of, "--seed", "3", "--out", out];
        draw(dir.path(), &[&["a red apple", "--scores"], &rerank[..]].concat());
        let json = succeed(dir.path(), &["inspect", out, "--json"]).stdout;
        serde_json::from_str::<Value>(&json).unwrap()
    };
    let (all, few) = (ranked("8", "8", "all.png"), ranked("3", "8", "few.png"));
    let scores = |read: &Value| -> Vec<f64> {
        read["scores"].as_array().unwrap().iter().map(|score| score.as_f64().unwrap()).collect()
    };
    assert!(scores(&all).windows(2).all(|pair| pair[0] >= pair[1]), "{:?}", scores(&all));
    assert_eq!(scores(&few), scores(&all)[..3]);
    assert_eq!((&few["n"], &few["of"]), (&3.into(), &8.into()));
    assert_eq!(few["reranker"], "rerank.tessera.safetensors");
    // There are two columns of pictures, and a strip with the score below each picture.
    let sheet = picture(dir.path(), "few.png");
    assert_eq!(sheet.dimensions(), (2 * CELL + 2, 2 * (CELL + 20) + 2));
}

#[test]
fn invalid_ranking_flags_are_errors() {
    let reranker = pipeline().reranker();
    for (args, wanted) in [
        (
            &["--best", "2"][..],
            "the model has no reranker; name one with --rerank, or use -n N to draw without ranking",
        ),
        (&["--scores"], "only ranked pictures have scores"),
        (&["--rerank", &reranker, "--best", "9", "--of", "4"], "--best must not exceed --of"),
        (&["--rerank", &reranker, "--best", "0"], "wanted 1 to"),
        (&["--rerank", "none.safetensors"], "cannot read none.safetensors"),
        (&["--rerank", &pipeline().model()], "holds no contrastive model"),
    ] {
        let error = draw_mistake(&[&["a cat"], args].concat());
        assert!(error.contains(wanted), "{args:?}: {error}");
    }
}

#[test]
fn draw_reads_prompts_from_a_file_and_prints_json() {
    let dir = folder();
    fs::write(dir.path().join("prompts.txt"), "a cat\n\n  a dog \n").unwrap();
    let args = ["a red apple", "--prompts", "prompts.txt", "-n", "2", "--seed", "1", "--json", "--separate"];
    let json: Value = serde_json::from_str(&draw(dir.path(), &args).stdout).unwrap();
    assert_eq!(json["prompts"], serde_json::json!(["a red apple", "a cat", "a dog"]));
    let pictures = json["pictures"].as_array().unwrap();
    let prompts: Vec<&str> = pictures.iter().map(|picture| picture["prompt"].as_str().unwrap()).collect();
    assert_eq!(prompts, ["a red apple", "a red apple", "a cat", "a cat", "a dog", "a dog"]);
    assert_eq!(json["files"].as_array().unwrap().len(), 6);
    // Each file has the parameters of its own picture. A prompt gives the same picture alone.
    let third: Value =
        serde_json::from_str(&succeed(dir.path(), &["inspect", "drawing-3.png", "--json"]).stdout).unwrap();
    assert_eq!((&third["prompts"], &third["index"]), (&serde_json::json!(["a cat"]), &0.into()));
    assert_eq!(third["tokens"], pictures[2]["tokens"]);
    draw(dir.path(), &["a cat", "-n", "1", "--seed", "1", "--out", "alone.png"]);
    assert_eq!(picture(dir.path(), "alone.png"), picture(dir.path(), "drawing-3.png"));

    fs::write(dir.path().join("empty.txt"), "\n \n").unwrap();
    for (file, wanted) in
        [("empty.txt", "holds no prompt: wanted one per line"), ("none.txt", "cannot read none.txt")]
    {
        let error = mistake(dir.path(), &["draw", "--prompts", file, "--model", &pipeline().model()]);
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn animation_begins_white_and_ends_with_the_pictures() {
    let dir = folder();
    for kind in [&[][..], &["--mosaic"]] {
        check_animation(dir.path(), kind);
    }
}

fn check_animation(dir: &Path, kind: &[&str]) {
    let args = ["a red apple", "-n", "2", "--seed", "1", "--gif", "forming.gif"];
    assert_eq!(draw(dir, &[&args, kind].concat()).stdout, "drawing.png and forming.gif (seed 1)\n");
    let file = std::io::BufReader::new(fs::File::open(dir.join("forming.gif")).unwrap());
    let frames = image::codecs::gif::GifDecoder::new(file).unwrap().into_frames().collect_frames().unwrap();
    let gray = |frame: &image::Frame| image::DynamicImage::from(frame.buffer().clone()).to_luma8();
    let sheet = image::DynamicImage::from(picture(dir, "drawing.png")).to_luma8();
    let difference = |frame| {
        let pairs = gray(frame).into_raw().into_iter().zip(sheet.as_raw());
        pairs.map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / sheet.as_raw().len() as f64
    };
    assert!(frames.len() > 10 && frames[0].buffer().dimensions() == sheet.dimensions());
    assert!(gray(&frames[0]).pixels().all(|pixel| pixel.0[0] > 250), "the first frame is not white");
    let last = difference(frames.last().unwrap());
    assert!(last < 3.0, "the last frame differs from the sheet by {last}");
}

#[test]
fn mosaic_shows_the_same_tile_for_the_same_token() {
    let dir = folder();
    let args = ["a red apple", "-n", "1", "--seed", "1", "--mosaic", "--scale", "3", "--json"];
    let drawn: Value = serde_json::from_str(&draw(dir.path(), &args).stdout).unwrap();
    let tokens = drawn["pictures"][0]["tokens"].as_array().unwrap();
    let mosaic = picture(dir.path(), "drawing.png");
    assert_eq!(mosaic.dimensions(), (3 * CELL / 4, 3 * CELL / 4));
    for (x, y, pixel) in mosaic.enumerate_pixels() {
        assert_eq!(pixel, mosaic.get_pixel(x / 3 * 3, y / 3 * 3), "pixels are not smoothed");
    }
    let side = 3 * CELL / 4 / 8; // of a tile
    let mut tiles = std::collections::HashMap::new();
    for (at, token) in tokens.iter().enumerate() {
        let (x, y) = (at as u32 % 8 * side, at as u32 / 8 * side);
        let tile = image::imageops::crop_imm(&mosaic, x, y, side, side).to_image();
        assert_eq!(*tiles.entry(token).or_insert(tile.clone()), tile, "token {token} at {at}");
    }
    assert!(tiles.len() > 1 && tiles.len() < tokens.len(), "{} tiles", tiles.len());
}

#[test]
fn any_prompt_can_be_drawn() {
    let dir = folder();
    for (prompt, stderr) in [
        ("", ""),
        ("   ", ""),
        ("🍎", ""),
        ("红苹果", ""),
        ("\u{202e}a\u{7}b\n", "unknown word: 'b'\n"),
        ("'\"; $(ls) %s \\", "unknown words: 'ls', 's'\n"),
    ] {
        let output = draw(dir.path(), &[prompt, "-n", "1", "--seed", "1"]);
        assert_eq!(output.stderr, stderr, "{prompt:?}");
        assert_eq!(picture(dir.path(), "drawing.png").dimensions(), (CELL, CELL), "{prompt:?}");
    }
}

#[test]
fn long_prompt_is_truncated_with_a_warning() {
    let dir = folder();
    let prompt = "a red apple with ".repeat(600);
    let output = draw(dir.path(), &[&prompt, "-n", "1"]);
    let warning = output.stderr.trim_end();
    assert!(warning.starts_with("warning: ") && warning.lines().count() == 1, "{warning}");
    let read: Value =
        serde_json::from_str(&succeed(dir.path(), &["inspect", "drawing.png", "--json"]).stdout).unwrap();
    let kept = read["prompts"][0].as_str().unwrap();
    let cut: String = kept.chars().rev().take(10).collect::<Vec<_>>().into_iter().rev().collect();
    assert!(prompt.starts_with(kept) && warning.contains(&cut), "kept {kept:?}, warned {warning}");
}

#[test]
fn invalid_numbers_are_errors() {
    for (args, wanted) in [
        (["-n", "0"], "-n 0: wanted 1 to"),
        (["--scale", "0"], "--scale 0: wanted 1 to"),
        (["--temperature", "nan"], "wanted 0 or more"),
        (["--top-k", "0"], "wanted at least 1"),
        (["--top-p", "1.5"], "at most 1"),
        (["--guidance", "inf"], "wanted a number from -1000 to 1000"),
    ] {
        let error = draw_mistake(&[&["a cat"], &args[..]].concat());
        assert!(error.contains(wanted), "{args:?}: {error}");
    }
}

#[test]
fn unwritable_output_is_an_error_before_drawing() {
    let error = draw_mistake(&["a cat", "--out", "no/such/folder/x.png"]);
    assert!(error.contains("cannot write no/such/folder/x.png; choose another name"), "{error}");
}

#[test]
fn missing_or_damaged_model_is_an_error() {
    let dir = folder();
    let error = mistake(dir.path(), &["draw", "a cat", "--model", "none.safetensors"]);
    assert!(error.contains("cannot read none.safetensors"), "{error}");

    let bytes = fs::read(pipeline().model()).unwrap();
    for kept in [0, 7, 1000, bytes.len() / 2, bytes.len() - 1] {
        fs::write(dir.path().join("half"), &bytes[..kept]).unwrap();
        let error = mistake(dir.path(), &["draw", "a cat", "--model", "half"]);
        assert!(error.contains("half is not a complete Tessera model"), "{kept} bytes: {error}");
    }
    assert_eq!(entries(dir.path()), ["half"], "no picture is written");
}

#[test]
fn inspect_describes_models_and_refuses_other_files() {
    let dir = folder();
    let json = succeed(dir.path(), &["inspect", &pipeline().model(), "--json"]).stdout;
    let read: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&read["config"]["dvae"]["image_size"], &read["tokenizer"]), (&32.into(), &true.into()));
    assert!(read["prior_parameters"].as_u64().unwrap() > 100_000, "{json}");

    image::RgbImage::new(4, 4).save(dir.path().join("other.png")).unwrap();
    fs::write(dir.path().join("text.png"), "not a picture").unwrap();
    for (file, wanted) in [
        ("none.png", "cannot read none.png"),
        ("text.png", "neither a PNG nor a model: text.png is not a complete Tessera model"),
        ("other.png", "has no stored drawing parameters"),
    ] {
        let error = mistake(dir.path(), &["inspect", file]);
        assert!(error.contains(wanted), "{file}: {error}");
    }
}
