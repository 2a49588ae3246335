//! The page's drawings: SVG that stretches with the page's width. All text stands outside of it, in
//! HTML, so that it stays readable however narrow the page is.

use std::fmt::Write;

use serde::Serialize;

use crate::record::StepRecord;
use crate::record::metrics::Distribution;
use crate::report::diagnose::seconds;

/// Width of every drawing in its own units.
const WIDTH: f64 = 1000.0;

/// Parts of a timeline's axis, and of a panel's, which is narrower.
const TIME_PARTS: f64 = 6.0;
const PANEL_PARTS: f64 = 4.0;

/// Most rows of a timeline.
const ROWS: usize = 400;

/// A place on an axis, in percent of its length, or in pixels from the top.
#[derive(Debug, Serialize)]
pub(super) struct Mark {
    at: f64,
    text: String,
    class: &'static str,
}

/// Flows and steps over time.
#[derive(Debug, Serialize)]
pub(super) struct Timeline {
    pub(super) title: String,
    svg: String,
    height: f64,
    labels: Vec<Mark>,
    ticks: Vec<Mark>,
    note: String,
}

/// Round numbers from 0 to `end` milliseconds, about as many as `parts` and never more than one more.
pub(super) fn ticks(end: f64, parts: f64) -> Vec<f64> {
    if end <= 0.0 || !end.is_finite() {
        return vec![0.0];
    }
    let rough = end / parts;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough)
        .unwrap_or(rough);
    (0..=(end / step).floor() as usize)
        .map(|number| number as f64 * step)
        .collect()
}

fn axis(end: f64, parts: f64) -> Vec<Mark> {
    let places = ticks(end, parts);
    let last = places.last().copied().unwrap_or(0.0);
    let unit = |ms: f64| match last {
        last if last >= 2000.0 => format!("{} s", trimmed(ms / 1e3)),
        _ => format!("{} ms", trimmed(ms)),
    };
    let mark = |(number, ms): (usize, &f64)| {
        let at = if end > 0.0 { 100.0 * ms / end } else { 0.0 };
        Mark {
            at,
            text: unit(*ms),
            class: match number {
                // The last label would leave the page.
                _ if number > 0 && at > 95.0 => "last",
                number if number % 2 == 1 => "even",
                _ => "",
            },
        }
    };
    places.iter().enumerate().map(mark).collect()
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A timeline of these steps (of one round, if there are rounds), which starts at `origin`, with the
/// engine's init above it where it is within.
pub(super) fn timeline(
    title: String,
    steps: &[&StepRecord],
    origin: f64,
    init: Option<f64>,
) -> Timeline {
    let mut flows: Vec<usize> = steps.iter().map(|step| step.flow).collect();
    flows.sort_unstable();
    flows.dedup();
    let all = flows.len();
    flows.truncate(ROWS);
    let lead = usize::from(init.is_some());
    let rows = flows.len() + lead;
    let row = match rows {
        0..=40 => 16.0,
        41..=120 => 9.0,
        _ => 5.0,
    };
    let bar = row * 0.72;
    let height = row * rows as f64;
    let end = steps.iter().map(|step| step.start_ms.0 + step.latency_ms.0);
    let end = end.fold(origin + init.unwrap_or(0.0), f64::max) - origin;
    let x = |ms: f64| WIDTH * ms / end.max(f64::MIN_POSITIVE);

    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" preserveAspectRatio=\"none\" style=\"height:{height}px\" \
         role=\"img\" aria-label=\"Timeline of {all} flows\">"
    );
    for tick in ticks(end, TIME_PARTS) {
        let at = x(tick);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{at:.2}\" x2=\"{at:.2}\" y1=\"0\" y2=\"{height}\"/>"
        );
    }
    let mut rect = |from: f64, to: f64, row_number: usize, class: &str, title: &str| {
        if to <= from {
            return;
        }
        let y = row * row_number as f64 + (row - bar) / 2.0;
        let _ = write!(
            svg,
            "<rect class=\"{class}\" x=\"{:.2}\" y=\"{y:.2}\" width=\"{:.2}\" height=\"{bar:.2}\"><title>{}</title></rect>",
            x(from),
            x(to - from).max(0.3),
            escaped(title)
        );
    };
    if let Some(init) = init {
        rect(
            0.0,
            init,
            0,
            "engine_init",
            &format!("engine init {}", seconds(init / 1e3)),
        );
    }
    for step in steps {
        let Ok(number) = flows.binary_search(&step.flow) else {
            continue;
        };
        let start = step.start_ms.0 - origin;
        let first = step.ttft_ms.map_or(step.latency_ms.0, |ms| ms.0);
        let queue = step.queue_ms.map_or(0.0, |ms| ms.0).min(first);
        let title = format!(
            "flow {}, {}: {} (queue {}, first token {}), {} + {} tokens",
            step.flow,
            step.step,
            seconds(step.latency_ms.seconds()),
            seconds(queue / 1e3),
            seconds(first / 1e3),
            step.prompt_tokens,
            step.decode_tokens
        );
        let row = number + lead;
        rect(start, start + queue, row, "queue", &title);
        rect(start + queue, start + first, row, "prefill", &title);
        rect(
            start + first,
            start + step.latency_ms.0,
            row,
            "decode",
            &title,
        );
    }
    // Where a step ends and the next one begins.
    for step in steps {
        if let Ok(number) = flows.binary_search(&step.flow) {
            let at = x(step.start_ms.0 + step.latency_ms.0 - origin);
            let y = row * (number + lead) as f64;
            let _ = write!(
                svg,
                "<line class=\"gap\" x1=\"{at:.2}\" x2=\"{at:.2}\" y1=\"{y:.2}\" y2=\"{:.2}\"/>",
                y + row
            );
        }
    }
    svg.push_str("</svg>");

    let every = (16.0 / row).ceil() as usize;
    let every = [1, 2, 5, 10]
        .into_iter()
        .find(|count| *count >= every)
        .unwrap_or(10);
    let middle = |number: usize| row * number as f64 + row / 2.0;
    let mut labels = Vec::new();
    if lead == 1 && every == 1 {
        labels.push(Mark {
            at: middle(0),
            text: "engine".to_owned(),
            class: "",
        });
    }
    labels.extend(
        flows
            .iter()
            .enumerate()
            .filter(|(_, flow)| every == 1 || *flow % every == 0)
            .map(|(number, flow)| Mark {
                at: middle(number + lead),
                text: format!("flow {flow}"),
                class: "",
            }),
    );
    let note = if all > ROWS {
        format!("The first {ROWS} of {all} flows. Steps that failed are not shown.")
    } else {
        "A row a flow, its steps one after another; a gap ends a step. Steps that failed are not shown."
            .to_owned()
    };
    Timeline {
        title,
        svg,
        height,
        labels,
        ticks: axis(end, TIME_PARTS),
        note,
    }
}

