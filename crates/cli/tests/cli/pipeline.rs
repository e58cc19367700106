//! Runs every command from captioned pictures to drawings, on `fixtures/emoji` with the preset
//! `tiny`. The trained models are also used by other tests.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;
use tessera_model::weights::ModelFile;

use super::program::{arg, entries, fixture, folder, mistake, picture, succeed};

/// The results of the training commands.
pub struct Pipeline {
    /// The folder of the runs `bpe`, `dvae`, `prior` and `rerank`, and of `codes`.
    pub dir: PathBuf,
    /// A lock that is held while the tests run, so that another test process waits instead of
    /// deleting the folder.
    _lock: File,
}

impl Pipeline {
    /// The path of the model file with dVAE, tokenizer and prior.
    pub fn model(&self) -> String {
        arg(&self.dir.join("prior/model.tessera.safetensors")).to_string()
    }

    /// The path of the file with the contrastive model.
    pub fn reranker(&self) -> String {
        arg(&self.dir.join("rerank/rerank.tessera.safetensors")).to_string()
    }
}

/// Returns the trained models. The first call trains them.
pub fn pipeline() -> &'static Pipeline {
    static PIPELINE: OnceLock<Pipeline> = OnceLock::new();
    PIPELINE.get_or_init(|| {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
        fs::create_dir_all(root).unwrap();
        let lock = File::create(root.join("pipeline.lock")).unwrap();
        lock.lock().unwrap();
        let dir = root.join("pipeline");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        train(&dir);
        Pipeline { dir, _lock: lock }
    })
}

fn train(dir: &Path) {
    let data = fixture();
    let tiny = ["--config", "tiny"];
    let run = |args: &[&str]| succeed(dir, &[args, &tiny].concat());
    run(&["train", "bpe", "--data", &data, "--run", "bpe"]);
    run(&["train", "dvae", "--data", &data, "--run", "dvae"]);
    run(&["encode", "--data", &data, "--dvae", "dvae/dvae.tessera.safetensors", "--out", "codes"]);
    run(&["train", "prior", "--data", "codes", "--bpe", "bpe/tokenizer.json", "--run", "prior"]);
    let rerank = ["train", "rerank", "--data", &data, "--bpe", "bpe/tokenizer.json", "--run", "rerank"];
    run(&[&rerank[..], &["--dvae", "dvae/dvae.tessera.safetensors"]].concat());
}

/// Reads the lines of a run's `metrics.jsonl`.
pub fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Returns the split and the step of each line of a run's `metrics.jsonl`.
pub fn steps(run: &Path) -> Vec<(String, u64)> {
    metrics(run)
        .iter()
        .map(|m| (m["split"].as_str().unwrap().to_string(), m["step"].as_u64().unwrap()))
        .collect()
}

#[test]
fn training_commands_write_the_expected_files() {
    let dir = &pipeline().dir;
    assert_eq!(entries(&dir.join("bpe")), ["tokenizer.json"]);
    let codes =
        ["dvae.tessera.safetensors", "train.jsonl", "train.safetensors", "val.jsonl", "val.safetensors"];
    assert_eq!(entries(&dir.join("codes")), codes);
    for (run, model) in [
        ("dvae", "dvae.tessera.safetensors"),
        ("prior", "model.tessera.safetensors"),
        ("rerank", "rerank.tessera.safetensors"),
    ] {
        let run = dir.join(run);
        let names = entries(&run);
        for name in ["config.toml", "metrics.jsonl", "samples", "checkpoints", model] {
            assert!(names.iter().any(|n| n == name), "{} has no {name}: {names:?}", run.display());
        }
        assert!(names.iter().any(|name| name.starts_with("events.out.tfevents.")), "{names:?}");
        assert!(!names.iter().any(|name| name.ends_with(".part")), "{names:?}");
        let config = fs::read_to_string(run.join("config.toml")).unwrap();
        assert!(config.lines().next().unwrap().contains(", scenes none"), "{config}");
        assert_eq!(entries(&run.join("samples")), ["step_000030.png", "step_000060.png"]);
        assert_eq!(entries(&run.join("checkpoints")), ["step_000040", "step_000060"]);
        let sample = picture(&run.join("samples"), "step_000060.png");
        assert!(sample.pixels().any(|pixel| pixel != sample.get_pixel(0, 0)), "a blank sample");
    }
}

