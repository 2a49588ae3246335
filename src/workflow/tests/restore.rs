//! Flows that go on from steps that ended before: whatever had ended, the rest is as if nothing had happened.

use std::collections::BTreeMap;

use super::evolution::{Double, Kept, flows_of};
use super::*;
use crate::engine::{
    Completion, EngineInfo, Event, EventKind, Finish, Request, RequestId, Script, ScriptedEngine,
};
use crate::hash::sha256;
use crate::stopwatch::Fence;

/// Answers with a program, a text to judge or a verdict that follow from the whole conversation and the seed, so
/// that anything that is restored wrongly changes all that comes after it. Requests end in an order of its own.
struct Hashing {
    info: EngineInfo,
    active: Vec<(RequestId, String)>,
    submitted: u64,
    order: u64,
}

impl Hashing {
    fn new(order: u64) -> Self {
        let script = Script::parse(r#"{"output": ""}"#, "script").expect("valid");
        Self {
            info: ScriptedEngine::new(script, false).info().clone(),
            active: Vec::new(),
            submitted: 0,
            order,
        }
    }
}

impl Fence for Hashing {
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

impl Engine for Hashing {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn submit(&mut self, request: Request) -> Result<RequestId> {
        let turns = request
            .messages
            .iter()
            .map(|message| message.content.as_str());
        let said: Vec<&str> = turns.collect();
        let hash = sha256(format!("{said:?} {}", request.sampling.seed).as_bytes());
        let digit = u8::from_str_radix(&hash[..1], 16).expect("a digit");
        let text = match (request.origin.step.as_str(), digit) {
            ("judge", 0..=5) => format!("{hash} [[A=B]]"),
            ("judge", 6..=11) => format!("{hash} [[A!=B]]"),
            ("answer", 0..=5) => format!("{hash} \\boxed{{1/2}}"),
            ("answer", 6..=11) => format!("\\boxed{{as much as {hash}}}"),
            (step, 0..=11) if step != "end" => {
                format!("```python\n0.{}\n```", u64::from(digit) + 1)
            }
            _ => hash,
        };
        let id = RequestId(self.submitted);
        self.submitted += 1;
        self.active.push((id, text));
        Ok(id)
    }

    fn poll(&mut self) -> Result<Vec<Event>> {
        self.order = self
            .order
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let (id, text) = self
            .active
            .remove((self.order >> 33) as usize % self.active.len());
        let tokens = text.bytes().map(u32::from).collect();
        let completion = Completion {
            text,
            tokens,
            prompt_tokens: 3,
            prefill_tokens: 3,
            reused_tokens: 0,
            drafted_tokens: 0,
            accepted_tokens: 0,
            finish: Finish::Stop,
            served: None,
        };
        let kind = EventKind::Finished(completion);
        Ok(vec![Event { id, kind }])
    }

    fn cancel(&mut self, id: RequestId) {
        self.active.retain(|(known, _)| *known != id);
    }

