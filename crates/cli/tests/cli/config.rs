//! Tests of configs in training commands: presets, TOML files with changes, and `--set`.

use std::fs;

use super::program::{entries, fixture, folder, mistake};

/// Returns the error of `train dvae` with `args`, and checks that it creates no run.
fn refused(files: &[(&str, &str)], args: &[&str]) -> String {
    let dir = folder();
    files.iter().for_each(|(name, text)| fs::write(dir.path().join(name), text).unwrap());
    let data = fixture();
    let train = ["train", "dvae", "--data", &data, "--run", "run"];
    let error = mistake(dir.path(), &[&train[..], args].concat());
    assert!(!entries(dir.path()).contains(&"run".to_string()), "{args:?} created a run");
    error
}

#[test]
fn unknown_key_in_set_suggests_the_nearest_key() {
    let error = refused(&[], &["--config", "tiny", "--set", "train_dvae.step=5"]);
    assert!(error.contains("unknown config key train_dvae.step; did you mean train_dvae.steps?"), "{error}");
}

#[test]
fn unknown_key_in_a_file_suggests_the_nearest_key() {
    let file = ("mine.toml", "preset = \"tiny\"\n[dvae]\nn_hidden = 32\n");
    let error = refused(&[file], &["--config", "mine.toml"]);
    assert!(error.contains("unknown config key dvae.n_hidden; did you mean dvae.n_hid?"), "{error}");
}

#[test]
fn unknown_preset_is_an_error_with_all_names() {
    let error = refused(&[], &["--config", "huge"]);
    assert!(error.contains("config huge: neither a preset (tiny, small, emoji"), "{error}");
}

#[test]
fn invalid_values_are_errors_before_a_run_begins() {
    for (set, wanted) in [
        ("train_dvae.lr=\"fast\"", "wanted a value of type float"),
        ("dvae.image_size=33", "wanted a multiple of 4"),
        ("train_dvae.micro_batches=3", "wanted a multiple of train_dvae.micro_batches"),
        ("cpu.precision=\"f8\"", "unknown variant `f8`, expected one of `auto`, `f32`, `bf16`"),
        ("train_dvae.steps", "wanted key=value"),
    ] {
        let error = refused(&[], &["--config", "tiny", "--set", set]);
        assert!(error.contains(wanted), "{set}: {error}");
    }
}

/// Each config has more than 3 · 10¹¹ weights, which need at least 20 bytes each.
#[test]
fn too_large_config_is_an_error_before_allocation() {
    for (task, more, sets) in [
        ("dvae", &[][..], "dvae.n_hid=4194304"),
        ("prior", &["--bpe", "none.json"], "prior.n_layers=16000"),
        ("rerank", &["--bpe", "none.json"], "rerank.image.width=49152"),
    ] {
        let dir = folder();
        let data = fixture();
        let train = ["train", task, "--data", &data, "--run", "run", "--config", "paper", "--set", sets];
        let error = mistake(dir.path(), &[&train[..], more].concat());
        for part in ["needs at least", "weights", "activations", "this machine has", "tessera plan"] {
            assert!(error.contains(part), "{task}: no {part:?} in {error}");
        }
        assert!(entries(dir.path()).is_empty(), "{task} created a run");
    }
}
