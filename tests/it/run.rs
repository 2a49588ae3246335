//! `flowbench run`, end to end, on recorded answers.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::common::{Workspace, run};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn what_a_run_prints() {
    let workspace = Workspace::new();
    let printed = run(workspace.scripted().env("NUM_FLOWS", "2"));
    insta::assert_snapshot!(printed.redacted(&workspace));
}

#[test]
fn a_run_has_a_flow_for_each_row_of_the_suite() {
    let workspace = Workspace::new();
    let printed = run(&mut workspace.scripted());
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert_eq!(printed.count("[TARGET]"), 9);
    assert_eq!(printed.count("[TIMING] workflow_"), 3);
    assert_eq!(printed.count("[TIMING] engine_init_ms="), 1);
    assert_eq!(workspace.steps().len(), 9);
    let record = workspace.record();
    assert_eq!(record["settings"]["num_flows"], 3);
    assert_eq!(record["status"], "complete");
    assert_eq!(record["engine_starts"], 1);
    assert_eq!(record["totals"]["steps_done"], 9);
    assert_eq!(record["workflows"].as_array().map(Vec::len), Some(3));
}

#[test]
fn the_cache_is_used_and_a_cold_start_regenerates() {
    let workspace = Workspace::new();
    let cold = run(&mut workspace.scripted());
    assert!(
        cold.err
            .contains("[PROGRESS] Regenerating expanded flows (cache miss: no cache)")
    );
    assert!(!cold.out.contains("(cached)"));

    let warm = run(&mut workspace.scripted());
    assert!(
        warm.err
            .contains("[PROGRESS] Using cached expanded flows (fixture_hash=")
    );
    assert!(warm.out.contains("(cached)"));
    assert_eq!(cold.hashes(), warm.hashes());
    assert_eq!(warm.hashes().len(), 9);

    std::fs::remove_file(workspace.file("flows/.expanded_cache.json")).expect("is there");
    let again = run(&mut workspace.scripted());
    assert!(
        again
            .err
            .contains("Regenerating expanded flows (cache miss: no cache)")
    );
    assert_eq!(cold.hashes(), again.hashes());
}

#[test]
fn a_changed_fixture_is_noticed() {
    let workspace = Workspace::new();
    run(&mut workspace.scripted());
    workspace.write("fixtures/code/a.py", "changed");
    let printed = run(&mut workspace.scripted());
    assert!(
        printed.err.contains("(cache miss: fixture changed)"),
        "{}",
        printed.err
    );
}

#[test]
fn quiet_leaves_the_results_alone() {
    let workspace = Workspace::new();
    let printed = run(workspace.scripted().env("QUIET", "1"));
    assert_eq!(crate::common::redact(&printed.err), "");
    assert_eq!(printed.count("[TARGET]"), 9);
    let last = printed.out.lines().last().expect("a line");
    let folder = last.strip_prefix("[RUN] path=").expect("the last line");
    assert!(workspace.file(folder).join("run.json").is_file(), "{last}");
}

#[test]
fn outputs_are_shown_only_when_asked_for() {
    let workspace = Workspace::new();
    let silent = run(&mut workspace.scripted());
    assert!(!silent.out.contains("Read the loop") && !silent.err.contains("Read the loop"));
    let shown = run(workspace.scripted().arg("--show-output"));
    assert!(shown.err.contains("Read the loop first."));
    assert!(
        !shown.out.contains("Read the loop"),
        "results stay parsable"
    );
}

#[test]
fn flags_beat_the_environment() {
    let workspace = Workspace::new();
    let printed = run(workspace
        .scripted()
        .env("NUM_FLOWS", "9")
        .args(["--num-flows", "4"]));
    assert_eq!(printed.count("[TIMING] workflow_"), 4);
}

#[test]
fn concurrency_changes_no_output() {
    let workspace = Workspace::new();
    let one = run(workspace.scripted().env("NUM_FLOWS", "25"));
    let many = run(workspace
        .scripted()
        .envs([("NUM_FLOWS", "25"), ("CONCURRENCY", "25")]));
    let sorted = |printed: &crate::common::Printed| {
        let mut hashes: Vec<String> = printed
            .hashes()
            .iter()
            .map(|hash| (*hash).to_owned())
            .collect();
        hashes.sort();
        hashes
    };
    assert_eq!(sorted(&one), sorted(&many));
    assert_eq!(many.count("[TARGET]"), 75);
}

#[test]
fn a_failed_flow_is_told_and_the_others_go_on() {
    let workspace = Workspace::new();
    workspace.write(
        "templates/chain.script.jsonl",
        format!(
            "{}{{\"flow\": 2, \"step\": \"executor\", \"fail\": \"the model is tired\"}}\n",
            crate::common::SCRIPT
        ),
    );
    let printed = run(workspace.scripted().env("NUM_FLOWS", "3"));
    insta::assert_snapshot!(printed.redacted(&workspace));
    assert_eq!(workspace.record()["status"], "failed");
}

#[test]
fn a_run_in_which_nothing_ended_well_says_so() {
    let workspace = Workspace::new();
    workspace.write("templates/chain.script.jsonl", "{\"fail\": \"no\"}\n");
    let printed = run(workspace.scripted().env("NUM_FLOWS", "5"));
    assert_eq!(printed.code, 4);
    assert!(printed.out.contains("avg_workflow_ms=null"));
    assert!(
        printed
            .err
            .contains("further failures are in the record only")
    );
}

