//! Runs flows on an engine and measures them. The one place that joins engine and flow.

mod graph;
mod step;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::engine::{Completion, Engine, EventKind, Finish, Message, RequestId, Role};
use crate::error::{Error, Result};
use crate::flow::Flow;
use crate::hash::token_hash;
use crate::metrics;
use crate::profile::{self, Activity, Count, Span};
use crate::record::metrics::CriticalStep;
use crate::record::{RECORD_SCHEMA, StepRecord, WorkflowRecord};
use crate::stopwatch::Moment;
use crate::units::Millis;

use graph::Graph;
use step::{Ended, RequestBuilder};

/// How flows are run.
#[derive(Debug, Clone)]
pub struct RunnerOptions {
    /// Flows in flight, at least 1; with 1 they run one after another.
    pub concurrency: usize,
    /// Most tokens a step generates; `None`: as the flow says.
    pub max_tokens: Option<usize>,
    /// Generate to the limit, past any end-of-sequence token.
    pub ignore_eos: bool,
    /// The run's seed.
    pub seed: u64,
}

impl Default for RunnerOptions {
    fn default() -> Self {
        Self {
            concurrency: 1,
            max_tokens: None,
            ignore_eos: false,
            seed: 0,
        }
    }
}

/// Is told what was measured, as soon as it was.
pub trait Observer {
    /// A step ended well.
    ///
    /// # Errors
    /// Where it could not be kept or shown; the run stops.
    fn step_ended(&mut self, step: &StepRecord) -> Result<()>;

    /// A workflow ended, well or badly (`error` says so).
    ///
    /// # Errors
    /// As [`Observer::step_ended`].
    fn workflow_ended(&mut self, workflow: &WorkflowRecord, error: Option<&Error>) -> Result<()>;
}

/// How a run came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every flow was run, well or badly.
    Ended,
    /// It was interrupted; flows are missing.
    Interrupted,
}

/// Runs `flows` in their order. Times in the records count from `origin`, the start of the
/// benchmark; the engine is synchronised before each reading of the clock.
///
/// # Errors
/// Where the engine as a whole, or the observer, can go no further. A step that fails ends its own
/// flow only.
pub fn run(
    engine: &mut dyn Engine,
    flows: &[Flow],
    options: &RunnerOptions,
    origin: Moment,
    interrupted: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let mut runner = Runner {
        engine,
        options,
        origin,
        observer,
        requests: RequestBuilder::default(),
        running: BTreeMap::new(),
        in_flight: HashMap::new(),
    };
    let mut waiting: VecDeque<&Flow> = flows.iter().collect();
    loop {
        if interrupted.load(Ordering::Relaxed) {
            runner.cancel_all();
            return Ok(Outcome::Interrupted);
        }
        while runner.running.len() < options.concurrency.max(1) {
            let Some(flow) = waiting.pop_front() else {
                break;
            };
            runner.start(flow)?;
        }
        if runner.running.is_empty() && waiting.is_empty() {
            return Ok(Outcome::Ended);
        }
        runner.poll()?;
    }
}

struct Runner<'a> {
    engine: &'a mut dyn Engine,
    options: &'a RunnerOptions,
    origin: Moment,
    observer: &'a mut dyn Observer,
    requests: RequestBuilder,
    /// The flows in flight, by their number.
    running: BTreeMap<usize, Running<'a>>,
    in_flight: HashMap<RequestId, InFlight>,
}

/// A flow that has started and not ended.
struct Running<'a> {
    flow: &'a Flow,
    graph: Graph,
    started: Moment,
    /// For each step, what it left behind.
    ended: Vec<Option<Ended>>,
    /// For each step, when it ended, counted from `started`.
    ends: Vec<Option<Millis>>,
    steps_done: usize,
    activity: Activity,
    tokens: Tokens,
}

/// Tokens of a flow's steps.
#[derive(Debug, Clone, Copy, Default)]
struct Tokens {
    prompt: usize,
    prefill: usize,
    reused: usize,
    decode: usize,
}

