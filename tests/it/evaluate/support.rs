//! What the tests of the evaluator share: programs, and waiting for what becomes of them.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use flowbench::evaluate::{EvaluationId, Finished, Outcome, Pool, PythonInfo, Request, Settings};
use serde_json::Value;

/// How long a test waits for what must happen at some time, however busy the machine is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

pub(crate) fn pool() -> Pool {
    pool_of(2)
}

pub(crate) fn pool_of(parallel: usize) -> Pool {
    let settings = Settings {
        parallel,
        ..settings(python())
    };
    Pool::start(settings).unwrap()
}

/// The Python of these tests: `FLOWBENCH_TEST_PYTHON`, which must have numpy and math-verify then, or
/// the system's.
pub(crate) fn python() -> PathBuf {
    let python = std::env::var_os(PYTHON);
    python.unwrap_or_else(|| "python3".into()).into()
}

const PYTHON: &str = "FLOWBENCH_TEST_PYTHON";

/// Whether Python has `module` loaded. A test that needs it has nothing to do without, unless the
/// Python was named for these tests.
pub(crate) fn has(python: &PythonInfo, module: &str) -> bool {
    let has = python.loaded.contains_key(module);
    assert!(has || !is_named(), "{PYTHON} lacks {module}: {python:?}");
    has
}

/// Whether the Python was named for these tests.
pub(crate) fn is_named() -> bool {
    std::env::var_os(PYTHON).is_some()
}

pub(crate) fn settings(python: impl Into<PathBuf>) -> Settings {
    Settings::new(python, std::env::vars_os())
}

pub(crate) fn number(returned: &Value) -> Result<f64, String> {
    returned
        .as_f64()
        .ok_or_else(|| format!("{returned} is no number"))
}

/// A program whose `solve` has this body.
pub(crate) fn program(body: &str) -> Request {
    let lines = body.lines().map(|line| format!("    {line}\n"));
    Request {
        code: format!(
            "import os, sys\ndef solve():\n{}",
            lines.collect::<String>()
        ),
        entry_points: vec!["solve".to_owned()],
        arguments: Vec::new(),
        seed: 1,
        deadline: Duration::from_secs(120),
        score: number,
    }
}

pub(crate) fn within(milliseconds: u64, body: &str) -> Request {
    Request {
        deadline: Duration::from_millis(milliseconds),
        ..program(body)
    }
}

/// Everything that is open, by id.
pub(crate) fn collect(pool: &mut Pool) -> HashMap<EvaluationId, Finished> {
    let give_up = Instant::now() + PATIENCE;
    let mut all = HashMap::new();
    while pool.open() > 0 {
        assert!(Instant::now() < give_up, "{} never came back", pool.open());
        let finished = pool.poll(Duration::from_secs(1));
        all.extend(finished.into_iter().map(|finished| (finished.id, finished)));
    }
    all
}

pub(crate) fn evaluate(pool: &mut Pool, request: Request) -> Finished {
    let id = pool.submit(request);
    collect(pool).remove(&id).unwrap()
}

/// Submits all and compares outcomes, and a part of what is said about each.
pub(crate) fn expect(cases: &[(&str, Request, Outcome, &str)]) {
    let mut pool = pool();
    let ids: Vec<_> = cases
        .iter()
        .map(|(_, request, _, _)| pool.submit(request.clone()))
        .collect();
    let all = collect(&mut pool);
    for (id, (name, _, outcome, said)) in ids.iter().zip(cases) {
        let finished = &all[id];
        assert_eq!(finished.outcome, *outcome, "{name}: {finished:?}");
        assert!(finished.detail.contains(said), "{name}: {finished:?}");
        assert_eq!(finished.score.is_some(), *outcome == Outcome::Ok, "{name}");
    }
    let after = evaluate(&mut pool, program("return 3"));
    assert_eq!(after.score, Some(3.0), "the pool still works: {after:?}");
    assert_eq!(after.attempts, 1, "and has not been disturbed");
}

pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < give_up, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The state and the parent of a process, from `/proc/PID/stat`.
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}

pub(crate) fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

pub(crate) fn children_of(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|(_, of)| of == parent))
        .collect()
}
