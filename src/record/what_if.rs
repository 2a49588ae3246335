//! `flowbench diagnose --what-if`: predictions from a recorded run.

use serde::Serialize;

/// Version of the layout of [`WhatIfRecord`].
pub const WHAT_IF_SCHEMA: u32 = 1;

/// What a run would have taken under other settings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WhatIfRecord {
    /// [`WHAT_IF_SCHEMA`].
    pub schema: u32,
    /// The recorded run.
    pub run_id: String,
    /// The settings, as given: `concurrency=8,prefix_cache=on`.
    pub what_if: String,
    pub quantities: Vec<Predicted>,
    /// `benchmark_total_ms` of a replay with the settings of the run, over the measured one, less 1. Predictions
    /// are corrected by that ratio.
    pub replay_error: f64,
    /// Forward passes of the run, or streams of requests to a server, to which costs were fitted.
    pub fitted: usize,
    /// The same prediction for other runs of the job, which measured what it predicts.
    pub checks: Vec<HeldOut>,
    /// What was assumed.
    pub notes: Vec<String>,
}

/// A quantity, recorded and predicted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Predicted {
    /// `benchmark_total_ms`; means of `workflow_ms`, `ttft_ms`, `tpot_ms`, `latency_ms`.
    pub quantity: String,
    /// `latency_ms` only: the step's id, without a generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Milliseconds.
    pub recorded: f64,
    /// Milliseconds.
    pub predicted: f64,
    /// `predicted / recorded - 1`.
    pub change: f64,
}

/// A run with other settings, predicted from the recorded one and compared with what it measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HeldOut {
    pub run_id: String,
    /// How its settings differ from those of the recorded run.
    pub what_if: String,
    /// `benchmark_total_ms`.
    pub predicted: f64,
    pub measured: f64,
    /// `predicted / measured - 1`.
    pub error: f64,
}
