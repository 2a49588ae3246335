//! Workflows beyond a chain, end to end: the templates that ship with the program on their recorded
//! answers, rows in and out, limits, recordings.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::common::{Workspace, assert_nested};
use proptest::prelude::*;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A workspace with a template of this repository, its suite and its script.
fn shipped(template: &str) -> Workspace {
    let workspace = Workspace::new();
    let templates = Path::new(env!("CARGO_MANIFEST_DIR")).join("templates");
    for name in ["toml", "suite.jsonl", "script.jsonl"] {
        let name = format!("{template}.{name}");
        if let Ok(text) = fs::read(templates.join(&name)) {
            workspace.write(&format!("templates/{name}"), text);
        }
    }
    workspace
}

/// `flowbench run` of such a template on its script.
fn scripted(workspace: &Workspace, template: &str) -> assert_cmd::Command {
    let mut command = workspace.flowbench(&["run", "--template", template, "--mode", "scripted"]);
    if let Some(python) = std::env::var_os("FLOWBENCH_TEST_PYTHON") {
        command.env("PYTHON", python);
    }
    command
}

/// What a command prints, which ends with this exit code.
fn printed(command: &mut assert_cmd::Command, code: i32) -> (String, String) {
    let output = command.output().expect("starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}{err}");
    (out, err)
}

#[cfg(target_os = "linux")]
#[test]
fn an_evolution_leaves_its_trials_generations_and_lineage() {
    let workspace = shipped("evolve_packing");
    let mut command = scripted(&workspace, "evolve_packing");
    let (out, _) = printed(command.args(["--num-flows", "1"]), 0);
    let generations: Vec<&str> = (out.lines())
        .filter(|line| line.starts_with("[GENERATION]"))
        .collect();
    assert_eq!(generations.len(), 3, "{out}");
    for (line, score) in generations.iter().zip(["2.1667", "2.3636", "2.5414"]) {
        assert!(line.contains(&format!("selected_score={score}")), "{line}");
    }

    let folder = workspace.run_folder().join("evolution/flow_00001");
    let json = |name: &str| -> Value {
        let text = fs::read(folder.join(name)).unwrap_or_else(|_| panic!("{name} is there"));
        serde_json::from_slice(&text).expect("JSON")
    };
    let summary = json("summary.json");
    assert_eq!(summary["complete"], true);
    assert_eq!(summary["trials"], 10);
    assert_eq!(summary["outcomes"]["timeout"], 1);
    assert_eq!(summary["generations"].as_array().map(Vec::len), Some(3));
    let best = json(&format!(
        "trials/{:05}.json",
        summary["best_trial"].as_u64().expect("one")
    ));
    assert_eq!(best["outcome"], "ok");
    assert_eq!(best["score"], summary["best_score"]);
    assert!(
        best["code"]
            .as_str()
            .expect("a program")
            .contains("def construct_packing")
    );
    assert!(best["evaluation"]["start_up_ms"].as_f64().expect("a time") > 0.0);
    // Each goes back to the one that was the best before.
    let lineage = summary["lineage"].as_array().expect("a list");
    assert_eq!(lineage[0]["parent"], Value::Null);
    for trial in &lineage[1..4] {
        assert_eq!(trial["parent"], 1);
    }
    let selected: Vec<&Value> = (summary["generations"].as_array().expect("three").iter())
        .map(|generation| &generation["selected"])
        .collect();
    for trial in &lineage[4..7] {
        assert_eq!(&trial["parent"], selected[0]);
    }
    assert_eq!(json("config.json")["template"], "evolve_packing");
    assert!(folder.join("generations/00003.json").is_file());

    let record = workspace.record();
    assert!(record["pool_init_ms"].as_f64().expect("a pool") > 0.0);
    let scores = record["totals"]["scores"].as_array().expect("judged steps");
    assert_eq!(scores[1]["step"], "trial");
    assert_eq!(scores[1]["count"], 9);
    let usage = &record["totals"]["usage"][0];
    assert_eq!(
        (&usage["kind"], &usage["requests"]),
        (&"generate".into(), &10.into())
    );
}

