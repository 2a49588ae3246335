//! Outcomes and scores of a run's judged steps.

use std::collections::HashMap;

use crate::record::StepRecord;
use crate::record::evaluation::{FailureRecord, ScoreRecord};
use crate::statistics::distribution;
use crate::units::Millis;

/// How many reasons for failures are listed.
const REASONS: usize = 3;

/// Characters of a reason, at most.
const LONGEST_REASON: usize = 200;

/// Collects judged steps by name, with the generations of a loop together.
#[derive(Debug, Default)]
pub struct Scores {
    all: Vec<Score>,
    places: HashMap<String, usize>,
}

#[derive(Debug, Default)]
struct Score {
    record: ScoreRecord,
    scores: Vec<f64>,
    overhead: Vec<f64>,
    run: Vec<f64>,
    overlap: f64,
    /// In order of first occurrence.
    failures: Vec<FailureRecord>,
    /// Indices into `failures` by outcome and reason; there may be as many as programs.
    reasons: HashMap<(String, String), usize>,
}

impl Scores {
    /// Adds a step, if it was judged. The outcomes of both requests of a judge count.
    pub fn add(&mut self, step: &StepRecord) {
        let Some(outcome) = &step.outcome else { return };
        let name = step.step.split('.').next().unwrap_or(&step.step);
        let index = self.places.get(name).copied().unwrap_or_else(|| {
            self.places.insert(name.to_owned(), self.all.len());
            self.all.push(Score {
                record: ScoreRecord {
                    step: name.to_owned(),
                    kind: step.kind().to_owned(),
                    ..ScoreRecord::default()
                },
                ..Score::default()
            });
            self.all.len() - 1
        });
        let score = &mut self.all[index];
        score.record.count += 1;
        *score.record.outcomes.entry(outcome.clone()).or_default() += 1;
        if step.kind() == "evaluate" && outcome != "ok" {
            score.failed(outcome, step.detail.as_deref().unwrap_or_default());
        }
        // Both requests of a judge record their common score; it counts once.
        let second = step.kind() == "judge" && step.sample.is_some_and(|sample| sample % 2 == 0);
        if !second {
            score.scores.extend(step.score);
        }
        if let Some(times) = &step.evaluation {
            score
                .overhead
                .push((times.start_up_ms + times.stop_ms + times.validate_ms).0);
            score.run.push(times.run_ms.0);
            score.overlap += times.overlap_ms.0;
        }
    }

    /// One record per name, in order of first occurrence.
    pub fn records(&self) -> Vec<ScoreRecord> {
        let record = |score: &Score| ScoreRecord {
            failures: score.most_frequent(),
            score: distribution(&score.scores),
            overhead_ms: distribution(&score.overhead),
            run_ms: distribution(&score.run),
            overlap_ms: (!score.run.is_empty()).then_some(Millis(score.overlap)),
            ..score.record.clone()
        };
        self.all.iter().map(record).collect()
    }
}

impl Score {
    fn failed(&mut self, outcome: &str, detail: &str) {
        let line = detail.lines().next().unwrap_or_default();
        let line: String = line.chars().take(LONGEST_REASON).collect();
        let key = (outcome.to_owned(), without_line(&line).to_owned());
        let new = self.failures.len();
        let place = *self.reasons.entry(key).or_insert(new);
        if place == new {
            self.failures.push(FailureRecord {
                outcome: outcome.to_owned(),
                detail: line,
                count: 0,
            });
        }
        self.failures[place].count += 1;
    }

    fn most_frequent(&self) -> Vec<FailureRecord> {
        let mut all = self.failures.clone();
        // The sort is stable: ties keep the order of first occurrence.
        all.sort_by_key(|failure| std::cmp::Reverse(failure.count));
        all.truncate(REASONS);
        all
    }
}

/// The reason without ` (line 12)`, so that the same failure at two places counts as one.
fn without_line(reason: &str) -> &str {
    reason
        .rsplit_once(" (line ")
        .map_or(reason, |(text, _)| text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::evaluation::EvaluationRecord;

    #[test]
    fn generations_are_counted_together_and_failures_have_no_score() {
        let step = |step: &str, outcome: &str, score| StepRecord {
            step: step.to_owned(),
            kind: Some("evaluate".to_owned()),
            outcome: Some(outcome.to_owned()),
            score,
            evaluation: Some(EvaluationRecord {
                start_up_ms: Millis(2.0),
                stop_ms: Millis(1.0),
                run_ms: Millis(8.0),
                ..EvaluationRecord::default()
            }),
            ..StepRecord::default()
        };
        let mut scores = Scores::default();
        scores.add(&step("trial.1", "ok", Some(1.5)));
        scores.add(&step("trial.2", "timeout", None));
        scores.add(&step("trial.2", "ok", Some(2.5)));
        scores.add(&StepRecord::default());
        let records = scores.records();
        let [trial] = &records[..] else {
            panic!("one name: {records:?}");
        };
        assert_eq!((trial.step.as_str(), trial.count), ("trial", 3));
        assert_eq!(trial.outcomes["ok"], 2);
        assert_eq!(trial.failures.len(), 1);
        let score = trial.score.as_ref().expect("two scores");
        assert_eq!((score.count, score.max), (2, 2.5));
        assert_eq!(trial.overhead_ms.as_ref().map(|ms| ms.mean), Some(3.0));
    }

    #[test]
    fn the_most_frequent_reasons_come_first_whatever_their_line() {
        let mut scores = Scores::default();
        for (outcome, detail) in [
            ("timeout", "killed"),
            ("runtime_error", "NameError: x (line 3)\nmore"),
            ("runtime_error", "NameError: x (line 7)"),
            ("ok", ""),
            ("crashed", "a"),
            ("crashed", "b"),
        ] {
            scores.add(&StepRecord {
                step: "trial".to_owned(),
                kind: Some("evaluate".to_owned()),
                outcome: Some(outcome.to_owned()),
                detail: Some(detail.to_owned()),
                ..StepRecord::default()
            });
        }
        let failures = &scores.records()[0].failures;
        let told: Vec<_> = (failures.iter())
            .map(|failure| (failure.detail.as_str(), failure.count))
            .collect();
        let expected = [("NameError: x (line 3)", 2), ("killed", 1), ("a", 1)];
        assert_eq!(told, expected);
    }
}
