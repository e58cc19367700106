//! Tests of training on several processes, which `mpirun` starts. They need a build with the feature
//! `mpi`, and OpenMPI (`runs/install_mpi.sh`).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::pipeline::{Pipeline, metrics, pipeline};
use super::program::{Finished, arg, fixture, folder, mistake, succeed};

/// The maximum time to wait for a checkpoint, or for the end of a job.
const PATIENCE: Duration = Duration::from_secs(120);

/// The flags of a short training of the prior, in f32.
fn training(pipeline: &Pipeline, run: &str, more: &[&str]) -> Vec<String> {
    let [codes, bpe] = ["codes", "bpe/tokenizer.json"].map(|name| pipeline.dir.join(name));
    let [codes, bpe] = [arg(&codes), arg(&bpe)];
    let train = ["train", "prior", "--config", "tiny", "--data", codes, "--bpe", bpe, "--run", run];
    let sets =
        ["cpu.precision='f32'", "train_prior.steps=20", "train_prior.lr_steps=20", "train_prior.log_every=1"];
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let all = train.into_iter().chain(sets).chain(more.iter().copied());
    all.map(str::to_string).collect()
}

/// `mpirun` with `ranks` processes of the program, each with one thread.
fn mpirun(dir: &Path, ranks: usize, args: &[String]) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--oversubscribe", "--allow-run-as-root", "--bind-to", "none", "-n", &ranks.to_string()]);
    command.arg(env!("CARGO_BIN_EXE_tessera")).args(["--threads", "1"]).args(args).current_dir(dir);
    command
}

fn run(dir: &Path, ranks: usize, args: &[String]) -> Finished {
    Finished::of(mpirun(dir, ranks, args).output().expect("mpirun starts: see runs/install_mpi.sh"))
}

/// The training losses of a run, by step.
fn losses(run: &Path) -> Vec<f64> {
    let of_training = |line: &Value| line["split"] == "train";
    metrics(run).iter().filter(|line| of_training(line)).map(|line| line["loss"].as_f64().unwrap()).collect()
}

fn assert_same_losses(dir: &Path, found: &str, expected: &str) {
    let [found_losses, expected_losses] = [found, expected].map(|run| losses(&dir.join(run)));
    assert_eq!((found_losses.len(), expected_losses.len()), (20, 20), "{found}");
    for (step, (found_loss, expected_loss)) in found_losses.iter().zip(&expected_losses).enumerate() {
        assert!(
            (found_loss - expected_loss).abs() < 1e-5,
            "{found}, step {step}: {found_loss}, not {expected_loss}"
        );
    }
}

/// One, two and four processes, which share the parameters or not, with a full-rank compression or
/// none, learn the same.
#[test]
fn processes_learn_what_one_process_learns() {
    let (dir, pipeline) = (folder(), pipeline());
    let alone: Vec<String> = training(pipeline, "alone", &[]);
    succeed(dir.path(), &alone.iter().map(String::as_str).collect::<Vec<_>>());
    let full_rank = ["--set", "powersgd.rank=64", "--set", "powersgd.storage='full'"];
    for (name, ranks, more) in [
        ("two", 2, &["--node-size", "2"][..]),
        ("two-replicas", 2, &["--node-size", "1"]),
        ("four", 4, &["--node-size", "2"]),
        ("four-shards", 4, &["--node-size", "4"]),
        ("four-replicas", 4, &[&["--node-size", "1"][..], &full_rank].concat()),
    ] {
        let finished = run(dir.path(), ranks, &training(pipeline, name, more));
        assert_eq!(finished.code, Some(0), "{name}: {}", finished.stderr);
        assert_eq!(finished.stdout, format!("finished: {name}\n"));
        assert_same_losses(dir.path(), name, "alone");
        assert!(dir.path().join(name).join("model.tessera.safetensors").exists());
    }
}

