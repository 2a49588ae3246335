//! The pool: takes programs, returns finished evaluations, and lets none outlive its deadline.

use std::collections::BTreeSet;
use std::io::{PipeWriter, Write, pipe};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::evaluation::{EvaluationId, Finished, Outcome, Request, Times};
use super::job::EvaluationJob;
use super::phases::{Phases, Purpose};
use super::settings::{PythonInfo, Settings};
use super::supervisor::{Message, Supervisor};
use crate::error::{Error, Result};
use crate::stopwatch;

/// Deadline of the sandbox self-test, which takes milliseconds on an idle machine, and the time for its
/// result to arrive, including a restart if the first zygote dies.
const TRIAL_DEADLINE: Duration = Duration::from_secs(60);
const TRIAL_ENDS_WITHIN: Duration = Duration::from_secs(240);

/// Runs programs, each in its own sandboxed process.
///
/// A dedicated thread enforces the deadlines, so the caller may be busy between two polls. Dropping the
/// pool kills whatever is still running.
#[derive(Debug)]
pub struct Pool {
    jobs: Option<Sender<Message>>,
    wake: Option<PipeWriter>,
    finished: Receiver<Finished>,
    supervisor: Option<JoinHandle<()>>,
    python: PythonInfo,
    zygote_pid: u32,
    submitted: u64,
    open: BTreeSet<EvaluationId>,
}

