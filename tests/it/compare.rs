//! `flowbench compare`, the history, baselines and gates, end to end on the scripted engine.

use crate::common::{Printed, Workspace, run};

/// A script whose answers take some milliseconds.
fn script(executor_ms: f64) -> String {
    format!(
        r#"{{"step": "planner", "output": "Read the loop first.", "ttft_ms": 5, "latency_ms": 15}}
{{"step": "executor", "output": "The loop ends one too early.", "ttft_ms": 5, "latency_ms": {executor_ms}}}
{{"step": "verifier", "output": "CONFIRMED it does.", "ttft_ms": 5, "latency_ms": 15}}
"#
    )
}

/// Runs the job once with an executor that takes so long.
fn night(workspace: &Workspace, executor_ms: f64) -> Printed {
    workspace.write("templates/chain.script.jsonl", script(executor_ms));
    let printed = run(&mut workspace.scripted());
    assert_eq!(printed.code, 0, "{}", printed.err);
    printed
}

fn compare(workspace: &Workspace, arguments: &[&str]) -> Printed {
    run(workspace.flowbench(&["compare"]).args(arguments))
}

/// A workspace with `runs` runs.
fn after(runs: usize) -> Workspace {
    let workspace = Workspace::new();
    for _ in 0..runs {
        night(&workspace, 20.0);
    }
    workspace
}

/// The value of a key in the first line that begins with `start`.
fn value<'a>(printed: &'a Printed, start: &str, key: &str) -> &'a str {
    let mut lines = printed.out.lines();
    let line = lines.find(|line| line.starts_with(start));
    let (_, rest) = (line.unwrap_or_default().split_once(&format!(" {key}=")))
        .unwrap_or_else(|| panic!("no {key} in {}{}", printed.out, printed.err));
    rest.split(' ').next().unwrap_or_default()
}

#[test]
fn a_slower_step_fails_the_gate_and_is_named() {
    let workspace = after(4);
    night(&workspace, 150.0);
    let printed = compare(&workspace, &["history:4"]);
    assert_eq!(printed.code, 99, "{}{}", printed.out, printed.err);
    assert_eq!(value(&printed, "[VERDICT]", "verdict"), "REGRESSED");
    assert_eq!(value(&printed, "[VERDICT]", "baseline_runs"), "4");
    assert_eq!(value(&printed, "[CAUSE]", "step"), "executor");
    assert_eq!(value(&printed, "[CAUSE]", "term"), "decode_ms_per_token");
    // Never a gate, but the same verdict.
    let told = compare(&workspace, &["history:4", "--fail-on", "never"]);
    assert_eq!((told.code, &told.out), (0, &printed.out));
    // The other way around it is an improvement.
    let faster = compare(
        &workspace,
        &["latest", "latest~1,latest~2,latest~3,latest~4"],
    );
    assert_eq!(faster.code, 0, "{}", faster.err);
    assert_eq!(value(&faster, "[VERDICT]", "verdict"), "IMPROVED");
}

#[test]
fn one_run_against_one_gives_no_verdict() {
    let workspace = after(2);
    let printed = compare(&workspace, &["latest~1"]);
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert_eq!(value(&printed, "[VERDICT]", "verdict"), "NO_VERDICT");
    assert_eq!(value(&printed, "[VERDICT]", "interval"), "unknown");
    let required = compare(&workspace, &["latest~1", "--require-verdict"]);
    assert_eq!(required.code, 98, "{}", required.err);
    let assumed = compare(
        &workspace,
        &["latest~1", "--assume-noise", "0.1%", "--threshold", "90%"],
    );
    assert_eq!(value(&assumed, "[VERDICT]", "verdict"), "PASS");
    assert_eq!(value(&assumed, "[VERDICT]", "noise"), "assumed");
}

