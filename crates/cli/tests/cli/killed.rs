//! Tests that training ends with the same weights after SIGKILL, and that it does not block with
//! one thread.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::program::{command, entries, fixture, folder, succeed};

/// The maximum time to wait for a checkpoint.
const PATIENCE: Duration = Duration::from_secs(120);

/// Returns the names of the complete checkpoints of a run.
fn checkpoints(run: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(run.join("checkpoints")) else { return BTreeSet::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.strip_prefix("step_").is_some_and(|step| step.parse::<u64>().is_ok())).collect()
}

#[test]
fn run_killed_five_times_ends_with_the_same_model() {
    let (dir, data) = (folder(), fixture());
    let every = ["--set", "train_dvae.checkpoint_every=4"];
    let train =
        |run| [&["train", "dvae", "--config", "tiny", "--data", &data, "--run", run], &every[..]].concat();
    succeed(dir.path(), &train("whole"));
    let run = dir.path().join("run");
    for _ in 0..5 {
        let before = checkpoints(&run);
        let resume: &[&str] = if before.is_empty() { &[] } else { &["--resume"] };
        let mut training = command(dir.path(), &[&train("run")[..], resume].concat());
        let mut child = training.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        while checkpoints(&run).is_subset(&before) {
            assert!(
                begun.elapsed() < PATIENCE && child.try_wait().unwrap().is_none(),
                "training made no checkpoint"
            );
            sleep(Duration::from_millis(1));
        }
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
    }
    assert_eq!(succeed(dir.path(), &[&train("run")[..], &["--resume"]].concat()).stdout, "finished: run\n");
    for checkpoint in checkpoints(&run) {
        assert_eq!(entries(&run.join("checkpoints").join(checkpoint)), ["state.safetensors"]);
    }
    let model = |run: &str| fs::read(dir.path().join(run).join("dvae.tessera.safetensors")).unwrap();
    assert!(model("run") == model("whole"), "a run that was killed has another model");
}

/// Batches are prepared in the background, which needs the pool's only thread. That thread must not
/// wait for them.
#[test]
fn training_with_one_thread_does_not_block() {
    let (dir, data) = (folder(), fixture());
    let args = ["train", "dvae", "--config", "tiny", "--data", &data, "--run", "run", "--threads", "1"];
    let mut training = command(dir.path(), &[&args[..], &["--steps", "3"]].concat());
    let mut child = training.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
        }
        sleep(Duration::from_millis(10));
    }
    assert!(child.wait().unwrap().success(), "training did not end by itself");
}
