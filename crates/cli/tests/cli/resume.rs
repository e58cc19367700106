//! Tests of `--resume` and `--init`: with more steps, other line endings, and damaged files.

use std::fs;
use std::path::Path;

use super::program::{Finished, command, entries, fixture, folder, mistake, succeed};

/// Runs `train dvae` in `run` up to step `steps`, with more flags.
fn train(dir: &Path, run: &str, steps: u64, more: &[&str]) -> Finished {
    Finished::of(
        command(dir, &training(run, steps, more).iter().map(String::as_str).collect::<Vec<_>>())
            .output()
            .unwrap(),
    )
}

/// The arguments of [`train`].
fn training(run: &str, steps: u64, more: &[&str]) -> Vec<String> {
    let (data, steps) = (fixture(), format!("train_dvae.steps={steps}"));
    let train = ["train", "dvae", "--config", "tiny", "--data", &data, "--run", run, "--set", &steps];
    let schedule =
        ["train_dvae.lr_steps=60", "train_dvae.warmup=5", "relax.beta_steps=10", "relax.tau_steps=24"];
    let schedule = schedule.map(|set| ["--set", set]).concat();
    let every = ["--set", "train_dvae.checkpoint_every=2", "--set", "train_dvae.log_every=1"];
    [&train[..], &schedule, &every, more].concat().into_iter().map(str::to_string).collect()
}

/// Trains the run `whole` for 6 steps without a stop, and returns its model.
fn whole(dir: &Path) -> Vec<u8> {
    assert_eq!(train(dir, "whole", 6, &[]).stdout, "finished: whole\n");
    model(dir, "whole")
}

fn model(dir: &Path, run: &str) -> Vec<u8> {
    fs::read(dir.join(run).join("dvae.tessera.safetensors")).unwrap()
}

#[test]
fn finished_run_continues_with_more_steps() {
    let dir = folder();
    let whole = whole(dir.path());
    assert_eq!(train(dir.path(), "run", 3, &[]).code, Some(0));
    // Line endings and settings of another stage do not make it another run.
    let config = dir.path().join("run/config.toml");
    fs::write(&config, fs::read_to_string(&config).unwrap().replace('\n', "\r\n")).unwrap();
    let output = train(dir.path(), "run", 6, &["--resume", "--set", "train_prior.lr=0.5"]);
    assert_eq!(output.stdout, "finished: run\n", "{}", output.stderr);
    assert!(output.stderr.contains("train_dvae.steps was 3 so far, and is 6 from here"), "{}", output.stderr);
    assert!(model(dir.path(), "run") == whole, "the continued run has another model");

    let other = training("run", 6, &["--resume", "--set", "train_dvae.lr=0.5"]);
    let error = mistake(dir.path(), &other.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(error.contains("it has train_dvae.lr = 0.001, this run 0.5"), "{error}");
}

#[test]
fn resumed_run_keeps_the_schedule_it_began_with() {
    let (dir, data) = (folder(), fixture());
    let train = ["train", "dvae", "--config", "tiny", "--data", &data, "--run", "run"];
    let schedule = |more: &[&str]| {
        succeed(dir.path(), &[&train[..], more].concat());
        let config = fs::read_to_string(dir.path().join("run/config.toml")).unwrap();
        let config: toml::Table = config.parse().unwrap();
        let number = |section: &str, key: &str| config[section][key].as_integer().unwrap();
        (number("train_dvae", "steps"), number("train_dvae", "lr_steps"), number("relax", "beta_steps"))
    };
    let (steps, lr_steps, beta_steps) = schedule(&["--steps", "4"]);
    assert_eq!(steps, 4);
    assert_eq!(schedule(&["--resume"]), (4, lr_steps, beta_steps));
    assert_eq!(schedule(&["--resume", "--steps", "6"]), (6, lr_steps, beta_steps));
    assert_eq!(schedule(&["--resume", "--set", "train_dvae.steps=8"]), (8, lr_steps, beta_steps));
}

#[test]
fn resume_skips_a_checkpoint_with_a_flipped_bit() {
    let dir = folder();
    let whole = whole(dir.path());
    let newest = dir.path().join("whole/checkpoints/step_000006/state.safetensors");
    let mut bytes = fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&newest, bytes).unwrap();
    let output = train(dir.path(), "whole", 6, &["--resume"]);
    assert!(
        output.stderr.contains("step_000006: it is damaged: its bytes have the checksum"),
        "{}",
        output.stderr
    );
    assert!(output.code == Some(0) && model(dir.path(), "whole") == whole);
}

#[test]
fn resume_works_with_damaged_metrics() {
    let dir = folder();
    whole(dir.path());
    let path = dir.path().join("whole/metrics.jsonl");
    let mut bytes = fs::read(&path).unwrap();
    bytes[3] = 0xe5;
    fs::write(&path, bytes).unwrap();
    let output = train(dir.path(), "whole", 7, &["--resume"]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert_eq!(fs::read_to_string(&path).unwrap().lines().filter(|line| line.contains("train")).count(), 6);
}

#[test]
fn checkpoint_becomes_the_model_file_of_its_run() {
    let dir = folder();
    let whole = whole(dir.path());
    succeed(dir.path(), &["convert", "run", "whole", "--out", "model.safetensors"]);
    assert!(fs::read(dir.path().join("model.safetensors")).unwrap() == whole);
    let error = mistake(dir.path(), &["convert", "run", ".", "--out", "other.safetensors"]);
    assert!(error.contains("holds no run"), "{error}");
}

#[test]
fn init_starts_from_a_checkpoint() {
    let dir = folder();
    whole(dir.path());
    let started = |init: &str| train(dir.path(), init.rsplit('/').next().unwrap(), 1, &["--init", init]);
    let checkpoint = "whole/checkpoints/step_000006";
    assert_eq!(started(checkpoint).code, Some(0), "{}", started(checkpoint).stderr);
    assert_eq!(started(&format!("{checkpoint}/state.safetensors")).code, Some(0));
    assert!(model(dir.path(), "step_000006") == model(dir.path(), "state.safetensors"));
    let wide = training("wide", 1, &["--init", checkpoint, "--set", "dvae.n_hid=8"]);
    let error = mistake(dir.path(), &wide.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(error.contains("--init is a checkpoint of another model"), "{error}");
    assert!(!entries(dir.path()).contains(&"wide".to_string()));
}
