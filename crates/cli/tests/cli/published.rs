//! Tests of `tessera convert` and `tessera reconstruct`.

use std::path::Path;

use serde_json::Value;

use super::pipeline::pipeline;
use super::program::{entries, folder, mistake, picture, succeed};

/// The path of a file that `fixtures/golden/make.py` made.
fn golden(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/golden").join(name).display().to_string()
}

/// Writes a picture of two colours to `dir/name`.
fn two_colours(dir: &Path, name: &str, [width, height]: [u32; 2]) {
    let colour = |x, _| if x < width / 2 { image::Rgb([200, 30, 30]) } else { image::Rgb([20, 160, 60]) };
    image::RgbImage::from_fn(width, height, colour).save(dir.join(name)).unwrap();
}

#[test]
fn openai_dvae_converts_to_a_model_that_reconstructs() {
    let dir = folder();
    let [encoder, decoder] = ["encoder.pkl", "decoder.pkl"].map(golden);
    let output =
        succeed(dir.path(), &["convert", "openai-dvae", &encoder, &decoder, "--out", "d.safetensors"]);
    assert!(output.stdout.contains("weights in d.safetensors"));
    let inspected = succeed(dir.path(), &["inspect", "d.safetensors", "--json"]).stdout;
    assert!(inspected.contains("\"vocab\":24") && inspected.contains("\"image_size\":256"), "{inspected}");
    two_colours(dir.path(), "in.png", [300, 260]);
    succeed(
        dir.path(),
        &["reconstruct", "in.png", "--model", "d.safetensors", "--out", "out.png", "--scale", "1"],
    );
    assert_eq!(picture(dir.path(), "out.png").height(), 256);
}

#[test]
fn reconstruct_writes_both_pictures_and_prints_tokens() {
    let dir = folder();
    two_colours(dir.path(), "in.png", [40, 36]);
    let model = pipeline().model();
    let output =
        succeed(dir.path(), &["reconstruct", "in.png", "--model", &model, "--out", "out.png", "--json"]);
    let json: Value = serde_json::from_str(&output.stdout).unwrap();
    let rows: Vec<Vec<u64>> = serde_json::from_value(json["tokens"].clone()).unwrap();
    assert!(rows.len() == 8 && rows.iter().all(|row| row.len() == 8 && row.iter().all(|&code| code < 64)));
    assert!(json["psnr_db"].as_f64().unwrap() > 3.0);
    let sheet = picture(dir.path(), "out.png");
    assert!(sheet.width() >= 256 && sheet.height() == 128, "{:?}", sheet.dimensions());
    assert!(sheet.get_pixel(8, 64).0[0] > 180, "the original is on the left");
    // The default is the embedded model.
    two_colours(dir.path(), "large.png", [60, 60]);
    succeed(dir.path(), &["reconstruct", "large.png", "--out", "embedded.png"]);
    assert_eq!(picture(dir.path(), "embedded.png").height(), 192);
}

#[test]
fn convert_and_reconstruct_refuse_bad_files_and_write_nothing() {
    let dir = folder();
    std::fs::write(dir.path().join("text.pkl"), "hello").unwrap();
    two_colours(dir.path(), "small.png", [20, 90]);
    let before = entries(dir.path());
    let [encoder, decoder] = ["encoder.pkl", "decoder.pkl"].map(golden);
    let convert =
        |a: &str, b: &str| mistake(dir.path(), &["convert", "openai-dvae", a, b, "--out", "d.safetensors"]);
    assert!(convert("none.pkl", &decoder).contains("cannot read none.pkl"));
    assert!(convert("text.pkl", &decoder).contains("not a PyTorch file"));
    assert!(convert(&decoder, &encoder).contains("encoder"));
    let reconstruct = |name: &str| mistake(dir.path(), &["reconstruct", name, "--out", "out.png"]);
    assert!(reconstruct("small.png").contains("20x90 pixels; wanted at least 48"));
    assert!(reconstruct("text.pkl").contains("text.pkl"));
    assert_eq!(entries(dir.path()), before);
}