#[test]
fn what_differs_is_the_subject_or_an_obstacle() {
    let workspace = after(1);
    let other = |settings: &[(&str, &str)]| {
        let printed = run(workspace.scripted().envs(settings.iter().copied()));
        assert_eq!(printed.code, 0, "{}", printed.err);
    };
    other(&[("SEED", "1")]);
    let subject = compare(&workspace, &["latest~1"]);
    assert_eq!(value(&subject, "[VERDICT]", "subject"), "seed");
    other(&[("SEED", "1"), ("CONCURRENCY", "2")]);
    let refused = compare(&workspace, &["latest~2"]);
    assert_eq!(
        (refused.code, refused.out.as_str()),
        (2, ""),
        "{}",
        refused.err
    );
    for part in [
        "concurrency (1 and 2)",
        "seed (0 and 1)",
        "hint: ",
        "--subject concurrency,seed",
    ] {
        assert!(refused.err.contains(part), "{part} in {}", refused.err);
    }
    let obstacle = compare(&workspace, &["latest~2", "--subject", "seed"]);
    assert!(
        obstacle
            .err
            .contains("also differ in concurrency (1 and 2)"),
        "{}",
        obstacle.err
    );
    let accepted = compare(
        &workspace,
        &[
            "latest~2",
            "--subject",
            "seed",
            "--allow-different",
            "concurrency",
        ],
    );
    assert_eq!(accepted.code, 0, "{}", accepted.err);
    assert_eq!(value(&accepted, "[VERDICT]", "different"), "concurrency");
    // The runs of one side must agree as well.
    let mixed = compare(&workspace, &["latest~2,latest~1"]);
    assert!(
        mixed.err.contains("the runs of one side differ: seed"),
        "{}",
        mixed.err
    );
}

#[test]
fn formats_say_the_same() {
    let workspace = after(3);
    let json = compare(&workspace, &["latest~2,latest~1", "-o", "json"]);
    let record: serde_json::Value = serde_json::from_str(&json.out).expect("JSON");
    let metric = &record["metrics"][0];
    assert_eq!(record["flows"], 3);
    assert_eq!(record["base"].as_array().map(Vec::len), Some(2));
    let parts = metric["causes"].as_array().expect("causes").iter();
    let sum: f64 = parts
        .map(|cause| cause["part"].as_f64().expect("a share"))
        .sum();
    assert!((sum - metric["change"].as_f64().expect("a share")).abs() < 1e-9);
    let both = ["--metric", "workflow_ms,ttft_ms"];
    let family = compare(&workspace, &[&["latest~2,latest~1"][..], &both].concat());
    // Holm's method: the metric that differs most, whichever that is, is held to a higher level.
    let mut verdicts = family
        .out
        .lines()
        .filter(|line| line.starts_with("[VERDICT]"));
    assert!(
        verdicts.any(|line| line.contains(" coverage=97.5%")),
        "{}",
        family.out
    );
    let md = compare(&workspace, &["latest~2,latest~1", "-o", "md"]);
    assert!(
        md.out.starts_with("## ") && md.out.contains("| workflow_ms |"),
        "{}",
        md.out
    );
    let html = compare(&workspace, &["latest~2,latest~1", "-o", "html"]);
    let page = std::fs::read_to_string(workspace.path().join(html.out.trim())).expect("a page");
    assert!(page.starts_with("<!doctype html>") && page.contains("workflow_ms"));
    assert!(
        !page.contains("http://") && !page.contains("https://"),
        "nothing is loaded"
    );
}

#[test]
fn baselines_are_names_for_runs() {
    let workspace = after(3);
    let saved = compare(
        &workspace,
        &["latest~2", "latest~1,latest", "--save-baseline", "good"],
    );
    assert_eq!(saved.code, 0, "{}", saved.err);
    let printed = run(workspace.scripted().args(["--save-baseline", "last"]));
    assert_eq!(printed.code, 0, "{}", printed.err);
    let against = compare(&workspace, &["good", "last"]);
    assert_eq!(value(&against, "[VERDICT]", "baseline_runs"), "2");
    let unknown = compare(&workspace, &["better"]);
    assert_eq!(unknown.code, 2);
    assert!(
        unknown
            .err
            .contains("no run or baseline is called \"better\""),
        "{}",
        unknown.err
    );
    let bad = compare(&workspace, &["good", "--save-baseline", "latest"]);
    assert_eq!(bad.code, 2);
    workspace.write("results/baselines.json", "[]");
    let torn = compare(&workspace, &["good"]);
    assert_eq!(torn.code, 2);
    assert!(
        torn.err.contains("baselines.json: not a list of baselines"),
        "{}",
        torn.err
    );
}

