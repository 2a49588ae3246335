//! Faults of the machine: a full disk, an I/O error, permissions that change, a file server that goes away, short
//! reads and writes, clocks that jump, two runs at once. Each is let happen at every system call of a job, by the
//! library of `tests/faults`. `docs/reliability.md` has the campaign's table.
//!
//! Whatever happens: no panic and no signal; an error says what, where and what to do; no file is half old and half
//! new; what was measured can be read; the run can be resumed, or says why not; and once the fault is over, all is
//! as if it had never been.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::common::{Printed, Workspace, run};
use crate::thorough::cases;
use crate::tiny_model;

/// What fails, and how.
#[derive(Debug, Clone, Copy)]
struct Fault {
    name: &'static str,
    /// The calls that fail, as `tests/faults/faults.c` names them.
    calls: &'static str,
    /// The error number; 0: by half.
    error: i32,
    /// That of all later calls; `None`: only one call fails.
    then: Option<i32>,
    /// A rename is made, although it says that it was not.
    made: bool,
    /// The job must end as if nothing had happened.
    unnoticed: bool,
}

const fn once(name: &'static str, calls: &'static str, error: i32) -> Fault {
    Fault {
        name,
        calls,
        error,
        then: None,
        made: false,
        unnoticed: false,
    }
}

const fn from_then_on(name: &'static str, calls: &'static str, error: i32, then: i32) -> Fault {
    Fault {
        then: Some(then),
        ..once(name, calls, error)
    }
}

const WRITES: &str = ",open,write,fsync,mkdir,rename,";
const CHANGES: &str = ",open,write,fsync,mkdir,rename,truncate,unlink,";
const READS: &str = ",openread,read,";
const ALL: &str = ",open,openread,read,write,fsync,mkdir,rename,truncate,unlink,";

/// Faults at the n-th call.
const FAULTS: &[Fault] = &[
    from_then_on("the disk is full", WRITES, libc::ENOSPC, libc::ENOSPC),
    from_then_on("the disk fills up in a write", ",write,", 0, libc::ENOSPC),
    once("an I/O error", CHANGES, libc::EIO),
    once("an I/O error when reading", READS, libc::EIO),
    from_then_on(
        "permissions change",
        ",open,openread,mkdir,rename,unlink,",
        libc::EACCES,
        libc::EACCES,
    ),
    from_then_on(
        "the disk becomes read-only",
        CHANGES,
        libc::EROFS,
        libc::EROFS,
    ),
    once("a stale file handle", ALL, libc::ESTALE),
    from_then_on("the file server is gone", ALL, libc::ESTALE, libc::ESTALE),
    once("a rename across file systems", ",rename,", libc::EXDEV),
    Fault {
        made: true,
        ..once(
            "a rename that was made and says it was not",
            ",rename,",
            libc::ENOENT,
        )
    },
    Fault {
        unnoticed: true,
        ..once(
            "an interrupted call",
            ",open,openread,read,write,fsync,lock,",
            libc::EINTR,
        )
    },
    Fault {
        unnoticed: true,
        ..from_then_on("short writes", ",write,", 0, 0)
    },
    Fault {
        unnoticed: true,
        ..from_then_on("short reads", ",read,", 0, 0)
    },
    Fault {
        unnoticed: true,
        ..from_then_on("no locks", ",lock,", libc::ENOLCK, libc::ENOLCK)
    },
];

/// The library, and a line if it cannot be built (in CI: a failure).
fn library() -> Option<PathBuf> {
    let output = Command::new("bash")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .arg("scripts/faults.sh")
        .output()
        .expect("bash starts");
    if output.status.success() {
        let path = String::from_utf8_lossy(&output.stdout);
        return Some(PathBuf::from(path.trim()));
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    assert!(std::env::var_os("CI").is_none(), "{reason}");
    println!("skipped: the library cannot be built: {reason}");
    None
}

/// A command in a workspace that was prepared for it.
struct Job {
    prepared: Workspace,
    words: &'static [&'static str],
    settings: Vec<(&'static str, &'static str)>,
    library: PathBuf,
}

