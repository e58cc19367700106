//! The program `tessera`: it parses the flags, checks them, and calls a library.
//!
//! Exit codes: 0 for success, 2 for an invalid request, 1 for a failure of the program or the
//! machine, 128 plus the signal's number if a signal ended it (a training run is saved first).

mod args;
mod commands;
mod memory;
mod reporter;
mod signals;
mod stderr;

use std::process::ExitCode;

use clap::FromArgMatches;
use libmimalloc_sys::{mi_option_set, mi_option_t, mi_option_use_numa_nodes};
use tessera_base::Fault;

use args::{Args, Command, Train};
use commands::{ClosedOutput, Reported};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit code of an invalid request.
const INVALID_REQUEST: u8 = 2;
/// The exit code of a failure of the program or the machine: another request would not help.
const FAILURE: u8 = 1;

/// mimalloc's option for the delay before it returns free memory to the system.
const PURGE_DELAY: mi_option_t = mi_option_use_numa_nodes - 1;

fn main() -> ExitCode {
    // Training frees and allocates the same hundreds of megabytes at every step. If they were
    // returned, the system would clear each page again and again.
    // SAFETY: sets a number; any option may be set at any time.
    #[allow(unsafe_code)]
    unsafe {
        mi_option_set(PURGE_DELAY, -1);
    }
    std::panic::set_hook(Box::new(|fault| {
        let what = match tessera_model::device::is_gpu_open() {
            true => "a GPU failed, or this is an internal error; please report it",
            false => "internal error, please report it",
        };
        stderr::error(format_args!("{what}: {fault}"));
    }));
    let args = parse();
    stderr::set_quiet(args.quiet);
    let code = match std::panic::catch_unwind(|| run(args)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        // The reader of the output needs no more of it.
        Ok(Err(error)) if error.is::<ClosedOutput>() => ExitCode::SUCCESS,
        Ok(Err(error)) => match error.downcast_ref() {
            Some(Reported(code)) => ExitCode::from(*code),
            None => {
                stderr::error(format_args!("error: {error:#}"));
                ExitCode::from(exit_code(&error))
            }
        },
        Err(_) => ExitCode::from(FAILURE),
    };
    stderr::flush();
    code
}

/// Parses the command line. Prints help or an error and exits if that is due.
fn parse() -> Args {
    let mut command = args::command();
    // The text takes milliseconds to make, so it is made only if it may be printed.
    if std::env::args_os().any(|arg| arg == "--version") {
        command = command.long_version(commands::manual::long_version());
    }
    Args::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match Fault::of(error) {
        Fault::Request => INVALID_REQUEST,
        Fault::Program | Fault::Machine => FAILURE,
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    if let Some(threads) = args.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build_global()?;
    }
    match &args.command {
        // These save or finish something first.
        Command::Train(_) | Command::Serve(_) => {}
        Command::Data(_)
        | Command::Encode(_)
        | Command::Pack { .. }
        | Command::Draw(_)
        | Command::Gallery { .. }
        | Command::Inspect(_)
        | Command::Eval(_)
        | Command::Bench(_)
        | Command::Convert(_)
        | Command::Reconstruct(_)
        | Command::Plan(_)
        | Command::Completions { .. }
        | Command::Man { .. } => signals::end_as_process_1()?,
    }
    match args.command {
        Command::Data(source) => commands::data::run(source),
        Command::Train(Train { task: Some(task), .. }) => commands::train::run(task),
        Command::Train(Train { pictures, task: None }) => commands::train_pictures::run(&pictures),
        Command::Encode(encode) => commands::train::encode(&encode),
        Command::Pack(pack) => commands::pack::run(&pack),
        Command::Draw(draw) => commands::draw::run(&draw),
        Command::Serve(serve) => commands::serve::run(&serve),
        Command::Gallery { dir, out, title } => commands::gallery::run(&dir, &out, &title),
        Command::Inspect(inspect) => commands::inspect::run(&inspect),
        Command::Eval(eval) => commands::eval::run(eval),
        Command::Bench(bench) => commands::bench::run(&bench),
        Command::Convert(convert) => commands::convert::run(convert),
        Command::Reconstruct(args) => commands::reconstruct::run(&args),
        Command::Plan(plan) => commands::plan::run(&plan),
        Command::Completions { shell } => commands::manual::completions(shell),
        Command::Man { dir } => commands::manual::man_pages(&dir),
    }
}
