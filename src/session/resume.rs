//! Goes on with an earlier run, in its folder: what has ended is kept, what has not is run.
//!
//! A workflow has ended if `run.json` has it. Of other workflows, the steps that have ended are kept, and the
//! runner begins with what they leave open. In `MODE=both` an unfinished round is run again as a whole, since
//! its time would be that of no round.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::verdict::verdict;
use crate::config::{Mode, RunConfig};
use crate::error::{Error, Exit, Result};
use crate::flow::{Flow, Step};
use crate::record::compare::Difference;
use crate::record::evaluation::VerificationRecord;
use crate::record::segment::{Segment, SegmentEnd};
use crate::record::{RoundRecord, RunRecord, Status, StepRecord, Totals, WorkflowRecord};
use crate::report::{Console, timing};
use crate::results::{self, Reopened, RolloutFile, RunFolder};
use crate::units::Millis;
use crate::workflow::Outcome;

/// An earlier run whose job is that of the settings.
pub(super) struct Earlier {
    run: Reopened,
    /// The record of the settings and the machine of now.
    again: RunRecord,
}

/// What an earlier run leaves to this segment.
#[derive(Default)]
pub(super) struct Kept {
    /// Number of this segment, from 2; `None` without an earlier one.
    pub(super) segment: Option<usize>,
    pub(super) steps: Vec<StepRecord>,
    pub(super) workflows: Vec<WorkflowRecord>,
    /// `MODE=both` only: rounds that have ended.
    pub(super) rounds: Vec<RoundRecord>,
    pub(super) engine: Value,
    pub(super) engine_starts: usize,
    /// Engine init and workflows of the earlier segments.
    pub(super) benchmark_ms: Millis,
    pub(super) verification: Option<VerificationRecord>,
}

/// Opens and locks the run that `--resume` names, if it names one.
///
/// # Errors
/// As [`Reopened::open`].
pub(super) fn open(config: &RunConfig) -> Result<Option<Reopened>> {
    let name = config.resume.as_deref();
    name.map(|name| Reopened::open(name, &config.presentation.out))
        .transpose()
}

impl Earlier {
    /// Checks that `run` measured the job of `again`, and that its steps are steps of `flows`.
    ///
    /// # Errors
    /// Exit code 2, with what differs.
    pub(super) fn check(run: Reopened, again: &RunRecord, flows: &[Flow]) -> Result<Self> {
        let path = run.path().display().to_string();
        if !run.record.shards.is_empty() {
            return Err(
                Error::usage(format!("{path}: a merged run cannot be resumed"))
                    .hint("resume the run of the shard that is not complete, and merge again"),
            );
        }
        if let Some(difference) = results::obstacle(&run.record, again) {
            let what = format!("{path}: {}", differs(&difference));
            return Err(Error::usage(what)
                .hint("resume a run with the settings and files that it was started with"));
        }
        check_steps(&run.steps, flows).map_err(|what| {
            Error::usage(format!("{path}/steps.jsonl: {what}"))
                .hint("the file was changed after the run: start a new one")
        })?;
        Ok(Self {
            run,
            again: again.clone(),
        })
    }

    /// If every workflow had ended and the run ended in order, says so, and returns how the run ended.
    pub(super) fn nothing_to_do(&self, console: &mut Console) -> Result<Option<Exit>> {
        let record = &self.run.record;
        if !matches!(record.status, Status::Complete | Status::Failed) {
            return Ok(None);
        }
        console.progress("Nothing to do: every workflow of the run has ended");
        console.result(&timing::run(self.run.path()))?;
        let comparison = record.comparison.as_ref();
        let outputs = comparison.map(|comparison| &comparison.outputs);
        let ended = record.workflows.len();
        match verdict(&Outcome::Ended, &record.totals, ended, outputs) {
            (_, None) => Ok(Some(Exit::Done)),
            (_, Some(error)) => Err(error),
        }
    }

    /// Workflows that have failed, by flow.
    pub(super) fn failed(&self) -> BTreeSet<usize> {
        let failed = |workflow: &&WorkflowRecord| workflow.error.is_some();
        let failed = self.run.record.workflows.iter().filter(failed);
        failed.map(|workflow| workflow.flow).collect()
    }