#[test]
fn bad_names_are_told() {
    let workspace = after(1);
    std::fs::create_dir(workspace.file("results/empty")).expect("writable");
    for (arguments, parts) in [
        (&["latest~5"][..], "holds no latest~5"),
        (&["empty"], "has no run.json"),
        (&["latest"], "is on both sides"),
        (
            &["history:3"],
            "no other valid run of this job on this machine",
        ),
        (&["history:none"], "not a number of runs"),
        (&[""], "a run without a name"),
        (
            &["latest", "latest", "--metric", "speed"],
            "no metric is called \"speed\"",
        ),
        (&["latest", "--threshold", "0"], "expected a share"),
    ] {
        let printed = compare(&workspace, arguments);
        assert_eq!(
            (printed.code, printed.out.as_str()),
            (2, ""),
            "{}",
            printed.err
        );
        assert!(printed.err.contains(parts), "{parts} in {}", printed.err);
    }
    // Of another layout, and without any flow.
    let folder = workspace.runs("results").remove(0);
    let text = std::fs::read_to_string(folder.join("run.json")).expect("a record");
    workspace.write(
        "results/other/run.json",
        text.replace("\"schema\": 1", "\"schema\": 7"),
    );
    workspace.write("results/other/steps.jsonl", "");
    let other = compare(&workspace, &["other", folder.to_str().expect("a path")]);
    assert!(
        other.err.contains("the record's schema is 7"),
        "{}",
        other.err
    );
    assert_eq!(other.code, 2);
}

#[test]
fn runs_without_a_common_flow_cannot_be_compared() {
    let workspace = after(2);
    let folder = workspace.runs("results").remove(1);
    let file = folder.join("run.json");
    let text = std::fs::read_to_string(&file).expect("a record");
    let mut record: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    for workflow in record["workflows"].as_array_mut().expect("flows") {
        workflow["error"] = "broken".into();
    }
    record["totals"]["workflows_done"] = 0.into();
    std::fs::write(&file, record.to_string()).expect("writable");
    let printed = compare(&workspace, &["latest~1"]);
    assert_eq!(printed.code, 98, "{}", printed.err);
    assert!(
        printed.err.contains("no flow ended well in every run"),
        "{}",
        printed.err
    );
}

#[test]
fn the_history_has_a_line_for_each_run_and_survives_a_torn_one() {
    let workspace = Workspace::new();
    let labelled = run(workspace
        .scripted()
        .env("GITHUB_SHA", "abc123")
        .args(["--label", "branch=main"]));
    assert_eq!(labelled.code, 0, "{}", labelled.err);
    let lines = |workspace: &Workspace| -> Vec<String> {
        let text = workspace.read("results/history.jsonl");
        text.lines().map(str::to_owned).collect()
    };
    let line: serde_json::Value = serde_json::from_str(&lines(&workspace)[0]).expect("JSON");
    assert_eq!(
        line["labels"],
        serde_json::json!({"branch": "main", "commit": "abc123"})
    );
    assert_eq!(
        (&line["flows"], &line["status"]),
        (&3.into(), &"complete".into())
    );
    assert!(
        line["metrics"]["latency_ms"]["executor"]["mean"].is_number(),
        "{line}"
    );
    // Killed while it wrote: half a line.
    let torn = format!("{}\n{}", lines(&workspace)[0], &lines(&workspace)[0][..40]);
    workspace.write("results/history.jsonl", torn);
    night(&workspace, 20.0);
    assert_eq!(lines(&workspace).len(), 3);
    night(&workspace, 20.0);
    let printed = compare(&workspace, &["history:1"]);
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert!(
        printed
            .err
            .contains("history.jsonl: 1 line skipped, the first is line 2"),
        "{}",
        printed.err
    );
}

#[test]
fn gates_of_a_run_have_codes_of_their_own() {
    let workspace = Workspace::new();
    let gated = |arguments: &[&str]| run(workspace.scripted().args(arguments));
    let kept = gated(&[
        "--gate",
        "--max",
        "workflow_ms:60000",
        "--goodput",
        "e2el:60s",
        "--min-goodput",
        "99%",
    ]);
    assert_eq!(kept.code, 0, "{}{}", kept.out, kept.err);
    assert_eq!(kept.count("[GATE]"), 2, "{}", kept.out);
    let broken = gated(&["--max", "tokens:1"]);
    assert_eq!(broken.code, 99, "{}", broken.err);
    assert!(
        broken.err.contains("not kept: max tokens:1"),
        "{}",
        broken.err
    );
    assert_eq!(value(&broken, "[GATE]", "passed"), "no");
    let slow = gated(&["--goodput", "e2el:0.0001ms", "--min-goodput", "50%"]);
    assert_eq!((slow.code, value(&slow, "[GATE]", "value")), (99, "0.0%"));
    // A flow that fails: 100 as ever, 98 where the run must be valid.
    let failing = format!(
        "{}\n{}",
        r#"{"flow": 2, "step": "executor", "fail": "broken"}"#,
        script(1.0)
    );
    workspace.write("templates/chain.script.jsonl", failing);
    assert_eq!(gated(&[]).code, 100);
    let invalid = gated(&["--gate"]);
    assert_eq!(invalid.code, 98, "{}", invalid.err);
    assert_eq!(value(&invalid, "[INVALID]", "reason"), "flows_missing");
    let bad = gated(&["--min-goodput", "50%"]);
    assert_eq!(bad.code, 2, "{}", bad.err);
}