/// A template whose step `root` has these answers, which are evaluated for a second at most.
#[cfg(target_os = "linux")]
fn evaluating(prompt: &str, answers: &[&str]) -> Workspace {
    let workspace = Workspace::new();
    let samples = answers.len();
    workspace.write(
        "templates/programs.toml",
        format!(
            "schema = 1\nname = \"programs\"\n[[step]]\nid = \"root\"\nsamples = {samples}\n\
             prompt = \"{prompt}\"\ntemperature = 0.8\n[[step]]\nid = \"trial\"\n\
             kind = \"evaluate\"\nof = \"root\"\ntask = \"packing\"\ntimeout_ms = 20000\n"
        ),
    );
    let lines = answers.iter().enumerate().map(|(index, answer)| {
        let line = serde_json::json!({"step": "root", "sample": index + 1, "output": answer});
        format!("{line}\n")
    });
    workspace.write("templates/programs.script.jsonl", lines.collect::<String>());
    workspace
}

#[cfg(target_os = "linux")]
#[test]
fn a_run_says_why_programs_failed_and_what_they_ran_on() {
    let workspace = evaluating(
        "Use no_such_numpy and math.",
        &[
            "```python\ndef construct_packing():\n    return x\n```",
            "```python\nimport math\ndef construct_packing():\n\n    return x\n```",
            "```python\ndef construct_packing():\n    raise ValueError('\u{1b}[31mred\\n\u{202e}')\n```",
            "```python\ndef construct_packing():\n    \
             c = [((k % 6 + .5) / 6, (k // 6 + .5) / 6) for k in range(26)]\n    \
             return c, [1 / 12] * 26, 99\n```\nUse it:\n```python\nprint(construct_packing())\n```",
        ],
    );
    let mut command = scripted(&workspace, "programs");
    let (out, err) = printed(command.args(["--num-flows", "1"]), 0);
    let failures: Vec<&str> = (out.lines())
        .filter(|line| line.starts_with("[FAILURES]"))
        .collect();
    let head = "[FAILURES] step=trial failed=3 of=4 outcome=runtime_error";
    let [two, one] = failures[..] else {
        panic!("two reasons: {out}");
    };
    let name = "NameError: name 'x' is not defined (line 2)";
    assert_eq!(two, format!("{head} count=2 first={name:?}"));
    assert!(one.starts_with(&format!("{head} count=1 first=\"ValueError: ")));
    assert!(!out.contains(['\u{1b}', '\u{202e}']), "{out:?}");
    assert!(!err.contains("warning: "), "{err}");

    let record = workspace.record();
    assert_eq!(record["totals"]["scores"][0]["failures"][0]["count"], 2);
    // The program's own sum is not believed.
    let best = record["totals"]["scores"][0]["score"]["max"].as_f64();
    assert!((best.expect("a score") - 26.0 / 12.0).abs() < 1e-9);
    let evaluator = &record["evaluator"];
    assert_eq!(evaluator["sandboxed"], true);
    assert!(evaluator["fixed_addresses"].is_boolean());
    assert!(evaluator["python"].as_str().expect("one").starts_with("3."));
}