impl Job {
    fn new(
        library: &Path,
        prepared: Workspace,
        words: &'static [&'static str],
        settings: &[(&'static str, &'static str)],
    ) -> Self {
        Self {
            prepared,
            words,
            settings: settings.to_vec(),
            library: library.to_owned(),
        }
    }

    fn command(&self, workspace: &Workspace, words: &[&str]) -> assert_cmd::Command {
        let mut command = workspace.flowbench(words);
        command.env("MODE", "scripted").env("TEMPLATE", "chain");
        command.envs(self.settings.iter().copied());
        command
    }

    /// Runs the job in a workspace of its own, with `variables` for the library. Returns the calls that count.
    fn disturbed(
        &self,
        calls: &str,
        variables: &[(&str, String)],
    ) -> (Workspace, Printed, Vec<String>) {
        let workspace = copy(&self.prepared);
        let log = tempfile::NamedTempFile::new().expect("a temporary file");
        let mut command = self.command(&workspace, self.words);
        let real = workspace.path().canonicalize().expect("there");
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAULTS_ROOT", format!("{}/", real.display()))
            .env("FAULTS_CALLS", calls)
            .env("FAULTS_LOG", log.path())
            .envs(variables.iter().cloned());
        let printed = run(&mut command);
        let log = fs::read_to_string(log.path()).expect("UTF-8");
        (workspace, printed, log.lines().map(str::to_owned).collect())
    }

    /// The calls that `fault` concerns.
    fn calls(&self, fault: &Fault) -> Vec<String> {
        self.disturbed(fault.calls, &[]).2
    }

    fn with(&self, fault: &Fault, at: usize) -> (Workspace, Printed) {
        let mut variables = vec![
            ("FAULTS_AT", at.to_string()),
            ("FAULTS_LAST", at.to_string()),
            ("FAULTS_ERROR", fault.error.to_string()),
        ];
        if let Some(then) = fault.then {
            variables[1].1 = i64::MAX.to_string();
            variables.push(("FAULTS_THEN", then.to_string()));
        }
        if fault.made {
            variables.push(("FAULTS_MADE", "1".to_owned()));
        }
        let (workspace, printed, _) = self.disturbed(fault.calls, &variables);
        (workspace, printed)
    }
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let walk = walkdir::WalkDir::new(folder).into_iter().flatten();
    let files = walk.filter(|entry| entry.file_type().is_file());
    files
        .map(|entry| {
            let name = entry.path().strip_prefix(folder).expect("below").to_owned();
            (name, fs::read(entry.path()).expect("readable"))
        })
        .collect()
}

fn copy(workspace: &Workspace) -> Workspace {
    let copy = Workspace::new();
    for (name, bytes) in files(workspace.path()) {
        copy.write(&name.display().to_string(), bytes);
    }
    copy
}

/// The workspace of the template `chain`, with a run that ended, in the history and a baseline.
fn used(settings: &[(&'static str, &'static str)]) -> Workspace {
    let workspace = Workspace::new();
    let mut command = workspace.scripted();
    command.envs(settings.iter().copied());
    command.args(["--save-baseline", "base"]);
    let printed = run(&mut command);
    assert_eq!(printed.code, 0, "{}", printed.err);
    workspace
}

