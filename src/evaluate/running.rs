//! One evaluation, from its fork to its end.

use std::fs::metadata;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::channel::{Channel, Mark, Received};
use super::evaluation::{Finished, Outcome, Times};
use super::job::EvaluationJob;
use super::verdict::{self, Killed, ProgramVerdict};
use crate::stopwatch;

/// How long the zygote may take to fork and sandbox a child, or to reap a dead one, even on an overloaded
/// machine.
const ZYGOTE_ANSWERS_WITHIN: Duration = Duration::from_secs(30);

/// How long a process may take to exit after closing its result socket. The program's own time is over by
/// then.
const LEAVES_WITHIN: Duration = Duration::from_millis(50);

/// Maximum number of concurrent threads of a program. `RLIMIT_NPROC` is no substitute: it counts all of a
/// user's processes, and does not apply to root.
const MOST_THREADS: u64 = 256;

/// How often a running program's threads are counted. About 30 threads can be started per millisecond.
const COUNT_THREADS_EVERY: Duration = Duration::from_millis(10);

/// An evaluation that the zygote has been asked to start.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) job: EvaluationJob,
    channel: Option<Channel>,
    longest_result: usize,
    /// Everything received after the mark.
    output: Vec<u8>,
    /// When the result socket was seen closed.
    closed: Option<Instant>,
    pid: Option<Pid>,
    pidfd: Option<OwnedFd>,
    asked: Instant,
    begun: Option<Instant>,
    /// Why the program was not started, if the child reported it.
    failed: Option<String>,
    last_output: Option<Instant>,
    threads_counted: Option<Instant>,
    killed: Option<(Killed, Instant)>,
    gone: Option<Instant>,
    wait_sent: bool,
}

impl Running {
    pub(super) fn new(mut job: EvaluationJob, longest_result: usize) -> Self {
        job.phases.start_up();
        Self {
            job,
            channel: None,
            longest_result,
            output: Vec::new(),
            closed: None,
            pid: None,
            pidfd: None,
            asked: stopwatch::now(),
            begun: None,
            failed: None,
            last_output: None,
            threads_counted: None,
            killed: None,
            gone: None,
            wait_sent: false,
        }
    }

    /// Creates the result socket and returns the child's end.
    pub(super) fn open_channel(&mut self) -> io::Result<OwnedFd> {
        let (channel, other) = Channel::open()?;
        self.channel = Some(channel);
        Ok(other)
    }

    /// The child exists. Carries out a kill that was decided earlier. The process id cannot have been reused,
    /// because the zygote reaps the child only after [`Self::take_needs_reaping`].
    fn started(&mut self, pid: i32) {
        self.pid = Pid::from_raw(pid);
        self.pidfd = self
            .pid
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        if self.killed.is_some() {
            self.signal();
        }
    }

    pub(super) fn is(&self, pid: i32) -> bool {
        self.pid.map(Pid::as_raw_pid) == Some(pid)
    }

    pub(super) fn ended_without_pid(&self) -> bool {
        self.pid.is_none() && self.wait_sent
    }

    /// Whether the child is dead and the zygote has not yet been told to reap it; true only once.
    pub(super) fn take_needs_reaping(&mut self) -> bool {
        // A child that closes its socket before the mark is exiting: no program code has run yet.
        let unnamed = self.pid.is_none() && self.closed.is_some();
        let must = (self.gone.is_some() || unnamed) && !self.wait_sent;
        self.wait_sent |= must;
        must
    }

