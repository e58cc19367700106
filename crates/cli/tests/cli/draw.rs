//! `tessera draw` and `tessera inspect`.

use std::fs;
use std::path::Path;

use image::AnimationDecoder;
use serde_json::Value;

use super::pipeline::pipeline;
use super::program::{Said, entries, folder, mistake, picture, succeed};

/// Side of a picture in the preset `tiny`, enlarged four times as `draw` does.
const CELL: u32 = 4 * 32;

fn draw(dir: &Path, args: &[&str]) -> Said {
    succeed(dir, &[&["draw", "--model", &pipeline().model()], args].concat())
}

fn draw_mistake(args: &[&str]) -> String {
    let dir = folder();
    let error = mistake(dir.path(), &[&["draw", "--model", &pipeline().model()], args].concat());
    assert!(entries(dir.path()).is_empty(), "{args:?} left {:?}", entries(dir.path()));
    error
}

#[test]
fn nine_pictures_in_a_grid_that_inspect_reads_back() {
    let dir = folder();
    let args = ["A red  APPLE", "--seed", "7", "--temperature", "0.5", "--top-k", "20", "--out", "apple.png"];
    let said = draw(dir.path(), &args);
    assert_eq!(said.stdout, "apple.png (seed 7)\n");
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
    assert_eq!(read["model"], "model.tessera.safetensors"); // and not where it lies
    let table = succeed(dir.path(), &["inspect", "apple.png"]).stdout;
    assert!(table.lines().any(|line| line.starts_with("prompts") && line.contains("a red apple")), "{table}");
}

#[test]
fn a_seed_gives_the_same_pictures_whatever_their_number() {
    let dir = folder();
    for n in ["2", "5"] {
        let out = format!("of{n}.png");
        draw(dir.path(), &["a cat", "-n", n, "--seed", "3", "--separate", "--guidance", "2", "--out", &out]);
    }
    let names = ["of2-1.png", "of2-2.png", "of5-1.png", "of5-2.png", "of5-3.png", "of5-4.png", "of5-5.png"];
    assert_eq!(entries(dir.path()), names, "one file a picture and no grid");
    for i in [1, 2] {
        let (of_2, of_5) = (format!("of2-{i}.png"), format!("of5-{i}.png"));
        assert_eq!(picture(dir.path(), &of_2), picture(dir.path(), &of_5), "picture {i}");
    }
    assert_eq!(picture(dir.path(), "of2-1.png").dimensions(), (CELL, CELL));
    assert_ne!(picture(dir.path(), "of5-1.png"), picture(dir.path(), "of5-2.png"), "candidates differ");
}

/// The clock's milliseconds would be near each other.
#[test]
fn a_seed_that_nobody_chose_is_random_and_short() {
    let dir = folder();
    let seed = || {
        let said = draw(dir.path(), &["a cat", "-n", "1"]).stdout;
        let seed = said.trim_end().strip_prefix("drawing.png (seed ").unwrap().strip_suffix(')').unwrap();
        seed.parse::<u64>().unwrap()
    };
    let [one, two] = [seed(), seed()];
    assert!(one.abs_diff(two) > 60_000 && one.max(two) < 1_000_000_000, "{one} and {two}");
}

#[test]
fn the_best_of_many_come_first_with_their_scores() {
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
    // Two columns of pictures with a strip below each.
    let sheet = picture(dir.path(), "few.png");
    assert_eq!(sheet.dimensions(), (2 * CELL + 2, 2 * (CELL + 18) + 2));
}

#[test]
fn ranking_asks_for_what_it_needs() {
    let reranker = pipeline().reranker();
    for (args, wanted) in [
        (&["--best", "2"][..], "the model has no reranker; name one with --rerank, or draw with -n"),
        (&["--scores"], "only ranked pictures have scores"),
        (&["--rerank", &reranker, "--best", "9", "--of", "4"], "wanted no more than are drawn"),
        (&["--rerank", &reranker, "--best", "0"], "wanted 1 to"),
        (&["--rerank", "none.safetensors"], "cannot read none.safetensors"),
        (&["--rerank", &pipeline().model()], "holds no contrastive model"),
    ] {
        let error = draw_mistake(&[&["a cat"], args].concat());
        assert!(error.contains(wanted), "{args:?}: {error}");
    }
}

