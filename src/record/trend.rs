//! `flowbench history`: a metric over the runs of a job.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Status;
use super::compare::Cause;

/// `history -o json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trend {
    /// Such as `workflow_ms`.
    pub metric: String,
    pub step: Option<String>,
    pub template: String,
    pub mode: String,
    /// Oldest first.
    pub runs: Vec<TrendRun>,
    /// Stretches of valid runs between changes.
    pub levels: Vec<Level>,
    /// Runs of other jobs or machines that are not shown.
    pub other_runs: usize,
    /// Earlier runs of this job that are not shown.
    pub earlier_runs: usize,
}

/// A run of a trend.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrendRun {
    pub run_id: String,
    pub started_at: String,
    pub status: Status,
    pub revision: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub flows: usize,
    /// Geometric mean; `null` if the run does not have the metric.
    pub value: Option<f64>,
    /// Why the run does not count.
    pub invalid: Vec<String>,
    /// Whether the run's folder is still there.
    pub kept: bool,
}

/// Runs between two changes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Level {
    /// Index of the first run.
    pub first: usize,
    /// Index of the last run.
    pub last: usize,
    /// Geometric mean of its valid runs.
    pub mean: f64,
    /// Standard deviation of the logarithms of its runs; `null` below two.
    pub deviation: Option<f64>,
    /// `mean` / that of the level before − 1; `null` for the first.
    pub change: Option<f64>,
    /// The largest parts of that change, if the runs around it are still there.
    pub causes: Vec<Cause>,
    /// What differs between the runs before and after: revisions and labels.
    pub differs: Vec<String>,
}
