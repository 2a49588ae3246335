//! A comparison in Markdown, for a pull request.

use std::fmt::Write;

use super::{explanation, figure, gate_line, noise, percent, plain_percent, shown};
use crate::record::compare::{CompareRecord, Difference, MetricVerdict};
use crate::report::markdown::escaped as cell;
use crate::units::plural;

/// The whole comparison.
pub fn markdown(record: &CompareRecord) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "## {}", record.verdict.as_str());
    let _ = writeln!(text, "\n{}\n", headline(record));
    table(&mut text, record);
    family(&mut text, record);
    for metric in &record.metrics {
        details(&mut text, metric);
    }
    flaws(&mut text, record);
    outputs(&mut text, record);
    text.truncate(text.trim_end().len());
    text
}

/// What was compared, in a sentence.
fn headline(record: &CompareRecord) -> String {
    let sides = format!(
        "{} against {} of the baseline, {} in common",
        plural(record.new.len(), "run"),
        record.base.len(),
        plural(record.flows, "flow"),
    );
    let left_out = match record.flows_left_out {
        0 => String::new(),
        flows => format!(" ({} left out)", plural(flows, "flow")),
    };
    let list = |facts: &[Difference]| {
        let fact = |fact: &Difference| {
            format!(
                "{}: {} → {}",
                cell(&fact.name),
                cell(&fact.base),
                cell(&fact.new)
            )
        };
        facts.iter().map(fact).collect::<Vec<String>>().join("; ")
    };
    let mut text = format!("{sides}{left_out}.");
    if record.subject.is_empty() {
        text.push_str(" Nothing differs between the two sides.");
    } else {
        let _ = write!(text, " Compared: {}.", list(&record.subject));
    }
    if !record.allowed.is_empty() {
        let _ = write!(text, " Also different: {}.", list(&record.allowed));
    }
    text
}

fn table(text: &mut String, record: &CompareRecord) {
    text.push_str("| metric | baseline | new | change | interval | smallest visible | verdict |\n");
    text.push_str("|---|---:|---:|---:|---:|---:|---|\n");
    for metric in &record.metrics {
        let interval = metric.interval.map_or("unknown".to_owned(), |interval| {
            format!("{} … {}", percent(interval.low), percent(interval.high))
        });
        let visible = metric
            .smallest_visible
            .map_or("unknown".to_owned(), plain_percent);
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {interval} | {visible} | {} |",
            cell(&title(metric)),
            figure(metric.base),
            figure(metric.new),
            percent(metric.change),
            metric.verdict.as_str(),
        );
    }
}

/// Says of several metrics that they are judged together.
fn family(text: &mut String, record: &CompareRecord) {
    if record.metrics.len() > 1 {
        text.push_str(
            "\nThe metrics are judged together: their intervals are wider (Holm's method), so that the chance of any \
             false alarm is that of one metric.\n",
        );
    }
}

fn details(text: &mut String, metric: &MetricVerdict) {
    let _ = writeln!(text, "\n### {}\n", cell(&title(metric)));
    let _ = write!(
        text,
        "{}: {}.",
        metric.verdict.as_str(),
        explanation(metric)
    );
    let _ = write!(text, " Noise of a run: {}.", noise(&metric.noise));
    if let Some(scatter) = metric.scatter {
        let _ = write!(
            text,
            " Median change of a flow {}, scatter {}.",
            percent(metric.change_median),
            plain_percent(scatter)
        );
    }
    if metric.at_equal_tokens {
        text.push_str(
            " Outputs changed although nothing explains it, so times are judged at equal numbers of tokens.",
        );
    }
    text.push('\n');
    let (causes, rest) = shown(metric);
    if causes.is_empty() {
        return;
    }
    text.push_str("\n| part | step | term | from | to | why |\n|---:|---|---|---:|---:|---|\n");
    for cause in causes {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            percent(cause.part),
            cell(&cause.step),
            cause.term,
            figure(cause.from),
            figure(cause.to),
            cell(&cause.why)
        );
    }
    if let Some(rest) = rest {
        let _ = writeln!(text, "| {} | * | rest | | | |", percent(rest));
    }
}

fn flaws(text: &mut String, record: &CompareRecord) {
    if !record.invalid.is_empty() {
        text.push_str("\n### Invalid\n\n");
    }
    for invalid in &record.invalid {
        let (run, detail) = (cell(&invalid.run_id), cell(&invalid.detail));
        let _ = writeln!(text, "- {run}: {detail} ({})", cell(&invalid.reason));
    }
    if !record.gates.is_empty() {
        text.push_str("\n### Gates\n\n");
    }
    for gate in &record.gates {
        let _ = writeln!(text, "- {}", cell(&gate_line(gate)));
    }
}

fn outputs(text: &mut String, record: &CompareRecord) {
    if record.outputs.is_empty() {
        return;
    }
    text.push_str("\n### Outputs that differ\n\n");
    for outputs in &record.outputs {
        let _ = write!(
            text,
            "- {}: {} of {}",
            cell(&outputs.step),
            outputs.differing,
            outputs.compared
        );
        if outputs.unstable > 0 {
            let _ = write!(
                text,
                "; {} also differ among runs of one side",
                outputs.unstable
            );
        }
        text.push('\n');
    }
}

/// The metric, and its step.
pub(super) fn title(metric: &MetricVerdict) -> String {
    match &metric.step {
        Some(step) => format!("{} of {step}", metric.metric),
        None => metric.metric.clone(),
    }
}
