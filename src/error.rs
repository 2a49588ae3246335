//! The error type: what failed, where, why, what to do next, and the exit code.

use std::error::Error as StdError;
use std::fmt;

/// The exit codes of the process, which the README lists. 1 is left to crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Success.
    Done = 0,
    /// An invalid flag, variable, template, suite or fixture.
    Usage = 2,
    /// The machine, the model or the device is not ready.
    Preflight = 3,
    /// Nothing ran.
    NothingRan = 4,
    /// The runs must not be judged by: a gate needs a verdict and there is none, or a run is invalid.
    Invalid = 98,
    /// A gate failed: a regression, or outputs that differ.
    Gate = 99,
    /// At least one flow failed.
    FlowFailed = 100,
    /// Stopped early (Ctrl-C, a deadline); measurements so far are saved.
    Incomplete = 106,
    /// An output could not be written.
    Output = 110,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An expected failure.
///
/// Messages are fragments: the outermost says what was being done ("failed to load the model"), and each
/// `source` below it why. A cause that the user can act on has a hint.
#[derive(Debug)]
pub struct Error {
    exit: Exit,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            hint: None,
            source: None,
        }
    }

    /// An error in user input (exit code 2).
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// The model, the device or the machine is not ready (exit code 3).
    pub fn preflight(message: impl Into<String>) -> Self {
        Self::new(Exit::Preflight, message)
    }

    /// A flow that could not be completed (exit code 100).
    pub fn flow(message: impl Into<String>) -> Self {
        Self::new(Exit::FlowFailed, message)
    }

    /// A failed write (exit code 110).
    pub fn output(message: impl Into<String>) -> Self {
        Self::new(Exit::Output, message)
    }

    /// Adds what to do next. The first hint, which is closest to the cause, is kept.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert(hint.into());
        self
    }

    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds what was being done when the error came up; exit code and hint stay.
    #[must_use]
    pub fn context(mut self, message: impl Into<String>) -> Self {
        Self {
            exit: self.exit,
            message: message.into(),
            hint: self.hint.take(),
            source: Some(Box::new(self)),
        }
    }

    pub fn exit(&self) -> Exit {
        self.exit
    }

    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The message and its causes on one line, joined by `: `.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut source = self.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Some libraries repeat the source in their own message.
            if !text.ends_with(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            source = cause.source();
        }
        text
    }

    /// What the user sees: `error: …`, a `caused by` line per cause, and a `hint:` line. Further lines of a
    /// message are indented, since they may come from a model or a server.
    pub fn report(&self) -> String {
        let set_in = |text: &str| text.replace('\n', "\n    ");
        let mut text = format!("error: {}", set_in(&self.message));
        let mut source = self.source();
        while let Some(cause) = source {
            let cause_text = set_in(&cause.to_string());
            text.push_str(&format!("\n  caused by: {cause_text}"));
            source = cause.source();
        }
        if let Some(hint) = &self.hint {
            text.push_str(&format!("\nhint: {}", set_in(hint)));
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &dyn StdError)
    }
}

/// Converts a library error into an [`Error`].
pub trait Context<T> {
    /// Wraps the error with this exit code and message.
    fn or_exit(self, exit: Exit, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Box<dyn StdError + Send + Sync>>> Context<T> for std::result::Result<T, E> {
    fn or_exit(self, exit: Exit, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::new(exit, message()).caused_by(source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untrusted_text_cannot_start_a_line() {
        let error = Error::flow("bad").caused_by("a\n[TIMING] benchmark_total_ms=1.00");
        assert_eq!(
            error.report(),
            "error: bad\n  caused by: a\n    [TIMING] benchmark_total_ms=1.00"
        );
    }

    #[test]
    fn context_keeps_the_exit_code_and_the_first_hint() {
        let error = Error::preflight("no model")
            .hint("fetch it")
            .context("failed to load the engine")
            .hint("a later hint does not replace it");
        assert_eq!(error.exit(), Exit::Preflight);
        assert_eq!(
            error.report(),
            "error: failed to load the engine\n  caused by: no model\nhint: fetch it"
        );
        assert_eq!(error.chain(), "failed to load the engine: no model");
    }
}