#[test]
fn packed_model_is_smaller_and_draws() {
    let (pipeline, dir) = (pipeline(), folder());
    let output = succeed(dir.path(), &["pack", &pipeline.model(), "--out", "small.safetensors"]);
    assert!(output.stdout.contains("small.safetensors"), "{}", output.stdout);
    let bytes = |path: &Path| fs::metadata(path).unwrap().len();
    let (small, whole) = (bytes(&dir.path().join("small.safetensors")), bytes(Path::new(&pipeline.model())));
    assert!(small * 10 < whole * 7, "{small} of {whole} bytes");
    succeed(dir.path(), &["draw", "a red apple", "-n", "1", "--model", "small.safetensors"]);
    assert_eq!(entries(dir.path()), ["drawing.png", "small.safetensors"]);
}

#[test]
fn pack_adds_a_reranker_only_if_it_has_the_same_tokenizer() {
    let (pipeline, dir) = (pipeline(), folder());
    let pack = ["pack", &pipeline.model(), "--out", "whole.safetensors", "--rerank"];
    succeed(dir.path(), &[&pack[..], &[&pipeline.reranker()]].concat());
    let json = succeed(dir.path(), &["inspect", "whole.safetensors", "--json"]).stdout;
    let read: Value = serde_json::from_str(&json).unwrap();
    assert!(read["reranker_parameters"].as_u64().unwrap() > 10_000, "{json}");
    // With a reranker, the default is to draw the best of more candidates.
    succeed(dir.path(), &["draw", "a red apple", "--seed", "1", "--model", "whole.safetensors"]);
    let json = succeed(dir.path(), &["inspect", "drawing.png", "--json"]).stdout;
    let read: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&read["n"], &read["of"]), (&9.into(), &36.into()));

    let error = mistake(dir.path(), &[&pack[..], &[&pipeline.model()]].concat());
    assert!(error.contains("holds no contrastive model; `train rerank` makes one"), "{error}");
    let other = ["train", "bpe", "--data", &fixture(), "--run", "bpe", "--config", "tiny"];
    succeed(dir.path(), &[&other[..], &["--set", "prior.text_vocab=300"]].concat());
    let train = ["train", "rerank", "--data", &fixture(), "--bpe", "bpe/tokenizer.json", "--run", "other"];
    let short = ["--config", "tiny", "--steps", "1", "--set", "data.reconstructed=0"];
    succeed(dir.path(), &[&train[..], &short].concat());
    let error = mistake(dir.path(), &[&pack[..], &["other/rerank.tessera.safetensors"]].concat());
    assert!(error.contains("was trained with another tokenizer"), "{error}");
}

#[test]
fn eval_drawing_refuses_data_without_eight_pictures_of_a_style() {
    let (data, model) = (fixture(), pipeline().model());
    let error = mistake(folder().path(), &["eval", "drawing", "--data", &data, "--model", &model]);
    assert!(error.contains("no style has 8 of these 16 pictures"), "{error}");
}

#[test]
fn training_losses_are_finite_and_fall() {
    for run in ["dvae", "prior", "rerank"] {
        let lines = metrics(&pipeline().dir.join(run));
        let train: Vec<f64> = lines
            .iter()
            .filter(|line| line["split"] == "train")
            .map(|line| line["loss"].as_f64().unwrap())
            .collect();
        assert_eq!(train.len(), 6, "{run}: a line every 10 of 60 steps");
        assert!(train.iter().all(|loss| loss.is_finite()), "{run}: {train:?}");
        assert!(train[5] < train[0], "{run}: {train:?}");
        let figures =
            lines.iter().filter(|line| line["split"] == "val").flat_map(|line| line.as_object().unwrap());
        assert!(
            figures
                .filter(|(name, _)| *name != "split")
                .all(|(_, figure)| figure.as_f64().unwrap().is_finite())
        );
    }
}

