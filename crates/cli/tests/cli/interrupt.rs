//! Tests of signals during training: the run is saved, and it continues without a difference.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::first_hour::pictures;
use super::pipeline::{pipeline, steps};
use super::program::{Finished, command, entries, fixture, folder, mistake, succeed};

/// The maximum time to wait for a file of a run.
const PATIENCE: Duration = Duration::from_secs(120);
/// More than the time after the first signal in which a second one counts as the same.
const LATER: Duration = Duration::from_millis(700);

#[test]
fn dvae_after_sigint_and_resume_has_the_same_bytes() {
    let data = fixture();
    continues_to_the_same_bytes("dvae", "dvae.tessera.safetensors", &["--data", &data], ("-INT", 2));
}

#[test]
fn prior_after_sigterm_and_resume_has_the_same_bytes() {
    let made = pipeline().dir.display();
    let (codes, bpe) = (format!("{made}/codes"), format!("{made}/bpe/tokenizer.json"));
    let inputs = ["--data", &codes, "--bpe", &bpe];
    continues_to_the_same_bytes("prior", "model.tessera.safetensors", &inputs, ("-TERM", 15));
}

/// Starts `train dvae` in `DIR/run`. It has more steps than any test waits for. With `nohup` it has
/// those of the config.
fn long_training(program: &str, dir: &Path) -> Child {
    let data = fixture();
    let steps: &[&str] = if program == "nohup" { &[] } else { &["--set", "train_dvae.steps=100000"] };
    let mut train = Command::new(program);
    train.current_dir(dir).args((program == "nohup").then_some(env!("CARGO_BIN_EXE_tessera")));
    train.args(["train", "dvae", "--config", "tiny", "--run", "run", "--data", &data]).args(steps);
    train.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn sighup_saves_the_run_and_is_ignored_with_nohup() {
    for (program, ends, code) in
        [(env!("CARGO_BIN_EXE_tessera"), "stopped and saved", 128 + 1), ("nohup", "finished", 0)]
    {
        let dir = folder();
        let mut child = long_training(program, dir.path());
        wait_for_metrics(&dir.path().join("run"), &mut child);
        send(&child, "-HUP");
        let output = Finished::of(child.wait_with_output().unwrap());
        assert_eq!(output.code, Some(code), "{program}: {}", output.stderr);
        assert!(output.stdout.starts_with(ends), "{program}: {}", output.stdout);
    }
}

#[test]
fn second_signal_ends_training_immediately() {
    let (dir, data) = (folder(), fixture());
    // A step takes seconds.
    let train = ["train", "dvae", "--config", "tiny", "--run", "run", "--data", &data];
    let large = ["--set", "train_dvae.batch=8192", "--set", "train_dvae.micro_batches=512"];
    let mut child = command(dir.path(), &[&train[..], &large].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.starts_with("computing with")));
    send(&child, "-TERM");
    assert!(lines.any(|line| line.starts_with("saving a checkpoint; press Ctrl-C again")));
    sleep(LATER);
    send(&child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    assert!(entries(&dir.path().join("run/checkpoints")).is_empty());
}

/// Starts `train PICTURES` in `dir`, and waits until it trains the prior.
fn training_on_pictures(dir: &Path) -> Child {
    pictures(dir, 12, 60);
    let train = ["train", "pictures", "--run", "run", "--minutes", "60"];
    let mut child = command(dir, &train).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    wait_for(&dir.join("run/prior/config.toml"), &mut child);
    child
}

/// `kill` sends a signal to the parent alone.
#[test]
fn signal_to_train_pictures_is_passed_on() {
    let dir = folder();
    let child = training_on_pictures(dir.path());
    send(&child, "-TERM");
    let output = Finished::of(child.wait_with_output().unwrap());
    assert_eq!(output.code, Some(128 + 15), "{}", output.stdout);
    let last = output.stdout.lines().last().unwrap();
    assert!(last.starts_with("stopped and saved at step ") && last.contains(": run/prior;"), "{last}");
    assert!(!fs::read_to_string(dir.path().join("run/done.txt")).unwrap().contains("train prior"));
}

#[test]
fn second_signal_to_train_pictures_ends_both_processes() {
    let dir = folder();
    let mut child = training_on_pictures(dir.path());
    let owner = fs::read_to_string(dir.path().join("run/prior/owner.lock")).unwrap();
    send(&child, "-TERM");
    sleep(LATER);
    send(&child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    let owner = owner.strip_prefix("process ").unwrap();
    let is_there = Command::new("kill").args(["-0", owner]).stderr(Stdio::null()).status().unwrap();
    assert!(!is_there.success(), "process {owner} still trains");
}

#[test]
fn run_in_progress_locks_its_folder() {
    let (dir, data) = (folder(), fixture());
    let mut child = long_training(env!("CARGO_BIN_EXE_tessera"), dir.path());
    wait_for_metrics(&dir.path().join("run"), &mut child);
    let train = ["train", "dvae", "--config", "tiny", "--run", "run", "--data", &data, "--seed", "9"];
    let error = mistake(dir.path(), &train);
    assert!(error.contains(&format!("still going (process {})", child.id())), "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
    succeed(dir.path(), &[&train[..], &["--steps", "1"]].concat());
}

/// Trains `task`, interrupts and resumes it, and compares the result with the pipeline's
/// uninterrupted run.
fn continues_to_the_same_bytes(task: &str, model: &str, inputs: &[&str], (signal, number): (&str, i32)) {
    let whole = pipeline().dir.join(task);
    let dir = folder();
    let train = [&["train", task, "--config", "tiny", "--run", "run"], inputs].concat();
    let run = dir.path().join("run");

    let mut child =
        command(dir.path(), &train).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_metrics(&run, &mut child);
    send(&child, signal);
    let output = Finished::of(child.wait_with_output().unwrap());
    assert_eq!(output.code, Some(128 + number), "{}", output.stderr);
    assert!(output.stderr.contains("saving a checkpoint; press Ctrl-C again"), "{}", output.stderr);
    assert!(output.stdout.starts_with("stopped and saved at step "), "{}", output.stdout);
    assert!(output.stdout.contains("--resume"), "{}", output.stdout);

    let output = succeed(dir.path(), &[&train[..], &["--resume"]].concat());
    assert_eq!(output.stdout, "finished: run\n");
    assert_eq!(steps(&run), steps(&whole), "the log has no gap and no repetition");
    let model = |dir: &std::path::Path| fs::read(dir.join(model)).unwrap();
    assert!(model(&run) == model(&whole), "the resumed model has other bytes");
}

/// Waits until the run has written metrics.
fn wait_for_metrics(run: &Path, child: &mut Child) {
    wait_for(&run.join("metrics.jsonl"), child);
}

/// Waits until a file is not empty.
fn wait_for(file: &Path, child: &mut Child) {
    let begun = Instant::now();
    while fs::metadata(file).map_or(0, |file| file.len()) == 0 {
        assert!(begun.elapsed() < PATIENCE && child.try_wait().unwrap().is_none(), "training did not begin");
        sleep(Duration::from_millis(5));
    }
}

/// Sends a signal: that of Ctrl-C (`-INT`), of a terminal that closes (`-HUP`), or of a system that
/// shuts down (`-TERM`).
fn send(child: &Child, signal: &str) {
    let status = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}
