//! Parses the command line, dispatches, reports the error, and exits with its code.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use flowbench::cli::{self, Cli, ProcessEnv};
use flowbench::{commands, open_files, terminal};

fn main() -> ExitCode {
    open_files::raise_limit();
    flowbench::engine::prepare_process();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout with exit code 0, everything else to stderr with exit
            // code 2.
            let code = error.exit_code();
            let hint = cli::hint_for(&error);
            match cli::print(error) {
                Ok(()) => {}
                // The reader closed the pipe: `flowbench run --help | head`.
                Err(closed) if closed.kind() == std::io::ErrorKind::BrokenPipe => {}
                Err(_) => return ExitCode::from(flowbench::error::Exit::Output as u8),
            }
            if let Some(hint) = hint {
                let _ = writeln!(std::io::stderr(), "hint: {hint}");
            }
            return ExitCode::from(u8::try_from(code).unwrap_or(2));
        }
    };
    for warning in cli::misspelled(std::env::vars_os().map(|(name, _)| name)) {
        let _ = writeln!(std::io::stderr(), "{}", terminal::visible(&warning));
    }
    let environment = ProcessEnv::read(|name| std::env::var_os(name));
    match commands::dispatch(cli.command, &environment) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(error) => {
            let report = error.report();
            let _ = writeln!(std::io::stderr(), "{}", terminal::visible(&report));
            ExitCode::from(error.exit() as u8)
        }
    }
}
