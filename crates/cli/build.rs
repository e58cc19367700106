//! Tells the program the commit that it is built from, if it is built in a Git repository.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Each commit and checkout appends a line to this file.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
    // An archive of the sources may lie within another project's repository.
    let is_ours = git(&["ls-files", "--error-unmatch", "build.rs"]).is_some();
    if let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]).filter(|_| is_ours) {
        println!("cargo::rustc-env=TESSERA_COMMIT={commit}");
    }
}

/// Runs Git and returns what it prints, if it succeeds.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_string())
}
