//! Shows a comparison: as lines, Markdown, and a page.

mod markdown;
mod page;
#[cfg(test)]
mod tests;

use crate::record::compare::{
    Cause, CompareRecord, Difference, GateResult, Invalid, MetricVerdict, Noise, Verdict,
};
use crate::units::plural;

pub use markdown::markdown;
pub use page::html;

/// Coverage of an interval that stands alone, with a margin for its digits.
const ALONE: f64 = 0.95001;

/// Causes below this share of the baseline are put together.
const SMALLEST_CAUSE: f64 = 0.0005;

/// `[VERDICT] verdict=… metric=… change=… interval=…` for each metric, each followed by its
/// `[CAUSE] part=… step=… term=… from=… to=… why="…"`, and `[OUTPUTS] step=… differing=… of=…` for each step
/// whose outputs changed.
pub fn lines(record: &CompareRecord) -> Vec<String> {
    let mut lines = Vec::new();
    for metric in &record.metrics {
        lines.push(verdict_line(record, metric));
        let (shown, rest) = shown(metric);
        lines.extend(shown.into_iter().map(cause_line));
        if let Some(rest) = rest {
            lines.push(format!("[CAUSE] part={} step=* term=rest", percent(rest)));
        }
    }
    lines.extend(record.invalid.iter().map(invalid_line));
    lines.extend(record.gates.iter().map(gate_line));
    for outputs in &record.outputs {
        let unstable = match outputs.unstable {
            0 => String::new(),
            unstable => format!(" unstable={unstable}"),
        };
        lines.push(format!(
            "[OUTPUTS] step={} differing={} of={}{unstable}",
            outputs.step, outputs.differing, outputs.compared
        ));
    }
    lines
}

/// `[INVALID] reason=… run=… detail="…"`
pub fn invalid_line(invalid: &Invalid) -> String {
    format!(
        "[INVALID] reason={} run={} detail={:?}",
        invalid.reason, invalid.run_id, invalid.detail
    )
}

/// `[GATE] gate=max limit=ttft_ms:200 value=… passed=yes`
pub fn gate_line(gate: &GateResult) -> String {
    let passed = if gate.passed { "yes" } else { "no" };
    let value = match gate.gate.as_str() {
        "goodput" => format!("{:.1}%", gate.value * 100.0),
        _ => figure(gate.value),
    };
    let GateResult { gate, limit, .. } = gate;
    format!("[GATE] gate={gate} limit={limit} value={value} passed={passed}")
}

/// `[ROUND] round=… change=… mean=… interval=…`, from logarithms.
pub fn round_line(round: usize, change: f64, mean: f64, half_width: f64) -> String {
    let [change, middle] = [change, mean].map(|log| percent(log.exp_m1()));
    let interval = if half_width.is_finite() {
        let ends = [mean - half_width, mean + half_width].map(|log| percent(log.exp_m1()));
        ends.join("..")
    } else {
        "unknown".to_owned()
    };
    format!("[ROUND] round={round} change={change} mean={middle} interval={interval}")
}

/// `[NOISE] metric=… runs=… deviation=… smallest_visible=…`
pub fn noise_line(metric: &str, runs: usize, deviation: f64, visible: f64) -> String {
    let [deviation, visible] = [deviation, visible].map(plain_percent);
    format!("[NOISE] metric={metric} runs={runs} deviation={deviation} smallest_visible={visible}")
}