#[test]
fn prompts_come_from_a_file_and_json_tells_of_each_picture() {
    let dir = folder();
    fs::write(dir.path().join("prompts.txt"), "a cat\n\n  a dog \n").unwrap();
    let args = ["a red apple", "--prompts", "prompts.txt", "-n", "2", "--seed", "1", "--json", "--separate"];
    let told: Value = serde_json::from_str(&draw(dir.path(), &args).stdout).unwrap();
    assert_eq!(told["prompts"], serde_json::json!(["a red apple", "a cat", "a dog"]));
    let pictures = told["pictures"].as_array().unwrap();
    let prompts: Vec<&str> = pictures.iter().map(|picture| picture["prompt"].as_str().unwrap()).collect();
    assert_eq!(prompts, ["a red apple", "a red apple", "a cat", "a cat", "a dog", "a dog"]);
    assert_eq!(told["files"].as_array().unwrap().len(), 6);
    // Each file tells of its own picture, and that picture is the one that its prompt alone would give.
    let third: Value =
        serde_json::from_str(&succeed(dir.path(), &["inspect", "drawing-3.png", "--json"]).stdout).unwrap();
    assert_eq!((&third["prompts"], &third["index"]), (&serde_json::json!(["a cat"]), &0.into()));
    assert_eq!(third["tokens"], pictures[2]["tokens"]);
    draw(dir.path(), &["a cat", "-n", "1", "--seed", "1", "--out", "alone.png"]);
    assert_eq!(picture(dir.path(), "alone.png"), picture(dir.path(), "drawing-3.png"));

    fs::write(dir.path().join("empty.txt"), "\n \n").unwrap();
    for (file, wanted) in
        [("empty.txt", "holds no prompt: wanted one a line"), ("none.txt", "cannot read none.txt")]
    {
        let error = mistake(dir.path(), &["draw", "--prompts", file, "--model", &pipeline().model()]);
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn an_animation_ends_with_the_pictures() {
    let dir = folder();
    let args = ["a red apple", "-n", "2", "--seed", "1", "--gif", "forming.gif"];
    assert_eq!(draw(dir.path(), &args).stdout, "drawing.png and forming.gif (seed 1)\n");
    let file = std::io::BufReader::new(fs::File::open(dir.path().join("forming.gif")).unwrap());
    let frames = image::codecs::gif::GifDecoder::new(file).unwrap().into_frames().collect_frames().unwrap();
    let gray = |frame: &image::Frame| image::DynamicImage::from(frame.buffer().clone()).to_luma8();
    let sheet = image::DynamicImage::from(picture(dir.path(), "drawing.png")).to_luma8();
    let off = |frame| {
        let pairs = gray(frame).into_raw().into_iter().zip(sheet.as_raw());
        pairs.map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / sheet.as_raw().len() as f64
    };
    assert!(frames.len() > 10 && frames[0].buffer().dimensions() == sheet.dimensions());
    assert!(gray(&frames[0]).pixels().all(|pixel| pixel.0[0] > 250), "it begins white");
    assert!(off(frames.last().unwrap()) < 3.0, "it ends {} from the sheet", off(frames.last().unwrap()));
}

#[test]
fn any_prompt_draws() {
    let dir = folder();
    for (prompt, told) in [
        ("", ""),
        ("   ", ""),
        ("🍎", ""),
        ("红苹果", ""),
        ("\u{202e}a\u{7}b\n", "unknown word: 'b'\n"),
        ("'\"; $(ls) %s \\", "unknown words: 'ls', 's'\n"),
    ] {
        let said = draw(dir.path(), &[prompt, "-n", "1", "--seed", "1"]);
        assert_eq!(said.stderr, told, "{prompt:?}");
        assert_eq!(picture(dir.path(), "drawing.png").dimensions(), (CELL, CELL), "{prompt:?}");
    }
}

#[test]
fn a_long_prompt_is_cut_with_a_warning_that_says_where() {
    let dir = folder();
    let prompt = "a red apple with ".repeat(600);
    let said = draw(dir.path(), &[&prompt, "-n", "1"]);
    let warning = said.stderr.trim_end();
    assert!(warning.starts_with("warning: ") && warning.lines().count() == 1, "{warning}");
    let read: Value =
        serde_json::from_str(&succeed(dir.path(), &["inspect", "drawing.png", "--json"]).stdout).unwrap();
    let kept = read["prompts"][0].as_str().unwrap();
    let cut: String = kept.chars().rev().take(10).collect::<Vec<_>>().into_iter().rev().collect();
    assert!(prompt.starts_with(kept) && warning.contains(&cut), "kept {kept:?}, said {warning}");
}

#[test]
fn bad_numbers_say_what_was_wanted() {
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
fn an_output_that_cannot_be_written_is_found_before_drawing() {
    let error = draw_mistake(&["a cat", "--out", "no/such/folder/x.png"]);
    assert!(error.contains("cannot write no/such/folder/x.png; choose another name"), "{error}");
}

#[test]
fn a_missing_or_damaged_model_is_named() {
    let dir = folder();
    let error = mistake(dir.path(), &["draw", "a cat", "--model", "none.safetensors"]);
    assert!(error.contains("cannot read none.safetensors"), "{error}");

    let bytes = fs::read(pipeline().model()).unwrap();
    for kept in [0, 7, 1000, bytes.len() / 2, bytes.len() - 1] {
        fs::write(dir.path().join("half"), &bytes[..kept]).unwrap();
        let error = mistake(dir.path(), &["draw", "a cat", "--model", "half"]);
        assert!(error.contains("half is not a complete Tessera model"), "{kept} bytes: {error}");
    }
    assert_eq!(entries(dir.path()), ["half"], "no picture is begun");
}

#[test]
fn inspect_describes_a_model_and_refuses_the_rest() {
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
        ("other.png", "carries no drawing parameters"),
    ] {
        let error = mistake(dir.path(), &["inspect", file]);
        assert!(error.contains(wanted), "{file}: {error}");
    }
}
