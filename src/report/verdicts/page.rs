//! A comparison as a self-contained HTML page.

use serde_json::{Value, json};

use super::markdown::title;
use super::{explanation, figure, gate_line, noise, percent, plain_percent, shown};
use crate::error::Result;
use crate::record::compare::{CompareRecord, Difference, MetricVerdict, RunName, Verdict};
use crate::report::html::render;
use crate::units::plural;

/// Renders the page.
///
/// # Errors
/// Exit code 110 if the template fails to render, which would be a bug.
pub fn html(record: &CompareRecord) -> Result<String> {
    let values = json!({
        "verdict": record.verdict.as_str(),
        "class": class(record.verdict),
        "base": runs(&record.base),
        "new": runs(&record.new),
        "base_title": plural(record.base.len(), "run"),
        "new_title": plural(record.new.len(), "run"),
        "flows": plural(record.flows, "flow"),
        "left_out": record.flows_left_out,
        "subject": facts(&record.subject),
        "allowed": facts(&record.allowed),
        "metrics": record.metrics.iter().map(metric).collect::<Vec<Value>>(),
        "outputs": record.outputs,
        "invalid": record.invalid,
        "gates": record.gates.iter().map(gate_line).collect::<Vec<String>>(),
        "version": env!("CARGO_PKG_VERSION"),
    });
    render(include_str!("page.html"), &values)
}

fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Regressed => "bad",
        Verdict::Improved | Verdict::Pass => "good",
        Verdict::NoVerdict => "warn",
    }
}

fn runs(runs: &[RunName]) -> Vec<&str> {
    runs.iter().map(|run| run.run_id.as_str()).collect()
}

fn facts(facts: &[Difference]) -> Vec<Value> {
    let fact = |fact: &Difference| json!({"name": fact.name, "base": fact.base, "new": fact.new});
    facts.iter().map(fact).collect()
}

fn metric(metric: &MetricVerdict) -> Value {
    let (causes, rest) = shown(metric);
    let largest = causes.iter().map(|cause| cause.part.abs());
    let largest = largest.fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let causes: Vec<Value> = (causes.iter())
        .map(|cause| {
            json!({
                "part": percent(cause.part),
                "step": cause.step,
                "term": cause.term,
                "from": figure(cause.from),
                "to": figure(cause.to),
                "why": cause.why,
                "width": cause.part.abs() / largest * 100.0,
                "class": if cause.part > 0.0 { "more" } else { "less" },
            })
        })
        .collect();
    json!({
        "title": title(metric),
        "verdict": metric.verdict.as_str(),
        "class": class(metric.verdict),
        "explanation": explanation(metric),
        "base": figure(metric.base),
        "new": figure(metric.new),
        "change": percent(metric.change),
        "median": percent(metric.change_median),
        "scatter": metric.scatter.map(plain_percent),
        "visible": metric.smallest_visible.map(plain_percent),
        "interval": metric.interval.map(|range| {
            format!("{} to {}", percent(range.low), percent(range.high))
        }),
        "coverage": metric.interval.map(|range| plain_percent(range.coverage)),
        "noise": noise(&metric.noise),
        "at_equal_tokens": metric.at_equal_tokens,
        "picture": picture(metric),
        "causes": causes,
        "rest": rest.map(percent),
    })
}

/// Places on a line from the left (0) to the right (100): the interval, the change, 0 and the threshold.
fn picture(metric: &MetricVerdict) -> Option<Value> {
    let interval = metric.interval?;
    let ends = [interval.low, interval.high, metric.threshold, metric.change];
    let reach = ends
        .iter()
        .fold(0.0, |reach: f64, end| reach.max(end.abs()))
        * 1.15;
    let place = |share: f64| 50.0 + share / reach * 50.0;
    Some(json!({
        "low": place(interval.low),
        "width": place(interval.high) - place(interval.low),
        "change": place(metric.change),
        "threshold_low": place(-metric.threshold),
        "threshold_width": 2.0 * (place(metric.threshold) - 50.0),
        "left": percent(-reach),
        "right": percent(reach),
    }))
}
