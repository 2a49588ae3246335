//! `MODE=both`: rounds of `standalone` and `reuse` on one engine, and what they say of the two.
//!
//! The modes alternate, A B, B A, A B, so that a drift of the machine (heat, a neighbour) falls on
//! both alike. Every round begins with an empty prefix cache.

use std::collections::BTreeMap;

use crate::config::Mode;
use crate::error::{Error, Exit, Result};
use crate::record::{
    Comparison, Metric, OutputComparison, OutputDifference, OutputOf, RoundRecord, Sample,
    StepRecord, WorkflowRecord,
};
use crate::report::timing;
use crate::statistics::{LEAST_FOR_MEDIAN, mean, median, range, range_coverage};
use crate::stopwatch::Moment;
use crate::units::{Millis, plural};
use crate::workflow::Outcome;

use super::recorder::Recorder;
use super::run::Job;
use super::support::Support;

const MODES: [Mode; 2] = [Mode::Standalone, Mode::Reuse];

impl Recorder<'_> {
    /// Loads one engine and runs the rounds; each is kept and printed when it ends.
    pub(super) fn run_rounds(&mut self, job: &Job, support: &mut Support) -> Result<Outcome> {
        let mut engine = self.start_engine(job, job.origin)?;
        for (round, mode) in order(self.config.rounds) {
            let reuse = mode == Mode::Reuse;
            engine.restart(reuse)?;
            let concurrency = if reuse { self.config.concurrency } else { 1 };
            self.rounds.get_or_insert_default().begin(round, mode);
            let start = Moment::now(engine.as_ref())?;
            let outcome = self.run_flows(engine.as_mut(), support, job, job.flows, concurrency);
            let end = Moment::now(engine.as_ref());
            if let (Some(rounds), Ok(end)) = (&mut self.rounds, end) {
                let record = rounds.end(end.since(start), job.flows.len(), self.config.gpu_power);
                self.record.comparison = Some(rounds.comparison());
                // Kept before it is shown.
                self.save()?;
                self.console.result(&timing::round(&record))?;
            }
            match outcome? {
                Outcome::Ended => {}
                early => return Ok(early),
            }
        }
        Ok(Outcome::Ended)
    }
}

/// The rounds in their order: A B, B A, A B.
fn order(rounds: usize) -> impl Iterator<Item = (usize, Mode)> {
    (1..=rounds).flat_map(|round| {
        let [a, b] = MODES;
        let pair = if round % 2 == 1 { [a, b] } else { [b, a] };
        pair.map(|mode| (round, mode))
    })
}

/// Why outputs that differ end the run; `None` where they do not.
pub(super) fn refusal(outputs: &OutputComparison) -> Option<Error> {
    let first = outputs.first.as_ref()?;
    let (one, other) = (&first.one, &first.other);
    let message = format!(
        "outputs differ in {} of {}, first in flow {}, step {}: {} in {} (round {}), {} in {} (round {})",
        outputs.differing,
        plural(outputs.compared, "step"),
        first.flow,
        first.step,
        one.out_hash,
        one.mode,
        one.round,
        other.out_hash,
        other.mode,
        other.round
    );
    Some(Error::new(Exit::Gate, message).hint(
        "the same request must give the same tokens in any company: BACKEND=candle tells whether the forward pass or the cache is at fault",
    ))
}

/// The rounds that were run, and the one that goes on.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    done: Vec<RoundRecord>,
    current: RoundRecord,
    /// Times of the current round's workflows that ended well.
    workflow_ms: Vec<f64>,
    outputs: Outputs,
}

impl Rounds {
    fn begin(&mut self, round: usize, mode: Mode) {
        self.workflow_ms.clear();
        self.current = RoundRecord {
            round,
            mode: mode.as_str().to_owned(),
            ..RoundRecord::default()
        };
    }

    /// Whether this is the first round of its mode.
    pub(super) fn is_first(&self) -> bool {
        self.current.round == 1
    }

    /// Counts a step in, and marks it with round and mode.
    pub(super) fn step(&mut self, step: &StepRecord) -> StepRecord {
        let round = &mut self.current;
        round.prefill_tokens += step.prefill_tokens;
        round.reused_tokens += step.reused_tokens;
        round.decode_tokens += step.decode_tokens;
        let output = OutputOf {
            mode: round.mode.clone(),
            round: round.round,
            out_hash: step.out_hash.clone(),
        };
        if matches!(step.kind(), "generate" | "judge") {
            self.outputs.add(step.flow, &step.label(), output);
        }
        StepRecord {
            round: Some(round.round),
            mode: Some(round.mode.clone()),
            ..step.clone()
        }
    }

