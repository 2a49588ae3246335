//! The runner on scripted engines.

mod evolution;
mod restore;

use super::*;
use crate::engine::{Event, RequestId, Script, ScriptedEngine};
use crate::flow::{Context, Generate, Part, Step, Work};
use proptest::prelude::*;

/// Flow 1 with these steps and dependencies; each step has its own prompt.
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
                generation: None,
                work: Work::Generate(Generate {
                    context: Context::Fresh,
                    prompt: vec![Part::Text(format!("prompt of {id}"))],
                    samples: 1,
                    max_tokens: 8,
                    temperature: 0.0,
                    top_p: 1.0,
                    top_k: 0,
                }),
            })
            .collect(),
    }
}

/// What a step of a flow generates.
pub(crate) fn generate_of(flow: &mut Flow, step: usize) -> &mut Generate {
    match &mut flow.steps[step].work {
        Work::Generate(generate) => generate,
        work => panic!("a step of kind {}", work.kind()),
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
    /// Interrupts the run after this many steps.
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
    fn step_ended(&mut self, step: StepRecord) -> Result<()> {
        self.0.push(step);
        if Some(self.0.len()) == self.2 {
            self.3.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn workflow_ended(
        &mut self,
        workflow: WorkflowRecord,
        _: &Response,
        _: Option<&Error>,
    ) -> Result<()> {
        self.1.push(workflow);
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
        let (mut verifier, mut accounts) = (Verifier::default(), no_limits());
        let mut services = Services {
            engine,
            evaluator: None,
            verifier: &mut verifier,
            accounts: &mut accounts,
            pins: None,
        };
        run(
            &mut services,
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

fn no_limits() -> Accounts {
    Accounts::new("test", None, crate::config::Limits::default())
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
    assert_eq!((step.tokens.decode, step.tokens.prompt), (2, 3));
    assert!(step.ttft_ms.is_some() && step.tpot_ms.is_some());
}

#[test]
fn the_device_is_synchronised_before_each_reading() {
    let mut seen = Seen::default();
    let mut engine = scripted(r#"{"output": "one"}"#);
    seen.run(&mut engine, &flows(2, CHAIN), 1);
    // The origin, one start a flow, one submission and two polls with events (the start, the
    // rest) a step; the readings are the only callers, so that a reading without its fence would
    // show here.
    assert_eq!(engine.synchronizations(), 1 + 2 + 6 + 2 * 6);
}

#[test]
fn times_are_those_of_the_script() {
    let mut seen = Seen::default();
    let mut engine = scripted(r#"{"output": "a b c", "ttft_ms": 10, "latency_ms": 20}"#);
    seen.run(&mut engine, &flows(1, &[("only", &[])]), 1);
    let step = &seen.steps[0];
    let ttft = step.ttft_ms.expect("a first token").0;
    assert!(ttft >= 10.0, "{ttft}");
    // On a busy machine the last token may be due when the first is looked for.
    assert!(step.latency_ms.0 >= 20.0 && step.latency_ms.0 >= ttft);
    let tpot = step.tpot_ms.expect("three tokens").0;
    assert!((tpot - (step.latency_ms.0 - ttft) / 2.0).abs() < 1e-9);
    assert!(seen.workflows[0].workflow_ms >= step.latency_ms);
}

#[test]
fn queue_wait_gaps_and_rates() {
    let mut seen = Seen::default();
    let mut engine =
        scripted(r#"{"output": "a b c d", "queue_ms": 8, "ttft_ms": 10, "latency_ms": 22}"#);
    seen.run(&mut engine, &flows(1, &[("only", &[])]), 1);
    let step = &seen.steps[0];
    let (queue, ttft) = (
        step.queue_ms.expect("told").0,
        step.ttft_ms.expect("a token").0,
    );
    assert!((8.0..=ttft).contains(&queue), "{queue}");
    let rate = step.prefill_tokens_per_s.expect("computed");
    assert!((rate - step.tokens.prefill as f64 * 1e3 / (ttft - queue)).abs() < 1e-6 * rate);
    let rate = step.decode_tokens_per_s.expect("four tokens");
    assert!((rate * step.tpot_ms.expect("four tokens").0 - 1e3).abs() < 1e-6);
    let spread = step.itl_ms.as_ref().expect("four tokens");
    assert_eq!((spread.count, step.gaps_ms.len()), (3, 3));
    // The gaps add up to the time from the first token to the last, as rounded.
    let sum: f64 = step.gaps_ms.iter().sum();
    assert!(sum <= step.latency_ms.0 - ttft + 0.002, "{sum}");
    assert!((spread.mean * 3.0 - sum).abs() < 1e-9);
}

#[test]
fn the_path_of_a_flow_adds_up_to_its_makespan() {
    let mut seen = Seen::default();
    let mut engine = scripted(
        r#"{"step": "plan", "output": "x", "latency_ms": 2}
{"step": "long", "output": "x", "latency_ms": 20}
{"step": "short", "output": "x"}
{"step": "check", "output": "x"}"#,
    );
    let steps: &[(&str, &[&str])] = &[
        ("plan", &[]),
        ("long", &["plan"]),
        ("short", &["plan"]),
        ("check", &["long", "short"]),
    ];
    seen.run(&mut engine, &flows(2, steps), 2);
    for flow in &seen.workflows {
        let path: Vec<&str> = flow
            .critical_path
            .iter()
            .map(|at| at.step.as_str())
            .collect();
        assert_eq!(path, ["plan", "long", "check"]);
        let sum: Millis = flow.critical_path.iter().map(|at| at.ms).sum();
        assert!((sum.0 - flow.workflow_ms.0).abs() < 1e-6);
        let slack: Vec<bool> = flow.slack_ms.values().map(|ms| ms.0 > 0.0).collect();
        assert_eq!(slack, [false, false, false, true], "{:?}", flow.slack_ms);
        assert_eq!((flow.tokens.prompt, flow.tokens.decode), (12, 4));
        assert!(flow.start_ms.0 >= 0.0);
    }
}

#[test]
fn metrics_that_need_tokens_are_absent_without_them() {
    let mut seen = Seen::default();
    let mut engine = scripted(r#"{"output": ""}"#);
    seen.run(&mut engine, &flows(1, &[("only", &[])]), 1);
    assert_eq!(seen.steps[0].tokens.decode, 0);
    assert_eq!((seen.steps[0].ttft_ms, seen.steps[0].tpot_ms), (None, None));
    assert_eq!(seen.steps[0].itl_ms, None);
    assert_eq!(seen.steps[0].decode_tokens_per_s, None);
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
    assert!(seen.workflows[1].critical_path.is_empty());
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
    let (mut verifier, mut accounts) = (Verifier::default(), no_limits());
    let mut services = Services {
        engine: &mut engine,
        evaluator: None,
        verifier: &mut verifier,
        accounts: &mut accounts,
        pins: None,
    };
    let result = run(
        &mut services,
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
        for (to, needs) in needs.iter_mut().enumerate() {
            for from in &names[..to] {
                if *bit.next().expect("ten pairs") {
                    needs.push(from);
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

#[test]
fn flows_that_can_never_end_fail() {
    let verify = |of: &str| Step {
        id: "check".to_owned(),
        needs: vec!["plan".to_owned()],
        generation: None,
        work: Work::Verify(crate::flow::Verify {
            of: of.to_owned(),
            question: Vec::new(),
            expected: Vec::new(),
            how: crate::flow::How::Math,
        }),
    };
    let mut unknown = flow_of(&[("plan", &[])]);
    unknown.steps.push(verify("plam"));
    let mut none = flow_of(&[]);
    none.flow = 2;
    let mut no_samples = flow_of(&[("plan", &[])]);
    no_samples.flow = 3;
    generate_of(&mut no_samples, 0).samples = 0;
    let sound = Flow {
        flow: 4,
        ..flow_of(CHAIN)
    };
    let mut seen = Seen::default();
    let outcome = seen.run(
        &mut scripted("{\"output\": \"x\"}"),
        &[unknown, none, no_samples, sound],
        2,
    );
    assert_eq!(outcome, Outcome::Ended);
    let failed: Vec<bool> = (seen.workflows.iter())
        .map(|workflow| workflow.error.is_some())
        .collect();
    assert_eq!(failed.iter().filter(|failed| **failed).count(), 3);
    assert_eq!(seen.workflows.len(), 4);
}
