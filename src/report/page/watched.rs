//! What was watched while the run went on, over time: a line per quantity, and when something disturbed it.

use std::fmt::Write;

use serde::Serialize;

use super::chart::{Mark, WIDTH, axis};
use crate::record::RunRecord;
use crate::record::validity::{SeriesRecord, TaintRecord};
use crate::report::diagnose::seconds;
use crate::units::Bytes;

/// Approximate number of tick intervals.
const PARTS: f64 = 8.0;

/// Height of a line in SVG units.
const HEIGHT: f64 = 40.0;

/// The rows, on a common axis of time.
#[derive(Debug, Serialize)]
pub(super) struct WatchedChart {
    quantities: Vec<Row>,
    reasons: Vec<Row>,
    ticks: Vec<Mark>,
}

#[derive(Debug, Serialize)]
struct Row {
    label: &'static str,
    svg: String,
    summary: String,
}

/// A quantity: its name, its values, and how one is written.
type Quantity<'a> = (&'static str, &'a [Option<f64>], fn(f64) -> String);

/// `None` if nothing was watched, or the run was killed.
pub(super) fn watched(run: &RunRecord) -> Option<WatchedChart> {
    let validity = run.validity.as_ref()?;
    let series = validity.series.as_ref()?;
    let end = series.ms.last().copied().filter(|end| *end > 0.0)?;
    let quantities: Vec<Row> = quantities(series)
        .into_iter()
        .filter_map(|quantity| line(&series.ms, end, quantity))
        .collect();
    let reasons = validity.taints.iter().map(|taint| intervals(taint, end));
    let reasons: Vec<Row> = reasons.collect();
    (!quantities.is_empty() || !reasons.is_empty()).then(|| WatchedChart {
        quantities,
        reasons,
        ticks: axis(end, PARTS),
    })
}

fn quantities(series: &SeriesRecord) -> [Quantity<'_>; 7] {
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    let megahertz = |clock: f64| format!("{clock:.0} MHz");
    [
        ("power", &series.power_watts, |watts| {
            format!("{watts:.0} W")
        }),
        ("GPU clock", &series.gpu_clock_mhz, megahertz),
        ("GPU heat", &series.gpu_temperature_celsius, |heat| {
            format!("{heat:.0} °C")
        }),
        ("GPU memory", &series.gpu_memory_bytes, |bytes| {
            Bytes(bytes as u64).to_string()
        }),
        ("CPU clock", &series.cpu_clock_mhz, megahertz),
        ("others' share", &series.others_share, percent),
        ("steal", &series.steal_share, percent),
    ]
}

/// A line from the first known value to the last, on an axis that begins at 0.
fn line(ms: &[f64], end: f64, (label, values, text): Quantity) -> Option<Row> {
    let known = || (ms.iter().zip(values)).filter_map(|(ms, value)| Some((*ms, (*value)?)));
    let lowest = known().map(|(_, value)| value).reduce(f64::min)?;
    let highest = known().map(|(_, value)| value).reduce(f64::max)?;
    let top = if highest > 0.0 { highest * 1.05 } else { 1.0 };
    let mut points = String::new();
    for (ms, value) in known() {
        let x = WIDTH * (ms / end).clamp(0.0, 1.0);
        let y = HEIGHT * (1.0 - value / top);
        let _ = write!(points, "{x:.1},{y:.1} ");
    }
    let svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" aria-hidden=\"true\">\
         <polyline class=\"reading\" points=\"{}\"/></svg>",
        points.trim_end()
    );
    let summary = match (text(lowest), text(highest)) {
        (low, high) if low == high => low,
        (low, high) => format!("{low} – {high}"),
    };
    Some(Row {
        label,
        svg,
        summary,
    })
}

/// When a reason held.
fn intervals(taint: &TaintRecord, end: f64) -> Row {
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" aria-hidden=\"true\">"
    );
    for interval in &taint.intervals {
        let x = |ms: f64| WIDTH * (ms / end).clamp(0.0, 1.0);
        // Wide enough to be seen.
        let width = (x(interval.end_ms) - x(interval.start_ms)).max(1.0);
        let _ = write!(
            svg,
            "<rect class=\"tainted\" x=\"{:.1}\" y=\"0\" width=\"{width:.1}\" height=\"{HEIGHT}\"/>",
            x(interval.start_ms)
        );
    }
    svg.push_str("</svg>");
    Row {
        label: taint.reason.as_str(),
        svg,
        summary: seconds(taint.total_ms / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::validity::{Taint, TaintInterval, ValidityRecord};
    use crate::report::testing;

    fn run() -> RunRecord {
        let (mut run, _) = testing::run(2, 0.0, 3.0, 2.0);
        run.validity = Some(ValidityRecord {
            taints: vec![TaintRecord {
                reason: Taint::SwPowerCap,
                total_ms: 500.0,
                intervals: vec![TaintInterval {
                    start_ms: 250.0,
                    end_ms: 750.0,
                }],
            }],
            series: Some(SeriesRecord {
                ms: vec![0.0, 500.0, 1000.0],
                power_watts: vec![None, Some(100.0), Some(200.0)],
                steal_share: vec![Some(0.0), None, None],
                gpu_memory_bytes: vec![None; 3],
                ..SeriesRecord::default()
            }),
            ..ValidityRecord::default()
        });
        run
    }

    #[test]
    fn readings_are_lines_and_reasons_are_bars() {
        let chart = watched(&run()).expect("watched");
        let rows = chart.quantities.iter().chain(&chart.reasons);
        let rows: Vec<String> = rows
            .map(|row| format!("{}: {} {}", row.label, row.summary, row.svg))
            .collect();
        insta::assert_snapshot!(rows.join("\n"), @r#"
        power: 100 W – 200 W <svg viewBox="0 0 1000 40" preserveAspectRatio="none" aria-hidden="true"><polyline class="reading" points="500.0,21.0 1000.0,1.9"/></svg>
        steal: 0 % <svg viewBox="0 0 1000 40" preserveAspectRatio="none" aria-hidden="true"><polyline class="reading" points="0.0,40.0"/></svg>
        sw_power_cap: 500 ms <svg viewBox="0 0 1000 40" preserveAspectRatio="none" aria-hidden="true"><rect class="tainted" x="250.0" y="0" width="500.0" height="40"/></svg>
        "#);
        let page = super::super::html(&run(), &[], &[]).expect("the template is sound");
        assert!(page.contains("The machine meanwhile") && page.contains("class=\"tainted\""));
    }

    #[test]
    fn a_run_that_was_not_watched_has_no_chart() {
        let mut record = run();
        if let Some(validity) = &mut record.validity {
            validity.series = None;
        }
        assert!(watched(&record).is_none());
        record.validity = None;
        assert!(watched(&record).is_none());
    }
}
