//! Runs that end well and prove little: what is said of them on the terminal, in the record, in the
//! report and in the diagnosis.

use std::time::Duration;

use crate::common::server::{Act, Server, answer, chunk, end, head};
use crate::common::{Printed, Workspace, run};
use serde_json::{Value, json};

/// An answer that is checked.
const CHECKED: &str = r#"schema = 1
name = "checked"
suite = "checked.suite.jsonl"

[[step]]
id = "answer"
prompt = "{{ row.problem }}"
max_tokens = 5

[[step]]
id = "check"
kind = "verify"
of = "answer"
question = "{{ row.problem }}"
expected = "{{ row.answer }}"
"#;

/// Runs a template with one step that is checked on this script, which must end well, and returns the
/// codes of its warnings. All of them are on the terminal and wherever a run is looked at again.
#[track_caller]
fn codes(script: &str, arguments: &[&str]) -> Vec<String> {
    let workspace = Workspace::new();
    workspace.write("templates/checked.toml", CHECKED);
    let rows = "{\"problem\": \"6 * 7\", \"answer\": \"42\"}\n";
    workspace.write("templates/checked.suite.jsonl", rows);
    workspace.write("rows.jsonl", rows);
    workspace.write("templates/checked.script.jsonl", script);
    let printed = run(workspace
        .scripted()
        .env("TEMPLATE", "checked")
        .env("NUM_FLOWS", "3")
        .env("QUIET", "1")
        .args(arguments));
    told(&workspace, &printed)
}

#[track_caller]
fn told(workspace: &Workspace, printed: &Printed) -> Vec<String> {
    assert_eq!(printed.code, 0, "{}", printed.err);
    let record = workspace.record();
    assert_eq!(record["status"], "complete");
    let none = Vec::new();
    let warnings = record["warnings"].as_array().unwrap_or(&none);
    let diagnosis = run(&mut workspace.flowbench(&["diagnose"])).out;
    let summary = run(&mut workspace.flowbench(&["report", "-o", "md"])).out;
    let page = run(&mut workspace.flowbench(&["report"])).out;
    let page = std::fs::read_to_string(workspace.file(page.trim())).expect("written");
    let mut codes = Vec::new();
    for warning in warnings {
        let text = warning["text"].as_str().expect("a text");
        let line = format!(
            "warning: {text} ({})",
            warning["evidence"].as_str().expect("evidence")
        );
        assert!(printed.err.contains(&line), "{line}: {}", printed.err);
        for shown in [&diagnosis, &summary, &page] {
            // The apostrophe is written otherwise in HTML.
            let begin = text.split('\'').next().expect("a first part");
            assert!(shown.contains(begin), "{begin}: {shown}");
        }
        let code = warning["code"].as_str().expect("a code");
        // Of the machine that the tests run on.
        if !matches!(code, "busy_machine" | "tainted") {
            codes.push(code.to_owned());
        }
    }
    assert!(
        !summary.contains("&#") && !summary.contains("&lt;"),
        "{summary}"
    );
    codes
}

#[test]
fn a_sound_run_is_not_warned_of() {
    let codes = codes("{\"output\": \"It is \\\\boxed{42}\"}\n", &[]);
    assert_eq!(codes, [""; 0]);
}

#[test]
fn empty_answers() {
    assert_eq!(codes("{\"output\": \"\"}\n", &[]), ["no_tokens"]);
    let one = "{\"output\": \"\\\\boxed{42}\"}\n{\"flow\": 2, \"output\": \" \"}\n";
    assert_eq!(codes(one, &[]), ["answers_empty"]);
}

#[test]
fn answers_that_end_within_their_thoughts() {
    let script = "{\"output\": \"<think> Six by seven, that is\"}\n";
    assert_eq!(codes(script, &[]), ["thoughts_cut", "answers_cut"]);
    let template = Workspace::new();
    template.write("templates/chain.script.jsonl", script);
    // Nobody judges these: that they are cut is the plan.
    let printed = run(&mut template.scripted());
    assert_eq!(told(&template, &printed), ["thoughts_cut"]);
}

