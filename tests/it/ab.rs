//! `flowbench ab`, end to end on the scripted engine.

use std::io::{BufRead, BufReader, Lines, Read};
use std::process::{Child, ChildStdout, Stdio};

use crate::common::{Printed, Workspace, run};
use crate::tiny_model;

/// A workspace with two scripts, one of which is slower by `slower` ms in a step.
fn workspace(slower: f64) -> Workspace {
    let workspace = Workspace::new();
    for (name, executor_ms) in [("a", 20.0), ("b", 20.0 + slower)] {
        let answer = |step: &str, ms: f64| {
            format!(
                r#"{{"step": "{step}", "output": "It ends one early.", "ttft_ms": 5, "latency_ms": {ms}}}"#
            )
        };
        let lines = [
            answer("planner", 15.0),
            answer("executor", executor_ms),
            answer("verifier", 15.0),
        ];
        workspace.write(&format!("{name}.jsonl"), lines.join("\n"));
    }
    workspace
}

fn ab(workspace: &Workspace, arguments: &[&str]) -> Printed {
    let mut command =
        workspace.flowbench(&["ab", "--a", "SCRIPT=a.jsonl", "--b", "SCRIPT=b.jsonl"]);
    run(command
        .envs([("MODE", "scripted"), ("TEMPLATE", "chain")])
        .args(arguments))
}

fn engines(workspace: &Workspace) -> Vec<String> {
    let records = workspace.runs("results").into_iter();
    let calibration = |folder: std::path::PathBuf| {
        let text = std::fs::read_to_string(folder.join("run.json")).expect("a record");
        let record: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        record["repetition"]["calibration"].to_string()
    };
    let mut all: Vec<String> = records.map(calibration).collect();
    all.sort();
    all.dedup();
    all
}

#[test]
fn a_slower_setting_is_settled_in_a_few_rounds() {
    let workspace = workspace(60.0);
    let printed = ab(&workspace, &[]);
    assert_eq!(printed.code, 99, "{}{}", printed.out, printed.err);
    let rounds = printed.count("[ROUND]");
    assert!((5..=12).contains(&rounds), "{}", printed.out);
    assert_eq!(
        printed.count("[VERDICT] verdict=REGRESSED metric=workflow_ms"),
        1,
        "{}",
        printed.out
    );
    let cause = printed.out.lines().find(|line| line.starts_with("[CAUSE]"));
    assert!(
        cause.is_some_and(|line| line.contains("step=executor")),
        "{}",
        printed.out
    );
    // Two runs a round, of two engines that were kept.
    assert_eq!(workspace.runs("results").len(), 2 * rounds);
    assert_eq!(engines(&workspace).len(), 2, "{:?}", engines(&workspace));
}

#[test]
fn equal_settings_end_without_a_verdict_at_a_limit() {
    let workspace = workspace(0.0);
    let printed = ab(
        &workspace,
        &["--max-rounds", "3", "--one-at-a-time", "-o", "json"],
    );
    assert_eq!(printed.code, 0, "{}{}", printed.out, printed.err);
    assert_eq!(printed.count("[ROUND]"), 3, "{}", printed.out);
    assert!(
        printed.out.contains("\"verdict\": \"NO_VERDICT\""),
        "{}",
        printed.out
    );
    assert_eq!(engines(&workspace), ["null"], "a process for each run");
    let required = ab(&workspace, &["--max-rounds", "2", "--require-verdict"]);
    assert_eq!(required.code, 98, "{}", required.err);
    let late = ab(&workspace, &["--deadline", "0.000001s"]);
    assert_eq!(
        (late.code, late.count("[ROUND]")),
        (4, 0),
        "{}{}",
        late.out,
        late.err
    );
}

#[test]
fn an_arm_that_fails_ends_the_test() {
    let workspace = workspace(0.0);
    for arguments in [&[][..], &["--one-at-a-time"]] {
        let mut command = workspace.flowbench(&["ab", "--b", "SCRIPT=missing.jsonl"]);
        let printed = run(command
            .envs([("MODE", "scripted"), ("TEMPLATE", "chain")])
            .args(arguments));
        assert_eq!(printed.code, 2, "{}{}", printed.out, printed.err);
        assert!(printed.err.contains("missing.jsonl"), "{}", printed.err);
        assert!(
            printed.err.contains("the run of B ended with code 2"),
            "{}",
            printed.err
        );
    }
    let nowhere = ab(&workspace, &["--b-binary", "no/such/program"]);
    assert_eq!(nowhere.code, 2, "{}", nowhere.err);
    assert!(
        nowhere
            .err
            .contains("failed to start no/such/program for B"),
        "{}",
        nowhere.err
    );
    // Another program has a process for each run.
    let own = env!("CARGO_BIN_EXE_flowbench");
    let other = ab(&workspace, &["--b-binary", own, "--max-rounds", "1"]);
    assert_eq!(
        (other.code, other.count("[ROUND]")),
        (0, 1),
        "{}",
        other.err
    );
}

