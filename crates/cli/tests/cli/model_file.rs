//! Tests of what model files record about their training and 8-bit weights, and of the commands
//! that use these records.

use std::path::Path;

use serde_json::Value;
use tessera_model::weights::{Int8Change, ModelFile};

use super::pipeline::pipeline;
use super::program::{Finished, folder, mistake, succeed};

fn read(path: &Path) -> ModelFile {
    ModelFile::read(path).unwrap()
}

/// Draws, and returns the guidance that was used and the standard error.
fn drawn(dir: &Path, model: &str, more: &[&str]) -> (f64, String) {
    let args = ["draw", "a red apple", "-n", "1", "--json", "--model", model];
    let Finished { stdout, stderr, .. } = succeed(dir, &[&args[..], more].concat());
    let json: Value = serde_json::from_str(&stdout).unwrap();
    let parameters = json.get("parameters").unwrap_or(&json);
    (parameters["guidance"].as_f64().unwrap(), stderr)
}

#[test]
fn training_stores_exact_weights_and_pack_keeps_the_dvae() {
    let (pipeline, dir) = (pipeline(), folder());
    let trained = read(&pipeline.dir.join("dvae/dvae.tessera.safetensors"));
    // A value of f16 has only the upper 11 bits of the significand.
    let is_f16 = |value: &f32| value.to_bits() & 0x1fff == 0;
    assert!(!trained.dvae.iter().flat_map(|weight| &weight.values).all(is_f16), "rounded to f16");
    succeed(dir.path(), &["pack", &pipeline.model(), "--out", "packed"]);
    let packed = read(&dir.path().join("packed"));
    assert_eq!(packed.fingerprint().unwrap(), trained.fingerprint().unwrap());
}

#[test]
fn pack_measures_8_bit_weights() {
    let (pipeline, dir) = (pipeline(), folder());
    let model = pipeline.model();
    let error = mistake(dir.path(), &["draw", "a cat", "-n", "1", "--model", &model, "--weights", "int8"]);
    assert!(error.contains("--weights int8") && error.contains("`tessera pack` measures it"), "{error}");
    let output = succeed(dir.path(), &["pack", &model, "--out", "packed"]).stdout;
    assert!(output.contains("8-bit weights change the distribution of a token by"), "{output}");
    for weights in ["int8", "f32"] {
        drawn(dir.path(), "packed", &["--weights", weights]);
    }
}

/// A new measurement would find that weights in 8 bits change nothing.
#[test]
fn packing_again_keeps_the_recorded_change_by_8_bits() {
    let (pipeline, dir) = (pipeline(), folder());
    let pack = |args: &[&str]| succeed(dir.path(), &[&["pack"], args].concat()).stdout;
    let int8 = |name: &str| read(&dir.path().join(name)).int8;
    pack(&[&pipeline.model(), "--out", "packed"]);
    let measured = int8("packed");
    assert!(measured.nats_per_token().unwrap() > 0.0, "{measured:?}");
    assert!(pack(&["packed", "--out", "again"]).contains("nats, as the file says"));
    pack(&["packed", "--dtype", "exact", "--out", "exact"]);
    pack(&["exact", "--out", "last"]);
    assert_eq!(["again", "exact", "last"].map(int8), [measured; 3]);
    let file = ModelFile { int8: Int8Change::Unknown, ..read(&dir.path().join("packed")) };
    std::fs::write(dir.path().join("unmeasured"), file.to_bytes().unwrap()).unwrap();
    assert!(pack(&["unmeasured", "--out", "still"]).contains("in 8 bits already"));
    assert_eq!(int8("still"), Int8Change::Unknown);
}

#[test]
fn inspect_lists_training_words_and_draw_names_unknown_ones() {
    let (pipeline, dir) = (pipeline(), folder());
    let model = pipeline.model();
    let words = |name: &str| succeed(dir.path(), &["inspect", name, "--words"]).stdout;
    let listed = words(&model);
    let lines: Vec<&str> = listed.lines().collect();
    assert!(lines.is_sorted() && lines.contains(&"apple") && !lines.contains(&"dog"), "{listed}");
    let json = succeed(dir.path(), &["inspect", &model, "--words", "--json"]).stdout;
    assert_eq!(serde_json::from_str::<Vec<String>>(&json).unwrap(), lines);
    succeed(dir.path(), &["pack", &model, "--out", "packed"]);
    assert_eq!(words("packed"), listed);

    let draw = |model: &str, prompts: &[&str]| {
        let more = ["-n", "1", "--seed", "1", "--model", model];
        succeed(dir.path(), &[&["draw"], prompts, &more].concat()).stderr
    };
    assert_eq!(draw(&model, &["red apples, 2 cats"]), "");
    assert_eq!(draw(&model, &["a red aplpe"]), "unknown word: 'aplpe'; did you mean 'apple'?\n");
    // A prompt of unknown words is drawn too. There is one line for all prompts.
    let line = "unknown words: 'zorp', 'armchair', 'and' (did you mean 'an'?)\n";
    assert_eq!(draw(&model, &["zorp", "an armchair and a zorp"]), line);

    let old = ModelFile { words: None, ..read(Path::new(&model)) };
    std::fs::write(dir.path().join("old"), old.to_bytes().unwrap()).unwrap();
    assert_eq!(draw("old", &["zorp"]), "");
    for (file, wanted) in [("old", "old has no list of the words"), ("drawing.png", "wanted a model file")] {
        let error = mistake(dir.path(), &["inspect", file, "--words"]);
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn packing_in_place_prints_the_previous_size() {
    let dir = folder();
    let size = std::fs::copy(pipeline().model(), dir.path().join("model")).unwrap();
    let output = succeed(dir.path(), &["pack", "model", "--out", "model"]).stdout;
    assert!(output.contains(&format!("{:.1} MB to ", size as f64 / 1e6)), "{output}");
    assert!(std::fs::metadata(dir.path().join("model")).unwrap().len() < size);
}

#[test]
fn guidance_is_off_for_a_model_trained_without_caption_drop() {
    let (pipeline, dir) = (pipeline(), folder());
    let model = pipeline.model();
    assert_eq!(drawn(dir.path(), &model, &[]), (1.5, String::new()));
    let without = |caption_drop, name: &str| {
        let file = ModelFile { caption_drop, ..read(Path::new(&model)) };
        std::fs::write(dir.path().join(name), file.to_bytes().unwrap()).unwrap();
    };
    without(Some(0.0), "untrained");
    assert_eq!(drawn(dir.path(), "untrained", &[]), (1.0, String::new()));
    let guided =
        |name: &str| mistake(dir.path(), &["draw", "a cat", "-n", "1", "--model", name, "--guidance", "2"]);
    assert!(guided("untrained").contains("guidance 2: the model was trained without dropping captions"));
    without(None, "old");
    let (guidance, warning) = drawn(dir.path(), "old", &[]);
    assert!(
        guidance == 1.0 && warning.contains("pack MODEL --dtype exact --caption-drop SHARE"),
        "{warning}"
    );
    assert!(guided("old").contains("does not say that captions were dropped"));
    let pack = ["pack", "old", "--dtype", "exact", "--caption-drop", "0.1", "--out", "known"];
    succeed(dir.path(), &pack);
    assert_eq!(drawn(dir.path(), "known", &[]), (1.5, String::new()));
    let error = mistake(dir.path(), &["pack", "known", "--caption-drop", "0.5", "--out", "other"]);
    assert!(error.contains("--caption-drop 0.5: the file says that it was 0.1"), "{error}");
}
