//! `MODE=both`, end to end, on recorded answers in place of a model (SCRIPT is set).

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::common::{Printed, Workspace, run};
use assert_cmd::Command;
use rustix::process::{Pid, Signal, kill_process};

fn both(workspace: &Workspace) -> Command {
    let mut command = workspace.flowbench(&["run"]);
    command
        .env("MODE", "both")
        .env("TEMPLATE", "chain")
        .env("SCRIPT", "templates/chain.script.jsonl")
        .env("NUM_FLOWS", "2");
    command
}

/// Like [`Printed::redacted`], with the table's times and rates and its padding replaced.
fn redacted(printed: &Printed, workspace: &Workspace) -> String {
    let timed = [
        "total_ms",
        "mean_workflow_ms",
        "decode_tokens_per_s",
        "processed_tokens_per_s",
        "energy_joules",
    ];
    let mut text = String::new();
    for line in printed.redacted(workspace).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.first() {
            Some(name) if timed.contains(name) => text.push_str(&format!("{name} [VALUES]")),
            _ if line.contains("of rounds") => text.push_str("[FASTER]"),
            _ => text.push_str(&words.join(" ")),
        }
        text.push('\n');
    }
    text
}

#[test]
fn what_three_rounds_print() {
    let workspace = Workspace::new();
    let printed = run(both(&workspace).env("GPU_POWER", "100"));
    insta::assert_snapshot!(redacted(&printed, &workspace));
}

#[test]
fn what_one_round_prints() {
    let workspace = Workspace::new();
    let printed = run(both(&workspace).args(["--rounds", "1"]));
    insta::assert_snapshot!(redacted(&printed, &workspace));
}

#[test]
fn every_round_is_kept() {
    let workspace = Workspace::new();
    let printed = run(&mut both(&workspace));
    assert_eq!(printed.code, 0, "{}", printed.err);
    let steps = workspace.steps();
    // Two modes, three rounds, two flows, three steps.
    assert_eq!(steps.len(), 36);
    let rounds: Vec<String> = steps
        .chunks(6)
        .map(|round| {
            format!(
                "{} {}",
                round[0]["round"],
                round[0]["mode"].as_str().expect("a mode")
            )
        })
        .collect();
    assert_eq!(
        rounds,
        [
            "1 standalone",
            "1 reuse",
            "2 reuse",
            "2 standalone",
            "3 standalone",
            "3 reuse"
        ]
    );
    let record = workspace.record();
    assert_eq!(record["status"], "complete");
    assert_eq!(record["engine_starts"], 1);
    assert_eq!(record["workflows"].as_array().map(Vec::len), Some(12));
    let comparison = &record["comparison"];
    assert_eq!(comparison["rounds"].as_array().map(Vec::len), Some(6));
    assert_eq!(comparison["range_coverage"], 0.75);
    assert_eq!(comparison["outputs"]["compared"], 6);
    assert_eq!(comparison["outputs"]["differing"], 0);
    let prefill = &comparison["metrics"][0];
    assert_eq!(prefill["name"], "prefill_tokens");
    assert_eq!(prefill["standalone"]["median"], 202.0);
    assert_eq!(
        prefill["ratio"]["values"],
        serde_json::json!([1.0, 1.0, 1.0])
    );
}

#[test]
fn other_modes_have_no_rounds() {
    let workspace = Workspace::new();
    run(workspace.scripted().env("NUM_FLOWS", "1"));
    let record = workspace.record();
    assert!(record.get("comparison").is_none());
    assert!(workspace.steps()[0].get("round").is_none());
}

#[test]
fn a_round_with_a_failed_flow_is_not_compared() {
    let workspace = Workspace::new();
    workspace.write(
        "templates/chain.script.jsonl",
        format!(
            "{}{{\"flow\": 2, \"step\": \"executor\", \"fail\": \"the model is tired\"}}\n",
            crate::common::SCRIPT
        ),
    );
    let printed = run(both(&workspace).env("ROUNDS", "1"));
    assert_eq!(printed.code, 100, "{}", printed.err);
    assert!(printed.out.contains("(incomplete)"), "{}", printed.out);
    let record = workspace.record();
    assert_eq!(record["status"], "failed");
    assert_eq!(record["comparison"]["metrics"], serde_json::json!([]));
}

#[test]
fn an_engine_per_workflow_contradicts_it() {
    let workspace = Workspace::new();
    let printed = run(both(&workspace).arg("--engine-per-workflow"));
    assert_eq!(printed.code, 2);
    assert!(printed.err.contains("MODE is both"), "{}", printed.err);
}

#[test]
fn an_interrupt_keeps_the_rounds_that_ended() {
    let workspace = Workspace::new();
    workspace.write(
        "templates/chain.script.jsonl",
        "{\"output\": \"a b\", \"ttft_ms\": 10, \"latency_ms\": 20}\n",
    );
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_flowbench"))
        .current_dir(workspace.path())
        .env_clear()
        .envs([
            ("MODE", "both"),
            ("TEMPLATE", "chain"),
            ("SCRIPT", "templates/chain.script.jsonl"),
            ("NUM_FLOWS", "4"),
            ("ROUNDS", "100"),
        ])
        .arg("run")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    loop {
        let line = lines.next().expect("goes on").expect("UTF-8");
        if line.starts_with("[ROUND] round=1 mode=reuse") {
            break;
        }
    }
    kill_process(Pid::from_child(&child), Signal::INT).expect("is there");
    let rest: Vec<String> = lines.map(|line| line.expect("UTF-8")).collect();
    assert_eq!(child.wait().expect("ends").code(), Some(106));
    assert!(
        rest.iter()
            .any(|line| line.contains("benchmark_total_ms=") && line.contains("(incomplete: ")),
        "{rest:?}"
    );
    let record = workspace.record();
    assert_eq!(record["status"], "incomplete");
    let rounds = record["comparison"]["rounds"].as_array().expect("rounds");
    assert!(
        rounds.len() >= 2 && rounds[1]["complete"] == true,
        "{rounds:?}"
    );
    assert!(
        !record["comparison"]["metrics"]
            .as_array()
            .expect("metrics")
            .is_empty()
    );
}
