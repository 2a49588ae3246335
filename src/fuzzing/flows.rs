//! Laws of templates, suites, expanded flows and their cache.

use std::sync::atomic::AtomicBool;

use super::folder::Folder;
use super::{asks_for_gigabytes, files};
use crate::config::{Layout, Limits};
use crate::engine::{Script, ScriptedEngine};
use crate::error::{Error, Result};
use crate::evaluate::Verifier;
use crate::flow::{self, CacheState, ExpandRequest, Expansion, Flow, Input};
use crate::record::{StepRecord, WorkflowRecord};
use crate::stopwatch::Moment;
use crate::workflow::{Accounts, Observer, Response, RunnerOptions, Services};

const TEMPLATE: &str = r#"schema = 1
name = "t"
suite = "t.suite.jsonl"
fixture = { dir = "code", include = ["**/*.py"] }
system = "Code: {{ fixture.text }}"

[[step]]
id = "a"
prompt = "{{ row.task }} {{ row }}"

[[step]]
id = "b"
needs = ["a"]
context = "append"
prompt = "Go on: ${steps.a.text}"
"#;

const SUITE: &str = "{\"id\": \"x\", \"task\": \"Look.\"}\n{\"task\": \"Again.\", \"n\": 1.50}\n";

/// So many steps and samples are run; more take their time and prove no more.
const MOST_REQUESTS: usize = 300;

fn project(template: &[u8], suite: &[u8]) -> Folder {
    let folder = Folder::new();
    folder.write("templates/t.toml", template);
    folder.write("templates/t.suite.jsonl", suite);
    folder.write("fixtures/code/a.py", "print('${HOME} {{x}}')\n");
    folder
}

fn expand(folder: &Folder, input: Option<Input>) -> Result<Expansion> {
    flow::expand(&ExpandRequest {
        layout: &Layout {
            root: folder.path().to_owned(),
        },
        template: "t",
        num_flows: match input {
            Some(_) => None,
            None => Some(2),
        },
        params: &[],
        input,
        use_cache: true,
        load: true,
        on_wait: &|_| Ok(()),
        proceed: &|| Ok(()),
    })
}

/// What is expanded is read back equal, from the cache, and can be run.
fn expands(folder: &Folder, input: Option<Input>) {
    let first = match expand(folder, input) {
        Ok(expansion) => expansion,
        Err(error) => {
            assert!(!error.report().is_empty());
            return;
        }
    };
    let again = expand(folder, input).expect("it has been expanded");
    assert_eq!(again.state, CacheState::Hit);
    assert_eq!(again.flows, first.flows);
    let _ = first.share();
    for flow in &first.flows {
        run(flow);
    }
}

/// A template, and its suite.
pub(super) fn template(data: &[u8]) {
    let [template, suite] = files(data);
    if asks_for_gigabytes(&String::from_utf8_lossy(template)) {
        return;
    }
    let suite = match suite {
        [] => SUITE.as_bytes(),
        suite => suite,
    };
    expands(&project(template, suite), None);
}

/// Rows, as a suite and as an input.
pub(super) fn suite(data: &[u8]) {
    let folder = project(TEMPLATE.as_bytes(), data);
    expands(&folder, None);
    let path = folder.file("templates/t.suite.jsonl");
    expands(
        &folder,
        Some(Input {
            path: &path,
            limit: Some(3),
            repeats: 1,
        }),
    );
}

/// An expanded flow: what is written is read back equal, and it runs or is refused.
pub(super) fn flow(data: &[u8]) {
    let Ok(flow) = serde_json::from_slice::<Flow>(data) else {
        return;
    };
    let text = serde_json::to_vec(&flow).expect("a flow is JSON");
    let again: Flow = serde_json::from_slice(&text).expect("what was written");
    assert_eq!(again, flow);
    run(&flow);
}

/// A cache file, and the first flow. The expansion is that of the sources, whatever these are.
pub(super) fn cache(data: &[u8]) {
    let [cache, flow] = files(data);
    let folder = project(TEMPLATE.as_bytes(), SUITE.as_bytes());
    let sound = expand(&folder, None).expect("a sound template").flows;
    folder.write("flows/.expanded_cache.json", cache);
    if !flow.is_empty() {
        folder.write("flows/_expanded_00001.json", flow);
    }
    let expansion = expand(&folder, None).expect("a bad cache fails no run");
    assert_eq!(expansion.flows, sound, "{:?}", expansion.state);
    let again = expand(&folder, None).expect("as before");
    assert_eq!(again.state, CacheState::Hit);
    assert_eq!(again.flows, sound);
}

/// Runs a flow on recorded answers, without programs.
fn run(flow: &Flow) {
    let samples = |step: &flow::Step| step.generate().map_or(1, |generate| generate.samples);
    let requests = flow
        .steps
        .iter()
        .map(samples)
        .fold(0, usize::saturating_add);
    if requests > MOST_REQUESTS {
        return;
    }
    let script = Script::parse("{\"output\": \"yes, 12 ${x}\"}", "script").expect("a script");
    let mut engine = ScriptedEngine::new(script, false);
    let origin = Moment::now(&engine).expect("a script has no device");
    let (mut verifier, mut accounts) = (
        Verifier::default(),
        Accounts::new("fuzzed", None, Limits::default()),
    );
    let mut services = Services {
        engine: &mut engine,
        evaluator: None,
        verifier: &mut verifier,
        accounts: &mut accounts,
        pins: None,
    };
    let options = RunnerOptions::default();
    let flows = std::slice::from_ref(flow);
    let never = AtomicBool::new(false);
    // A flow that cannot be run is an error.
    let _ = crate::workflow::run(&mut services, flows, &options, origin, &never, &mut Ignore);
}

struct Ignore;

impl Observer for Ignore {
    fn step_ended(&mut self, step: StepRecord) -> Result<()> {
        let text = serde_json::to_string(&step).expect("a record is JSON");
        let again: StepRecord = serde_json::from_str(&text).expect("what was written");
        assert_eq!(again, step);
        Ok(())
    }

    fn workflow_ended(&mut self, _: WorkflowRecord, _: &Response, _: Option<&Error>) -> Result<()> {
        Ok(())
    }
}
