//! Tests of the run folder: resuming, divergence, damaged checkpoints.

use super::*;
use crate::best::Best;
use crate::checkpoint::tests::{TEXT, state};
use crate::fit::GoodCheckpoint;
use tessera_base::Silent;

fn open(path: &Path, text: &str, resume: bool) -> Result<RunDir<'static>> {
    RunDir::open(path, Stage::Dvae, text, resume, World::solo(), &Silent)
}

fn error(path: &Path, text: &str, resume: bool) -> String {
    format!("{:#}", open(path, text, resume).err().unwrap())
}

/// The state of `step`, whose last good checkpoint is that of step `good`.
fn good(step: u64, good: u64) -> TrainState {
    TrainState { good: Some(GoodCheckpoint { step: good, lowest: 1.0 }), ..state(step) }
}

fn steps(path: &Path) -> Vec<u64> {
    checkpoints(path).unwrap().into_iter().map(|(step, _)| step).collect()
}

#[test]
fn newest_readable_checkpoint_is_used_and_old_ones_are_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let run = open(&dir.path().join("run"), TEXT, false).unwrap();
    for step in [999_998, 999_999, 1_000_000] {
        run.write_checkpoint(&state(step)).unwrap();
    }
    assert_eq!(steps(run.path()), [999_999, 1_000_000]);
    assert_eq!(run.newest_checkpoint(&Silent).unwrap(), Some(state(1_000_000)));
    let damage = |step: u64| {
        let file = run.path().join(format!("checkpoints/step_{step}/state.safetensors"));
        fs::write(&file, &fs::read(&file).unwrap()[..100]).unwrap();
    };
    damage(1_000_000);
    assert_eq!(run.newest_checkpoint(&Silent).unwrap(), Some(state(999_999)));
    damage(999_999);
    assert!(run.newest_checkpoint(&Silent).unwrap_err().to_string().contains("can be read"));
}

#[test]
fn checkpoint_of_another_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [ours, theirs] = ["ours", "theirs"].map(|name| dir.path().join(name));
    let run = open(&ours, TEXT, false).unwrap();
    open(&theirs, &TEXT.replace("seed 0", "seed 9"), false).unwrap().write_checkpoint(&state(7)).unwrap();
    run.write_checkpoint(&state(5)).unwrap();
    fs::rename(theirs.join("checkpoints/step_000007"), ours.join("checkpoints/step_000007")).unwrap();
    let error = run.newest_checkpoint(&Silent).unwrap_err().to_string();
    assert!(error.contains("is of another run: its seed is 9, this run's 0"), "{error}");
}

/// The fingerprints of the data cannot be compared.
#[test]
fn run_of_an_earlier_version_continues_with_a_warning() {
    #[derive(Default)]
    struct Notes(std::sync::Mutex<String>);
    impl Reporter for Notes {
        fn note(&self, text: &str) {
            *self.0.lock().unwrap() += text;
        }

        fn progress(&self, _: tessera_base::Progress) {}
    }
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), TEXT, false).unwrap().write_checkpoint(&state(10)).unwrap();
    let (now, notes) = (TEXT.replace("data 12ab", "data v2-0000cdef"), Notes::default());
    let run = RunDir::open(dir.path(), Stage::Dvae, &now, true, World::solo(), &notes).unwrap();
    let notes = notes.0.into_inner().unwrap();
    let expected = "another version of the program began this run: data was 12ab, is now v2-0000cdef";
    assert!(notes.contains(expected), "{notes}");
    assert_eq!(run.newest_checkpoint(&Silent).unwrap(), Some(state(10)));
    drop(run);
    // The folder now contains the new fingerprint.
    let other = error(dir.path(), &now.replace("cdef", "cdee"), true);
    assert!(other.contains("it has data = v2-0000cdef, this run v2-0000cdee"), "{other}");
}

