//! Shows the history of a job: as a table with a sparkline, and as a page.

mod page;
#[cfg(test)]
mod tests;

use crate::record::trend::{Level, Trend, TrendRun};
use crate::units::plural;

pub use page::html;

use super::verdicts::{figure, percent, plain_percent};

const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The table: a line per run, then the sparkline and the levels.
pub fn lines(trend: &Trend) -> Vec<String> {
    let mut lines = heading(trend);
    let ids = trend.runs.iter().map(|run| run.run_id.chars().count());
    let width = ids.max().unwrap_or(0).max("run".len());
    lines.push(format!(
        "{:<width$}  {:>10}  {:>8}  {:>5}  note",
        "run", "value", "change", "flows"
    ));
    let mut before: Option<f64> = None;
    for (index, run) in trend.runs.iter().enumerate() {
        let is_first = |level: &&Level| level.first == index && level.change.is_some();
        let level = trend.levels.iter().find(is_first);
        let change = (run.value.zip(before)).map(|(value, before)| percent(value / before - 1.0));
        lines.push(format!(
            "{:<width$}  {:>10}  {:>8}  {:>5}  {}",
            run.run_id,
            run.value.map_or("-".to_owned(), figure),
            change.unwrap_or_default(),
            run.flows,
            note(run, level)
        ));
        if run.invalid.is_empty() {
            before = run.value.or(before);
        }
    }
    lines
        .iter_mut()
        .for_each(|line| line.truncate(line.trim_end().len()));
    lines.push(String::new());
    lines.push(sparkline(trend));
    for level in &trend.levels {
        lines.push(level_line(trend, level));
    }
    lines
}

fn heading(trend: &Trend) -> Vec<String> {
    let mut lines = vec![format!(
        "{} of {}, MODE={}",
        title(trend),
        trend.template,
        trend.mode
    )];
    let mut hidden = Vec::new();
    if trend.earlier_runs > 0 {
        hidden.push(plural(trend.earlier_runs, "earlier run"));
    }
    if trend.other_runs > 0 {
        hidden.push(format!(
            "{} of other jobs or machines",
            plural(trend.other_runs, "run")
        ));
    }
    if !hidden.is_empty() {
        lines.push(format!("not shown: {}", hidden.join(", ")));
    }
    lines
}

fn title(trend: &Trend) -> String {
    match &trend.step {
        Some(step) => format!("{} of {step}", trend.metric),
        None => trend.metric.clone(),
    }
}

fn note(run: &TrendRun, level: Option<&Level>) -> String {
    let mut notes = Vec::new();
    if let Some(change) = level.and_then(|level| level.change) {
        notes.push(format!("◆ level {}", percent(change)));
    }
    if !run.invalid.is_empty() {
        notes.push(format!("invalid: {}", run.invalid.join(", ")));
    }
    if let Some(commit) = run.labels.get("commit").filter(|_| run.invalid.is_empty()) {
        notes.push(commit.chars().take(10).collect());
    }
    notes.join("  ")
}

/// One character a run, from the smallest value to the largest; a space for a run without one.
fn sparkline(trend: &Trend) -> String {
    let valid = |run: &TrendRun| run.value.filter(|_| run.invalid.is_empty());
    let values: Vec<f64> = trend.runs.iter().filter_map(valid).collect();
    let Some((low, high)) = crate::statistics::range(&values) else {
        return String::new();
    };
    let block = |run: &TrendRun| match valid(run) {
        None => ' ',
        Some(_) if high <= low => BLOCKS[3],
        Some(value) => {
            let place = (value - low) / (high - low) * (BLOCKS.len() - 1) as f64;
            BLOCKS[(place.round() as usize).min(BLOCKS.len() - 1)]
        }
    };
    let line: String = trend.runs.iter().map(block).collect();
    format!("{line}  {} to {}", figure(low), figure(high))
}

fn level_line(trend: &Trend, level: &Level) -> String {
    let run = |index: usize| trend.runs.get(index).map_or("", |run| run.run_id.as_str());
    let mut text = format!("{} from {}", figure(level.mean), run(level.first));
    if let Some(deviation) = level.deviation {
        text.push_str(&format!(", noise {}", plain_percent(deviation)));
    }
    if let Some(change) = level.change {
        text.push_str(&format!(", {}", percent(change)));
    }
    for cause in level.causes.iter().take(2) {
        let part = percent(cause.part);
        text.push_str(&format!(
            "\n    {part} {} {}: {}",
            cause.step, cause.term, cause.why
        ));
    }
    if !level.differs.is_empty() {
        text.push_str(&format!("\n    {}", level.differs.join(", ")));
    }
    text
}
