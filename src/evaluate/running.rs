//! One evaluation between its fork and its end.

use std::io::{self, PipeReader, PipeWriter, Read, pipe};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::{Signal, pidfd_send_signal};

use super::evaluation::{Finished, Outcome, Times};
use super::protocol::{self, BEFORE_REPLY};
use super::supervisor::Job;
use super::verdict::{self, Killed, Verdict};

/// How long the zygote may take to fork and sandbox, or to wait for a child that is dead, on a machine
/// as busy as it may be.
const ZYGOTE_ANSWERS_WITHIN: Duration = Duration::from_secs(30);

/// How long a process may take to end once its result pipe is closed, as it is at the end: the
/// program's own time is over by then.
const LEAVES_WITHIN: Duration = Duration::from_millis(50);

/// An evaluation that the zygote has been asked for.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) job: Job,
    result: Option<PipeReader>,
    longest_result: usize,
    output: Vec<u8>,
    /// When the result pipe was found closed.
    closed: Option<Instant>,
    pidfd: Option<OwnedFd>,
    asked: Instant,
    begun: Option<Instant>,
    last_output: Option<Instant>,
    killed: Option<(Killed, Instant)>,
    gone: Option<Instant>,
}

impl Running {
    pub(super) fn new(mut job: Job, longest_result: usize) -> Self {
        job.phases.start_up();
        Self {
            job,
            result: None,
            longest_result,
            output: Vec::new(),
            closed: None,
            pidfd: None,
            asked: Instant::now(),
            begun: None,
            last_output: None,
            killed: None,
            gone: None,
        }
    }

    /// Makes the result pipe; what comes back is the child's end.
    pub(super) fn open_result(&mut self) -> io::Result<PipeWriter> {
        let (result, to_write) = pipe()?;
        fcntl_setfl(&result, OFlags::NONBLOCK)?;
        self.result = Some(result);
        Ok(to_write)
    }

    /// The child exists. A kill that was decided before is made up for.
    pub(super) fn started(&mut self, pidfd: OwnedFd) {
        self.pidfd = Some(pidfd);
        if self.killed.is_some() {
            self.signal();
        }
    }

    /// What to wait on: the result pipe until it is closed, and the process until it is gone.
    pub(super) fn result(&self) -> Option<BorrowedFd<'_>> {
        self.result.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn process(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd
            .as_ref()
            .filter(|_| self.gone.is_none())
            .map(AsFd::as_fd)
    }

    /// When something must happen, if nothing else does before.
    pub(super) fn due(&self) -> Instant {
        let killed = self.killed.map(|(_, when)| when);
        match (self.gone.or(killed), self.begun) {
            (Some(over), _) => over + ZYGOTE_ANSWERS_WITHIN,
            (None, Some(begun)) => {
                let deadline = begun + self.job.request.deadline;
                let leaves = self.closed.map(|closed| closed + LEAVES_WITHIN);
                leaves.map_or(deadline, |leaves| leaves.max(deadline))
            }
            (None, None) => self.asked + ZYGOTE_ANSWERS_WITHIN,
        }
    }

    /// Kills the child if its time is over. Whether the zygote is to blame: it did not fork, or did
    /// not wait for what is dead.
    pub(super) fn keep_time(&mut self, now: Instant) -> bool {
        if now < self.due() {
            return false;
        }
        let over = self.killed.is_some() || self.gone.is_some();
        match (over, self.begun) {
            (true, _) => return true,
            (false, Some(_)) => self.kill(Killed::Deadline),
            (false, None) if self.pidfd.is_some() => self.kill(Killed::StartUp),
            (false, None) => return true,
        }
        false
    }

    /// The process is gone, though not yet waited for.
    pub(super) fn is_gone(&mut self) {
        self.gone.get_or_insert_with(Instant::now);
        self.job.phases.validate();
    }