#[test]
fn an_interrupted_run_keeps_what_was_measured() {
    let workspace = Workspace::new();
    workspace.write(
        "templates/chain.script.jsonl",
        "{\"output\": \"a b\", \"ttft_ms\": 5, \"latency_ms\": 10}\n",
    );
    let mut command = workspace.child(&[("NUM_FLOWS", "100")]);
    let mut child = command.spawn().expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut seen = 0;
    while seen < 4 {
        let line = lines.next().expect("goes on").expect("UTF-8");
        seen += usize::from(line.starts_with("[TARGET]"));
    }
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::INT).expect("is there");
    let rest: Vec<String> = lines.map(|line| line.expect("UTF-8")).collect();
    let status = child.wait().expect("ends");
    assert_eq!(status.code(), Some(106));
    assert!(
        rest.iter()
            .any(|line| line.contains("benchmark_total_ms=") && line.contains("(incomplete: "))
    );

    let record = workspace.record();
    assert_eq!(record["status"], "incomplete");
    let steps = workspace.steps().len();
    assert!((4..300).contains(&steps), "{steps}");
    assert_eq!(record["totals"]["steps_done"], steps);
}

#[test]
fn an_interrupt_ends_the_expansion_between_two_flows() {
    let workspace = Workspace::new();
    let child = workspace.child(&[("NUM_FLOWS", "1000000")]).spawn();
    let child = child.expect("starts");
    while !workspace.file("flows/_expanded_00003.json").exists() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    kill_process(Pid::from_child(&child), Signal::INT).expect("is there");
    let output = child.wait_with_output().expect("ends");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(106), "{err}");
    assert!(
        err.contains("interrupted while the flows were expanded"),
        "{err}"
    );
    assert!(!workspace.file("flows/.expanded_cache.json").exists());
    assert!(!workspace.file("results").exists());
}

#[test]
fn a_killed_run_leaves_every_step_that_had_ended() {
    let workspace = Workspace::new();
    workspace.write(
        "templates/chain.script.jsonl",
        "{\"output\": \"a b\", \"latency_ms\": 5}\n",
    );
    let mut command = workspace.child(&[("NUM_FLOWS", "100")]);
    let mut child = command.stderr(Stdio::null()).spawn().expect("starts");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let printed = lines
        .map(|line| line.expect("UTF-8"))
        .filter(|line| line.starts_with("[TARGET]"))
        .take(7)
        .count();
    child.kill().expect("is there");
    child.wait().expect("ends");
    assert_eq!(workspace.record()["status"], "running");
    assert!(workspace.steps().len() >= printed);
}

#[test]
fn a_closed_pipe_ends_the_run_without_a_panic() {
    let workspace = Workspace::new();
    let mut child = workspace.child(&[]).spawn().expect("starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(110));
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(
        err.contains("error: failed to write to standard output"),
        "{err}"
    );
}

#[test]
fn a_run_can_be_played_again_from_its_own_steps() {
    let workspace = Workspace::new();
    let first = run(&mut workspace.scripted());
    let steps = workspace.run_folder().join("steps.jsonl");
    let again = run(workspace
        .scripted()
        .env("SCRIPT", &steps)
        .env("SCRIPT_LATENCY", "0")
        .env("OUT", "again"));
    assert_eq!(again.code, 0, "{}", again.err);
    assert_eq!(first.hashes(), again.hashes());
}

#[test]
fn an_engine_for_each_workflow_is_the_slow_way() {
    let workspace = Workspace::new();
    let printed = run(workspace
        .scripted()
        .env("NUM_FLOWS", "3")
        .arg("--engine-per-workflow"));
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert_eq!(printed.count("[TIMING] engine_init_ms="), 3);
    assert_eq!(workspace.record()["engine_starts"], 3);
}

#[test]
fn assumed_power_gives_energy() {
    let workspace = Workspace::new();
    run(workspace.scripted().env("GPU_POWER", "300"));
    let totals = &workspace.record()["totals"];
    let ms = totals["benchmark_total_ms"].as_f64().expect("ended");
    let joules = totals["energy"]["joules"]
        .as_f64()
        .expect("a power was given");
    assert!((joules - 300.0 * ms / 1e3).abs() < 1e-6);
    assert_eq!(totals["energy"]["source"], "assumed");
    assert!(totals["energy"]["joules_per_token"].as_f64() > Some(0.0));
}

#[test]
fn two_runs_at_once_do_not_disturb_each_other() {
    let workspace = Workspace::new();
    let results: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> = (1..=6)
            .map(|count: usize| {
                let workspace = &workspace;
                scope.spawn(move || {
                    let count = (count * 3).to_string();
                    (
                        count.clone(),
                        run(workspace.scripted().env("NUM_FLOWS", count)),
                    )
                })
            })
            .collect();
        runs.into_iter()
            .map(|run| run.join().expect("no panic"))
            .collect()
    });
    for (count, printed) in results {
        assert_eq!(printed.code, 0, "{}", printed.err);
        assert_eq!(printed.count("[TIMING] workflow_").to_string(), count);
    }
}