#[test]
fn folder_belongs_to_its_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    drop(open(&path, &TEXT.replace("0.5", "0.1"), false).unwrap());
    let run = open(&path, TEXT, false).unwrap(); // no checkpoint yet, so another run may start here
    run.write_checkpoint(&state(10)).unwrap();
    drop(run);
    assert!(error(&dir.path().join("new"), TEXT, true).contains("holds no checkpoint"));
    assert!(!dir.path().join("new").exists());
    let other = error(&path, &TEXT.replace("0.5", "0.1"), true);
    assert!(other.contains("it has train_dvae.lr = 0.5, this run 0.1"), "{other}");
    assert!(error(&path, TEXT, false).contains("--resume"));
    let longer = TEXT.replace("steps = 9", "steps = 90");
    drop(open(&path, &longer, true).unwrap());
    assert_eq!(fs::read_to_string(path.join("config.toml")).unwrap(), longer);
    fs::create_dir(dir.path().join("other")).unwrap();
    fs::write(dir.path().join("other/file"), "").unwrap();
    assert!(error(&dir.path().join("other"), TEXT, false).contains("is not empty and holds no run"));
}

#[test]
fn folder_has_one_owner_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let run = open(dir.path(), TEXT, false).unwrap();
    let refused = error(dir.path(), TEXT, false);
    let owner = format!("still going (process {})", std::process::id());
    assert!(refused.contains(&owner), "{refused}");
    drop(run);
    drop(open(dir.path(), TEXT, false).unwrap());
}

#[test]
fn files_among_the_checkpoints_are_not_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let run = open(dir.path(), TEXT, false).unwrap();
    let at = |name: &str| dir.path().join("checkpoints").join(name);
    ["step_000001", "step_000003"].iter().for_each(|name| fs::write(at(name), "mine").unwrap());
    for step in 2..6 {
        run.write_checkpoint(&TrainState { best: None, ..state(step) }).unwrap();
    }
    assert_eq!(steps(dir.path()), [4, 5]);
    assert_eq!(fs::read(at("step_000001")).unwrap(), b"mine");
    assert_eq!(fs::read(at("step_000003.aside")).unwrap(), b"mine");
}

#[test]
fn best_checkpoint_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let run = open(dir.path(), TEXT, false).unwrap();
    for step in [10, 20, 30, 40, 50] {
        let best = Some(Best { step: step.min(20), loss: 0.3, since: 0 });
        run.write_checkpoint(&TrainState { best, ..state(step) }).unwrap();
    }
    assert_eq!(steps(dir.path()), [20, 40, 50]);
}

#[test]
fn diverged_run_continues_from_its_last_good_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let run = open(dir.path(), TEXT, false).unwrap();
    for step in [10, 20, 30, 40, 50] {
        run.write_checkpoint(&good(step, step.min(20))).unwrap();
    }
    assert_eq!(steps(dir.path()), [20, 40, 50]);
    let advice = run.write_divergence(&good(50, 20)).unwrap();
    assert!(advice.contains("step 20, with --resume") && advice.contains("--set train_dvae.lr="), "{advice}");
    drop(run);

    let same = error(dir.path(), TEXT, true);
    assert!(same.contains("diverged at step 50 and would again; continue it from"), "{same}");
    let [smaller, smallest] = ["0.1", "0.01"].map(|lr| TEXT.replace("0.5", lr));
    let run = open(dir.path(), &smaller, true).unwrap();
    assert_eq!(run.newest_checkpoint(&Silent).unwrap().unwrap().step, 20);
    assert_eq!(steps(dir.path()), [20]);
    drop(run);
    // Nothing is deleted, and settings may change again, until there is a checkpoint with the
    // new settings.
    let left = ["step_000020", "step_000040.left", "step_000050.left"];
    assert_eq!(folders(dir.path()), left);
    assert!(error(dir.path(), TEXT, true).contains("diverged at step 50 and would again"));
    let run = open(dir.path(), &smallest, true).unwrap();
    run.write_checkpoint(&good(20, 20)).unwrap(); // a run whose first update fails does this
    assert_eq!(folders(dir.path()), left);
    run.save(&good(21, 20)).unwrap(); // a run whose second update fails does this
    assert_eq!(folders(dir.path()), [left[0], "step_000021", left[1], left[2]]);
    run.write_checkpoint(&good(25, 25)).unwrap();
    drop(run);
    assert_eq!(folders(dir.path()), ["step_000021", "step_000025"]);
    drop(open(dir.path(), &smallest, true).unwrap());
    assert!(
        error(dir.path(), &smaller, true).contains("belongs to another run"),
        "it has not diverged again"
    );
}

/// Returns the names in the folder of checkpoints.
fn folders(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run.join("checkpoints")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
