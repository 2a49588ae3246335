//! `flowbench ab`: two settings in turns, until their difference is settled.
//!
//! Each arm is a process of its own, so that it may be another program, model or server. Where memory allows, both
//! keep their engine and run when they are given a line on stdin (`run --by-turns`); otherwise a process is started
//! for each run.
//!
//! Each run is saved as it goes on, in a folder of its own. If a run leaves nothing, the rounds before are judged, and
//! its error is that of the test. If this process is killed, the arms find that nobody reads their lines, end the run
//! in order, and take no further turn.

use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::comparison::{beside, differing};
use super::turns::{Arms, alternate};
use crate::config::ArmSettings;
use crate::error::{Error, Exit, Result};
use crate::metrics::compare::{Metric, difference};
use crate::metrics::sequential::Sequence;
use crate::record::compare::{CompareRecord, MeasuredRun, Noise, Verdict};
use crate::report::{Console, verdicts};
use crate::results;
use crate::stopwatch::Timer;

/// The end of a run's output.
const RUN: &str = "[RUN] path=";

/// What is compared, and when to stop.
pub(crate) struct AbRequest<'a> {
    pub(crate) arms: [ArmSettings; 2],
    pub(crate) out: &'a Path,
    pub(crate) metric: &'a Metric,
    /// As a share.
    pub(crate) threshold: f64,
    pub(crate) max_rounds: usize,
    pub(crate) deadline: Option<Duration>,
    pub(crate) one_at_a_time: bool,
}

/// What came of it.
pub(crate) struct AbOutcome {
    pub(crate) record: CompareRecord,
    /// Folder of B's last run.
    pub(crate) folder: PathBuf,
    /// Why the rounds ended before a verdict or a limit.
    pub(crate) stopped: Option<Error>,
}

/// One of the two settings.
struct Arm<'a> {
    name: &'static str,
    settings: Vec<(String, String)>,
    program: PathBuf,
    out: &'a Path,
    /// Runs of the process that is kept.
    kept: Option<Kept>,
    folders: Vec<PathBuf>,
    runs: Vec<MeasuredRun>,
}

struct Kept {
    child: Child,
    turns: ChildStdin,
    lines: BufReader<ChildStdout>,
}

/// How a turn ended without a run.
struct Failed {
    code: Option<i32>,
}

impl Arm<'_> {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("run")
            .arg("--out")
            .arg(self.out)
            .env("QUIET", "1")
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped());
        command
    }

    fn cannot_start(&self, source: std::io::Error) -> Error {
        let what = format!(
            "failed to start {} for {}",
            self.program.display(),
            self.name
        );
        Error::usage(what)
            .hint("let --a-binary or --b-binary name a flowbench program")
            .caused_by(source)
    }

    /// Runs the job once, in the process that is kept if `keep`, and reads what it measured.
    fn turn(&mut self, keep: bool, rounds: usize) -> Result<std::result::Result<(), Failed>> {
        let path = if keep {
            self.kept_turn(rounds)?
        } else {
            self.own_turn()?
        };
        let folder = match path {
            Ok(folder) => folder,
            Err(failed) => return Ok(Err(failed)),
        };
        self.runs.push(results::read_measured(&folder)?);
        self.folders.push(folder);
        Ok(Ok(()))
    }

    fn own_turn(&mut self) -> Result<std::result::Result<PathBuf, Failed>> {
        let child = self.command().stdin(Stdio::null()).spawn();
        let mut child = child.map_err(|source| self.cannot_start(source))?;
        let found = child
            .stdout
            .take()
            .map(BufReader::new)
            .and_then(|mut lines| {
                let found = run_path(&mut lines);
                // To its end, so that it can write.
                while run_path(&mut lines).is_some() {}
                found
            });
        let code = child.wait().ok().and_then(|status| status.code());
        Ok(found.ok_or(Failed { code }))
    }

    fn kept_turn(&mut self, rounds: usize) -> Result<std::result::Result<PathBuf, Failed>> {
        if self.kept.is_none() {
            let mut command = self.command();
            command
                .args(["--by-turns", "--repetitions", &rounds.max(2).to_string()])
                .stdin(Stdio::piped());
            let mut child = command
                .spawn()
                .map_err(|source| self.cannot_start(source))?;
            let pipes = (child.stdin.take(), child.stdout.take());
            if let (Some(turns), Some(lines)) = pipes {
                let lines = BufReader::new(lines);
                self.kept = Some(Kept {
                    child,
                    turns,
                    lines,
                });
            }
        }
        let Some(kept) = &mut self.kept else {
            return Ok(Err(Failed { code: None }));
        };
        // A process that has ended says why by its code.
        let _ = kept
            .turns
            .write_all(b"\n")
            .and_then(|()| kept.turns.flush());
        if let Some(folder) = run_path(&mut kept.lines) {
            return Ok(Ok(folder));
        }
        let code = kept.child.wait().ok().and_then(|status| status.code());
        self.kept = None;
        Ok(Err(Failed { code }))
    }

    /// Lets the kept process end.
    fn end(&mut self) {
        if let Some(Kept {
            mut child,
            turns,
            mut lines,
        }) = self.kept.take()
        {
            drop(turns);
            while run_path(&mut lines).is_some() {}
            let _ = child.wait();
        }
    }
}