/// What holds after any fault, before anything else is run.
fn sound(workspace: &Workspace, before: &Workspace, printed: &Printed) {
    let codes = [0, 2, 3, 4, 98, 99, 100, 106, 110];
    assert!(codes.contains(&printed.code), "exit code {}", printed.code);
    assert!(!printed.err.contains("panicked"), "{}", printed.err);
    // A comparison says 98 or 99 by its verdict alone.
    let judged = printed.out.contains("[VERDICT]");
    if ![0, 106].contains(&printed.code) && !judged {
        let (_, error) = printed.err.split_once("error: ").expect("what failed");
        assert!(error.contains("hint: "), "no hint: {}", printed.err);
    }
    // Nothing that was there before is lost.
    let after = files(workspace.path());
    for (name, old) in files(before.path()) {
        let new = after.get(&name);
        let shown = name.display().to_string();
        let replaceable = shown.starts_with("flows/") || shown.ends_with(".html");
        let grows = shown.ends_with("history.jsonl");
        match new {
            None => assert!(replaceable, "{shown} is gone"),
            Some(new) if grows => assert!(new.starts_with(&old), "{shown} has changed"),
            Some(new) if is_run(&shown) && !is_open(before, &name) => {
                assert!(*new == old, "{shown} has changed");
            }
            Some(_) => {}
        }
    }
    // Nothing is half written, save lines that were being appended.
    for (name, bytes) in &after {
        let shown = name.display().to_string();
        let text = String::from_utf8_lossy(bytes);
        if shown.ends_with(".tmp") || shown.ends_with(".partial") {
            continue;
        }
        if shown.ends_with(".json") {
            let parsed: Result<Value, _> = serde_json::from_str(&text);
            assert!(parsed.is_ok(), "{shown}: {text}");
        } else if shown.ends_with(".jsonl") && !shown.starts_with("templates/") {
            let whole = text
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'));
            for line in whole {
                let parsed: Result<Value, _> = serde_json::from_str(line);
                assert!(parsed.is_ok() || line.trim().is_empty(), "{shown}: {line}");
            }
        } else if shown.ends_with(".html") {
            assert!(text.trim_end().ends_with("</html>"), "{shown} is torn");
        }
    }
}

fn is_run(name: &str) -> bool {
    name.ends_with("run.json") || name.ends_with("steps.jsonl")
}

/// Whether a file belongs to a run that has not ended.
fn is_open(workspace: &Workspace, name: &Path) -> bool {
    let folder = workspace.path().join(name);
    let record = folder.with_file_name("run.json");
    let text = fs::read_to_string(record).unwrap_or_default();
    serde_json::from_str::<Value>(&text).is_ok_and(|record| record["status"] != "complete")
}

/// The hashes of the outputs in a run's steps, by round, mode, flow and step.
fn outputs(folder: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(folder.join("steps.jsonl")).unwrap_or_default();
    let whole = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    let steps = whole.map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let names = ["round", "mode", "flow", "step", "out_hash"];
    steps
        .map(|step| names.map(|name| step[name].to_string()).join(" "))
        .collect()
}

/// What holds once the fault is over. `whole` are the outputs of an undisturbed run.
fn heals(job: &Job, workspace: &Workspace, printed: &Printed, whole: &BTreeSet<String>) {
    let old = job.prepared.runs_or_none();
    let runs = workspace.runs_or_none();
    let new: Vec<&PathBuf> = (runs.iter())
        .filter(|run| !old.iter().any(|old| old.file_name() == run.file_name()))
        .chain(runs.iter().filter(|run| {
            let relative = run.strip_prefix(workspace.path()).expect("below");
            is_open(&job.prepared, &relative.join("run.json"))
        }))
        .collect();
    for folder in new {
        let name = folder.display().to_string();
        let measured = outputs(folder);
        assert!(measured.is_subset(whole), "{measured:?}");
        if !folder.join("run.json").is_file() {
            // Killed before it measured anything.
            assert!(measured.is_empty(), "steps without a record: {name}");
            continue;
        }
        // What was printed had been saved.
        let shown = printed.count("[TARGET]");
        assert!(shown <= measured.len(), "{shown} of {}", measured.len());
        for words in [
            ["report", &name, "-o", "md"],
            ["diagnose", &name, "-o", "json"],
        ] {
            let read = run(&mut job.command(workspace, &words));
            assert_eq!(read.code, 0, "{words:?}: {}", read.err);
        }
        let resumed = run(&mut job.command(workspace, &["run", "--resume", &name]));
        match resumed.code {
            0 => {}
            // It had ended.
            2 => assert!(resumed.err.contains("hint: "), "{}", resumed.err),
            code => panic!("resumed with {code}: {}", resumed.err),
        }
        assert_eq!(&outputs(folder), whole, "{}", resumed.err);
    }
    let again = run(&mut job.command(workspace, &["run"]));
    assert_eq!(again.code, 0, "{}", again.err);
    for name in files(workspace.path()).into_keys() {
        let shown = name.display().to_string();
        assert!(!shown.ends_with(".tmp"), "{shown} was left");
    }
    let history = run(&mut job.command(workspace, &["history"]));
    assert_eq!(history.code, 0, "{}", history.err);
}

