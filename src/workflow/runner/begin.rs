//! Starts what is ready: submits requests, programs and answers.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use super::{Checking, Evaluating, Immediate, Runner, step_activity};
use crate::engine::{Engine, Request, RequestId};
use crate::error::{Error, Result};
use crate::evaluate::verify::Verdict;
use crate::evaluate::verify::plain::{self, Checked, Tolerance};
use crate::evaluate::{self, packing, program, verify};
use crate::flow::{Evaluate, Flow, Generate, How, Judge, Scored, Task, Verify, Work};
use crate::profile::{self, Activity, Span};
use crate::stopwatch::Moment;
use crate::workflow::flow_state::FlowState;
use crate::workflow::in_flight::{InFlight, SampleId};
use crate::workflow::judge::Order;
use crate::workflow::step::sample_seed;

impl<'a> Runner<'a, '_> {
    pub(in crate::workflow) fn start(&mut self, flow: &'a Flow) -> Result<()> {
        let started = Moment::now(self.services.engine)?;
        let activity = Activity::root(Span::Flow).labelled(|| format!("flow {}", flow.flow));
        let running = FlowState::new(flow, started, activity)?;
        let roots = running.graph.roots();
        self.flows.insert(running);
        let options = self.options;
        match options.ended.get(&flow.flow) {
            Some(ended) if !ended.is_empty() => self.restore(flow.flow, ended),
            _ => self.begin_all(flow.flow, roots),
        }
    }

    /// Begins steps that are ready.
    pub(super) fn begin_all(&mut self, flow: usize, ready: Vec<usize>) -> Result<()> {
        for step in ready {
            if let Err(error) = self.begin(flow, step) {
                return self.not_run(flow, step, error);
            }
        }
        Ok(())
    }

    /// Fails the flow of a step that cannot begin.
    pub(super) fn not_run(&mut self, flow: usize, step: usize, error: Error) -> Result<()> {
        let running = self.flows.get(flow)?;
        let id = &running.step(step).id;
        self.fail(
            flow,
            error.context(format!("flow {flow}, step {id}: not run")),
        )
    }

    /// Begins a step whose needs have all ended.
    pub(super) fn begin(&mut self, flow: usize, step: usize) -> Result<()> {
        let running = self.flows.get(flow)?;
        match &running.step(step).work {
            Work::Generate(generate) => self.generate(flow, step, generate),
            Work::Select(_) => {
                self.immediate
                    .push_back(Immediate::Selection { flow, step });
                Ok(())
            }
            Work::Evaluate(_) | Work::Verify(_) | Work::Judge(_) => {
                let samples = running.steps[step].samples();
                for sample in 0..samples {
                    self.begin_sample(SampleId { flow, step, sample })?;
                }
                Ok(())
            }
        }
    }

    /// Begins a sample of a step that works on another step's samples, unless it has begun.
    pub(super) fn begin_sample(&mut self, place: SampleId) -> Result<()> {
        let running = self.flows.get_mut(place.flow)?;
        if !running.steps[place.step].begin(place.sample) {
            return Ok(());
        }
        match &running.step(place.step).work {
            Work::Evaluate(evaluate) => self.evaluate(place, evaluate),
            Work::Verify(verify) => self.verify(place, verify),
            Work::Judge(judge) => self.judge(place, judge),
            Work::Generate(_) | Work::Select(_) => Ok(()),
        }
    }

    pub(super) fn generate(&mut self, flow: usize, step: usize, generate: &Generate) -> Result<()> {
        let submitted = Moment::now(self.services.engine)?;
        let running = self.flows.get_mut(flow)?;
        let activity = step_activity(running, step);
        let scope = activity.enter();
        let rendering = profile::span(Span::PromptRendering);
        let request = self
            .requests
            .generate(running, step, generate, self.options)?;
        drop(rendering);
        let messages = Arc::clone(&request.messages);
        let mut origin = request.origin.clone();
        if self.observer.wants_prompts() {
            let text = self.services.engine.prompt_text(&messages);
            self.observer.prompt_sent(&origin, &messages, text);
        }
        // All of them, unless some ended in an earlier segment of the run.
        let open = running.steps[step].open();
        let seed = |sample: usize| sample_seed(running, step, Some(sample), self.options);
        let ids = if generate.samples == 1 {
            vec![self.services.engine.submit(request)?]
        } else if open.len() == generate.samples {
            let seeds: Vec<u64> = open.iter().copied().map(seed).collect();
            self.services.engine.submit_samples(request, &seeds)?
        } else {
            let samples = open.iter().map(|sample| (*sample, seed(*sample)));
            submit_each(self.services.engine, &request, samples)?
        };
        drop(scope);
        let mut activity = Some(activity);
        for (sample, id) in open.into_iter().zip(ids) {
            running.steps[step].begin(sample);
            origin.sample = sample + 1;
            let place = SampleId { flow, step, sample };
            let activity = activity.take();
            let activity = activity.unwrap_or_else(|| step_activity(running, step));
            let request = InFlight {
                place,
                order: None,
                submitted,
                started: None,
                tokens: Vec::new(),
                messages: Arc::clone(&messages),
                origin: origin.clone(),
                activity,
            };
            self.in_flight.insert(id, request);
        }
        Ok(())
    }

    pub(super) fn judge(&mut self, place: SampleId, judge: &Judge) -> Result<()> {
        let running = self.flows.get(place.flow)?;
        let item = running.item_of(&judge.of, place.sample);
        let checked = item.and_then(|item| item.scored.as_ref());
        if let (Some(item), Some(checked)) = (item, checked)
            && checked.outcome != verify::UNDECIDED
        {
            self.immediate
                .push_back(Immediate::Decided(place, item.clone()));
            return Ok(());
        }
        for order in [Order::AnswerFirst, Order::ExpectedFirst] {
            let submitted = Moment::now(self.services.engine)?;
            let running = self.flows.get(place.flow)?;
            let activity = step_activity(running, place.step);
            let scope = activity.enter();
            let request = self
                .requests
                .judge(running, place, judge, order, self.options)?;
            let origin = request.origin.clone();
            if self.observer.wants_prompts() {
                let text = self.services.engine.prompt_text(&request.messages);
                self.observer.prompt_sent(&origin, &request.messages, text);
            }
            let id = self.services.engine.submit(request)?;
            drop(scope);
            let request = InFlight {
                place,
                order: Some(order),
                submitted,
                started: None,
                tokens: Vec::new(),
                // An answer of a judge is no turn of a conversation.
                messages: Arc::new([]),
                origin,
                activity,
            };
            self.in_flight.insert(id, request);
        }
        Ok(())
    }

    pub(super) fn evaluate(&mut self, place: SampleId, evaluate: &Evaluate) -> Result<()> {
        let submitted = Moment::now(self.services.engine)?;
        let running = self.flows.get(place.flow)?;
        let item = running.item_of(&evaluate.of, place.sample);
        let answer = item.map(|item| item.text.as_str()).unwrap_or_default();
        let score = match evaluate.task {
            Task::Packing => packing::score,
        };
        let entry_points = entry_points(evaluate);
        let Some(code) = program::of_answer(answer, entry_points) else {
            let scored = Scored {
                outcome: evaluate::Outcome::Invalid.as_str().to_owned(),
                detail: "the answer holds no program: no block of Python".to_owned(),
                ..Scored::default()
            };
            self.immediate.push_back(Immediate::NoProgram {
                id: place,
                submitted,
                scored,
            });
            return Ok(());
        };
        let Some(evaluator) = self.services.evaluator.as_deref_mut() else {
            return Err(Error::preflight("there is no pool to evaluate programs in"));
        };
        let activity = step_activity(running, place.step);
        let scope = activity.enter();
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
            activity,
        };
        self.evaluations.insert(id, evaluating);
        Ok(())
    }

    pub(super) fn verify(&mut self, place: SampleId, verify: &Verify) -> Result<()> {
        let submitted = Moment::now(self.services.engine)?;
        let running = self.flows.get(place.flow)?;
        let activity = step_activity(running, place.step);
        let scope = activity.enter();
        let item = running.item_of(&verify.of, place.sample);
        let text = item.map(|item| item.text.clone()).unwrap_or_default();
        let question = self.requests.text(running, place.step, &verify.question)?;
        let expected = self.requests.text(running, place.step, &verify.expected)?;
        if let Some(checked) = plainly(verify.how, &text, &expected) {
            drop(scope);
            let scored = Scored {
                score: checked.verdict.score(),
                outcome: match (&checked.answer, checked.verdict) {
                    (None, Verdict::Unequal) => "no_answer".to_owned(),
                    (_, verdict) => verdict.as_str().to_owned(),
                },
                detail: checked.reason,
                answer: checked.answer.clone(),
            };
            let checking = Checking {
                place,
                submitted,
                answer: checked.answer,
                text,
                activity,
            };
            self.immediate
                .push_back(Immediate::Checked(checking, scored));
            return Ok(());
        }
        let checking = Checking {
            place,
            submitted,
            answer: verify::given_answer(&text).map(Cow::into_owned),
            text,
            activity,
        };
        let Some(answer) = &checking.answer else {
            let scored = Scored {
                score: Some(0.0),
                outcome: "no_answer".to_owned(),
                detail: r"the response holds no complete \boxed{} with an answer in it".to_owned(),
                answer: None,
            };
            self.immediate
                .push_back(Immediate::Checked(checking, scored));
            return Ok(());
        };
        let span = profile::span(Span::Verify);
        let id = self.services.verifier.submit(&question, answer, &expected);
        drop((span, scope));
        self.checks.insert(id, checking);
        Ok(())
    }
}

