//! The subcommands, one file each. They join the layers below and hold no mechanism of their own.

mod bench_engine;
mod both;
mod diagnose;
mod doctor;
mod expand;
mod init;
mod merge;
mod model;
mod outputs;
mod profile;
mod recorder;
mod report;
mod run;
mod signals;
mod support;

use std::sync::atomic::{AtomicBool, Ordering};

use crate::cli::{Command, ModelCommand, Surroundings};
use crate::error::{Error, Exit, Result};
use crate::report::Console;

/// Runs a subcommand and returns the process's exit code.
///
/// # Errors
/// What ended it, with its own exit code.
pub fn dispatch(command: Command, surroundings: &Surroundings) -> Result<Exit> {
    match command {
        Command::Run(arguments) => {
            let config = arguments.resolve(surroundings)?;
            let mut console = Console::terminal(config.model.quiet);
            run::run(&config, &mut console, interrupts()?)
        }
        Command::Expand(arguments) => {
            let mut console = Console::terminal(arguments.quiet).for_listing();
            expand::run(&arguments, &mut console, interrupts()?)
        }
        Command::Doctor(arguments) => {
            let model = arguments.model(surroundings)?;
            let server = arguments.server(surroundings)?;
            let python = arguments.evaluator(surroundings);
            doctor::run(&arguments, &model, python, server.as_ref(), &mut listing())
        }
        Command::Model(arguments) => match arguments.command {
            ModelCommand::Fetch(file) => {
                let config = file.resolve(surroundings)?;
                let mut console = Console::terminal(config.quiet);
                model::fetch(&config, &mut console, interrupts()?)
            }
            ModelCommand::Inspect(file) => {
                let config = file.resolve(surroundings)?;
                let mut console = Console::terminal(config.quiet).for_listing();
                model::inspect(&config, &mut console, interrupts()?)
            }
        },
        Command::Diagnose(arguments) => diagnose::run(&arguments, &mut listing()),
        Command::Init(arguments) => init::run(&arguments, &mut listing()),
        Command::Report(arguments) => report::run(&arguments, &mut listing()),
        Command::Merge(arguments) => merge::run(&arguments, &mut listing()),
        Command::BenchEngine(arguments) => {
            let config = arguments.resolve(surroundings)?;
            let mut console = Console::terminal(config.model.quiet);
            bench_engine::run(&config, &mut console, interrupts()?)
        }
    }
}

/// The terminal of a command whose output can be had again.
fn listing() -> Console {
    Console::terminal(false).for_listing()
}

/// A flag that Ctrl-C (SIGINT), SIGTERM and SIGHUP raise, so that a run can end in order. The
/// second signal ends the process at once. What was ignored at the start stays so (`nohup`).
fn interrupts() -> Result<&'static AtomicBool> {
    static INTERRUPTED: AtomicBool = AtomicBool::new(false);
    let handler = || {
        crate::report::clear_progress();
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            // The user has asked twice: something hangs that does not look at the flag. What it
            // is may stand in the profile.
            let _ = profile::write_pending();
            #[allow(clippy::exit)]
            std::process::exit(Exit::Incomplete as i32);
        }
    };
    signals::keeping_ignored(|| ctrlc::set_handler(handler))
        .map_err(|source| Error::preflight("failed to listen for Ctrl-C").caused_by(source))?;
    Ok(&INTERRUPTED)
}
