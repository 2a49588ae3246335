//! Timeline of flows and steps.

use std::collections::HashMap;
use std::fmt::Write;

use serde::Serialize;

use super::chart::{Mark, WIDTH, axis, escaped, ticks};
use crate::record::StepRecord;
use crate::report::diagnose::seconds;
use crate::units::plural;

/// Approximate number of tick intervals.
const PARTS: f64 = 6.0;

/// Upper bound on rows.
const ROWS: usize = 400;

/// Upper bound on steps.
const DRAWN: usize = 5000;

/// Selects the steps to draw: all, or the longest.
fn drawn(steps: &[&StepRecord]) -> Vec<bool> {
    let mut drawn = vec![steps.len() <= DRAWN; steps.len()];
    if steps.len() > DRAWN {
        let mut order: Vec<usize> = (0..steps.len()).collect();
        order.sort_by(|a, b| steps[*b].latency_ms.0.total_cmp(&steps[*a].latency_ms.0));
        order[..DRAWN].iter().for_each(|index| drawn[*index] = true);
    }
    drawn
}

/// Timeline of flows and steps.
#[derive(Debug, Serialize)]
pub(super) struct Timeline {
    pub(super) title: String,
    svg: String,
    height: f64,
    labels: Vec<Mark>,
    ticks: Vec<Mark>,
    /// CSS classes of the bars, with their meaning.
    legend: Vec<[&'static str; 2]>,
    note: String,
}

/// The rows of a flow. Concurrent steps are in separate rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rows {
    flow: usize,
    first: usize,
    count: usize,
}

/// Assigns each step a row relative to the first row of its flow, and each flow a range of rows.
fn place(steps: &[&StepRecord]) -> (Vec<usize>, Vec<Rows>) {
    let mut order: Vec<usize> = (0..steps.len()).collect();
    order.sort_by(|a, b| {
        let key = |index: &usize| (steps[*index].flow, steps[*index].start_ms.0);
        let ((one, from), (other, to)) = (key(a), key(b));
        one.cmp(&other).then(from.total_cmp(&to))
    });
    let mut rows = vec![0; steps.len()];
    let mut ends: HashMap<usize, Vec<f64>> = HashMap::new();
    for index in order {
        let step = steps[index];
        let ends = ends.entry(step.flow).or_default();
        // Times are stored to a microsecond.
        let free = |end: &f64| *end <= step.start_ms.0 + 0.001;
        let row = ends.iter().position(free).unwrap_or_else(|| {
            ends.push(0.0);
            ends.len() - 1
        });
        ends[row] = step.start_ms.0 + step.latency_ms.0;
        rows[index] = row;
    }
    let mut counts: Vec<(usize, usize)> =
        (ends.into_iter().map(|(flow, ends)| (flow, ends.len()))).collect();
    counts.sort_unstable();
    let mut first = 0;
    let flows = counts.into_iter().map(|(flow, count)| {
        let rows = Rows { flow, first, count };
        first += count;
        rows
    });
    (rows, flows.collect())
}

/// Segments of a step: CSS class, start, end, in milliseconds since its start.
fn parts(step: &StepRecord) -> Vec<(&'static str, f64, f64)> {
    let latency = step.latency_ms.0;
    match (step.kind(), &step.evaluation) {
        ("evaluate", Some(times)) => {
            let begun = times.waited_ms.0.min(latency);
            let run = (begun + times.start_up_ms.0).min(latency);
            let over = (run + times.run_ms.0).min(latency);
            vec![
                ("queue", 0.0, begun),
                ("evaluate overhead", begun, run),
                ("evaluate", run, over),
                ("evaluate overhead", over, latency),
            ]
        }
        ("evaluate", None) => vec![("evaluate overhead", 0.0, latency)],
        ("verify", _) => vec![("verify", 0.0, latency)],
        _ => {
            let first = step.ttft_ms.map_or(latency, |ms| ms.0);
            let queue = step.queue_ms.map_or(0.0, |ms| ms.0).min(first);
            vec![
                ("queue", 0.0, queue),
                ("prefill", queue, first),
                ("decode", first, latency),
            ]
        }
    }
}

