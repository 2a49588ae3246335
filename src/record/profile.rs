//! Where the time of a run went, as `run.json` keeps it. How it is measured, and what the words
//! mean, is in `docs/profiling.md`.

use serde::{Deserialize, Serialize};

/// The profile of a run (`--profile`).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Profile {
    /// Wall time from the start of the profile to its last reading, in seconds.
    pub wall_s: f64,
    /// A row a span that was called, by `ttot_s`, the largest first.
    pub rows: Vec<ProfileRow>,
    /// The stages, by `split_s`, the largest first.
    pub stages: Vec<StageShare>,
    /// Wall time in which no stage was open, in seconds. The stages' `split_s` and this add up to
    /// `wall_s`.
    pub idle_s: f64,
    /// Events that the trace has left out, since there were too many. Rows and stages miss
    /// nothing.
    pub spans_dropped: u64,
}

/// The calls of a span. Times are wall seconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProfileRow {
    /// The span.
    pub name: String,
    /// Calls that have ended.
    pub ncall: u64,
    /// Those of them that were not inside another call of the same span.
    pub nprim: u64,
    /// Time in the span less the time in the spans inside it.
    pub tsub_s: f64,
    /// Time in the span, of its outermost calls.
    pub ttot_s: f64,
    /// `ttot_s` / `ncall`.
    pub tavg_s: f64,
}

/// A stage's part in the wall time. Times are seconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StageShare {
    /// The stage: the name of a span.
    pub name: String,
    /// Calls that have begun.
    pub calls: u64,
    /// Time in which it was open, however many times at once.
    pub union_s: f64,
    /// Time in which it alone was at work: the most that doing away with it could save.
    pub exposed_s: f64,
    /// Its equal share of the time in which it was at work beside others.
    pub split_s: f64,
}
