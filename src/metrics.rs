//! Metrics of flows and runs, from the times of steps: critical path, slack, distributions by step id, and
//! the totals.

mod changes;
pub mod compare;
mod energy;
pub mod gates;
mod intervals;
pub mod replay;
mod rounds;
mod scores;
pub mod sequential;
mod streamed;
mod tally;
mod thinned;
pub mod trend;
pub mod validity;

use std::collections::HashMap;

use crate::record::StepRecord;
use crate::record::metrics::{Distribution, PositionRecord};
use crate::statistics::distribution;
use crate::units::Millis;

pub use energy::{EnergySeries, is_correct, set_rates, shares as energy_shares};
pub use intervals::TaintIntervals;
pub use rounds::{ARMS, Rounds};
pub use scores::Scores;
pub use streamed::{Streamed, streamed};
pub use tally::{Tally, WorkflowCounts};
pub use thinned::{Readings, ThinnedSeries};

/// A step that has ended, in topological order: the indices in `needs` are smaller than its own.
#[derive(Debug, Clone, PartialEq)]
pub struct EndedStep {
    /// From the start of the flow.
    pub end: Millis,
    pub needs: Vec<usize>,
}

impl EndedStep {
    /// The dependency that ended last.
    fn waited_for(&self, steps: &[Self]) -> Option<usize> {
        (self.needs.iter().copied()).max_by(|a, b| steps[*a].end.0.total_cmp(&steps[*b].end.0))
    }

    /// From when it could begin to its end.
    fn took(&self, steps: &[Self]) -> Millis {
        let ready = self.waited_for(steps).map(|need| steps[need].end);
        self.end - ready.unwrap_or_default()
    }
}

/// The critical path: the steps that made the flow as long as it was, in order, each with the time from the
/// end of the previous one to its own end.
pub fn critical_path(steps: &[EndedStep]) -> Vec<(usize, Millis)> {
    let mut path = Vec::new();
    let mut at = (0..steps.len()).max_by(|a, b| steps[*a].end.0.total_cmp(&steps[*b].end.0));
    while let Some(step) = at {
        path.push((step, steps[step].took(steps)));
        at = steps[step].waited_for(steps);
    }
    path.reverse();
    path
}

/// For each step, how much later it could have ended without making the flow longer (critical path method,
/// J. E. Kelley and M. R. Walker, 1959).
pub fn slack(steps: &[EndedStep]) -> Vec<Millis> {
    let end = steps.iter().map(|step| step.end.0).fold(0.0, f64::max);
    let mut latest = vec![end; steps.len()];
    for (number, step) in steps.iter().enumerate().rev() {
        let begun = latest[number] - step.took(steps).0;
        for &need in &step.needs {
            latest[need] = latest[need].min(begun);
        }
    }
    (latest.iter().zip(steps))
        .map(|(latest, step)| latest - step.end.0)
        // Rounding errors of sums are no slack.
        .map(|slack| Millis(if slack < 1e-6 { 0.0 } else { slack }))
        .collect()
}

/// Collects steps by id and mode.
#[derive(Debug, Default)]
pub struct Positions {
    all: Vec<Position>,
    /// Indices into `all` by mode and id, since a flow may have very many steps.
    places: HashMap<Option<String>, HashMap<String, usize>>,
}

#[derive(Debug, Default)]
struct Position {
    record: PositionRecord,
    latency: Vec<f64>,
    queue: Vec<f64>,
    ttft: Vec<f64>,
    tpot: Vec<f64>,
    gaps: Vec<f64>,
    prefill_rate: Vec<f64>,
    decode_rate: Vec<f64>,
}

impl Positions {
    pub fn add(&mut self, step: &StepRecord) {
        let of_mode = self.places.get(&step.mode);
        let known = of_mode.and_then(|of_mode| of_mode.get(&step.step).copied());
        let index = known.unwrap_or_else(|| {
            let of_mode = self.places.entry(step.mode.clone()).or_default();
            of_mode.insert(step.step.clone(), self.all.len());
            self.all.push(Position {
                record: PositionRecord {
                    step: step.step.clone(),
                    mode: step.mode.clone(),
                    ..PositionRecord::default()
                },
                ..Position::default()
            });
            self.all.len() - 1
        });
        let position = &mut self.all[index];
        let record = &mut position.record;
        record.steps += 1;
        record.tokens += step.tokens;
        position.latency.push(step.latency_ms.0);
        position.queue.extend(step.queue_ms.map(|ms| ms.0));
        position.ttft.extend(step.ttft_ms.map(|ms| ms.0));
        position.tpot.extend(step.tpot_ms.map(|ms| ms.0));
        position.gaps.extend(&step.gaps_ms);
        position.prefill_rate.extend(step.prefill_tokens_per_s);
        position.decode_rate.extend(step.decode_tokens_per_s);
    }