/// The functions that a program may have, one of which is called.
pub(super) fn entry_points(evaluate: &Evaluate) -> &'static [&'static str] {
    match evaluate.task {
        Task::Packing => &packing::ENTRY_POINTS,
    }
}

/// Submits some of the samples of a request, each with its seed, by themselves.
fn submit_each(
    engine: &mut dyn Engine,
    request: &Request,
    samples: impl Iterator<Item = (usize, u64)>,
) -> Result<Vec<RequestId>> {
    let mut ids = Vec::new();
    for (sample, seed) in samples {
        let mut request = request.clone();
        request.sampling.seed = seed;
        request.origin.sample = sample + 1;
        match engine.submit(request) {
            Ok(id) => ids.push(id),
            Err(error) => {
                ids.into_iter().for_each(|id| engine.cancel(id));
                return Err(error);
            }
        }
    }
    Ok(ids)
}

/// Compares an answer that needs no algebra; `None` for [`How::Math`].
fn plainly(how: How, text: &str, expected: &str) -> Option<Checked> {
    Some(match how {
        How::Math => return None,
        How::Exact => plain::exact(text, expected),
        How::Contains => plain::contains(text, expected),
        How::Regex => plain::matches(text, expected),
        How::Choice { lenient } => plain::choice(text, expected, lenient),
        How::Numeric { relative, absolute } => {
            plain::numeric(text, expected, Tolerance { relative, absolute })
        }
    })
}
