//! `flowbench diagnose` and `flowbench report`, end to end, on recorded answers.

use crate::common::{Workspace, run};

fn workspace_with_a_run() -> Workspace {
    let workspace = Workspace::new();
    workspace.write(
        "templates/chain.script.jsonl",
        "{\"output\": \"one two three\", \"queue_ms\": 1, \"ttft_ms\": 2, \"latency_ms\": 4}\n",
    );
    let printed = run(workspace.scripted().env("NUM_FLOWS", "6"));
    assert_eq!(printed.code, 0, "{}", printed.err);
    workspace
}

#[test]
fn the_latest_run_a_folder_and_a_record_are_the_same_run() {
    let workspace = workspace_with_a_run();
    let folder = workspace.run_folder();
    let record = folder.join("run.json");
    let texts: Vec<String> = [None, Some(&folder), Some(&record)]
        .into_iter()
        .map(|path| {
            let mut command = workspace.flowbench(&["diagnose"]);
            let printed = run(path
                .into_iter()
                .fold(&mut command, |command, path| command.arg(path)));
            assert_eq!(printed.code, 0, "{}", printed.err);
            printed.out
        })
        .collect();
    assert!(texts[0].starts_with("# Diagnosis of 2"), "{}", texts[0]);
    assert!(texts.iter().all(|text| *text == texts[0]));
}

#[test]
fn a_diagnosis_for_programs() {
    let workspace = workspace_with_a_run();
    // The times of the script, exactly: on a busy machine, first and last token may come at once.
    let mut lines = String::new();
    for mut step in workspace.steps() {
        for (name, ms) in [("queue_ms", 1.0), ("ttft_ms", 2.0), ("latency_ms", 4.0)] {
            step[name] = ms.into();
        }
        lines.push_str(&format!("{step}\n"));
    }
    std::fs::write(workspace.run_folder().join("steps.jsonl"), lines).expect("writable");
    let printed = run(&mut workspace.flowbench(&["diagnose", "-o", "json"]));
    let diagnosis: serde_json::Value = serde_json::from_str(&printed.out).expect("JSON");
    assert_eq!(diagnosis["source"], "records");
    let stages = diagnosis["stages"].as_array().expect("stages");
    let calls = |name: &str| {
        let stage = stages.iter().find(|stage| stage["stage"] == name);
        stage.map_or(serde_json::Value::Null, |stage| stage["calls"].clone())
    };
    assert_eq!(calls("decode"), 18);
    assert_eq!(calls("queue_wait"), 18);
}

#[test]
fn an_engine_for_each_workflow_is_counted() {
    let workspace = Workspace::new();
    run(workspace
        .scripted()
        .env("NUM_FLOWS", "3")
        .arg("--engine-per-workflow"));
    let printed = run(&mut workspace.flowbench(&["diagnose", "-o", "json"]));
    let diagnosis: serde_json::Value = serde_json::from_str(&printed.out).expect("JSON");
    let stages = diagnosis["stages"].as_array().expect("stages");
    let init = stages.iter().find(|stage| stage["stage"] == "engine_init");
    assert_eq!(init.expect("there")["calls"], 3);
}

#[test]
fn a_page_and_a_summary() {
    let workspace = workspace_with_a_run();
    let printed = run(&mut workspace.flowbench(&["report"]));
    assert_eq!(printed.code, 0, "{}", printed.err);
    let page = std::fs::read_to_string(workspace.file(printed.out.trim())).expect("written");
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    let summary = run(&mut workspace.flowbench(&["report", "-o", "md"]));
    assert!(
        summary.out.contains("### Where the time went"),
        "{}",
        summary.out
    );
}

#[test]
fn runs_that_are_not_there_or_not_runs() {
    let workspace = Workspace::new();
    for command in ["diagnose", "report"] {
        let none = run(&mut workspace.flowbench(&[command]));
        assert_eq!((none.code, none.out.as_str()), (2, ""));
        assert!(
            none.err.contains("hint: run something first"),
            "{}",
            none.err
        );
        workspace.write("other.json", "{\"schema\": 77}");
        let other = run(&mut workspace.flowbench(&[command, "other.json"]));
        assert!(
            other.err.contains("the record's schema is 77"),
            "{}",
            other.err
        );
        workspace.write("broken.json", "{\"sch");
        let broken = run(&mut workspace.flowbench(&[command, "broken.json"]));
        assert_eq!(broken.code, 2);
        assert!(
            broken.err.contains("not the record of a run"),
            "{}",
            broken.err
        );
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error_of_a_listing() {
    let workspace = workspace_with_a_run();
    for arguments in [
        &["report", "-o", "md"][..],
        &["report"],
        &["diagnose"],
        &["diagnose", "-o", "json"],
        &["doctor"],
        &["expand", "--template", "chain"],
        &["run", "--help"],
        &["--help"],
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_flowbench"))
            .current_dir(workspace.path())
            .args(arguments)
            .stdout(writer)
            .output()
            .expect("starts");
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