/// How values are spread, step id by step id, on one axis.
#[derive(Debug, Serialize)]
pub(super) struct Panel {
    title: &'static str,
    rows: Vec<Strip>,
    ticks: Vec<Mark>,
}

#[derive(Debug, Serialize)]
struct Strip {
    label: String,
    svg: String,
    summary: String,
}

/// A panel of milliseconds; `None` without values.
pub(super) fn panel(
    title: &'static str,
    rows: Vec<(String, Vec<f64>, Option<Distribution>)>,
) -> Option<Panel> {
    let values = rows.iter().flat_map(|(_, values, _)| values);
    let largest = values.copied().fold(0.0, f64::max);
    if largest <= 0.0 {
        return None;
    }
    let end = largest * 1.02;
    let strip = |(label, values, spread): (String, Vec<f64>, Option<Distribution>)| Strip {
        svg: strip(&values, spread.as_ref(), end),
        summary: spread.as_ref().map(summary).unwrap_or_default(),
        label,
    };
    Some(Panel {
        title,
        rows: rows.into_iter().map(strip).collect(),
        ticks: axis(end, PANEL_PARTS),
    })
}

/// Most lines of a strip: more would be one block of colour, and a large file.
const LINES: usize = 1000;

fn strip(values: &[f64], spread: Option<&Distribution>, end: f64) -> String {
    let x = |value: f64| WIDTH * value / end;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} 20\" preserveAspectRatio=\"none\" aria-hidden=\"true\">"
    );
    if let Some(interval) = spread.and_then(|spread| spread.median_interval) {
        let _ = write!(
            svg,
            "<rect class=\"interval\" x=\"{:.2}\" y=\"0\" width=\"{:.2}\" height=\"20\"/>",
            x(interval.low),
            x(interval.high - interval.low)
        );
    }
    let line = |svg: &mut String, class: &str, value: f64, from: u8, to: u8| {
        let at = x(value);
        let _ = write!(
            svg,
            "<line class=\"{class}\" x1=\"{at:.2}\" x2=\"{at:.2}\" y1=\"{from}\" y2=\"{to}\"/>"
        );
    };
    for value in values.iter().step_by(values.len().div_ceil(LINES).max(1)) {
        line(&mut svg, "value", *value, 4, 16);
    }
    if let Some(median) = spread.and_then(|spread| spread.median) {
        line(&mut svg, "median", median, 1, 19);
    }
    svg.push_str("</svg>");
    svg
}

/// Median and range; the 99th percentile where there is one.
pub(super) fn summary(spread: &Distribution) -> String {
    let unit = if spread.max >= 2000.0 {
        (1e3, "s")
    } else {
        (1.0, "ms")
    };
    let number = |ms: f64| {
        let value = ms / unit.0;
        match value {
            value if value >= 100.0 => format!("{value:.0}"),
            value if value >= 10.0 => format!("{value:.1}"),
            value => format!("{value:.2}"),
        }
    };
    let range = format!("{}–{} {}", number(spread.min), number(spread.max), unit.1);
    match (spread.median, spread.p99) {
        (Some(median), Some(p99)) => {
            format!("{} · p99 {} {}", number(median), number(p99), unit.1)
        }
        (Some(median), None) => format!("{} · {range}", number(median)),
        _ => range,
    }
}

/// Text that is safe in HTML and in its attributes.
pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}
