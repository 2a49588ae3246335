//! Signals, refusals, damaged files, and what a resumed run prints and records.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::jobs::{chain, rows};
use super::{Job, outcome, walk};
use crate::common::{Workspace, run};

/// A run of which some steps are there: the process was killed after the fourth.
fn killed() -> Job {
    let job = chain(&[]);
    job.kill_after(4, Duration::ZERO);
    assert!(job.lines().lines().count() >= 4);
    job
}

/// Answers take 100 ms, so that a busy machine does not miss the moment at which a run is to be stopped.
fn slow_down(job: &Job) {
    let script = job.workspace.read("templates/chain.script.jsonl");
    let slow = script.replace("\"latency_ms\": ", "\"latency_ms\": 10");
    job.workspace.write("templates/chain.script.jsonl", slow);
}

/// Whether this process was started with SIGHUP ignored, so that its children are, too.
fn ignores_hang_ups() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 == 1)
}

#[test]
fn every_signal_ends_a_run_in_order_and_the_record_lists_its_segments() {
    let job = chain(&[("SCRIPT_LATENCY", "1")]);
    slow_down(&job);
    // Under nohup, hang-ups stay ignored.
    let last = if ignores_hang_ups() {
        Signal::TERM
    } else {
        Signal::HUP
    };
    for (number, signal) in [Signal::INT, Signal::TERM, last].into_iter().enumerate() {
        let mut command = job.workspace.child(&job.variables());
        if number > 0 {
            command.args(["--resume", "latest"]);
        }
        let mut child = command.stderr(Stdio::null()).spawn().expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        while let Some(Ok(line)) = lines.next() {
            if line.starts_with("[TARGET]") {
                break;
            }
        }
        kill_process(Pid::from_child(&child), signal).expect("is there");
        lines.for_each(drop);
        assert_eq!(child.wait().expect("ends").code(), Some(106), "{signal:?}");
        let segments = job.workspace.record()["segments"].clone();
        assert_eq!(segments.as_array().map(Vec::len), Some(number + 1));
        assert_eq!(segments[number]["end"], "interrupted");
        assert!(segments[number]["ended_at"].is_string());
    }
    let kept = job.lines().lines().count();
    job.complete(100);
    let record = job.workspace.record();
    let segments = record["segments"].as_array().expect("four");
    assert_eq!(segments.len(), 4);
    assert_eq!(segments[3]["end"], "ended");
    assert_eq!(segments[3]["steps_kept"], kept);
    let total: f64 = segments
        .iter()
        .map(|of| of["benchmark_total_ms"].as_f64().expect("known"))
        .sum();
    let whole = record["totals"]["benchmark_total_ms"]
        .as_f64()
        .expect("known");
    assert!((total - whole).abs() < 1e-6);
    // Steps say which segment they are of, and workflows that ran in several are told from the others.
    let last: Vec<Value> = job.workspace.steps().split_off(kept);
    assert!(last.iter().all(|step| step["segment"] == 4));
    let workflows = record["workflows"].as_array().expect("eight");
    let resumed = workflows
        .iter()
        .filter(|workflow| workflow["resumed"] == true);
    let timed = record["totals"]["workflow_ms"]["count"]
        .as_u64()
        .expect("some");
    assert_eq!(timed, 8 - 1 - resumed.count() as u64);
    let warnings = record["warnings"].to_string();
    assert!(
        warnings.contains("\"resumed\"") && warnings.contains("4 segments"),
        "{warnings}"
    );
    for command in [&["report"][..], &["report", "-o", "md"], &["diagnose"]] {
        let printed = run(&mut job.workspace.flowbench(command));
        assert_eq!(printed.code, 0, "{}", printed.err);
        assert!(!printed.out.contains("NaN"));
    }
}

#[test]
fn what_resuming_prints() {
    let job = killed();
    let printed = run(job.command().args(["--resume", "latest"]));
    assert_eq!(printed.code, 100, "{}", printed.err);
    assert!(printed.err.contains("Resuming results/"), "{}", printed.err);
    let again = run(job.command().args(["--resume", "latest"]));
    assert_eq!((again.code, again.count("[TARGET]")), (100, 0));
    assert!(
        again
            .err
            .contains("Nothing to do: every workflow of the run has ended"),
        "{}",
        again.err
    );
}

