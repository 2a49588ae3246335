//! Measures what ends, passes it to the observer, and begins what has waited for it.

use std::collections::BTreeMap;

use super::{Checking, Evaluating, HalfJudged, Immediate, Runner};
use crate::engine::{Completion, RequestId};
use crate::error::{Error, Result};
use crate::evaluate::{EvaluationId, Finished, verify};
use crate::flow::{Part, Scored, Select, Work};
use crate::profile::{self, Count};
use crate::record::evaluation::{EvaluationRecord, GenerationRecord, TrialRecord};
use crate::record::{RECORD_SCHEMA, StepRecord, WorkflowRecord};
use crate::stopwatch::Moment;
use crate::units::Millis;
use crate::workflow::flow_state::FlowState;
use crate::workflow::in_flight::{InFlight, SampleId};
use crate::workflow::judge::{self, Order};
use crate::workflow::step_state::{SampleResult, best};
use crate::workflow::{Response, measure};

/// A trial whose program has ended, or that had none.
struct EndedTrial {
    id: SampleId,
    submitted: Moment,
    code: Option<String>,
    scored: Scored,
    evaluation: Option<EvaluationRecord>,
}

impl Runner<'_, '_> {
    /// Ends what ended as it began, and whatever that lets begin and end in turn.
    pub(super) fn end_immediate(&mut self) -> Result<()> {
        while let Some(immediate) = self.immediate.pop_front() {
            match immediate {
                Immediate::Decided(place, item) => {
                    let now = Moment::now(self.services.engine)?;
                    self.end_sample(place, item, None, now)?;
                }
                Immediate::NoProgram {
                    id,
                    submitted,
                    scored,
                } => {
                    let trial = EndedTrial {
                        id,
                        submitted,
                        code: None,
                        scored,
                        evaluation: None,
                    };
                    self.end_trial(trial)?;
                }
                Immediate::Checked(checking, scored) => self.checked(checking, scored)?,
                Immediate::Selection { flow, step } => self.select(flow, step)?,
            }
        }
        Ok(())
    }

    fn select(&mut self, flow: usize, step: usize) -> Result<()> {
        let now = Moment::now(self.services.engine)?;
        let running = self.flows.get_mut(flow)?;
        let Work::Select(select) = &running.step(step).work else {
            return Ok(());
        };
        let kept = selected(running, select);
        running.steps[step].end_all(kept);
        self.end_step(flow, step, now)
    }

    /// A request has ended well.
    pub(super) fn finish(
        &mut self,
        request: InFlight,
        completion: Completion,
        now: Moment,
    ) -> Result<()> {
        let place = request.place;
        let running = self.flows.get(place.flow)?;
        let step = running.step(place.step);
        self.services.accounts.enter(step.work.kind(), &completion);
        let mut record = measure::generation(&request, &completion, now, self.origin);
        // Dropped first, so that in the trace its end comes before the start of what has waited for it.
        drop(request.activity);
        place.describe(running, self.options, &mut record);
        let pinned = match self.services.pins {
            None => None,
            Some(pins) => match pins.text(&request.origin) {
                Some(text) => Some(text.to_owned()),
                None => {
                    let error = not_pinned(place.flow, &record);
                    self.observer.step_ended(record)?;
                    return self.fail(place.flow, error);
                }
            },
        };
        record.pinned = pinned.is_some();
        let text = pinned.unwrap_or(completion.text);
        if let Some(order) = request.order {
            return self.judged(place, order, record, &text, now);
        }
        let item = SampleResult {
            text,
            messages: request.messages,
            ..SampleResult::default()
        };
        self.end_sample(place, item, Some(record), now)
    }

    /// One of a judge's two requests has ended.
    fn judged(
        &mut self,
        place: SampleId,
        order: Order,
        mut record: StepRecord,
        text: &str,
        now: Moment,
    ) -> Result<()> {
        let same = judge::verdict(text);
        record.sample = Some(2 * place.sample + 1 + usize::from(order == Order::ExpectedFirst));
        record.outcome = Some(verify::Verdict::of(same).as_str().to_owned());
        let other = match order {
            Order::AnswerFirst => Order::ExpectedFirst,
            Order::ExpectedFirst => Order::AnswerFirst,
        };
        let Some(earlier) = self.half_judged.remove(&(place, other)) else {
            let half = HalfJudged { record, same };
            self.half_judged.insert((place, order), half);
            return Ok(());
        };
        let mut first = earlier.record;
        let verdict = verify::Verdict::of(judge::together(same, earlier.same));
        first.score = verdict.score();
        record.score = verdict.score();
        let running = self.flows.get_mut(place.flow)?;
        let item = judged_item(running, place, verdict);
        running.tokens += first.tokens;
        self.observer.step_ended(first)?;
        self.end_sample(place, item, Some(record), now)
    }

