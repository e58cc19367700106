//! Running the binary, and what it said.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Exit code of a mistake in what was asked.
const USER_MISTAKE: i32 = 2;

/// `fixtures/emoji`: 32-pixel pictures with captions, some held out.
pub fn fixture() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/emoji").display().to_string()
}

/// The binary, about to run in `dir`.
pub fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tessera"));
    command.current_dir(dir).args(args);
    command
}

/// Runs the binary in `dir`; it must succeed.
pub fn succeed(dir: &Path, args: &[&str]) -> Said {
    let said = Said::of(command(dir, args).output().unwrap());
    assert_eq!(said.code, Some(0), "{args:?} failed: {}", said.stderr);
    said
}

/// Runs the binary in `dir`; it must call what was asked a mistake, in one line, which is returned.
pub fn mistake(dir: &Path, args: &[&str]) -> String {
    let said = Said::of(command(dir, args).output().unwrap());
    assert_eq!(said.code, Some(USER_MISTAKE), "{args:?}: {}{}", said.stdout, said.stderr);
    let lines: Vec<&str> = said.stderr.lines().collect();
    assert!(
        lines.len() == 1 && lines[0].starts_with("error: "),
        "{args:?} said more than one line: {}",
        said.stderr
    );
    assert!(said.stdout.is_empty(), "{args:?} wrote to stdout: {}", said.stdout);
    lines[0].to_string()
}

/// What the binary left behind.
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    pub fn of(output: Output) -> Said {
        Said {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// An empty folder that goes away with the test.
pub fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Names of the entries of `dir`, sorted.
pub fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// `path` as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The picture at `dir/name`.
pub fn picture(dir: &Path, name: &str) -> image::RgbImage {
    let path: PathBuf = dir.join(name);
    image::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).to_rgb8()
}
