//! `flowbench history`: a metric over the runs of a job.

use std::path::Path;

use crate::cli::HistoryArgs;
use crate::config::HistoryFormat;
use crate::error::{Error, Exit, Result};
use crate::metrics::compare::{self, Metric, Question, Steps};
use crate::metrics::trend;
use crate::record::compare::{Cause, MeasuredRun};
use crate::record::trend::{Level, Trend, TrendRun};
use crate::report::{self, Console};
use crate::results::history::{self, History};
use crate::results::{self, runs};
use crate::units::plural;

/// So many runs on each side of a change explain it.
const BESIDE: usize = 5;

pub(super) fn run(arguments: &HistoryArgs, console: &mut Console) -> Result<Exit> {
    let out = arguments.results.folder();
    let history = History::read(&out)?;
    for note in &history.notes {
        console.warning(&format!("warning: {note}"));
    }
    let mut trend = trend_of(arguments, &history, &out)?;
    explain(&mut trend, &arguments.metric, &out);
    match arguments.output {
        HistoryFormat::Text => {
            for line in report::history::lines(&trend) {
                console.result(&line)?;
            }
        }
        HistoryFormat::Json => {
            console.data(&serde_json::to_string_pretty(&trend).unwrap_or_default())?;
        }
        HistoryFormat::Html => {
            let file = out.join("history.html");
            results::replace(&file, report::history::html(&trend)?.as_bytes())?;
            console.result(&file.display().to_string())?;
        }
    }
    if let Some(keep) = arguments.prune {
        let removed = runs::prune(&out, keep)?;
        console.progress(&format!("Removed {}", plural(removed, "run folder")));
    }
    Ok(Exit::Done)
}

/// The runs of the job that was asked for, oldest first.
fn trend_of(arguments: &HistoryArgs, history: &History, out: &Path) -> Result<Trend> {
    let empty = || {
        Error::usage(format!("the history in {} has no such run", out.display()))
            .hint("every run that ends is added to it; OUT (--out) names its folder")
    };
    let example = match &arguments.run {
        None => history.runs.last(),
        Some(name) => {
            let folders = runs::resolve(name, out)?;
            let id = folders.first().and_then(|folder| folder.file_name());
            let id = id.map(|id| id.to_string_lossy().into_owned());
            history
                .runs
                .iter()
                .rfind(|run| Some(&run.run_id) == id.as_ref())
        }
    };
    let example = example.ok_or_else(empty)?;
    let step = match &arguments.metric.steps {
        Steps::All => None,
        Steps::One(step) => Some(step.clone()),
        Steps::Each => {
            return Err(Error::usage("one step can be shown at a time")
                .hint("name it: --metric latency_ms:planner"));
        }
    };
    let metric = arguments.metric.quantity.name();
    let column = step.as_deref().unwrap_or(history::ALL_STEPS);
    let of_job = history.runs.iter().filter(|run| run.job == example.job);
    let mut shown: Vec<TrendRun> = of_job
        .filter(|run| run.machine == example.machine)
        .map(|run| TrendRun {
            run_id: run.run_id.clone(),
            started_at: run.started_at.clone(),
            status: run.status,
            revision: run.revision.clone(),
            labels: run.labels.clone(),
            flows: run.flows,
            value: (run.metrics.get(metric)).and_then(|steps| Some(steps.get(column)?.mean)),
            invalid: run.invalid.clone(),
            kept: out.join(&run.folder).join("run.json").is_file(),
        })
        .collect();
    let other_runs = history.runs.len() - shown.len();
    let wanted = arguments.last.min(trend::LONGEST);
    let earlier_runs = shown.len().saturating_sub(wanted);
    shown.drain(..earlier_runs);
    Ok(Trend {
        metric: metric.to_owned(),
        step,
        template: example.template.clone(),
        mode: example.mode.clone(),
        levels: trend::levels(&shown),
        runs: shown,
        other_runs,
        earlier_runs,
    })
}

/// Says of each change what differs and, where the runs are still there, which parts it has.
fn explain(trend: &mut Trend, metric: &Metric, out: &Path) {
    let Trend { runs, levels, .. } = trend;
    for index in 1..levels.len() {
        let (before, after) = (levels[index - 1].last, levels[index].first);
        levels[index].differs = trend::differs(&runs[before], &runs[after]);
        let of_level = |level: &Level| -> Vec<usize> {
            let range = level.first..=level.last;
            range.filter(|run| runs[*run].invalid.is_empty()).collect()
        };
        let base = of_level(&levels[index - 1]);
        let base = &base[base.len().saturating_sub(BESIDE)..];
        let new = of_level(&levels[index]);
        let new = &new[..new.len().min(BESIDE)];
        levels[index].causes = causes(runs, base, new, metric, out).unwrap_or_default();
    }
}

/// The parts of a change; `None` if the runs are no longer there.
fn causes(
    runs: &[TrendRun],
    base: &[usize],
    new: &[usize],
    metric: &Metric,
    out: &Path,
) -> Option<Vec<Cause>> {
    let read = |indices: &[usize]| -> Option<Vec<MeasuredRun>> {
        let read = |index: &usize| results::read_measured(&out.join(&runs[*index].run_id)).ok();
        indices.iter().map(read).collect()
    };
    let (base, new) = (read(base)?, read(new)?);
    let question = Question {
        base: &base,
        new: &new,
        differences: &[],
        outputs_may_differ: true,
        metrics: vec![metric.clone()],
        threshold: 0.03,
        assumed_noise: None,
        earlier: &|_| Vec::new(),
    };
    let answer = compare::compare(&question).ok()?;
    let mut causes = answer.metrics.into_iter().next()?.causes;
    causes.truncate(3);
    Some(causes)
}
