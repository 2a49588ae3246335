//! What ends is measured and kept, and what has waited for it begins.

use std::collections::BTreeMap;

use super::{Checking, Evaluating, InFlight, Place, Runner, Settled};
use crate::engine::{Completion, Message, RequestId, Role};
use crate::error::{Error, Result};
use crate::evaluate::{EvaluationId, Finished, verify};
use crate::flow::{Part, Scored, Work};
use crate::profile::{self, Count};
use crate::record::evaluation::{EvaluationRecord, GenerationRecord, TrialRecord};
use crate::record::{RECORD_SCHEMA, StepRecord, WorkflowRecord};
use crate::stopwatch::Moment;
use crate::workflow::item::{Item, best};
use crate::workflow::judge::{self, Order};
use crate::workflow::running::Running;
use crate::workflow::{Response, measure};

impl Runner<'_, '_> {
    /// Ends what was settled as it began, and what that begins and settles in turn.
    pub(super) fn settle(&mut self) -> Result<()> {
        while let Some(settled) = self.settled.pop_front() {
            match settled {
                Settled::Decided(place, item) => {
                    let now = Moment::now(self.means.engine)?;
                    self.end_sample(place, item, None, now)?;
                }
                Settled::NoProgram(place, submitted, scored) => {
                    self.end_trial(place, submitted, None, scored, None)?;
                }
                Settled::NoAnswer(checking, scored) => self.checked(checking, scored)?,
                Settled::Selection(flow, step) => self.select(flow, step)?,
            }
        }
        Ok(())
    }

    fn select(&mut self, flow: usize, step: usize) -> Result<()> {
        let now = Moment::now(self.means.engine)?;
        let Some(running) = self.running.get_mut(&flow) else {
            return Ok(());
        };
        let Work::Select(select) = &running.step(step).work else {
            return Ok(());
        };
        let indices = select.of.iter().filter_map(|id| running.index(id));
        let candidates = indices.flat_map(|index| running.nodes[index].items());
        let kept = best(candidates, select.keep);
        running.nodes[step].end_all(kept);
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
        let Some(running) = self.running.get(&place.flow) else {
            return Ok(());
        };
        let step = running.step(place.step);
        self.means.accounts.enter(step.work.kind(), &completion);
        let mut record = measure::generation(&request, &completion, now, self.origin);
        // What waits for it begins after its end, and has its place in the trace.
        drop(request.activity);
        place.describe(running, &mut record);
        let pinned = match self.means.pins {
            None => None,
            Some(pins) => match pins.text(&request.origin) {
                Some(text) => Some(text.to_owned()),
                None => {
                    let (flow, label) = (place.flow, record.label());
                    let what =
                        format!("flow {flow}, step {label}: no recorded output to go on with");
                    self.observer.step_ended(&record)?;
                    return self.fail(
                        flow,
                        Error::flow(what).hint("--pin-outputs names a recording of the same flows"),
                    );
                }
            },
        };
        record.pinned = pinned.is_some();
        let text = pinned.unwrap_or(completion.text);
        if let Some(order) = request.order {
            return self.judged((place, order), record, &text, now);
        }
        let mut messages = request.messages;
        messages.push(Message {
            role: Role::Assistant,
            content: text.clone(),
        });
        let item = Item {
            text,
            messages,
            ..Item::default()
        };
        self.end_sample(place, item, Some(record), now)
    }

    /// One half of a judgement is there.
    pub(super) fn judged(
        &mut self,
        (place, order): (Place, Order),
        mut record: StepRecord,
        text: &str,
        now: Moment,
    ) -> Result<()> {
        let said = judge::verdict(text);
        record.sample = Some(2 * place.sample + 1 + usize::from(order == Order::ExpectedFirst));
        record.outcome = Some(verify::Verdict::of(said).as_str().to_owned());
        let other = match order {
            Order::AnswerFirst => Order::ExpectedFirst,
            Order::ExpectedFirst => Order::AnswerFirst,
        };
        let Some((mut first, first_said)) = self.half_judged.remove(&(place, other)) else {
            self.half_judged.insert((place, order), (record, said));
            return Ok(());
        };
        let verdict = verify::Verdict::of(judge::together(said, first_said));
        first.score = verdict.score();
        record.score = verdict.score();
        let Some(running) = self.running.get_mut(&place.flow) else {
            return Ok(());
        };
        let item = match &running.step(place.step).work {
            Work::Judge(judge) => running.item_of(&judge.of, place.sample).cloned(),
            _ => None,
        };
        let item = item.unwrap_or_default();
        let answer = item.scored.and_then(|scored| scored.answer);
        let item = Item {
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
        };
        running.tokens.add(&first);
        self.observer.step_ended(&first)?;
        self.end_sample(place, item, Some(record), now)
    }

