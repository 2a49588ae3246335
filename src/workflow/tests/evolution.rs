//! Samples, loops, evaluation, verification and judgement, on a script and a double of the pool.

use std::time::Duration;

use super::*;
use crate::evaluate::{EvaluationId, Evaluator, Finished, Outcome as Ended, Request, Times};
use crate::flow::{ExpandRequest, expand};

/// Takes the number that a program consists of for its score, and gives programs back in an order of
/// its own.
#[derive(Default)]
pub(super) struct Double {
    pub(super) open: Vec<(EvaluationId, Request)>,
    pub(super) submitted: u64,
    pub(super) order: u64,
}

impl Evaluator for Double {
    fn submit(&mut self, request: Request) -> EvaluationId {
        let id = EvaluationId(self.submitted);
        self.submitted += 1;
        self.open.push((id, request));
        id
    }

    fn poll(&mut self, _timeout: Duration) -> Vec<Finished> {
        if self.open.is_empty() {
            return Vec::new();
        }
        self.order = self
            .order
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let pick = (self.order >> 33) as usize % (self.open.len() + 1);
        if pick == self.open.len() {
            return Vec::new();
        }
        let (id, request) = self.open.remove(pick);
        let score = request.code.trim().parse().ok();
        vec![Finished {
            id,
            outcome: if score.is_some() {
                Ended::Ok
            } else {
                Ended::RuntimeError
            },
            score,
            detail: if score.is_some() {
                String::new()
            } else {
                "no number".to_owned()
            },
            times: Times::default(),
            attempts: 1,
            killed_after: None,
        }]
    }

    fn cancel(&mut self, id: EvaluationId) {
        self.open.retain(|(known, _)| *known != id);
    }

    fn open(&self) -> usize {
        self.open.len()
    }
}

/// Everything that an observer receives.
#[derive(Default)]
pub(super) struct Kept {
    /// Whether saving a generation fails.
    pub(super) full: bool,
    pub(super) steps: Vec<StepRecord>,
    pub(super) workflows: Vec<WorkflowRecord>,
    pub(super) responses: Vec<Response>,
    pub(super) trials: Vec<TrialRecord>,
    pub(super) generations: Vec<GenerationRecord>,
}

impl Observer for Kept {
    fn step_ended(&mut self, step: StepRecord) -> Result<()> {
        self.steps.push(step);
        Ok(())
    }

    fn workflow_ended(
        &mut self,
        workflow: WorkflowRecord,
        response: &Response,
        _: Option<&Error>,
    ) -> Result<()> {
        self.workflows.push(workflow);
        self.responses.push(response.clone());
        Ok(())
    }

    fn trial_ended(&mut self, trial: &TrialRecord) -> Result<()> {
        self.trials.push(trial.clone());
        Ok(())
    }

    fn trial_kept(&mut self, trial: &TrialRecord) -> Result<()> {
        self.trial_ended(trial)
    }

    fn generation_kept(&mut self, generation: &GenerationRecord) -> Result<()> {
        self.generation_ended(generation)
    }

    fn generation_ended(&mut self, generation: &GenerationRecord) -> Result<()> {
        self.generations.push(generation.clone());
        match self.full {
            false => Ok(()),
            true => Err(Error::output("no room")),
        }
    }
}

pub(super) fn flows_of(template: &str, num_flows: usize) -> Vec<Flow> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let layout = crate::config::Layout {
        root: folder.path().to_owned(),
    };
    std::fs::create_dir_all(layout.templates()).expect("writable");
    std::fs::write(layout.templates().join("t.toml"), template).expect("writable");
    let request = ExpandRequest {
        layout: &layout,
        template: "t",
        num_flows: Some(num_flows),
        params: &[],
        input: None,
        use_cache: false,
        load: true,
        on_wait: &|_| Ok(()),
        proceed: &|| Ok(()),
    };
    expand(&request)
        .unwrap_or_else(|error| panic!("{}", error.report()))
        .flows
}

