//! The pool's thread: owns the zygote, starts evaluations, enforces deadlines, and recovers from crashes.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::evaluation::{EvaluationId, Finished};
use super::job::EvaluationJob;
use super::protocol::Start;
use super::running::Running;
use super::settings::{PythonInfo, Settings};
use super::zygote::Zygote;
use crate::error::Result;
use crate::stopwatch;

/// Open files per program (`RLIMIT_NOFILE`), including Python's standard three and the result socket.
const OPEN_FILES: u64 = 32;

/// A command from the pool to its thread.
#[derive(Debug)]
pub(super) enum Message {
    Run(EvaluationJob),
    /// Kill this one unless it has already ended.
    Cancel(EvaluationId),
}

#[derive(Debug)]
pub(super) struct Supervisor {
    settings: Settings,
    wake_pipe: PipeReader,
    incoming: Receiver<Message>,
    outgoing: Sender<Finished>,
    waiting: VecDeque<EvaluationJob>,
    running: Vec<Running>,
    /// `None` after it died; the next evaluation starts a new one.
    zygote: Option<Zygote>,
}

/// What `ppoll` found ready.
struct Readable {
    wake_pipe: bool,
    zygote: bool,
    /// One entry per running evaluation: (result socket, process).
    running: Vec<(bool, bool)>,
}

impl Supervisor {
    /// Starts the zygote and returns it with its Python and process id. Must be called on the thread that
    /// will run the supervisor.
    pub(super) fn start(
        settings: Settings,
        wake_pipe: PipeReader,
        incoming: Receiver<Message>,
        outgoing: Sender<Finished>,
    ) -> Result<(Self, PythonInfo, u32)> {
        let zygote = Zygote::start(&settings)?;
        let (python, pid) = (zygote.python.clone(), zygote.pid());
        let supervisor = Self {
            settings,
            wake_pipe,
            incoming,
            outgoing,
            waiting: VecDeque::new(),
            running: Vec::new(),
            zygote: Some(zygote),
        };
        Ok((supervisor, python, pid))
    }

    /// Runs until the pool is dropped.
    pub(super) fn run(mut self) {
        loop {
            while let Ok(message) = self.incoming.try_recv() {
                match message {
                    Message::Run(job) => self.waiting.push_back(job),
                    Message::Cancel(id) => self.cancel(id),
                }
            }
            self.fill_slots();
            let readable = match self.wait() {
                Ok(readable) => readable,
                // Out of memory for a handful of descriptors; `Pool::poll` reports it.
                Err(_) => return,
            };
            let mut wake = [0; 64];
            if readable.wake_pipe && matches!(self.wake_pipe.read(&mut wake), Ok(0) | Err(_)) {
                return;
            }
            for (running, (output, gone)) in self.running.iter_mut().zip(readable.running) {
                if output {
                    running.read();
                }
                if gone {
                    running.mark_exited();
                }
            }
            self.enforce_deadlines();
            if let Err(error) = self.reap_children() {
                self.restart_after(&error);
                continue;
            }
            if readable.zygote
                && let Err(error) = self.read_reports()
            {
                self.restart_after(&error);
            }
        }
    }

    fn cancel(&mut self, id: EvaluationId) {
        self.waiting.retain(|job| job.id != id);
        if let Some(place) = self.index_of(id.0) {
            self.running[place].cancel();
        }
    }

    fn fill_slots(&mut self) {
        while self.running.len() < self.settings.parallel.max(1)
            && let Some(job) = self.waiting.pop_front()
        {
            self.start_one(job);
        }
    }

    fn start_one(&mut self, mut job: EvaluationJob) {
        job.attempts += 1;
        let mut running = Running::new(job, self.settings.longest_result);
        let result = match running.open_channel() {
            Ok(result) => result,
            Err(error) => return self.send(running.failed(format!("no socket: {error}"))),
        };
        let zygote = match self
            .zygote
            .take()
            .map_or_else(|| Zygote::start(&self.settings), Ok)
        {
            Ok(zygote) => self.zygote.insert(zygote),
            Err(error) => return self.send(running.failed(error.chain())),
        };
        let start = start_message(&running.job, &self.settings);
        let asked = zygote.request(&start, result.as_fd());
        self.running.push(running);
        if let Err(error) = asked {
            self.restart_after(&error);
        }
    }

