//! Stand-in for systems without Landlock and seccomp, which only Linux has: it refuses to run programs.

use std::convert::Infallible;
use std::time::Duration;

use super::{EvaluationId, Finished, PythonInfo, Request, Settings};
use crate::error::{Error, Result};

/// A pool that cannot be constructed.
#[derive(Debug)]
pub struct Pool {
    never: Infallible,
}

impl Pool {
    /// Always fails: programs run in a sandbox, which exists on Linux only.
    ///
    /// # Errors
    ///
    /// A preflight error with a hint.
    pub fn start(_settings: Settings) -> Result<Self> {
        let system = std::env::consts::OS;
        let failed = format!("generated programs cannot run on {system}: no sandbox is available");
        let hint = "flows that evaluate programs need Linux 5.13 or later; a virtual machine or \
                    container will do";
        Err(Error::preflight(failed).hint(hint))
    }

    pub fn submit(&mut self, _request: Request) -> EvaluationId {
        match self.never {}
    }

    pub(super) fn submit_check(&mut self, _request: Request) -> EvaluationId {
        match self.never {}
    }

    pub fn poll(&mut self, _timeout: Duration) -> Vec<Finished> {
        match self.never {}
    }

    pub fn cancel(&mut self, _id: EvaluationId) {
        match self.never {}
    }

    pub fn open(&self) -> usize {
        match self.never {}
    }

    pub fn python(&self) -> &PythonInfo {
        match self.never {}
    }

    pub fn zygote_pid(&self) -> u32 {
        match self.never {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starting_a_pool_without_a_sandbox_fails_with_a_hint() {
        let error = Pool::start(Settings::new("python3", [])).unwrap_err();
        assert_eq!(error.exit(), crate::error::Exit::Preflight);
        assert!(error.chain().contains("no sandbox"), "{}", error.chain());
        assert!(error.hint_text().unwrap().contains("Linux 5.13"));
    }
}
