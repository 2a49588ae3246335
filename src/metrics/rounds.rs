//! `MODE=both`: pairs the rounds of `standalone` and `reuse`, and says by how much they differ.

use std::collections::BTreeMap;

use super::WorkflowCounts;
use super::sequential::Sequence;
use crate::record::{
    Comparison, Metric, OutputComparison, OutputDifference, OutputOf, RoundRecord, RoundsVerdict,
    Sample, StepRecord, WorkflowRecord,
};
use crate::statistics::{LEAST_FOR_MEDIAN, median, range, range_coverage};
use crate::units::Millis;

/// The arms: the baseline, and what is compared with it.
pub const ARMS: [&str; 2] = ["standalone", "reuse"];

/// Changes up to this share do not matter: the default of `flowbench ab`.
const THRESHOLD: f64 = 0.03;

/// The rounds so far, and the one in progress.
#[derive(Debug, Default)]
pub struct Rounds {
    done: Vec<RoundRecord>,
    current: RoundRecord,
    counts: WorkflowCounts,
    outputs: Outputs,
}

impl Rounds {
    /// The rounds that ended in earlier segments of a run, with their steps.
    pub fn restored<'a>(
        done: Vec<RoundRecord>,
        steps: impl IntoIterator<Item = &'a StepRecord>,
    ) -> Self {
        let mut rounds = Self {
            done,
            ..Self::default()
        };
        steps.into_iter().for_each(|step| rounds.output(step));
        rounds
    }

    /// Whether the round of this number and arm has ended.
    pub fn has(&self, round: usize, mode: &str) -> bool {
        let is_it = |done: &RoundRecord| done.round == round && done.mode == mode;
        self.done.iter().any(is_it)
    }

    /// Starts round number `round` (from 1) of the arm `mode`.
    pub fn begin(&mut self, round: usize, mode: &str) {
        self.counts = WorkflowCounts::default();
        self.current = RoundRecord {
            round,
            mode: mode.to_owned(),
            ..RoundRecord::default()
        };
    }

    /// Whether the round in progress is the first of its arm.
    pub fn is_first(&self) -> bool {
        self.current.round == 1
    }

    /// WorkflowCounts a step, and marks it with round and mode.
    pub fn step(&mut self, step: &mut StepRecord) {
        self.counts.step(step);
        let round = &self.current;
        step.round = Some(round.round);
        step.mode = Some(round.mode.clone());
        self.output(step);
    }

    /// Notes the output of a step that is marked with its round.
    fn output(&mut self, step: &StepRecord) {
        if let (Some(round), Some(mode)) = (step.round, &step.mode)
            && step.asks_a_model()
        {
            let output = OutputOf {
                mode: mode.clone(),
                round,
                out_hash: step.out_hash.clone(),
            };
            self.outputs.add(step.flow, &step.label(), output);
        }
    }

    /// WorkflowCounts a workflow, and marks it with round and mode.
    pub fn workflow(&mut self, workflow: &mut WorkflowRecord) {
        self.counts.workflow(workflow);
        workflow.round = Some(self.current.round);
        workflow.mode = Some(self.current.mode.clone());
    }

    /// Ends the round in progress, of `num_flows` flows. `joules`: its energy, if known.
    pub fn end(&mut self, total: Millis, num_flows: usize, joules: Option<f64>) -> RoundRecord {
        let current = std::mem::take(&mut self.current);
        let tokens = self.counts.tokens();
        let per_s = |tokens: usize| match total.seconds() {
            seconds if seconds > 0.0 => tokens as f64 / seconds,
            _ => 0.0,
        };
        let round = RoundRecord {
            complete: self.counts.workflows_done() == num_flows,
            total_ms: total,
            workflows_done: self.counts.workflows_done(),
            mean_workflow_ms: self.counts.mean_workflow_ms(),
            prefill_tokens: tokens.prefill,
            reused_tokens: tokens.reused,
            decode_tokens: tokens.decode,
            decode_tokens_per_s: per_s(tokens.decode),
            processed_tokens_per_s: per_s(tokens.processed()),
            energy_joules: joules,
            ..current
        };
        self.done.push(round.clone());
        round
    }

    pub fn comparison(&self) -> Comparison {
        let count = |arm| complete(&self.done, arm).count();
        let fewest = ARMS.map(count).into_iter().min().unwrap_or(0);
        let metrics = metrics(&self.done);
        Comparison {
            rounds: self.done.clone(),
            verdict: verdict(&metrics),
            metrics,
            range_coverage: (fewest >= LEAST_FOR_MEDIAN).then(|| range_coverage(fewest)),
            outputs: self.outputs.comparison(),
        }
    }
}

