//! Judged steps, their scores, and the model usage of the run.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::chart;
use crate::evaluate::Outcome;
use crate::metrics::Scores;
use crate::record::evaluation::{RolloutRecord, ScoreRecord, UsageRecord};
use crate::record::{RunRecord, StepRecord};
use crate::report::diagnose::seconds;
use crate::units::plural;

/// Judged steps with the same name.
#[derive(Debug, Serialize)]
pub(super) struct JudgedRow {
    pub(super) step: String,
    pub(super) kind: String,
    pub(super) count: usize,
    /// Such as `4 ok, 1 timeout`.
    pub(super) outcomes: String,
    /// Segments of a bar: CSS class, percent, tooltip.
    bar: Vec<(&'static str, String, String)>,
    pub(super) score: String,
    svg: String,
    /// Evaluation overhead.
    pub(super) overhead: String,
    /// Run time of the programs.
    pub(super) run: String,
    /// Part of the evaluation time during which the engine was computing.
    pub(super) overlap: String,
}

/// The judged steps by name. Derived from the steps, so that it works for a killed run as well.
pub(super) fn judged(steps: &[StepRecord]) -> Vec<JudgedRow> {
    let mut scores = Scores::default();
    let mut by_name: HashMap<&str, Vec<&StepRecord>> = HashMap::new();
    for step in steps.iter().filter(|step| step.outcome.is_some()) {
        scores.add(step);
        by_name.entry(base(&step.step)).or_default().push(step);
    }
    let mut row = |record: ScoreRecord| {
        let of_it = by_name.remove(record.step.as_str()).unwrap_or_default();
        let none = || "–".to_owned();
        JudgedRow {
            count: record.count,
            outcomes: outcomes(&record.outcomes),
            bar: bar(&record.outcomes, record.count),
            score: record.score.as_ref().map_or_else(none, chart::scores),
            svg: dots(of_it.iter().filter_map(|step| step.score)),
            overhead: record.overhead_ms.as_ref().map_or_else(none, chart::times),
            run: record.run_ms.as_ref().map_or_else(none, chart::times),
            overlap: record.overlap_ms.map_or_else(none, |overlap| {
                let all = of_it.iter().filter(|step| step.evaluation.is_some());
                let all: f64 = all.map(|step| step.latency_ms.0).sum();
                let share = 100.0 * overlap.0 / all.max(f64::MIN_POSITIVE);
                format!("{} ({share:.0} %)", seconds(overlap.seconds()))
            }),
            step: record.step,
            kind: record.kind,
        }
    };
    scores.records().into_iter().map(&mut row).collect()
}

/// The step name without its generation number.
fn base(step: &str) -> &str {
    step.split('.').next().unwrap_or(step)
}

/// Rating of an outcome: CSS class of its segment, and sort order.
pub(super) fn class(outcome: &str) -> &'static str {
    match outcome {
        "ok" | "equal" => "right",
        "infra_error" | "undecided" => "open",
        _ => "wrong",
    }
}

/// Outcomes with their counts, good ones first.
fn sorted(outcomes: &BTreeMap<String, usize>) -> Vec<(&str, usize)> {
    let mut all: Vec<(&str, usize)> = outcomes
        .iter()
        .map(|(name, n)| (name.as_str(), *n))
        .collect();
    let rank = |name: &str| match class(name) {
        "right" => 0,
        "wrong" => 1,
        _ => 2,
    };
    let place = |name: &str| Outcome::ALL.iter().position(|known| known.as_str() == name);
    all.sort_by_key(|(name, _)| (rank(name), place(name)));
    all
}

/// Such as `4 ok, 1 timeout`.
pub(super) fn outcomes(outcomes: &BTreeMap<String, usize>) -> String {
    let words = sorted(outcomes)
        .into_iter()
        .map(|(name, n)| format!("{n} {name}"));
    words.collect::<Vec<_>>().join(", ")
}

fn bar(outcomes: &BTreeMap<String, usize>, count: usize) -> Vec<(&'static str, String, String)> {
    let part = |(name, n): (&str, usize)| {
        let width = format!("{:.2}", 100.0 * n as f64 / count.max(1) as f64);
        (class(name), width, format!("{n} {name}"))
    };
    sorted(outcomes).into_iter().map(part).collect()
}

/// Draws scores on an axis from minimum to maximum; empty if they are all equal.
fn dots(scores: impl Iterator<Item = f64>) -> String {
    let mut scores: Vec<f64> = scores.collect();
    scores.sort_by(f64::total_cmp);
    let (Some(low), Some(high)) = (scores.first().copied(), scores.last().copied()) else {
        return String::new();
    };
    if low == high {
        return String::new();
    }
    let places: Vec<f64> = (scores.iter())
        .map(|score| (score - low) / (high - low))
        .collect();
    chart::strip(&places, None, 1.0)
}