    /// Removes from the folder what cannot be kept, and returns it with the record of the run as it goes on.
    /// A workflow without a line in `rollouts` has not ended.
    ///
    /// # Errors
    /// Exit code 110 if the folder cannot be written.
    pub(super) fn go_on(
        self,
        flows: &[Flow],
        rollouts: Option<&RolloutFile>,
    ) -> Result<(RunFolder, RunRecord, Kept)> {
        let both =
            self.again.settings.get("mode").and_then(Value::as_str) == Some(Mode::Both.as_str());
        let mut record = self.run.record.clone();
        let segment = end_last_segment(&mut record, &self.run.steps);
        let rounds = finished_rounds(&record, flows.len());
        let in_round = |round: Option<usize>, mode: &Option<String>| {
            let is_it =
                |done: &RoundRecord| Some(done.round) == round && Some(&done.mode) == mode.as_ref();
            rounds.iter().any(is_it)
        };
        record.workflows.retain(|workflow| match both {
            true => in_round(workflow.round, &workflow.mode),
            false => rollouts.is_none_or(|rollouts| rollouts.has(workflow.flow)),
        });
        let ended: BTreeSet<usize> = record.workflows.iter().map(|of| of.flow).collect();
        let judged = judged_in_both_orders(&self.run.steps);
        let (folder, steps, steps_dropped) = self.run.keep(|step| match both {
            true => in_round(step.round, &step.mode),
            false => {
                step.kind() != "judge" || ended.contains(&step.flow) || judged.contains(&key(step))
            }
        })?;
        record.segments.push(Segment {
            steps_kept: steps.len(),
            steps_dropped,
            differs: results::circumstances(&record, &self.again),
            ..Segment::starting(self.again.started_at.clone())
        });
        record.status = Status::Running;
        record.error = None;
        record.warnings = Vec::new();
        record.rollouts = None;
        record.profile = None;
        let benchmark_ms = record
            .segments
            .iter()
            .filter_map(|of| of.benchmark_total_ms)
            .sum();
        let kept = Kept {
            segment: Some(segment),
            steps,
            workflows: record.workflows.clone(),
            rounds,
            engine: record.engine.clone(),
            engine_starts: record.engine_starts,
            benchmark_ms,
            verification: record.totals.verification.clone(),
        };
        record.comparison = None;
        record.environment.load = None;
        // The others follow from steps and workflows.
        record.totals = Totals {
            remote: record.totals.remote,
            memory_shortages: record.totals.memory_shortages,
            ..Totals::default()
        };
        Ok((folder, record, kept))
    }
}

impl Kept {
    /// The flows that have not ended. A flow with a line in `rollouts` and no step in the run was done by an
    /// earlier run.
    pub(super) fn remaining(
        &self,
        flows: &[Flow],
        rollouts: Option<&RolloutFile>,
    ) -> Option<Vec<Flow>> {
        if self.segment.is_none() && rollouts.is_none() {
            return None;
        }
        if !self.rounds.is_empty() {
            return None;
        }
        let of_steps: BTreeSet<usize> = self.steps.iter().map(|step| step.flow).collect();
        let of_workflows: BTreeSet<usize> = self.workflows.iter().map(|of| of.flow).collect();
        let has_line = |flow: usize| rollouts.is_some_and(|rollouts| rollouts.has(flow));
        let is_open = |flow: &&Flow| {
            let number = flow.flow;
            !of_workflows.contains(&number) && (of_steps.contains(&number) || !has_line(number))
        };
        Some(flows.iter().filter(is_open).cloned().collect())
    }

    /// The steps of workflows that have not ended, by flow. In `MODE=both` there are none.
    pub(super) fn open_steps(&self) -> Arc<HashMap<usize, Vec<StepRecord>>> {
        let ended: BTreeSet<usize> = self.workflows.iter().map(|of| of.flow).collect();
        let mut open: HashMap<usize, Vec<StepRecord>> = HashMap::new();
        for step in self.steps.iter().filter(|step| step.mode.is_none()) {
            if !ended.contains(&step.flow) {
                open.entry(step.flow).or_default().push(step.clone());
            }
        }
        Arc::new(open)
    }