    /// An answer has been checked.
    pub(super) fn checked(&mut self, checking: Checking, scored: Scored) -> Result<()> {
        drop(checking.activity);
        let now = Moment::now(self.means.engine)?;
        let item = Item {
            text: checking.text,
            scored: Some(scored),
            origin: Some((checking.place.step, checking.place.sample)),
            ..Item::default()
        };
        let record = self.record_of(checking.place, &item, checking.submitted, now);
        self.end_sample(checking.place, item, record, now)
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
        let code = Some(evaluating.code);
        self.end_trial(
            evaluating.place,
            evaluating.submitted,
            code,
            scored,
            Some(times),
        )
    }

    pub(super) fn end_trial(
        &mut self,
        place: Place,
        submitted: Moment,
        code: Option<String>,
        scored: Scored,
        evaluation: Option<EvaluationRecord>,
    ) -> Result<()> {
        let now = Moment::now(self.means.engine)?;
        let Some(running) = self.running.get(&place.flow) else {
            return Ok(());
        };
        let step = running.step(place.step);
        let trial = running.trial(place.step, place.sample);
        self.observer.trial_ended(&TrialRecord {
            flow: place.flow,
            trial,
            r#loop: step.generation.as_ref().map_or(0, |of| of.r#loop),
            generation: step.generation.as_ref().map_or(0, |of| of.number),
            step: step.id.clone(),
            sample: place.sample + 1,
            parent: running.parent_trial(place.step),
            outcome: scored.outcome.clone(),
            score: scored.score,
            detail: scored.detail.clone(),
            start_ms: submitted.since(self.origin),
            latency_ms: now.since(submitted),
            evaluation: evaluation.clone(),
            code: code.clone(),
        })?;
        let item = Item {
            text: code.unwrap_or_default(),
            scored: Some(scored),
            trial: Some(trial),
            origin: Some((place.step, place.sample)),
            ..Item::default()
        };
        let mut record = self.record_of(place, &item, submitted, now);
        if let Some(record) = &mut record {
            record.queue_ms = evaluation.as_ref().map(|evaluation| evaluation.waited_ms);
            record.evaluation = evaluation;
        }
        self.end_sample(place, item, record, now)
    }

    /// The record of a sample that was judged without the model.
    pub(super) fn record_of(
        &self,
        place: Place,
        item: &Item,
        submitted: Moment,
        now: Moment,
    ) -> Option<StepRecord> {
        let running = self.running.get(&place.flow)?;
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
        place.describe(running, &mut record);
        Some(record)
    }

    /// Takes what has come of a sample, and begins what has waited for it: its own evaluation, where the
    /// step has others that go on, or the steps that need this one.
    pub(super) fn end_sample(
        &mut self,
        place: Place,
        item: Item,
        record: Option<StepRecord>,
        now: Moment,
    ) -> Result<()> {
        let Some(running) = self.running.get_mut(&place.flow) else {
            return Ok(());
        };
        let ended = running.nodes[place.step].end(place.sample, item);
        if let Some(record) = record {
            running.tokens.add(&record);
            self.observer.step_ended(&record)?;
        }
        if ended {
            return self.end_step(place.flow, place.step, now);
        }
        let Some(running) = self.running.get(&place.flow) else {
            return Ok(());
        };
        let id = &running.step(place.step).id;
        let works_on_it = |step: &usize| {
            let work = &running.step(*step).work;
            begins_with_each_sample(work) && work.of().contains(id)
        };
        let waiting = running.graph.wait_only_for(place.step);
        for step in waiting.into_iter().filter(works_on_it).collect::<Vec<_>>() {
            if let Err(error) = self.begin_sample(Place { step, ..place }) {
                return self.not_run(place.flow, step, error);
            }
        }
        Ok(())
    }

    pub(super) fn end_step(&mut self, flow: usize, step: usize, now: Moment) -> Result<()> {
        let Some(running) = self.running.get_mut(&flow) else {
            return Ok(());
        };
        running.ends[step] = Some(now.since(running.started));
        running.steps_done += 1;
        let ready = running.graph.ended(step);
        let done = running.graph.is_done();
        if let Some(generation) = generation_ended(running, step, now, self.origin) {
            self.observer.generation_ended(&generation)?;
        }
        if done {
            self.end(flow, now, None)
        } else {
            self.begin_all(flow, ready)
        }
    }