    /// An answer has been checked.
    pub(super) fn checked(&mut self, checking: Checking, scored: Scored) -> Result<()> {
        drop(checking.activity);
        let now = Moment::now(self.services.engine)?;
        let item = SampleResult {
            text: checking.text,
            scored: Some(scored),
            origin: Some((checking.place.step, checking.place.sample)),
            ..SampleResult::default()
        };
        let record = self.record_of(checking.place, &item, checking.submitted, now)?;
        self.end_sample(checking.place, item, Some(record), now)
    }

    /// A program has been run.
    pub(super) fn evaluated(&mut self, evaluating: Evaluating, finished: Finished) -> Result<()> {
        drop(evaluating.activity);
        let mut times = measure::evaluation(&finished);
        times.overlap_ms = self.overlap - evaluating.overlap;
        let scored = Scored {
            score: finished.score,
            outcome: finished.outcome.as_str().to_owned(),
            detail: finished.detail,
            answer: None,
        };
        self.end_trial(EndedTrial {
            id: evaluating.place,
            submitted: evaluating.submitted,
            code: Some(evaluating.code),
            scored,
            evaluation: Some(times),
        })
    }

    fn end_trial(&mut self, ended: EndedTrial) -> Result<()> {
        let EndedTrial {
            id,
            submitted,
            code,
            scored,
            evaluation,
        } = ended;
        let now = Moment::now(self.services.engine)?;
        let running = self.flows.get(id.flow)?;
        let trial = TrialRecord {
            start_ms: submitted.since(self.origin),
            latency_ms: now.since(submitted),
            evaluation: evaluation.clone(),
            ..trial(running, id, scored, code)
        };
        self.observer.trial_ended(&trial)?;
        let item = trial_item(id, trial);
        let mut record = self.record_of(id, &item, submitted, now)?;
        record.queue_ms = evaluation.as_ref().map(|evaluation| evaluation.waited_ms);
        record.evaluation = evaluation;
        self.end_sample(id, item, Some(record), now)
    }

    /// The record of a sample that was judged without the model.
    pub(super) fn record_of(
        &self,
        place: SampleId,
        item: &SampleResult,
        submitted: Moment,
        now: Moment,
    ) -> Result<StepRecord> {
        let running = self.flows.get(place.flow)?;
        let scored = item.scored.clone().unwrap_or_default();
        let mut record = StepRecord {
            schema: RECORD_SCHEMA,
            start_ms: submitted.since(self.origin),
            latency_ms: now.since(submitted),
            finish: scored.outcome.clone(),
            outcome: Some(scored.outcome),
            score: scored.score,
            detail: Some(scored.detail).filter(|detail| !detail.is_empty()),
            answer: scored.answer,
            ..StepRecord::default()
        };
        place.describe(running, self.options, &mut record);
        Ok(record)
    }

    /// Ends a sample, and begins what has waited for it: the steps that need this one, or, while other
    /// samples are in flight, what works on this sample alone.
    pub(super) fn end_sample(
        &mut self,
        place: SampleId,
        item: SampleResult,
        record: Option<StepRecord>,
        now: Moment,
    ) -> Result<()> {
        let running = self.flows.get_mut(place.flow)?;
        let ended = running.steps[place.step].end(place.sample, item);
        if let Some(record) = record {
            running.tokens += record.tokens;
            self.observer.step_ended(record)?;
        }
        if ended {
            return self.end_step(place.flow, place.step, now);
        }
        let running = self.flows.get(place.flow)?;
        let id = &running.step(place.step).id;
        let works_on_it = |step: &usize| {
            let work = &running.step(*step).work;
            begins_with_each_sample(work) && work.of().contains(id)
        };
        let waiting = running.graph.wait_only_for(place.step);
        for step in waiting.into_iter().filter(works_on_it).collect::<Vec<_>>() {
            if let Err(error) = self.begin_sample(SampleId { step, ..place }) {
                return self.not_run(place.flow, step, error);
            }
        }
        Ok(())
    }