/// Model usage, if it adds to the token counts per step.
pub(super) fn usage(run: &RunRecord) -> Vec<[String; 7]> {
    let all = &run.totals.usage;
    if all.len() < 2 && all.iter().all(|usage| usage.cost.is_none()) {
        return Vec::new();
    }
    let cost = |cost: Option<f64>| cost.map_or_else(|| "–".to_owned(), |cost| format!("{cost:.6}"));
    let row = |usage: &UsageRecord| {
        [
            usage.model.clone(),
            usage.kind.clone(),
            usage.requests.to_string(),
            usage.prompt_tokens.to_string(),
            usage.reused_tokens.to_string(),
            usage.decode_tokens.to_string(),
            cost(usage.cost),
        ]
    };
    let mut rows: Vec<_> = all.iter().map(row).collect();
    if all.len() > 1 {
        let sum = |of: fn(&UsageRecord) -> u64| all.iter().map(of).sum::<u64>().to_string();
        rows.push([
            "all".to_owned(),
            String::new(),
            sum(|usage| usage.requests),
            sum(|usage| usage.prompt_tokens),
            sum(|usage| usage.reused_tokens),
            sum(|usage| usage.decode_tokens),
            cost(all.iter().map(|usage| usage.cost).sum()),
        ]);
    }
    rows
}

/// How answers were checked, as a sentence.
pub(super) fn verification(run: &RunRecord) -> Option<String> {
    let checks = run.totals.verification.as_ref()?;
    let library = match (&checks.library, &checks.no_library) {
        (Some(library), _) => library.clone(),
        (None, Some(why)) => format!("no library ({why})"),
        (None, None) => "no library".to_owned(),
    };
    Some(format!(
        "Answers: {} decided in process or given up, {} decided by {library}, {} cached.",
        checks.in_process, checks.by_library, checks.cached
    ))
}

/// Summary of the input rows, as labels and values.
pub(super) fn rollouts(rollouts: &RolloutRecord) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("output", rollouts.output.clone()),
        (
            "rows",
            match rollouts.repeats {
                1 => rollouts.rows.to_string(),
                repeats => format!("{}, {} each", rollouts.rows, plural(repeats, "flow")),
            },
        ),
        (
            "lines",
            match rollouts.resumed {
                0 => rollouts.done.to_string(),
                resumed => format!("{}, of which {resumed} from earlier runs", rollouts.done),
            },
        ),
    ];
    if rollouts.failed > 0 {
        facts.push(("failed", rollouts.failed.to_string()));
    }
    if rollouts.unjudged > 0 {
        facts.push(("not judged", rollouts.unjudged.to_string()));
    }
    if !rollouts.outcomes.is_empty() {
        facts.push(("outcomes", outcomes(&rollouts.outcomes)));
    }
    if let Some(reward) = &rollouts.reward {
        let mean = format!("mean {:.4}", reward.mean);
        facts.push(("reward", format!("{mean} · {}", chart::scores(reward))));
    }
    if rollouts.unjudged > 0
        && let Some(mean) = rollouts.mean_reward
    {
        facts.push(("reward, not judged as 0", format!("mean {mean:.4}")));
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::evaluation::EvaluationRecord;
    use crate::units::Millis;

    #[test]
    fn generations_are_merged_and_good_outcomes_come_first() {
        let trial = |generation: usize, outcome: &str, score: Option<f64>| StepRecord {
            step: format!("trial.{generation}"),
            kind: Some("evaluate".to_owned()),
            outcome: Some(outcome.to_owned()),
            score,
            latency_ms: Millis(20.0),
            evaluation: Some(EvaluationRecord {
                run_ms: Millis(10.0),
                start_up_ms: Millis(3.0),
                overlap_ms: Millis(5.0),
                ..EvaluationRecord::default()
            }),
            ..StepRecord::default()
        };
        let steps = [
            trial(1, "timeout", None),
            trial(1, "ok", Some(1.5)),
            trial(2, "infra_error", None),
            trial(2, "ok", Some(2.5)),
            StepRecord {
                step: "child.1".to_owned(),
                ..StepRecord::default()
            },
        ];
        let rows = judged(&steps);
        assert_eq!(rows.len(), 1);
        let row = &rows[0];
        assert_eq!((row.step.as_str(), row.count), ("trial", 4));
        assert_eq!(row.outcomes, "2 ok, 1 timeout, 1 infra_error");
        assert_eq!(row.score, "1.5–2.5");
        assert_eq!(
            (row.run.as_str(), row.overhead.as_str()),
            ("10.0 ms", "3.00 ms")
        );
        assert_eq!(row.overlap, "20.0 ms (25 %)");
        assert!(row.svg.contains("x1=\"0.00\"") && row.svg.contains("x1=\"1000.00\""));
        let classes: Vec<&str> = row.bar.iter().map(|(class, ..)| *class).collect();
        assert_eq!(classes, ["right", "wrong", "open"]);
    }
}
