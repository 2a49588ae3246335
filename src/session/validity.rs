//! Joins what was watched with what was measured: the reasons of steps and workflows, and their energy.

use std::collections::HashMap;

use super::recorder::Recorder;
use super::sampler::{Measured, Sampler};
use crate::error::Result;
use crate::metrics::{self, EnergySeries, TaintIntervals, Tally};
use crate::record::validity::Taint;
use crate::record::{Energy, StepAmendment, WorkflowRecord};
use crate::report::warnings::{Gathered, serves_here};
use crate::stopwatch::Moment;
use crate::units::Millis;

/// A workflow among all that were measured.
type WorkflowKey = (usize, Option<String>, Option<usize>, bool);

impl Recorder<'_> {
    /// Starts watching the machine. Times count from `origin`.
    pub(super) fn watch(&mut self, origin: Moment) {
        // A server on this machine is one of the other processes, and what is measured.
        self.sampler = Some(Sampler::start(origin, !serves_here(&self.record)));
        // That of an earlier segment: its times have another start.
        self.record.validity = None;
    }

    /// What was found up to now.
    pub(super) fn found(&self) -> Option<Measured> {
        let sampler = self.sampler.as_ref()?;
        sampler.refresh();
        let mut found = sampler.measured();
        if !self.config.is_local() {
            // The model runs on a server, whose energy this machine does not know, or there is none.
            found.energy = None;
        }
        Some(found)
    }

    /// Energy from `start` to `end`, measured or else assumed.
    pub(super) fn joules_of_round(&self, start: Millis, end: Millis) -> Option<f64> {
        let measured = self.found().and_then(|found| {
            let (_, series) = found.energy?;
            series.between(start.0, end.0)
        });
        let assumed = self.config.machine.gpu_power;
        measured.or_else(|| assumed.map(|watts| watts * (end - start).seconds()))
    }

    /// Completes steps, workflows and totals at the end of the run: with reasons, energy, and marks of what was
    /// replaced. What earlier segments have measured stays as it is.
    ///
    /// # Errors
    /// Exit code 110 if `steps.jsonl` cannot be replaced.
    pub(super) fn settle(&mut self) -> Result<()> {
        let Some(found) = self.found() else {
            return Ok(());
        };
        self.record.validity = self.sampler.take().map(|sampler| sampler.record(true));
        let reruns = self.reruns.begun;
        if found.energy.is_none() && found.taints.is_empty() && !reruns {
            return Ok(());
        }
        let steps = self.measured_steps()?;
        // The times of other segments have other starts.
        let spans = steps.iter().map(|step| match step.is_own {
            true => step.span,
            false => [0.0, 0.0],
        });
        let spans: Vec<[f64; 2]> = spans.collect();
        let energy = found.energy.as_ref();
        let shares = energy.map(|(_, series)| metrics::energy_shares(series, &spans));
        self.settle_workflows(&steps, shares.as_deref(), &found.taints);
        // What earlier segments have used is not known.
        if let Some((source, series)) = energy.filter(|_| self.kept.segment.is_none()) {
            let kept = steps.iter().zip(shares.iter().flatten());
            let kept = kept.filter(|(step, _)| !step.discarded);
            let in_steps = kept.map(|(_, joules)| joules).sum();
            let energy = self.energy(source, series, in_steps, found.processors.as_ref());
            self.record.totals.energy = energy;
        }
        if reruns {
            self.count_again(&found.taints)?;
        }
        self.files.folder.amend_steps(&mut |number| {
            let step = steps.get(number)?;
            let reasons = found.taints.over(step.span[0], step.span[1]);
            if !reruns && step.is_own {
                self.tally.tainted(&reasons);
            }
            let joules = shares.as_ref().map(|shares| shares[number]);
            step.is_own.then_some(StepAmendment {
                tainted: reasons,
                energy_joules: joules.map(to_microjoules),
                discarded: step.discarded,
            })
        })
    }

    /// What is needed of each line of `steps.jsonl`.
    fn measured_steps(&self) -> Result<Vec<MeasuredStep>> {
        let mut steps = Vec::new();
        self.files.folder.each_step(&mut |step| {
            let start = step.start_ms.0;
            steps.push(MeasuredStep {
                span: [start, start + step.latency_ms.0],
                is_own: step.segment == self.kept.segment,
                discarded: self.reruns.is_discarded(&step),
                workflow: (step.flow, step.mode, step.round, step.rerun),
            });
        })?;
        Ok(steps)
    }

    fn settle_workflows(
        &mut self,
        steps: &[MeasuredStep],
        shares: Option<&[f64]>,
        taints: &TaintIntervals,
    ) {
        let mut joules: HashMap<&WorkflowKey, f64> = HashMap::new();
        for (step, share) in steps.iter().zip(shares.into_iter().flatten()) {
            *joules.entry(&step.workflow).or_default() += share;
        }
        let discarded = self.record.discarded.iter_mut();
        let all = self.record.workflows.iter_mut().chain(discarded);
        for workflow in all.filter(|of| of.segment == self.kept.segment) {
            workflow.tainted = reasons(workflow, taints);
            let (mode, round) = (workflow.mode.clone(), workflow.round);
            let key = (workflow.flow, mode, round, workflow.rerun);
            let sum = joules.get(&key).copied().unwrap_or_default();
            let has_all = !workflow.resumed;
            workflow.energy_joules = shares.filter(|_| has_all).map(|_| to_microjoules(sum));
        }
    }

    /// Energy from the start of the first workflow to the end of the last.
    fn energy(
        &self,
        source: &str,
        series: &EnergySeries,
        in_steps: f64,
        processors: Option<&EnergySeries>,
    ) -> Option<Energy> {
        let all = || self.record.workflows.iter().chain(&self.record.discarded);
        let start = all().map(|workflow| workflow.start_ms.0).reduce(f64::min)?;
        let end = all().map(|workflow| (workflow.start_ms + workflow.workflow_ms).0);
        let end = end.reduce(f64::max)?;
        let joules = series.between(start, end)?;
        let seconds = (end - start) / 1e3;
        Some(Energy {
            source: source.to_owned(),
            watts: joules / seconds,
            joules,
            steps_joules: Some(in_steps),
            processors_joules: processors.and_then(|series| series.between(start, end)),
            ..Energy::default()
        })
    }

    /// Counts the measurements that are kept, after some were replaced.
    fn count_again(&mut self, taints: &TaintIntervals) -> Result<()> {
        let (mut tally, mut gathered) = (Tally::default(), Gathered::default());
        self.files.folder.each_step(&mut |mut step| {
            if !self.reruns.is_discarded(&step) {
                let start = step.start_ms.0;
                step.tainted = taints.over(start, start + step.latency_ms.0);
                tally.step(&step);
                gathered.add(&step);
            }
        })?;
        for workflow in &self.record.workflows {
            tally.workflow(workflow);
        }
        self.tally = tally;
        self.gathered = gathered;
        Ok(())
    }
}

struct MeasuredStep {
    /// Start and end in milliseconds.
    span: [f64; 2],
    /// Whether this segment has measured it.
    is_own: bool,
    discarded: bool,
    workflow: WorkflowKey,
}

/// The reasons that held while a workflow ran.
pub(super) fn reasons(workflow: &WorkflowRecord, taints: &TaintIntervals) -> Vec<Taint> {
    let end = workflow.start_ms + workflow.workflow_ms;
    taints.over(workflow.start_ms.0, end.0)
}

/// More digits than any counter has would only make the files longer.
fn to_microjoules(joules: f64) -> f64 {
    (joules * 1e6).round() / 1e6
}