#[test]
fn a_complete_run_is_left_as_it_is() {
    let workspace = Workspace::new();
    run(&mut workspace.scripted());
    let folder = workspace.run_folder();
    let contents = || {
        let files = walk(&folder).into_iter();
        files
            .map(|path| (path.clone(), fs::read(&path).expect("there")))
            .collect::<BTreeMap<_, _>>()
    };
    let before = contents();
    let id = folder.file_name().expect("a name").display().to_string();
    let path = folder.display().to_string();
    for name in ["latest", &id, &path, &format!("{path}/run.json")] {
        let printed = run(workspace.scripted().args(["--resume", name]));
        assert_eq!(printed.code, 0, "{}", printed.err);
        assert!(printed.err.contains("Nothing to do"), "{}", printed.err);
        assert!(printed.out.contains("[RUN] "), "{}", printed.out);
    }
    assert_eq!(contents(), before);
}

/// All workflows are in the record, but not the totals.
#[test]
fn a_run_that_was_killed_at_its_very_end() {
    let job = chain(&[("PRICE_PROMPT", "1"), ("PRICE_DECODE", "2")]);
    job.complete(100);
    let before = outcome(&job.workspace);
    let usage = job.workspace.record()["totals"]["usage"].clone();
    let file = job.workspace.run_folder().join("run.json");
    let mut record = job.workspace.record();
    record["status"] = json!("running");
    record["segments"][0]["end"] = json!("running");
    record["segments"][0]["benchmark_total_ms"] = Value::Null;
    for name in ["scores", "usage", "positions"] {
        record["totals"][name] = json!([]);
    }
    fs::write(&file, record.to_string()).expect("writable");
    let steps = job.lines();
    let printed = run(job.command().args(["--resume", "latest"]));
    assert_eq!(printed.code, 100, "{}", printed.err);
    assert_eq!(
        printed.count("[TIMING] engine_init_ms"),
        0,
        "{}",
        printed.out
    );
    assert_eq!(job.lines(), steps);
    assert_eq!(outcome(&job.workspace), before);
    let record = job.workspace.record();
    assert_eq!(record["totals"]["usage"], usage);
    assert_eq!(record["segments"][0]["end"], "killed");
    assert!(record["segments"][0]["benchmark_total_ms"].is_number());
}

#[test]
fn another_job_is_refused_and_nothing_is_changed() {
    let job = killed();
    let folder = job.workspace.run_folder();
    let contents =
        || ["run.json", "steps.jsonl"].map(|file| fs::read(folder.join(file)).expect("there"));
    let before = contents();
    let refused = |command: &mut assert_cmd::Command, what: &str| {
        let printed = run(command.args(["--resume", "latest"]));
        assert_eq!(printed.code, 2, "{}", printed.err);
        assert!(
            printed.err.contains("the job differs: ") && printed.err.contains(what),
            "{}",
            printed.err
        );
        assert!(
            printed.err.contains("hint: resume a run with the settings"),
            "{}",
            printed.err
        );
        assert_eq!(contents(), before);
    };
    refused(job.command().env("SEED", "7"), "seed was 0 and is 7");
    refused(
        job.command().env("NUM_FLOWS", "9"),
        "num_flows was 8 and is 9",
    );
    refused(
        job.command().env("SHARD", "1/2"),
        "shard was unset and is 1/2",
    );
    job.workspace.write("fixtures/code/a.py", "changed");
    refused(&mut job.command(), "fixture was ");
    job.workspace.write(
        "fixtures/code/a.py",
        "def a():\n    return '${HOME} {{x}}'\n",
    );
    let template = job.workspace.read("templates/chain.toml");
    job.workspace.write(
        "templates/chain.toml",
        template.replace("Is it right?", "Is it?"),
    );
    refused(&mut job.command(), "template was chain (");
    job.workspace.write("templates/chain.toml", template);
    // The model is known only when the engine has been started.
    let file = folder.join("run.json");
    let record = fs::read_to_string(&file).expect("there");
    let other = record.replace("\"model\": \"none\"", "\"model\": \"another\"");
    assert_ne!(record, other);
    fs::write(&file, &other).expect("writable");
    let printed = run(job.command().args(["--resume", "latest"]));
    assert_eq!(printed.code, 2, "{}", printed.err);
    let what = "model was another and is none";
    assert!(printed.err.contains(what), "{}", printed.err);
    assert_eq!(fs::read_to_string(&file).expect("there"), other);
    fs::write(&file, record).expect("writable");
    // Limits decide where a run ends, and may be changed.
    let limited = run(job
        .command()
        .args(["--resume", "latest", "--max-tokens-total", "1"]));
    assert_eq!(limited.code, 106, "{}", limited.err);
    let record = job.workspace.record();
    assert_eq!(record["segments"][1]["end"], "limit");
    assert_eq!(
        record["segments"][1]["differs"]["settings.max_tokens_total"],
        1
    );
    job.complete(100);
}

