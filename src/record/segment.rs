//! Segments: the parts of a run that was interrupted and resumed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::units::Millis;

/// A part of a run, from the start of a process to its end. `run --resume RUN` adds one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Segment {
    /// UTC, RFC 3339.
    pub started_at: String,
    /// UTC, RFC 3339; `null` while the segment is in progress, and if its process was killed.
    pub ended_at: Option<String>,
    pub end: SegmentEnd,
    /// Steps of earlier segments that were kept.
    pub steps_kept: usize,
    /// Steps of earlier segments that were removed from `steps.jsonl` and run again: those of an unfinished
    /// round of `MODE=both`, and requests of a judge without the request in the other order.
    pub steps_dropped: usize,
    /// As in `Totals`, for this segment alone. If its process was killed: until its last step ended.
    pub benchmark_total_ms: Option<Millis>,
    /// What differs from the run's first segment: facts of the environment, the engine and the settings, by
    /// name (`environment.cpu`), with the values of this segment. Settings of the job cannot differ, except
    /// for the limits.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub differs: BTreeMap<String, serde_json::Value>,
}

/// How a segment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum SegmentEnd {
    /// In progress, or its process was killed and the run has not been resumed.
    Running,
    /// Every flow ended, well or with an error.
    Ended,
    /// A signal (Ctrl-C, SIGTERM, SIGHUP).
    Interrupted,
    /// A limit was reached (`--deadline`, `--max-tokens-total`, `--max-cost`).
    Limit,
    /// The engine failed, or an output could not be written.
    Error,
    /// The process was killed.
    Killed,
}

impl Segment {
    /// A segment that starts at `started_at`.
    pub fn starting(started_at: String) -> Self {
        Self {
            started_at,
            ended_at: None,
            end: SegmentEnd::Running,
            steps_kept: 0,
            steps_dropped: 0,
            benchmark_total_ms: None,
            differs: BTreeMap::new(),
        }
    }
}