fn title(step: &StepRecord) -> String {
    let took = seconds(step.latency_ms.seconds());
    let head = format!("flow {}, {}: {took}", step.flow, step.label());
    match (&step.outcome, &step.evaluation) {
        (Some(outcome), Some(times)) => format!(
            "{head} (waited {}, ran {}), {outcome}",
            seconds(times.waited_ms.seconds()),
            seconds(times.run_ms.seconds())
        ),
        (Some(outcome), None) => format!("{head}, {outcome}"),
        (None, _) => format!(
            "{head} (queue {}, first token {}), {} + {}",
            seconds(step.queue_ms.unwrap_or_default().seconds()),
            seconds(step.ttft_ms.unwrap_or(step.latency_ms).seconds()),
            step.tokens.prompt,
            plural(step.tokens.decode, "token")
        ),
    }
}

const LEGEND: [[&str; 2]; 7] = [
    ["engine_init", "engine init"],
    ["queue", "queue wait"],
    ["prefill", "prefill"],
    ["decode", "decode"],
    ["evaluate overhead", "evaluation: start and end"],
    ["evaluate", "evaluation: the program"],
    ["verify", "verify"],
];

/// Draws the steps, of a single round if there are rounds, from `origin` on. If `init` is given,
/// the engine's start-up is in the first row.
pub(super) fn timeline(
    title_of_it: String,
    steps: &[&StepRecord],
    origin: f64,
    init: Option<f64>,
) -> Timeline {
    let (places, mut flows) = place(steps);
    let all = flows.len();
    flows.retain(|rows| rows.first + rows.count <= ROWS || rows.first == 0);
    let cut_off = flows.iter().any(|rows| rows.count > ROWS);
    // A single flow with too many rows is truncated.
    flows
        .iter_mut()
        .for_each(|rows| rows.count = rows.count.min(ROWS));
    let drawn = drawn(steps);
    let side_by_side = flows.iter().any(|rows| rows.count > 1);
    let lead = usize::from(init.is_some());
    let rows = flows.last().map_or(0, |last| last.first + last.count) + lead;
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
         role=\"img\" aria-label=\"Timeline of {}\">",
        plural(all, "flow")
    );
    for tick in ticks(end, PARTS) {
        let at = x(tick);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{at:.2}\" x2=\"{at:.2}\" y1=\"0\" y2=\"{height}\"/>"
        );
    }
    let mut used: Vec<&str> = Vec::new();
    let mut rect = |from: f64, to: f64, row_number: usize, class: &'static str, title: &str| {
        if to <= from {
            return;
        }
        if !used.contains(&class) {
            used.push(class);
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
    let row_of = |step: &StepRecord, place: usize| {
        let flow = flows
            .binary_search_by_key(&step.flow, |rows| rows.flow)
            .ok()?;
        let rows = flows[flow];
        (place < rows.count).then_some(rows.first + place + lead)
    };
    let shown_steps = || {
        let all = steps.iter().zip(&places).zip(&drawn);
        all.filter(|(_, drawn)| **drawn).map(|(step, _)| step)
    };
    for (step, place) in shown_steps() {
        let Some(row) = row_of(step, *place) else {
            continue;
        };
        let start = step.start_ms.0 - origin;
        let title = title(step);
        for (class, from, to) in parts(step) {
            rect(start + from, start + to, row, class, &title);
        }
    }
    // A gap between successive steps.
    for (step, place) in shown_steps() {
        if let Some(number) = row_of(step, *place) {
            let at = x(step.start_ms.0 + step.latency_ms.0 - origin);
            let y = row * number as f64;
            let _ = write!(
                svg,
                "<line class=\"gap\" x1=\"{at:.2}\" x2=\"{at:.2}\" y1=\"{y:.2}\" y2=\"{:.2}\"/>",
                y + row
            );
        }
    }
    svg.push_str("</svg>");

    let mut what = "One row per flow; a gap marks the end of a step.".to_owned();
    if side_by_side {
        what = "Concurrent steps of a flow are in separate rows; a gap marks the end of a \
                step."
            .to_owned();
    }
    let shown = flows.len();
    let mut cut = match shown < all {
        true => format!(" The first {shown} of {}.", plural(all, "flow")),
        false => String::new(),
    };
    if cut_off {
        cut.push_str(&format!(" The first {ROWS} rows of the flow."));
    }
    if steps.len() > DRAWN {
        let steps = plural(steps.len(), "step");
        cut.push_str(&format!(" The {DRAWN} longest of {steps}."));
    }
    Timeline {
        title: title_of_it,
        svg,
        height,
        labels: labels(&flows, lead, row),
        ticks: axis(end, PARTS),
        legend: LEGEND
            .into_iter()
            .filter(|[class, _]| used.contains(class))
            .collect(),
        note: format!("{what} Failed steps are not shown.{cut}"),
    }
}