#[test]
fn eval_prints_json_on_request() {
    let pipeline = pipeline();
    let (data, model) = (fixture(), pipeline.model());
    let eval = |what| -> Value {
        let output = succeed(&pipeline.dir, &["eval", what, "--data", &data, "--model", &model, "--json"]);
        serde_json::from_str(&output.stdout).unwrap()
    };
    let recon = eval("recon");
    assert_eq!(recon["pictures"], 16);
    assert!(recon["psnr_db"].as_f64().unwrap() > 5.0, "{recon}");
    assert!(recon["codes_used"].as_u64().unwrap() >= 2, "{recon}");
    let conditioning = eval("conditioning");
    assert_eq!(conditioning["pictures"], 16);
    let loss = conditioning["true_caption"]["mean"].as_f64().unwrap();
    assert!(loss > 0.0 && loss < 64_f64.ln(), "better than a guess among 64 codes: {conditioning}");
    for condition in ["same_style", "shuffled", "none"] {
        assert!(conditioning["gap"][condition]["mean"].as_f64().unwrap().is_finite(), "{conditioning}");
    }
}

#[test]
fn eval_recon_prints_a_table() {
    let pipeline = pipeline();
    let output =
        succeed(&pipeline.dir, &["eval", "recon", "--data", &fixture(), "--model", &pipeline.model()]);
    assert!(
        output.stdout.contains("16 held-out pictures") && output.stdout.contains("PSNR"),
        "{}",
        output.stdout
    );
}

