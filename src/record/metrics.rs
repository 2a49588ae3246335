//! Distributions of values, and critical paths.

use serde::{Deserialize, Serialize};

use super::TokenCounts;
use crate::units::Millis;

/// The distribution of a quantity, as far as the number of values supports it. The unit is that of the field
/// that holds it (`…_ms`, `…_per_s`).
///
/// A quantile q is interpolated linearly between the sorted values `x[⌊h⌋]` and `x[⌊h⌋ + 1]`, h = (n − 1) q,
/// counted from 0 (definition 7 of R. J. Hyndman, Y. Fan, *Sample Quantiles in Statistical Packages*,
/// 1996). It is given from 1 / (1 − q) values on.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Distribution {
    /// Number of values, n.
    pub count: usize,
    pub mean: f64,
    /// Standard deviation with n − 1: √(Σ (x − mean)² / (n − 1)); `null` below 2 values.
    pub deviation: Option<f64>,
    pub min: f64,
    /// The middle value, or the mean of the two middle ones; `null` below 3 values.
    pub median: Option<f64>,
    /// Covers the true median with a probability of at least 95 %; `null` below 6 values, which do not allow
    /// such an interval.
    pub median_interval: Option<Interval>,
    /// The 90th percentile; `null` below 10 values.
    pub p90: Option<f64>,
    /// The 95th percentile; `null` below 20 values.
    pub p95: Option<f64>,
    /// The 99th percentile; `null` below 100 values.
    pub p99: Option<f64>,
    pub max: f64,
}

/// A distribution-free confidence interval of the median: the k-th smallest and the k-th largest value, with
/// the largest k whose coverage is at least 0.95.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Interval {
    pub low: f64,
    pub high: f64,
    /// Probability of covering the median: 1 − 2 · P(B < k), B binomial with n and ½.
    pub coverage: f64,
}

/// All steps with one id, over all flows.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PositionRecord {
    /// The step's id.
    pub step: String,
    /// `MODE=both` only: the mode, with all of its rounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Steps that ended well.
    pub steps: usize,
    #[serde(flatten, with = "super::tokens::without_drafts")]
    #[cfg_attr(test, schemars(with = "super::tokens::without_drafts::Layout"))]
    pub tokens: TokenCounts,
    pub latency_ms: Option<Distribution>,
    pub queue_ms: Option<Distribution>,
    pub ttft_ms: Option<Distribution>,
    pub tpot_ms: Option<Distribution>,
    /// `gaps_ms` of all steps.
    pub itl_ms: Option<Distribution>,
    pub prefill_tokens_per_s: Option<Distribution>,
    pub decode_tokens_per_s: Option<Distribution>,
}

/// A step on the critical path: the chain of steps, each waiting for the previous one, that ends with the step
/// that ended last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CriticalStep {
    /// The step's id.
    pub step: String,
    /// From the end of the previous step on the path (for the first, the start of the flow) to its own end.
    /// These add up to `workflow_ms`.
    pub ms: Millis,
}