impl Drop for Arm<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Reads lines up to the one that names a run's folder.
fn run_path(lines: &mut impl BufRead) -> Option<PathBuf> {
    for line in lines.lines() {
        if let Some(path) = line.ok()?.strip_prefix(RUN) {
            return Some(PathBuf::from(path));
        }
    }
    None
}

/// Runs rounds until the difference is settled, or a limit is reached.
///
/// # Errors
/// Exit code 2 if a program cannot be started; that of a run that left nothing to compare in the first round; 98 if
/// the runs of a round have nothing in common.
pub(crate) fn ab(
    request: &AbRequest,
    console: &mut Console,
    interrupted: &AtomicBool,
) -> Result<AbOutcome> {
    let own = std::env::current_exe().map_err(|source| {
        Error::preflight("failed to find the running program").caused_by(source)
    })?;
    let arm = |index: usize, name: &'static str| Arm {
        name,
        settings: request.arms[index].variables.clone(),
        program: (request.arms[index].program.clone()).unwrap_or(own.clone()),
        out: request.out,
        kept: None,
        folders: Vec::new(),
        runs: Vec::new(),
    };
    let more_is_better = request.metric.quantity.more_is_better();
    let mut test = Test {
        request,
        arms: [arm(0, "A"), arm(1, "B")],
        keep: !request.one_at_a_time && request.arms.iter().all(|arm| arm.program.is_none()),
        sequence: Sequence::new(request.threshold, more_is_better),
        timer: Timer::start(),
        console,
        interrupted,
    };
    let ended = alternate(&mut test, request.max_rounds);
    test.arms.iter_mut().for_each(Arm::end);
    let stopped = match ended {
        Ok(None | Some(Stop::Enough)) => None,
        Ok(Some(Stop::Interrupted)) => {
            Some(Error::new(Exit::Incomplete, "interrupted before a verdict"))
        }
        Err(error) => Some(error),
    };
    if test.sequence.rounds() == 0 {
        return Err(stopped.unwrap_or_else(|| {
            Error::new(Exit::NothingRan, "no round was run to its end")
                .hint("give it more time (--deadline)")
        }));
    }
    Ok(AbOutcome {
        record: test.judged()?,
        folder: test.arms[1].folders.last().cloned().unwrap_or_default(),
        stopped,
    })
}

/// The arms and what their rounds say so far.
struct Test<'a> {
    request: &'a AbRequest<'a>,
    arms: [Arm<'a>; 2],
    /// Whether an arm's process is kept for its next turn.
    keep: bool,
    sequence: Sequence,
    timer: Timer,
    console: &'a mut Console,
    interrupted: &'a AtomicBool,
}

/// Why no further round is run.
enum Stop {
    /// The difference is settled, or it is late.
    Enough,
    Interrupted,
}

