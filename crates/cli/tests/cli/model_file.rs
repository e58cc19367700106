//! What model files say of their training and of 8 bits, and what commands make of it.

use std::path::Path;

use serde_json::Value;
use tessera_model::weights::ModelFile;

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
    assert!(said.contains("in 8 bits the distribution of a token changes by"), "{said}");
    for weights in ["int8", "f32"] {
        drawn(dir.path(), "packed", &["--weights", weights]);
    }
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
    assert!(guidance == 1.0 && warning.contains("`tessera pack --caption-drop`"), "{warning}");
    assert!(guided("old").contains("does not say that captions were dropped"));
    let pack = ["pack", "old", "--dtype", "exact", "--caption-drop", "0.1", "--out", "known"];
    succeed(dir.path(), &pack);
    assert_eq!(drawn(dir.path(), "known", &[]), (1.5, String::new()));
    let error = mistake(dir.path(), &["pack", "known", "--caption-drop", "0.5", "--out", "other"]);
    assert!(error.contains("--caption-drop 0.5: the file says that it was 0.1"), "{error}");
}
