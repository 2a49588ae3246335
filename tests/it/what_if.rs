//! `flowbench diagnose --what-if`, end to end.

use serde_json::Value;

use crate::common::{Printed, Workspace, run};
use crate::tiny_model;

fn what_if(workspace: &Workspace, arguments: &[&str]) -> Printed {
    run(workspace.flowbench(&["diagnose"]).args(arguments))
}

fn predicted(workspace: &Workspace, settings: &str) -> Value {
    let printed = what_if(workspace, &["--what-if", settings, "-o", "json"]);
    assert_eq!(printed.code, 0, "{}", printed.err);
    serde_json::from_str(&printed.out).expect("JSON")
}

fn total(record: &Value, which: &str) -> f64 {
    let quantities = record["quantities"].as_array().unwrap();
    let total = quantities
        .iter()
        .find(|one| one["quantity"] == "benchmark_total_ms");
    total.unwrap()[which].as_f64().unwrap()
}

/// Three steps of 10, 30 and 10 ms in each of the workspace's flows.
fn scripted() -> Workspace {
    let workspace = Workspace::new();
    let script = r#"{"step": "planner", "output": "Read the loop first.", "ttft_ms": 5, "latency_ms": 10}
{"step": "executor", "output": "The loop ends one too early.", "ttft_ms": 5, "latency_ms": 30}
{"step": "verifier", "output": "CONFIRMED it does.", "ttft_ms": 5, "latency_ms": 10}
"#;
    workspace.write("templates/chain.script.jsonl", script);
    let printed = run(&mut workspace.scripted());
    assert_eq!(printed.code, 0, "{}", printed.err);
    workspace
}

#[test]
fn flows_side_by_side_take_as_long_as_the_longest() {
    let workspace = scripted();
    let record = predicted(&workspace, "concurrency=100");
    let flows = total(&record, "recorded") / total(&record, "predicted");
    // All flows take the same time by their script, so that the ratio is their number, but for what is outside.
    let run: Value = workspace.record();
    let count = run["workflows"].as_array().unwrap().len() as f64;
    assert!(
        flows > count / 2.0 && flows < count * 2.0,
        "{flows} of {count}"
    );
    assert_eq!(record["what_if"], "concurrency=100");
    assert!(record["replay_error"].as_f64().unwrap().abs() < 0.5);
    assert!(record["checks"].as_array().unwrap().is_empty());

    let half = predicted(&workspace, "decode_speed=2,prefill_speed=2");
    assert!(total(&half, "predicted") < total(&half, "recorded"));
}

#[test]
fn other_runs_of_the_job_check_the_prediction() {
    let workspace = scripted();
    let printed = run(workspace.scripted().env("CONCURRENCY", "2"));
    assert_eq!(printed.code, 0, "{}", printed.err);
    // Another job checks nothing.
    let printed = run(workspace
        .scripted()
        .env("CONCURRENCY", "2")
        .env("NUM_FLOWS", "1"));
    assert_eq!(printed.code, 0, "{}", printed.err);
    let runs = workspace.runs("results");
    let of_first = runs[0].display().to_string();
    let printed = what_if(
        &workspace,
        &[&of_first, "--what-if", "concurrency=2", "-o", "json"],
    );
    assert_eq!(printed.code, 0, "{}", printed.err);
    let record: Value = serde_json::from_str(&printed.out).unwrap();
    let checks = record["checks"].as_array().unwrap();
    assert_eq!(checks.len(), 1, "{checks:?}");
    assert_eq!(checks[0]["what_if"], "concurrency=2");
    assert_eq!(checks[0]["predicted"], total(&record, "predicted"));

    let shown = what_if(&workspace, &[&of_first, "--what-if", "concurrency=2"]);
    assert!(
        shown
            .out
            .contains("1 run of this job with other settings: predicted with a median error of")
    );
    assert!(shown.out.contains("| concurrency=2 |"), "{}", shown.out);
}

#[test]
fn what_cannot_be_predicted_is_an_error_with_a_hint() {
    let workspace = scripted();
    for (settings, told) in [
        (
            "concurency=2",
            "\"concurency\" cannot be predicted; settings: concurrency=8",
        ),
        ("concurrency=0", "concurrency: expected a whole number"),
        ("prefix_cache=on", "a script computes nothing"),
        ("", "expected NAME=VALUE"),
    ] {
        let printed = what_if(&workspace, &["--what-if", settings]);
        assert_eq!(printed.code, 2, "{settings}: {}", printed.out);
        assert!(printed.err.contains(told), "{settings}: {}", printed.err);
        assert!(printed.out.is_empty(), "{settings}: {}", printed.out);
    }
    let both = what_if(
        &workspace,
        &["--what-if", "concurrency=2", "--baseline", "latest"],
    );
    assert_eq!(both.code, 2);
    assert!(both.err.contains("cannot be used with"), "{}", both.err);
}

#[test]
fn the_passes_of_a_model_are_found_and_replayed() {
    let workspace = Workspace::new();
    let model = workspace.file("tiny.gguf");
    tiny_model::write(&model);
    for concurrency in ["1", "3"] {
        let mut command = workspace.flowbench(&["run"]);
        command
            .env("MODE", "standalone")
            .env("TEMPLATE", "chain")
            .env("MODEL", &model)
            .env("DEVICE", "cpu")
            .env("CONCURRENCY", concurrency)
            .env("IGNORE_EOS", "1");
        let printed = run(&mut command);
        assert_eq!(printed.code, 0, "{}", printed.err);
    }
    let record = predicted(&workspace, "concurrency=1");
    assert!(record["fitted"].as_u64().unwrap() > 10, "{record}");
    let checks = record["checks"].as_array().unwrap();
    assert_eq!(checks.len(), 1, "{record}");
    assert_eq!(checks[0]["predicted"], total(&record, "predicted"));
    // The prompts' shares are known, so that a prefix cache can be predicted.
    let cached = predicted(&workspace, "prefix_cache=on");
    assert!(total(&cached, "predicted") > 0.0, "{cached}");
}
