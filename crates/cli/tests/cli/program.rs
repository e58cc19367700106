//! Helpers that run the binary and check its output.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// The exit code for invalid arguments or inputs.
const USER_MISTAKE: i32 = 2;

/// The path of `fixtures/emoji`, a data set of 32-pixel pictures with captions, some held out.
pub fn fixture() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/emoji").display().to_string()
}

/// Returns the command that runs the binary in `dir`.
pub fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tessera"));
    command.current_dir(dir).args(args);
    // A developer's own settings must not change the tests.
    for name in ["MODEL", "RERANK", "CONFIG", "DEVICE", "THREADS"] {
        command.env_remove(format!("TESSERA_{name}"));
    }
    command
}

/// Runs the binary in `dir` and checks that it succeeds.
pub fn succeed(dir: &Path, args: &[&str]) -> Finished {
    let output = Finished::of(command(dir, args).output().unwrap());
    assert_eq!(output.code, Some(0), "{args:?} failed: {}", output.stderr);
    output
}

/// Runs the binary in `dir`, checks that it ends with a user error of one line, and returns it.
pub fn mistake(dir: &Path, args: &[&str]) -> String {
    let output = Finished::of(command(dir, args).output().unwrap());
    assert_eq!(output.code, Some(USER_MISTAKE), "{args:?}: {}{}", output.stdout, output.stderr);
    let lines: Vec<&str> = output.stderr.lines().collect();
    assert!(
        lines.len() == 1 && lines[0].starts_with("error: "),
        "{args:?} printed other lines than one error: {}",
        output.stderr
    );
    assert!(output.stdout.is_empty(), "{args:?} wrote to stdout: {}", output.stdout);
    lines[0].to_string()
}

/// The exit code and the output of the binary.
pub struct Finished {
    /// The exit code; absent if a signal ended the binary.
    pub code: Option<i32>,
    /// The text on standard output.
    pub stdout: String,
    /// The text on standard error.
    pub stderr: String,
}

impl Finished {
    /// Converts the output of a finished process.
    pub fn of(output: Output) -> Finished {
        Finished {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Makes an empty folder that is deleted at the end of the test.
pub fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Returns the sorted names of the entries of `dir`.
pub fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Returns `path` as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Reads the picture at `dir/name`.
pub fn picture(dir: &Path, name: &str) -> image::RgbImage {
    let path: PathBuf = dir.join(name);
    image::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).to_rgb8()
}