/// Runs flows on an engine and a double of the pool.
fn run_with(
    engine: &mut dyn Engine,
    double: &mut Double,
    accounts: &mut Accounts,
    pins: Option<&Script>,
    flows: &[Flow],
    kept: &mut Kept,
) -> Result<Outcome> {
    let origin = Moment::now(engine).expect("no fence");
    let mut verifier = Verifier::default();
    let mut services = Services {
        engine,
        evaluator: Some(double),
        verifier: &mut verifier,
        accounts,
        pins,
    };
    let options = RunnerOptions {
        concurrency: 2,
        ..RunnerOptions::default()
    };
    run(
        &mut services,
        flows,
        &options,
        origin,
        &AtomicBool::new(false),
        kept,
    )
}

fn play(flows: &[Flow], script: &str, order: u64, pins: Option<&Script>) -> (Kept, Accounts) {
    let mut engine = scripted(script);
    let mut double = Double {
        order,
        ..Double::default()
    };
    let (mut kept, mut accounts) = (Kept::default(), no_limits());
    let outcome = run_with(
        &mut engine,
        &mut double,
        &mut accounts,
        pins,
        flows,
        &mut kept,
    );
    assert_eq!(outcome.expect("a script cannot break"), Outcome::Ended);
    assert_eq!(double.open(), 0);
    (kept, accounts)
}

/// The same on an engine, with a limit on tokens.
fn play_to(
    tokens: u64,
    flows: &[Flow],
    engine: &mut ScriptedEngine,
) -> (Result<Outcome>, Kept, Accounts) {
    let limits = crate::config::Limits {
        tokens: Some(tokens),
        ..crate::config::Limits::default()
    };
    let mut accounts = Accounts::new("m", None, limits);
    let (mut double, mut kept) = (Double::default(), Kept::default());
    let outcome = run_with(engine, &mut double, &mut accounts, None, flows, &mut kept);
    (outcome, kept, accounts)
}

const EVOLVE: &str = r#"schema = 1
name = "t"

[[step]]
id = "root"
prompt = "begin"

[[step]]
id = "first"
kind = "evaluate"
of = "root"
task = "packing"

[[loop]]
generations = 2
steps = ["child", "trial", "best"]
start = "first"
carry = "best"

[[step]]
id = "child"
samples = 3
temperature = 1.0
prompt = "generation ${generation}: better than ${previous.text}\n${scratchpad}"

[[step]]
id = "trial"
kind = "evaluate"
of = "child"
task = "packing"

[[step]]
id = "best"
kind = "select"
of = ["previous", "trial"]

[[step]]
id = "end"
needs = ["best"]
prompt = "The best is ${steps.best.text} with ${steps.best.score}; of the last: ${steps.trial.outcomes | join(' ')}"
"#;

/// A line of a script whose answer is a program.
fn program(step: &str, sample: usize, code: &str) -> String {
    let output = format!("Sure.\n```python\n{code}\n```");
    serde_json::json!({"step": step, "sample": sample, "output": output}).to_string()
}

fn evolve_script() -> String {
    [
        program("root", 1, "1.0"),
        program("child.1", 1, "0.5"),
        program("child.1", 2, "broken"),
        program("child.1", 3, "1.5"),
        program("child.2", 1, "1.5"),
        program("child.2", 2, "2.25"),
        r#"{"step": "child.2", "sample": 3, "output": "I cannot."}"#.to_owned(),
        r#"{"step": "end", "output": "done"}"#.to_owned(),
    ]
    .join("\n")
}

