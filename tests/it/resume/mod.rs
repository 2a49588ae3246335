//! `run --resume RUN`: a run that is killed or interrupted at any moment and resumed has the steps, outputs and
//! scores of one that nobody disturbed. Here: starting, killing and resuming a job, and what must be equal then.

mod cases;
mod jobs;
mod killed;
#[cfg(target_os = "linux")]
mod killed_ab;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{Workspace, run};

/// A job with its settings, in a workspace that holds its template and script.
struct Job {
    workspace: Workspace,
    settings: Vec<(&'static str, String)>,
}

impl Job {
    fn new(workspace: Workspace, settings: &[(&'static str, &str)]) -> Self {
        let own = |(name, value): &(&'static str, &str)| (*name, (*value).to_owned());
        Self {
            workspace,
            settings: settings.iter().map(own).collect(),
        }
    }

    fn variables(&self) -> Vec<(&str, &str)> {
        let settings = self.settings.iter();
        let mut variables: Vec<(&str, &str)> = settings
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        variables.push(("PATH", "/usr/local/bin:/usr/bin:/bin"));
        variables
    }

    fn command(&self) -> assert_cmd::Command {
        let mut command = self.workspace.scripted();
        command.envs(self.variables());
        command
    }

    /// Starts the job, or goes on with its run if there is one.
    fn start(&self) -> Child {
        let mut command = self.workspace.child(&self.variables());
        if self.has_run() {
            command.args(["--resume", "latest"]);
        }
        let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
        quiet.spawn().expect("starts")
    }

    fn has_run(&self) -> bool {
        let runs = fs::read_dir(self.workspace.file("results"))
            .into_iter()
            .flatten();
        runs.flatten()
            .any(|run| run.path().join("run.json").exists())
    }

    /// The whole lines of `steps.jsonl`; none without a run.
    fn lines(&self) -> String {
        let runs = fs::read_dir(self.workspace.file("results"))
            .into_iter()
            .flatten();
        let steps = runs.flatten().map(|run| run.path().join("steps.jsonl"));
        let text = steps.flat_map(fs::read).next().unwrap_or_default();
        let whole = text
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |last| last + 1);
        String::from_utf8(text[..whole].to_vec()).expect("UTF-8")
    }

    /// Starts or resumes the run, and kills it when so many lines are written, or a moment later.
    fn kill_after(&self, lines: usize, delay: Duration) {
        let mut child = self.start();
        while self.lines().lines().count() < lines && child.try_wait().expect("ours").is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(delay);
        let _ = child.kill();
        child.wait().expect("ends");
    }

    /// Resumes the run until its end.
    fn complete(&self, code: i32) {
        let mut command = self.command();
        if self.has_run() {
            command.args(["--resume", "latest"]);
        }
        let printed = run(&mut command);
        assert_eq!(printed.code, code, "{}{}", printed.out, printed.err);
    }
}

/// What of the one run must not depend on whether it was disturbed.
fn outcome(workspace: &Workspace) -> BTreeMap<String, Value> {
    outcome_of(&workspace.run_folder())
}

/// The same of the run in `folder`.
fn outcome_of(folder: &Path) -> BTreeMap<String, Value> {
    let text = fs::read_to_string(folder.join("run.json")).expect("a record");
    let record: Value = serde_json::from_str(&text).expect("JSON");
    let mut outcome = BTreeMap::new();
    let pick = |value: &Value, names: &[&str]| -> Value {
        let picked = names
            .iter()
            .map(|name| ((*name).to_owned(), value[*name].clone()));
        Value::Object(picked.collect())
    };
    for step in steps(folder) {
        let name = ["flow", "step", "sample", "round", "mode"].map(|key| step[key].to_string());
        let fields = pick(
            &step,
            &[
                "row",
                "kind",
                "generation",
                "needs",
                "prompt_tokens",
                "decode_tokens",
                "finish",
                "out_hash",
                "output",
                "outcome",
                "score",
                "detail",
                "answer",
                "pinned",
            ],
        );
        let before = outcome.insert(format!("step {}", name.join(" ")), fields);
        assert!(before.is_none(), "twice: {name:?}");
    }
    for workflow in record["workflows"].as_array().expect("a list") {
        let name = ["flow", "round", "mode"].map(|key| workflow[key].to_string());
        let fields = pick(
            workflow,
            &[
                "row",
                "steps_done",
                "steps",
                "error",
                "reward",
                "reward_floor",
                "prompt_tokens",
                "decode_tokens",
            ],
        );
        let before = outcome.insert(format!("workflow {}", name.join(" ")), fields);
        assert!(before.is_none(), "twice: {name:?}");
    }
    outcome.insert("status".to_owned(), record["status"].clone());
    let totals = &record["totals"];
    let fields = pick(
        totals,
        &[
            "workflows_done",
            "workflows_failed",
            "steps_done",
            "prompt_tokens",
            "decode_tokens",
            "undecided",
        ],
    );
    outcome.insert("totals".to_owned(), fields);
    for score in totals["scores"].as_array().into_iter().flatten() {
        let spread = pick(&score["score"], &["count", "min", "max"]);
        let fields = pick(score, &["kind", "count", "outcomes"]);
        outcome.insert(format!("score {}", score["step"]), json!([fields, spread]));
    }
    for usage in totals["usage"].as_array().into_iter().flatten() {
        let fields = pick(
            usage,
            &["model", "requests", "prompt_tokens", "decode_tokens"],
        );
        outcome.insert(format!("usage {}", usage["kind"]), fields);
    }
    let comparison = &record["comparison"];
    outcome.insert("outputs".to_owned(), comparison["outputs"].clone());
    let rounds = comparison["rounds"].as_array().map(Vec::len);
    outcome.insert("rounds".to_owned(), json!(rounds));
    outcome
}

/// The whole lines of `steps.jsonl` in `folder`.
fn steps(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("steps.jsonl")).unwrap_or_default();
    let whole = text.rfind('\n').map_or(0, |last| last + 1);
    let lines = text[..whole].lines();
    lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

/// The evolutions' trials and summaries, without times.
fn evolutions(workspace: &Workspace) -> BTreeMap<String, Value> {
    fn without_times(value: &mut Value) {
        match value {
            Value::Object(members) => {
                members.retain(|name, _| !name.ends_with("_ms") && name != "evaluation");
                members.values_mut().for_each(without_times);
            }
            Value::Array(items) => items.iter_mut().for_each(without_times),
            _ => {}
        }
    }
    let folder = workspace.run_folder().join("evolution");
    let mut all = BTreeMap::new();
    for entry in walk(&folder) {
        let mut value: Value =
            serde_json::from_slice(&fs::read(&entry).expect("there")).expect("JSON");
        without_times(&mut value);
        let name = entry
            .strip_prefix(&folder)
            .expect("below")
            .display()
            .to_string();
        all.insert(name, value);
    }
    all
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => files.extend(walk(&path)),
            false => files.push(path),
        }
    }
    files
}
