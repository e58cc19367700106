//! One command of the plan of `tessera train PICTURES`, and how it is run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rayon::current_num_threads;
use tessera_base::atomic;

use crate::commands::Reported;
use crate::{signals, stderr};

/// The environment variables that change what a command means. The commands of a plan do not get
/// them.
pub const VARIABLES: [&str; 4] = ["TESSERA_MODEL", "TESSERA_RERANK", "TESSERA_CONFIG", "TESSERA_DEVICE"];

/// One command of the plan.
pub struct Step {
    /// What the command does.
    pub title: &'static str,
    /// The arguments of this program.
    pub args: Vec<String>,
    /// The file that the command leaves at its end. A training that is stopped leaves it too.
    pub result: PathBuf,
    /// The folder of a training run, which can be resumed.
    pub run: Option<PathBuf>,
    /// The file that lists the commands that are done, one per line.
    pub done: PathBuf,
}

impl Step {
    /// Whether an earlier call has run the command.
    pub fn is_done(&self) -> bool {
        let done = fs::read_to_string(&self.done).unwrap_or_default();
        self.result.exists() && done.lines().any(|line| line == self.command_line())
    }

    /// Adds the command to those that are done.
    pub fn mark_done(&self) -> Result<()> {
        if self.is_done() {
            return Ok(());
        }
        let done = fs::read_to_string(&self.done).unwrap_or_default();
        atomic::write(&self.done, format!("{done}{}\n", self.command_line()).as_bytes())
    }

    /// Whether the command is a training that has saved a checkpoint.
    fn is_begun(&self) -> bool {
        let checkpoints = self.run.as_ref().and_then(|run| fs::read_dir(run.join("checkpoints")).ok());
        // A checkpoint that is not complete has an ending.
        checkpoints.is_some_and(|entries| entries.flatten().any(|entry| entry.path().extension().is_none()))
    }

    /// The command as a user would type it.
    pub fn command_line(&self) -> String {
        let args = self.args.iter().map(|arg| format!(" {}", quoted(arg)));
        format!("tessera{}", args.collect::<String>())
    }

    /// The command in a script, in which the variable `run` contains the path of the folder `run`.
    pub fn script_line(&self, run: &Path) -> String {
        let args = self.args.iter().map(|arg| match Path::new(arg).strip_prefix(run) {
            Ok(name) => format!(" \"$run\"/{}", name.display()),
            Err(_) => format!(" {}", quoted(arg)),
        });
        format!("tessera{}", args.collect::<String>())
    }

    /// Runs the command, or resumes it, unless it is done.
    pub fn execute(&self) -> Result<()> {
        if self.is_done() {
            return Ok(());
        }
        self.run()?;
        self.mark_done()
    }

    /// Runs the command, or resumes it.
    pub fn run(&self) -> Result<()> {
        let resume = self.is_begun().then(|| "--resume".to_string());
        let args: Vec<String> = self.args.iter().cloned().chain(resume).collect();
        run_program(&args, Stdio::inherit())?;
        ensure!(self.result.exists(), "`{}` left no {}", self.command_line(), self.result.display());
        Ok(())
    }
}

/// Quotes an argument for a shell if it needs to be quoted.
pub fn quoted(arg: &str) -> String {
    match arg.chars().all(|c| c.is_alphanumeric() || "-_./=:,".contains(c)) {
        true => arg.to_string(),
        false => format!("'{}'", arg.replace('\'', "'\\''")),
    }
}

/// Runs this program with `args`, and returns what it writes to `stdout` if that is a pipe. It must
/// not write more than fits into a pipe. Signals are passed on to it.
///
/// # Errors
/// [`Reported`] if the program fails, which reports why, or if a signal has arrived.
pub fn run_program(args: &[String], stdout: Stdio) -> Result<Vec<u8>> {
    let stop = || if signals::received().is_some() { bail!(Reported(signals::exit_code())) } else { Ok(()) };
    stop()?;
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.args(args).args(["--threads", &current_num_threads().to_string()]).stdout(stdout);
    command.args(stderr::is_quiet().then_some("--quiet"));
    for name in VARIABLES {
        command.env_remove(name);
    }
    let cannot = || format!("cannot run `tessera {}`", args.join(" "));
    let mut child = command.spawn().with_context(cannot)?;
    signals::wait(&mut child).with_context(cannot)?;
    let output = child.wait_with_output().with_context(cannot)?;
    stop()?;
    let code = output.status.code().and_then(|code| u8::try_from(code).ok());
    ensure!(output.status.success(), Reported(code.unwrap_or(1)));
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::Command;

    use super::VARIABLES;
    use crate::args;

    /// Returns the environment variables of all flags of a command and its subcommands.
    fn variables(command: &Command) -> BTreeSet<String> {
        let own = command.get_arguments().filter_map(|arg| Some(arg.get_env()?.to_str()?.to_string()));
        own.chain(command.get_subcommands().flat_map(variables)).collect()
    }

    #[test]
    fn commands_get_no_variable_except_the_number_of_threads() {
        let mut all = variables(&args::command());
        assert!(all.remove("TESSERA_THREADS"));
        assert_eq!(all, VARIABLES.map(str::to_string).into());
    }
}
