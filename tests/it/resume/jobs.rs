//! Jobs of every kind, each with a template and answers that take some milliseconds.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::Job;
use crate::common::Workspace;
use crate::common::server::{Act, Server, sound};
use crate::tiny_model;

/// A script of the template `chain` in which every answer takes some milliseconds and differs.
pub(super) fn chain(settings: &[(&'static str, &str)]) -> Job {
    let workspace = Workspace::new();
    let mut script = String::new();
    for flow in 1..=8 {
        for step in ["planner", "executor", "verifier"] {
            script.push_str(&format!(
                "{{\"flow\": {flow}, \"step\": \"{step}\", \"output\": \"é {flow} of {step}\", \"latency_ms\": {}}}\n",
                2 + flow % 3
            ));
        }
    }
    // One of the flows fails, and the rest goes on.
    script.push_str("{\"flow\": 3, \"step\": \"verifier\", \"sample\": 1, \"fail\": \"tired\", \"latency_ms\": 2}\n");
    workspace.write("templates/chain.script.jsonl", script);
    let mut job = Job::new(workspace, settings);
    job.settings.push(("NUM_FLOWS", "8".to_owned()));
    job
}

const JUDGED: &str = r#"schema = 1
name = "chain"
suite = "chain.suite.jsonl"

[[step]]
id = "answer"
samples = 3
temperature = 0.5
prompt = "{{ row.task }}"
max_tokens = 12

[[step]]
id = "check"
kind = "verify"
of = "answer"
question = "{{ row.task }}"
expected = "4"

[[step]]
id = "judge"
kind = "judge"
of = "check"
question = "{{ row.task }}"
expected = "4"
max_tokens = 12

[[step]]
id = "best"
kind = "select"
of = ["judge"]

[[step]]
id = "last"
needs = ["best"]
prompt = "Go on with ${steps.best.text}, ${steps.best.score}"
max_tokens = 12
"#;

/// Several samples that are verified, judged where that leaves them undecided, and selected.
pub(super) fn judged() -> Job {
    let workspace = Workspace::new();
    workspace.write("templates/chain.toml", JUDGED);
    let line = |step: &str, sample: usize, output: &str| {
        let output = json!(output);
        format!(
            "{{\"step\": \"{step}\", \"sample\": {sample}, \"output\": {output}, \"latency_ms\": {}}}\n",
            1 + sample
        )
    };
    let mut script = line("answer", 1, "It is \\boxed{3}")
        + &line("answer", 2, "It is \\boxed{as many as there are winds}")
        + &line("answer", 3, "It is \\boxed{the number of seasons}")
        + &line("last", 1, "well");
    for (request, verdict) in [
        "[[A=B]]", "[[A!=B]]", "[[A=B]]", "[[A!=B]]", "[[A=B]]", "[[A=B]]",
    ]
    .iter()
    .enumerate()
    {
        script.push_str(&line("judge", request + 1, verdict));
    }
    workspace.write("templates/chain.script.jsonl", script);
    Job::new(workspace, &[("NUM_FLOWS", "6"), ("CONCURRENCY", "2")])
}

/// The shipped evolution with programs that end at once.
#[cfg(target_os = "linux")]
pub(super) fn evolution() -> Job {
    let workspace = Workspace::new();
    let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("templates/evolve_packing.toml");
    workspace.write(
        "templates/chain.toml",
        fs::read_to_string(template).expect("it ships"),
    );
    let answer = |step: &str, sample: usize, radius: f64| {
        let program = format!(
            "```python\ndef construct_packing():\n    \
             centers = [((i % 6 + 0.5) / 6, (i // 6 + 0.5) / 5) for i in range(26)]\n    \
             radii = [{radius}] * 26\n    return centers, radii, sum(radii)\n```"
        );
        let output = json!(program);
        format!(
            "{{\"step\": \"{step}\", \"sample\": {sample}, \"output\": {output}, \"latency_ms\": {}}}\n",
            2 * sample
        )
    };
    let mut script = answer("root", 1, 0.01);
    for generation in 1..=3 {
        for sample in 1..=3 {
            // One of each generation overlaps: its outcome is no score.
            let radius = match sample {
                2 => 0.2,
                _ => 0.01 * generation as f64 + 0.0037 * sample as f64,
            };
            script.push_str(&answer(&format!("child.{generation}"), sample, radius));
        }
    }
    workspace.write("templates/chain.script.jsonl", script);
    let mut job = Job::new(workspace, &[("NUM_FLOWS", "3"), ("CONCURRENCY", "2")]);
    if let Ok(python) = std::env::var("FLOWBENCH_TEST_PYTHON") {
        job.settings.push(("PYTHON", python));
    }
    job
}

pub(super) fn both() -> Job {
    let mut job = chain(&[
        ("MODE", "both"),
        ("SCRIPT", "templates/chain.script.jsonl"),
        ("ROUNDS", "2"),
    ]);
    job.settings.retain(|(name, _)| *name != "NUM_FLOWS");
    job.settings.push(("NUM_FLOWS", "4".to_owned()));
    job
}

const SAMPLED: &str = r#"schema = 1
name = "chain"
suite = "chain.suite.jsonl"
system = "You are terse."

[[step]]
id = "draw"
samples = 3
temperature = 1.0
prompt = "{{ row.task }}"
max_tokens = 60

[[step]]
id = "more"
needs = ["draw"]
temperature = 0.7
prompt = "Go on: ${steps.draw.texts[2]}"
max_tokens = 60

[[step]]
id = "end"
needs = ["more"]
context = "append"
prompt = "And?"
max_tokens = 60
"#;

/// A model of one layer in this process, with the prefix cache on or off.
pub(super) fn local(mode: &str) -> Job {
    let workspace = Workspace::new();
    workspace.write("templates/chain.toml", SAMPLED);
    tiny_model::write(&workspace.file("tiny.gguf"));
    let settings = [
        ("MODE", mode),
        ("MODEL", "tiny.gguf"),
        ("DEVICE", "cpu"),
        ("NUM_FLOWS", "6"),
    ];
    Job::new(workspace, &settings)
}

/// A server whose answers take some milliseconds.
pub(super) fn remote() -> (Job, Server) {
    let server = Server::start(|request| {
        (request.method == "POST").then(|| {
            let mut acts = vec![Act::Wait(Duration::from_millis(3))];
            acts.extend(sound(request));
            acts
        })
    });
    let settings = [
        ("MODE", "remote"),
        ("NUM_FLOWS", "6"),
        ("CONCURRENCY", "2"),
        ("ENDPOINT", &server.endpoint()),
    ];
    (Job::new(Workspace::new(), &settings), server)
}

/// Rows in and out.
pub(super) fn rows() -> Job {
    let job = chain(&[
        ("ROLLOUT_INPUT", "rows.jsonl"),
        ("ROLLOUT_OUTPUT", "out.jsonl"),
        ("RECORD", "recorded.jsonl"),
        ("CONCURRENCY", "2"),
    ]);
    let row = |number| format!("{{\"id\": \"r{number}\", \"task\": \"t{number}\"}}\n");
    job.workspace
        .write("rows.jsonl", (1..=8).map(row).collect::<String>());
    let settings = job
        .settings
        .into_iter()
        .filter(|(name, _)| *name != "NUM_FLOWS");
    Job {
        settings: settings.collect(),
        workspace: job.workspace,
    }
}
