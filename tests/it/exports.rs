//! `flowbench export`, end to end: each format is read by a program that it is for
//! (`scripts/check-exports.py`).

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::common::{Printed, Workspace, run};

const FORMATS: [&str; 8] = [
    "junit",
    "github-benchmark",
    "github-benchmark-bigger",
    "bencher",
    "csv",
    "openmetrics",
    "otlp",
    "github-summary",
];

/// What `scripts/check-exports.py` imports.
const PACKAGES: &str = "import duckdb, junitparser, jsonschema, pandas, prometheus_client\n\
                        from lxml import etree\n\
                        from opentelemetry.proto.trace.v1 import trace_pb2\n\
                        from opentelemetry.semconv._incubating.attributes import gen_ai_attributes";

/// A Python with the consumers' packages. If it was named for the tests, it must have them.
fn consumers() -> Option<PathBuf> {
    const NAME: &str = "FLOWBENCH_TEST_PYTHON";
    let named = std::env::var_os(NAME);
    let python = PathBuf::from(named.clone().unwrap_or_else(|| "python3".into()));
    let tried = Command::new(&python).args(["-c", PACKAGES]).output();
    let why = match tried {
        Ok(output) if output.status.success() => return Some(python),
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    let required = named.is_some() && std::env::var_os("CI").is_some();
    assert!(
        !required,
        "{NAME} lacks packages of scripts/check-exports.py: {why}"
    );
    println!(
        "skipped: {} lacks packages of scripts/check-exports.py: {why}",
        python.display()
    );
    None
}

/// A workspace with a run of six flows.
fn workspace_with_a_run() -> Workspace {
    let workspace = Workspace::new();
    workspace.write(
        "templates/chain.script.jsonl",
        "{\"output\": \"one two\\nthree, \\\"four\\\"\", \"queue_ms\": 1, \"ttft_ms\": 2, \"latency_ms\": 4}\n",
    );
    let printed = run(workspace.scripted().env("NUM_FLOWS", "6"));
    assert_eq!(printed.code, 0, "{}", printed.err);
    workspace
}

fn export(workspace: &Workspace, arguments: &[&str]) -> Printed {
    let arguments = [&["export"], arguments].concat();
    run(&mut workspace.flowbench(&arguments))
}

/// Exports the run in all formats, and has their consumers compare them with it.
fn check(workspace: &Workspace, formats: &[&str]) {
    let Some(python) = consumers() else { return };
    let folder = workspace.run_folder();
    std::fs::create_dir_all(workspace.file("exports")).expect("writable");
    for format in formats {
        let suffix = if *format == "csv" { ".csv" } else { "" };
        let printed = export(
            workspace,
            &["-o", format, "--to", &format!("exports/{format}{suffix}")],
        );
        assert_eq!(
            (printed.code, printed.out.as_str()),
            (0, ""),
            "{format}: {}",
            printed.err
        );
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/check-exports.py");
    let output = Command::new(python)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(script)
        .arg(folder)
        .arg(workspace.file("exports"))
        .output()
        .expect("starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    assert_eq!(text(&output.stdout).lines().count(), formats.len());
}

/// Changes the files of the run.
fn edit(workspace: &Workspace, change: impl FnOnce(&mut Value, &mut Vec<Value>)) {
    let (mut record, mut steps) = (workspace.record(), workspace.steps());
    change(&mut record, &mut steps);
    let folder = workspace.run_folder();
    std::fs::write(folder.join("run.json"), record.to_string()).expect("writable");
    let lines: String = steps.iter().map(|step| format!("{step}\n")).collect();
    std::fs::write(folder.join("steps.jsonl"), lines).expect("writable");
}

/// All control characters, and what XML, CSV, JSON and Markdown give a meaning to.
fn hostile(number: usize) -> String {
    let controls: String = (0u8..=0x9f).map(char::from).collect();
    let texts = [
        controls.as_str(),
        "a\",\"b\r\nc\r,\n\"",
        "]]>&amp;<![CDATA[\u{fffe}\u{ffff}\u{202e}",
        "\\n\\\"{}=#\u{2028}🧪",
        "NA",
        "'007,",
    ];
    format!("{number}{}", texts[number % texts.len()])
}

#[test]
fn consumers_read_a_run() {
    check(&workspace_with_a_run(), &FORMATS);
}

#[test]
fn consumers_read_whatever_the_texts_are() {
    let workspace = workspace_with_a_run();
    edit(&workspace, |record, steps| {
        record["expansion"]["template"] = json!(hostile(1));
        record["engine"]["model"] = json!(hostile(3));
        for (number, flow) in record["workflows"]
            .as_array_mut()
            .expect("flows")
            .iter_mut()
            .enumerate()
        {
            flow["row"] = json!(hostile(number));
            if number % 2 == 0 {
                flow["error"] = json!(hostile(number + 1));
            }
        }
        record["status"] = json!("failed");
        record["totals"]["workflows_done"] = json!(3);
        record["totals"]["workflows_failed"] = json!(3);
        for (number, step) in steps.iter_mut().enumerate() {
            step["row"] = json!(hostile(
                step["flow"].as_u64().expect("a number") as usize - 1
            ));
            step["output"] = json!(hostile(number));
            step["detail"] = json!(hostile(number + 2));
            step["outcome"] = json!("equal");
            step["score"] = json!(number as f64 / 7.0);
        }
    });
    check(&workspace, &FORMATS);
}

#[test]
fn two_modes_and_several_samples_have_names_of_their_own() {
    let workspace = workspace_with_a_run();
    edit(&workspace, |record, steps| {
        let flows = record["workflows"].as_array_mut().expect("flows");
        for flow in flows.iter_mut() {
            flow["round"] = json!(1);
            flow["mode"] = json!("standalone");
        }
        let again: Vec<Value> = flows.iter().cloned().map(in_reuse).collect();
        flows.extend(again);
        record["totals"]["workflow_ms"] = json!(null);
        record["totals"]["workflows_done"] = json!(flows_of(record));
        for step in steps.iter_mut() {
            step["round"] = json!(1);
            step["mode"] = json!("standalone");
            step["sample"] = json!(1);
        }
        let mut again: Vec<Value> = steps.iter().cloned().map(in_reuse).collect();
        for step in &mut again {
            step["sample"] = json!(2);
        }
        let both: Vec<Value> = again
            .iter()
            .cloned()
            .map(|mut step| {
                step["sample"] = json!(1);
                step
            })
            .collect();
        steps.extend(again);
        steps.extend(both);
    });
    check(&workspace, &["junit", "csv", "otlp", "openmetrics"]);
}

fn in_reuse(mut value: Value) -> Value {
    value["mode"] = json!("reuse");
    value
}

fn flows_of(record: &Value) -> usize {
    record["workflows"].as_array().map_or(0, Vec::len)
}

#[test]
fn a_run_that_has_not_ended_has_steps_and_no_figures() {
    let workspace = workspace_with_a_run();
    edit(&workspace, |record, steps| {
        record["status"] = json!("running");
        record["workflows"] = json!([]);
        record["totals"]["workflow_ms"] = json!(null);
        record["totals"]["positions"] = json!([]);
        steps.truncate(2);
    });
    for format in [
        "bencher",
        "openmetrics",
        "github-benchmark",
        "github-benchmark-bigger",
    ] {
        let printed = export(&workspace, &["-o", format]);
        assert_eq!((printed.code, printed.out.as_str()), (2, ""), "{format}");
        assert!(
            printed.err.contains("has not ended, or was killed"),
            "{}",
            printed.err
        );
    }
    let printed = export(&workspace, &["-o", "csv"]);
    assert_eq!((printed.code, printed.out.lines().count() > 3), (0, true));
    assert!(printed.err.starts_with("warning: run 2"), "{}", printed.err);
    check(&workspace, &["junit", "csv", "otlp", "github-summary"]);
}

#[test]
fn a_run_without_workflows_is_no_success() {
    let workspace = workspace_with_a_run();
    edit(&workspace, |record, steps| {
        record["workflows"] = json!([]);
        record["totals"] = json!({"workflows_done": 0, "workflows_failed": 0, "steps_done": 0,
            "prompt_tokens": 0, "prefill_tokens": 0, "reused_tokens": 0, "decode_tokens": 0});
        record["status"] = json!("incomplete");
        record["error"] = json!("interrupted");
        steps.clear();
    });
    for format in ["bencher", "github-benchmark"] {
        let printed = export(&workspace, &["-o", format]);
        assert_eq!((printed.code, printed.out.as_str()), (4, ""), "{format}");
        assert!(
            printed.err.contains("no workflow ended well\nhint: "),
            "{}",
            printed.err
        );
    }
    let junit = export(&workspace, &["-o", "junit"]).out;
    assert!(
        junit.contains("tests=\"1\" failures=\"0\" errors=\"1\""),
        "{junit}"
    );
    assert!(junit.contains("message=\"interrupted\""), "{junit}");
    check(&workspace, &["junit", "otlp"]);
}

#[test]
fn what_cannot_be_read_or_written_is_said() {
    let workspace = Workspace::new();
    let printed = export(&workspace, &["-o", "csv"]);
    assert_eq!(printed.code, 2);
    assert!(
        printed.err.contains("hint: run something first"),
        "{}",
        printed.err
    );

    let workspace = workspace_with_a_run();
    let record = workspace.run_folder().join("run.json");
    let before = std::fs::read(&record).expect("readable");
    for (to, code, message) in [
        ("no/such/folder/x", 110, "hint: let --to name a file"),
        (".", 2, "is no ordinary file"),
        (
            record.to_str().expect("UTF-8"),
            2,
            "which is part of the run",
        ),
    ] {
        let printed = export(&workspace, &["-o", "csv", "--to", to]);
        assert_eq!(printed.code, code, "{to}: {}", printed.err);
        assert!(printed.err.contains(message), "{to}: {}", printed.err);
    }
    assert_eq!(std::fs::read(&record).expect("readable"), before);
    let printed = export(&workspace, &["-o", "yaml"]);
    assert_eq!(printed.code, 2);
    assert_eq!(
        export(&workspace, &[]).code,
        2,
        "there is no default format"
    );
}

#[test]
fn a_file_is_replaced_and_stdout_has_the_same() {
    let workspace = workspace_with_a_run();
    workspace.write("x.csv", "old");
    let arguments = ["-o", "csv", "--to", "x.csv"];
    let printed = export(&workspace, &arguments);
    assert_eq!((printed.code, printed.out.as_str()), (0, ""));
    let shown = export(&workspace, &["-o", "csv"]).out;
    assert_eq!(workspace.read("x.csv"), shown);
    assert_eq!(export(&workspace, &["-o", "csv", "--to", "-"]).out, shown);
}

#[test]
fn the_summary_is_appended_within_the_limit() {
    let workspace = workspace_with_a_run();
    let summary = |workspace: &Workspace, to: &[&str]| {
        let arguments = [&["export", "-o", "github-summary"], to].concat();
        run(workspace
            .flowbench(&arguments)
            .env("GITHUB_STEP_SUMMARY", workspace.file("summary.md")))
    };
    let shown = summary(&workspace, &["--to", "-"]).out;
    assert!(shown.starts_with("## 2"), "{shown}");
    assert!(!workspace.file("summary.md").exists());

    workspace.write("summary.md", "# Nightly\n");
    let printed = summary(&workspace, &[]);
    assert_eq!(
        (printed.code, printed.out.as_str()),
        (0, ""),
        "{}",
        printed.err
    );
    assert_eq!(workspace.read("summary.md"), format!("# Nightly\n{shown}"));

    // Room for a part of it.
    const LIMIT: usize = 1 << 20;
    workspace.write("summary.md", "x".repeat(LIMIT - 900));
    assert_eq!(summary(&workspace, &[]).code, 0);
    let text = workspace.read("summary.md");
    assert!(
        text.len() <= LIMIT && text.contains("**Cut at GitHub's limit"),
        "{}",
        text.len()
    );
    // And none.
    workspace.write("summary.md", "x".repeat(LIMIT));
    let printed = summary(&workspace, &[]);
    assert_eq!(printed.code, 110);
    assert!(
        printed.err.contains("hint: export in a step of its own"),
        "{}",
        printed.err
    );
    assert_eq!(workspace.read("summary.md").len(), LIMIT);
}