    pub(super) fn end_step(&mut self, flow: usize, step: usize, now: Moment) -> Result<()> {
        let running = self.flows.get_mut(flow)?;
        running.ends[step] = Some(now.since(running.started));
        running.steps_done += 1;
        let ready = running.graph.ended(step);
        let done = running.graph.is_done();
        let end = now.since(self.origin);
        if let Some(generation) = generation_ended(running, step, end) {
            self.observer.generation_ended(&generation)?;
        }
        if done {
            self.end(flow, now, None)
        } else {
            self.begin_all(flow, ready)
        }
    }

    /// Fails a flow, and cancels its requests and evaluations.
    pub(super) fn fail(&mut self, flow: usize, error: Error) -> Result<()> {
        let mut cancelled: Vec<RequestId> = self
            .in_flight
            .iter()
            .filter(|(_, request)| request.place.flow == flow)
            .map(|(id, _)| *id)
            .collect();
        cancelled.sort();
        for id in cancelled {
            self.in_flight.remove(&id);
            self.services.engine.cancel(id);
        }
        let of_it = |id: &EvaluationId| self.evaluations[id].place.flow == flow;
        let ids: Vec<EvaluationId> = self.evaluations.keys().copied().filter(of_it).collect();
        self.cancel_evaluations(ids);
        self.checks
            .retain(|_, checking| checking.place.flow != flow);
        self.immediate.retain(|immediate| immediate.flow() != flow);
        self.end_half_judged(|place| place.flow == flow)?;
        let now = Moment::now(self.services.engine)?;
        self.end(flow, now, Some(error))
    }

    pub(super) fn end(&mut self, flow: usize, now: Moment, error: Option<Error>) -> Result<()> {
        let running = self.flows.remove(flow)?;
        profile::count(Count::FlowsFailed, usize::from(error.is_some()));
        let (critical_path, slack_ms) = running.path();
        let response = Response::of(&running);
        let earlier = &running.earlier;
        let (segment, start_ms, workflow_ms) = match earlier.ended() {
            Some((segment, start)) => (
                Some(segment).filter(|segment| *segment > 1),
                start,
                earlier.in_flight(),
            ),
            None => (
                self.options.segment,
                running.started.since(self.origin),
                earlier.in_flight() + now.since(running.started),
            ),
        };
        let record = WorkflowRecord {
            flow: running.flow.flow,
            row: running.flow.row.clone(),
            segment,
            resumed: earlier.are_several(),
            start_ms,
            workflow_ms,
            steps_done: running.steps_done,
            steps: running.flow.steps.len(),
            error: error.as_ref().map(Error::chain),
            reward: response.reward,
            reward_floor: response.reward_floor,
            tokens: running.tokens,
            critical_path,
            slack_ms,
            ..WorkflowRecord::default()
        };
        self.observer
            .workflow_ended(record, &response, error.as_ref())
    }

    fn cancel_evaluations(&mut self, ids: Vec<EvaluationId>) {
        for id in ids {
            self.evaluations.remove(&id);
            if let Some(evaluator) = self.services.evaluator.as_deref_mut() {
                evaluator.cancel(id);
            }
        }
    }

    /// Passes on judges' requests whose other request is cancelled.
    fn end_half_judged(&mut self, of: impl Fn(&SampleId) -> bool) -> Result<()> {
        let halves: Vec<(SampleId, Order)> = (self.half_judged.keys())
            .filter(|(place, _)| of(place))
            .copied()
            .collect();
        for half in halves {
            if let Some(HalfJudged { record, .. }) = self.half_judged.remove(&half) {
                self.flows.get_mut(half.0.flow)?.tokens += record.tokens;
                self.observer.step_ended(record)?;
            }
        }
        Ok(())
    }

    /// Cancels everything in flight.
    ///
    /// # Errors
    /// If the observer cannot save what had ended.
    pub(in crate::workflow) fn cancel_all(&mut self) -> Result<()> {
        for (id, _) in self.in_flight.drain() {
            self.services.engine.cancel(id);
        }
        self.cancel_evaluations(self.evaluations.keys().copied().collect());
        self.checks.clear();
        self.immediate.clear();
        self.end_half_judged(|_| true)
    }
}

/// Whether a step that works on another's answers can begin with each of them. It cannot if it needs all of
/// them, or if its texts may read the other step as a whole.
pub(super) fn begins_with_each_sample(work: &Work) -> bool {
    let are_known = |texts: [&[Part]; 2]| {
        let mut parts = texts.into_iter().flatten();
        parts.all(|part| part.as_text().is_some())
    };
    match work {
        Work::Evaluate(_) => true,
        Work::Verify(verify) => are_known([&verify.question, &verify.expected]),
        Work::Judge(judge) => are_known([&judge.question, &judge.expected]),
        Work::Generate(_) | Work::Select(_) => false,
    }
}

