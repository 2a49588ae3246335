//! A run in the formats of other programs, one file each. `docs/exports.md` has a recipe for each format.
//!
//! The names of the metrics, their units and directions are in `metrics` and the same in all formats.

mod bencher;
mod csv;
mod github;
mod junit;
mod metrics;
mod openmetrics;
mod otlp;
mod summary;

use crate::config::ExportFormat;
use crate::error::{Error, Exit, Result};
use crate::record::evaluation::EvolutionRecord;
use crate::record::{RunRecord, Status, StepRecord};

pub use summary::LIMIT as SUMMARY_LIMIT;

/// A run as it was read from its folder.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    pub record: &'a RunRecord,
    pub steps: &'a [StepRecord],
    pub evolutions: &'a [EvolutionRecord],
}

/// The text of `run` in `format`, which ends with a newline. `room` is the number of bytes that a GitHub
/// summary may take.
///
/// # Errors
/// Exit code 2 if the format is for figures and the run has not ended, or its start time is not a time; 4 if
/// there is no figure to export; 110 if a summary has no room.
pub fn export(format: ExportFormat, run: Run<'_>, room: usize) -> Result<String> {
    use ExportFormat as F;
    let figures = matches!(
        format,
        F::GithubBenchmark | F::GithubBenchmarkBigger | F::Bencher | F::Openmetrics
    );
    if figures && run.record.status == Status::Running {
        return Err(
            Error::usage(format!("run {} has not ended, or was killed", run.record.run_id)).hint(
                "its medians would be of the flows that happened to be done; `-o csv` exports the steps \
                 that have ended",
            ),
        );
    }
    let figures = || match run.record.totals.workflows_done {
        0 => Err(no_figure(run.record, "no workflow ended well")),
        _ => Ok(metrics::of(run.record)),
    };
    match format {
        F::Junit => Ok(junit::text(run.record)),
        F::GithubBenchmark => github::text(&figures()?, metrics::Better::Smaller, run.record),
        F::GithubBenchmarkBigger => github::text(&figures()?, metrics::Better::Bigger, run.record),
        F::Bencher => bencher::text(&figures()?, run.record),
        F::Csv => csv::text(run.record, run.steps),
        F::Openmetrics => Ok(openmetrics::text(&metrics::of(run.record), run.record)),
        F::Otlp => otlp::text(run.record, run.steps),
        F::GithubSummary => summary::text(run, room),
    }
}

fn no_figure(run: &RunRecord, why: &str) -> Error {
    let what = format!("nothing to export from run {}: {why}", run.run_id);
    Error::new(Exit::NothingRan, what)
        .hint("`flowbench report -o md` shows what happened; `-o junit` exports failures")
}

/// Pretty JSON with a newline at its end.
///
/// # Errors
/// Exit code 110 if a value cannot be written as JSON, which would be a bug.
fn json(value: &impl serde::Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value);
    let mut text = text.map_err(|source| Error::output("failed to make JSON").caused_by(source))?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests;
