//! The loop over requests and evaluations: what is ready is begun, what ends is measured.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::item::{Item, best};
use super::judge::{self, Order};
use super::running::Running;
use super::step::{RequestBuilder, sample_seed};
use super::{Means, Observer, RunnerOptions, measure};
use crate::engine::{Completion, EventKind, Message, RequestId, Role};
use crate::error::{Error, Result};
use crate::evaluate::{self, EvaluationId, Finished, VerificationId, packing, program, verify};
use crate::flow::{Evaluate, Flow, Generate, Judge, Scored, Select, Task, Verify, Work};
use crate::profile::{self, Activity, Count, Span};
use crate::record::evaluation::{GenerationRecord, TrialRecord};
use crate::record::{RECORD_SCHEMA, StepRecord, WorkflowRecord};
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
    origin: crate::engine::Origin,
    _activity: Activity,
}

/// A program that is run.
pub(super) struct Evaluating {
    place: Place,
    submitted: Moment,
    code: String,
    /// [`Runner::overlap`] at its submission.
    overlap: Millis,
    _activity: Activity,
}

/// An answer that is checked.
pub(super) struct Checking {
    place: Place,
    submitted: Moment,
    text: String,
    answer: Option<String>,
    _activity: Activity,
}

impl<'a> Runner<'a, '_> {
    /// Begins a flow.
    pub(super) fn start(&mut self, flow: &'a Flow) -> Result<()> {
        let started = Moment::now(self.means.engine)?;
        let activity = Activity::root(Span::Flow).labelled(|| format!("flow {}", flow.flow));
        let running = Running::new(flow, started, activity)?;
        let roots = running.graph.roots();
        self.running.insert(flow.flow, running);
        self.begin_all(flow.flow, roots)
    }

    /// Begins steps that are ready, and whatever becomes ready at once by that.
    fn begin_all(&mut self, flow: usize, ready: Vec<usize>) -> Result<()> {
        for step in ready {
            let Some(running) = self.running.get(&flow) else {
                return Ok(());
            };
            let id = &running.step(step).id;
            if let Err(error) = self.begin(flow, step) {
                let context = format!("flow {flow}, step {id}: not run");
                return self.fail(flow, error.context(context));
            }
        }
        Ok(())
    }

    /// Begins a step, all that it needs having ended.
    fn begin(&mut self, flow: usize, step: usize) -> Result<()> {
        let Some(running) = self.running.get(&flow) else {
            return Ok(());
        };
        match &running.step(step).work {
            Work::Generate(generate) => self.generate(flow, step, generate),
            Work::Select(select) => self.select(flow, step, select),
            Work::Evaluate(_) | Work::Verify(_) | Work::Judge(_) => {
                for sample in 0..running.nodes[step].samples() {
                    self.begin_sample(Place { flow, step, sample })?;
                }
                Ok(())
            }
        }
    }

    /// Begins one sample of a step that works on another's, unless it has begun.
    fn begin_sample(&mut self, place: Place) -> Result<()> {
        let Some(running) = self.running.get_mut(&place.flow) else {
            return Ok(());
        };
        if !running.nodes[place.step].begin(place.sample) {
            return Ok(());
        }
        match &running.step(place.step).work {
            Work::Evaluate(evaluate) => self.evaluate(place, evaluate),
            Work::Verify(verify) => self.verify(place, verify),
            Work::Judge(judge) => self.judge(place, judge),
            Work::Generate(_) | Work::Select(_) => Ok(()),
        }
    }

    fn generate(&mut self, flow: usize, step: usize, generate: &Generate) -> Result<()> {
        let submitted = Moment::now(self.means.engine)?;
        let Some(running) = self.running.get_mut(&flow) else {
            return Ok(());
        };
        let activity = step_activity(running, step);
        let scope = activity.enter();
        let rendering = profile::span(Span::PromptRendering);
        let request = self
            .requests
            .generate(running, step, generate, self.options)?;
        drop(rendering);
        let (messages, mut origin) = (request.messages.clone(), request.origin.clone());
        let ids = match generate.samples {
            1 => vec![self.means.engine.submit(request)?],
            samples => {
                let seed = |sample| sample_seed(running, step, Some(sample), self.options);
                let seeds: Vec<u64> = (0..samples).map(seed).collect();
                self.means.engine.submit_samples(request, &seeds)?
            }
        };
        drop(scope);
        let mut activity = Some(activity);
        for (sample, id) in ids.into_iter().enumerate() {
            running.nodes[step].begin(sample);
            origin.sample = sample + 1;
            let request = InFlight {
                place: Place { flow, step, sample },
                order: None,
                submitted,
                started: None,
                tokens: Vec::new(),
                messages: messages.clone(),
                origin: origin.clone(),
                _activity: activity
                    .take()
                    .unwrap_or_else(|| step_activity(running, step)),
            };
            self.in_flight.insert(id, request);
        }
        Ok(())
    }

    fn judge(&mut self, place: Place, judge: &Judge) -> Result<()> {
        let Some(running) = self.running.get(&place.flow) else {
            return Ok(());
        };
        let item = running.item_of(&judge.of, place.sample);
        let checked = item.and_then(|item| item.scored.as_ref());
        if let (Some(item), Some(checked)) = (item, checked)
            && checked.outcome != verify::UNDECIDED
        {
            // Decided before: there is nothing to ask.
            let item = item.clone();
            let now = Moment::now(self.means.engine)?;
            return self.end_sample(place, item, None, now);
        }
        for order in [Order::AnswerFirst, Order::ExpectedFirst] {
            let submitted = Moment::now(self.means.engine)?;
            let Some(running) = self.running.get(&place.flow) else {
                return Ok(());
            };
            let activity = step_activity(running, place.step);
            let scope = activity.enter();
            let at = (place.step, place.sample);
            let request = self
                .requests
                .judge(running, at, judge, order, self.options)?;
            let origin = request.origin.clone();
            let id = self.means.engine.submit(request)?;
            drop(scope);
            let request = InFlight {
                place,
                order: Some(order),
                submitted,
                started: None,
                tokens: Vec::new(),
                messages: Vec::new(),
                origin,
                _activity: activity,
            };
            self.in_flight.insert(id, request);
        }
        Ok(())
    }

    fn evaluate(&mut self, place: Place, evaluate: &Evaluate) -> Result<()> {
        let submitted = Moment::now(self.means.engine)?;
        let Some(running) = self.running.get(&place.flow) else {
            return Ok(());
        };
        let item = running.item_of(&evaluate.of, place.sample);
        let answer = item.map(|item| item.text.as_str()).unwrap_or_default();
        let Some(code) = program::last_block(answer) else {
            let scored = Scored {
                outcome: evaluate::Outcome::Invalid.as_str().to_owned(),
                detail: "the answer holds no program: no block of Python".to_owned(),
                ..Scored::default()
            };
            return self.end_trial(place, submitted, None, scored, None);
        };
        let code = code.to_owned();
        let Some(evaluator) = self.means.evaluator.as_deref_mut() else {
            return Err(Error::preflight("there is no pool to evaluate programs in"));
        };
        let activity = step_activity(running, place.step);
        let scope = activity.enter();
        let (score, entry_points) = match evaluate.task {
            Task::Packing => (packing::score, packing::ENTRY_POINTS),
        };
        let id = evaluator.submit(evaluate::Request {
            code: code.clone(),
            arguments: Vec::new(),
            entry_points: entry_points.iter().map(|name| (*name).to_owned()).collect(),
            seed: sample_seed(running, place.step, Some(place.sample), self.options),
            deadline: Duration::from_millis(evaluate.timeout_ms),
            score,
        });
        drop(scope);
        let evaluating = Evaluating {
            place,
            submitted,
            code,
            overlap: self.overlap,
            _activity: activity,
        };
        self.evaluations.insert(id, evaluating);
        Ok(())
    }

    fn verify(&mut self, place: Place, verify: &Verify) -> Result<()> {
        let submitted = Moment::now(self.means.engine)?;
        let Some(running) = self.running.get(&place.flow) else {
            return Ok(());
        };
        let activity = step_activity(running, place.step);
        let scope = activity.enter();
        let item = running.item_of(&verify.of, place.sample);
        let text = item.map(|item| item.text.clone()).unwrap_or_default();
        let question = self.requests.text(running, place.step, &verify.question)?;
        let expected = self.requests.text(running, place.step, &verify.expected)?;
        let checking = Checking {
            place,
            submitted,
            answer: verify::last_boxed(&text).map(str::to_owned),
            text,
            _activity: Activity::default(),
        };
        let Some(answer) = &checking.answer else {
            let scored = Scored {
                score: Some(0.0),
                outcome: "no_answer".to_owned(),
                detail: r"the answer holds no complete \boxed{}".to_owned(),
                answer: None,
            };
            return self.checked(checking, scored);
        };
        let span = profile::span(Span::Verify);
        let id = self.means.verifier.submit(&question, answer, &expected);
        drop((span, scope));
        let checking = Checking {
            _activity: activity,
            ..checking
        };
        self.checks.insert(id, checking);
        Ok(())
    }

    /// An answer has been checked.
    fn checked(&mut self, checking: Checking, scored: Scored) -> Result<()> {
        let now = Moment::now(self.means.engine)?;
        let item = Item {
            text: checking.text,
            scored: Some(scored),
            ..Item::default()
        };
        let record = self.record_of(checking.place, &item, checking.submitted, now);
        self.end_sample(checking.place, item, record, now)
    }

    fn select(&mut self, flow: usize, step: usize, select: &Select) -> Result<()> {
        let now = Moment::now(self.means.engine)?;
        let Some(running) = self.running.get_mut(&flow) else {
            return Ok(());
        };
        let indices = select.of.iter().filter_map(|id| running.index(id));
        let candidates = indices.flat_map(|index| running.nodes[index].items());
        let kept = best(candidates, select.keep);
        running.nodes[step].end_all(kept);
        self.end_step(flow, step, now)
    }

    /// One poll of verifier, evaluator and engine. Everything that the engine reports is stamped with
    /// one reading of the clock.
    pub(super) fn poll(&mut self) -> Result<()> {
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

    /// A request has ended well.
    fn finish(&mut self, request: InFlight, completion: Completion, now: Moment) -> Result<()> {
        let place = request.place;
        let Some(running) = self.running.get(&place.flow) else {
            return Ok(());
        };
        let step = running.step(place.step);
        self.means.accounts.enter(step.work.kind(), &completion);
        let mut record = measure::generation(&request, &completion, now, self.origin);
        place.describe(running, &mut record);
        let pinned = match self.means.pins {
            None => None,
            Some(pins) => match pins.text(&request.origin) {
                Some(text) => Some(text.to_owned()),
                None => {
                    let (flow, label) = (place.flow, record.label());
                    let what =
                        format!("flow {flow}, step {label}: no recorded output to go on with");
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
    fn judged(
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
            ..item
        };
        running.tokens.add(&first);
        self.observer.step_ended(&first)?;
        self.end_sample(place, item, Some(record), now)
    }

    /// A program has been run.
    fn evaluated(&mut self, evaluating: Evaluating, finished: Finished) -> Result<()> {
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

    fn end_trial(
        &mut self,
        place: Place,
        submitted: Moment,
        code: Option<String>,
        scored: Scored,
        evaluation: Option<crate::record::evaluation::EvaluationRecord>,
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
    fn record_of(
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
    fn end_sample(
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
            !matches!(work, Work::Select(_)) && work.of().contains(id)
        };
        let waiting = running.graph.wait_only_for(place.step);
        for step in waiting.into_iter().filter(works_on_it).collect::<Vec<_>>() {
            self.begin_sample(Place { step, ..place })?;
        }
        Ok(())
    }

    fn end_step(&mut self, flow: usize, step: usize, now: Moment) -> Result<()> {
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
    fn fail(&mut self, flow: usize, error: Error) -> Result<()> {
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
        self.evaluations
            .retain(|_, evaluating| evaluating.place.flow != flow);
        self.checks
            .retain(|_, checking| checking.place.flow != flow);
        self.half_judged.retain(|(place, _), _| place.flow != flow);
        let now = Moment::now(self.means.engine)?;
        self.end(flow, now, Some(error))
    }

    fn end(&mut self, flow: usize, now: Moment, error: Option<Error>) -> Result<()> {
        let Some(running) = self.running.remove(&flow) else {
            return Ok(());
        };
        let (critical_path, slack_ms) = running.path();
        let response = super::Response::of(&running);
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

    /// Gives up everything that goes on.
    pub(super) fn cancel_all(&mut self) {
        for (id, _) in self.in_flight.drain() {
            self.means.engine.cancel(id);
        }
        self.evaluations.clear();
        self.checks.clear();
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

/// What a generation came to, where its last step has just ended and it has trials.
fn generation_ended(
    running: &Running,
    step: usize,
    now: Moment,
    origin: Moment,
) -> Option<GenerationRecord> {
    let number = running.step(step).generation.as_ref()?.number;
    let of_it = |index: &usize| {
        let generation = running.step(*index).generation.as_ref();
        generation.is_some_and(|of| of.number == number)
    };
    let steps: Vec<usize> = (0..running.flow.steps.len()).filter(of_it).collect();
    if steps.iter().any(|step| running.ends[*step].is_none()) {
        return None;
    }
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
    let selects = |step: &&usize| matches!(running.step(**step).work, Work::Select(_));
    let selected = steps.iter().rfind(selects);
    let selected = selected.and_then(|step| running.nodes[*step].item(0));
    Some(GenerationRecord {
        flow: running.flow.flow,
        generation: number,
        trials: trials.len(),
        outcomes,
        best_score: scores.iter().copied().reduce(f64::max),
        mean_score: (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64),
        selected: selected.and_then(|item| item.trial),
        selected_score: selected.and_then(|item| item.scored.as_ref()?.score),
        end_ms: now.since(origin),
    })
}
