//! The subcommands, one file each: they parse, call the layers below, and map the result to an exit code.

mod ab;
mod bench_engine;
mod compare;
mod diagnose;
mod doctor;
mod expand;
mod export;
mod history;
mod init;
mod merge;
mod model;
mod report;
mod signals;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::cli::{Command, ModelCommand, ProcessEnv};
use crate::error::{Error, Exit, Result};
use crate::report::Console;
use crate::{session, terminal};

/// Runs a subcommand and returns the process's exit code.
///
/// # Errors
/// Why it failed, with the exit code.
pub fn dispatch(command: Command, environment: &ProcessEnv) -> Result<Exit> {
    match command {
        Command::Run(arguments) => {
            let config = arguments.resolve(environment)?;
            let mut console = console(config.presentation.quiet);
            session::run(&config, &mut console, interrupts()?)
        }
        Command::Calibrate(arguments) => {
            let config = arguments.calibrating().resolve(environment)?;
            let mut console = console(config.presentation.quiet);
            session::run(&config, &mut console, interrupts()?)
        }
        Command::Expand(arguments) => {
            let mut console = console(arguments.quiet).for_listing();
            expand::run(&arguments, &mut console, interrupts()?)
        }
        Command::Doctor(arguments) => {
            terminal::hide_bars();
            let model = arguments.model(environment)?;
            let server = arguments.server(environment)?;
            let python = arguments.evaluator(environment);
            doctor::run(&arguments, &model, python, server.as_ref(), &mut listing())
        }
        Command::Model(arguments) => match arguments.command {
            ModelCommand::Fetch(file) => {
                let config = file.resolve(environment)?;
                let mut console = console(file.quiet);
                model::fetch(&config, &mut console, interrupts()?)
            }
            ModelCommand::Inspect(file) => {
                let config = file.resolve(environment)?;
                let mut console = console(file.quiet).for_listing();
                model::inspect(&config, &mut console, interrupts()?)
            }
        },
        Command::Diagnose(arguments) => diagnose::run(&arguments, &mut listing()),
        Command::Ab(arguments) => ab::run(&arguments, &mut listing(), interrupts()?),
        Command::Compare(arguments) => compare::run(&arguments, &mut listing()),
        Command::History(arguments) => history::run(&arguments, &mut listing()),
        Command::Init(arguments) => init::run(&arguments, &mut listing()),
        Command::Report(arguments) => report::run(&arguments, &mut listing()),
        Command::Export(arguments) => {
            let summary = environment.step_summary.as_deref();
            export::run(&arguments, summary, &mut listing())
        }
        Command::Serve(arguments) => {
            let config = arguments.resolve(environment)?;
            let mut console = console(config.quiet);
            session::serve(&config, &mut console, interrupts()?)
        }
        Command::Merge(arguments) => merge::run(&arguments, &mut listing()),
        Command::BenchEngine(arguments) => {
            let config = arguments.resolve(environment)?;
            let mut console = console(config.quiet);
            bench_engine::run(&config, &mut console, interrupts()?)
        }
    }
}

/// The terminal of a command with progress, which `quiet` hides.
fn console(quiet: bool) -> Console {
    if quiet {
        terminal::hide_bars();
    }
    Console::terminal(quiet)
}

/// The terminal of a command that can be repeated at no cost.
fn listing() -> Console {
    Console::terminal(false).for_listing()
}

/// A flag that SIGINT (Ctrl-C), SIGTERM and SIGHUP set, so that a run can end in order. The second signal
/// ends the process at once, but not while the run's files are being saved. Signals that were ignored at the start stay ignored (`nohup`).
fn interrupts() -> Result<&'static AtomicBool> {
    static INTERRUPTED: AtomicBool = AtomicBool::new(false);
    let handler = || {
        crate::report::clear_progress();
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            // Something hangs and does not look at the flag. The profile may show what.
            session::save_before_exit(Duration::from_secs(2));
            #[expect(clippy::exit, reason = "the main thread hangs")]
            std::process::exit(Exit::Incomplete as i32);
        }
    };
    signals::keeping_ignored(|| ctrlc::set_handler(handler))
        .map_err(|source| Error::preflight("failed to listen for Ctrl-C").caused_by(source))?;
    Ok(&INTERRUPTED)
}
