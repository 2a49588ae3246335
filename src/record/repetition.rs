//! Runs that repeat a job on one engine.

use serde::{Deserialize, Serialize};

/// A run that is one of several of the same job, made by one process (`--repetitions`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Repetition {
    /// From 1. The engine was started for the first one.
    pub number: usize,
    pub of: usize,
    /// Run ID of the first one: what the repetitions have in common.
    pub calibration: String,
}