fn verdict_line(record: &CompareRecord, metric: &MetricVerdict) -> String {
    let mut line = format!(
        "[VERDICT] verdict={} metric={}",
        metric.verdict.as_str(),
        metric.metric
    );
    let mut add = |key: &str, value: &str| line.push_str(&format!(" {key}={value}"));
    if let Some(step) = &metric.step {
        add("step", step);
    }
    add("change", &percent(metric.change));
    match metric.interval {
        Some(interval) => {
            let range = format!("{}..{}", percent(interval.low), percent(interval.high));
            add("interval", &range);
            // Holm's method widens the intervals of several metrics.
            if interval.coverage > ALONE {
                add("coverage", &plain_percent(interval.coverage));
            }
        }
        None => add("interval", "unknown"),
    }
    match metric.smallest_visible {
        Some(share) => add("smallest_visible", &plain_percent(share)),
        None => add("smallest_visible", "unknown"),
    }
    add("threshold", &plain_percent(metric.threshold));
    add("baseline_runs", &record.base.len().to_string());
    add("runs", &record.new.len().to_string());
    add("noise", &metric.noise.source);
    if metric.at_equal_tokens {
        add("judged", "at_equal_tokens");
    }
    if !record.subject.is_empty() {
        add("subject", &names(&record.subject));
    }
    if !record.allowed.is_empty() {
        add("different", &names(&record.allowed));
    }
    if let Some(runs) = metric.more_runs {
        add("more_runs", &runs.to_string());
    }
    line
}

fn cause_line(cause: &Cause) -> String {
    format!(
        "[CAUSE] part={} step={} term={} from={} to={} why={:?}",
        percent(cause.part),
        cause.step,
        cause.term,
        figure(cause.from),
        figure(cause.to),
        cause.why
    )
}

/// The causes that are worth a line, and the sum of the others if it is not 0.
fn shown(metric: &MetricVerdict) -> (Vec<&Cause>, Option<f64>) {
    let (shown, small): (Vec<&Cause>, Vec<&Cause>) =
        (metric.causes.iter()).partition(|cause| cause.part.abs() >= SMALLEST_CAUSE);
    let rest: f64 = small.iter().map(|cause| cause.part).sum();
    (shown, (rest.abs() >= SMALLEST_CAUSE).then_some(rest))
}

/// The sentence under a verdict: what it means, and what would help.
fn explanation(metric: &MetricVerdict) -> String {
    let threshold = plain_percent(metric.threshold);
    match metric.verdict {
        Verdict::Regressed => {
            format!("worse by more than {threshold}, and noise does not explain it")
        }
        Verdict::Improved => {
            format!("better by more than {threshold}, and noise does not explain it")
        }
        Verdict::Pass => format!("whatever changed, it is less than {threshold}"),
        Verdict::NoVerdict => no_verdict(metric, &threshold),
    }
}

fn no_verdict(metric: &MetricVerdict, threshold: &str) -> String {
    if metric.interval.is_none() {
        return "nothing tells how much runs differ with nothing changed: run the baseline more than once, \
                or give --assume-noise"
            .to_owned();
    }
    let excludes_zero = (metric.interval).is_some_and(|range| range.low > 0.0 || range.high < 0.0);
    let mut text = if excludes_zero {
        format!("it changed, but perhaps by less than {threshold}")
    } else {
        format!("a change of more than {threshold} is neither shown nor excluded")
    };
    text.push_str(&match metric.more_runs {
        Some(1) => "; 1 more run on each side would tell".to_owned(),
        Some(more) => format!("; {more} more runs on each side would tell"),
        None => "; 100 more runs on each side would not tell".to_owned(),
    });
    text
}

/// Where the noise is known from.
fn noise(noise: &Noise) -> String {
    let Some(deviation) = noise.deviation else {
        return "unknown".to_owned();
    };
    let share = plain_percent(deviation);
    match noise.source.as_str() {
        "assumed" => format!("{share}, assumed"),
        "history" => format!(
            "{share}, with {} from the history",
            plural(noise.history_runs, "run")
        ),
        _ => format!("{share}, of these runs"),
    }
}

fn names(facts: &[Difference]) -> String {
    let names: Vec<&str> = facts.iter().map(|fact| fact.name.as_str()).collect();
    names.join(",")
}

/// `+11.3%`; two digits below 1 %.
pub(super) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    // No `-0.00%`.
    let percent = if percent.abs() < 0.005 { 0.0 } else { percent };
    if percent.abs() < 0.995 {
        format!("{percent:+.2}%")
    } else {
        format!("{percent:+.1}%")
    }
}

/// The same without a plus sign.
pub(super) fn plain_percent(share: f64) -> String {
    percent(share).trim_start_matches('+').to_owned()
}

/// A number with three or four significant digits.
pub(super) fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}