#[test]
fn a_diagnosis_says_what_changed_since_a_baseline() {
    let workspace = after(3);
    night(&workspace, 150.0);
    let diagnose = |arguments: &[&str]| run(workspace.flowbench(&["diagnose"]).args(arguments));
    let printed = diagnose(&["--baseline", "latest~3,latest~2,latest~1"]);
    assert_eq!(printed.code, 0, "{}", printed.err);
    let (_, change) = printed
        .out
        .split_once("# Against the baseline")
        .expect("a part");
    assert!(change.contains("| executor |"), "{change}");
    assert!(change.contains("REGRESSED"), "{change}");
    let json = diagnose(&["--baseline", "latest~3,latest~2,latest~1", "-o", "json"]);
    let value: serde_json::Value = serde_json::from_str(&json.out).expect("JSON");
    assert_eq!(value["against"]["verdict"], "REGRESSED");
    let unknown = diagnose(&["--baseline", "no-such"]);
    assert_eq!(
        (unknown.code, unknown.out.as_str()),
        (2, ""),
        "{}",
        unknown.err
    );
}

fn history(workspace: &Workspace, arguments: &[&str]) -> Printed {
    run(workspace.flowbench(&["history"]).args(arguments))
}

#[test]
fn the_history_shows_where_a_level_changed_and_why() {
    let workspace = Workspace::new();
    for _ in 0..4 {
        night(&workspace, 20.0);
    }
    for _ in 0..4 {
        night(&workspace, 80.0);
    }
    // Another job does not mix in.
    let other = run(workspace.scripted().env("SEED", "1"));
    assert_eq!(other.code, 0, "{}", other.err);
    let printed = history(&workspace, &["--run", "latest~1"]);
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert!(
        printed.out.contains("not shown: 1 run of other jobs"),
        "{}",
        printed.out
    );
    assert_eq!(printed.out.matches("◆").count(), 1, "{}", printed.out);
    assert!(
        printed.out.contains("executor decode_ms_per_token"),
        "{}",
        printed.out
    );
    let json = history(
        &workspace,
        &["--run", "latest~1", "-o", "json", "--last", "5"],
    );
    let trend: serde_json::Value = serde_json::from_str(&json.out).expect("JSON");
    assert_eq!(trend["runs"].as_array().map(Vec::len), Some(5));
    assert_eq!(trend["earlier_runs"], 3);
    let html = history(&workspace, &["--run", "latest~1", "-o", "html"]);
    assert_eq!(html.out, "results/history.html\n");
    assert!(workspace.read("results/history.html").contains("<svg"));
    let step = history(&workspace, &["--metric", "latency_ms:planner"]);
    assert!(
        step.out.starts_with("latency_ms of planner of chain"),
        "{}",
        step.out
    );
    let all = history(&workspace, &["--metric", "latency_ms:*"]);
    assert_eq!(all.code, 2, "{}", all.err);
}

#[test]
fn pruning_keeps_lines_and_baselines() {
    let workspace = after(1);
    let saved = run(workspace.scripted().args(["--save-baseline", "good"]));
    assert_eq!(saved.code, 0, "{}", saved.err);
    for _ in 0..3 {
        night(&workspace, 20.0);
    }
    let printed = history(&workspace, &["--prune", "1"]);
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert!(
        printed.err.contains("Removed 3 run folders"),
        "{}",
        printed.err
    );
    assert_eq!(workspace.runs("results").len(), 2);
    assert_eq!(workspace.read("results/history.jsonl").lines().count(), 5);
    assert_eq!(compare(&workspace, &["good"]).code, 0);
    let none = history(&Workspace::new(), &[]);
    assert_eq!(none.code, 2);
    assert!(none.err.contains("has no such run"), "{}", none.err);
}