#[cfg(target_os = "linux")]
#[test]
fn modules_that_prompts_name_and_python_lacks_are_told() {
    let workspace = evaluating("Use ortools.", &["```python\nimport ortools\n```"]);
    let (_, err) = printed(
        scripted(&workspace, "programs").args(["--num-flows", "1"]),
        0,
    );
    let missing = &workspace.record()["evaluator"]["missing"];
    if missing == &serde_json::json!(["ortools"]) {
        assert!(err.contains("has no ortools: the prompts name it"), "{err}");
        assert!(err.contains("-m pip install ortools`, or name"), "{err}");
    } else {
        assert_eq!(missing, &serde_json::json!([]));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_hang_up_that_was_ignored_at_the_start_stays_ignored() {
    let workspace = evaluating(
        "x",
        &["```python\nimport time\ndef construct_packing(): time.sleep(1)\n```"],
    );
    let flowbench = env!("CARGO_BIN_EXE_flowbench");
    let mut command = std::process::Command::new("sh");
    command
        .arg("-c")
        .arg(format!(
            "trap '' HUP; exec '{flowbench}' run --template programs --mode scripted --num-flows 1"
        ))
        .current_dir(workspace.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(python) = std::env::var_os("FLOWBENCH_TEST_PYTHON") {
        command.env("PYTHON", python);
    }
    let mut run = command.spawn().expect("starts");
    // The handlers are there once the pool has been started.
    let stdout = run.stdout.take().expect("piped");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stdout));
    let started = lines.find(|line| {
        line.as_ref()
            .is_ok_and(|line| line.contains("engine_init_ms"))
    });
    assert!(started.is_some());
    let pid = run.id().to_string();
    let sent = std::process::Command::new("kill")
        .args(["-HUP", &pid])
        .status();
    assert!(sent.expect("sent").success());
    assert!(lines.any(|line| line.is_ok_and(|line| line.contains("[EVALUATE]"))));
    lines.for_each(drop);
    assert!(run.wait().expect("ends").success());
    assert_eq!(workspace.record()["status"], "complete");
}

#[cfg(target_os = "linux")]
#[test]
fn an_evolution_is_reported_and_what_made_it_long_is_found() {
    let workspace = shipped("evolve_packing");
    let mut command = scripted(&workspace, "evolve_packing");
    printed(command.args(["--num-flows", "2"]), 0);
    let (path, _) = printed(&mut workspace.flowbench(&["report"]), 0);
    let page = fs::read_to_string(workspace.file(path.trim())).expect("written");
    for part in [
        "Evolution of flow 1",
        "Evolution of flow 2",
        "aria-label=\"Lineage of 10 trials\"",
        "<title>trial 10, generation 3: score 2.541, from trial 6</title>",
        "trial 5, generation 2: timeout, from trial 2",
        "<h2>Judged steps</h2>",
        "10: 2.541",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("NaN"));
    let (text, _) = printed(&mut workspace.flowbench(&["report", "-o", "md"]), 0);
    // One of its programs needs numpy.
    assert!(text.contains("1 bad_output | 2.541 |"), "{text}");
    assert!(text.contains("### Judged steps"), "{text}");
    // Its script has a program that never ends, and a limit of two seconds.
    let (text, _) = printed(&mut workspace.flowbench(&["diagnose", "-o", "json"]), 0);
    let diagnosis: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        diagnosis["causes"][0]["id"], "evaluation_timeouts",
        "{text}"
    );
    // A summary that is no summary is told.
    let summary = workspace
        .run_folder()
        .join("evolution/flow_00001/summary.json");
    fs::write(&summary, "{").expect("writable");
    let (_, err) = printed(&mut workspace.flowbench(&["report"]), 2);
    assert!(
        err.contains("summary.json") && err.contains("hint: "),
        "{err}"
    );
}

/// The trace's events of a run, checked for nesting: (category, start, end, lane).
fn trace(workspace: &Workspace) -> Vec<(String, f64, f64, u64)> {
    let text = fs::read(workspace.run_folder().join("trace.json")).expect("was written");
    let trace: Value = serde_json::from_slice(&text).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("a list");
    let complete: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
    assert_nested(&complete);
    let event = |event: &&Value| {
        let number = |key: &str| event[key].as_f64().expect("a number");
        let category = event["cat"].as_str().expect("a name").to_owned();
        let lane = event["tid"].as_u64().expect("a lane");
        (category, number("ts"), number("ts") + number("dur"), lane)
    };
    complete.iter().map(event).collect()
}