    /// Counts a workflow in, and marks it with round and mode.
    pub(super) fn workflow(&mut self, workflow: &WorkflowRecord) -> WorkflowRecord {
        if workflow.error.is_none() {
            self.workflow_ms.push(workflow.workflow_ms.0);
        }
        WorkflowRecord {
            round: Some(self.current.round),
            mode: Some(self.current.mode.clone()),
            ..workflow.clone()
        }
    }

    fn end(&mut self, total: Millis, num_flows: usize, watts: Option<f64>) -> RoundRecord {
        let mut round = std::mem::take(&mut self.current);
        let per_s = |tokens: usize| match total.seconds() {
            seconds if seconds > 0.0 => tokens as f64 / seconds,
            _ => 0.0,
        };
        round.total_ms = total;
        round.workflows_done = self.workflow_ms.len();
        round.complete = round.workflows_done == num_flows;
        round.mean_workflow_ms = mean(&self.workflow_ms).map(Millis);
        round.decode_tokens_per_s = per_s(round.decode_tokens);
        round.processed_tokens_per_s = per_s(round.prefill_tokens + round.decode_tokens);
        round.energy_joules = watts.map(|watts| watts * total.seconds());
        self.done.push(round.clone());
        round
    }

    fn comparison(&self) -> Comparison {
        let count = |mode| complete(&self.done, mode).count();
        let fewest = MODES.map(count).into_iter().min().unwrap_or(0);
        Comparison {
            rounds: self.done.clone(),
            metrics: metrics(&self.done),
            range_coverage: (fewest >= LEAST_FOR_MEDIAN).then(|| range_coverage(fewest)),
            outputs: self.outputs.comparison(),
        }
    }
}