impl Pool {
    /// Starts Python and tests the sandbox. Call it before loading a model: `fork` gets slower as the
    /// process grows.
    ///
    /// # Errors
    ///
    /// Preflight errors with a hint: no usable Python, no Landlock or seccomp (unless `unsafe_eval`), or
    /// a sandbox that allows reading a file it must deny.
    pub fn start(settings: Settings) -> Result<Self> {
        let failed = |error| Error::preflight("cannot start the evaluation pool").caused_by(error);
        let (wake_pipe, wake) = pipe().map_err(failed)?;
        let (jobs, incoming) = channel();
        let (outgoing, finished) = channel();
        let (ready, started) = channel();
        let trusted = settings.unsafe_eval;
        let supervisor = thread::Builder::new().name("evaluate".to_owned());
        let supervisor = supervisor.spawn(move || {
            match Supervisor::start(settings, wake_pipe, incoming, outgoing) {
                Ok((supervisor, python, pid)) => {
                    // The receiver waits for this message, so the send cannot fail.
                    let _ = ready.send(Ok((python, pid)));
                    supervisor.run();
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        });
        let supervisor = supervisor.map_err(failed)?;
        let started = started.recv().unwrap_or_else(|_| {
            let why = "the evaluation thread ended before it was ready";
            Err(Error::preflight(why))
        });
        let (python, zygote_pid) = started?;
        let mut pool = Self {
            jobs: Some(jobs),
            wake: Some(wake),
            finished,
            supervisor: Some(supervisor),
            python,
            zygote_pid,
            submitted: 0,
            open: BTreeSet::new(),
        };
        if !trusted {
            pool.try_the_sandbox()?;
        }
        Ok(pool)
    }

    /// Runs a program that reads a forbidden file, so that a leaky sandbox is detected before any
    /// generated program runs.
    fn try_the_sandbox(&mut self) -> Result<()> {
        let probe = Request {
            code: "def probe():\n    return open('/proc/self/status').read()".to_owned(),
            entry_points: vec!["probe".to_owned()],
            arguments: Vec::new(),
            seed: 0,
            deadline: TRIAL_DEADLINE,
            score: |_| Ok(0.0),
        };
        let id = self.hand_in(probe, Purpose::Trial);
        let finished = self.poll(TRIAL_ENDS_WITHIN).pop();
        judge_trial(finished.filter(|finished| finished.id == id))
    }

    /// Submits a program; it starts as soon as a slot is free. Ids increase in the order of submission.
    pub fn submit(&mut self, request: Request) -> EvaluationId {
        self.hand_in(request, Purpose::Evaluate)
    }

    /// Like [`Self::submit`], for this crate's own program that checks an answer.
    pub(super) fn submit_check(&mut self, request: Request) -> EvaluationId {
        self.hand_in(request, Purpose::Verify)
    }

    fn hand_in(&mut self, request: Request, purpose: Purpose) -> EvaluationId {
        let id = EvaluationId(self.submitted);
        self.submitted += 1;
        self.open.insert(id);
        if let (Some(jobs), Some(wake)) = (&self.jobs, &mut self.wake) {
            // If the supervisor is gone, `poll` notices.
            let _ = jobs.send(Message::Run(EvaluationJob::new(
                id,
                request,
                Phases::begin(purpose),
            )));
            let _ = wake.write_all(b"j");
        }
        id
    }

    /// Returns all finished evaluations in the order in which they finished. If there are none yet, waits
    /// up to `timeout` for the first.
    ///
    /// Sort by id where the result must not depend on timing.
    pub fn poll(&mut self, timeout: Duration) -> Vec<Finished> {
        let until = stopwatch::now() + timeout;
        let mut all: Vec<Finished> = self.finished.try_iter().collect();
        if all.is_empty() {
            match self
                .finished
                .recv_timeout(until - stopwatch::now().min(until))
            {
                Ok(first) => all.push(first),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => all.extend(self.given_up()),
            }
            all.extend(self.finished.try_iter());
        }
        // Drop evaluations that were cancelled in the meantime.
        all.retain(|finished| self.open.remove(&finished.id));
        all
    }

    /// Kills an evaluation; no later poll returns it.
    pub fn cancel(&mut self, id: EvaluationId) {
        if self.open.remove(&id)
            && let (Some(jobs), Some(wake)) = (&self.jobs, &mut self.wake)
        {
            // If the supervisor is gone, all of its evaluations have ended.
            let _ = jobs.send(Message::Cancel(id));
            let _ = wake.write_all(b"g");
        }
    }

    /// How many evaluations have been submitted but not yet returned.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// The open evaluations after the pool's thread ended, which it does when `ppoll` fails.
    fn given_up(&self) -> impl Iterator<Item = Finished> {
        self.open.iter().map(|id| Finished {
            id: *id,
            outcome: Outcome::InfraError,
            score: None,
            detail: "the evaluation thread has ended".to_owned(),
            times: Times::default(),
            attempts: 0,
            killed_after: None,
        })
    }

    /// The Python that runs the programs.
    pub fn python(&self) -> &PythonInfo {
        &self.python
    }

    /// The process id of the first zygote. A zygote that died has been replaced by another.
    pub fn zygote_pid(&self) -> u32 {
        self.zygote_pid
    }
}

/// Judges the sandbox self-test, whose program must be denied. A timeout says nothing about the sandbox,
/// but nothing may run without a passed test.
fn judge_trial(finished: Option<Finished>) -> Result<()> {
    let (outcome, detail) = match finished {
        Some(finished) => (finished.outcome, finished.detail),
        None => (Outcome::Timeout, "no answer".to_owned()),
    };
    let without = "trusted programs can run without it (--unsafe-eval)";
    let (failed, hint) = match outcome {
        Outcome::Denied => return Ok(()),
        Outcome::Timeout => (
            "the sandbox test timed out, so it is unknown whether the sandbox holds",
            "this machine may be overloaded: try again when it is less busy".to_owned(),
        ),
        Outcome::InfraError => (
            "the sandbox for generated programs could not be tested",
            without.to_owned(),
        ),
        _ => (
            "the sandbox for generated programs does not hold",
            without.to_owned(),
        ),
    };
    Err(Error::preflight(format!("{failed}: {outcome} {detail}")).hint(hint))
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        self.wake = None;
        if let Some(supervisor) = self.supervisor.take() {
            // A panic in that thread has already been printed.
            let _ = supervisor.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(outcome: Outcome, detail: &str) -> Option<Finished> {
        Some(Finished {
            id: EvaluationId(0),
            outcome,
            score: None,
            detail: detail.to_owned(),
            times: Times::default(),
            attempts: 1,
            killed_after: None,
        })
    }

    #[test]
    fn a_slow_sandbox_test_is_not_reported_as_a_leak() {
        assert!(judge_trial(trial(Outcome::Denied, "")).is_ok());
        for slow in [trial(Outcome::Timeout, "killed"), None] {
            let error = judge_trial(slow).unwrap_err();
            assert!(error.chain().contains("timed out"), "{}", error.chain());
            assert!(error.hint_text().unwrap().contains("overloaded"));
        }
        let hole = judge_trial(trial(Outcome::Ok, "")).unwrap_err();
        assert!(hole.chain().contains("does not hold"), "{}", hole.chain());
        let broken = judge_trial(trial(Outcome::InfraError, "no fork")).unwrap_err();
        let chain = broken.chain();
        assert!(
            chain.contains("could not be tested: infra_error no fork"),
            "{chain}"
        );
    }
}
