//! Ctrl-C while training: it saves, and the run continues as if nothing had happened.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::pipeline::{pipeline, steps};
use super::program::{Said, command, fixture, folder, succeed};

/// How long to wait for the first line of metrics.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn an_interrupted_dvae_ends_with_the_same_model() {
    let data = fixture();
    continues_to_the_same_bytes("dvae", "dvae.tessera.safetensors", &["--data", &data]);
}

#[test]
fn an_interrupted_prior_ends_with_the_same_model() {
    let made = pipeline().dir.display();
    let (codes, bpe) = (format!("{made}/codes"), format!("{made}/bpe/tokenizer.json"));
    continues_to_the_same_bytes("prior", "model.tessera.safetensors", &["--data", &codes, "--bpe", &bpe]);
}

/// Trains `task` with a stop on the way and compares with the pipeline's uninterrupted run.
fn continues_to_the_same_bytes(task: &str, model: &str, inputs: &[&str]) {
    let whole = pipeline().dir.join(task);
    let dir = folder();
    let train = [&["train", task, "--config", "tiny", "--run", "run"], inputs].concat();
    let run = dir.path().join("run");

    let mut child =
        command(dir.path(), &train).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while fs::metadata(run.join("metrics.jsonl")).map_or(0, |file| file.len()) == 0 {
        assert!(begun.elapsed() < PATIENCE && child.try_wait().unwrap().is_none(), "training never began");
        sleep(Duration::from_millis(5));
    }
    interrupt(&child);
    let said = Said::of(child.wait_with_output().unwrap());
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stderr.contains("saving; press Ctrl-C again"), "{}", said.stderr);
    assert!(said.stdout.starts_with("stopped and saved at step "), "{}", said.stdout);
    assert!(said.stdout.contains("--resume"), "{}", said.stdout);

    let said = succeed(dir.path(), &[&train[..], &["--resume"]].concat());
    assert_eq!(said.stdout, "finished: run\n");
    assert_eq!(steps(&run), steps(&whole), "the log has no gap and no repetition");
    let model = |dir: &std::path::Path| fs::read(dir.join(model)).unwrap();
    assert!(model(&run) == model(&whole), "the resumed model has other bytes");
}

/// What a terminal sends on Ctrl-C.
fn interrupt(child: &Child) {
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}