#[cfg(target_os = "linux")]
#[test]
fn a_profile_has_the_evaluations_under_their_steps() {
    let workspace = shipped("evolve_packing");
    let mut command = scripted(&workspace, "evolve_packing");
    printed(command.args(["--num-flows", "1", "--profile"]), 0);
    let steps = workspace.steps();
    let run = (steps.iter()).filter(|step| !step["evaluation"].is_null());
    let run = run.count();
    assert!(run >= 9, "{run}");

    let events = trace(&workspace);
    let of =
        |category: &str| -> Vec<_> { events.iter().filter(|event| event.0 == category).collect() };
    let steps = of("step");
    for phase in ["evaluate.start_up", "evaluate.run", "evaluate.validate"] {
        let phases = of(phase);
        assert_eq!(phases.len(), run, "{phase}");
        for (_, start, end, lane) in phases {
            // To a nanosecond: times are in microseconds with three digits.
            let within = |step: &&(String, f64, f64, u64)| {
                step.3 == *lane && step.1 <= start + 0.002 && end - 0.002 <= step.2
            };
            assert!(
                steps.iter().copied().any(|step| within(&step)),
                "{phase} {start}"
            );
        }
    }
    let profile = &workspace.record()["profile"];
    let row = |list: &str, name: &str| -> Value {
        let rows = profile[list].as_array().expect("a list");
        let row = rows.iter().find(|row| row["name"] == name);
        row.unwrap_or_else(|| panic!("no {name} in {list}")).clone()
    };
    assert_eq!(row("rows", "evaluate.run")["ncall"], run);
    assert_eq!(row("stages", "evaluate.run")["calls"], run);
    assert!(row("stages", "evaluate.run")["union_s"].as_f64() > Some(0.0));
}

#[cfg(target_os = "linux")]
#[test]
fn a_profile_has_the_checks_that_the_library_is_asked_for() {
    let workspace = shipped("math_judge");
    let mut command = scripted(&workspace, "math_judge");
    printed(command.args(["--num-flows", "60", "--profile"]), 0);
    let asked = workspace.record()["totals"]["verification"]["by_library"].as_u64();
    let events = trace(&workspace);
    let checks = events.iter().filter(|event| event.0 == "verify").count();
    assert_eq!(Some(checks as u64), asked);
    if std::env::var_os("FLOWBENCH_TEST_PYTHON").is_some() {
        assert!(
            checks > 0,
            "math-verify is there, and some answers are for it"
        );
    }
    assert!(events.iter().all(|event| !event.0.starts_with("evaluate.")));
}

#[cfg(target_os = "linux")]
#[test]
fn without_a_python_an_evolution_is_refused_before_anything_is_loaded() {
    let workspace = shipped("evolve_packing");
    let mut command = scripted(&workspace, "evolve_packing");
    let (_, err) = printed(command.env("PYTHON", "/nowhere/python3"), 3);
    assert!(
        err.contains("/nowhere/python3") && err.contains("hint: "),
        "{err}"
    );
    assert!(
        !workspace.file("results").exists()
            || fs::read_dir(workspace.file("results"))
                .expect("a folder")
                .next()
                .is_none()
    );
}

#[cfg(target_os = "linux")]
#[test]
fn an_interrupt_while_the_pool_starts_keeps_the_engine_from_being_loaded() {
    let workspace = shipped("evolve_packing");
    let python = std::env::var("FLOWBENCH_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let [begun, go] = ["begun", "go"].map(|name| workspace.file(name));
    let script = format!(
        "#!/bin/sh\n: >'{}'\nuntil [ -e '{}' ]; do sleep 0.01; done\nexec '{python}' \"$@\"\n",
        begun.display(),
        go.display()
    );
    workspace.write("python", script);
    let wrapper = workspace.file("python");
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).expect("writable");
    let child = workspace
        .child(&[
            ("TEMPLATE", "evolve_packing"),
            ("PYTHON", &wrapper.display().to_string()),
            ("PATH", &std::env::var("PATH").unwrap_or_default()),
        ])
        .spawn()
        .expect("starts");
    while !begun.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    kill_process(Pid::from_child(&child), Signal::INT).expect("is there");
    fs::write(go, "").expect("writable");
    let output = child.wait_with_output().expect("ends");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(106), "{err}");
    let told = "interrupted before the engine was started";
    assert!(err.contains(told), "{err}");
    let kept = fs::read_dir(workspace.file("results")).expect("a folder");
    assert_eq!(kept.count(), 0);
}

