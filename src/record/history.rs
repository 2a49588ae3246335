//! `history.jsonl` in the folder of results: a line for each run that ended.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Status;

/// A run in the history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HistoryRecord {
    /// `RECORD_SCHEMA`.
    pub schema: u32,
    pub run_id: String,
    /// The run's folder, relative to that of the history if it is below it.
    pub folder: String,
    /// UTC, RFC 3339.
    pub started_at: String,
    pub status: Status,
    /// Digest of what was measured: runs of one job have it in common.
    pub job: String,
    /// Digest of where: runs of one machine have it in common.
    pub machine: String,
    /// Git revision of the checkout.
    #[serde(default)]
    pub revision: Option<String>,
    /// The template's name.
    pub template: String,
    pub mode: String,
    /// Flows that ended well.
    pub flows: usize,
    /// Runs of one calibration have its name in common: nothing changed between them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
    /// `--label`, and `commit` from `GITHUB_SHA`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Why the run's figures must not be used; empty if they may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub invalid: Vec<String>,
    /// By metric and step; `*` is all steps.
    pub metrics: BTreeMap<String, BTreeMap<String, HistoryMetric>>,
}

/// A metric of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HistoryMetric {
    /// Geometric mean over the flows, as comparisons use it.
    pub mean: f64,
    pub median: f64,
    /// Standard deviation of the logarithms over flows; `null` below two.
    pub scatter: Option<f64>,
}