impl Workspace {
    fn runs_or_none(&self) -> Vec<PathBuf> {
        match self.file("results").is_dir() {
            true => self.runs("results"),
            false => Vec::new(),
        }
    }
}

/// Some of `1..=count`, evenly: `few`, or all.
fn points(count: usize, few: usize) -> Vec<usize> {
    let most = cases(few, usize::MAX).min(count);
    let point = |index: usize| 1 + (2 * index + 1) * count / (2 * most);
    (0..most).map(point).collect()
}

/// Lets every fault happen at every call of a job.
fn campaign(job: &Job, few: usize, after: impl Fn(&Workspace, &Printed)) {
    let mut broken = Vec::new();
    let mut counted = 0;
    let undisturbed = job.disturbed(",none,", &[]).1.code;
    for fault in FAULTS {
        let calls = job.calls(fault);
        for at in points(calls.len(), few) {
            let (workspace, printed) = job.with(fault, at);
            counted += 1;
            let holds = || {
                assert!(
                    !fault.unnoticed || printed.code == undisturbed,
                    "exit code {}",
                    printed.code
                );
                sound(&workspace, &job.prepared, &printed);
                after(&workspace, &printed);
            };
            if std::panic::catch_unwind(AssertUnwindSafe(holds)).is_err() {
                broken.push(format!(
                    "{:?}: {} at call {at} of {}: {}\nexit {}: {}",
                    job.words,
                    fault.name,
                    calls.len(),
                    calls[at - 1],
                    printed.code,
                    printed.err
                ));
                println!("FAULT {}", broken[broken.len() - 1]);
            }
        }
    }
    println!("{:?}: {counted} faults", job.words);
    assert!(broken.is_empty(), "{} of {counted}", broken.len());
}

/// Printed if a law does not hold.
struct Context(String);

impl Context {
    fn passed(mut self) {
        self.0.clear();
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            println!("FAULT {}", self.0);
        }
    }
}

/// The campaign over a job that runs flows.
fn campaign_of_runs(job: &Job, few: usize) {
    let (workspace, printed, _) = job.disturbed(",none,", &[]);
    assert_eq!(printed.code, 0, "{}", printed.err);
    let runs = workspace.runs("results");
    let whole = outputs(runs.last().expect("a run"));
    assert!(!whole.is_empty());
    campaign(job, few, |workspace, printed| {
        heals(job, workspace, printed, &whole);
    });
}

#[test]
fn of_a_run() {
    let Some(library) = library() else { return };
    let words = &[
        "run",
        "--save-baseline",
        "new",
        "--record",
        "recorded.jsonl",
    ];
    campaign_of_runs(&Job::new(&library, used(&[]), words, &[]), 3);
}

#[test]
fn of_a_run_that_expands() {
    let Some(library) = library() else { return };
    campaign_of_runs(&Job::new(&library, Workspace::new(), &["run"], &[]), 3);
}

#[test]
fn of_both_modes() {
    let Some(library) = library() else { return };
    let settings = [
        ("MODE", "both"),
        ("SCRIPT", "templates/chain.script.jsonl"),
        ("ROUNDS", "2"),
    ];
    campaign_of_runs(
        &Job::new(&library, Workspace::new(), &["run"], &settings),
        2,
    );
}