#[test]
fn eval_curves_writes_an_svg() {
    let dir = folder();
    let run = pipeline().dir.join("prior");
    succeed(dir.path(), &["eval", "curves", arg(&run), "--out", "prior.svg"]);
    let svg = fs::read_to_string(dir.path().join("prior.svg")).unwrap();
    assert!(svg.trim_start().starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
    mistake(dir.path(), &["eval", "curves", "none"]);
    assert_eq!(entries(dir.path()), ["prior.svg"]);
}

#[test]
fn draw_without_a_prior_is_an_error() {
    let pipeline = pipeline();
    let error =
        mistake(&pipeline.dir, &["draw", "a", "--model", "dvae/dvae.tessera.safetensors", "--out", "x.png"]);
    let wanted = "dvae/dvae.tessera.safetensors has no prior and no tokenizer, so it cannot draw; use a file of `train prior`";
    assert!(error.contains(wanted), "{error}");
    assert!(!pipeline.dir.join("x.png").exists());
}

#[test]
fn training_does_not_overwrite_a_run() {
    let data = fixture();
    let train = ["train", "dvae", "--config", "tiny", "--data", &data, "--run", "dvae"];
    let error = mistake(&pipeline().dir, &train);
    assert!(error.contains("dvae already holds a run; add --resume"), "{error}");
}

#[test]
fn resume_with_another_config_names_the_difference() {
    let data = fixture();
    let train = ["train", "dvae", "--config", "tiny", "--data", &data, "--run", "dvae", "--resume"];
    let error = mistake(&pipeline().dir, &[&train[..], &["--set", "train_dvae.lr=0.5"]].concat());
    assert!(error.contains("it has train_dvae.lr = 0.001, this run 0.5"), "{error}");
}

#[test]
fn init_starts_from_the_weights_of_a_model() {
    let pipeline = pipeline();
    let dir = folder();
    let path = |name: &str| arg(&pipeline.dir.join(name)).to_string();
    let (codes, bpe, model) = (path("codes"), path("bpe/tokenizer.json"), pipeline.model());
    let train = ["train", "prior", "--config", "tiny", "--data", &codes, "--bpe", &bpe, "--run", "further"];
    let once = ["--steps", "1", "--set", "train_prior.log_every=1"];
    // The model knows one word more than the captions contain.
    let mut file = ModelFile::read(Path::new(&model)).unwrap();
    file.words.as_mut().unwrap().insert("zebra".to_string());
    fs::write(dir.path().join("model"), file.to_bytes().unwrap()).unwrap();
    succeed(dir.path(), &[&train[..], &once, &["--init", "model"]].concat());
    let trained = ModelFile::read(&dir.path().join("further/model.tessera.safetensors")).unwrap();
    assert_eq!(trained.words, file.words);
    let loss = |run: &Path| metrics(run)[0]["loss"].as_f64().unwrap();
    let (continued, random) = (loss(&dir.path().join("further")), loss(&pipeline.dir.join("prior")));
    assert!(
        continued < random,
        "{continued} at the first step, {random} after the first step from random weights"
    );
}

/// The run uses the paper's 16 bits: f16 inside resblocks with one gradient scale each, and moments
/// in 1-6-9 and 0-6-10.
#[test]
fn resumed_16_bit_run_ends_with_the_same_model() {
    let pipeline = pipeline();
    let dir = folder();
    let path = |name: &str| arg(&pipeline.dir.join(name)).to_string();
    let (codes, bpe) = (path("codes"), path("bpe/tokenizer.json"));
    let mut train =
        vec!["train", "prior", "--config", "tiny", "--data", &codes, "--bpe", &bpe, "--run", "run"];
    for set in [
        "cpu.precision='f32'",
        "train_prior.storage='f16'",
        "train_prior.moments='small'",
        "train_prior.variance_clip=5.0",
        "train_prior.schedule='plateau'",
        "train_prior.steps=6",
        "train_prior.warmup=6",
        "train_prior.checkpoint_every=3",
        "train_prior.log_every=1",
    ] {
        train.extend(["--set", set]);
    }
    succeed(dir.path(), &train);
    let run = dir.path().join("run");
    let model = || fs::read(run.join("model.tessera.safetensors")).unwrap();
    let whole = model();
    let lines = metrics(&run);
    let resblocks: Vec<&Value> = lines.iter().filter(|line| line["split"] == "resblocks").collect();
    assert_eq!(resblocks.len(), 6);
    let scales = resblocks[5]["scale_log2"].as_array().unwrap();
    assert!(scales.len() == 8 && scales.iter().all(|log2| *log2 == 13.006), "{scales:?}");
    assert_eq!(resblocks[5]["gradient_log2"].as_array().unwrap().len(), 8);

    fs::remove_dir_all(run.join("checkpoints/step_000006")).unwrap();
    train.push("--resume");
    succeed(dir.path(), &train);
    assert!(model() == whole, "a resumed run has another model");
}

#[test]
fn dvae_validation_has_the_relaxed_and_the_sampled_bound() {
    let lines = metrics(&pipeline().dir.join("dvae"));
    let last = lines.iter().rfind(|line| line["split"] == "val").unwrap();
    let [relaxed, sampled] =
        ["relaxed", "sampled"].map(|bound| last[format!("{bound}_elbo_nats_per_value")].as_f64().unwrap());
    // The final temperature is 1/16.
    assert!(relaxed != sampled && (relaxed - sampled).abs() < 0.05, "{relaxed}, {sampled}");
}

#[test]
fn init_from_another_architecture_is_an_error() {
    let pipeline = pipeline();
    let (data, dir, model) = (fixture(), folder(), pipeline.model());
    let train = ["train", "dvae", "--config", "tiny", "--data", &data, "--run", "run", "--init"];
    let error = mistake(dir.path(), &[&train[..], &[&model, "--set", "dvae.n_hid=8"]].concat());
    assert!(
        error.contains("the dVAE in the file has another architecture: dvae.n_hid is 16 there and 8 in"),
        "{error}"
    );
    let error = mistake(dir.path(), &[&train[..], &["none"]].concat());
    assert!(error.contains("--init: cannot read none"), "{error}");
    assert!(entries(dir.path()).is_empty());
}