#[test]
fn convert_clip_reads_weights_and_names_missing_settings() {
    let dir = folder();
    let clip = |name: &str| {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/clip").join(name).display().to_string()
    };
    let [script, hf, vocab] = ["small-script.pt", "small-hf.safetensors", "vocabulary.txt.gz"].map(clip);
    let output =
        succeed(dir.path(), &["convert", "clip", &script, "--vocab", &vocab, "--out", "clip.safetensors"]);
    assert!(output.stdout.contains("weights in clip.safetensors"), "{}", output.stdout);
    let inspected = succeed(dir.path(), &["inspect", "clip.safetensors", "--json"]).stdout;
    assert!(inspected.contains("\"cleaning\":\"clip\"") && inspected.contains("\"patch\":8"), "{inspected}");
    let before = entries(dir.path());
    let refused = |args: &[&str]| {
        mistake(dir.path(), &[&["convert", "clip"], args, &["--out", "x.safetensors"]].concat())
    };
    let heads = ["--image-heads", "1", "--text-heads", "1"];
    let error = refused(&[&[&hf, "--vocab", &vocab], &heads[..]].concat());
    assert!(error.contains("pass --gelu quick (OpenAI)"), "{error}");
    let error = refused(&[&hf, "--vocab", &vocab, "--gelu", "quick"]);
    assert!(error.contains("put its config.json or open_clip_config.json beside them"), "{error}");
    assert!(refused(&[&hf, "--vocab", "none.gz"]).contains("cannot read none.gz"));
    let error = refused(&[&hf, "--vocab", &hf, "--gelu", "quick"]);
    assert!(
        error.contains("not a CLIP vocabulary") && error.contains("bpe_simple_vocab_16e6.txt.gz"),
        "{error}"
    );
    let error = refused(&[&vocab, "--vocab", &vocab, "--gelu", "exact"]);
    assert!(error.contains("neither a PyTorch file nor a complete safetensors file"), "{error}");
    assert_eq!(entries(dir.path()), before);
}

/// `fixtures/clip/heads` has a config file next to the weights, which have 32 bits.
#[test]
fn convert_clip_reads_the_config_file_and_obeys_dtype() {
    let dir = folder();
    let clip = |name: &str| {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/clip").join(name).display().to_string()
    };
    let (weights, vocab) = (clip("heads/model.safetensors"), clip("vocabulary.txt.gz"));
    let convert = |out: &str, more: &[&str]| {
        let args = ["convert", "clip", &weights, "--vocab", &vocab, "--out", out];
        succeed(dir.path(), &[&args[..], more].concat());
        std::fs::metadata(dir.path().join(out)).unwrap().len()
    };
    let [exact, f32, f16] = [("a", &[][..]), ("b", &["--dtype", "f32"]), ("c", &["--dtype", "f16"])]
        .map(|(out, more)| convert(out, more));
    let inspected = succeed(dir.path(), &["inspect", "a", "--json"]).stdout;
    assert!(inspected.contains("\"n_heads\":4") && inspected.contains("\"gelu\":\"exact\""), "{inspected}");
    assert!(f16 + 100_000 < exact && exact <= f32, "{f16}, {exact} and {f32} bytes");
    let error = mistake(
        dir.path(),
        &["convert", "clip", &weights, "--vocab", &vocab, "--gelu", "quick", "--out", "d"],
    );
    assert!(error.contains("--gelu: open_clip_config.json says the other one"), "{error}");
}

#[test]
fn lfs_pointers_and_weight_indexes_are_errors() {
    let dir = folder();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4f2a\nsize 605157884\n";
    std::fs::write(dir.path().join("lfs.safetensors"), pointer).unwrap();
    let index = r#"{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}"#;
    std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let vocab = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/clip/vocabulary.txt.gz");
    let vocab = vocab.display().to_string();
    for (name, wanted) in [
        ("lfs.safetensors", "a pointer of Git LFS, not the weights"),
        (
            "model.safetensors.index.json",
            "an index of weights that lie in 1 files (model-00001-of-00002.safetensors …)",
        ),
    ] {
        for args in [
            &["convert", "clip", name, "--vocab", &vocab, "--out", "x"][..],
            &["convert", "openai-dvae", name, name, "--out", "x"],
            &["draw", "a cat", "--model", name],
        ] {
            let error = mistake(dir.path(), args);
            assert!(error.contains(wanted), "{args:?}: {error}");
        }
    }
}