/// A field of [`RoundRecord`] by its name.
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

fn complete<'a>(
    rounds: &'a [RoundRecord],
    arm: &'static str,
) -> impl Iterator<Item = &'a RoundRecord> {
    rounds
        .iter()
        .filter(move |round| round.complete && round.mode == arm)
}

/// Leaves out quantities that no complete round has.
fn metrics(rounds: &[RoundRecord]) -> Vec<Metric> {
    let metric = |(name, value): Quantity| {
        let by_round = |arm: &'static str| -> BTreeMap<usize, f64> {
            complete(rounds, arm)
                .filter_map(|round| Some((round.round, value(round)?)))
                .collect()
        };
        let [standalone, reuse] = ARMS.map(by_round);
        // Without a baseline there is no ratio, and the ratios of some rounds are not those of all.
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

/// The verdict of `flowbench ab` on the time of the rounds.
fn verdict(metrics: &[Metric]) -> Option<RoundsVerdict> {
    let total = metrics.iter().find(|metric| metric.name == "total_ms")?;
    let mut sequence = Sequence::new(THRESHOLD, false);
    for ratio in &total.ratio.values {
        sequence.add(ratio.ln());
    }
    let now = sequence.progress();
    (sequence.rounds() > 0).then(|| RoundsVerdict {
        verdict: now.verdict,
        change: now.mean.exp_m1(),
        interval: now.interval(),
        smallest_visible: now.smallest_visible(),
        threshold: THRESHOLD,
    })
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

/// What each step generated first, and the first round that generated something else.
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
    use crate::record::compare::Verdict;

    fn output(mode: &str, round: usize, out_hash: &str) -> OutputOf {
        OutputOf {
            mode: mode.to_owned(),
            round,
            out_hash: out_hash.to_owned(),
        }
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
        let first = comparison.first.expect("they differ");
        assert_eq!((first.flow, first.step.as_str()), (2, "executor"));
        assert_eq!(first.one, output("standalone", 1, "e"));
        assert_eq!(first.other, output("reuse", 1, "x"));
    }

    #[test]
    fn equal_outputs_do_not_differ() {
        let mut outputs = Outputs::default();
        outputs.add(1, "planner", output("standalone", 1, "p"));
        assert_eq!(outputs.comparison().compared, 0, "in one mode only");
        outputs.add(1, "planner", output("reuse", 1, "p"));
        let comparison = outputs.comparison();
        assert_eq!((comparison.compared, comparison.differing), (1, 0));
        assert_eq!(comparison.first, None);
    }

    fn round(round: usize, mode: &str, total: f64, reused: usize, complete: bool) -> RoundRecord {
        RoundRecord {
            round,
            mode: mode.to_owned(),
            complete,
            total_ms: Millis(total),
            reused_tokens: reused,
            ..RoundRecord::default()
        }
    }

    #[test]
    fn the_verdict_is_that_of_a_test_that_may_be_looked_at() {
        let verdict = |rounds: usize, times: f64| {
            let one = |number: usize| {
                let total = 100.0 + number as f64;
                [
                    round(number, ARMS[0], total, 0, true),
                    round(
                        number,
                        ARMS[1],
                        total * times - 0.1 * number as f64,
                        7,
                        true,
                    ),
                ]
            };
            let all: Vec<RoundRecord> = (1..=rounds).flat_map(one).collect();
            verdict(&metrics(&all))
        };
        assert_eq!(verdict(0, 0.5), None);
        let early = verdict(3, 0.5).expect("there are pairs");
        assert_eq!((early.verdict, early.interval), (Verdict::NoVerdict, None));
        let later = verdict(6, 0.5).expect("there are pairs");
        assert_eq!(later.verdict, Verdict::Improved);
        assert!((later.change + 0.5).abs() < 0.01, "{later:?}");
        assert!(later.interval.is_some_and(|interval| interval.high < -0.4));
        assert_eq!(verdict(6, 1.0).map(|of| of.verdict), Some(Verdict::Pass));
    }

    #[test]
    fn ratios_are_of_pairs_of_complete_rounds() {
        let rounds = [
            round(1, ARMS[0], 100.0, 0, true),
            round(1, ARMS[1], 50.0, 7, true),
            round(2, ARMS[1], 1.0, 1, false),
            round(2, ARMS[0], 120.0, 0, true),
            round(3, ARMS[0], 80.0, 0, true),
            round(3, ARMS[1], 20.0, 7, true),
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
