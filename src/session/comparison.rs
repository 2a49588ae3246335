//! Compares runs on disk: finds them, checks that they can be compared, and judges them.

use std::path::{Path, PathBuf};

use crate::config::Gates;
use crate::error::{Error, Exit, Result};
use crate::metrics::compare::{self, Earlier, Metric, Question, Selected};
use crate::metrics::{gates, validity};
use crate::record::RECORD_SCHEMA;
use crate::record::compare::{CompareRecord, Difference, Invalid, MeasuredRun, RunName};
use crate::report::Console;
use crate::results::{self, Identity, history::History, runs};

/// What is asked.
pub(crate) struct Request<'a> {
    /// Names of runs, see [`runs::resolve`], or `history:N`.
    pub(crate) base: &'a str,
    pub(crate) new: &'a str,
    /// Folder of results.
    pub(crate) out: &'a Path,
    pub(crate) metrics: &'a [Metric],
    /// As a share.
    pub(crate) threshold: f64,
    pub(crate) subject: &'a [String],
    pub(crate) allow_different: &'a [String],
    pub(crate) assumed_noise: Option<f64>,
    pub(crate) gates: &'a Gates,
}

/// What came of it.
pub(crate) struct Compared {
    pub(crate) record: CompareRecord,
    /// Folder of the last new run.
    pub(crate) folder: PathBuf,
}

/// The runs of one side.
struct Side {
    folders: Vec<PathBuf>,
    runs: Vec<MeasuredRun>,
    identity: Identity,
}

impl Side {
    fn read(folders: Vec<PathBuf>, allow_different: &[String]) -> Result<Self> {
        let runs = results::read_all(&folders)?;
        results::undisturbed(&folders, &runs, allow_different)?;
        let identities = runs.iter().map(|run| Identity::of(&run.record));
        let identities: Vec<Identity> = identities.collect();
        let identity = results::common(&folders, &identities, allow_different)?;
        Ok(Self {
            folders,
            runs,
            identity,
        })
    }

    fn names(&self) -> Vec<RunName> {
        names(&self.runs, &self.folders)
    }
}

/// Compares the runs that `request` names.
///
/// # Errors
/// Exit code 2 if they cannot be found, read, or compared; 98 if the new ones are at fault.
pub(crate) fn compared(request: &Request, console: &mut Console) -> Result<Compared> {
    let out = request.out;
    let new = Side::read(runs::resolve(request.new, out)?, request.allow_different)?;
    let history = History::read(out)?;
    for note in &history.notes {
        console.warning(&format!("warning: {note}"));
    }
    let base = Side::read(
        base_folders(request, &history, &new)?,
        request.allow_different,
    )?;
    if let Some(run) = base.folders.iter().find(|run| new.folders.contains(run)) {
        let message = format!("{} is on both sides", run.display());
        return Err(Error::usage(message).hint("name two different runs"));
    }
    let differences = base.identity.differences(&new.identity);
    let (subject, allowed) =
        results::subject(differences, request.subject, request.allow_different)?;

    let compared: Vec<&str> = (base.runs.iter().chain(&new.runs))
        .map(|run| run.record.run_id.as_str())
        .collect();
    let earlier = |selected: &Selected| -> Vec<Earlier> {
        history.earlier(&new.identity, selected, &compared)
    };
    let all: Vec<Difference> = subject.iter().chain(&allowed).cloned().collect();
    let invalid = flaws(&base.runs, &new.runs, !subject.is_empty());
    let mut gates = Vec::new();
    for run in &new.runs {
        gates.extend(gates::check(run, request.gates).map_err(Error::usage)?);
    }
    let answer = compare::compare(&Question {
        base: &base.runs,
        new: &new.runs,
        differences: &all,
        outputs_may_differ: results::explains_outputs(&all),
        metrics: request.metrics.to_vec(),
        threshold: request.threshold,
        assumed_noise: request.assumed_noise,
        earlier: &earlier,
    })
    .map_err(|source| {
        let exit = match invalid.is_empty() {
            true => Exit::Usage,
            false => Exit::Invalid,
        };
        Error::new(exit, "the runs cannot be compared")
            .hint("compare complete runs of one template; `flowbench report` shows what a run has")
            .caused_by(source)
    })?;
    let record = CompareRecord {
        schema: RECORD_SCHEMA,
        verdict: answer.verdict,
        base: base.names(),
        new: new.names(),
        subject,
        allowed,
        flows: answer.flows,
        flows_left_out: answer.flows_left_out,
        metrics: answer.metrics,
        invalid,
        gates,
        outputs: answer.outputs,
    };
    let folder = new.folders.last().cloned().unwrap_or_default();
    Ok(Compared { record, folder })
}