#[test]
fn the_times_of_a_resumed_run_are_compared_only_where_that_is_allowed() {
    let job = chain(&[]);
    job.workspace.write(
        "templates/chain.script.jsonl",
        "{\"output\": \"a b c\", \"ttft_ms\": 20, \"latency_ms\": 50}\n",
    );
    let whole = run(&mut job.command());
    assert_eq!(whole.code, 0, "{}", whole.err);
    let base = job.workspace.run_folder().display().to_string();
    let aside = job.workspace.file("results/base");
    fs::rename(&base, &aside).expect("writable");
    let mut child = job.workspace.child(&job.variables());
    let mut child = child
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let latest = || {
        let runs = fs::read_dir(job.workspace.file("results"))
            .expect("there")
            .flatten();
        let mut names = runs
            .map(|run| run.path())
            .filter(|path| path.is_dir() && *path != aside);
        names.next()
    };
    let lines = || {
        let steps = latest().map(|run| run.join("steps.jsonl"));
        let text = steps
            .and_then(|steps| fs::read_to_string(steps).ok())
            .unwrap_or_default();
        text.lines().count()
    };
    while lines() < 7 {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().expect("is there");
    child.wait().expect("ends");
    let id = latest()
        .expect("there")
        .file_name()
        .expect("a name")
        .display()
        .to_string();
    let printed = run(job.command().args(["--resume", &id]));
    assert_eq!(printed.code, 0, "{}", printed.err);
    for sides in [["base", id.as_str()], [id.as_str(), "base"]] {
        let compare = |more: &[&str]| {
            let mut command = job.workspace.flowbench(&["compare"]);
            run(command.args(sides).args(more))
        };
        let refused = compare(&[]);
        assert_eq!(refused.code, 2, "{}", refused.err);
        assert!(
            refused.err.contains("was interrupted and resumed")
                && refused.err.contains("--allow-different segments"),
            "{}",
            refused.err
        );
        let allowed = compare(&["--allow-different", "segments"]);
        assert!(
            allowed.out.contains("[VERDICT]"),
            "{}{}",
            allowed.out,
            allowed.err
        );
    }
    // The history has the run, but judges nothing by it.
    let history = job.workspace.read("results/history.jsonl");
    let last: Value = serde_json::from_str(history.lines().last().expect("lines")).expect("JSON");
    assert_eq!(last["invalid"], json!(["resumed"]));
}

#[test]
fn a_run_that_is_going_on_or_that_nobody_knows_is_refused() {
    let job = chain(&[("SCRIPT_LATENCY", "1")]);
    slow_down(&job);
    let mut child = job.start();
    while job.lines().is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    // It waits neither for its answers nor for the test.
    kill_process(Pid::from_child(&child), Signal::STOP).expect("is there");
    let printed = run(job.command().args(["--resume", "latest"]));
    assert_eq!(printed.code, 2, "{}", printed.err);
    assert!(
        printed.err.contains("is still going on") && printed.err.contains("hint: "),
        "{}",
        printed.err
    );
    child.kill().expect("is there");
    child.wait().expect("ends");
    let printed = run(job.command().args(["--resume", "nowhere"]));
    assert_eq!(printed.code, 2);
    assert!(
        printed
            .err
            .contains("no run or baseline is called \"nowhere\"")
            && printed.err.contains("hint: "),
        "{}",
        printed.err
    );
    fs::remove_file(job.workspace.run_folder().join("run.json")).expect("there");
    let folder = job.workspace.run_folder().display().to_string();
    let printed = run(job.command().args(["--resume", &folder]));
    assert_eq!(printed.code, 2);
    assert!(
        printed.err.contains("has no run.json") && printed.err.contains("hint: "),
        "{}",
        printed.err
    );
}

#[test]
fn torn_empty_and_foreign_lines() {
    let undisturbed = chain(&[]);
    undisturbed.complete(100);
    let expected = outcome(&undisturbed.workspace);
    // A line that was cut off, within a letter; and no line at all.
    for keep in [true, false] {
        let job = killed();
        let file = job.workspace.run_folder().join("steps.jsonl");
        let mut bytes = if keep {
            job.lines().into_bytes()
        } else {
            Vec::new()
        };
        bytes.extend(
            b"{\"schema\":1,\"flow\":2,\"output\":\"\xc3"
                .iter()
                .take(if keep { 99 } else { 0 }),
        );
        fs::write(&file, bytes).expect("writable");
        if !keep {
            // What a power cut leaves: a record of workflows whose steps are lost is no longer that of the run.
            let record = job.workspace.run_folder().join("run.json");
            let mut value: Value =
                serde_json::from_slice(&fs::read(&record).expect("there")).expect("JSON");
            value["workflows"] = json!([]);
            fs::write(&record, value.to_string()).expect("writable");
        }
        job.complete(100);
        assert_eq!(outcome(&job.workspace), expected);
    }
    for (line, what) in [
        (
            "{\"schema\":1,\"flow\":99,\"row\":\"\",\"step\":\"planner\"",
            "flow 99 has no step planner",
        ),
        (
            "{\"schema\":1,\"flow\":8,\"row\":\"\",\"step\":\"verifier\"",
            "has ended, but not what it needs",
        ),
    ] {
        let job = killed();
        let file = job.workspace.run_folder().join("steps.jsonl");
        let rest = ",\"start_ms\":0,\"latency_ms\":1,\"ttft_ms\":null,\"tpot_ms\":null,\"prompt_tokens\":1,\
                    \"prefill_tokens\":1,\"reused_tokens\":0,\"decode_tokens\":1,\"finish\":\"stop\",\
                    \"out_hash\":\"\",\"output\":\"\"}\n";
        fs::write(&file, job.lines() + line + rest).expect("writable");
        let printed = run(job.command().args(["--resume", "latest"]));
        assert_eq!(printed.code, 2, "{}", printed.err);
        assert!(
            printed.err.contains(what) && printed.err.contains("hint: "),
            "{}",
            printed.err
        );
    }
}

#[test]
fn a_full_disk_loses_nothing_that_had_ended() {
    let job = chain(&[]);
    let limited = |arguments: &[&str]| {
        let mut command = assert_cmd::Command::new("sh");
        // The limit of a file's size stands for a disk that is full.
        command
            .args(["-c", "trap '' XFSZ; ulimit -f 12; exec \"$0\" \"$@\""])
            .arg(env!("CARGO_BIN_EXE_flowbench"))
            .arg("run")
            .args(arguments)
            .current_dir(job.workspace.path())
            .env_clear()
            .envs([("MODE", "scripted"), ("TEMPLATE", "chain")])
            .envs(job.variables());
        run(&mut command)
    };
    let first = limited(&[]);
    assert_eq!(first.code, 110, "{}", first.err);
    let before = job.lines();
    assert!(!before.is_empty());
    // It is still full.
    let second = limited(&["--resume", "latest"]);
    assert_eq!(second.code, 110, "{}", second.err);
    assert!(job.lines().starts_with(&before));
    let undisturbed = chain(&[]);
    undisturbed.complete(100);
    job.complete(100);
    assert!(job.lines().starts_with(&before));
    assert_eq!(outcome(&job.workspace), outcome(&undisturbed.workspace));
}

#[test]
fn a_folder_that_cannot_be_written_is_told() {
    let job = killed();
    let steps = job.workspace.run_folder().join("steps.jsonl");
    // Whoever runs the tests may write to any file, but nobody to a folder as if it were one.
    fs::remove_file(&steps).expect("there");
    fs::create_dir(&steps).expect("writable");
    let folder = job
        .workspace
        .run_folder()
        .join("run.json")
        .display()
        .to_string();
    let printed = run(job.command().args(["--resume", &folder]));
    assert_eq!(printed.code, 110, "{}", printed.err);
    assert!(
        printed
            .err
            .contains("hint: a run is resumed in its own folder, which must be writable"),
        "{}",
        printed.err
    );
}

#[test]
fn rows_are_resumed_without_a_run_as_before() {
    let job = rows();
    job.kill_after(5, Duration::ZERO);
    let printed = run(job.command().arg("--resume"));
    assert_eq!(printed.code, 100, "{}", printed.err);
    let runs = fs::read_dir(job.workspace.file("results"))
        .expect("there")
        .flatten();
    assert_eq!(runs.filter(|run| run.path().is_dir()).count(), 2);
}
