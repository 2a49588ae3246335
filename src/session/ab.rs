//! `flowbench ab`: two settings in turns, until their difference is settled.
//!
//! Each arm is a process of its own, so that it may be another program, model or server. Where memory allows, both
//! keep their engine and run when they are given a line on stdin (`run --by-turns`); otherwise a process is started
//! for each run. Rounds alternate, A B, B A, so that drift of the machine affects both alike.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::comparison::{beside, differing};
use crate::config::ArmSettings;
use crate::error::{Error, Exit, Result};
use crate::metrics::compare::{Metric, difference};
use crate::metrics::sequential::{Progress, progress};
use crate::record::compare::{ChangeInterval, CompareRecord, MeasuredRun, Noise, Verdict};
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
    pub(crate) interrupted: bool,
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
/// Exit code 2 if a program cannot be started; that of a run that left nothing to compare; 98 if the runs of a round
/// have nothing in common.
pub(crate) fn ab(
    request: &AbRequest,
    console: &mut Console,
    interrupted: &AtomicBool,
) -> Result<AbOutcome> {
    let own = std::env::current_exe().map_err(|source| {
        Error::preflight("failed to find the running program").caused_by(source)
    })?;
    let mut keep = !request.one_at_a_time && request.arms.iter().all(|arm| arm.program.is_none());
    let arm = |index: usize, name: &'static str| Arm {
        name,
        settings: request.arms[index].variables.clone(),
        program: (request.arms[index].program.clone()).unwrap_or(own.clone()),
        out: request.out,
        kept: None,
        folders: Vec::new(),
        runs: Vec::new(),
    };
    let mut arms = [arm(0, "A"), arm(1, "B")];
    let timer = Timer::start();
    let mut rounds: Vec<f64> = Vec::new();
    let threshold = request.threshold.ln_1p();
    let sign = if request.metric.quantity.more_is_better() {
        -1.0
    } else {
        1.0
    };
    let mut now = progress(&rounds, threshold);
    while rounds.len() < request.max_rounds && now.verdict == Verdict::NoVerdict {
        let is_late = |deadline: Duration| timer.elapsed() >= deadline;
        if interrupted.load(Ordering::Relaxed) || request.deadline.is_some_and(is_late) {
            break;
        }
        let order = if rounds.len().is_multiple_of(2) {
            [0, 1]
        } else {
            [1, 0]
        };
        for index in order {
            take_turn(&mut arms, index, &mut keep, request.max_rounds, console)?;
        }
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        let [a, b] = [&arms[0].runs, &arms[1].runs].map(|runs| runs.last());
        let (Some(a), Some(b)) = (a, b) else { break };
        let unit = difference(a, b, request.metric).map_err(|source| {
            Error::new(Exit::Invalid, "the runs of a round cannot be compared")
                .hint("`flowbench diagnose RUN` says what became of them")
                .caused_by(source)
        })?;
        rounds.push(unit * sign);
        now = progress(&rounds, threshold);
        console.result(&verdicts::round_line(
            rounds.len(),
            unit,
            now.mean * sign,
            now.half_width,
        ))?;
    }
    arms.iter_mut().for_each(Arm::end);
    let interrupted = interrupted.load(Ordering::Relaxed);
    if rounds.is_empty() {
        let exit = if interrupted {
            Exit::Incomplete
        } else {
            Exit::NothingRan
        };
        return Err(
            Error::new(exit, "no round was run to its end").hint("give it more time (--deadline)")
        );
    }
    let record = judged(request, &arms, &now, sign, rounds.len())?;
    let folder = arms[1].folders.last().cloned().unwrap_or_default();
    Ok(AbOutcome {
        record,
        folder,
        interrupted,
    })
}

/// Lets an arm run the job once. A kept process for which memory is short, and one on a GPU, makes way for a
/// process for each run.
fn take_turn(
    arms: &mut [Arm; 2],
    index: usize,
    keep: &mut bool,
    rounds: usize,
    console: &mut Console,
) -> Result<()> {
    let mut taken = arms[index].turn(*keep, rounds)?;
    let is_short = |failed: &Failed| failed.code == Some(Exit::Preflight as i32);
    if *keep && taken.as_ref().err().is_some_and(is_short) {
        console.progress("Both engines do not fit: one process for each run from now on");
        *keep = false;
        arms.iter_mut().for_each(Arm::end);
        taken = arms[index].turn(false, rounds)?;
    }
    if let Err(failed) = taken {
        let code = failed
            .code
            .map_or("a signal".to_owned(), |code| format!("code {code}"));
        let message = format!("the run of {} ended with {code}", arms[index].name);
        return Err(Error::new(exit_of(failed.code), message).hint("its message is above"));
    }
    let device = arms[index].runs.last().and_then(|run| {
        let kind = run.record.engine.get("device")?.get("kind")?;
        kind.as_str().map(str::to_owned)
    });
    if *keep && device.as_deref() == Some("cuda") {
        // Two processes on a card disturb each other even when one is idle.
        *keep = false;
        arms.iter_mut().for_each(Arm::end);
    }
    Ok(())
}

/// The exit code of a run that left nothing, if it is one of this program's.
fn exit_of(code: Option<i32>) -> Exit {
    match code {
        Some(2) => Exit::Usage,
        Some(3) => Exit::Preflight,
        Some(106) => Exit::Incomplete,
        Some(110) => Exit::Output,
        _ => Exit::NothingRan,
    }
}

/// The comparison of all rounds, with the verdict and the interval of the test that may be looked at.
fn judged(
    request: &AbRequest,
    arms: &[Arm; 2],
    now: &Progress,
    sign: f64,
    rounds: usize,
) -> Result<CompareRecord> {
    let [a, b] = arms;
    let differences = differing(&a.runs, &b.runs);
    let sides = [(&a.runs, &a.folders), (&b.runs, &b.folders)];
    let mut record = beside(sides, differences, request.metric, request.threshold)?;
    record.verdict = now.verdict;
    if let Some(metric) = record.metrics.first_mut() {
        let mean = now.mean * sign;
        metric.verdict = now.verdict;
        metric.interval = now.half_width.is_finite().then(|| ChangeInterval {
            low: (mean - now.half_width).exp_m1(),
            high: (mean + now.half_width).exp_m1(),
            coverage: 0.95,
        });
        metric.smallest_visible = None;
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
