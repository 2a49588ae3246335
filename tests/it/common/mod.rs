//! What the end-to-end tests share: a folder of their own with templates, fixtures and a script,
//! and the program started in it with nothing of the caller's environment.

pub(crate) mod proxy;
pub(crate) mod server;

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use tempfile::TempDir;

pub(crate) use crate::default_model::test_model as model;

/// A folder laid out as a checkout is, for one test.
pub(crate) struct Workspace {
    folder: TempDir,
}

/// Three chained steps over a fixture of two small files.
pub(crate) const TEMPLATE: &str = r#"schema = 1
name = "chain"
description = "Three chained steps"
suite = "chain.suite.jsonl"
fixture = { dir = "code", include = ["**/*.py"] }
system = """You review code:
{{ fixture.text }}"""

[[step]]
id = "planner"
prompt = "{{ row.task }}"
max_tokens = 12

[[step]]
id = "executor"
needs = ["planner"]
context = "append"
prompt = "Carry out: ${steps.planner.text}"
max_tokens = 12

[[step]]
id = "verifier"
needs = ["executor"]
context = "append"
prompt = "Is it right?"
max_tokens = 12
"#;

pub(crate) const SUITE: &str = r#"{"id": "bounds", "task": "Look for an off-by-one."}
{"id": "naming", "task": "Look at the names."}
{"id": "errors", "task": "Look for swallowed errors."}
"#;

pub(crate) const SCRIPT: &str = r#"{"step": "planner", "output": "Read the loop first."}
{"step": "executor", "output": "The loop ends one too early."}
{"step": "verifier", "output": "CONFIRMED it does."}
"#;

impl Workspace {
    /// A workspace with the template `chain`, its suite, its script and the fixture `code`.
    pub(crate) fn new() -> Self {
        let workspace = Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
        };
        workspace.write("templates/chain.toml", TEMPLATE);
        workspace.write("templates/chain.suite.jsonl", SUITE);
        workspace.write("templates/chain.script.jsonl", SCRIPT);
        workspace.write(
            "fixtures/code/a.py",
            "def a():\n    return '${HOME} {{x}}'\n",
        );
        workspace.write("fixtures/code/b.py", "def b():\n    pass\n");
        workspace
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.file(name);
        fs::create_dir_all(path.parent().expect("a folder above")).expect("writable");
        fs::write(path, text).expect("writable");
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).expect("readable")
    }

    /// The program, started in the workspace, with a cache of its own and no network.
    pub(crate) fn flowbench(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flowbench"));
        command
            .current_dir(self.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path())
            .env("HF_HUB_OFFLINE", "1")
            .args(arguments);
        command
    }

    /// `flowbench run` of the template `chain` on the script.
    pub(crate) fn scripted(&self) -> Command {
        let mut command = self.flowbench(&["run"]);
        command.env("MODE", "scripted").env("TEMPLATE", "chain");
        command
    }

    /// The same as [`Self::scripted`], to be started and watched while it runs.
    pub(crate) fn child(&self, variables: &[(&str, &str)]) -> std::process::Command {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_flowbench"));
        command
            .current_dir(self.path())
            .env_clear()
            .envs([("MODE", "scripted"), ("TEMPLATE", "chain")])
            .envs(variables.iter().copied())
            .arg("run")
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        command
    }

    /// The folders of the runs in `out`, by name.
    pub(crate) fn runs(&self, out: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.file(out)).expect("a run was kept");
        let mut runs: Vec<PathBuf> = entries
            .map(|entry| entry.expect("readable").path())
            .filter(|path| path.is_dir())
            .collect();
        runs.sort();
        runs
    }

    /// The one run's folder.
    pub(crate) fn run_folder(&self) -> PathBuf {
        let mut runs = self.runs("results");
        assert_eq!(runs.len(), 1, "{runs:?}");
        runs.remove(0)
    }

    pub(crate) fn record(&self) -> serde_json::Value {
        let text = fs::read_to_string(self.run_folder().join("run.json")).expect("a record");
        serde_json::from_str(&text).expect("JSON")
    }

    pub(crate) fn steps(&self) -> Vec<serde_json::Value> {
        fs::read_to_string(self.run_folder().join("steps.jsonl"))
            .expect("steps")
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }
}

/// What a finished command printed.
pub(crate) struct Printed {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs the command to its end; a signal counts as exit code −1.
pub(crate) fn run(command: &mut Command) -> Printed {
    let output = command.output().expect("starts");
    Printed {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).expect("UTF-8"),
        err: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

impl Printed {
    /// Both streams with times, hashes and the workspace's path replaced, for snapshots.
    pub(crate) fn redacted(&self, workspace: &Workspace) -> String {
        let text = format!(
            "exit {}\n--- stdout\n{}--- stderr\n{}",
            self.code, self.out, self.err
        );
        let text = text.replace(&workspace.path().display().to_string(), "[ROOT]");
        redact(&text)
    }

    /// How many lines of stdout begin so.
    pub(crate) fn count(&self, start: &str) -> usize {
        self.out
            .lines()
            .filter(|line| line.starts_with(start))
            .count()
    }

    /// The `out_hash` values, in order.
    pub(crate) fn hashes(&self) -> Vec<&str> {
        self.out
            .lines()
            .filter_map(|line| line.split_once("out_hash="))
            .map(|(_, hash)| hash)
            .collect()
    }
}

/// Replaces what differs from run to run: `…_ms=1.23`, abbreviated hashes, run names.
pub(crate) fn redact(text: &str) -> String {
    let mut redacted = String::new();
    for line in text.lines() {
        // Whether other work goes on beside the tests is none of theirs.
        if line.starts_with("warning: The machine was busy") {
            continue;
        }
        if line.starts_with("[PROGRESS] ") && line.contains("; next: ") {
            redacted.push_str("[PROGRESS] [SUMMARY]\n");
            continue;
        }
        let words: Vec<String> = line
            .split(' ')
            .map(|word| match word.split_once('=') {
                Some((key, value)) if key.ends_with("_ms") && value != "null" => {
                    format!("{key}=[MS]")
                }
                Some((key, value)) if key.ends_with("_hash") && value.contains("...") => {
                    let tail = value.trim_start_matches(|c: char| c.is_ascii_hexdigit());
                    format!("{key}=[HASH]{tail}")
                }
                _ if word.contains("results/") => {
                    let (head, _) = word.split_once("results/").expect("just seen");
                    format!("{head}results/[RUN]")
                }
                _ => word.to_owned(),
            })
            .collect();
        redacted.push_str(&words.join(" "));
        redacted.push('\n');
    }
    redacted
}

/// Of any two events of a lane, one is in the other, or they are apart; lengths in nanoseconds.
pub(crate) fn assert_nested(events: &[&serde_json::Value]) {
    let nanos = |value: &serde_json::Value| (value.as_f64().expect("µs") * 1000.0).round() as u64;
    let interval = |event: &serde_json::Value| {
        let start = nanos(&event["ts"]);
        (start, start + nanos(&event["dur"]))
    };
    for (index, event) in events.iter().enumerate() {
        let (start, end) = interval(event);
        for other in &events[index + 1..] {
            let (from, to) = interval(other);
            let lanes = (&event["pid"], &event["tid"]) == (&other["pid"], &other["tid"]);
            let apart = end <= from || to <= start;
            let inside = (start <= from && to <= end) || (from <= start && end <= to);
            assert!(!lanes || apart || inside, "{event} and {other}");
        }
    }
}
