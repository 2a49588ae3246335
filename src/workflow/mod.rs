//! Runs flows on an engine and measures them. The one place that joins engine and flow.

mod graph;
mod step;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::engine::{Completion, Engine, EventKind, Finish, Message, RequestId, Role};
use crate::error::{Error, Result};
use crate::flow::Flow;
use crate::hash::token_hash;
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
    steps_done: usize,
}

/// A request that has not ended.
struct InFlight {
    flow: usize,
    step: usize,
    submitted: Moment,
    first_token: Option<Moment>,
    messages: Vec<Message>,
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
            steps_done: 0,
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
            let request = self.requests.build(
                running.flow,
                step,
                running.graph.needs(step),
                &running.ended,
                self.options,
            );
            let submission = request.and_then(|request| {
                let messages = request.messages.clone();
                self.engine.submit(request).map(|id| (id, messages))
            });
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
                    first_token: None,
                    messages,
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
                EventKind::Token(_) => {
                    if let Some(request) = self.in_flight.get_mut(&event.id) {
                        request.first_token.get_or_insert(now);
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
        let ttft = request
            .first_token
            .map(|moment| moment.since(request.submitted));
        let count = completion.tokens.len();
        let record = StepRecord {
            schema: RECORD_SCHEMA,
            flow: flow.flow,
            row: flow.row.clone(),
            step: flow.steps[request.step].id.clone(),
            start_ms: request.submitted.since(self.origin),
            latency_ms: latency,
            ttft_ms: ttft,
            tpot_ms: ttft
                .filter(|_| count > 1)
                .map(|ttft| Millis((latency - ttft).0 / (count - 1) as f64)),
            prompt_tokens: completion.prompt_tokens,
            prefill_tokens: completion.prefill_tokens,
            reused_tokens: completion.reused_tokens,
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
        running.steps_done += 1;
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
        let record = WorkflowRecord {
            flow: running.flow.flow,
            row: running.flow.row.clone(),
            workflow_ms: now.since(running.started),
            engine_init_ms: None,
            steps_done: running.steps_done,
            steps: running.flow.steps.len(),
            error: error.as_ref().map(Error::chain),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Event, Script, ScriptedEngine};
    use crate::flow::{Context, Part, Step};
    use proptest::prelude::*;

    /// Flow 1 with these steps, each with a prompt of its own and the needs given.
    pub(crate) fn flow_of(steps: &[(&str, &[&str])]) -> Flow {
        Flow {
            template: "test".to_owned(),
            flow: 1,
            row: "row".to_owned(),
            system: None,
            steps: steps
                .iter()
                .map(|(id, needs)| Step {
                    id: (*id).to_owned(),
                    needs: needs.iter().map(|need| (*need).to_owned()).collect(),
                    context: Context::Fresh,
                    prompt: vec![Part::Text(format!("prompt of {id}"))],
                    max_tokens: 8,
                    temperature: 0.0,
                    top_p: 1.0,
                    top_k: 0,
                })
                .collect(),
        }
    }

    fn flows(count: usize, steps: &[(&str, &[&str])]) -> Vec<Flow> {
        (1..=count)
            .map(|flow| Flow {
                flow,
                ..flow_of(steps)
            })
            .collect()
    }

    #[derive(Default)]
    struct Seen {
        steps: Vec<StepRecord>,
        workflows: Vec<WorkflowRecord>,
        /// Raises the interrupt after so many steps.
        stop_after: Option<usize>,
        interrupted: AtomicBool,
    }

    struct Collect<'a>(
        &'a mut Vec<StepRecord>,
        &'a mut Vec<WorkflowRecord>,
        Option<usize>,
        &'a AtomicBool,
    );

    impl Observer for Collect<'_> {
        fn step_ended(&mut self, step: &StepRecord) -> Result<()> {
            self.0.push(step.clone());
            if Some(self.0.len()) == self.2 {
                self.3.store(true, Ordering::Relaxed);
            }
            Ok(())
        }

        fn workflow_ended(&mut self, workflow: &WorkflowRecord, _: Option<&Error>) -> Result<()> {
            self.1.push(workflow.clone());
            Ok(())
        }
    }

    impl Seen {
        fn run(&mut self, engine: &mut dyn Engine, flows: &[Flow], concurrency: usize) -> Outcome {
            let options = RunnerOptions {
                concurrency,
                ..RunnerOptions::default()
            };
            let origin = Moment::now(engine).expect("a script cannot break");
            let mut collect = Collect(
                &mut self.steps,
                &mut self.workflows,
                self.stop_after,
                &self.interrupted,
            );
            run(
                engine,
                flows,
                &options,
                origin,
                &self.interrupted,
                &mut collect,
            )
            .expect("a script cannot break")
        }

        fn order(&self) -> Vec<(usize, &str)> {
            self.steps
                .iter()
                .map(|step| (step.flow, step.step.as_str()))
                .collect()
        }
    }

    fn scripted(script: &str) -> ScriptedEngine {
        ScriptedEngine::new(Script::parse(script, "script").expect("valid"), true)
    }

    const CHAIN: &[(&str, &[&str])] = &[("plan", &[]), ("do", &["plan"]), ("check", &["do"])];

    #[test]
    fn one_at_a_time_runs_flows_and_steps_in_their_order() {
        let mut seen = Seen::default();
        let mut engine = scripted(r#"{"output": "one two"}"#);
        assert_eq!(seen.run(&mut engine, &flows(2, CHAIN), 1), Outcome::Ended);
        assert_eq!(
            seen.order(),
            [
                (1, "plan"),
                (1, "do"),
                (1, "check"),
                (2, "plan"),
                (2, "do"),
                (2, "check")
            ]
        );
        assert_eq!(seen.workflows.len(), 2);
        assert!(
            seen.workflows
                .iter()
                .all(|flow| flow.error.is_none() && flow.steps_done == 3)
        );
        let step = &seen.steps[0];
        assert_eq!((step.decode_tokens, step.prompt_tokens), (2, 3));
        assert!(step.ttft_ms.is_some() && step.tpot_ms.is_some());
    }

    #[test]
    fn the_device_is_synchronised_before_each_reading() {
        let mut seen = Seen::default();
        let mut engine = scripted(r#"{"output": "one"}"#);
        seen.run(&mut engine, &flows(2, CHAIN), 1);
        // The origin, one start a flow, one submission and one poll with events a step; the
        // readings are the only callers, so that a reading without its fence would show here.
        assert_eq!(engine.synchronizations(), 1 + 2 + 6 + 6);
    }

    #[test]
    fn times_are_those_of_the_script() {
        let mut seen = Seen::default();
        let mut engine = scripted(r#"{"output": "a b c", "ttft_ms": 10, "latency_ms": 20}"#);
        seen.run(&mut engine, &flows(1, &[("only", &[])]), 1);
        let step = &seen.steps[0];
        let ttft = step.ttft_ms.expect("a first token").0;
        assert!(ttft >= 10.0, "{ttft}");
        assert!(step.latency_ms.0 >= 20.0 && step.latency_ms.0 > ttft);
        let tpot = step.tpot_ms.expect("three tokens").0;
        assert!((tpot - (step.latency_ms.0 - ttft) / 2.0).abs() < 1e-9);
        assert!(seen.workflows[0].workflow_ms >= step.latency_ms);
    }

    #[test]
    fn metrics_that_need_tokens_are_absent_without_them() {
        let mut seen = Seen::default();
        let mut engine = scripted(r#"{"output": ""}"#);
        seen.run(&mut engine, &flows(1, &[("only", &[])]), 1);
        assert_eq!(seen.steps[0].decode_tokens, 0);
        assert_eq!((seen.steps[0].ttft_ms, seen.steps[0].tpot_ms), (None, None));
    }

    #[test]
    fn a_failed_step_ends_its_own_flow_only() {
        let mut seen = Seen::default();
        let mut engine = scripted(
            r#"{"output": "fine"}
{"flow": 2, "step": "do", "fail": "the model is tired"}"#,
        );
        assert_eq!(seen.run(&mut engine, &flows(3, CHAIN), 1), Outcome::Ended);
        assert_eq!(seen.steps.len(), 7);
        let errors: Vec<_> = seen
            .workflows
            .iter()
            .map(|flow| flow.error.as_deref())
            .collect();
        assert_eq!(
            errors,
            [None, Some("flow 2, step do: the model is tired"), None]
        );
        assert_eq!(seen.workflows[1].steps_done, 1);
    }

    #[test]
    fn a_refused_request_fails_its_flow_and_cancels_its_siblings() {
        let mut seen = Seen::default();
        let mut engine = scripted(
            r#"{"step": "a", "output": "fine"}
{"step": "c", "output": "slow", "latency_ms": 5}"#,
        );
        let fork: &[(&str, &[&str])] = &[("a", &[]), ("c", &["a"]), ("b", &["a"])];
        assert_eq!(seen.run(&mut engine, &flows(1, fork), 1), Outcome::Ended);
        let error = seen.workflows[0].error.as_deref().expect("no answer for b");
        assert!(error.contains("step b"), "{error}");
        assert_eq!(seen.order(), [(1, "a")]);
    }

    #[test]
    fn an_interrupt_keeps_what_was_measured() {
        let mut seen = Seen {
            stop_after: Some(4),
            ..Seen::default()
        };
        let mut engine = scripted(r#"{"output": "one"}"#);
        assert_eq!(
            seen.run(&mut engine, &flows(5, CHAIN), 1),
            Outcome::Interrupted
        );
        assert_eq!(seen.steps.len(), 4);
        assert_eq!(seen.workflows.len(), 1);
        assert!(
            engine.poll().expect("works").is_empty(),
            "requests are given up"
        );
    }

    #[test]
    fn an_engine_that_breaks_ends_the_run() {
        struct Broken(ScriptedEngine);
        impl crate::stopwatch::Fence for Broken {
            fn synchronize(&self) -> Result<()> {
                Ok(())
            }
        }
        impl Engine for Broken {
            fn info(&self) -> &crate::engine::EngineInfo {
                self.0.info()
            }
            fn submit(&mut self, request: crate::engine::Request) -> Result<RequestId> {
                self.0.submit(request)
            }
            fn poll(&mut self) -> Result<Vec<Event>> {
                Err(Error::flow("device lost"))
            }
            fn cancel(&mut self, _: RequestId) {}
            fn restart(&mut self, _: bool) -> Result<()> {
                Ok(())
            }
        }
        let mut engine = Broken(scripted(r#"{"output": "x"}"#));
        let origin = Moment::now(&engine).expect("no fence");
        let (mut steps, mut workflows, stop) = (Vec::new(), Vec::new(), AtomicBool::new(false));
        let result = run(
            &mut engine,
            &flows(2, CHAIN),
            &RunnerOptions::default(),
            origin,
            &stop,
            &mut Collect(&mut steps, &mut workflows, None, &stop),
        );
        assert_eq!(result.expect_err("broken").to_string(), "device lost");
    }

    proptest! {
        /// Whatever runs beside them, steps come after those they need and every step ends once.
        #[test]
        fn concurrency_changes_no_result(
            count in 1usize..8,
            concurrency in 1usize..10,
            edges in prop::collection::vec(any::<bool>(), 10),
        ) {
            let names = ["a", "b", "c", "d", "e"];
            let mut needs: Vec<Vec<&str>> = vec![Vec::new(); 5];
            let mut bit = edges.iter();
            for (to, needs) in needs.iter_mut().enumerate().skip(1) {
                for name in &names[..to] {
                    if *bit.next().expect("ten pairs") {
                        needs.push(name);
                    }
                }
            }
            let steps: Vec<(&str, &[&str])> =
                names.iter().zip(&needs).map(|(name, needs)| (*name, needs.as_slice())).collect();
            let all = flows(count, &steps);
            let mut engine = scripted(r#"{"output": "x y"}"#);
            let mut seen = Seen::default();
            prop_assert_eq!(seen.run(&mut engine, &all, concurrency), Outcome::Ended);
            prop_assert_eq!(seen.steps.len(), 5 * count);
            let order = seen.order();
            for flow in 1..=count {
                let place = |name: &str| order.iter().position(|at| *at == (flow, name));
                for (name, needs) in &steps {
                    for need in *needs {
                        prop_assert!(place(need) < place(name));
                    }
                }
            }
        }
    }
}
