//! `tessera completions`, `tessera man`, and the text of `tessera --version`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap_complete::Shell;
use tessera_kernels::{Cpu, Precision};
use tessera_model::weights::model_id;

use super::say;
use crate::args;

/// Returns the version, the commit, the instruction set that is used, and the embedded model's id.
pub fn long_version() -> String {
    let commit = option_env!("TESSERA_COMMIT").unwrap_or("unknown");
    let cpu = Cpu::new(Precision::Auto).map_or_else(|error| error, |cpu| cpu.to_string());
    let model = model_id(tessera_pretrained::MODEL);
    format!(
        "{}\ncommit:           {commit}\ncomputes with:    {cpu}\nembedded model:   {model}",
        env!("CARGO_PKG_VERSION")
    )
}

/// Prints the completion script for `shell`.
pub fn completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::command(), "tessera", &mut script);
    say(String::from_utf8(script)?.trim_end())
}

/// Writes one man page per command to `dir`.
pub fn man_pages(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    clap_mangen::generate_to(args::command(), dir)
        .with_context(|| format!("cannot write the man pages to {}", dir.display()))
}
