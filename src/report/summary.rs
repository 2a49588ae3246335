//! One-line summary of a run.

use crate::record::RunRecord;
use crate::record::metrics::{Distribution, PositionRecord};
use crate::report::diagnose::seconds;
use crate::units::plural;

/// The key figures and the next command; `None` if no workflow succeeded.
pub fn line(run: &RunRecord, next: &str) -> Option<String> {
    let totals = &run.totals;
    let total = totals.benchmark_total_ms?;
    if totals.workflows_done == 0 {
        return None;
    }
    let busy = (total - run.engine_init_ms.unwrap_or_default()).seconds();
    let mut text = match &run.comparison {
        Some(both) => format!(
            "{}, {} in all, in {}",
            plural(both.rounds.len(), "round"),
            plural(totals.workflows_done, "workflow"),
            seconds(busy)
        ),
        None => format!(
            "{} in {}",
            plural(totals.workflows_done, "workflow"),
            seconds(busy)
        ),
    };
    // Figures that mix two modes would describe neither.
    if run.comparison.is_none() {
        let mut figures = Vec::new();
        if busy > 0.0 && totals.tokens.decode > 0 {
            let rate = totals.tokens.decode as f64 / busy;
            figures.push(format!("{rate:.1} tokens/s"));
        }
        if let Some(first) = &totals.ttft_ms {
            figures.push(format!(
                "first token after {}",
                seconds(middle(first) / 1e3)
            ));
        }
        if let Some((step, latency)) = slowest(&totals.positions) {
            figures.push(format!("slowest step {step} ({})", seconds(latency / 1e3)));
        }
        if !figures.is_empty() {
            text.push_str(&format!(": {}", figures.join(", ")));
        }
    }
    Some(format!("{text}; next: {next}"))
}

/// Quotes a word for the shell if it contains anything unusual for a path.
pub fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:=,@%".contains(&byte);
    match !word.is_empty() && word.bytes().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// The median, or the mean of fewer than three values.
fn middle(spread: &Distribution) -> f64 {
    spread.median.unwrap_or(spread.mean)
}

/// The slowest step ID and its latency in milliseconds.
fn slowest(positions: &[PositionRecord]) -> Option<(&str, f64)> {
    let latency = |position: &PositionRecord| position.latency_ms.as_ref().map(middle);
    let timed = positions
        .iter()
        .filter_map(|position| Some((position.step.as_str(), latency(position)?)));
    timed.max_by(|a, b| a.1.total_cmp(&b.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Positions;
    use crate::record::{Comparison, RoundRecord};
    use crate::report::testing;

    fn run(flows: usize) -> RunRecord {
        let (mut record, steps) = testing::run(flows, 1.0, 260.0, 195.0);
        let mut positions = Positions::default();
        steps.iter().for_each(|step| positions.add(step));
        record.totals.positions = positions.records();
        record.totals.ttft_ms = positions.ttft_ms();
        record
    }

    #[test]
    fn the_summary_of_a_run() {
        let mut record = run(25);
        insta::assert_snapshot!(line(&record, "flowbench diagnose results/x").expect("some ended"), @"25 workflows in 35.8 s: 100.6 tokens/s, first token after 274 ms, slowest step verifier (479 ms); next: flowbench diagnose results/x");
        record.totals.workflows_done = 0;
        assert_eq!(line(&record, ""), None);
        assert!(line(&run(1), "x").is_some_and(|line| line.starts_with("1 workflow in ")));
    }

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(quoted("results/2026-x.1"), "results/2026-x.1");
        assert_eq!(quoted("my runs/a"), "'my runs/a'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn a_comparison_has_no_common_figures() {
        let mut record = run(3);
        record.comparison = Some(Comparison {
            rounds: vec![RoundRecord::default(); 2],
            ..Comparison::default()
        });
        insta::assert_snapshot!(line(&record, "x").expect("some ended"), @"2 rounds, 3 workflows in all, in 4.31 s; next: x");
    }
}