    /// Ends a flow badly: its other requests and evaluations are given up.
    pub(super) fn fail(&mut self, flow: usize, error: Error) -> Result<()> {
        let mut given_up: Vec<RequestId> = self
            .in_flight
            .iter()
            .filter(|(_, request)| request.place.flow == flow)
            .map(|(id, _)| *id)
            .collect();
        given_up.sort();
        for id in given_up {
            self.in_flight.remove(&id);
            self.means.engine.cancel(id);
        }
        let of_it = |id: &EvaluationId| self.evaluations[id].place.flow == flow;
        let ids: Vec<EvaluationId> = self.evaluations.keys().copied().filter(of_it).collect();
        self.give_up_evaluations(ids);
        self.checks
            .retain(|_, checking| checking.place.flow != flow);
        self.tell_halves(|place| place.flow == flow)?;
        let now = Moment::now(self.means.engine)?;
        self.end(flow, now, Some(error))
    }

    pub(super) fn end(&mut self, flow: usize, now: Moment, error: Option<Error>) -> Result<()> {
        let Some(running) = self.running.remove(&flow) else {
            return Ok(());
        };
        profile::count(Count::FlowsFailed, usize::from(error.is_some()));
        let (critical_path, slack_ms) = running.path();
        let response = Response::of(&running);
        let tokens = running.tokens;
        let record = WorkflowRecord {
            flow: running.flow.flow,
            row: running.flow.row.clone(),
            start_ms: running.started.since(self.origin),
            workflow_ms: now.since(running.started),
            engine_init_ms: None,
            steps_done: running.steps_done,
            steps: running.flow.steps.len(),
            error: error.as_ref().map(Error::chain),
            reward: response.reward,
            reward_floor: response.reward_floor,
            prompt_tokens: tokens.prompt,
            prefill_tokens: tokens.prefill,
            reused_tokens: tokens.reused,
            decode_tokens: tokens.decode,
            critical_path,
            slack_ms,
            round: None,
            mode: None,
        };
        self.observer
            .workflow_ended(&record, &response, error.as_ref())
    }

    fn give_up_evaluations(&mut self, ids: Vec<EvaluationId>) {
        for id in ids {
            self.evaluations.remove(&id);
            if let Some(evaluator) = self.means.evaluator.as_deref_mut() {
                evaluator.cancel(id);
            }
        }
    }

    /// Tells of judges' requests that have ended and whose other half will not come.
    fn tell_halves(&mut self, of: impl Fn(&Place) -> bool) -> Result<()> {
        let halves: Vec<(Place, Order)> = (self.half_judged.keys())
            .filter(|(place, _)| of(place))
            .copied()
            .collect();
        for half in halves {
            if let Some((record, _)) = self.half_judged.remove(&half) {
                if let Some(running) = self.running.get_mut(&half.0.flow) {
                    running.tokens.add(&record);
                }
                self.observer.step_ended(&record)?;
            }
        }
        Ok(())
    }

    /// Gives up everything that goes on.
    ///
    /// # Errors
    /// Where the observer cannot keep what had ended.
    pub(in crate::workflow) fn cancel_all(&mut self) -> Result<()> {
        for (id, _) in self.in_flight.drain() {
            self.means.engine.cancel(id);
        }
        self.give_up_evaluations(self.evaluations.keys().copied().collect());
        self.checks.clear();
        self.settled.clear();
        self.tell_halves(|_| true)
    }
}

/// Whether a step that works on another's answers can begin with each of them: not where it waits for all,
/// or its texts may read the other step as a whole.
fn begins_with_each_sample(work: &Work) -> bool {
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

/// What a generation came to, where its last step has just ended and it has trials.
fn generation_ended(
    running: &mut Running,
    step: usize,
    now: Moment,
    origin: Moment,
) -> Option<GenerationRecord> {
    let steps = running.ended_in_generation(step)?.to_vec();
    let own = running.step(step).generation.as_ref()?;
    let evaluates = |step: &&usize| matches!(running.step(**step).work, Work::Evaluate(_));
    let trials = steps.iter().filter(evaluates);
    let trials: Vec<&Scored> = trials
        .flat_map(|step| running.nodes[*step].items())
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
    let selected = selected.and_then(|step| running.nodes[*step].item(0));
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
        end_ms: now.since(origin),
    })
}
