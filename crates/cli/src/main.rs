//! The program `tessera`: typed flags → what they mean → one call into a library.
//!
//! Exit codes: 0 done (or stopped by Ctrl-C after saving), 2 a mistake in what was asked, 1 a fault of the program.

mod args;
mod commands;
mod png_text;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code of a mistake in what was asked.
const USER_MISTAKE: u8 = 2;
/// Exit code of a fault of the program.
const OUR_FAULT: u8 = 1;

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|fault| eprintln!("internal error, please report it: {fault}")));
    let args = Args::parse();
    match std::panic::catch_unwind(|| run(args)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::from(USER_MISTAKE)
        }
        Err(_) => ExitCode::from(OUR_FAULT),
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Data(source) => commands::data::run(source),
        Command::Train(task) => commands::train::run(task),
        Command::Encode(encode) => commands::train::encode(&encode),
        Command::Pack { model, out } => commands::train::pack(&model, &out),
        Command::Draw(draw) => commands::draw::run(&draw),
        Command::Inspect(inspect) => commands::inspect::run(&inspect),
        Command::Eval(eval) => commands::eval::run(eval),
    }
}
