//! The loop over requests and evaluations: starts what is ready ([`begin`]), measures what ends ([`end`]), and
//! restores what ended in an earlier segment of the run ([`restore`]).

mod begin;
mod end;
mod restore;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::flow_state::{FlowState, Flows};
use super::in_flight::{InFlight, SampleId};
use super::judge::Order;
use super::step::RequestBuilder;
use super::step_state::SampleResult;
use super::{Observer, RunnerOptions, Services};
use crate::engine::{EventKind, RequestId};
use crate::error::{Error, Result};
use crate::evaluate::{EvaluationId, VerificationId};
use crate::flow::{Scored, Work};
use crate::profile::{self, Activity, Count, Span};
use crate::record::StepRecord;
use crate::stopwatch::Moment;
use crate::units::Millis;

/// Longest wait for an evaluation when nothing else is in flight. Interrupts are checked in between.
const LONGEST_WAIT: Duration = Duration::from_millis(20);

/// Wait for evaluations while answers are being checked as well.
const SHORT_WAIT: Duration = Duration::from_millis(1);

pub(super) struct Runner<'a, 'm> {
    pub(super) services: &'a mut Services<'m>,
    pub(super) options: &'a RunnerOptions,
    pub(super) origin: Moment,
    pub(super) observer: &'a mut dyn Observer,
    pub(super) requests: RequestBuilder,
    pub(super) flows: Flows<'a>,
    pub(super) in_flight: HashMap<RequestId, InFlight>,
    pub(super) evaluations: HashMap<EvaluationId, Evaluating>,
    pub(super) checks: HashMap<VerificationId, Checking>,
    pub(super) immediate: VecDeque<Immediate>,
    /// Judgements whose request in the other order has not ended.
    pub(super) half_judged: HashMap<(SampleId, Order), HalfJudged>,
    /// For how long the engine has computed while evaluations were running.
    pub(super) overlap: Millis,
}

/// A judge's request that has ended, and its verdict.
pub(super) struct HalfJudged {
    record: StepRecord,
    same: Option<bool>,
}

/// A program that is running.
pub(super) struct Evaluating {
    place: SampleId,
    submitted: Moment,
    code: String,
    /// [`Runner::overlap`] at submission.
    overlap: Millis,
    activity: Activity,
}

/// What ends as it begins. It is queued all the same: an error of its end ends the run, an error of its
/// beginning only the flow.
pub(super) enum Immediate {
    /// An answer that was decided before a judge was asked.
    Decided(SampleId, SampleResult),
    /// An answer without a program.
    NoProgram {
        id: SampleId,
        submitted: Moment,
        scored: Scored,
    },
    /// A text without an answer, or one that is compared here and now.
    Checked(Checking, Scored),
    Selection {
        flow: usize,
        step: usize,
    },
}

impl Immediate {
    fn flow(&self) -> usize {
        match self {
            Self::Decided(id, _) | Self::NoProgram { id, .. } => id.flow,
            Self::Checked(checking, _) => checking.place.flow,
            Self::Selection { flow, .. } => *flow,
        }
    }
}

/// An answer that is being checked.
pub(super) struct Checking {
    place: SampleId,
    submitted: Moment,
    text: String,
    answer: Option<String>,
    activity: Activity,
}

impl Runner<'_, '_> {
    /// Polls verifier, evaluator and engine. All events of the engine get one reading of the clock.
    pub(super) fn poll(&mut self) -> Result<()> {
        self.end_immediate()?;
        let computing = !self.in_flight.is_empty();
        let checking = !self.checks.is_empty();
        let evaluating = !self.evaluations.is_empty();
        if !computing && !checking && !evaluating {
            return self.fail_stuck();
        }
        if checking {
            self.poll_verifier(match computing || evaluating {
                true => Duration::ZERO,
                false => LONGEST_WAIT,
            })?;
        }
        if evaluating {
            self.poll_evaluator(match (computing, checking) {
                (true, _) => Duration::ZERO,
                (false, true) => SHORT_WAIT,
                (false, false) => LONGEST_WAIT,
            })?;
        }
        if computing {
            self.poll_engine()?;
        }
        Ok(())
    }

