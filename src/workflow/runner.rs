//! The loop over requests and evaluations: what is ready begins ([`begin`]), what ends is measured
//! ([`end`]).

mod begin;
mod end;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use super::item::Item;
use super::judge::Order;
use super::running::Running;
use super::step::RequestBuilder;
use super::{Means, Observer, RunnerOptions};
use crate::engine::{EventKind, Message, Origin, RequestId};
use crate::error::{Error, Result};
use crate::evaluate::{EvaluationId, VerificationId};
use crate::flow::{Scored, Work};
use crate::profile::{self, Activity, Count, Span};
use crate::record::StepRecord;
use crate::stopwatch::Moment;
use crate::units::Millis;

/// How long to wait for an evaluation where nothing else is to be done: an interrupt is looked at in
/// between.
const LONGEST_WAIT: Duration = Duration::from_millis(20);

/// How long to wait for one of two that may end.
const SHORT_WAIT: Duration = Duration::from_millis(1);

pub(super) struct Runner<'a, 'm> {
    pub(super) means: &'a mut Means<'m>,
    pub(super) options: &'a RunnerOptions,
    pub(super) origin: Moment,
    pub(super) observer: &'a mut dyn Observer,
    pub(super) requests: RequestBuilder,
    /// The flows in flight, by their number.
    pub(super) running: BTreeMap<usize, Running<'a>>,
    pub(super) in_flight: HashMap<RequestId, InFlight>,
    pub(super) evaluations: HashMap<EvaluationId, Evaluating>,
    pub(super) checks: HashMap<VerificationId, Checking>,
    /// What ended as it began, and has still to be told.
    pub(super) settled: VecDeque<Settled>,
    /// Verdicts of judges of which the other half is still to come.
    pub(super) half_judged: HashMap<(Place, Order), (StepRecord, Option<bool>)>,
    /// For how long the engine has computed beside evaluations.
    pub(super) overlap: Millis,
}

/// A sample of a step of a flow; step and sample are counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    flow: usize,
    step: usize,
    sample: usize,
}

/// A request that has not ended.
pub(super) struct InFlight {
    place: Place,
    /// Of a judge only.
    order: Option<Order>,
    pub(super) submitted: Moment,
    /// When its first forward pass began, where the engine tells.
    pub(super) started: Option<Moment>,
    /// When each token came, counted from `submitted`.
    pub(super) tokens: Vec<Millis>,
    messages: Vec<Message>,
    origin: Origin,
    activity: Activity,
}

impl InFlight {
    /// A request that was submitted just now, of a step that generates.
    fn new(place: Place, submitted: Moment, origin: Origin, activity: Activity) -> Self {
        Self {
            place,
            order: None,
            submitted,
            started: None,
            tokens: Vec::new(),
            messages: Vec::new(),
            origin,
            activity,
        }
    }
}

/// A program that is run.
pub(super) struct Evaluating {
    place: Place,
    submitted: Moment,
    code: String,
    /// [`Runner::overlap`] at its submission.
    overlap: Millis,
    activity: Activity,
}

/// What needs no waiting for. It is not ended where it begins: a failure to keep it is the run's, a
/// failure to begin a step is its flow's.
pub(super) enum Settled {
    /// An answer that had been decided before a judge was asked.
    Decided(Place, Item),
    /// An answer without a program in it.
    NoProgram(Place, Moment, Scored),
    /// A text without an answer in it.
    NoAnswer(Checking, Scored),
    /// A step that selects, of a flow.
    Selection(usize, usize),
}

/// An answer that is checked.
pub(super) struct Checking {
    place: Place,
    submitted: Moment,
    text: String,
    answer: Option<String>,
    activity: Activity,
}

impl Runner<'_, '_> {
    /// One poll of verifier, evaluator and engine. Everything that the engine reports is stamped with
    /// one reading of the clock.
    pub(super) fn poll(&mut self) -> Result<()> {
        self.settle()?;
        let computing = !self.in_flight.is_empty();
        let (checking, evaluating) = (!self.checks.is_empty(), !self.evaluations.is_empty());
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

    fn poll_engine(&mut self) -> Result<()> {
        let beside = match self.evaluations.is_empty() {
            true => None,
            false => Some(Moment::now(self.means.engine)?),
        };
        let events = self.means.engine.poll()?;
        if events.is_empty() && beside.is_none() {
            return Ok(());
        }
        let now = Moment::now(self.means.engine)?;
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
        let mut verified = self.means.verifier.poll(wait);
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
        let Some(evaluator) = self.means.evaluator.as_deref_mut() else {
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

impl Place {
    /// Says in a record which sample of which step it is.
    fn describe(self, running: &Running, record: &mut StepRecord) {
        let step = running.step(self.step);
        record.flow = self.flow;
        record.row.clone_from(&running.flow.row);
        record.step.clone_from(&step.id);
        record.kind = match step.work {
            Work::Generate(_) => None,
            _ => Some(step.work.kind().to_owned()),
        };
        record.sample = (running.nodes[self.step].samples() > 1).then_some(self.sample + 1);
        record.generation = step.generation.as_ref().map(|of| of.number);
        record.needs.clone_from(&step.needs);
    }
}

fn step_activity(running: &Running, step: usize) -> Activity {
    (running.activity.child(Span::Step)).labelled(|| running.flow.steps[step].id.clone())
}