#[test]
fn judged_answers_that_were_cut() {
    let script = "{\"output\": \"one two three four five six seven\"}\n";
    assert_eq!(codes(script, &[]), ["answers_cut"]);
    assert_eq!(codes(script, &["--max-tokens", "99"]), [""; 0]);
    assert_eq!(
        codes(script, &["--ignore-eos"]),
        [""; 0],
        "the limit is the plan"
    );
}

#[test]
fn repeats_of_greedy_answers() {
    let script = "{\"output\": \"\\\\boxed{42}\"}\n";
    let repeats = |count| ["--input", "rows.jsonl", "--repeats", count];
    assert_eq!(codes(script, &repeats("4")), ["identical_repeats"]);
    assert_eq!(codes(script, &repeats("1")), [""; 0]);
}

fn remote(server: &Server) -> (Workspace, Printed) {
    let workspace = Workspace::new();
    let printed = run(workspace.flowbench(&["run"]).envs([
        ("MODE", "remote"),
        ("TEMPLATE", "chain"),
        ("NUM_FLOWS", "1"),
        ("ENDPOINT", &server.endpoint()),
    ]));
    (workspace, printed)
}

/// Words with some time between them, after some prompt of which so many tokens were cached.
fn streamed(cached: usize, pause: Duration) -> Vec<Act> {
    let words = ["one ", "two ", "three "];
    let mut acts = Vec::new();
    let mut seen = 0;
    for act in answer(&words, Some((20, cached, 3))) {
        seen += 1;
        // Before the first word and after it.
        if seen == 3 || seen == 4 {
            acts.push(Act::Wait(pause));
        }
        acts.push(act);
    }
    acts
}

#[test]
fn a_cache_that_was_warm_before() {
    // Long enough that a busy machine still reads the words one by one.
    let pause = Duration::from_millis(150);
    let warm =
        Server::start(move |request| (request.method == "POST").then(|| streamed(16, pause)));
    let (workspace, printed) = remote(&warm);
    assert_eq!(told(&workspace, &printed), ["cache_warm"]);
    let cold = Server::start(move |request| {
        let cached = if request.number == 0 { 0 } else { 16 };
        (request.method == "POST").then(|| streamed(cached, pause))
    });
    let (workspace, printed) = remote(&cold);
    assert_eq!(told(&workspace, &printed), [""; 0]);
}

#[test]
fn answers_in_one_piece() {
    // A proxy holds the answer back, and hands it over at once: in one chunk of HTTP, which is one read.
    let held = Server::start(|request| {
        let choice = |choice: Value| json!({"choices": [choice]});
        let mut events = ["one ", "two ", "three "]
            .map(|word| choice(json!({"delta": {"content": word}})))
            .to_vec();
        events.push(choice(json!({"delta": {}, "finish_reason": "stop"})));
        events.push(json!({"usage": {"prompt_tokens": 20, "completion_tokens": 3}}));
        let stream: String = (events.iter())
            .map(|event| format!("data: {event}\n\n"))
            .collect();
        let wait = Act::Wait(Duration::from_millis(200));
        (request.method == "POST").then(|| vec![wait, head(), chunk(stream.as_bytes()), end()])
    });
    let (workspace, printed) = remote(&held);
    assert_eq!(told(&workspace, &printed), ["one_piece"]);
}

#[test]
fn the_record_says_how_busy_the_machine_was() {
    let workspace = Workspace::new();
    workspace.write(
        "templates/chain.script.jsonl",
        "{\"output\": \"a b\", \"latency_ms\": 100}\n",
    );
    run(workspace.scripted().env("NUM_FLOWS", "1"));
    let environment = &workspace.record()["environment"];
    let hash = environment["hostname_hash"]
        .as_str()
        .expect("a host has a name");
    assert_eq!(hash.len(), 16);
    if cfg!(target_os = "linux") {
        let load = &environment["load"];
        assert!(load["seconds"].as_f64() >= Some(0.2), "{load}");
        assert!(load["processors"].as_u64() >= Some(1), "{load}");
        for share in ["own_share", "others_share", "steal_share"] {
            let share = load[share].as_f64().expect("readable");
            assert!((0.0..=1.0).contains(&share), "{load}");
        }
    }
}
