//! `flowbench ab`, whose own process or one of an arm is killed at a random moment: no step that had ended is lost,
//! every run that is left can be resumed, and what was measured is judged. `.ci/nightly` kills 200.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use proptest::prelude::*;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::jobs::chain;
use super::killed::config;
use super::{Job, outcome, outcome_of, steps};
use crate::common::run;

/// Settings of the arms.
const ARMS: [&str; 2] = ["CONCURRENCY=1", "CONCURRENCY=3"];

/// Which process is killed.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Test,
    /// That of the first or second arm, if it has been started; otherwise the test.
    Arm(usize),
}

fn victims() -> impl Strategy<Value = Victim> {
    prop_oneof![Just(Victim::Test), (0usize..2).prop_map(Victim::Arm),]
}

/// A test that goes on for long. `kept`: with a process that is kept for each arm.
fn start(job: &Job, kept: bool) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowbench"));
    command
        .current_dir(job.workspace.path())
        .env_clear()
        .envs([("MODE", "scripted"), ("TEMPLATE", "chain")])
        .envs(job.variables())
        .args(["ab", "--a", ARMS[0], "--b", ARMS[1], "--threshold", "0.01%"])
        .args((!kept).then_some("--one-at-a-time"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().expect("starts")
}

fn folders(job: &Job) -> Vec<PathBuf> {
    match job.workspace.file("results").is_dir() {
        true => job.workspace.runs("results"),
        false => Vec::new(),
    }
}

/// The names of the steps that have ended, with what they generated.
fn ended(job: &Job) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for folder in folders(job) {
        for step in steps(&folder) {
            let name = ["flow", "step", "sample", "out_hash"].map(|key| step[key].to_string());
            all.insert(format!("{} {}", folder.display(), name.join(" ")));
        }
    }
    all
}

/// The processes of the arms, in the order of their starts.
fn arms(test: &Child) -> Vec<Pid> {
    let id = test.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
    let children = children.unwrap_or_default();
    let children = children
        .split_whitespace()
        .map(|id| id.parse().expect("a number"));
    children.filter_map(Pid::from_raw).collect()
}

/// The exit code of the test (-1: it was killed), and what it and its arms printed until the last of them ended.
struct Ended {
    code: i32,
    out: String,
    err: String,
}

/// Runs the test, and kills `victim` when so many steps have ended, or a moment later. Returns the steps that had
/// ended.
fn killed(
    job: &Job,
    kept: bool,
    victim: Victim,
    lines: usize,
    delay: u64,
) -> (BTreeSet<String>, Ended) {
    let mut test = start(job, kept);
    while ended(job).len() < lines && test.try_wait().expect("ours").is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_micros(delay));
    let before = ended(job);
    let own = Pid::from_child(&test);
    let arm = match victim {
        Victim::Test => None,
        Victim::Arm(number) => arms(&test).get(number).copied(),
    };
    // It may have ended by itself.
    let _ = kill_process(arm.unwrap_or(own), Signal::KILL);
    let (mut out, mut err) = (String::new(), String::new());
    test.stdout
        .take()
        .expect("piped")
        .read_to_string(&mut out)
        .expect("UTF-8");
    // The arms share it, so that it is closed when all have ended.
    test.stderr
        .take()
        .expect("piped")
        .read_to_string(&mut err)
        .expect("UTF-8");
    let code = test.wait().expect("ends").code().unwrap_or(-1);
    (before, Ended { code, out, err })
}

/// Resumes the run in `folder` with its arm's settings.
fn resume(job: &Job, folder: &Path, concurrency: &str) {
    let mut command = job.command();
    command
        .env("CONCURRENCY", concurrency)
        .arg("--resume")
        .arg(folder);
    let printed = run(&mut command);
    assert_eq!(printed.code, 100, "{}{}", printed.out, printed.err);
}

proptest! {
    #![proptest_config(config(3, 200))]

    #[test]
    fn killed_in_a_test_of_two_settings(
        victim in victims(),
        kept in any::<bool>(),
        lines in 0usize..120,
        delay in 0u64..8000,
    ) {
        let undisturbed: BTreeMap<&str, BTreeMap<String, Value>> = ["1", "3"]
            .map(|concurrency| {
                let job = chain(&[("CONCURRENCY", concurrency)]);
                job.complete(100);
                (concurrency, outcome(&job.workspace))
            })
            .into();
        let job = chain(&[]);
        let (before, came) = killed(&job, kept, victim, lines, delay);
        let what = format!("{} {}{}", came.code, came.out, came.err);

        let after = ended(&job);
        let lost: Vec<&String> = before.difference(&after).collect();
        assert!(lost.is_empty(), "{lost:?}");

        // A test without an arm says so, and judges what it has.
        let rounds = came.out.lines().filter(|line| line.starts_with("[ROUND]")).count();
        if came.code == 106 {
            let killed = ["A", "B"].map(|arm| format!("the run of {arm} was killed by a signal"));
            assert!(killed.iter().any(|line| came.err.contains(line)), "{what}");
            let verdict = came.out.contains("[VERDICT] verdict=NO_VERDICT");
            assert_eq!(verdict, rounds > 0, "{what}");
        } else {
            assert!(matches!(came.code, -1 | 0 | 99), "{what}");
        }

        let mut open = 0;
        for folder in folders(&job) {
            let Ok(text) = fs::read_to_string(folder.join("run.json")) else {
                assert!(steps(&folder).is_empty(), "{}", folder.display());
                continue;
            };
            let record: Value = serde_json::from_str(&text).expect("JSON");
            let concurrency = record["settings"]["concurrency"].to_string();
            let status = record["status"].as_str().expect("a status");
            if matches!(status, "running" | "incomplete") {
                open += 1;
                resume(&job, &folder, &concurrency);
            }
            let outcome = outcome_of(&folder);
            for (name, expected) in &undisturbed[concurrency.as_str()] {
                assert_eq!(outcome.get(name), Some(expected), "{name} {}", folder.display());
            }
        }
        // One of each arm at most.
        assert!(open <= 2, "{what}");
    }
}