/// A request that has not ended.
struct InFlight {
    flow: usize,
    step: usize,
    submitted: Moment,
    /// When its first forward pass began, where the engine tells.
    started: Option<Moment>,
    /// When each token came, counted from `submitted`.
    tokens: Vec<Millis>,
    messages: Vec<Message>,
    _activity: Activity,
}

impl<'a> Runner<'a> {
    fn start(&mut self, flow: &'a Flow) -> Result<()> {
        let started = Moment::now(self.engine)?;
        let graph = Graph::new(flow)?;
        let roots = graph.roots();
        let running = Running {
            flow,
            graph,
            started,
            ended: vec![None; flow.steps.len()],
            ends: vec![None; flow.steps.len()],
            steps_done: 0,
            activity: Activity::root(Span::Flow).labelled(|| format!("flow {}", flow.flow)),
            tokens: Tokens::default(),
        };
        self.running.insert(flow.flow, running);
        self.submit(flow.flow, &roots)
    }

    /// Submits steps of a running flow; one that is refused fails the flow.
    fn submit(&mut self, flow: usize, steps: &[usize]) -> Result<()> {
        for &step in steps {
            let submitted = Moment::now(self.engine)?;
            let Some(running) = self.running.get(&flow) else {
                return Ok(());
            };
            let activity = (running.activity.child(Span::Step))
                .labelled(|| running.flow.steps[step].id.clone());
            let scope = activity.enter();
            let rendering = profile::span(Span::PromptRendering);
            let request = self.requests.build(
                running.flow,
                step,
                running.graph.needs(step),
                &running.ended,
                self.options,
            );
            drop(rendering);
            let submission = request.and_then(|request| {
                let messages = request.messages.clone();
                self.engine.submit(request).map(|id| (id, messages))
            });
            drop(scope);
            let (id, messages) = match submission {
                Ok(submission) => submission,
                Err(error) => {
                    let step = &running.flow.steps[step].id;
                    return self.fail(
                        flow,
                        error.context(format!("flow {flow}, step {step}: not run")),
                    );
                }
            };
            self.in_flight.insert(
                id,
                InFlight {
                    flow,
                    step,
                    submitted,
                    started: None,
                    tokens: Vec::new(),
                    messages,
                    _activity: activity,
                },
            );
        }
        Ok(())
    }