    /// Takes what the child has written; one that writes too much is killed.
    pub(super) fn read(&mut self) {
        let mut buffer = [0; 16 * 1024];
        while let Some(result) = &mut self.result {
            match result.read(&mut buffer) {
                Ok(0) => {
                    self.result = None;
                    self.closed = Some(Instant::now());
                    self.job.phases.validate();
                }
                Ok(count) => {
                    let now = Instant::now();
                    self.last_output = Some(now);
                    self.output.extend_from_slice(&buffer[..count]);
                    self.look_for_begin(now);
                    if self.output.len() > self.longest_result + BEFORE_REPLY {
                        self.kill(Killed::Flood);
                        self.result = None;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.result = None,
            }
        }
    }

    /// Whether the program has begun, and when: this thread may have been woken long after.
    fn look_for_begin(&mut self, now: Instant) {
        if self.begun.is_some() {
            return;
        }
        if let Some((nanos, _)) = protocol::begun(&self.output) {
            let begun = instant(nanos, now).clamp(self.asked, now);
            self.begun = Some(begun);
            self.job.phases.run(now - begun);
        }
    }

    /// Ends it, since nobody waits for it any more.
    pub(super) fn give_up(&mut self) {
        self.kill(Killed::GivenUp);
    }

    fn kill(&mut self, why: Killed) {
        self.killed.get_or_insert((why, Instant::now()));
        self.job.phases.validate();
        self.signal();
    }

    /// Ends the child, if there is one.
    pub(super) fn signal(&self) {
        if let Some(pidfd) = &self.pidfd {
            // It fails where the process is gone already.
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
    }

    /// The child has been waited for.
    pub(super) fn ended(mut self, status: i32, cpu: Duration) -> Finished {
        self.read();
        self.is_gone();
        let judged_from = Instant::now();
        // The limit is a second more, and the kernel counts in ticks.
        let cpu_spent = cpu.as_secs() > self.job.request.deadline.as_secs();
        let verdict = match self.killed {
            Some((Killed::Deadline, _)) => {
                let deadline = self.job.request.deadline.as_secs_f64();
                let why = format!("killed at its deadline of {deadline} s");
                Verdict::failed(Outcome::Timeout, why)
            }
            Some((Killed::Flood, _)) => {
                let why = format!("wrote more than {} bytes", self.longest_result);
                Verdict::failed(Outcome::BadOutput, why)
            }
            Some((Killed::GivenUp, _)) => Verdict::failed(Outcome::InfraError, "given up"),
            Some((Killed::StartUp, _)) => {
                let why = format!("not started within {} s", ZYGOTE_ANSWERS_WITHIN.as_secs());
                Verdict::failed(Outcome::InfraError, why)
            }
            None => {
                let score = self.job.request.score;
                verdict::of_ended(status, cpu_spent, &self.output, score)
            }
        };
        self.finished(verdict, judged_from, cpu)
    }

    /// An evaluation that came to nothing by no fault of its program.
    pub(super) fn failed(mut self, why: impl Into<String>) -> Finished {
        self.is_gone();
        let verdict = Verdict::failed(Outcome::InfraError, why);
        self.finished(verdict, Instant::now(), Duration::ZERO)
    }

    fn finished(self, verdict: Verdict, judged_from: Instant, cpu: Duration) -> Finished {
        let now = Instant::now();
        let begun = self.begun.unwrap_or(judged_from);
        let over = match self.killed {
            Some((_, when)) => when,
            None => self.last_output.unwrap_or(begun),
        };
        let over = over.max(begun);
        let by_deadline = matches!(self.killed, Some((Killed::Deadline, _)));
        let deadline = begun + self.job.request.deadline;
        Finished {
            id: self.job.id,
            outcome: verdict.outcome,
            score: verdict.score,
            detail: verdict.detail,
            times: Times {
                waited: self.asked - self.job.submitted,
                start_up: begun - self.asked,
                run: over - begun,
                stop: judged_from.saturating_duration_since(over),
                validate: now - judged_from,
                cpu,
            },
            attempts: self.job.attempts,
            killed_after: self
                .gone
                .filter(|_| by_deadline)
                .map(|gone| gone.saturating_duration_since(deadline)),
        }
    }
}

/// A reading of CLOCK_MONOTONIC, which `Instant` is made of on Linux and cannot be made from: as far
/// before `now` as that clock says.
fn instant(nanos: u64, now: Instant) -> Instant {
    let Ok(clock) = clock_gettime(ClockId::CLOCK_MONOTONIC) else {
        return now;
    };
    let ago = Duration::from(clock).saturating_sub(Duration::from_nanos(nanos));
    now.checked_sub(ago).unwrap_or(now)
}
