//! A metric over the runs of a job, from the history, with the causes of its changes.

use std::path::Path;

use crate::error::{Error, Result};
use crate::metrics::compare::{self, Metric, Question, Steps};
use crate::metrics::trend;
use crate::record::compare::{Cause, MeasuredRun};
use crate::record::trend::{Level, Trend, TrendRun};
use crate::report::Console;
use crate::results::history::{self, History};
use crate::results::{self, runs};

/// So many runs on each side of a change explain it.
const BESIDE: usize = 5;

/// What is asked.
pub(crate) struct TrendRequest<'a> {
    /// Folder of results.
    pub(crate) out: &'a Path,
    pub(crate) metric: &'a Metric,
    /// So many runs, the latest.
    pub(crate) last: usize,
    /// A run of the job; by default the latest of all.
    pub(crate) run: Option<&'a str>,
}

/// The runs of a job on a machine, their levels, and why these changed.
///
/// # Errors
/// Exit code 2 if the history cannot be read, or has no such run.
pub(crate) fn trend(request: &TrendRequest, console: &mut Console) -> Result<Trend> {
    let history = History::read(request.out)?;
    for note in &history.notes {
        console.warning(&format!("warning: {note}"));
    }
    let mut trend = runs_of_job(request, &history)?;
    explain(&mut trend, request.metric, request.out);
    Ok(trend)
}

/// The runs of the job that was asked for, oldest first.
fn runs_of_job(request: &TrendRequest, history: &History) -> Result<Trend> {
    let out = request.out;
    let empty = || {
        Error::usage(format!("the history in {} has no such run", out.display()))
            .hint("every run that ends is added to it; OUT (--out) names its folder")
    };
    let example = match request.run {
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
    let step = match &request.metric.steps {
        Steps::All => None,
        Steps::One(step) => Some(step.clone()),
        Steps::Each => {
            return Err(Error::usage("one step can be shown at a time")
                .hint("name it: --metric latency_ms:planner"));
        }
    };
    let metric = request.metric.quantity.name();
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
    let wanted = request.last.min(trend::LONGEST);
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