#[test]
fn of_a_model() {
    let Some(library) = library() else { return };
    let workspace = Workspace::new();
    tiny_model::write(&workspace.file("tiny.gguf"));
    let settings = [
        ("MODE", "standalone"),
        ("MODEL", "tiny.gguf"),
        ("DEVICE", "cpu"),
        ("NUM_FLOWS", "1"),
    ];
    campaign_of_runs(&Job::new(&library, workspace, &["run"], &settings), 1);
}

#[test]
fn of_a_resumed_run() {
    let Some(library) = library() else { return };
    let cut = Job::new(&library, Workspace::new(), &["run"], &[]);
    let full = &FAULTS[0];
    let calls = cut.calls(full);
    let fifth = (calls.iter().enumerate())
        .filter(|(_, call)| call.starts_with("write") && call.ends_with("steps.jsonl"))
        .nth(4);
    let (at, _) = fifth.expect("nine steps");
    let (workspace, printed) = cut.with(full, at + 1);
    assert_eq!(printed.code, 110, "{}", printed.err);
    assert!(printed.err.contains("make room"), "{}", printed.err);
    let words = &["run", "--resume", "latest"];
    campaign_of_runs(&Job::new(&library, workspace, words, &[]), 3);
}

#[test]
fn of_an_expansion() {
    let Some(library) = library() else { return };
    let reference = Workspace::new();
    let expand =
        |workspace: &Workspace| run(&mut workspace.flowbench(&["expand", "--template", "chain"]));
    assert_eq!(expand(&reference).code, 0);
    let flows = |workspace: &Workspace| -> BTreeMap<PathBuf, Vec<u8>> {
        let mut flows = files(&workspace.file("flows"));
        flows.retain(|name, _| name.display().to_string().starts_with("_expanded"));
        flows
    };
    let expected = flows(&reference);
    for prepared in [Workspace::new(), copy(&reference)] {
        // The one in the second workspace is of an older template.
        let text = prepared.read("templates/chain.toml");
        prepared.write(
            "templates/chain.toml",
            text.replace("Is it right?", "Is it?"),
        );
        assert_eq!(expand(&prepared).code, 0);
        prepared.write("templates/chain.toml", text);
        let job = Job::new(&library, prepared, &["expand"], &[]);
        campaign(&job, 3, |workspace, _| {
            assert_eq!(expand(workspace).code, 0);
            assert!(flows(workspace) == expected, "other flows");
            let check =
                run(&mut workspace.flowbench(&["expand", "--template", "chain", "--check"]));
            assert_eq!(check.code, 0, "{}", check.err);
        });
    }
}

#[test]
fn of_commands_that_read() {
    let Some(library) = library() else { return };
    let workspace = used(&[]);
    assert_eq!(run(&mut workspace.scripted()).code, 0);
    let first = run(&mut workspace.flowbench(&["report"]));
    assert_eq!(first.code, 0, "{}", first.err);
    workspace.write("export.csv", "old\n");
    for words in [
        &["report"][..],
        &["export", "-o", "csv", "--to", "export.csv"],
        &["compare", "base", "latest", "--assume-noise", "1%"],
        &["history", "-o", "html"],
        &["diagnose", "--baseline", "base"],
        &["expand", "--cost"],
    ] {
        let whole = run(workspace.flowbench(words).env("TEMPLATE", "chain"));
        assert!([0, 98, 99].contains(&whole.code), "{words:?} {}", whole.err);
        let job = Job::new(&library, copy(&workspace), words, &[]);
        job.prepared.write("export.csv", "old\n");
        campaign(&job, 1, |after, printed| {
            let export = after.read("export.csv");
            let lines = export.lines().count();
            assert!(export == "old\n" || lines > 9, "{export}");
            if printed.code == 0 && words[0] == "export" {
                assert_ne!(export, "old\n");
            }
            let again = run(after.flowbench(words).env("TEMPLATE", "chain"));
            assert_eq!(again.code, whole.code, "{words:?} {}", again.err);
        });
    }
}

