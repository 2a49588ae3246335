//! The charts of the page: SVG that scales with the page width. Text is placed outside the SVG, in
//! HTML, so that it stays readable on narrow pages.

use std::fmt::Write;

use serde::Serialize;

use crate::record::metrics::Distribution;
use crate::report::diagnose::seconds;

/// Width of every chart in SVG units.
pub(super) const WIDTH: f64 = 1000.0;

/// Approximate number of tick intervals of a panel.
const PANEL_PARTS: f64 = 4.0;

/// A label at a position, in percent along the axis or in pixels from the top.
#[derive(Debug, Serialize)]
pub(super) struct Mark {
    pub(super) at: f64,
    pub(super) text: String,
    pub(super) class: &'static str,
}

/// Round tick values from 0 to `end` milliseconds: about `parts` intervals, at most one more.
pub(super) fn ticks(end: f64, parts: f64) -> Vec<f64> {
    if end <= 0.0 || !end.is_finite() {
        return vec![0.0];
    }
    let step = round_step(end, parts);
    (0..=(end / step).floor() as usize)
        .map(|number| number as f64 * step)
        .collect()
}

/// Round tick values from `low` to `high`; requires `high > low`.
pub(super) fn ticks_between(low: f64, high: f64, parts: f64) -> Vec<f64> {
    let step = round_step(high - low, parts);
    let (first, last) = ((low / step).ceil(), (high / step).floor());
    (0..=(last - first).max(0.0) as usize)
        .map(|number| (first + number as f64) * step)
        .collect()
}

/// A step of 1, 2 or 5 times a power of ten that divides `length` into about `parts` intervals.
fn round_step(length: f64, parts: f64) -> f64 {
    let rough = length / parts;
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough)
        .unwrap_or(rough)
}

pub(super) fn axis(end: f64, parts: f64) -> Vec<Mark> {
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
                // The last label would overflow the page.
                _ if number > 0 && at > 95.0 => "last",
                number if number % 2 == 1 => "even",
                _ => "",
            },
        }
    };
    places.iter().enumerate().map(mark).collect()
}

pub(super) fn trimmed(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Distributions of the step IDs on a common axis.
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

/// A panel of values in milliseconds; `None` without values.
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
    let has_values = |row: &(String, Vec<f64>, Option<Distribution>)| !row.1.is_empty();
    let strip = |(label, values, spread): (String, Vec<f64>, Option<Distribution>)| Strip {
        svg: strip(&values, spread.as_ref(), end),
        summary: spread.as_ref().map(summary).unwrap_or_default(),
        label,
    };
    Some(Panel {
        title,
        rows: rows.into_iter().filter(has_values).map(strip).collect(),
        ticks: axis(end, PANEL_PARTS),
    })
}

/// Upper bound on the lines of a strip: more would merge into a solid block and bloat the file.
const LINES: usize = 1000;

/// Draws one line per value on an axis from 0 to `end`.
pub(super) fn strip(values: &[f64], spread: Option<&Distribution>, end: f64) -> String {
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

/// Median with the range, or with the 99th percentile if the sample supports it.
pub(super) fn summary(spread: &Distribution) -> String {
    let unit = if spread.max >= 2000.0 {
        (1e3, " s")
    } else {
        (1.0, " ms")
    };
    let number = |ms: f64| {
        let value = ms / unit.0;
        match value {
            value if value >= 100.0 => format!("{value:.0}"),
            value if value >= 10.0 => format!("{value:.1}"),
            value => format!("{value:.2}"),
        }
    };
    spread_of(spread, unit.1, number)
}

/// Like [`summary`], but each number has its own unit: for values that differ by orders of
/// magnitude.
pub(super) fn times(spread: &Distribution) -> String {
    spread_of(spread, "", |ms| seconds(ms / 1e3))
}

/// Like [`summary`], for numbers without a unit.
pub(super) fn scores(spread: &Distribution) -> String {
    spread_of(spread, "", trimmed)
}

fn spread_of(spread: &Distribution, unit: &str, number: impl Fn(f64) -> String) -> String {
    let range = match spread.min == spread.max {
        true => format!("{}{unit}", number(spread.min)),
        false => format!("{}–{}{unit}", number(spread.min), number(spread.max)),
    };
    match (spread.median, spread.p99) {
        (Some(median), Some(p99)) => {
            format!("{} · p99 {}{unit}", number(median), number(p99))
        }
        (Some(median), None) if spread.min < spread.max => {
            format!("{} · {range}", number(median))
        }
        _ => range,
    }
}

/// Escapes text for HTML content and attributes.
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
