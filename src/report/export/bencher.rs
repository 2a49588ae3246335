//! Bencher Metric Format: benchmark → measure → value with bounds
//! (<https://bencher.dev/docs/reference/bencher-metric-format>).

use std::collections::BTreeMap;

use serde::Serialize;

use super::json;
use super::metrics::Figure;
use crate::error::Result;
use crate::record::RunRecord;

/// A measure of a benchmark.
#[derive(Debug, Serialize)]
struct Measure {
    value: f64,
    /// Of the 95 % interval of the median, which takes 6 values; absent below.
    #[serde(skip_serializing_if = "Option::is_none")]
    lower_value: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upper_value: Option<f64>,
}

/// # Errors
/// As [`json`].
pub(super) fn text(figures: &[Figure<'_>], run: &RunRecord) -> Result<String> {
    let mut benchmarks: BTreeMap<String, BTreeMap<&str, Measure>> = BTreeMap::new();
    for figure in figures {
        let interval = figure.spread().and_then(|spread| spread.median_interval);
        let measure = Measure {
            value: figure.value(),
            lower_value: interval.map(|interval| interval.low),
            upper_value: interval.map(|interval| interval.high),
        };
        let benchmark = benchmarks.entry(figure.subject(&run.expansion.template));
        benchmark.or_default().insert(figure.metric.name, measure);
    }
    json(&benchmarks)
}