impl Arms for Test<'_> {
    type Stop = Stop;

    fn round_begins(&mut self) -> ControlFlow<Stop> {
        let is_late = |deadline: Duration| self.timer.elapsed() >= deadline;
        if self.interrupted.load(Ordering::Relaxed) {
            ControlFlow::Break(Stop::Interrupted)
        } else if self.request.deadline.is_some_and(is_late) {
            ControlFlow::Break(Stop::Enough)
        } else {
            ControlFlow::Continue(())
        }
    }

    fn turn(&mut self, _: usize, arm: usize) -> Result<ControlFlow<Stop>> {
        let taken = self.take_turn(arm);
        // The arms are interrupted, too.
        if self.interrupted.load(Ordering::Relaxed) {
            return Ok(ControlFlow::Break(Stop::Interrupted));
        }
        taken.map(ControlFlow::Continue)
    }

    fn round_ended(&mut self, round: usize) -> Result<ControlFlow<Stop>> {
        let [a, b] = [&self.arms[0].runs, &self.arms[1].runs].map(|runs| runs.last());
        let (Some(a), Some(b)) = (a, b) else {
            return Ok(ControlFlow::Continue(()));
        };
        let unit = difference(a, b, self.request.metric).map_err(|source| {
            Error::new(Exit::Invalid, "the runs of a round cannot be compared")
                .hint("`flowbench diagnose RUN` says what became of them")
                .caused_by(source)
        })?;
        self.sequence.add(unit);
        let now = self.sequence.progress();
        let line = verdicts::round_line(round, unit, now.mean, now.half_width);
        self.console.result(&line)?;
        Ok(match now.verdict {
            Verdict::NoVerdict => ControlFlow::Continue(()),
            _ => ControlFlow::Break(Stop::Enough),
        })
    }
}

impl Test<'_> {
    /// Lets an arm run the job once. A kept process for which memory is short, and one on a GPU, makes way for a
    /// process for each run.
    fn take_turn(&mut self, index: usize) -> Result<()> {
        let rounds = self.request.max_rounds;
        let mut taken = self.arms[index].turn(self.keep, rounds)?;
        let is_short = |failed: &Failed| failed.code == Some(Exit::Preflight as i32);
        if self.keep && taken.as_ref().err().is_some_and(is_short) {
            self.console
                .progress("Both engines do not fit: one process for each run from now on");
            self.one_at_a_time();
            taken = self.arms[index].turn(false, rounds)?;
        }
        if let Err(failed) = taken {
            return Err(failed.error(self.arms[index].name));
        }
        let device = self.arms[index].runs.last().and_then(|run| {
            let kind = run.record.engine.get("device")?.get("kind")?;
            kind.as_str().map(str::to_owned)
        });
        if self.keep && device.as_deref() == Some("cuda") {
            // Two processes on a card disturb each other even when one is idle.
            self.one_at_a_time();
        }
        Ok(())
    }

    fn one_at_a_time(&mut self) {
        self.keep = false;
        self.arms.iter_mut().for_each(Arm::end);
    }

    /// The comparison of all rounds, with the verdict and the interval of the test that may be looked at.
    fn judged(&self) -> Result<CompareRecord> {
        let [a, b] = &self.arms;
        // A run without its counterpart is of no round.
        let rounds = self.sequence.rounds();
        let differences = differing(&a.runs, &b.runs);
        let sides = [a, b].map(|arm| (&arm.runs[..rounds], &arm.folders[..rounds]));
        let request = self.request;
        let mut record = beside(sides, differences, request.metric, request.threshold)?;
        let now = self.sequence.progress();
        record.verdict = now.verdict;
        if let Some(metric) = record.metrics.first_mut() {
            metric.verdict = now.verdict;
            metric.interval = now.interval();
            metric.smallest_visible = now.smallest_visible();
            metric.more_runs = None;
            metric.noise = Noise {
                deviation: None,
                degrees: None,
                source: format!("{rounds}_rounds"),
                history_runs: 0,
            };
        }
        Ok(record)
    }
}

impl Failed {
    fn error(&self, arm: &str) -> Error {
        let (exit, how) = match self.code {
            None => (Exit::Incomplete, "was killed by a signal".to_owned()),
            Some(code) => (exit_of(code), format!("ended with code {code}")),
        };
        let error = Error::new(exit, format!("the run of {arm} {how}"));
        match self.code {
            None => error.hint("memory may have been short; `run --resume` goes on with the run"),
            Some(_) => error.hint("its message is above"),
        }
    }
}

/// The exit code of a run that left nothing, if it is one of this program's.
fn exit_of(code: i32) -> Exit {
    match code {
        2 => Exit::Usage,
        3 => Exit::Preflight,
        106 => Exit::Incomplete,
        110 => Exit::Output,
        _ => Exit::NothingRan,
    }
}