/// The error of a step for which `--pin-outputs` has no text.
pub(super) fn not_pinned(flow: usize, step: &StepRecord) -> Error {
    let label = step.label();
    Error::flow(format!(
        "flow {flow}, step {label}: no recorded output to go on with"
    ))
    .hint("--pin-outputs names a recording of the same flows")
}

/// What a selection keeps.
pub(super) fn selected(running: &FlowState, select: &Select) -> Vec<SampleResult> {
    let indices = select.of.iter().filter_map(|id| running.index(id));
    let candidates = indices.flat_map(|index| running.steps[index].items());
    best(candidates, select.keep)
}

/// The result of a judge: the answer with the verdict on it.
pub(super) fn judged_item(
    running: &FlowState,
    place: SampleId,
    verdict: verify::Verdict,
) -> SampleResult {
    let item = match &running.step(place.step).work {
        Work::Judge(judge) => running.item_of(&judge.of, place.sample).cloned(),
        _ => None,
    };
    let item = item.unwrap_or_default();
    let answer = item.scored.and_then(|scored| scored.answer);
    SampleResult {
        scored: Some(Scored {
            score: verdict.score(),
            outcome: verdict.as_str().to_owned(),
            detail: match verdict {
                verify::Verdict::Undecided => "the two orders disagree, or one says nothing",
                _ => "",
            }
            .to_owned(),
            answer,
        }),
        origin: Some((place.step, place.sample)),
        ..item
    }
}

/// The record of a trial, without its times.
pub(super) fn trial(
    running: &FlowState,
    id: SampleId,
    scored: Scored,
    code: Option<String>,
) -> TrialRecord {
    let step = running.step(id.step);
    TrialRecord {
        flow: id.flow,
        trial: running.trial(id.step, id.sample),
        r#loop: step.generation.as_ref().map_or(0, |of| of.r#loop),
        generation: step.generation.as_ref().map_or(0, |of| of.number),
        step: step.id.clone(),
        sample: id.sample + 1,
        parent: running.parent_trial(id.step),
        outcome: scored.outcome,
        score: scored.score,
        detail: scored.detail,
        code,
        ..TrialRecord::default()
    }
}

/// The result of a step that evaluates.
pub(super) fn trial_item(id: SampleId, trial: TrialRecord) -> SampleResult {
    SampleResult {
        text: trial.code.unwrap_or_default(),
        scored: Some(Scored {
            score: trial.score,
            outcome: trial.outcome,
            detail: trial.detail,
            answer: None,
        }),
        trial: Some(trial.trial),
        origin: Some((id.step, id.sample)),
        ..SampleResult::default()
    }
}

/// The record of a generation whose last step has just ended; `None` without trials.
pub(super) fn generation_ended(
    running: &mut FlowState,
    step: usize,
    end: Millis,
) -> Option<GenerationRecord> {
    let steps = running.ended_in_generation(step)?.to_vec();
    let own = running.step(step).generation.as_ref()?;
    let evaluates = |step: &&usize| matches!(running.step(**step).work, Work::Evaluate(_));
    let trials = steps.iter().filter(evaluates);
    let trials: Vec<&Scored> = trials
        .flat_map(|step| running.steps[*step].items())
        .filter_map(|item| item.scored.as_ref())
        .collect();
    if trials.is_empty() {
        return None;
    }
    let mut outcomes = BTreeMap::new();
    for scored in &trials {
        *outcomes.entry(scored.outcome.clone()).or_default() += 1;
    }
    let scores: Vec<f64> = trials.iter().filter_map(|scored| scored.score).collect();
    let carries = |step: &&usize| {
        let generation = running.step(**step).generation.as_ref();
        generation.is_some_and(|of| of.carries)
    };
    let selected = steps.iter().find(carries);
    let selected = selected.and_then(|step| running.steps[*step].item(0));
    Some(GenerationRecord {
        flow: running.flow.flow,
        r#loop: own.r#loop,
        generation: own.number,
        trials: trials.len(),
        outcomes,
        best_score: scores.iter().copied().reduce(f64::max),
        mean_score: (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64),
        selected: selected.and_then(|item| item.trial),
        selected_score: selected.and_then(|item| item.scored.as_ref()?.score),
        end_ms: end,
    })
}