/// A test that goes on for long, after its first round.
fn started(workspace: &Workspace) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_flowbench"))
        .args(["ab", "--a", "SCRIPT=a.jsonl", "--b", "SCRIPT=b.jsonl"])
        .args(["--threshold", "0.1%"])
        .current_dir(workspace.path())
        .env_clear()
        .envs([("MODE", "scripted"), ("TEMPLATE", "chain")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    assert!(lines.any(|line| line.is_ok_and(|line| line.starts_with("[ROUND]"))));
    (child, lines)
}

#[test]
fn runs_end_in_order_when_the_test_is_killed() {
    let workspace = workspace(0.0);
    let (mut child, _lines) = started(&workspace);
    child.kill().expect("is there");
    child.wait().expect("ends");
    // The arms share stderr, so it is closed when both have ended. On a busy machine, that may take long.
    let mut err = String::new();
    let stderr = child.stderr.as_mut().expect("piped");
    stderr.read_to_string(&mut err).expect("UTF-8");
    let status = |folder: &std::path::PathBuf| {
        let text = std::fs::read_to_string(folder.join("run.json")).expect("a record");
        let record: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        record["status"].as_str().expect("a status").to_owned()
    };
    let runs = workspace.runs("results");
    let statuses: Vec<String> = runs.iter().map(status).collect();
    // A turn that was given before the kill finds nobody who reads its lines, and no further one is taken.
    let ended = |status: &String| matches!(status.as_str(), "complete" | "incomplete");
    assert!(statuses.iter().all(ended), "{statuses:?}{err}");
    let incomplete = statuses.iter().filter(|status| *status == "incomplete");
    assert!(incomplete.count() <= 2, "{statuses:?}");
}

/// What `MODE=both` does in one run.
#[test]
fn modes_are_settings_like_others() {
    let workspace = workspace(0.0);
    tiny_model::write(&workspace.file("tiny.gguf"));
    let mut command = workspace.flowbench(&["ab", "--a", "MODE=standalone", "--b", "MODE=reuse"]);
    command
        .args(["--max-rounds", "5", "--threshold", "0.01%"])
        .args(["--metric", "benchmark_total_ms"])
        .envs([
            ("MODEL", "tiny.gguf"),
            ("DEVICE", "cpu"),
            ("TEMPLATE", "chain"),
        ]);
    let printed = run(&mut command);
    assert!(
        matches!(printed.code, 0 | 99),
        "{}{}",
        printed.out,
        printed.err
    );
    assert_eq!(printed.count("[ROUND]"), 5, "{}", printed.out);
    let mut lines = printed.out.lines();
    let verdict = lines.find(|line| line.starts_with("[VERDICT]"));
    let verdict = verdict.expect("a verdict");
    assert!(verdict.contains("metric=benchmark_total_ms"), "{verdict}");
    assert!(verdict.contains("subject=concurrency,mode"), "{verdict}");
    assert!(verdict.contains("smallest_visible="), "{verdict}");
    assert!(!verdict.contains("unknown"), "{verdict}");

    // Three flows at a time are faster than one after another.
    let mut both = workspace.flowbench(&["run", "--rounds", "5"]);
    both.envs([
        ("MODE", "both"),
        ("SCRIPT", "a.jsonl"),
        ("TEMPLATE", "chain"),
        ("OUT", "both"),
    ]);
    let printed = run(&mut both);
    assert_eq!(printed.code, 0, "{}{}", printed.out, printed.err);
    let folder = workspace.runs("both").remove(0);
    let text = std::fs::read_to_string(folder.join("run.json")).expect("a record");
    let record: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let verdict = &record["comparison"]["verdict"];
    assert_eq!(verdict["verdict"], "IMPROVED", "{verdict}");
    assert!(
        verdict["interval"]["high"].as_f64() < Some(0.0),
        "{verdict}"
    );
}

#[test]
fn an_interrupt_shows_what_was_measured() {
    let workspace = workspace(0.0);
    let (mut child, lines) = started(&workspace);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("is there");
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let status = child.wait().expect("ends");
    let mut err = String::new();
    let stderr = child.stderr.as_mut().expect("piped");
    stderr.read_to_string(&mut err).expect("UTF-8");
    assert_eq!(status.code(), Some(106), "{err}");
    assert!(err.contains("interrupted before a verdict"), "{err}");
    assert!(
        rest.iter().any(|line| line.starts_with("[VERDICT]")),
        "{rest:?}"
    );
}
