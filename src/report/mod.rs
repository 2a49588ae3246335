//! What people and programs are shown: lines on the terminal ([`timing`], and [`traffic`] of
//! `MODE=remote`), the table of `MODE=both` ([`table`]), the figures of `bench-engine` ([`mod@bench`]),
//! warnings where a run proves little ([`mod@warnings`]), and its end in a sentence ([`summary`]). Of saved
//! runs, [`mod@diagnose`] says why they took as long as they did, and [`page`] shows them.
//!
//! Everything here is made from records; nothing is measured or saved.

pub mod bench;
pub mod diagnose;
mod markdown;
pub mod page;
mod progress;
pub mod summary;
pub mod table;
#[cfg(test)]
pub(crate) mod testing;
pub mod timing;
pub mod traffic;
pub mod warnings;

use std::io::{IsTerminal, Write};

use crate::error::{Error, Result};
use crate::terminal::{visible, visible_line};

pub(crate) use progress::clear as clear_progress;

/// The terminal: results on stdout, progress on stderr. All text goes through here, and none of it can
/// do anything to a terminal: control characters are shown as escapes.
pub struct Console {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    quiet: bool,
    /// Whether stdout is looked at, and not read by a program.
    out_is_terminal: bool,
    /// What becomes of results whose reader has closed the pipe.
    closed_pipe: ClosedPipe,
    progress: progress::Progress,
}

/// What a closed stdout means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClosedPipe {
    /// Results are lost: an error.
    Error,
    /// The reader has seen enough (`flowbench diagnose | head`); nothing more is written.
    Enough { reached: bool },
}

impl Console {
    /// The process's own terminal; `quiet` silences progress.
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

    /// Any two writers.
    pub fn new(out: Box<dyn Write + Send>, err: Box<dyn Write + Send>, quiet: bool) -> Self {
        Self {
            out,
            err,
            quiet,
            out_is_terminal: false,
            closed_pipe: ClosedPipe::Error,
            // What goes elsewhere is not beside the terminal's bars.
            progress: progress::Progress::new(true),
        }
    }

    /// For commands that only list what can be listed again: a reader that closes the pipe early, as
    /// `head` does, is no error.
    #[must_use]
    pub fn for_listing(mut self) -> Self {
        self.closed_pipe = ClosedPipe::Enough { reached: false };
        self
    }

    /// A result line, on stdout.
    ///
    /// # Errors
    /// Exit code 110 where stdout is closed or full; a closed pipe is none of a listing
    /// ([`Self::for_listing`]).
    pub fn result(&mut self, line: &str) -> Result<()> {
        self.print(&visible(line))
    }

    /// A result that programs read (JSON, CSV, a path), on stdout: unchanged, unless stdout is a
    /// terminal.
    ///
    /// # Errors
    /// As [`Self::result`].
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
                    .hint("keep the reader of the pipe open, or send the output to a file on a disk with room")
                    .caused_by(source)
            }),
        }
    }

    /// A `[PROGRESS]` line, on stderr, unless quiet. A closed stderr is no reason to stop.
    pub fn progress(&mut self, text: &str) {
        if !self.quiet {
            let err = &mut self.err;
            let text = visible_line(text);
            let _ = self.progress.beside(|| writeln!(err, "[PROGRESS] {text}"));
        }
    }

    /// What went wrong without ending the run, on stderr.
    pub fn warning(&mut self, text: &str) {
        let err = &mut self.err;
        let text = visible(text);
        let _ = self.progress.beside(|| writeln!(err, "{text}"));
    }

    /// Draws that something without a measure goes on, until the next of these or
    /// [`Console::idle`].
    pub fn waiting(&mut self, what: &str) {
        self.progress.wait(what);
    }

    /// Says how many flows with how many steps are to be run in all, in one go or in several.
    pub fn plan(&mut self, flows: usize, steps: usize) {
        self.progress.plan(flows, steps);
    }

    /// Draws how far these have come.
    pub fn flows(&mut self) {
        self.progress.flows();
    }

    /// A step has ended, with so many generated tokens.
    pub fn step_ended(&mut self, tokens: usize) {
        self.progress.step(tokens);
    }

    /// A flow has ended.
    pub fn flow_ended(&mut self) {
        self.progress.flow();
    }

    /// Draws nothing any more.
    pub fn idle(&mut self) {
        self.progress.end();
    }
}