/// The dVAE and the contrastive model, whose loss compares the pictures of all ranks, learn the same
/// too.
#[test]
fn other_stages_learn_what_one_process_learns() {
    let (dir, pipeline, data) = (folder(), pipeline(), fixture());
    let [bpe, dvae] =
        ["bpe/tokenizer.json", "dvae/dvae.tessera.safetensors"].map(|name| pipeline.dir.join(name));
    let dvae_flags = ["train", "dvae", "--config", "tiny", "--data", &data];
    let rerank =
        ["train", "rerank", "--config", "tiny", "--data", &data, "--bpe", arg(&bpe), "--dvae", arg(&dvae)];
    for (stage, flags, micro_batches) in
        [("dvae", &dvae_flags[..], "2"), ("rerank", &rerank, "1"), ("rerank", &rerank, "2")]
    {
        let sets = ["log_every=1", "batch=8", &format!("micro_batches={micro_batches}")]
            .map(|set| format!("train_{stage}.{set}"));
        let sets = ["cpu.precision='f32'".to_string()].into_iter().chain(sets);
        let sets: Vec<String> = sets.flat_map(|set| ["--set".to_string(), set]).collect();
        let args = |run: &str| {
            let run = ["--steps", "20", "--run", run];
            let flags = flags.iter().chain(&run).map(|flag| flag.to_string());
            flags.chain(sets.clone()).collect::<Vec<String>>()
        };
        let names = ["alone", "two"].map(|name| format!("{stage}-{micro_batches}-{name}"));
        succeed(dir.path(), &args(&names[0]).iter().map(String::as_str).collect::<Vec<_>>());
        let finished = run(dir.path(), 2, &args(&names[1]));
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        assert_same_losses(dir.path(), &names[1], &names[0]);
    }
}

/// A run of four ranks continues with two and with one, and ends as if nothing had happened.
#[test]
fn checkpoint_of_four_ranks_continues_with_two_and_with_one() {
    let (dir, pipeline) = (folder(), pipeline());
    succeed(dir.path(), &training(pipeline, "alone", &[]).iter().map(String::as_str).collect::<Vec<_>>());
    let part = |steps: &'static str, more: &[&'static str]| {
        let sets = ["--set", "train_prior.checkpoint_every=5", "--set", steps];
        training(pipeline, "run", &[&sets[..], more].concat())
    };
    let first = run(dir.path(), 4, &part("train_prior.steps=20", &["--node-size", "4", "--auto-resume"]));
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    let checkpoints = dir.path().join("run/checkpoints");
    assert!(checkpoints.join("step_000020/state.3.safetensors").exists());
    let [bpe, dvae] =
        ["bpe/tokenizer.json", "dvae/dvae.tessera.safetensors"].map(|name| pipeline.dir.join(name));
    let files = ["--bpe", arg(&bpe), "--dvae", arg(&dvae)];
    succeed(dir.path(), &[&["convert", "run", "run", "--out", "model.safetensors"][..], &files].concat());
    succeed(dir.path(), &["draw", "a cat", "-n", "1", "--model", "model.safetensors"]);
    let other = ["convert", "run", "run", "--out", "other", "--bpe", arg(&bpe), "--dvae", "embedded"];
    assert!(mistake(dir.path(), &other).contains("the dVAE that was given has the fingerprint"));
    // Back to the checkpoint of step 15.
    fs::remove_dir_all(checkpoints.join("step_000020")).unwrap();
    let copy = dir.path().join("copy");
    copied(&dir.path().join("run"), &copy);
    let two = run(dir.path(), 2, &part("train_prior.steps=20", &["--node-size", "2", "--resume"]));
    assert_eq!(two.code, Some(0), "{}", two.stderr);
    assert_same_losses(dir.path(), "run", "alone");
    let one: Vec<String> = training(pipeline, "copy", &["--resume"]);
    succeed(dir.path(), &one.iter().map(String::as_str).collect::<Vec<_>>());
    assert_same_losses(dir.path(), "copy", "alone");

    fs::remove_file(checkpoints.join("step_000020/state.1.safetensors")).unwrap();
    let lacking = run(dir.path(), 1, &part("train_prior.steps=20", &["--resume"]));
    assert!(lacking.stderr.contains("shard 1 of 2"), "{}", lacking.stderr);
}