    /// One poll of the engine; everything that it reports is stamped with one reading of the clock.
    fn poll(&mut self) -> Result<()> {
        let events = self.engine.poll()?;
        if events.is_empty() {
            return Ok(());
        }
        let now = Moment::now(self.engine)?;
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
                        let step = self.step_id(&request);
                        let error =
                            Error::flow(format!("flow {}, step {step}: {reason}", request.flow));
                        self.fail(request.flow, error)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn step_id(&self, request: &InFlight) -> String {
        self.running
            .get(&request.flow)
            .map(|running| running.flow.steps[request.step].id.clone())
            .unwrap_or_default()
    }

    fn finish(&mut self, request: InFlight, completion: Completion, now: Moment) -> Result<()> {
        let Some(running) = self.running.get_mut(&request.flow) else {
            return Ok(());
        };
        let flow = running.flow;
        let latency = now.since(request.submitted);
        let ttft = request.tokens.first().copied();
        let queue = (request.started).map(|moment| moment.since(request.submitted));
        let count = completion.tokens.len();
        let tpot = ttft
            .filter(|_| count > 1)
            .map(|ttft| Millis((latency - ttft).0 / (count - 1) as f64));
        let (gaps_ms, itl_ms) = metrics::gaps(&request.tokens);
        let record = StepRecord {
            schema: RECORD_SCHEMA,
            flow: flow.flow,
            row: flow.row.clone(),
            step: flow.steps[request.step].id.clone(),
            needs: flow.steps[request.step].needs.clone(),
            start_ms: request.submitted.since(self.origin),
            queue_ms: queue,
            latency_ms: latency,
            ttft_ms: ttft,
            tpot_ms: tpot,
            itl_ms,
            gaps_ms,
            prefill_tokens_per_s: (ttft.zip(queue))
                .and_then(|(ttft, queue)| rate(completion.prefill_tokens, ttft - queue)),
            decode_tokens_per_s: tpot.and_then(|tpot| rate(1, tpot)),
            prompt_tokens: completion.prompt_tokens,
            prefill_tokens: completion.prefill_tokens,
            reused_tokens: completion.reused_tokens,
            drafted_tokens: completion.drafted_tokens,
            accepted_tokens: completion.accepted_tokens,
            decode_tokens: count,
            finish: match completion.finish {
                Finish::Stop => "stop",
                Finish::Length => "length",
            }
            .to_owned(),
            out_hash: token_hash(&completion.tokens),
            output: completion.text.clone(),
            round: None,
            mode: None,
        };
        let mut messages = request.messages;
        messages.push(Message {
            role: Role::Assistant,
            content: completion.text.clone(),
        });
        running.ended[request.step] = Some(Ended {
            messages,
            text: completion.text,
        });
        running.ends[request.step] = Some(now.since(running.started));
        running.steps_done += 1;
        let tokens = &mut running.tokens;
        tokens.prompt += record.prompt_tokens;
        tokens.prefill += record.prefill_tokens;
        tokens.reused += record.reused_tokens;
        tokens.decode += record.decode_tokens;
        let ready = running.graph.ended(request.step);
        let done = running.graph.is_done();
        self.observer.step_ended(&record)?;
        if done {
            self.end(flow.flow, now, None)
        } else {
            self.submit(flow.flow, &ready)
        }
    }

    /// Ends a flow badly: its other requests are given up.
    fn fail(&mut self, flow: usize, error: Error) -> Result<()> {
        let given_up: Vec<RequestId> = self
            .in_flight
            .iter()
            .filter(|(_, request)| request.flow == flow)
            .map(|(id, _)| *id)
            .collect();
        for id in given_up {
            self.in_flight.remove(&id);
            self.engine.cancel(id);
        }
        let now = Moment::now(self.engine)?;
        self.end(flow, now, Some(error))
    }

    fn end(&mut self, flow: usize, now: Moment, error: Option<Error>) -> Result<()> {
        let Some(running) = self.running.remove(&flow) else {
            return Ok(());
        };
        let (critical_path, slack_ms) = running.path();
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
            prompt_tokens: tokens.prompt,
            prefill_tokens: tokens.prefill,
            reused_tokens: tokens.reused,
            decode_tokens: tokens.decode,
            critical_path,
            slack_ms,
            round: None,
            mode: None,
        };
        self.observer.workflow_ended(&record, error.as_ref())
    }

    fn cancel_all(&mut self) {
        for (id, _) in self.in_flight.drain() {
            self.engine.cancel(id);
        }
    }
}

impl Running<'_> {
    /// Which steps made the flow long, and each step's slack; nothing of a flow whose steps have not
    /// all ended.
    fn path(&self) -> (Vec<CriticalStep>, BTreeMap<String, Millis>) {
        let ended = |(step, end): (usize, &Option<Millis>)| {
            Some(metrics::EndedStep {
                end: (*end)?,
                needs: self.graph.needs(step).to_vec(),
            })
        };
        let steps: Option<Vec<_>> = self.ends.iter().enumerate().map(ended).collect();
        let steps = steps.unwrap_or_default();
        let id = |step: usize| self.flow.steps[step].id.clone();
        let path = metrics::critical_path(&steps)
            .into_iter()
            .map(|(step, ms)| CriticalStep { step: id(step), ms })
            .collect();
        let slack = metrics::slack(&steps).into_iter().enumerate();
        (path, slack.map(|(step, ms)| (id(step), ms)).collect())
    }
}

/// So many a second; `None` where there are none or no time went by.
fn rate(count: usize, time: Millis) -> Option<f64> {
    (count > 0 && time.0 > 0.0).then(|| count as f64 / time.seconds())
}

#[cfg(test)]
mod tests;
