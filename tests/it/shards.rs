//! `--shard` and `flowbench merge`, end to end: parts of a job that are run by themselves and joined.

use std::path::PathBuf;

use crate::common::{Printed, Workspace, run};
use assert_cmd::Command;
use serde_json::Value;

/// A run of one part, kept in `parts/i`; it must come to its end.
#[track_caller]
fn part(workspace: &Workspace, shard: &str, settings: &[(&str, &str)]) -> PathBuf {
    let printed = run(&mut command(workspace, shard, settings));
    assert!(matches!(printed.code, 0 | 100), "{}", printed.err);
    folder(workspace, shard)
}

fn command(workspace: &Workspace, shard: &str, settings: &[(&str, &str)]) -> Command {
    let mut command = workspace.scripted();
    command
        .env("NUM_FLOWS", "7")
        .env("SHARD", shard)
        .env("OUT", out(shard))
        .env("QUIET", "1")
        .envs(settings.iter().copied());
    command
}

fn out(shard: &str) -> String {
    format!("parts/{}", shard.replace('/', "-"))
}

/// The only run of a part.
fn folder(workspace: &Workspace, shard: &str) -> PathBuf {
    workspace.runs(&out(shard)).remove(0)
}

fn merge(workspace: &Workspace, runs: &[PathBuf]) -> Printed {
    run(workspace.flowbench(&["merge"]).args(runs))
}

/// The numbers of the flows, in the order in which they stand.
fn flows(values: &[Value]) -> Vec<u64> {
    values
        .iter()
        .filter_map(|value| value["flow"].as_u64())
        .collect()
}

#[test]
fn a_shard_keeps_the_numbers_of_its_flows() {
    let workspace = Workspace::new();
    let printed = run(workspace
        .scripted()
        .env("NUM_FLOWS", "7")
        .args(["--shard", "2/3"]));
    assert_eq!(printed.code, 0, "{}", printed.err);
    let record = workspace.record();
    assert_eq!(
        flows(record["workflows"].as_array().expect("flows")),
        [2, 5]
    );
    assert_eq!(record["shard"], serde_json::json!({"index": 2, "of": 3}));
    assert_eq!(record["expansion"]["num_flows"], 7);
    assert_eq!(record["status"], "complete");
    assert!(!printed.out.contains("incomplete"), "{}", printed.out);
}

#[test]
fn shards_work_in_both_modes_at_once() {
    let workspace = Workspace::new();
    let script = workspace.file("templates/chain.script.jsonl");
    let printed = run(workspace
        .scripted()
        .envs([
            ("MODE", "both"),
            ("NUM_FLOWS", "7"),
            ("SHARD", "3/3"),
            ("ROUNDS", "1"),
        ])
        .env("SCRIPT", script));
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert_eq!(
        flows(workspace.record()["workflows"].as_array().expect("flows")),
        [3, 3, 6, 6]
    );
    let refused = merge(&workspace, &[workspace.run_folder()]);
    assert_eq!(refused.code, 2, "{}", refused.err);
    assert!(
        refused.err.contains("MODE=both cannot be joined"),
        "{}",
        refused.err
    );
}

#[test]
fn joined_shards_are_the_whole_run() {
    let workspace = Workspace::new();
    let parts = ["3/3", "1/3", "2/3"].map(|shard| part(&workspace, shard, &[("GPU_POWER", "100")]));
    let printed = merge(&workspace, &parts);
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert!(
        printed
            .out
            .contains("[MERGE] shards=3 of=3 workflows=7 of_workflows=7\n"),
        "{}",
        printed.out
    );
    let (joined, steps) = (workspace.record(), workspace.steps());
    assert_eq!(
        flows(&steps),
        [
            1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 7
        ]
    );
    assert_eq!(
        flows(joined["workflows"].as_array().expect("flows")),
        [1, 2, 3, 4, 5, 6, 7]
    );
    assert_eq!(joined["status"], "complete");
    assert_eq!(joined["shards"].as_array().map(Vec::len), Some(3));

    // But for times, it is what one machine would have kept.
    let whole = Workspace::new();
    run(whole.scripted().env("NUM_FLOWS", "7"));
    let record = whole.record();
    for total in [
        "workflows_done",
        "workflows_failed",
        "steps_done",
        "prompt_tokens",
        "prefill_tokens",
        "reused_tokens",
        "decode_tokens",
    ] {
        assert_eq!(joined["totals"][total], record["totals"][total], "{total}");
    }
    let texts = |steps: &[Value]| -> Vec<(u64, String, String)> {
        let text = |step: &Value, name: &str| step[name].as_str().unwrap_or_default().to_owned();
        (steps.iter())
            .map(|step| {
                (
                    step["flow"].as_u64().unwrap_or(0),
                    text(step, "step"),
                    text(step, "out_hash"),
                )
            })
            .collect()
    };
    assert_eq!(texts(&steps), texts(&whole.steps()));
    assert_eq!(joined["totals"]["positions"][0]["latency_ms"]["count"], 7);
    assert_eq!(joined["totals"]["workflow_ms"]["count"], 7);
    // Watts and joules of all three.
    assert_eq!(joined["totals"]["energy"]["watts"], 300.0);

    // The other commands read it as they read any run.
    let run_id = joined["run_id"].as_str().expect("a name");
    assert!(run_id.ends_with("-merged"), "{run_id}");
    for command in ["report", "diagnose"] {
        let printed = run(&mut workspace.flowbench(&[command]));
        assert_eq!(printed.code, 0, "{}", printed.err);
    }
    assert!(workspace.run_folder().join("report.html").is_file());
}