    fn restart(&mut self, _reuse: bool) -> Result<()> {
        Ok(())
    }
}

/// Everything that a flow can have.
const TEMPLATE: &str = r#"schema = 1
name = "t"
system = "You are a test."

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
id = "answer"
needs = ["root"]
context = "append"
samples = 3
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

[[step]]
id = "end"
needs = ["best", "judge", "answer"]
prompt = "${steps.best.text} with ${steps.best.score}; ${steps.trial.outcomes | join(' ')}; ${steps.judge.scores} ${steps.answer.texts | join(' ')}"
"#;

fn play(flows: &[Flow], order: u64, ended: HashMap<usize, Vec<StepRecord>>) -> Kept {
    let mut engine = Hashing::new(order);
    let mut double = Double {
        order,
        ..Double::default()
    };
    let (mut kept, mut accounts, mut verifier) =
        (Kept::default(), no_limits(), Verifier::default());
    let options = RunnerOptions {
        concurrency: 2,
        segment: (!ended.is_empty()).then_some(2),
        ended: Arc::new(ended),
        ..RunnerOptions::default()
    };
    let origin = Moment::now(&engine).expect("no fence");
    let mut services = Services {
        engine: &mut engine,
        evaluator: Some(&mut double),
        verifier: &mut verifier,
        accounts: &mut accounts,
        pins: None,
    };
    let never = AtomicBool::new(false);
    let outcome = run(&mut services, flows, &options, origin, &never, &mut kept);
    assert_eq!(outcome.expect("nothing fails"), Outcome::Ended);
    kept
}

/// What must not depend on what was restored: steps, workflows, trials, generations, by name.
fn told(kept: &Kept) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut tell = |name: String, what: String| {
        assert!(all.insert(name.clone(), what).is_none(), "{name} twice");
    };
    for step in &kept.steps {
        let (score, outcome) = (step.score, &step.outcome);
        let what = format!(
            "{} {} {score:?} {outcome:?} {:?}",
            step.output, step.out_hash, step.answer
        );
        tell(format!("{} {}", step.flow, step.label()), what);
    }
    for (workflow, response) in kept.workflows.iter().zip(&kept.responses) {
        let counts = (
            workflow.steps_done,
            workflow.tokens,
            workflow.error.is_some(),
        );
        tell(
            format!("workflow {}", workflow.flow),
            format!("{counts:?} {response:?}"),
        );
    }
    for trial in &kept.trials {
        let what = format!(
            "{:?} {} {:?} {:?}",
            trial.parent, trial.outcome, trial.score, trial.code
        );
        tell(format!("trial {} {}", trial.flow, trial.trial), what);
    }
    for of in &kept.generations {
        let what = format!(
            "{} {:?} {:?} {:?}",
            of.trials, of.outcomes, of.selected, of.mean_score
        );
        tell(format!("generation {} {}", of.flow, of.generation), what);
    }
    all
}

/// Whether a judge's request has its other half among `steps`.
fn has_other_half(step: &StepRecord, steps: &[StepRecord]) -> bool {
    let answer = |step: &StepRecord| (step.flow, step.sample.map(|request| (request - 1) / 2));
    let is_other = |other: &&StepRecord| {
        other.kind() == "judge" && other.sample != step.sample && answer(other) == answer(step)
    };
    step.kind() != "judge" || steps.iter().any(|other| is_other(&other))
}

proptest! {
    #[test]
    fn whatever_had_ended_the_rest_is_the_same(order in any::<u64>(), other in any::<u64>(), cut in 0usize..70) {
        let flows: Vec<Flow> = flows_of(TEMPLATE, 3);
        let undisturbed = play(&flows, order, HashMap::new());
        let steps = &undisturbed.steps[..cut.min(undisturbed.steps.len())];
        let mut ended: HashMap<usize, Vec<StepRecord>> = HashMap::new();
        let mut before = Vec::new();
        for step in steps.iter().filter(|step| has_other_half(step, steps)) {
            ended.entry(step.flow).or_default().push(step.clone());
            before.push(step.clone());
        }
        let mut resumed = play(&flows, other, ended.clone());
        prop_assert!(resumed.steps.iter().all(|step| before.is_empty() || step.segment == Some(2)));
        for workflow in &resumed.workflows {
            let kept = ended.get(&workflow.flow).map_or(0, Vec::len);
            let all = undisturbed.steps.iter().filter(|step| step.flow == workflow.flow).count();
            // A flow of which everything had ended has the times of its steps.
            prop_assert_eq!(workflow.resumed, kept > 0 && kept < all);
            let rebuilt = kept == all;
            prop_assert_eq!(workflow.segment, (!rebuilt && !before.is_empty()).then_some(2));
            prop_assert_eq!(workflow.critical_path.is_empty(), workflow.resumed);
            if rebuilt {
                let then = undisturbed.workflows.iter().find(|then| then.flow == workflow.flow);
                let then = then.expect("it ended");
                prop_assert!((workflow.workflow_ms - then.workflow_ms).0.abs() < 50.0);
            }
        }
        resumed.steps.extend(before);
        prop_assert_eq!(told(&resumed), told(&undisturbed));
    }
}

#[test]
fn a_step_without_what_it_needs_is_refused() {
    let flows = flows_of(TEMPLATE, 1);
    let undisturbed = play(&flows, 1, HashMap::new());
    let without_root = undisturbed.steps.iter().filter(|step| step.step != "root");
    let ended = HashMap::from([(1, without_root.cloned().collect::<Vec<_>>())]);
    let mut engine = Hashing::new(1);
    let (mut kept, mut accounts, mut verifier) =
        (Kept::default(), no_limits(), Verifier::default());
    let options = RunnerOptions {
        ended: Arc::new(ended),
        ..RunnerOptions::default()
    };
    let origin = Moment::now(&engine).expect("no fence");
    let mut services = Services {
        engine: &mut engine,
        evaluator: None,
        verifier: &mut verifier,
        accounts: &mut accounts,
        pins: None,
    };
    let never = AtomicBool::new(false);
    let refused = run(&mut services, &flows, &options, origin, &never, &mut kept);
    let refused = refused.expect_err("steps hang in the air");
    assert_eq!(refused.exit(), crate::error::Exit::Usage);
    assert!(
        refused
            .report()
            .contains("has ended, but not what it needs"),
        "{}",
        refused.report()
    );
}
