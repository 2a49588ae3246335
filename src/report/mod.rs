//! What people and programs are shown: lines on the terminal ([`timing`], and [`traffic`] of
//! `MODE=remote`), the table of `MODE=both` ([`table`]), the figures of `bench-engine` ([`mod@bench`]),
//! what an edited template costs ([`cost`]), warnings where a run proves little ([`mod@warnings`]), and its
//! end in a sentence ([`summary`], and [`gpu`] for the card). Of saved runs, [`mod@diagnose`] says why they
//! took as long as they did, [`page`] shows them, [`verdicts`] how they compare with others, [`history`] what
//! became of a job, and [`export`] converts them to other programs' formats.
//!
//! Everything here is made from records; nothing is measured or saved.

pub mod bench;
pub mod cost;
pub mod diagnose;
pub mod export;
pub mod gpu;
pub mod history;
mod html;
mod markdown;
pub mod page;
mod progress;
mod segments;
pub mod summary;
pub mod table;
#[cfg(test)]
pub(crate) mod testing;
pub mod timing;
pub mod traffic;
pub mod validity;
pub mod verdicts;
pub mod warnings;

use std::io::{IsTerminal, Write};

use crate::error::{Error, Result};
use crate::terminal::{visible, visible_line};

pub(crate) use progress::clear as clear_progress;

/// The terminal: results on stdout, progress on stderr. All text passes through here, and control
/// characters in it are escaped.
pub struct Console {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    quiet: bool,
    /// Whether a person reads stdout, not a program.
    out_is_terminal: bool,
    /// What to do when the reader of stdout has closed the pipe.
    closed_pipe: ClosedPipe,
    progress: progress::Progress,
}

/// Meaning of a closed stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClosedPipe {
    /// Results are lost: an error.
    Error,
    /// The reader is done (`flowbench diagnose | head`); write nothing more.
    Enough { reached: bool },
}

impl Console {
    /// The terminal of the process; `quiet` turns off progress.
    pub fn terminal(quiet: bool) -> Self {
        Self {
            out: Box::new(std::io::stdout()),
            err: Box::new(std::io::stderr()),
            quiet,
            out_is_terminal: std::io::stdout().is_terminal(),
            closed_pipe: ClosedPipe::Error,
            progress: progress::Progress::new(quiet),
        }
    }

    /// A console on arbitrary writers.
    pub fn new(out: Box<dyn Write + Send>, err: Box<dyn Write + Send>, quiet: bool) -> Self {
        Self {
            out,
            err,
            quiet,
            out_is_terminal: false,
            closed_pipe: ClosedPipe::Error,
            // No bars: the output does not go to the terminal.
            progress: progress::Progress::new(true),
        }
    }

    /// For commands whose output can be reproduced: a reader that closes the pipe early, as `head`
    /// does, is not an error.
    #[must_use]
    pub fn for_listing(mut self) -> Self {
        self.closed_pipe = ClosedPipe::Enough { reached: false };
        self
    }

    /// Prints a result line on stdout.
    ///
    /// # Errors
    /// Exit code 110 if stdout is closed or full; after [`Self::for_listing`], a closed pipe is not
    /// an error.
    pub fn result(&mut self, line: &str) -> Result<()> {
        self.print(&visible(line))
    }

    /// Prints machine-readable output (JSON, CSV, a path) on stdout. It is left unchanged unless
    /// stdout is a terminal.
    ///
    /// # Errors
    /// As for [`Self::result`].
    pub fn data(&mut self, text: &str) -> Result<()> {
        if self.out_is_terminal {
            return self.result(text);
        }
        self.print(text)
    }

    fn print(&mut self, line: &str) -> Result<()> {
        if self.closed_pipe == (ClosedPipe::Enough { reached: true }) {
            return Ok(());
        }
        let out = &mut self.out;
        let written = self
            .progress
            .beside(|| writeln!(out, "{line}").and_then(|()| out.flush()));
        match (written, &mut self.closed_pipe) {
            (Err(source), ClosedPipe::Enough { reached })
                if source.kind() == std::io::ErrorKind::BrokenPipe =>
            {
                *reached = true;
                Ok(())
            }
            (written, _) => written.map_err(|source| {
                Error::output("failed to write to standard output")
                    .hint("keep the pipe open, or redirect the output to a disk with free space")
                    .caused_by(source)
            }),
        }
    }

    /// Prints a `[PROGRESS]` line on stderr, unless quiet. A closed stderr is ignored.
    pub fn progress(&mut self, text: &str) {
        if !self.quiet {
            let err = &mut self.err;
            let text = visible_line(text);
            let _ = self.progress.beside(|| writeln!(err, "[PROGRESS] {text}"));
        }
    }

    /// Prints a warning on stderr.
    pub fn warning(&mut self, text: &str) {
        let err = &mut self.err;
        let text = visible(text);
        let _ = self.progress.beside(|| writeln!(err, "{text}"));
    }

    /// Shows a spinner for work of unknown length, until the next such call or [`Console::idle`].
    pub fn waiting(&mut self, what: &str) {
        self.progress.wait(what);
    }

    /// Sets the total number of flows and steps of the whole run.
    pub fn plan(&mut self, flows: usize, steps: usize) {
        self.progress.plan(flows, steps);
    }

    /// Shows the progress of the flows.
    pub fn flows(&mut self) {
        self.progress.flows();
    }

    /// Records a finished step and its generated tokens.
    pub fn step_ended(&mut self, tokens: usize) {
        self.progress.step(tokens);
    }

    pub fn flow_ended(&mut self) {
        self.progress.flow();
    }

    /// Removes what is drawn.
    pub fn idle(&mut self) {
        self.progress.end();
    }
}