/// The wall clock is set, forth and back, at every reading; the machine sleeps; the clock is coarse.
#[test]
fn of_clocks() {
    let Some(library) = library() else { return };
    let job = Job::new(&library, used(&[]), &["run"], &[]);
    let (workspace, ..) = job.disturbed(",none,", &[]);
    let whole = outputs(workspace.runs("results").last().expect("a run"));
    let day = "86400".to_owned();
    let mut jumps: Vec<Vec<(&str, String)>> = Vec::new();
    for by in ["86400", "-86400", "-2000000000", "9000000000"] {
        for at in points(40, 1) {
            jumps.push(vec![
                ("FAULTS_CLOCK", by.to_owned()),
                ("FAULTS_CLOCK_AT", at.to_string()),
            ]);
        }
    }
    jumps.push(vec![
        ("FAULTS_CLOCK", day.clone()),
        ("FAULTS_CLOCK_BOTH", "1".to_owned()),
    ]);
    jumps.push(vec![("FAULTS_BOOT", day)]);
    jumps.push(vec![("FAULTS_COARSE", "500".to_owned())]);
    for jump in jumps {
        let (workspace, printed, _) = job.disturbed(",none,", &jump);
        let context = Context(format!("{jump:?}\n{}", printed.err));
        // A clock that jumps makes a run suspect, but nothing is lost.
        assert!([0, 98].contains(&printed.code), "{}", printed.code);
        sound(&workspace, &job.prepared, &printed);
        let old = job.prepared.runs("results");
        let new = workspace.runs("results");
        let mut new = new
            .iter()
            .filter(|run| run.file_name() != old[0].file_name());
        assert_eq!(outputs(new.next().expect("a new run")), whole);
        for words in [
            &["report", "-o", "md"][..],
            &["diagnose"],
            &["history"],
            &["history", "-o", "json"],
            &["compare", "base", "latest", "--assume-noise", "1%"],
            &["export", "-o", "otlp"],
        ] {
            let read = run(&mut job.command(&workspace, words));
            assert!(
                [0, 2, 98, 99].contains(&read.code),
                "{words:?} {}",
                read.err
            );
            assert!(!read.err.contains("panicked"), "{}", read.err);
        }
        context.passed();
    }
}

/// Runs that start at the same time in one folder: each has its own record, and all are in the history.
#[test]
fn of_two_runs_at_once() {
    for _ in 0..cases(2, 20) {
        let workspace = Workspace::new();
        // Two templates, whose flows are at the same place.
        let other = workspace
            .read("templates/chain.toml")
            .replace("Is it right?", "Is it?");
        workspace.write("templates/other/chain.toml", other);
        workspace.write(
            "templates/other/chain.suite.jsonl",
            workspace.read("templates/chain.suite.jsonl"),
        );
        let start = |(name, template): (&str, &str)| {
            let script = "templates/chain.script.jsonl";
            let mut command =
                workspace.child(&[("QUIET", "1"), ("TEMPLATE", template), ("SCRIPT", script)]);
            command.args(["--save-baseline", name]);
            command.spawn().expect("starts")
        };
        let other = "templates/other/chain.toml";
        let running = [("a", "chain"), ("b", other), ("c", "chain"), ("d", other)];
        let running: Vec<_> = running.map(start).into_iter().collect();
        for child in running {
            let ended = child.wait_with_output().expect("ends");
            let errors = String::from_utf8_lossy(&ended.stderr);
            assert_eq!(ended.status.code(), Some(0), "{errors}");
        }
        let runs = workspace.runs("results");
        assert_eq!(runs.len(), 4);
        let first = outputs(&runs[0]);
        assert_eq!(first.len(), 9);
        assert!(runs.iter().all(|run| outputs(run) == first));
        assert_eq!(workspace.read("results/history.jsonl").lines().count(), 4);
        let names: Value =
            serde_json::from_str(&workspace.read("results/baselines.json")).expect("JSON");
        assert_eq!(
            names.as_object().map(serde_json::Map::len),
            Some(4),
            "{names}"
        );
        let left = files(workspace.path()).into_keys();
        let left: Vec<PathBuf> = left
            .filter(|name| name.extension().is_some_and(|kind| kind == "tmp"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
