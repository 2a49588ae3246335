//! Where the time of a run went. `docs/profiling.md` explains measurement and terms.

use serde::{Deserialize, Serialize};

/// The profile of a run (`--profile`).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Profile {
    /// Wall time from the start of the profile to its last reading, in seconds.
    pub wall_s: f64,
    /// Spans that were called, by decreasing `ttot_s`.
    pub rows: Vec<ProfileRow>,
    /// By decreasing `split_s`.
    pub stages: Vec<StageShare>,
    /// Wall time in which no stage was open, in seconds. With the stages' `split_s` it adds up to `wall_s`.
    pub idle_s: f64,
    /// Events beyond the limit of the trace. Rows and stages include them.
    pub spans_dropped: u64,
    /// Device time of the forward passes, if they ran on a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceTimes>,
}

/// All calls of a span. Times are wall seconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProfileRow {
    pub name: String,
    /// Calls that have ended.
    pub ncall: u64,
    /// Calls that were not inside another call of the same span.
    pub nprim: u64,
    /// Time in the span, excluding nested spans.
    pub tsub_s: f64,
    /// Time in the span, including nested spans; outermost calls only.
    pub ttot_s: f64,
    /// `ttot_s` / `ncall`.
    pub tavg_s: f64,
}

/// A stage's share of the wall time. Times are seconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StageShare {
    /// Name of a span.
    pub name: String,
    /// Calls that have begun.
    pub calls: u64,
    /// Time in which it was open at least once.
    pub union_s: f64,
    /// Time in which no other stage was open: an upper bound on what removing it could save.
    pub exposed_s: f64,
    /// Time in which it was open, divided equally among the stages open at the same time.
    pub split_s: f64,
}

/// Times on a GPU, from events in its stream.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeviceTimes {
    /// Name of the card.
    pub name: String,
    pub phases: Vec<DevicePhase>,
}

/// The passes of a phase. Times are seconds of the device.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DevicePhase {
    /// `prefill`: passes that compute prompt tokens. `decode`: all others.
    pub phase: String,
    pub passes: u64,
    /// Time of all passes.
    pub total_s: f64,
    /// Passes whose kernels were timed one by one: all of `prefill`, and every 16th of `decode`.
    pub timed_passes: u64,
    /// Time of those.
    pub timed_s: f64,
    /// Kernels of the timed passes, by decreasing `ttot_s`.
    pub kernels: Vec<DeviceKernel>,
}

/// All launches of a kind in the timed passes.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeviceKernel {
    /// Name of a span.
    pub name: String,
    pub ncall: u64,
    pub ttot_s: f64,
    /// `ttot_s` / `ncall`.
    pub tavg_s: f64,
    /// Share of the time of all kernels.
    pub share: f64,
}
