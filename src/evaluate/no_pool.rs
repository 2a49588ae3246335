//! A system without Landlock and seccomp, which are Linux's own: no program is run, and it says so.

use std::convert::Infallible;
use std::time::Duration;

use super::{EvaluationId, Finished, PythonInfo, Request, Settings};
use crate::error::{Error, Result};

/// The pool of a system that has none; there is never one.
#[derive(Debug)]
pub struct Pool {
    never: Infallible,
}

impl Pool {
    /// Always fails: programs are run in a sandbox on Linux only.
    ///
    /// # Errors
    ///
    /// A preflight error with a hint.
    pub fn start(_settings: Settings) -> Result<Self> {
        let system = std::env::consts::OS;
        let failed = format!("generated programs cannot be run on {system}: no sandbox for it");
        let hint = "use Linux 5.13 or later for flows that evaluate programs; a virtual machine or \
                    a container on one will do";
        Err(Error::preflight(failed).hint(hint))
    }

    /// As on Linux.
    pub fn submit(&mut self, _request: Request) -> EvaluationId {
        match self.never {}
    }

    /// As on Linux.
    pub(super) fn submit_check(&mut self, _request: Request) -> EvaluationId {
        match self.never {}
    }

    /// As on Linux.
    pub fn poll(&mut self, _timeout: Duration) -> Vec<Finished> {
        match self.never {}
    }

    /// As on Linux.
    pub fn cancel(&mut self, _id: EvaluationId) {
        match self.never {}
    }

    /// As on Linux.
    pub fn open(&self) -> usize {
        match self.never {}
    }

    /// As on Linux.
    pub fn python(&self) -> &PythonInfo {
        match self.never {}
    }

    /// As on Linux.
    pub fn zygote_pid(&self) -> u32 {
        match self.never {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_without_a_sandbox_is_refused_with_a_hint() {
        let error = Pool::start(Settings::new("python3", [])).unwrap_err();
        assert_eq!(error.exit(), crate::error::Exit::Preflight);
        assert!(error.chain().contains("no sandbox"), "{}", error.chain());
        assert!(error.hint_text().unwrap().contains("Linux 5.13"));
    }
}
