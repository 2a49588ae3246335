//! The pool: programs go in, finished evaluations come out, and none outlives its deadline.

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

/// How long the trial of the sandbox may run, which takes milliseconds, on a machine as busy as it may
/// be; and how long until it has come back, with another zygote if the first one dies.
const TRIAL_DEADLINE: Duration = Duration::from_secs(60);
const TRIAL_ENDS_WITHIN: Duration = Duration::from_secs(240);

/// Runs programs, each in a sandboxed process of its own.
///
/// A thread of the pool's own keeps the deadlines, so that the caller may be busy between two polls.
/// Dropping the pool kills whatever still runs.
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
    /// Starts Python and tries the sandbox. To be called before a model is loaded: a fork takes the
    /// longer the more memory a process has.
    ///
    /// # Errors
    ///
    /// Preflight errors, with a hint: no usable Python, no Landlock or seccomp (unless
    /// `unsafe_eval`), or a sandbox that lets a file be read that it must not.
    pub fn start(settings: Settings) -> Result<Self> {
        let failed = |error| Error::preflight("cannot start the evaluation pool").caused_by(error);
        let (woken, wake) = pipe().map_err(failed)?;
        let (jobs, incoming) = channel();
        let (outgoing, finished) = channel();
        let (ready, started) = channel();
        let trusted = settings.unsafe_eval;
        let supervisor = thread::Builder::new().name("evaluate".to_owned());
        let supervisor = supervisor.spawn(move || {
            match Supervisor::start(settings, woken, incoming, outgoing) {
                Ok((supervisor, python, pid)) => {
                    // The pool waits for this; it is there.
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

    /// Runs a program that reads what it must not, so that a sandbox which does not hold is found
    /// before any generated program is run.
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

    /// Hands a program in; it starts as soon as a place is free. Ids rise in the order of submission.
    pub fn submit(&mut self, request: Request) -> EvaluationId {
        self.hand_in(request, Purpose::Evaluate)
    }

    /// As [`Self::submit`], of a program of this crate's own that checks an answer.
    pub(super) fn submit_check(&mut self, request: Request) -> EvaluationId {
        self.hand_in(request, Purpose::Verify)
    }

    fn hand_in(&mut self, request: Request, purpose: Purpose) -> EvaluationId {
        let id = EvaluationId(self.submitted);
        self.submitted += 1;
        self.open.insert(id);
        if let (Some(jobs), Some(wake)) = (&self.jobs, &mut self.wake) {
            // A supervisor that is gone is found by `poll`.
            let _ = jobs.send(Message::Run(EvaluationJob::new(
                id,
                request,
                Phases::begin(purpose),
            )));
            let _ = wake.write_all(b"j");
        }
        id
    }

    /// Everything that has finished, in the order in which it did. With nothing there yet it waits for
    /// the first, at most `timeout`.
    ///
    /// Results that must not depend on timing are to be sorted by id.
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
        // What was given up meanwhile is of no interest.
        all.retain(|finished| self.open.remove(&finished.id));
        all
    }

    /// Gives an evaluation up: it is ended, and no poll tells of it.
    pub fn cancel(&mut self, id: EvaluationId) {
        if self.open.remove(&id)
            && let (Some(jobs), Some(wake)) = (&self.jobs, &mut self.wake)
        {
            // A supervisor that is gone has ended all of them.
            let _ = jobs.send(Message::GiveUp(id));
            let _ = wake.write_all(b"g");
        }
    }

    /// How many evaluations have been submitted and have not come back.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// What is open when the pool's thread has ended, which it does when the system gives it nothing.
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

    /// The Python that programs run on.
    pub fn python(&self) -> &PythonInfo {
        &self.python
    }

    /// The process id of the first zygote; one that died has been replaced by another.
    pub fn zygote_pid(&self) -> u32 {
        self.zygote_pid
    }
}

/// What came of the program that must be denied. One that was only too slow says nothing about the
/// sandbox, but nothing is run without having tried it.
fn judge_trial(finished: Option<Finished>) -> Result<()> {
    let (outcome, detail) = match finished {
        Some(finished) => (finished.outcome, finished.detail),
        None => (Outcome::Timeout, "no answer".to_owned()),
    };
    let without = "programs that you trust can be run without it (--unsafe-eval)";
    let (failed, hint) = match outcome {
        Outcome::Denied => return Ok(()),
        Outcome::Timeout => (
            "the trial of the sandbox timed out, so that it is not known whether it holds",
            "this machine may be overloaded: try again when less runs on it".to_owned(),
        ),
        Outcome::InfraError => (
            "the sandbox for generated programs could not be tried",
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
            // A panic there has been printed already.
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
    fn a_slow_trial_is_not_taken_for_a_hole() {
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
            chain.contains("could not be tried: infra_error no fork"),
            "{chain}"
        );
    }
}