/// A quantity of a round: the name of its field, and its value.
type Quantity = (&'static str, fn(&RoundRecord) -> Option<f64>);

/// The quantities that are compared, in the order of the table.
const QUANTITIES: [Quantity; 8] = [
    ("prefill_tokens", |round| Some(round.prefill_tokens as f64)),
    ("reused_tokens", |round| Some(round.reused_tokens as f64)),
    ("decode_tokens", |round| Some(round.decode_tokens as f64)),
    ("total_ms", |round| Some(round.total_ms.0)),
    ("mean_workflow_ms", |round| {
        round.mean_workflow_ms.map(|mean| mean.0)
    }),
    ("decode_tokens_per_s", |round| {
        Some(round.decode_tokens_per_s)
    }),
    ("processed_tokens_per_s", |round| {
        Some(round.processed_tokens_per_s)
    }),
    ("energy_joules", |round| round.energy_joules),
];

/// Complete rounds of a mode.
fn complete(rounds: &[RoundRecord], mode: Mode) -> impl Iterator<Item = &RoundRecord> {
    rounds
        .iter()
        .filter(move |round| round.complete && round.mode == mode.as_str())
}

/// The quantities of the complete rounds; those that no round has are left out.
fn metrics(rounds: &[RoundRecord]) -> Vec<Metric> {
    let metric = |(name, value): Quantity| {
        let by_round = |mode: Mode| -> BTreeMap<usize, f64> {
            complete(rounds, mode)
                .filter_map(|round| Some((round.round, value(round)?)))
                .collect()
        };
        let [standalone, reuse] = MODES.map(by_round);
        // A ratio to nothing is none, and some of them would not be the ratios of the rounds.
        let ratios: Option<Vec<f64>> = (standalone.iter())
            .filter_map(|(round, below)| Some((reuse.get(round)?, below)))
            .map(|(above, below)| (*below > 0.0).then(|| above / below))
            .collect();
        Metric {
            name: name.to_owned(),
            standalone: sample(standalone.into_values().collect()),
            reuse: sample(reuse.into_values().collect()),
            ratio: sample(ratios.unwrap_or_default()),
        }
    };
    QUANTITIES
        .into_iter()
        .map(metric)
        .filter(|metric| !(metric.standalone.values.is_empty() && metric.reuse.values.is_empty()))
        .collect()
}

fn sample(values: Vec<f64>) -> Sample {
    let enough = values.len() >= LEAST_FOR_MEDIAN;
    let range = range(&values).filter(|_| enough);
    Sample {
        median: median(&values).filter(|_| enough),
        min: range.map(|(min, _)| min),
        max: range.map(|(_, max)| max),
        values,
    }
}

/// What each step generated first, and where a later round generated something else.
#[derive(Debug, Default)]
struct Outputs {
    /// By flow; within it in the order in which the steps first ended.
    flows: BTreeMap<usize, Vec<StepOutputs>>,
}

#[derive(Debug)]
struct StepOutputs {
    step: String,
    one: OutputOf,
    other: Option<OutputOf>,
    both_modes: bool,
}

impl Outputs {
    fn add(&mut self, flow: usize, step: &str, output: OutputOf) {
        let steps = self.flows.entry(flow).or_default();
        match steps.iter_mut().find(|known| known.step == step) {
            None => steps.push(StepOutputs {
                step: step.to_owned(),
                one: output,
                other: None,
                both_modes: false,
            }),
            Some(known) => {
                known.both_modes |= known.one.mode != output.mode;
                if known.one.out_hash != output.out_hash {
                    known.other.get_or_insert(output);
                }
            }
        }
    }

    fn comparison(&self) -> OutputComparison {
        let steps = || {
            self.flows
                .iter()
                .flat_map(|(flow, steps)| steps.iter().map(|step| (*flow, step)))
        };
        let mut differences = steps().filter_map(|(flow, step)| {
            Some(OutputDifference {
                flow,
                step: step.step.clone(),
                one: step.one.clone(),
                other: step.other.clone()?,
            })
        });
        let first = differences.next();
        OutputComparison {
            compared: steps().filter(|(_, step)| step.both_modes).count(),
            differing: usize::from(first.is_some()) + differences.count(),
            first,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(mode: &str, round: usize, out_hash: &str) -> OutputOf {
        OutputOf {
            mode: mode.to_owned(),
            round,
            out_hash: out_hash.to_owned(),
        }
    }

    #[test]
    fn the_order_alternates() {
        let names: Vec<String> = order(3)
            .map(|(round, mode)| format!("{round} {}", mode.as_str()))
            .collect();
        assert_eq!(
            names.join(", "),
            "1 standalone, 1 reuse, 2 reuse, 2 standalone, 3 standalone, 3 reuse"
        );
    }

    #[test]
    fn the_first_difference_is_named_and_all_are_counted() {
        let mut outputs = Outputs::default();
        for (mode, round, executor) in [
            ("standalone", 1, "e"),
            ("reuse", 1, "x"),
            ("reuse", 2, "y"),
            ("standalone", 2, "e"),
        ] {
            // The steps of flows in flight end in any order of the flows.
            for flow in [3, 1, 2] {
                outputs.add(flow, "planner", output(mode, round, "p"));
                let hash = if flow == 1 { "e" } else { executor };
                outputs.add(flow, "executor", output(mode, round, hash));
            }
        }
        let comparison = outputs.comparison();
        assert_eq!((comparison.compared, comparison.differing), (6, 2));
        let error = refusal(&comparison).expect("they differ");
        assert_eq!(error.exit(), Exit::Gate);
        insta::assert_snapshot!(error.to_string(), @"outputs differ in 2 of 6 steps, first in flow 2, step executor: e in standalone (round 1), x in reuse (round 1)");
    }

    #[test]
    fn equal_outputs_are_no_reason_to_fail() {
        let mut outputs = Outputs::default();
        outputs.add(1, "planner", output("standalone", 1, "p"));
        assert_eq!(outputs.comparison().compared, 0, "in one mode only");
        outputs.add(1, "planner", output("reuse", 1, "p"));
        let comparison = outputs.comparison();
        assert_eq!((comparison.compared, comparison.differing), (1, 0));
        assert!(refusal(&comparison).is_none());
    }

    fn round(round: usize, mode: Mode, total: f64, reused: usize, complete: bool) -> RoundRecord {
        RoundRecord {
            round,
            mode: mode.as_str().to_owned(),
            complete,
            total_ms: Millis(total),
            reused_tokens: reused,
            ..RoundRecord::default()
        }
    }

    #[test]
    fn ratios_are_of_pairs_of_complete_rounds() {
        let rounds = [
            round(1, Mode::Standalone, 100.0, 0, true),
            round(1, Mode::Reuse, 50.0, 7, true),
            round(2, Mode::Reuse, 1.0, 1, false),
            round(2, Mode::Standalone, 120.0, 0, true),
            round(3, Mode::Standalone, 80.0, 0, true),
            round(3, Mode::Reuse, 20.0, 7, true),
        ];
        let metrics = metrics(&rounds);
        let metric = |name: &str| metrics.iter().find(|metric| metric.name == name);
        let total = metric("total_ms").expect("measured");
        assert_eq!(total.standalone.median, Some(100.0));
        assert_eq!(
            (total.standalone.min, total.standalone.max),
            (Some(80.0), Some(120.0))
        );
        assert_eq!(total.reuse.values, [50.0, 20.0]);
        assert_eq!(total.reuse.median, None, "two values have none");
        assert_eq!(total.ratio.values, [0.5, 0.25]);
        let reused = metric("reused_tokens").expect("counted");
        assert!(reused.ratio.values.is_empty(), "nothing to compare with");
        assert!(metric("energy_joules").is_none(), "no power was given");
    }
}