#[test]
fn repetitions_are_runs_of_their_own_on_one_engine() {
    let workspace = Workspace::new();
    workspace.write("templates/chain.script.jsonl", script(20.0));
    let printed = run(workspace
        .flowbench(&["calibrate", "--repetitions", "4"])
        .envs([("MODE", "scripted"), ("TEMPLATE", "chain")]));
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert_eq!(printed.count("[RUN]"), 4, "{}", printed.out);
    assert_eq!(
        printed.count("[TIMING] engine_init_ms="),
        1,
        "{}",
        printed.out
    );
    assert_eq!(value(&printed, "[NOISE] metric=workflow_ms", "runs"), "4");
    let runs = workspace.runs("results");
    assert_eq!(runs.len(), 4);
    let first = runs[0]
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let mut orders = std::collections::BTreeSet::new();
    for (number, folder) in (1..).zip(&runs) {
        let text = std::fs::read_to_string(folder.join("run.json")).expect("a record");
        let record: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let expected = serde_json::json!({"number": number, "of": 4, "calibration": first});
        assert_eq!(record["repetition"], expected);
        assert_eq!(record["engine_starts"], 1);
        assert_eq!(record["status"], "complete");
        let steps = std::fs::read_to_string(folder.join("steps.jsonl")).expect("steps");
        let flows = steps.lines().map(|line| {
            let step: serde_json::Value = serde_json::from_str(line).expect("JSON");
            step["flow"].to_string()
        });
        orders.insert(flows.collect::<Vec<_>>().join(" "));
    }
    assert!(
        orders.len() > 1,
        "the flows run in another order: {orders:?}"
    );
    // What they show is used for a run of another night against a single one.
    night(&workspace, 20.0);
    night(&workspace, 150.0);
    let against = compare(&workspace, &["latest~1"]);
    assert_eq!(value(&against, "[VERDICT]", "noise"), "history");
    assert_eq!(
        value(&against, "[VERDICT]", "verdict"),
        "REGRESSED",
        "{}",
        against.out
    );
}

#[test]
fn repetitions_go_on_after_failed_flows_and_refuse_what_they_would_share() {
    let workspace = Workspace::new();
    let failing = format!(
        "{}\n{}",
        r#"{"flow": 2, "step": "executor", "fail": "broken"}"#,
        script(1.0)
    );
    workspace.write("templates/chain.script.jsonl", failing);
    let printed = run(workspace.scripted().env("REPETITIONS", "2"));
    assert_eq!(printed.code, 100, "{}", printed.err);
    assert_eq!(printed.count("[RUN]"), 2, "{}", printed.out);
    for (arguments, why) in [
        (&["--record", "a.jsonl"][..], "--record has one file"),
        (&["--engine-per-workflow"], "starts more than one engine"),
        (&["--profile"], "a profile is of one run"),
    ] {
        let refused = run(workspace.scripted().env("REPETITIONS", "2").args(arguments));
        assert_eq!(refused.code, 2, "{}", refused.err);
        assert!(refused.err.contains(why), "{}", refused.err);
    }
}

#[test]
fn a_run_that_is_going_on_is_refused() {
    let workspace = after(1);
    workspace.write("templates/chain.script.jsonl", script(2000.0));
    let mut child = workspace.child(&[]).spawn().expect("starts");
    while workspace.runs("results").len() < 2
        || !workspace
            .runs("results")
            .iter()
            .all(|run| run.join("run.json").is_file())
    {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let printed = compare(&workspace, &["latest~1"]);
    child.kill().expect("is there");
    child.wait().expect("ends");
    assert_eq!(
        (printed.code, printed.out.as_str()),
        (2, ""),
        "{}",
        printed.err
    );
    assert!(
        printed.err.contains("the run is still going on"),
        "{}",
        printed.err
    );
    // Killed, it can be compared as far as it came: here no flow has ended.
    let killed = compare(&workspace, &["latest~1"]);
    assert_eq!(killed.code, 98, "{}", killed.err);
}

#[test]
fn runs_without_a_common_step_cannot_be_compared_by_it() {
    let workspace = after(2);
    let printed = compare(&workspace, &["latest~1", "--metric", "latency_ms:critic"]);
    assert_eq!(
        (printed.code, printed.out.as_str()),
        (2, ""),
        "{}",
        printed.err
    );
    let why = "the runs have no latency_ms of step critic in common";
    assert!(printed.err.contains(why), "{}", printed.err);
}
