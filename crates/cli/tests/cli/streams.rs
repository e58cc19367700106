//! Standard streams that are closed, full, or read by nobody: the work goes on.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Stdio};

use super::pipeline::pipeline;
use super::program::{command, entries, fixture, folder};
use super::serve::{ask, serve_with};

/// Ways in which nobody reads what is written.
#[derive(Debug, Clone, Copy)]
enum Unread {
    Full,
    Closed,
}

/// Starts the program with one of them as its standard error.
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

/// Its exit code and standard output.
fn end(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn training_and_drawing_go_on_without_a_standard_error() {
    let (data, model) = (fixture(), pipeline().model());
    let train = ["train", "dvae", "--config", "tiny", "--run", "run", "--data", &data];
    let train = [&train[..], &["--steps", "6", "--set", "train_dvae.eval_every=2"]].concat();
    let long = "a red apple ".repeat(30); // there will be a warning
    let draw = ["draw", &long, "-n", "1", "--model", &model];
    for unread in [Unread::Full, Unread::Closed] {
        let dir = folder();
        assert_eq!(
            end(start(dir.path(), &train, unread)),
            (Some(0), "finished: run\n".to_string()),
            "{unread:?}"
        );
        let (code, said) = end(start(dir.path(), &draw, unread));
        assert!(code == Some(0) && said.starts_with("drawing.png"), "{unread:?}: {code:?} {said}");
        assert_eq!(entries(dir.path()), ["drawing.png", "run"]);
    }
}

#[test]
fn a_mistake_is_a_mistake_also_where_it_cannot_be_said() {
    let dir = folder();
    for unread in [Unread::Full, Unread::Closed] {
        assert_eq!(end(start(dir.path(), &["draw"], unread)).0, Some(2), "{unread:?}");
        assert_eq!(end(start(dir.path(), &["inspect", "none"], unread)).0, Some(2), "{unread:?}");
    }
}

#[test]
fn a_server_answers_while_nobody_reads_its_log() {
    let dir = folder();
    let unread: [(&str, Stdio); 2] =
        [("full", File::options().write(true).open("/dev/full").unwrap().into()), ("unread", Stdio::piped())];
    for (name, stderr) in unread {
        let (mut child, address) = serve_with(dir.path(), &["--log", "json"], stderr);
        // More lines than a pipe holds: 64 KiB on Linux.
        (0..800).for_each(|_| assert!(ask(&address, "GET /healthz", "").contains("ok"), "{name}"));
        assert!(child.try_wait().unwrap().is_none(), "{name}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_reader_that_has_seen_enough_ends_a_command_quietly() {
    let dir = folder();
    let inspect = ["inspect", "embedded", "--json"];
    let mut child =
        command(dir.path(), &inspect).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains("error"), "{said}");
}
