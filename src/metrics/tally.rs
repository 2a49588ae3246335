//! Sums from steps to workflows to a run's totals: of a run as they end, of a merge from its parts.

use std::collections::BTreeMap;

use super::{Positions, Scores};
use crate::record::validity::Taint;
use crate::record::{StepRecord, TokenCounts, Totals, WorkflowRecord};
use crate::statistics::{distribution, mean};
use crate::units::Millis;

/// WorkflowCounts and times of steps and workflows.
#[derive(Debug, Clone, Default)]
pub struct WorkflowCounts {
    steps: usize,
    tokens: TokenCounts,
    /// Times of the workflows that ended well in one segment, in the order in which they ended (ms).
    workflow_ms: Vec<f64>,
    done: usize,
    failed: usize,
}

impl WorkflowCounts {
    pub fn step(&mut self, step: &StepRecord) {
        self.steps += 1;
        self.tokens += step.tokens;
    }

    pub fn workflow(&mut self, workflow: &WorkflowRecord) {
        if workflow.error.is_some() {
            self.failed += 1;
            return;
        }
        self.done += 1;
        if !workflow.resumed {
            self.workflow_ms.push(workflow.workflow_ms.0);
        }
    }

    pub fn tokens(&self) -> TokenCounts {
        self.tokens
    }

    /// How many workflows ended well.
    pub fn workflows_done(&self) -> usize {
        self.done
    }

    /// `None` if no workflow ended well.
    pub fn mean_workflow_ms(&self) -> Option<Millis> {
        mean(&self.workflow_ms).map(Millis)
    }
}

/// Everything in [`Totals`] that follows from steps and workflows.
#[derive(Debug, Default)]
pub struct Tally {
    counts: WorkflowCounts,
    positions: Positions,
    scores: Scores,
    rewards: Vec<f64>,
    /// Rewards in which an answer without a verdict counts 0.
    floors: Vec<f64>,
    undecided: usize,
    steps_tainted: usize,
    tainted: BTreeMap<Taint, usize>,
    /// Whether steps of `MODE=both` are among them: a mean over both modes would say nothing.
    several_modes: bool,
}

impl Tally {
    pub fn step(&mut self, step: &StepRecord) {
        self.counts.step(step);
        self.positions.add(step);
        self.scores.add(step);
        self.several_modes |= step.mode.is_some();
        self.tainted(&step.tainted);
    }

    /// Counts the reasons of a step, where they are known only after the step was added.
    pub fn tainted(&mut self, reasons: &[Taint]) {
        self.steps_tainted += usize::from(!reasons.is_empty());
        for reason in reasons {
            *self.tainted.entry(*reason).or_default() += 1;
        }
    }

    pub fn workflow(&mut self, workflow: &WorkflowRecord) {
        self.counts.workflow(workflow);
        self.rewards.extend(workflow.reward);
        self.floors.extend(workflow.reward_floor);
        let undecided = workflow.reward.is_none() && workflow.reward_floor.is_some();
        self.undecided += usize::from(undecided);
        self.several_modes |= workflow.mode.is_some();
    }

    /// Sets the counts alone, which takes the same time however long the run is.
    pub fn set_counts(&self, totals: &mut Totals) {
        totals.workflows_done = self.counts.workflows_done();
        totals.workflows_failed = self.counts.failed;
        totals.steps_done = self.counts.steps;
        totals.tokens = self.counts.tokens;
    }

    /// Sets counts and distributions.
    pub fn set_totals(&self, totals: &mut Totals) {
        self.set_counts(totals);
        if !self.several_modes {
            totals.avg_workflow_ms = self.counts.mean_workflow_ms();
            totals.workflow_ms = distribution(&self.counts.workflow_ms);
            totals.ttft_ms = self.positions.ttft_ms();
        }
        totals.positions = self.positions.records();
        totals.scores = self.scores.records();
        totals.reward = distribution(&self.rewards);
        totals.undecided = self.undecided;
        totals.steps_tainted = self.steps_tainted;
        totals.tainted = self.tainted.clone();
        totals.mean_reward = distribution(&self.floors).map(|floors| floors.mean);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(prompt: usize, mode: Option<&str>) -> StepRecord {
        StepRecord {
            tokens: TokenCounts {
                prompt,
                prefill: prompt,
                decode: 1,
                ..TokenCounts::default()
            },
            ttft_ms: Some(Millis(1.0)),
            mode: mode.map(str::to_owned),
            ..StepRecord::default()
        }
    }

    fn workflow(ms: f64, error: Option<&str>) -> WorkflowRecord {
        WorkflowRecord {
            workflow_ms: Millis(ms),
            error: error.map(str::to_owned),
            ..WorkflowRecord::default()
        }
    }

    #[test]
    fn failed_workflows_count_and_their_times_do_not() {
        let mut tally = Tally::default();
        tally.step(&step(3, None));
        tally.step(&step(4, None));
        tally.workflow(&workflow(10.0, None));
        tally.workflow(&workflow(1000.0, Some("broke")));
        let mut totals = Totals::default();
        tally.set_totals(&mut totals);
        assert_eq!((totals.workflows_done, totals.workflows_failed), (1, 1));
        assert_eq!((totals.steps_done, totals.tokens.prompt), (2, 7));
        assert_eq!(totals.avg_workflow_ms, Some(Millis(10.0)));
        assert_eq!(totals.ttft_ms.map(|spread| spread.count), Some(2));
    }

    #[test]
    fn times_of_resumed_workflows_are_left_out() {
        let mut tally = Tally::default();
        tally.workflow(&workflow(10.0, None));
        tally.workflow(&WorkflowRecord {
            resumed: true,
            ..workflow(1000.0, None)
        });
        let mut totals = Totals::default();
        tally.set_totals(&mut totals);
        assert_eq!(totals.workflows_done, 2);
        assert_eq!(totals.avg_workflow_ms, Some(Millis(10.0)));
    }

    #[test]
    fn tainted_steps_count_once_and_each_of_their_reasons() {
        let mut tally = Tally::default();
        tally.step(&step(1, None));
        tally.step(&StepRecord {
            tainted: vec![Taint::Steal, Taint::SwPowerCap],
            ..step(1, None)
        });
        tally.tainted(&[Taint::Steal]);
        let mut totals = Totals::default();
        tally.set_totals(&mut totals);
        assert_eq!(totals.steps_tainted, 2);
        assert_eq!(
            totals.tainted,
            [(Taint::Steal, 2), (Taint::SwPowerCap, 1)].into()
        );
    }

    #[test]
    fn two_modes_have_no_mean_in_common() {
        let mut tally = Tally::default();
        tally.step(&step(3, Some("reuse")));
        tally.workflow(&workflow(10.0, None));
        let mut totals = Totals::default();
        tally.set_totals(&mut totals);
        assert_eq!((totals.avg_workflow_ms, totals.ttft_ms), (None, None));
        assert_eq!((totals.steps_done, totals.positions.len()), (1, 1));
    }

    #[test]
    fn a_workflow_without_a_verdict_counts_as_zero_in_the_floor_alone() {
        let mut tally = Tally::default();
        for (reward, floor) in [(Some(1.0), Some(1.0)), (None, Some(0.0)), (None, None)] {
            tally.workflow(&WorkflowRecord {
                reward,
                reward_floor: floor,
                ..WorkflowRecord::default()
            });
        }
        let mut totals = Totals::default();
        tally.set_totals(&mut totals);
        assert_eq!(totals.reward.map(|spread| spread.mean), Some(1.0));
        assert_eq!((totals.undecided, totals.mean_reward), (1, Some(0.5)));
    }
}