#[test]
fn generations_go_on_from_the_best_so_far() {
    let flows = flows_of(EVOLVE, 1);
    let (kept, accounts) = play(&flows, &evolve_script(), 1, None);
    let workflow = &kept.workflows[0];
    assert_eq!(workflow.error, None);
    assert_eq!((workflow.steps_done, workflow.steps), (9, 9));
    let mut trials = kept.trials.clone();
    trials.sort_by_key(|trial| trial.trial);
    let told: Vec<_> = trials
        .iter()
        .map(|trial| {
            (
                trial.generation,
                trial.parent,
                trial.outcome.as_str(),
                trial.score,
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (0, None, "ok", Some(1.0)),
            (1, Some(1), "ok", Some(0.5)),
            (1, Some(1), "runtime_error", None),
            (1, Some(1), "ok", Some(1.5)),
            (2, Some(4), "ok", Some(1.5)),
            (2, Some(4), "ok", Some(2.25)),
            (2, Some(4), "invalid", None),
        ]
    );
    let generations: Vec<_> = kept
        .generations
        .iter()
        .map(|of| (of.generation, of.trials, of.selected, of.selected_score))
        .collect();
    assert_eq!(
        generations,
        [(1, 3, Some(4), Some(1.5)), (2, 3, Some(6), Some(2.25))]
    );
    let [generate] = accounts.usage() else {
        panic!("one kind: {:?}", accounts.usage());
    };
    assert_eq!((generate.kind.as_str(), generate.requests), ("generate", 8));
}

#[test]
fn what_a_step_reads_is_what_has_come_before() {
    // An engine that answers with the prompt would do; a script cannot, so the requests are built
    // from what a first run has left.
    struct Echo(ScriptedEngine, Vec<(String, String)>);
    impl crate::stopwatch::Fence for Echo {
        fn synchronize(&self) -> Result<()> {
            Ok(())
        }
    }
    impl Engine for Echo {
        fn info(&self) -> &crate::engine::EngineInfo {
            self.0.info()
        }
        fn submit(&mut self, request: crate::engine::Request) -> Result<RequestId> {
            let said = request.messages.last().expect("a prompt").content.clone();
            self.1.push((request.origin.step.clone(), said));
            self.0.submit(request)
        }
        fn poll(&mut self) -> Result<Vec<Event>> {
            self.0.poll()
        }
        fn cancel(&mut self, id: RequestId) {
            self.0.cancel(id);
        }
        fn restart(&mut self, _: bool) -> Result<()> {
            Ok(())
        }
    }
    let flows = flows_of(EVOLVE, 1);
    let mut engine = Echo(scripted(&evolve_script()), Vec::new());
    let (mut double, mut kept, mut accounts) = (Double::default(), Kept::default(), no_limits());
    run_with(
        &mut engine,
        &mut double,
        &mut accounts,
        None,
        &flows,
        &mut kept,
    )
    .expect("it runs");
    let said = |step: &str| {
        let mut prompts = engine
            .1
            .iter()
            .filter(|(of, _)| of == step)
            .map(|(_, said)| said);
        let first = prompts.next().expect("it was asked").clone();
        assert!(
            prompts.all(|prompt| *prompt == first),
            "samples have one prompt"
        );
        first
    };
    assert_eq!(
        said("child.1"),
        "generation 1: better than 1.0\n\ntrial 1: score 1.0000"
    );
    assert_eq!(
        said("child.2"),
        "generation 2: better than 1.5\n\ntrial 1: score 1.0000\ntrial 2: score 0.5000\n\
         trial 3: runtime_error: no number\ntrial 4: score 1.5000"
    );
    assert_eq!(
        said("end"),
        "The best is 2.25\n with 2.25; of the last: ok ok invalid"
    );
}

#[test]
fn what_cannot_be_kept_ends_the_run_wherever_it_comes_up() {
    let flows = flows_of(EVOLVE, 3);
    let mut engine = scripted(&evolve_script());
    let (mut double, mut accounts) = (Double::default(), no_limits());
    let mut kept = Kept {
        full: true,
        ..Kept::default()
    };
    let error = run_with(
        &mut engine,
        &mut double,
        &mut accounts,
        None,
        &flows,
        &mut kept,
    )
    .expect_err("no room");
    assert_eq!(error.exit(), crate::error::Exit::Output);
    assert!(kept.workflows.is_empty(), "it is not the flow that failed");
}

#[test]
fn an_expression_that_fails_ends_its_own_flow() {
    let template = JUDGED.replace(
        "expected = \"1/2\"\n\n[[step]]\nid = \"judge\"",
        "expected = \"${steps.answer.texts[9]}\"\n\n[[step]]\nid = \"judge\"",
    );
    let flows = flows_of(&template, 2);
    let (kept, _) = play(&flows, r#"{"output": "so \\boxed{1}"}"#, 0, None);
    assert_eq!(kept.workflows.len(), 2);
    for workflow in &kept.workflows {
        let error = workflow.error.as_deref().expect("there is no tenth");
        assert!(error.contains("step check: not run"), "{error}");
    }
}

const JUDGED: &str = r#"schema = 1
name = "t"

[[step]]
id = "answer"
samples = 4
temperature = 1.0
prompt = "What is 1/2?"

[[step]]
id = "check"
kind = "verify"
of = "answer"
question = "What is 1/2?"
expected = "1/2"

[[step]]
id = "judge"
kind = "judge"
of = "check"
question = "What is 1/2?"
expected = "1/2"
"#;

#[test]
fn answers_are_checked_and_only_the_undecided_judged() {
    let flows = flows_of(JUDGED, 1);
    let script = r#"{"step": "answer", "sample": 1, "output": "so \\boxed{0.5}"}
{"step": "answer", "sample": 2, "output": "so \\boxed{one half}"}
{"step": "answer", "sample": 3, "output": "I do not know"}
{"step": "answer", "sample": 4, "output": "so \\boxed{a third}"}
{"step": "judge", "sample": 3, "output": "[[A=B]]"}
{"step": "judge", "sample": 4, "output": "yes: [[A=B]]"}
{"step": "judge", "sample": 7, "output": "[[A=B]]"}
{"step": "judge", "sample": 8, "output": "[[A!=B]]"}"#;
    let (kept, accounts) = play(&flows, script, 0, None);
    assert_eq!(kept.workflows[0].error, None);
    let found = |kind: &str| {
        let steps = kept.steps.iter().filter(|step| step.kind() == kind);
        let mut found: Vec<_> = steps
            .map(|step| {
                (
                    step.sample,
                    step.outcome.clone().unwrap_or_default(),
                    step.score,
                )
            })
            .collect();
        found.sort_by_key(|(sample, ..)| *sample);
        found
    };
    let outcome = |sample, outcome: &str, score| (Some(sample), outcome.to_owned(), score);
    assert_eq!(
        found("verify"),
        [
            outcome(1, "equal", Some(1.0)),
            outcome(2, "undecided", None),
            outcome(3, "no_answer", Some(0.0)),
            outcome(4, "undecided", None),
        ]
    );
    assert_eq!(
        found("judge"),
        [
            outcome(3, "equal", Some(1.0)),
            outcome(4, "equal", Some(1.0)),
            outcome(7, "equal", None),
            outcome(8, "unequal", None),
        ]
    );
    let response = &kept.responses[0];
    assert_eq!(response.answer.as_deref(), Some("0.5"));
    // One of the four could not be judged: there is no honest mean.
    assert_eq!(response.reward, None);
    let requests: Vec<_> = (accounts.usage().iter())
        .map(|usage| (usage.kind.as_str(), usage.requests))
        .collect();
    assert_eq!(requests, [("generate", 4), ("judge", 4)]);
}

#[test]
fn a_check_that_reads_all_answers_waits_for_them() {
    let template = JUDGED.replacen(
        "question = \"What is 1/2?\"",
        "question = \"${steps.answer.texts | join(', ')}\"",
        1,
    );
    let flows = flows_of(&template, 1);
    let script = r#"{"step": "answer", "sample": 4, "output": "so \\boxed{0.5}", "latency_ms": 5}
{"output": "so \\boxed{0.5}"}"#;
    let (kept, _) = play(&flows, script, 0, None);
    assert_eq!(kept.workflows[0].error, None);
    assert_eq!(kept.responses[0].reward, Some(1.0));
}

#[test]
fn half_a_judgement_is_kept_where_the_other_half_does_not_come() {
    let flows = flows_of(JUDGED, 1);
    let script = r#"{"step": "answer", "output": "so \\boxed{half}"}
{"step": "judge", "sample": 1, "output": "[[A=B]]"}
{"step": "judge", "output": "[[A=B]]", "latency_ms": 60000}"#;
    // Four answers of two words to prompts of three come to 20.
    let (outcome, kept, accounts) = play_to(21, &flows, &mut scripted(script));
    assert!(matches!(outcome, Ok(Outcome::Limited(_))), "{outcome:?}");
    let judged = kept.steps.iter().filter(|step| step.kind() == "judge");
    let told: Vec<_> = judged
        .map(|step| (step.sample, step.outcome.as_deref(), step.score))
        .collect();
    assert_eq!(told, [(Some(1), Some("equal"), None)]);
    let requests: u64 = accounts.usage().iter().map(|usage| usage.requests).sum();
    assert_eq!(requests, 5, "what is counted is what is kept");
}

#[test]
fn loops_have_generations_of_their_own() {
    let second = r#"
[[loop]]
generations = 1
steps = ["again", "again_trial"]
start = "best"
carry = "again_trial"

[[step]]
id = "again"
prompt = "${previous.text}"

[[step]]
id = "again_trial"
kind = "evaluate"
of = "again"
task = "packing"
"#;
    let flows = flows_of(&(EVOLVE.to_owned() + second), 1);
    let script = evolve_script() + "\n" + &program("again.1", 1, "3.0");
    let (kept, _) = play(&flows, &script, 3, None);
    assert_eq!(kept.workflows[0].error, None);
    let mut generations: Vec<_> = kept
        .generations
        .iter()
        .map(|of| (of.r#loop, of.generation, of.trials, of.selected_score))
        .collect();
    generations.sort_by_key(|of| (of.0, of.1));
    assert_eq!(
        generations,
        [
            (1, 1, 3, Some(1.5)),
            (1, 2, 3, Some(2.25)),
            (2, 1, 1, Some(3.0))
        ]
    );
}

#[test]
fn pinned_texts_are_what_later_steps_see() {
    let flows = flows_of(JUDGED, 1);
    let live = r#"{"output": "\\boxed{7}"}"#;
    let pins = Script::parse(r#"{"step": "answer", "output": "\\boxed{1/2}"}"#, "pins");
    let (kept, _) = play(&flows, live, 0, Some(&pins.expect("valid")));
    assert_eq!(kept.responses[0].reward, Some(1.0));
    let answers = kept.steps.iter().filter(|step| step.kind() == "generate");
    for answer in answers {
        assert_eq!(
            (answer.output.as_str(), answer.pinned),
            ("\\boxed{7}", true)
        );
    }
    let missing = Script::parse(r#"{"step": "other", "output": "x"}"#, "pins").expect("valid");
    let (kept, _) = play(&flows, live, 0, Some(&missing));
    let error = kept.workflows[0]
        .error
        .as_deref()
        .expect("nothing to go on with");
    assert!(error.contains("no recorded output"), "{error}");
}

#[test]
fn a_limit_ends_the_run_and_keeps_what_was_done() {
    let flows = flows_of(EVOLVE, 3);
    let mut engine = scripted(&evolve_script());
    let (outcome, kept, _) = play_to(60, &flows, &mut engine);
    let outcome = outcome.expect("it runs");
    let Outcome::Limited(Reached(what)) = outcome else {
        panic!("not limited: {outcome:?}");
    };
    assert!(what.contains("--max-tokens-total"), "{what}");
    assert!(!kept.steps.is_empty() && kept.workflows.len() < 3);
    assert!(
        engine.poll().expect("works").is_empty(),
        "requests are given up"
    );
}

proptest! {
    /// Whatever ends first: the same trials, the same selection, the same prompts.
    #[test]
    fn results_do_not_depend_on_the_order_in_which_evaluations_end(orders in any::<[u64; 2]>()) {
        let flows = flows_of(EVOLVE, 2);
        let results = orders.map(|order| {
            let (mut kept, accounts) = play(&flows, &evolve_script(), order, None);
            kept.trials.sort_by_key(|trial| (trial.flow, trial.trial));
            let trials: Vec<_> = (kept.trials.into_iter())
                .map(|trial| (trial.trial, trial.parent, trial.score, trial.code, trial.detail))
                .collect();
            let mut steps: Vec<_> = (kept.steps.iter())
                .map(|step| (step.flow, step.label(), step.tokens.prompt, step.score))
                .collect();
            steps.sort_by(|one, other| one.partial_cmp(other).expect("no NaN"));
            (trials, steps, kept.responses, accounts.usage().to_vec())
        });
        prop_assert_eq!(&results[0], &results[1]);
    }
}