#[test]
fn what_is_missing_is_named_and_the_rest_is_kept() {
    let workspace = Workspace::new();
    let parts = ["1/4", "3/4"].map(|shard| part(&workspace, shard, &[]));
    let printed = merge(&workspace, &parts);
    assert_eq!(printed.code, 106, "{}", printed.err);
    assert!(
        printed
            .err
            .contains("shard 2/4 is missing; shard 4/4 is missing"),
        "{}",
        printed.err
    );
    let joined = workspace.record();
    assert_eq!(joined["status"], "incomplete");
    assert_eq!(
        flows(joined["workflows"].as_array().expect("flows")),
        [1, 3, 5, 7]
    );
}

#[test]
fn a_shard_that_ended_early_is_named() {
    let workspace = Workspace::new();
    let parts = ["1/2", "2/2"].map(|shard| part(&workspace, shard, &[]));
    // As a run that was killed leaves it: a step's line cut off, no workflow, still running.
    let file = parts[1].join("run.json");
    let text = std::fs::read_to_string(&file).expect("readable");
    let mut record: Value = serde_json::from_str(&text).expect("JSON");
    record["status"] = "running".into();
    record["workflows"] = Value::Array(Vec::new());
    std::fs::write(&file, record.to_string()).expect("writable");
    let steps = parts[1].join("steps.jsonl");
    let text = std::fs::read_to_string(&steps).expect("readable");
    std::fs::write(&steps, &text[..text.len() / 2]).expect("writable");

    let printed = merge(&workspace, &parts);
    assert_eq!(printed.code, 106, "{}", printed.err);
    assert!(
        printed
            .err
            .contains("shard 2/2 ended early, with 0 of its 3 workflows"),
        "{}",
        printed.err
    );
}

#[test]
fn a_failed_flow_is_failed_when_joined() {
    let workspace = Workspace::new();
    let script = format!(
        "{}{{\"flow\": 4, \"step\": \"executor\", \"fail\": \"no\"}}\n",
        crate::common::SCRIPT
    );
    workspace.write("templates/chain.script.jsonl", script);
    let parts = ["1/2", "2/2"].map(|shard| part(&workspace, shard, &[]));
    let printed = merge(&workspace, &parts);
    assert_eq!(printed.code, 100, "{}", printed.err);
    assert!(
        printed.err.contains("1 of 7 workflows failed"),
        "{}",
        printed.err
    );
    assert_eq!(workspace.record()["status"], "failed");
    assert_eq!(workspace.record()["totals"]["workflows_failed"], 1);
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let refused = |others: &[(&str, &[(&str, &str)])], words: &[&str]| {
        let workspace = Workspace::new();
        let mut parts = vec![part(&workspace, "1/2", &[])];
        parts.extend(
            others
                .iter()
                .map(|(shard, settings)| part(&workspace, shard, settings)),
        );
        let printed = merge(&workspace, &parts);
        assert_eq!(printed.code, 2, "{}", printed.err);
        for word in words {
            assert!(printed.err.contains(word), "{word}: {}", printed.err);
        }
        assert!(!workspace.file("results").exists(), "nothing is joined");
    };
    refused(&[("2/3", &[])], &["the number of shards is 2", "and 3 in"]);
    refused(
        &[("2/2", &[("NUM_FLOWS", "8")])],
        &["num_flows is 7", "and 8 in"],
    );
    refused(&[("2/2", &[("SEED", "5")])], &["seed is 0", "and 5 in"]);
    refused(&[("2/2", &[("MAX_TOKENS", "5")])], &["max_tokens is unset"]);

    // The same part twice; a run that is no part; another template.
    let workspace = Workspace::new();
    let one = part(&workspace, "1/2", &[]);
    let printed = merge(&workspace, &[one.clone(), one.clone()]);
    assert_eq!(printed.code, 2, "{}", printed.err);
    assert!(
        printed.err.contains("shard 1/2 is given twice"),
        "{}",
        printed.err
    );
    workspace.write("fixtures/code/a.py", "changed");
    let two = part(&workspace, "2/2", &[]);
    let printed = merge(&workspace, &[one.clone(), two]);
    assert_eq!(printed.code, 2, "{}", printed.err);
    assert!(printed.err.contains("fixture is "), "{}", printed.err);
    run(workspace.scripted().env("NUM_FLOWS", "2"));
    let printed = merge(&workspace, &[one, workspace.run_folder()]);
    assert_eq!(printed.code, 2, "{}", printed.err);
    assert!(
        printed.err.contains("the run is no shard"),
        "{}",
        printed.err
    );
    let printed = merge(&workspace, &[workspace.file("nowhere")]);
    assert_eq!(printed.code, 2, "{}", printed.err);
    let printed = run(&mut workspace.flowbench(&["merge"]));
    assert_eq!(printed.code, 2, "{}", printed.err);
}

#[test]
fn a_shard_must_hold_something() {
    let workspace = Workspace::new();
    for (shard, word) in [
        ("3/2", "expected i/n"),
        ("0/2", "expected i/n"),
        ("half", "expected i/n"),
        ("9/9", "shard 9/9 of 7 flows holds none"),
    ] {
        let printed = run(&mut command(&workspace, shard, &[]));
        assert_eq!(printed.code, 2, "{shard}");
        assert!(printed.err.contains(word), "{}", printed.err);
        assert!(printed.err.contains("SHARD"), "{}", printed.err);
    }
}