fn copied(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copied(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

fn checkpoints(run: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(run.join("checkpoints")) else { return BTreeSet::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.strip_prefix("step_").is_some_and(|step| step.parse::<u64>().is_ok())).collect()
}

/// The process ids of the ranks that `mpirun` started.
fn ranks_of(mpirun: &Child) -> Vec<u32> {
    let mut ranks = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        // "PID (NAME) STATE PARENT …"; processes may end meanwhile.
        let stat = fs::read_to_string(entry.unwrap().path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        if parent == Some(mpirun.id()) {
            ranks.push(stat.split(' ').next().unwrap().parse().unwrap());
        }
    }
    ranks.sort_unstable();
    ranks
}

/// A rank that no longer answers is named, and all ranks end.
#[test]
fn rank_that_does_not_answer_ends_the_job() {
    let (dir, pipeline) = (folder(), pipeline());
    let flags = ["--node-size", "1", "--patience", "2", "--set", "train_prior.checkpoint_every=2"];
    let job = mpirun(dir.path(), 2, &training(pipeline, "run", &flags));
    let job = { job }.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while checkpoints(&dir.path().join("run")).is_empty() {
        assert!(begun.elapsed() < PATIENCE, "the run made no checkpoint");
        sleep(Duration::from_millis(1));
    }
    let rank = ranks_of(&job)[1].to_string();
    assert!(Command::new("kill").args(["-STOP", &rank]).status().unwrap().success());
    let begun = Instant::now();
    let said = Finished::of(job.wait_with_output().unwrap()).stderr;
    let _ = Command::new("kill").args(["-9", &rank]).stderr(Stdio::null()).status(); // if it is still there
    assert!(begun.elapsed() < Duration::from_secs(30), "the job went on");
    assert!(said.contains("rank 0: error: waited 2s for ranks [1]: they are gone, or slower"), "{said}");
}

/// One rank is killed five times, at other moments; each time the job ends, and the run continues.
#[test]
fn run_whose_rank_is_killed_five_times_ends_with_the_same_model() {
    let (dir, pipeline) = (folder(), pipeline());
    let flags = ["--node-size", "2", "--auto-resume", "--set", "train_prior.checkpoint_every=2"];
    let whole = run(dir.path(), 2, &training(pipeline, "whole", &flags));
    assert_eq!(whole.code, Some(0), "{}", whole.stderr);
    for killed in 0..5 {
        let before = checkpoints(&dir.path().join("run"));
        let mut job = mpirun(dir.path(), 2, &training(pipeline, "run", &flags));
        let mut job = job.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let begun = Instant::now();
        while checkpoints(&dir.path().join("run")).is_subset(&before) && job.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < PATIENCE, "the run made no checkpoint");
            sleep(Duration::from_millis(1));
        }
        sleep(Duration::from_millis(7 * killed));
        if let Some(rank) = ranks_of(&job).get(killed as usize % 2) {
            Command::new("kill").args(["-9", &rank.to_string()]).status().unwrap();
        }
        let begun = Instant::now();
        let said = Finished::of(job.wait_with_output().unwrap()).stderr;
        assert!(begun.elapsed() < Duration::from_secs(30), "the other rank went on");
        assert!(said.is_empty() || said.contains("rank"), "{said}");
    }
    let end = run(dir.path(), 2, &training(pipeline, "run", &flags));
    assert_eq!(end.code, Some(0), "{}", end.stderr);
    let model = |run: &str| fs::read(dir.path().join(run).join("model.tessera.safetensors")).unwrap();
    assert!(model("run") == model("whole"), "a run whose rank was killed has another model");
}

#[test]
fn ranks_that_do_not_fit_are_a_clear_error() {
    let (dir, pipeline) = (folder(), pipeline());
    let failed = |ranks, more: &[&str]| run(dir.path(), ranks, &training(pipeline, "run", more)).stderr;
    let uneven = failed(3, &["--node-size", "1"]);
    assert!(uneven.contains("a batch of 16 cannot be divided among 3 ranks"), "{uneven}");
    let groups = failed(2, &["--node-size", "3"]);
    assert!(groups.contains("2 ranks cannot form groups of 3: wanted a divisor of 2"), "{groups}");
    assert!(groups.contains("rank 0: error: ") || groups.contains("error: "), "{groups}");
}