    /// Fails the flows in flight when nothing is, which would be waited for without end. The expansion writes no
    /// flow without steps, or with a step that works on a later or an unknown one.
    fn fail_stuck(&mut self) -> Result<()> {
        while let Some(flow) = self.flows.first() {
            let what = format!("flow {flow}: none of its steps can begin, and some have not ended");
            let hint = "its expanded file is damaged: remove flows/.expanded_cache.json";
            self.fail(flow, Error::flow(what).hint(hint))?;
        }
        Ok(())
    }

    fn poll_engine(&mut self) -> Result<()> {
        let beside = match self.evaluations.is_empty() {
            true => None,
            false => Some(Moment::now(self.services.engine)?),
        };
        let events = self.services.engine.poll()?;
        if events.is_empty() && beside.is_none() {
            return Ok(());
        }
        let now = Moment::now(self.services.engine)?;
        if let Some(before) = beside {
            self.overlap = self.overlap + now.since(before);
        }
        for event in events {
            match event.kind {
                EventKind::Started => {
                    if let Some(request) = self.in_flight.get_mut(&event.id) {
                        request.started.get_or_insert(now);
                    }
                }
                EventKind::Token(_) => {
                    profile::count(Count::Generated, 1);
                    if let Some(request) = self.in_flight.get_mut(&event.id) {
                        request.tokens.push(now.since(request.submitted));
                    }
                }
                // No step streams its text.
                EventKind::Text(_) => {}
                EventKind::Restarted => {
                    if let Some(request) = self.in_flight.get_mut(&event.id) {
                        request.tokens.clear();
                        request.started = None;
                    }
                }
                EventKind::Finished(completion) => {
                    if let Some(request) = self.in_flight.remove(&event.id) {
                        self.finish(request, completion, now)?;
                    }
                }
                EventKind::Failed(reason) => {
                    if let Some(request) = self.in_flight.remove(&event.id) {
                        let flow = request.place.flow;
                        let step = &request.origin.step;
                        self.fail(
                            flow,
                            Error::flow(format!("flow {flow}, step {step}: {reason}")),
                        )?;
                    }
                }
            }
        }
        Ok(())
    }

    fn poll_verifier(&mut self, wait: Duration) -> Result<()> {
        let mut verified = self.services.verifier.poll(wait);
        verified.sort_by_key(|verified| verified.id);
        for verified in verified {
            let Some(checking) = self.checks.remove(&verified.id) else {
                continue;
            };
            let scored = Scored {
                score: verified.verdict.score(),
                outcome: verified.verdict.as_str().to_owned(),
                detail: verified.reason,
                answer: checking.answer.clone(),
            };
            self.checked(checking, scored)?;
        }
        Ok(())
    }

    fn poll_evaluator(&mut self, wait: Duration) -> Result<()> {
        let Some(evaluator) = self.services.evaluator.as_deref_mut() else {
            return Ok(());
        };
        let mut finished = evaluator.poll(wait);
        finished.sort_by_key(|finished| finished.id);
        for finished in finished {
            if let Some(evaluating) = self.evaluations.remove(&finished.id) {
                self.evaluated(evaluating, finished)?;
            }
        }
        Ok(())
    }
}

impl SampleId {
    /// Sets what identifies the sample in its record.
    fn describe(self, running: &FlowState, options: &RunnerOptions, record: &mut StepRecord) {
        record.segment = options.segment;
        let step = running.step(self.step);
        record.flow = self.flow;
        record.row.clone_from(&running.flow.row);
        record.step.clone_from(&step.id);
        record.kind = match step.work {
            Work::Generate(_) => None,
            _ => Some(step.work.kind().to_owned()),
        };
        record.sample = (running.steps[self.step].samples() > 1).then_some(self.sample + 1);
        record.generation = step.generation.as_ref().map(|of| of.number);
        record.needs.clone_from(&step.needs);
    }
}

fn step_activity(running: &FlowState, step: usize) -> Activity {
    (running.activity.child(Span::Step)).labelled(|| running.flow.steps[step].id.clone())
}
