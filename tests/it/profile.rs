//! `flowbench run --profile`, end to end, on recorded answers.

use std::io::{BufRead, BufReader};

use crate::common::{Workspace, assert_nested, run};
use flowbench::record::RunRecord;
use flowbench::record::profile::Profile;
use rustix::process::{Pid, Signal, kill_process};

fn profile(workspace: &Workspace) -> Profile {
    let record: RunRecord = serde_json::from_value(workspace.record()).expect("a record");
    record.profile.expect("it was asked for")
}

fn log(workspace: &Workspace) -> String {
    std::fs::read_to_string(workspace.run_folder().join("profile.log")).expect("was written")
}

/// Names and calls: what of a table does not depend on the machine.
fn calls(log: &str) -> String {
    let words = |line: &str| {
        let mut words = line.split_whitespace();
        format!(
            "{} {}\n",
            words.next().unwrap_or(""),
            words.next().unwrap_or("")
        )
    };
    // How many waits there are depends on how late the system wakes the program.
    let fixed = |line: &&str| {
        !line.is_empty() && !["wait ", "idle "].iter().any(|name| line.starts_with(name))
    };
    let mut lines: Vec<String> = log.lines().skip(1).filter(fixed).map(words).collect();
    lines.sort();
    lines.concat()
}

#[test]
fn what_a_profile_holds() {
    let workspace = Workspace::new();
    workspace.write(
        "templates/chain.script.jsonl",
        "{\"output\": \"a b\", \"ttft_ms\": 2, \"latency_ms\": 4}\n",
    );
    let printed = run(workspace
        .scripted()
        .env("NUM_FLOWS", "4")
        .env("PROFILE", "1"));
    assert_eq!(printed.code, 0, "{}", printed.err);
    insta::assert_snapshot!(calls(&log(&workspace)));

    let profile = profile(&workspace);
    assert_eq!(log(&workspace), flowbench::profile::text(&profile));
    let split: f64 = profile.stages.iter().map(|stage| stage.split_s).sum();
    assert!((split + profile.idle_s - profile.wall_s).abs() < 1e-7);
    // Everything on the main thread is in `run`; activities are beside it.
    let beside = ["flow", "step", "prefill", "decode"];
    let (rows, own): (Vec<_>, Vec<_>) = (profile.rows.iter())
        .filter(|row| !beside.contains(&row.name.as_str()))
        .map(|row| (row, row.tsub_s))
        .unzip();
    let root = rows.iter().find(|row| row.name == "run").expect("the root");
    assert!((own.iter().sum::<f64>() - root.ttot_s).abs() < 1e-7);
    for pair in profile.rows.windows(2) {
        assert!(pair[0].ttot_s >= pair[1].ttot_s, "sorted by ttot");
    }
}

#[test]
fn without_it_there_is_none() {
    let workspace = Workspace::new();
    run(&mut workspace.scripted());
    assert!(!workspace.run_folder().join("profile.log").exists());
    assert!(workspace.record().get("profile").is_none());
}

#[test]
fn a_copy_under_a_name() {
    let workspace = Workspace::new();
    let printed = run(workspace.scripted().args([
        "--profile-dir",
        "profiles/of",
        "--profile-name",
        "baseline",
    ]));
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert_eq!(workspace.read("profiles/of/baseline.log"), log(&workspace));

    let unnamed = Workspace::new();
    run(unnamed.scripted().env("PROFILE_DIR", "profiles"));
    let run_id = unnamed.record()["run_id"].as_str().map(str::to_owned);
    let name = format!("profiles/{}.log", run_id.expect("a name"));
    assert_eq!(unnamed.read(&name), log(&unnamed));
}

#[test]
fn settings_that_cannot_be() {
    let workspace = Workspace::new();
    for arguments in [
        &["--profile-name", "baseline"][..],
        &["--profile-dir", "d", "--profile-name", "a/b"],
    ] {
        let printed = run(workspace.scripted().args(arguments));
        assert_eq!(printed.code, 2, "{}", printed.err);
    }
    workspace.write("taken", "a file, not a folder");
    let printed = run(workspace.scripted().env("PROFILE_DIR", "taken"));
    assert_eq!(printed.code, 110, "{}", printed.err);
    assert!(
        printed.err.contains("hint: let PROFILE_DIR"),
        "{}",
        printed.err
    );
    assert_eq!(workspace.record()["status"], "complete", "the run is kept");
}

