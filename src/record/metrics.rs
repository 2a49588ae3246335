//! How values are spread, and what made a flow long.

use serde::{Deserialize, Serialize};

use super::TokenCounts;
use crate::units::Millis;

/// How the values of a quantity are spread, and no more about it than their number supports. The
/// unit is that of the field that holds it (`…_ms`, `…_per_s`).
///
/// A quantile q lies between the sorted values `x[⌊h⌋]` and `x[⌊h⌋ + 1]`, h = (n − 1) q, counted
/// from 0, in proportion (definition 7 of R. J. Hyndman, Y. Fan, *Sample Quantiles in Statistical
/// Packages*, 1996). It is told where 1 / (1 − q) values are there.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Distribution {
    /// How many values, n.
    pub count: usize,
    /// Their sum / n.
    pub mean: f64,
    /// Standard deviation with n − 1: √(Σ (x − mean)² / (n − 1)); `null` below 2 values.
    pub deviation: Option<f64>,
    /// The smallest.
    pub min: f64,
    /// The middle value, or the mean of the two middle ones; `null` below 3 values.
    pub median: Option<f64>,
    /// Where the true median lies with a probability of 95 % or more; `null` below 6 values, with
    /// which no two of them bound it so well.
    pub median_interval: Option<Interval>,
    /// The 90th percentile; `null` below 10 values.
    pub p90: Option<f64>,
    /// The 95th percentile; `null` below 20 values.
    pub p95: Option<f64>,
    /// The 99th percentile; `null` below 100 values.
    pub p99: Option<f64>,
    /// The largest.
    pub max: f64,
}

/// Two of the values that bound the true median, whatever its distribution: the k-th from below and
/// the k-th from above, with the largest k of which the coverage is at least 0.95.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Interval {
    /// The lower one.
    pub low: f64,
    /// The upper one.
    pub high: f64,
    /// The probability that they do: 1 − 2 · P(B < k), B binomial with n and ½.
    pub coverage: f64,
}

/// All steps with one id: the same place in every flow.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PositionRecord {
    /// The step's id.
    pub step: String,
    /// Of `MODE=both` only: the mode; its rounds are together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Steps that ended well.
    pub steps: usize,
    #[serde(flatten, with = "super::tokens::without_drafts")]
    #[cfg_attr(test, schemars(with = "super::tokens::without_drafts::Layout"))]
    pub tokens: TokenCounts,
    /// Of the steps' `latency_ms`.
    pub latency_ms: Option<Distribution>,
    /// Of the steps' `queue_ms`.
    pub queue_ms: Option<Distribution>,
    /// Of the steps' `ttft_ms`.
    pub ttft_ms: Option<Distribution>,
    /// Of the steps' `tpot_ms`.
    pub tpot_ms: Option<Distribution>,
    /// Of the steps' `gaps_ms`, all together.
    pub itl_ms: Option<Distribution>,
    /// Of the steps' `prefill_tokens_per_s`.
    pub prefill_tokens_per_s: Option<Distribution>,
    /// Of the steps' `decode_tokens_per_s`.
    pub decode_tokens_per_s: Option<Distribution>,
}

/// A step on the critical path of its flow: the chain of steps, each of which waited for the one
/// before it, that ends with the step that ended last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CriticalStep {
    /// The step's id.
    pub step: String,
    /// From the end of the step before it on the path (the start of the flow for the first) to its
    /// own end. These add up to `workflow_ms`.
    pub ms: Millis,
}