#[test]
fn answers_are_verified_and_the_rest_is_judged() {
    let workspace = shipped("math_judge");
    let mut command = scripted(&workspace, "math_judge");
    let (out, _) = printed(command.args(["--num-flows", "152"]), 0);
    assert!(
        out.contains("[SCORE] step=check kind=verify count=152 "),
        "{out}"
    );
    let record = workspace.record();
    let checked = &record["totals"]["scores"][0]["outcomes"];
    let count = |outcome: &str| checked[outcome].as_u64().unwrap_or(0);
    assert_eq!(count("no_answer"), 8);
    assert_eq!(
        count("equal") + count("unequal") + count("undecided") + count("no_answer"),
        152
    );
    // Without the library more is left to the judge, and the judge is asked twice about each.
    let judged = &record["totals"]["scores"][1]["count"];
    assert_eq!(judged.as_u64().unwrap_or(0), 2 * count("undecided"));
    let rewards = record["totals"]["reward"]["count"]
        .as_u64()
        .expect("rewards");
    assert!((140..=152).contains(&rewards), "{rewards}");
    assert!(out.contains("[REWARD] flows=152 "), "{out}");
    let verification = &record["totals"]["verification"];
    let asked = ["in_process", "by_library", "cached"].map(|key| verification[key].as_u64());
    assert_eq!(asked.into_iter().flatten().sum::<u64>(), 144);
}

#[test]
fn an_answer_that_cannot_be_read_does_not_raise_the_mean() {
    let row = |number: usize| {
        format!("{{\"id\": \"r{number}\", \"problem\": \"{number}?\", \"answer\": \"{number}\"}}\n")
    };
    let template = "schema = 1\nname = \"sums\"\nsuite = \"sums.suite.jsonl\"\n\
        [[step]]\nid = \"answer\"\nprompt = \"{{ row.problem }}\"\n\
        [[step]]\nid = \"check\"\nkind = \"verify\"\nof = \"answer\"\n\
        question = \"{{ row.problem }}\"\nexpected = \"{{ row.answer }}\"\n";
    let says = |others: &str| {
        let answer = |number: usize| {
            let said = if number == 1 { "1" } else { others };
            let output = serde_json::to_string(&format!("\\boxed{{{said}}}")).expect("JSON");
            format!("{{\"row\": \"r{number}\", \"step\": \"answer\", \"output\": {output}}}\n")
        };
        (1..=4).map(answer).collect::<String>()
    };
    let nines = "9".repeat(2001);
    for (others, judged, mean, undecided) in [
        ("99", 4, "0.2500", 0),
        (nines.as_str(), 4, "0.2500", 0),
        (r"9^{9^{9^{9}}}", 4, "0.2500", 0),
        (r"n \equiv 1 \pmod 9", 1, "1.0000", 3),
    ] {
        let workspace = Workspace::new();
        let rows: String = (1..=4).map(row).collect();
        workspace.write("templates/sums.toml", template);
        workspace.write("templates/sums.suite.jsonl", rows);
        workspace.write("templates/sums.script.jsonl", says(others));
        let mut command = scripted(&workspace, "sums");
        let (out, _) = printed(command.args(["--num-flows", "4"]), 0);
        let line = out
            .lines()
            .find(|line| line.starts_with("[REWARD]"))
            .expect(&out);
        assert!(
            line.starts_with(&format!("[REWARD] flows=4 judged={judged} mean={mean} ")),
            "{line}"
        );
        assert!(
            line.ends_with(&format!(" undecided={undecided} mean_reward=0.2500")),
            "{line}"
        );
        let totals = &workspace.record()["totals"];
        assert_eq!(totals["undecided"], undecided);
        assert_eq!(totals["mean_reward"], 0.25);
    }
}

const ROWS: usize = 12;

/// Rows with an answer each, which the script knows; every fourth is answered wrongly.
fn rows() -> (Workspace, String) {
    let workspace = shipped("math_judge");
    let row = |number: usize| {
        format!(
            "{{\"id\": \"r{number}\", \"problem\": \"{number}?\", \"answer\": \"{number}\", \"n\": {number}.50}}"
        )
    };
    let input: String = (1..=ROWS).map(|number| row(number) + "\n").collect();
    let answer = |number: usize| {
        let said = if number.is_multiple_of(4) { 0 } else { number };
        format!(
            "{{\"row\": \"r{number}\", \"step\": \"answer\", \"output\": \"It is \\\\boxed{{{said}}}\", \"latency_ms\": 4}}\n"
        )
    };
    let script: String = (1..=ROWS).map(answer).collect();
    workspace.write("rows.jsonl", &input);
    workspace.write("templates/math_judge.script.jsonl", script);
    (workspace, input)
}