/// Labels of the flows, as many as fit.
fn labels(flows: &[Rows], lead: usize, row: f64) -> Vec<Mark> {
    /// Height of a label in pixels.
    const LINE: f64 = 16.0;
    let mark = |at: f64, text: String| Mark {
        at,
        text,
        class: "",
    };
    let mut labels = Vec::new();
    let mut free = 0.0;
    if lead == 1 && row >= LINE {
        labels.push(mark(row / 2.0, "engine".to_owned()));
        free = row / 2.0 + LINE;
    }
    // With many flows, label round numbers only.
    let every = match flows.iter().all(|rows| rows.count == 1) {
        true => (LINE / row).ceil() as usize,
        false => 1,
    };
    let every = [1, 2, 5, 10]
        .into_iter()
        .find(|count| *count >= every)
        .unwrap_or(10);
    for rows in flows
        .iter()
        .filter(|rows| every == 1 || rows.flow % every == 0)
    {
        let at = row * (rows.first + lead) as f64 + row / 2.0;
        if at >= free - 0.001 {
            labels.push(mark(at, format!("flow {}", rows.flow)));
            free = at + LINE;
        }
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Millis;
    use proptest::prelude::*;

    fn step(flow: usize, start: f64, latency: f64) -> StepRecord {
        StepRecord {
            flow,
            start_ms: Millis(start),
            latency_ms: Millis(latency),
            ..StepRecord::default()
        }
    }

    proptest! {
        #[test]
        fn steps_in_a_row_do_not_overlap(
            all in prop::collection::vec((1usize..4, 0u32..60, 0u32..20), 0..30),
        ) {
            let all: Vec<StepRecord> = all
                .into_iter()
                .map(|(flow, start, latency)| step(flow, f64::from(start), f64::from(latency)))
                .collect();
            let steps: Vec<&StepRecord> = all.iter().collect();
            let (places, flows) = place(&steps);
            let mut rows = 0;
            for flow in &flows {
                prop_assert_eq!(flow.first, rows, "no row is lost or shared");
                rows += flow.count;
            }
            for (index, one) in all.iter().enumerate() {
                let own = flows.iter().find(|rows| rows.flow == one.flow);
                prop_assert!(places[index] < own.expect("each flow has rows").count);
                for (other, place) in all.iter().zip(&places).skip(index + 1) {
                    let apart = one.start_ms.0 + one.latency_ms.0 <= other.start_ms.0
                        || other.start_ms.0 + other.latency_ms.0 <= one.start_ms.0;
                    prop_assert!(one.flow != other.flow || places[index] != *place || apart);
                }
            }
        }
    }

    #[test]
    fn samples_get_separate_rows_and_evaluations_are_segmented() {
        let mut trial = step(1, 10.0, 20.0);
        trial.kind = Some("evaluate".to_owned());
        trial.outcome = Some("ok".to_owned());
        trial.evaluation = Some(crate::record::evaluation::EvaluationRecord {
            waited_ms: Millis(4.0),
            start_up_ms: Millis(3.0),
            run_ms: Millis(10.0),
            ..Default::default()
        });
        let steps = [
            step(1, 0.0, 10.0),
            step(1, 0.0, 12.0),
            trial,
            step(2, 0.0, 5.0),
        ];
        let steps: Vec<&StepRecord> = steps.iter().collect();
        let (places, flows) = place(&steps);
        assert_eq!(places, [0, 1, 0, 0]);
        assert_eq!(
            flows[1],
            Rows {
                flow: 2,
                first: 2,
                count: 1
            }
        );
        let drawn = timeline(String::new(), &steps, 0.0, None);
        for part in [
            "class=\"queue\" x=\"333.33\"",
            "class=\"evaluate\" x=\"566.67\" y=\"2.24\" width=\"333.33\"",
            "ran 10.0 ms), ok</title>",
        ] {
            assert!(drawn.svg.contains(part), "{part}: {}", drawn.svg);
        }
        let meant: Vec<&str> = drawn.legend.iter().map(|[class, _]| *class).collect();
        assert_eq!(meant, ["queue", "prefill", "evaluate overhead", "evaluate"]);
    }
}
