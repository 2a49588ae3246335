//! OpenMetrics text (<https://prometheus.io/docs/specs/om/open_metrics_spec/>), which is also valid in
//! Prometheus's older text format: only gauges, no timestamps. node_exporter's textfile collector reads the
//! older format, refuses timestamps, and combines the files of a folder, so descriptions are constant.

use std::fmt::Write;

use super::metrics::{self, Figure, Metric};
use crate::record::metrics::Distribution;
use crate::record::{RunRecord, Status};

/// A label and its value.
type Label<'a> = (&'static str, &'a str);

pub(super) fn text(figures: &[Figure<'_>], run: &RunRecord) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut out, figures, run);
    out
}

fn write(out: &mut String, figures: &[Figure<'_>], run: &RunRecord) -> std::fmt::Result {
    let job = [
        ("template", run.expansion.template.as_str()),
        ("mode", metrics::mode(run)),
        ("model", metrics::model(run)),
    ];
    head(
        out,
        "run_info",
        None,
        "The run that the other metrics are of",
    )?;
    let version = run.environment.flowbench.as_str();
    let revision = run.environment.git_revision.as_deref().unwrap_or_default();
    let names = [
        ("run_id", run.run_id.as_str()),
        ("version", version),
        ("revision", revision),
    ];
    sample(out, "run_info", &[&job[..], &names].concat(), 1.0)?;

    let complete = f64::from(u8::from(run.status == Status::Complete));
    head(
        out,
        "run_complete",
        None,
        "1 if all workflows ended well, otherwise 0",
    )?;
    sample(out, "run_complete", &job, complete)?;

    if let Ok(start) = run.started_at.parse::<jiff::Timestamp>() {
        let name = "run_start_timestamp_seconds";
        head(out, name, Some("seconds"), "Start of the run, Unix time")?;
        sample(out, name, &job, start.as_millisecond() as f64 / 1e3)?;
    }

    head(out, "workflows", None, "Workflows of the run by result")?;
    for (result, count) in [
        ("done", run.totals.workflows_done),
        ("failed", run.totals.workflows_failed),
    ] {
        sample(
            out,
            "workflows",
            &[&job[..], &[("result", result)]].concat(),
            count as f64,
        )?;
    }
    for metric in metrics::ALL {
        let of_metric = || figures.iter().filter(|figure| figure.metric == *metric);
        if of_metric().next().is_none() {
            continue;
        }
        head(out, metric.name, suffix(metric), metric.help)?;
        for figure in of_metric() {
            let mut labels = job.to_vec();
            labels.extend(figure.mode.map(|mode| ("round_mode", mode)));
            labels.extend(figure.step.map(|step| ("step", step)));
            if *metric == metrics::ENERGY {
                labels.extend(metrics::energy(run).map(|(_, source)| ("source", source)));
            }
            for (stat, value) in statistics(figure) {
                let stat = stat.map(|stat| ("stat", stat));
                let labels: Vec<Label<'_>> = labels.iter().copied().chain(stat).collect();
                sample(out, metric.name, &labels, value)?;
            }
        }
    }
    writeln!(out, "# EOF")
}

/// A unit may only be declared if the name ends in it.
fn suffix(metric: &Metric) -> Option<&'static str> {
    ["ms", "joules"]
        .into_iter()
        .find(|unit| metric.name.ends_with(&format!("_{unit}")))
}

fn statistics(figure: &Figure<'_>) -> Vec<(Option<&'static str>, f64)> {
    let Some(spread) = figure.spread() else {
        return vec![(None, figure.value())];
    };
    let Distribution {
        count,
        mean,
        deviation,
        min,
        median,
        median_interval: _,
        p90,
        p95,
        p99,
        max,
    } = spread;
    let known = [
        ("count", Some(*count as f64)),
        ("mean", Some(*mean)),
        ("deviation", *deviation),
        ("min", Some(*min)),
        ("median", *median),
        ("p90", *p90),
        ("p95", *p95),
        ("p99", *p99),
        ("max", Some(*max)),
    ];
    (known.into_iter())
        .filter_map(|(name, value)| Some((Some(name), value?)))
        .collect()
}

fn head(out: &mut String, name: &str, unit: Option<&str>, help: &str) -> std::fmt::Result {
    writeln!(out, "# TYPE flowbench_{name} gauge")?;
    if let Some(unit) = unit {
        writeln!(out, "# UNIT flowbench_{name} {unit}")?;
    }
    writeln!(out, "# HELP flowbench_{name} {help}")
}

fn sample(out: &mut String, name: &str, labels: &[Label<'_>], value: f64) -> std::fmt::Result {
    write!(out, "flowbench_{name}{{")?;
    for (index, (label, text)) in labels.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        write!(out, "{comma}{label}=\"{}\"", escaped(text))?;
    }
    writeln!(out, "}} {value}")
}

/// Escapes a label's value: backslash, quote and line feed; everything else is allowed.
pub(super) fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