/// What differs between the runs of two sides, by the first of each.
pub(super) fn differing(base: &[MeasuredRun], new: &[MeasuredRun]) -> Vec<Difference> {
    let first = |runs: &[MeasuredRun]| runs.first().map(|run| Identity::of(&run.record));
    match (first(base), first(new)) {
        (Some(base), Some(new)) => base.differences(&new),
        _ => Vec::new(),
    }
}

/// Compares runs whatever differs between them: `differences` are the subject.
///
/// # Errors
/// Exit code 98 if they have nothing in common.
pub(super) fn beside(
    sides: [(&[MeasuredRun], &[PathBuf]); 2],
    differences: Vec<Difference>,
    metric: &Metric,
    threshold: f64,
) -> Result<CompareRecord> {
    let [(base, base_folders), (new, new_folders)] = sides;
    let answer = compare::compare(&Question {
        base,
        new,
        differences: &differences,
        outputs_may_differ: results::explains_outputs(&differences),
        metrics: vec![metric.clone()],
        threshold,
        assumed_noise: None,
        earlier: &|_| Vec::new(),
    })
    .map_err(|source| {
        Error::new(Exit::Invalid, "the rounds have nothing in common")
            .hint("`flowbench diagnose RUN` says what became of the runs")
            .caused_by(source)
    })?;
    Ok(CompareRecord {
        schema: RECORD_SCHEMA,
        verdict: answer.verdict,
        base: names(base, base_folders),
        new: names(new, new_folders),
        subject: differences,
        allowed: Vec::new(),
        flows: answer.flows,
        flows_left_out: answer.flows_left_out,
        metrics: answer.metrics,
        invalid: Vec::new(),
        gates: Vec::new(),
        outputs: answer.outputs,
    })
}

fn names(runs: &[MeasuredRun], folders: &[PathBuf]) -> Vec<RunName> {
    let name = |(run, folder): (&MeasuredRun, &PathBuf)| RunName {
        run_id: run.record.run_id.clone(),
        folder: folder.display().to_string(),
        started_at: run.record.started_at.clone(),
    };
    runs.iter().zip(folders).map(name).collect()
}

/// The folders of the baseline; `history:N` is resolved for the new runs.
fn base_folders(request: &Request, history: &History, new: &Side) -> Result<Vec<PathBuf>> {
    let Some(count) = request.base.strip_prefix("history:") else {
        return runs::resolve(request.base, request.out);
    };
    let count = count.parse().ok().filter(|count: &usize| *count > 0);
    let count = count.ok_or_else(|| {
        Error::usage(format!("{}: not a number of runs", request.base))
            .hint("history:5 is the last five comparable runs, or as many as there are")
    })?;
    history.last(count, &new.identity, &new.runs, request.out)
}

/// Why the new runs must not be judged by. `explained`: the sides differ in something.
fn flaws(base: &[MeasuredRun], new: &[MeasuredRun], explained: bool) -> Vec<Invalid> {
    let of_run = |run: &MeasuredRun| {
        let mut all = validity::invalid(run);
        all.extend(validity::invalid_beside(base, run, explained));
        all
    };
    new.iter().flat_map(of_run).collect()
}
