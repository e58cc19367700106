//! Tests of configs: presets, changes, and their errors.

use tessera_model::DeviceChoice;

use super::*;

fn error(set: &str) -> String {
    format!("{:#}", Config::resolve("tiny", &[set.to_string()]).unwrap_err())
}

#[test]
fn every_preset_resolves_and_round_trips_through_toml() {
    for (name, _) in PRESETS {
        let config = Config::resolve(name, &[]).unwrap();
        assert_eq!(toml::from_str::<Config>(&config.to_toml().unwrap()).unwrap(), config);
    }
}

#[test]
fn only_presets_of_the_paper_and_of_scenes_encode_online() {
    for (name, _) in PRESETS {
        let is_online = ["paper", "5.6b", "2.8b", "embedded"].contains(&name);
        let expected = if is_online { Encoding::Online } else { Encoding::Stored };
        assert_eq!(Config::resolve(name, &[]).unwrap().data.encode, expected, "{name}");
    }
    assert!(error("data.encode='never'").contains("expected `stored` or `online`"));
}

#[test]
fn scenes_are_set_by_a_key_that_no_preset_has() {
    let sets = ["data.scenes={ packages = 'p', size = 128, shares = { panels = 1.0 } }".to_string()];
    let config = Config::resolve("embedded", &sets).unwrap();
    let scenes = config.data.scenes.as_ref().unwrap();
    assert_eq!((scenes.size, scenes.seed, scenes.shares.panels), (128, 0, 1.0));
    assert_eq!(toml::from_str::<Config>(&config.to_toml().unwrap()).unwrap(), config);
    assert!(error("data.scenes={ size = 128 }").contains("packages"));
}

#[test]
fn set_changes_one_value() {
    let sets = ["prior.n_layers=12".to_string(), "train_dvae.lr=1".to_string()];
    let config = Config::resolve("tiny", &sets).unwrap();
    assert_eq!((config.prior.n_layers, config.train_dvae.lr), (12, 1.0));
}

#[test]
fn error_of_a_misspelt_key_names_the_nearest() {
    assert_eq!(error("prior.n_layer=3"), "unknown config key prior.n_layer; did you mean prior.n_layers?");
    assert_eq!(error("pior.n_layers=3"), "unknown config key pior; did you mean prior?");
}

#[test]
fn invalid_values_are_refused() {
    assert!(error("prior.n_layers=\"six\"").contains("wanted a value of type integer"));
    assert!(error("prior.n_layers").contains("wanted key=value"));
    assert!(error("prior.n_heads=5").contains("multiple of prior.n_heads"));
    assert!(error("train_dvae.lr=nan").contains("train_dvae.lr = NaN: wanted"));
    assert!(error("data.bpe_dropout=7").contains("data.bpe_dropout = 7"));
    assert!(error("relax.tau_end=0").contains("relax.tau_end = 0"));
    assert!(error("train_prior.storage='f16'").contains("wanted cpu.precision"));
    assert!(error("train_prior.steps=0").contains("wanted at least 1"));
    assert!(error("dvae.vocab=32").contains("--set prior.image_vocab=32"));
}

#[test]
fn f16_on_a_gpu_needs_gradient_scales() {
    let config = Config::resolve("tiny", &["device.dtype='f16'".to_string()]).unwrap();
    let error = config.training_compute(DeviceChoice::Gpu(0), Stage::Prior).unwrap_err().to_string();
    assert!(error.contains("needs gradient scales") && error.ends_with("for the prior"), "{error}");
    assert!(config.training_compute(DeviceChoice::Cpu, Stage::Prior).is_ok());
}
