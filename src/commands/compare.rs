//! `flowbench compare`: whether runs differ from a baseline, and why.

use std::path::{Path, PathBuf};

use crate::cli::{CompareArgs, FailOn};
use crate::config::CompareFormat;
use crate::error::{Error, Exit, Result};
use crate::metrics::compare::{self, Earlier, Question, Selected};
use crate::metrics::{self, validity};
use crate::record::RECORD_SCHEMA;
use crate::record::compare::{CompareRecord, Difference, Invalid, MeasuredRun, RunName, Verdict};
use crate::report::{Console, verdicts};
use crate::results::{self, Identity, baselines, history::History, runs};
use crate::session;

pub(super) fn compare(arguments: &CompareArgs, console: &mut Console) -> Result<Exit> {
    let out = arguments.results.folder();
    let new_folders = runs::resolve(&arguments.new, &out)?;
    let new = results::read_all(&new_folders)?;
    let identities = |runs: &[MeasuredRun]| -> Vec<Identity> {
        runs.iter().map(|run| Identity::of(&run.record)).collect()
    };
    let new_identity =
        results::common(&new_folders, &identities(&new), &arguments.allow_different)?;
    let history = History::read(&out)?;
    for note in &history.notes {
        console.warning(&format!("warning: {note}"));
    }
    let base_folders = base_folders(arguments, &history, &new, &new_identity, &out)?;
    let base = results::read_all(&base_folders)?;
    let base_identity = results::common(
        &base_folders,
        &identities(&base),
        &arguments.allow_different,
    )?;
    if let Some(run) = base_folders.iter().find(|run| new_folders.contains(run)) {
        let message = format!("{} is on both sides", run.display());
        return Err(Error::usage(message).hint("name two different runs"));
    }
    let differences = base_identity.differences(&new_identity);
    let (subject, allowed) =
        results::subject(differences, &arguments.subject, &arguments.allow_different)?;

    let compared: Vec<&str> = (base.iter().chain(&new))
        .map(|run| run.record.run_id.as_str())
        .collect();
    let earlier = |selected: &Selected| -> Vec<Earlier> {
        history.earlier(&new_identity, selected, &compared)
    };
    let explained = !subject.is_empty();
    let invalid = flaws(&base, &new, explained);
    let mut gates = Vec::new();
    for run in &new {
        let settings = arguments.gates.resolve(false);
        gates.extend(metrics::gates::check(run, &settings).map_err(Error::usage)?);
    }
    let all: Vec<Difference> = subject.iter().chain(&allowed).cloned().collect();
    let answer = compare::compare(&Question {
        base: &base,
        new: &new,
        differences: &all,
        outputs_may_differ: results::explains_outputs(&all),
        metrics: arguments.metric.clone(),
        threshold: arguments.threshold,
        assumed_noise: arguments.assume_noise,
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
        base: names(&base, &base_folders),
        new: names(&new, &new_folders),
        subject,
        allowed,
        flows: answer.flows,
        flows_left_out: answer.flows_left_out,
        metrics: answer.metrics,
        invalid,
        gates,
        outputs: answer.outputs,
    };
    show(&record, arguments.output, &new_folders, console)?;
    if let Some(error) = session::failure(&record.invalid, &record.gates) {
        return Err(error);
    }
    let exit = exit(record.verdict, arguments);
    if let (Some(name), Exit::Done) = (&arguments.save_baseline, exit) {
        let ids: Vec<String> = record.new.iter().map(|run| run.run_id.clone()).collect();
        baselines::save(&out, name, &ids)?;
        console.progress(&format!("Baseline {name}: {}", ids.join(", ")));
    }
    Ok(exit)
}

/// Why the new runs must not be judged by.
fn flaws(base: &[MeasuredRun], new: &[MeasuredRun], explained: bool) -> Vec<Invalid> {
    let of_run = |run: &MeasuredRun| {
        let mut all = validity::invalid(run);
        all.extend(validity::invalid_beside(base, run, explained));
        all
    };
    new.iter().flat_map(of_run).collect()
}

/// The folders of the baseline; `history:N` is resolved for the new runs.
fn base_folders(
    arguments: &CompareArgs,
    history: &History,
    new: &[MeasuredRun],
    identity: &Identity,
    out: &Path,
) -> Result<Vec<PathBuf>> {
    let Some(count) = arguments.base.strip_prefix("history:") else {
        return runs::resolve(&arguments.base, out);
    };
    let count: usize = count
        .parse()
        .ok()
        .filter(|count| *count > 0)
        .ok_or_else(|| {
            Error::usage(format!("{}: not a number of runs", arguments.base))
                .hint("history:5 is the last five comparable runs, or as many as there are")
        })?;
    history.last(count, identity, new, out)
}

fn names(runs: &[MeasuredRun], folders: &[PathBuf]) -> Vec<RunName> {
    let name = |(run, folder): (&MeasuredRun, &PathBuf)| RunName {
        run_id: run.record.run_id.clone(),
        folder: folder.display().to_string(),
        started_at: run.record.started_at.clone(),
    };
    runs.iter().zip(folders).map(name).collect()
}

fn show(
    record: &CompareRecord,
    format: CompareFormat,
    new: &[PathBuf],
    console: &mut Console,
) -> Result<()> {
    match format {
        CompareFormat::Text => {
            for line in verdicts::lines(record) {
                console.result(&line)?;
            }
        }
        CompareFormat::Md => console.result(&verdicts::markdown(record))?,
        CompareFormat::Json => {
            console.result(&serde_json::to_string_pretty(record).unwrap_or_default())?;
        }
        CompareFormat::Html => {
            let folder = new.last().map(PathBuf::as_path).unwrap_or(Path::new(""));
            let file = folder.join("compare.html");
            results::replace(&file, verdicts::html(record)?.as_bytes())?;
            console.result(&file.display().to_string())?;
        }
    }
    Ok(())
}

fn exit(verdict: Verdict, arguments: &CompareArgs) -> Exit {
    match verdict {
        Verdict::Regressed if arguments.fail_on == FailOn::Regression => Exit::Gate,
        Verdict::NoVerdict if arguments.require_verdict => Exit::Invalid,
        _ => Exit::Done,
    }
}