    fn wait(&self) -> io::Result<Readable> {
        let now = stopwatch::now();
        let due = self.running.iter().map(Running::due).min();
        let timeout = due.map(|due| TimeSpec::from(due.saturating_duration_since(now)));
        let mut polled = vec![for_input(self.wake_pipe.as_fd())];
        let zygote = add(&mut polled, self.zygote.as_ref().map(Zygote::socket));
        let running: Vec<_> = self
            .running
            .iter()
            .map(|running| {
                let result = add(&mut polled, running.result());
                (result, add(&mut polled, running.process()))
            })
            .collect();
        match ppoll(&mut polled, timeout, None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |place: Option<usize>| {
            let any = place.and_then(|place| polled[place].any());
            any.unwrap_or(false)
        };
        Ok(Readable {
            wake_pipe: is_ready(Some(0)),
            zygote: is_ready(zygote),
            running: running
                .into_iter()
                .map(|(result, process)| (is_ready(result), is_ready(process)))
                .collect(),
        })
    }

    fn enforce_deadlines(&mut self) {
        let now = stopwatch::now();
        // Not `any`, which stops at the first: each one must check its deadline.
        let mut stuck = false;
        for running in &mut self.running {
            stuck |= running.enforce_deadlines(now);
        }
        if stuck {
            let why = "it did not answer in time";
            self.restart_after(&io::Error::new(io::ErrorKind::TimedOut, why));
        }
    }

    /// Has the zygote reap children that have died.
    fn reap_children(&mut self) -> io::Result<()> {
        for running in &mut self.running {
            if let Some(zygote) = &self.zygote
                && running.take_needs_reaping()
            {
                zygote.reap_one()?;
            }
        }
        Ok(())
    }

    /// Reads the zygote's reports.
    fn read_reports(&mut self) -> io::Result<()> {
        let gone = || io::Error::from(io::ErrorKind::UnexpectedEof);
        self.zygote.as_mut().ok_or_else(gone)?.fill_inbox()?;
        while let Some(zygote) = &mut self.zygote
            && let Some(report) = zygote.inbox.report()
        {
            let by_name = self.running.iter().position(|one| one.is(report.pid));
            let unnamed = || self.running.iter().position(Running::ended_without_pid);
            if let Some(place) = by_name.or_else(unnamed) {
                let running = self.running.swap_remove(place);
                self.send(running.ended(report.status, report.cpu));
            }
        }
        Ok(())
    }

    /// Called when the zygote is dead or unresponsive. Requeues whatever was running, once per evaluation.
    fn restart_after(&mut self, error: &io::Error) {
        self.zygote = None;
        for mut running in self.running.drain(..).rev() {
            // The children die with their parent anyway; this is faster.
            running.signal();
            if running.job.attempts < 2 {
                running.job.phases.wait_again();
                self.waiting.push_front(running.job);
            } else {
                let why = format!("the evaluation process died twice: {error}");
                // The receiver is gone once the pool is being dropped.
                let _ = self.outgoing.send(running.failed(why));
            }
        }
    }

    fn index_of(&self, id: u64) -> Option<usize> {
        self.running
            .iter()
            .position(|running| running.job.id.0 == id)
    }

    fn send(&self, finished: Finished) {
        // The receiver is gone once the pool is being dropped.
        let _ = self.outgoing.send(finished);
    }
}

fn start_message<'a>(job: &'a EvaluationJob, settings: &Settings) -> Start<'a> {
    let request = &job.request;
    // In whole seconds. A backstop in case this process is stopped while a program runs.
    let cpu = request.deadline.as_secs() + 2;
    Start {
        code: &request.code,
        entry_points: &request.entry_points,
        arguments: &request.arguments,
        seed: request.seed,
        limits: BTreeMap::from([
            ("AS", settings.memory),
            ("CPU", cpu),
            ("FSIZE", 0),
            ("NOFILE", OPEN_FILES),
            ("CORE", 0),
        ]),
    }
}

fn for_input(descriptor: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(descriptor, PollFlags::POLLIN)
}

/// Adds the descriptor, if any, and returns its index.
fn add<'a>(polled: &mut Vec<PollFd<'a>>, descriptor: Option<BorrowedFd<'a>>) -> Option<usize> {
    polled.push(for_input(descriptor?));
    Some(polled.len() - 1)
}