#[test]
fn every_mode_and_a_failed_flow_have_a_profile() {
    let workspace = Workspace::new();
    workspace.write(
        "templates/chain.script.jsonl",
        format!(
            "{}{{\"flow\": 2, \"step\": \"executor\", \"fail\": \"no\"}}\n",
            crate::common::SCRIPT
        ),
    );
    let printed =
        run(workspace
            .scripted()
            .args(["--profile", "--num-flows", "3", "--concurrency", "3"]));
    assert_eq!(printed.code, 100);
    let rows = profile(&workspace).rows;
    let calls = |name: &str| {
        rows.iter()
            .find(|row| row.name == name)
            .map(|row| row.ncall)
    };
    assert_eq!((calls("flow"), calls("step")), (Some(3), Some(8)));

    let both = Workspace::new();
    let printed = run(both
        .scripted()
        .env("MODE", "both")
        .env("SCRIPT", "templates/chain.script.jsonl")
        .args(["--profile", "--num-flows", "2", "--rounds", "1"]));
    assert_eq!(printed.code, 0, "{}", printed.err);
    let rows = profile(&both).rows;
    assert!(rows.iter().any(|row| row.name == "flow" && row.ncall == 4));
}

#[test]
fn an_interrupted_run_has_a_profile() {
    let workspace = Workspace::new();
    workspace.write(
        "templates/chain.script.jsonl",
        "{\"output\": \"a b\", \"ttft_ms\": 5, \"latency_ms\": 10}\n",
    );
    let mut command = workspace.child(&[("NUM_FLOWS", "100"), ("PROFILE", "1")]);
    let mut child = command.spawn().expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    while !(lines.next().expect("goes on").expect("UTF-8")).starts_with("[TARGET]") {}
    kill_process(Pid::from_child(&child), Signal::INT).expect("is there");
    lines.for_each(drop);
    assert_eq!(child.wait().expect("ends").code(), Some(106));
    assert!(log(&workspace).contains("\nstep "));
    let profile = profile(&workspace);
    assert!(profile.rows.iter().any(|row| row.name == "wait"));
}

#[test]
fn a_second_interrupt_ends_a_run_that_hangs_and_keeps_its_profile() {
    let workspace = Workspace::new();
    // A wait of a minute, in which nobody looks at the flag.
    workspace.write(
        "templates/chain.script.jsonl",
        "{\"step\": \"planner\", \"output\": \"a\"}\n{\"output\": \"a\", \"latency_ms\": 60000}\n",
    );
    let mut command = workspace.child(&[("NUM_FLOWS", "1"), ("PROFILE", "1")]);
    let mut child = command.spawn().expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    while !(lines.next().expect("goes on").expect("UTF-8")).starts_with("[TARGET]") {}
    let pid = Pid::from_child(&child);
    let status = loop {
        // Two signals at once can become one.
        kill_process(pid, Signal::INT).expect("is there");
        std::thread::sleep(std::time::Duration::from_millis(20));
        if let Some(status) = child.try_wait().expect("a child") {
            break status;
        }
    };
    assert_eq!(status.code(), Some(106));
    assert!(log(&workspace).contains("\nengine_init "));
}

#[test]
fn a_trace_has_a_lane_for_each_running_flow_and_one_for_the_device() {
    let workspace = Workspace::new();
    workspace.write(
        "templates/chain.script.jsonl",
        "{\"output\": \"a b\", \"ttft_ms\": 2, \"latency_ms\": 4}\n",
    );
    let printed =
        run(workspace
            .scripted()
            .args(["--profile", "--num-flows", "5", "--concurrency", "2"]));
    assert_eq!(printed.code, 0, "{}", printed.err);
    let text = std::fs::read_to_string(workspace.run_folder().join("trace.json"));
    let trace: serde_json::Value =
        serde_json::from_str(&text.expect("was written")).expect("is JSON");
    assert_eq!(trace["otherData"]["events_dropped"], 0);
    let events = trace["traceEvents"].as_array().expect("a list");
    let complete: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
    assert_nested(&complete);

    let of = |category: &str| -> Vec<_> {
        let of = |event: &&&serde_json::Value| event["cat"] == category;
        complete.iter().filter(of).collect()
    };
    assert_eq!((of("flow").len(), of("step").len()), (5, 15));
    assert_eq!((of("prefill").len(), of("decode").len()), (15, 15));
    assert!(of("wait").iter().all(|event| event["pid"] == 2));
    assert!(of("wait")[0]["args"]["sequences"].is_u64());
    let mut names: Vec<_> = of("flow").iter().map(|e| e["name"].to_string()).collect();
    names.sort();
    assert_eq!(names[0], "\"flow 1\"");
    assert!(of("step").iter().any(|event| event["name"] == "planner"));
    // One after another: none is beside the one before it.
    for step in of("step") {
        assert!(
            of("flow").iter().any(|flow| flow["tid"] == step["tid"]),
            "{step}"
        );
    }
    let mut lanes: Vec<_> = of("flow").iter().map(|e| e["tid"].as_u64()).collect();
    lanes.sort_unstable();
    lanes.dedup();
    assert_eq!(lanes.len(), 2, "two at a time");
}
