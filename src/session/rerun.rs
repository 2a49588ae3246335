//! `--discard-tainted`: runs flows again, at the end of a run, that were measured while something disturbed
//! them.

use super::Job;
use super::recorder::Recorder;
use super::validity::reasons;
use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::flow::{Flow, Work};
use crate::record::WorkflowRecord;
use crate::units::plural;
use crate::workflow::Outcome;

/// At most one of so many flows is run again. Where more are tainted, the disturbance is the machine's usual
/// state: to measure until it is away would select the best of several runs.
const ONE_OF: usize = 4;

/// Programs of a flow that is run again would be a second evolution beside the first.
///
/// # Errors
/// Exit code 2 if the flows evaluate programs.
pub(super) fn check(config: &RunConfig, flows: &[Flow]) -> Result<()> {
    let mut steps = flows.iter().flat_map(|flow| &flow.steps);
    let evaluates = steps.any(|step| matches!(step.work, Work::Evaluate(_)));
    match config.job.discard_tainted && evaluates {
        true => Err(Error::usage(
            "--discard-tainted is given, but the template's flows evaluate programs",
        )
        .hint("the trials of a flow are kept as it runs: run without --discard-tainted (DISCARD_TAINTED=0)")),
        false => Ok(()),
    }
}

impl Recorder<'_> {
    /// The flows that are to be run again: the first of those that succeeded and are tainted.
    pub(super) fn tainted_flows(&mut self, job: &Job) -> Vec<Flow> {
        if !self.config.job.discard_tainted {
            return Vec::new();
        }
        let Some(found) = self.found() else {
            return Vec::new();
        };
        let is_tainted = |flow: &Flow| {
            let mut workflows = self.record.workflows.iter();
            let own = workflows.find(|workflow| workflow.flow == flow.flow);
            own.is_some_and(|own| own.error.is_none() && !reasons(own, &found.taints).is_empty())
        };
        let tainted: Vec<&Flow> = job.flows.iter().filter(|flow| is_tainted(flow)).collect();
        let most = job.flows.len().div_ceil(ONE_OF);
        let chosen: Vec<Flow> = tainted.iter().take(most).copied().cloned().collect();
        if !chosen.is_empty() {
            self.console.progress(&format!(
                "{} of {} tainted: running {} again",
                tainted.len(),
                plural(job.flows.len(), "flow"),
                chosen.len()
            ));
            self.reruns.begun = true;
        }
        chosen
    }

    /// Takes the second measurement of a workflow in place of the first, if it succeeded: whatever it is, so
    /// that none is chosen for its value.
    pub(super) fn replace(&mut self, workflow: WorkflowRecord) {
        let workflows = &mut self.record.workflows;
        let first = workflows
            .iter()
            .position(|first| first.flow == workflow.flow);
        match first.filter(|_| workflow.error.is_none()) {
            Some(first) => {
                self.reruns.replaced.insert(workflow.flow);
                let first = std::mem::replace(&mut workflows[first], workflow);
                self.record.discarded.push(first);
            }
            None => self.record.discarded.push(workflow),
        }
    }
}

/// How the run ended. All flows were measured before, so that a limit only ends the second measurements.
pub(super) fn outcome_after(reruns: Outcome) -> Outcome {
    match reruns {
        Outcome::Limited(_) => Outcome::Ended,
        other => other,
    }
}