const ROLLOUTS: [&str; 8] = [
    "--input",
    "rows.jsonl",
    "--output",
    "out.jsonl",
    "--repeats",
    "2",
    "--concurrency",
    "3",
];

#[test]
fn rows_come_back_with_what_became_of_them() {
    let (workspace, input) = rows();
    let (out, _) = printed(scripted(&workspace, "math_judge").args(ROLLOUTS), 0);
    assert!(
        out.contains("[REWARD] rows=12 repeats=2 done=24 failed=0 unjudged=0 mean=0.7500 min=0.0000 median=1.0000 max=1.0000 std=0.4423 mean_reward=0.7500"),
        "{out}"
    );
    let output = workspace.read("out.jsonl");
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines.len(), 2 * ROWS);
    for (number, row) in input.lines().enumerate() {
        for repeat in 1..=2 {
            let line = lines[2 * number + repeat - 1];
            assert!(line.starts_with(row.trim_end_matches('}')), "{line}");
            let line: Value = serde_json::from_str(line).expect("JSON");
            assert_eq!(line["rollout"]["row"], number + 1);
            assert_eq!(line["rollout"]["repeat"], repeat);
            let right = !(number + 1).is_multiple_of(4);
            assert_eq!(line["reward"], if right { 1.0 } else { 0.0 });
            assert_eq!(line["outcome"], if right { "equal" } else { "unequal" });
            assert_eq!(line["usage"]["completion_tokens"], 3);
            assert_eq!(line["error"], Value::Null);
        }
    }
    assert_eq!(workspace.record()["rollouts"]["done"], 24);

    // Once more: nothing is left to do, and nothing is touched.
    let mut again = scripted(&workspace, "math_judge");
    let (out, _) = printed(again.args(ROLLOUTS).arg("--resume"), 0);
    assert!(
        out.contains("done=24") && !out.contains("[TARGET]"),
        "{out}"
    );
    assert_eq!(workspace.read("out.jsonl"), output);
    let (_, err) = printed(scripted(&workspace, "math_judge").args(ROLLOUTS), 2);
    assert!(err.contains("out.jsonl is there already"), "{err}");
    let mut other = scripted(&workspace, "math_judge");
    let (_, err) = printed(other.args(ROLLOUTS).args(["--resume", "--limit", "3"]), 2);
    assert!(err.contains("of another input"), "{err}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, ..ProptestConfig::default() })]

    /// Killed at any moment, and any number of times: in the end each row is there once, and the file
    /// is that of a run that nobody killed.
    #[test]
    fn rollouts_survive_being_killed(lines in prop::collection::vec(0usize..24, 1..4)) {
        let (undisturbed, _) = rows();
        printed(scripted(&undisturbed, "math_judge").args(ROLLOUTS), 0);
        let (workspace, _) = rows();
        for least in lines {
            let mut child = workspace
                .child(&[("TEMPLATE", "math_judge"), ("PATH", "/usr/bin:/bin")])
                .args(ROLLOUTS)
                .arg("--resume")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("starts");
            // With so many lines written, or somewhere before, where it has ended by then.
            let written = || {
                let text = fs::read(workspace.file("out.jsonl")).unwrap_or_default();
                text.iter().filter(|byte| **byte == b'\n').count()
            };
            while written() < least && child.try_wait().expect("ours").is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            child.kill().expect("is there");
            child.wait().expect("ends");
        }
        printed(scripted(&workspace, "math_judge").args(ROLLOUTS).arg("--resume"), 0);
        prop_assert_eq!(workspace.read("out.jsonl"), undisturbed.read("out.jsonl"));
    }
}

