//! Tests that commands work if their standard streams are closed, full or not read.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Stdio};

use super::pipeline::pipeline;
use super::program::{command, entries, fixture, folder};
use super::serve::{ask, serve_with};

/// The ways in which standard error is not read.
#[derive(Debug, Clone, Copy)]
enum Unread {
    Full,
    Closed,
}

/// Starts the program with a standard error that is not read.
fn start(dir: &Path, args: &[&str], unread: Unread) -> Child {
    let mut command = command(dir, args);
    command.stdout(Stdio::piped());
    match unread {
        Unread::Full => {
            command.stderr(File::options().write(true).open("/dev/full").unwrap()).spawn().unwrap()
        }
        Unread::Closed => {
            let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
            drop(child.stderr.take());
            child
        }
    }
}

/// Waits for the program, and returns its exit code and standard output.
fn end(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn train_and_draw_work_without_standard_error() {
    let (data, model) = (fixture(), pipeline().model());
    let train = ["train", "dvae", "--config", "tiny", "--run", "run", "--data", &data];
    let train = [&train[..], &["--steps", "6", "--set", "train_dvae.eval_every=2"]].concat();
    let long = "a red apple ".repeat(30); // this causes a warning
    let draw = ["draw", &long, "-n", "1", "--model", &model];
    for unread in [Unread::Full, Unread::Closed] {
        let dir = folder();
        assert_eq!(
            end(start(dir.path(), &train, unread)),
            (Some(0), "finished: run\n".to_string()),
            "{unread:?}"
        );
        let (code, stdout) = end(start(dir.path(), &draw, unread));
        assert!(code == Some(0) && stdout.starts_with("drawing.png"), "{unread:?}: {code:?} {stdout}");
        assert_eq!(entries(dir.path()), ["drawing.png", "run"]);
    }
}

#[test]
fn exit_code_is_2_for_user_errors_without_standard_error() {
    let dir = folder();
    for unread in [Unread::Full, Unread::Closed] {
        assert_eq!(end(start(dir.path(), &["draw"], unread)).0, Some(2), "{unread:?}");
        assert_eq!(end(start(dir.path(), &["inspect", "none"], unread)).0, Some(2), "{unread:?}");
    }
}

#[test]
fn serve_answers_while_its_log_is_not_read() {
    let dir = folder();
    let unread: [(&str, Stdio); 2] =
        [("full", File::options().write(true).open("/dev/full").unwrap().into()), ("unread", Stdio::piped())];
    for (name, stderr) in unread {
        let (mut child, address) = serve_with(dir.path(), &["--log", "json"], stderr);
        // The log is longer than the buffer of a pipe, which has 64 KiB on Linux.
        (0..800).for_each(|_| assert!(ask(&address, "GET /healthz", "").contains("ok"), "{name}"));
        assert!(child.try_wait().unwrap().is_none(), "{name}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn closed_standard_output_ends_a_command_quietly() {
    let dir = folder();
    let inspect = ["inspect", "embedded", "--json"];
    let mut child =
        command(dir.path(), &inspect).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!stderr.contains("error"), "{stderr}");
}