    /// Time to first token over all steps.
    pub fn ttft_ms(&self) -> Option<Distribution> {
        let all = self.all.iter().flat_map(|position| &position.ttft);
        distribution(&all.copied().collect::<Vec<f64>>())
    }

    /// One record per id, in order of first occurrence.
    pub fn records(&self) -> Vec<PositionRecord> {
        let record = |position: &Position| PositionRecord {
            latency_ms: distribution(&position.latency),
            queue_ms: distribution(&position.queue),
            ttft_ms: distribution(&position.ttft),
            tpot_ms: distribution(&position.tpot),
            itl_ms: distribution(&position.gaps),
            prefill_tokens_per_s: distribution(&position.prefill_rate),
            decode_tokens_per_s: distribution(&position.decode_rate),
            ..position.record.clone()
        };
        self.all.iter().map(record).collect()
    }
}

/// The gaps between tokens, rounded to a microsecond, and their distribution.
pub fn gaps(tokens: &[Millis]) -> (Vec<f64>, Option<Distribution>) {
    let gaps: Vec<f64> = (tokens.windows(2))
        .map(|pair| ((pair[1] - pair[0]).0 * 1e3).round() / 1e3)
        .collect();
    let spread = distribution(&gaps);
    (gaps, spread)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn steps(steps: &[(f64, &[usize])]) -> Vec<EndedStep> {
        let step = |(end, needs): &(f64, &[usize])| EndedStep {
            end: Millis(*end),
            needs: needs.to_vec(),
        };
        steps.iter().map(step).collect()
    }

    #[test]
    fn the_longer_branch_of_a_diamond_is_critical() {
        // a ends at 10; b takes 30, c takes 5; d waits for both and takes 7.
        let diamond = steps(&[(10.0, &[]), (40.0, &[0]), (15.0, &[0]), (47.0, &[1, 2])]);
        assert_eq!(
            critical_path(&diamond),
            [(0, Millis(10.0)), (1, Millis(30.0)), (3, Millis(7.0))]
        );
        assert_eq!(slack(&diamond), [0.0, 0.0, 25.0, 0.0].map(Millis));
    }

    #[test]
    fn a_branch_without_dependents_has_slack() {
        let fork = steps(&[(10.0, &[]), (12.0, &[0]), (50.0, &[0])]);
        let path: Vec<usize> = critical_path(&fork).iter().map(|(step, _)| *step).collect();
        assert_eq!(path, [0, 2]);
        assert_eq!(slack(&fork), [0.0, 38.0, 0.0].map(Millis));
        assert!(critical_path(&[]).is_empty() && slack(&[]).is_empty());
    }

    proptest! {
        /// The times on the critical path add up to the makespan, and its steps have no slack.
        /// Delaying a step by its slack does not delay the flow.
        #[test]
        fn critical_path_and_slack_agree(
            durations in prop::collection::vec(1u32..1000, 1..8),
            edges in prop::collection::vec(any::<bool>(), 28),
        ) {
            let needs: Vec<Vec<usize>> = (0..durations.len())
                .map(|to| (0..to).filter(|from| edges[to * (to - 1) / 2 + from]).collect())
                .collect();
            let play = |durations: &[f64]| {
                let mut steps: Vec<EndedStep> = Vec::new();
                for (needs, took) in needs.iter().zip(durations) {
                    let ready = needs.iter().map(|need| steps[*need].end.0).fold(0.0, f64::max);
                    steps.push(EndedStep { end: Millis(ready + took), needs: needs.clone() });
                }
                steps
            };
            let makespan = |steps: &[EndedStep]| {
                steps.iter().map(|step| step.end.0).fold(0.0, f64::max)
            };
            let durations: Vec<f64> = durations.iter().map(|ms| f64::from(*ms)).collect();
            let played = play(&durations);
            let path = critical_path(&played);
            let sum: f64 = path.iter().map(|(_, ms)| ms.0).sum();
            prop_assert!((sum - makespan(&played)).abs() < 1e-6);
            let slack = slack(&played);
            prop_assert!(path.iter().all(|(step, _)| slack[*step].0 < 1e-6));
            for (step, slack) in slack.iter().enumerate() {
                let mut later = durations.clone();
                later[step] += slack.0;
                prop_assert!((makespan(&play(&later)) - makespan(&played)).abs() < 1e-6);
                later[step] += 1.0;
                prop_assert!(makespan(&play(&later)) > makespan(&played) + 0.5);
            }
        }
    }
}