    /// The descriptor to poll: the result socket, until it is closed.
    pub(super) fn result(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn process(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd
            .as_ref()
            .filter(|_| self.gone.is_none())
            .map(AsFd::as_fd)
    }

    /// When this evaluation next needs attention, if no event comes first.
    pub(super) fn due(&self) -> Instant {
        let end = self.must_end();
        match self.threads_counted {
            Some(counted) if !self.is_over() => end.min(counted + COUNT_THREADS_EVERY),
            _ => end,
        }
    }

    fn is_over(&self) -> bool {
        self.killed.is_some() || self.gone.is_some()
    }

    fn must_end(&self) -> Instant {
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

    /// Kills the child if its time is up or it has too many threads. Returns whether the zygote is stuck: it
    /// did not fork, or did not reap a dead child.
    pub(super) fn enforce_deadlines(&mut self, now: Instant) -> bool {
        if now >= self.must_end() {
            if self.is_over() || self.begun.is_none() {
                return true;
            }
            self.kill(Killed::Deadline);
        }
        if !self.is_over()
            && let Some(counted) = self.threads_counted
            && now >= counted + COUNT_THREADS_EVERY
        {
            self.threads_counted = Some(now);
            if self.threads().is_some_and(|threads| threads > MOST_THREADS) {
                self.kill(Killed::Threads);
            }
        }
        false
    }

    /// The child's thread count; `None` if `/proc` does not provide it.
    fn threads(&self) -> Option<u64> {
        let pid = self.pid?.as_raw_pid();
        // `task` has one directory per thread, and each adds a link to its parent. 2 links are the base.
        let links = metadata(format!("/proc/{pid}/task")).ok()?.nlink();
        Some(links.saturating_sub(2))
    }

    /// The process has died but has not been reaped.
    pub(super) fn mark_exited(&mut self) {
        self.gone.get_or_insert_with(stopwatch::now);
        self.job.phases.validate();
    }

    /// Reads what the child has written. Kills a child that writes too much.
    pub(super) fn read(&mut self) {
        while let Some(channel) = &mut self.channel {
            match channel.receive() {
                Received::Nothing => return,
                Received::Closed => {
                    self.channel = None;
                    self.closed = Some(stopwatch::now());
                    self.job.phases.validate();
                }
                Received::TooLong => self.flood(),
                Received::Message(message, sent) if self.begun.is_none() => {
                    // The program has not started, so this message is from the trusted worker code.
                    match Channel::mark(message) {
                        Some(Mark::Started { pid }) => {
                            self.begun = Some(sent);
                            self.threads_counted = Some(sent);
                            self.job.phases.run(sent.elapsed());
                            self.started(pid);
                        }
                        Some(Mark::Failed { pid, why }) => {
                            self.failed = Some(why);
                            self.started(pid);
                        }
                        None => {}
                    }
                }
                Received::Message(message, sent) => {
                    self.last_output = Some(sent);
                    self.output.extend_from_slice(message);
                    if self.output.len() > self.longest_result {
                        self.flood();
                    }
                }
            }
        }
    }

    fn flood(&mut self) {
        self.kill(Killed::Flood);
        self.channel = None;
    }

    /// Kills it because nobody waits for it any more.
    pub(super) fn cancel(&mut self) {
        self.kill(Killed::GivenUp);
    }

    fn kill(&mut self, why: Killed) {
        self.killed.get_or_insert((why, stopwatch::now()));
        self.job.phases.validate();
        self.signal();
    }

    /// Sends SIGKILL to the child, if there is one.
    pub(super) fn signal(&self) {
        if let Some(pidfd) = &self.pidfd {
            // Fails if the process is already gone.
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
    }

    /// The child has been reaped.
    pub(super) fn ended(mut self, status: i32, cpu: Duration) -> Finished {
        self.read();
        self.mark_exited();
        let judged_from = stopwatch::now();
        let verdict = self.judge(status, cpu);
        self.finished(verdict, judged_from, cpu)
    }

    fn judge(&self, status: i32, cpu: Duration) -> ProgramVerdict {
        let allowed = self.job.request.deadline;
        let (output, score) = (self.output.as_slice(), self.job.request.score);
        let in_time = |when: Instant| self.begun.is_some_and(|begun| when <= begun + allowed);
        let timeout = |why: &str| {
            let allowed = allowed.as_secs_f64();
            ProgramVerdict::failed(
                Outcome::Timeout,
                format!("{why} its deadline of {allowed} s"),
            )
        };
        match self.killed {
            Some((Killed::Deadline, when)) => {
                // A result that was complete in time counts, even if the process was slow to exit. A
                // result that was completed only by the kill does not.
                let closed_before = self.closed.is_some_and(|closed| closed <= when);
                if closed_before && self.last_output.is_some_and(in_time) {
                    verdict::of_output(output, score)
                } else {
                    timeout("killed at")
                }
            }
            Some((Killed::Flood, _)) => {
                let why = format!("wrote more than {} bytes", self.longest_result);
                ProgramVerdict::failed(Outcome::BadOutput, why)
            }
            Some((Killed::Threads, _)) => {
                let why = format!("had more than {MOST_THREADS} threads at once");
                ProgramVerdict::failed(Outcome::Denied, why)
            }
            Some((Killed::GivenUp, _)) => ProgramVerdict::failed(Outcome::InfraError, "cancelled"),
            None if self.begun.is_none() => {
                let said = self.failed.as_deref().unwrap_or("the process ended first");
                let why = format!("the program was not started: {said}");
                ProgramVerdict::failed(Outcome::InfraError, why)
            }
            // This thread may itself have been suspended at the deadline; a late result is late regardless.
            None if !self.last_output.or(self.gone).is_some_and(in_time) => timeout("ended after"),
            None => {
                // The limit is two seconds higher, and the kernel counts in ticks.
                let cpu_spent = cpu.as_secs() > allowed.as_secs();
                verdict::of_ended(status, cpu_spent, output, score)
            }
        }
    }

    /// An evaluation that failed through no fault of its program.
    pub(super) fn failed(mut self, why: impl Into<String>) -> Finished {
        self.mark_exited();
        let verdict = ProgramVerdict::failed(Outcome::InfraError, why);
        self.finished(verdict, stopwatch::now(), Duration::ZERO)
    }

    fn finished(self, verdict: ProgramVerdict, judged_from: Instant, cpu: Duration) -> Finished {
        let now = stopwatch::now();
        let begun = self.begun.unwrap_or(judged_from);
        let over = match self.killed {
            Some((_, when)) => when,
            None => self.last_output.or(self.gone).unwrap_or(begun),
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