    /// Checks that the engine that has been started is the one of the earlier segments.
    ///
    /// # Errors
    /// Exit code 2, with what differs.
    pub(super) fn check_engine(&self, record: &RunRecord, folder: &Path) -> Result<()> {
        let mut before = record.clone();
        before.engine = self.engine.clone();
        let Some(difference) = results::obstacle(&before, record) else {
            return Ok(());
        };
        let what = format!("{}: {}", folder.display(), differs(&difference));
        Err(Error::usage(what).hint("resume a run with the model that it was started with"))
    }
}

fn differs(difference: &Difference) -> String {
    let Difference { name, base, new } = difference;
    format!("the job differs: {name} was {base} and is {new}")
}

/// Completes what is known of the last segment, whose process may have been killed. Returns the number of the
/// next one.
fn end_last_segment(record: &mut RunRecord, steps: &[StepRecord]) -> usize {
    if record.segments.is_empty() {
        // Of an earlier version.
        record.segments = vec![Segment {
            benchmark_total_ms: record.totals.benchmark_total_ms,
            ..Segment::starting(record.started_at.clone())
        }];
    }
    let number = record.segments.len();
    if let Some(last) = record.segments.last_mut() {
        if last.end == SegmentEnd::Running {
            last.end = SegmentEnd::Killed;
        }
        if last.benchmark_total_ms.is_none() {
            let own = |step: &&StepRecord| step.segment.unwrap_or(1) == number;
            let ends = steps.iter().filter(own);
            let ends = ends.map(|step| step.start_ms.0 + step.latency_ms.0);
            last.benchmark_total_ms = ends.reduce(f64::max).map(Millis);
        }
    }
    number + 1
}

/// The rounds of `MODE=both` in which every one of `num_flows` workflows ended, well or not.
fn finished_rounds(record: &RunRecord, num_flows: usize) -> Vec<RoundRecord> {
    let mut ended: BTreeMap<(Option<usize>, Option<&str>), usize> = BTreeMap::new();
    for workflow in &record.workflows {
        let round = (workflow.round, workflow.mode.as_deref());
        *ended.entry(round).or_default() += 1;
    }
    let rounds = record.comparison.iter().flat_map(|of| &of.rounds);
    let is_finished = |round: &&RoundRecord| {
        let key = (Some(round.round), Some(round.mode.as_str()));
        ended.get(&key) == Some(&num_flows)
    };
    rounds.filter(is_finished).cloned().collect()
}

/// A judge's answer: flow, step, and number of the answer from 0. Requests are counted from 1, two per answer.
type Judged = (usize, String, usize);

fn key(step: &StepRecord) -> Judged {
    let request = step.sample.unwrap_or(1).saturating_sub(1);
    (step.flow, step.step.clone(), request / 2)
}

/// The answers that were judged in both orders.
fn judged_in_both_orders(steps: &[StepRecord]) -> BTreeSet<Judged> {
    let mut requests: BTreeMap<Judged, usize> = BTreeMap::new();
    for step in steps.iter().filter(|step| step.kind() == "judge") {
        *requests.entry(key(step)).or_default() += 1;
    }
    let both = requests.into_iter().filter(|(_, count)| *count > 1);
    both.map(|(judged, _)| judged).collect()
}

/// Checks that each step is one of the flows, and is there once.
fn check_steps(steps: &[StepRecord], flows: &[Flow]) -> Result<(), String> {
    let mut known: HashMap<usize, BTreeMap<&str, &Step>> = HashMap::new();
    for flow in flows {
        let steps = flow.steps.iter().map(|step| (step.id.as_str(), step));
        known.insert(flow.flow, steps.collect());
    }
    let mut seen = BTreeSet::new();
    for step in steps {
        let (flow, label) = (step.flow, step.label());
        let of_flow = known
            .get(&flow)
            .and_then(|steps| steps.get(step.step.as_str()));
        if of_flow.is_none_or(|known| known.work.kind() != step.kind()) {
            return Err(format!("flow {flow} has no step {label}"));
        }
        if !seen.insert((flow, &step.step, step.sample, step.round, &step.mode)) {
            return Err(format!("flow {flow}, step {label} has ended twice"));
        }
    }
    Ok(())
}
