//! What model files say of their training and of 8 bits, and what commands make of it.

use std::path::Path;

use serde_json::Value;
use tessera_model::weights::{Int8Change, ModelFile};

use super::pipeline::pipeline;
use super::program::{Said, folder, mistake, succeed};

fn read(path: &Path) -> ModelFile {
    ModelFile::read(path).unwrap()
}

/// The guidance that `draw` uses, and what it says on standard error.
fn drawn(dir: &Path, model: &str, more: &[&str]) -> (f64, String) {
    let args = ["draw", "a red apple", "-n", "1", "--json", "--model", model];
    let Said { stdout, stderr, .. } = succeed(dir, &[&args[..], more].concat());
    let said: Value = serde_json::from_str(&stdout).unwrap();
    let parameters = said.get("parameters").unwrap_or(&said);
    (parameters["guidance"].as_f64().unwrap(), stderr)
}

#[test]
fn training_keeps_weights_exact_and_packing_keeps_the_dvae() {
    let (pipeline, dir) = (pipeline(), folder());
    let trained = read(&pipeline.dir.join("dvae/dvae.tessera.safetensors"));
    // f16 has no more than the upper 11 bits of a number.
    let is_f16 = |value: &f32| value.to_bits() & 0x1fff == 0;
    assert!(!trained.dvae.iter().flat_map(|weight| &weight.values).all(is_f16), "rounded to f16");
    succeed(dir.path(), &["pack", &pipeline.model(), "--out", "packed"]);
    let packed = read(&dir.path().join("packed"));
    assert_eq!(packed.fingerprint().unwrap(), trained.fingerprint().unwrap());
}

#[test]
fn weights_in_8_bits_are_measured_by_pack() {
    let (pipeline, dir) = (pipeline(), folder());
    let model = pipeline.model();
    let error = mistake(dir.path(), &["draw", "a cat", "-n", "1", "--model", &model, "--weights", "int8"]);
    assert!(error.contains("--weights int8") && error.contains("`tessera pack` measures it"), "{error}");
    let said = succeed(dir.path(), &["pack", &model, "--out", "packed"]).stdout;
    assert!(said.contains("8-bit weights change the distribution of a token by"), "{said}");
    for weights in ["int8", "f32"] {
        drawn(dir.path(), "packed", &["--weights", weights]);
    }
}

/// Measured again, weights that are in 8 bits change nothing.
#[test]
fn packing_again_keeps_what_the_file_says_of_8_bits() {
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
fn words_of_the_training_captions_are_listed_and_others_are_named() {
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
    // Nothing but unknown words is drawn all the same; one line is for all prompts.
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
fn packing_in_place_says_how_large_the_file_was() {
    let dir = folder();
    let size = std::fs::copy(pipeline().model(), dir.path().join("model")).unwrap();
    let said = succeed(dir.path(), &["pack", "model", "--out", "model"]).stdout;
    assert!(said.contains(&format!("{:.1} MB to ", size as f64 / 1e6)), "{said}");
    assert!(std::fs::metadata(dir.path().join("model")).unwrap().len() < size);
}

#[test]
fn guidance_is_off_for_a_model_that_was_not_trained_for_it() {
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