#[test]
fn a_limit_ends_the_run_in_order() {
    let prices = ["--price-prompt", "1", "--price-decode", "1"];
    let limits: [&[&str]; 3] = [
        &["--max-tokens-total", "100"],
        &["--max-cost", "0.0001"],
        &["--deadline", "2s"],
    ];
    for limit in limits {
        let workspace = Workspace::new();
        // The first flow takes no time, and the second is in flight as long as it may: how fast the
        // machine is decides nothing.
        workspace.write(
            "templates/chain.script.jsonl",
            match limit[0] {
                "--deadline" => {
                    "{\"flow\": 1, \"output\": \"a b\"}\n{\"output\": \"a b\", \"latency_ms\": 80000000}\n"
                }
                _ => "{\"output\": \"a b\"}\n",
            },
        );
        let mut command = workspace.scripted();
        let (out, err) = printed(command.args(limit).args(prices), 106);
        assert!(err.contains(&format!("({})", limit[0])), "{err}");
        assert!(out.contains("(incomplete: "), "{out}");
        let record = workspace.record();
        assert_eq!(record["status"], "incomplete");
        let steps = workspace.steps().len();
        assert_eq!(record["totals"]["steps_done"], steps);
        assert!((1..75).contains(&steps), "{steps}");
        if limit[0] == "--deadline" {
            assert_eq!(steps, 3);
        }
        let usage = &record["totals"]["usage"][0];
        let tokens = ["prompt_tokens", "decode_tokens"].map(|key| usage[key].as_f64());
        let tokens: f64 = tokens.into_iter().flatten().sum();
        let cost = usage["cost"].as_f64().expect("priced");
        assert!((cost - tokens / 1e6).abs() < 1e-12, "{cost} {tokens}");
    }
}

#[test]
fn a_recording_can_be_played_and_pinned() {
    let workspace = Workspace::new();
    printed(
        workspace
            .scripted()
            .args(["--num-flows", "3", "--record", "base.jsonl"]),
        0,
    );
    let recording = workspace.read("base.jsonl");
    assert_eq!(recording.lines().count(), 9);
    fs::remove_dir_all(workspace.file("results")).expect("there");

    // Another engine, which says something else: later steps see the recorded texts.
    workspace.write("other.jsonl", "{\"output\": \"something else entirely\"}\n");
    let arguments = [
        "--num-flows",
        "3",
        "--script",
        "other.jsonl",
        "--pin-outputs",
        "base.jsonl",
    ];
    printed(workspace.scripted().args(arguments), 0);
    let pinned: BTreeMap<String, Value> = (workspace.steps().into_iter())
        .map(|step| (format!("{}/{}", step["flow"], step["step"]), step))
        .collect();
    fs::remove_dir_all(workspace.file("results")).expect("there");
    printed(workspace.scripted().args(["--num-flows", "3"]), 0);
    for step in workspace.steps() {
        let of_pinned = &pinned[&format!("{}/{}", step["flow"], step["step"])];
        assert_eq!(step["prompt_tokens"], of_pinned["prompt_tokens"]);
        assert_eq!(of_pinned["output"], "something else entirely");
        assert_eq!(of_pinned["pinned"], true);
        assert_eq!(step.get("pinned"), None);
    }
    fs::remove_dir_all(workspace.file("results")).expect("there");
    let (_, err) = printed(
        workspace
            .scripted()
            .args(["--num-flows", "4", "--pin-outputs", "base.jsonl"]),
        100,
    );
    assert!(
        err.contains("flow 4, step planner: no recorded output"),
        "{err}"
    );
}

#[test]
fn settings_that_lack_one_another_are_refused() {
    let cases: [(&[&str], &str); 7] = [
        (&["--resume"], "--resume is given without --output"),
        (&["--repeats", "2"], "--repeats is given without --input"),
        (&["--max-cost", "1"], "--max-cost is given without prices"),
        (
            &["--price-prompt", "1"],
            "only some of the prices are given",
        ),
        (
            &["--set", "max_generations=2"],
            "has no parameter `max_generations`",
        ),
        (&["--deadline", "soon"], "expected a time such as 90"),
        (&["--input", "none.jsonl"], "none.jsonl"),
    ];
    for (arguments, expected) in cases {
        let workspace = Workspace::new();
        let (_, err) = printed(workspace.scripted().args(arguments), 2);
        assert!(err.contains(expected), "{err}");
        assert!(err.contains("error: "), "{err}");
    }
}
