//! Evaluated programs, good and hostile ones: what they come to, and what they leave behind.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flowbench::evaluate::{EvaluationId, Finished, Outcome, Pool, Request, Settings, packing};
use serde_json::Value;

/// How long a test waits for what must happen at some time, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(120);

fn pool() -> Pool {
    pool_of(2)
}

fn pool_of(parallel: usize) -> Pool {
    let settings = Settings {
        parallel,
        ..settings("python3")
    };
    Pool::start(settings).unwrap()
}

fn settings(python: impl Into<PathBuf>) -> Settings {
    Settings::new(python, std::env::vars_os())
}

fn number(returned: &Value) -> Result<f64, String> {
    returned
        .as_f64()
        .ok_or_else(|| format!("{returned} is no number"))
}

/// A program whose `solve` has this body.
fn program(body: &str) -> Request {
    let lines = body.lines().map(|line| format!("    {line}\n"));
    Request {
        code: format!(
            "import os, sys\ndef solve():\n{}",
            lines.collect::<String>()
        ),
        entry_points: vec!["solve".to_owned()],
        arguments: Vec::new(),
        seed: 1,
        deadline: Duration::from_secs(20),
        score: number,
    }
}

fn within(milliseconds: u64, body: &str) -> Request {
    Request {
        deadline: Duration::from_millis(milliseconds),
        ..program(body)
    }
}

/// Everything that is open, by id.
fn collect(pool: &mut Pool) -> HashMap<EvaluationId, Finished> {
    let give_up = Instant::now() + PATIENCE;
    let mut all = HashMap::new();
    while pool.open() > 0 {
        assert!(Instant::now() < give_up, "{} never came back", pool.open());
        let finished = pool.poll(Duration::from_secs(1));
        all.extend(finished.into_iter().map(|finished| (finished.id, finished)));
    }
    all
}

fn evaluate(pool: &mut Pool, request: Request) -> Finished {
    let id = pool.submit(request);
    collect(pool).remove(&id).unwrap()
}

/// Submits all and compares outcomes, and a part of what is said about each.
fn expect(cases: &[(&str, Request, Outcome, &str)]) {
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

#[test]
fn ordinary_programs_are_told_apart() {
    let no_entry = Request {
        code: "x = 1".to_owned(),
        ..program("")
    };
    let no_python = Request {
        code: "def solve(:".to_owned(),
        ..program("")
    };
    expect(&[
        ("returns", program("return 2.5"), Outcome::Ok, ""),
        (
            "prints",
            program("print('x' * 100000)\nreturn 1"),
            Outcome::Ok,
            "",
        ),
        (
            "threads",
            program(
                "import threading\nout = []\nt = threading.Thread(target=lambda: out.append(4))\n\
                 t.start()\nt.join()\nreturn out[0]",
            ),
            Outcome::Ok,
            "",
        ),
        (
            "imports late",
            program("import decimal, csv, uuid\nreturn 1"),
            Outcome::Ok,
            "",
        ),
        (
            "returns text",
            program("return 'x'"),
            Outcome::Invalid,
            "no number",
        ),
        (
            "raises",
            program("x = {}\nreturn x['key']"),
            Outcome::RuntimeError,
            "KeyError: 'key' (line 4)",
        ),
        (
            "no entry point",
            no_entry,
            Outcome::RuntimeError,
            "defines none of solve",
        ),
        ("no Python", no_python, Outcome::RuntimeError, "SyntaxError"),
        (
            "leaves",
            program("sys.exit(0)"),
            Outcome::RuntimeError,
            "SystemExit",
        ),
        (
            "leaves at once",
            program("os._exit(3)"),
            Outcome::Crashed,
            "exit status: 3",
        ),
        (
            "recurses",
            program("def f(): return f()\nreturn f()"),
            Outcome::RuntimeError,
            "RecursionError",
        ),
        (
            "NaN",
            program("return float('nan')"),
            Outcome::BadOutput,
            "ValueError",
        ),
        (
            "no data",
            program("return object()"),
            Outcome::BadOutput,
            "no plain data",
        ),
        (
            "not JSON",
            program("os.write(3, b'}')\nos._exit(0)"),
            Outcome::BadOutput,
            "no JSON",
        ),
        (
            "memory error",
            program("raise MemoryError"),
            Outcome::Oom,
            "",
        ),
    ]);
}

#[test]
fn arguments_are_data() {
    let quotes = "'); raise SystemExit('";
    let asked = Request {
        code: "def solve(text, numbers): return len(text) + sum(numbers)".to_owned(),
        arguments: vec![quotes.into(), vec![1.5, 2.5].into()],
        ..program("")
    };
    let finished = evaluate(&mut pool(), asked);
    assert_eq!(
        finished.score,
        Some(quotes.len() as f64 + 4.0),
        "{finished:?}"
    );
}

/// The matrix of what a program may try.
#[test]
fn hostile_programs_come_to_nothing() {
    let written = "/tmp/flowbench-evaluate-was-here";
    let _ = fs::remove_file(written);
    let write = format!("open('{written}', 'w').write('x')\nreturn 1");
    let link = format!("os.symlink('/etc/passwd', '{written}')\nreturn 1");
    let call = |number: i64, arguments: &str| {
        program(&format!(
            "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n\
             return libc.syscall({number}, {arguments})"
        ))
    };
    let denied = Outcome::Denied;
    expect(&[
        ("fork", program("return os.fork()"), denied, "SIGSYS"),
        ("fork, raw", call(libc_number::FORK, "0"), denied, "SIGSYS"),
        (
            "exec",
            program("os.execv('/bin/true', ['true'])"),
            denied,
            "SIGSYS",
        ),
        ("system", program("return os.system('true')"), denied, ""),
        (
            "subprocess",
            program("import subprocess\nsubprocess.run(['true'])"),
            denied,
            "",
        ),
        (
            "socket",
            program("import socket\nsocket.socket()"),
            denied,
            "SIGSYS",
        ),
        (
            "passwd",
            program("return len(open('/etc/passwd').read())"),
            denied,
            "/etc/passwd",
        ),
        (
            "proc",
            program("return len(open('/proc/self/environ').read())"),
            denied,
            "PermissionError",
        ),
        (
            "listing",
            program("return len(os.listdir('/root' if os.getuid() == 0 else '/'))"),
            denied,
            "PermissionError",
        ),
        ("write", program(&write), denied, "PermissionError"),
        ("symlink", program(&link), denied, "OSError"),
        ("unlink", program("os.unlink('/tmp/x')"), denied, "OSError"),
        (
            "chmod",
            program("os.chmod('/tmp', 0o777)"),
            denied,
            "OSError",
        ),
        (
            "signal the parent",
            program("os.kill(os.getppid(), 9)"),
            denied,
            "SIGSYS",
        ),
        ("signal all", program("os.kill(-1, 9)"), denied, "SIGSYS"),
        (
            "have others signalled",
            program("import fcntl\nfcntl.fcntl(3, fcntl.F_SETOWN, os.getppid())"),
            denied,
            "OSError",
        ),
        (
            "a device",
            program("open('/dev/null')"),
            denied,
            "PermissionError",
        ),
        (
            "a terminal",
            program("open('/dev/tty', 'r+b')"),
            denied,
            "PermissionError",
        ),
        (
            "ptrace",
            call(libc_number::PTRACE, "0, 0, 0, 0"),
            denied,
            "SIGSYS",
        ),
        (
            "mount",
            call(libc_number::MOUNT, "0, 0, 0, 0, 0"),
            denied,
            "SIGSYS",
        ),
        (
            "outlive the parent",
            call(libc_number::PRCTL, "1, 0, 0, 0, 0"),
            Outcome::Ok,
            "",
        ),
        (
            "3 GiB",
            program("return len(bytearray(3 << 30))"),
            Outcome::Oom,
            "MemoryError",
        ),
        (
            "segfault",
            program("import ctypes\nreturn ctypes.string_at(0)[0]"),
            Outcome::Crashed,
            "signal: 11",
        ),
        (
            "loop",
            within(300, "while True: pass"),
            Outcome::Timeout,
            "0.3 s",
        ),
        (
            "sleep",
            within(300, "import time\ntime.sleep(1000)"),
            Outcome::Timeout,
            "0.3 s",
        ),
        (
            "catches all",
            within(
                300,
                "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
            ),
            Outcome::Timeout,
            "",
        ),
        (
            "flood by return",
            program("return 'x' * 100_000_000"),
            Outcome::BadOutput,
            "1048576 bytes",
        ),
        (
            "flood by pipe",
            program("while True: os.write(3, b'x' * 65536)"),
            Outcome::BadOutput,
            "1048576 bytes",
        ),
        (
            "flood by print",
            within(300, "while True: print('x' * 65536)"),
            Outcome::Timeout,
            "",
        ),
        (
            "a million open files",
            program("files = [open(os.__file__) for _ in range(1_000_000)]\nreturn len(files)"),
            Outcome::RuntimeError,
            "Too many open files",
        ),
        (
            "a million pipes",
            program("return len([os.pipe() for _ in range(1_000_000)])"),
            denied,
            "OSError",
        ),
        (
            "descriptors of the zygote",
            program(
                "found = 0\nfor number in range(4, 1024):\n    try:\n        os.fstat(number)\n        \
                 found += 1\n    except OSError: pass\nreturn found",
            ),
            Outcome::Ok,
            "",
        ),
        (
            "a forged result",
            program("os.write(3, b'{\"returned\": 1e400}')\nos._exit(0)"),
            Outcome::BadOutput,
            "",
        ),
    ]);
    assert!(!fs::exists(written).unwrap(), "a program wrote {written}");
}

/// System calls by number, for programs that go past Python.
mod libc_number {
    #[cfg(target_arch = "x86_64")]
    pub(super) const FORK: i64 = 57;
    #[cfg(target_arch = "x86_64")]
    pub(super) const PTRACE: i64 = 101;
    #[cfg(target_arch = "x86_64")]
    pub(super) const MOUNT: i64 = 165;
    #[cfg(target_arch = "x86_64")]
    pub(super) const PRCTL: i64 = 157;
    // clone without flags
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) const FORK: i64 = 220;
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) const PTRACE: i64 = 117;
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) const MOUNT: i64 = 40;
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) const PRCTL: i64 = 167;
}

#[test]
fn no_descriptor_of_the_zygote_reaches_a_program() {
    let finished = evaluate(
        &mut pool(),
        program(
            "found = 0\nfor number in range(1024):\n    try:\n        os.fstat(number)\n        \
             found += 1\n    except OSError: pass\nreturn found",
        ),
    );
    // /dev/null three times, and the result pipe.
    assert_eq!(finished.score, Some(4.0), "{finished:?}");
}

#[test]
fn the_death_signal_cannot_be_taken_off() {
    let body = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n\
                return libc.prctl(1, 0, 0, 0, 0) * 1000 + ctypes.get_errno()";
    let finished = evaluate(&mut pool(), program(body));
    // -1 and ENOSYS.
    assert_eq!(finished.score, Some(-962.0), "{finished:?}");
}

#[test]
fn packings_are_scored_here() {
    let body = "centers = [((i % 6 + 0.5) / 6, (i // 6 + 0.5) / 6) for i in range(26)]\n\
                return centers, [1 / 12] * 26, 1000.0";
    let packing = |body: &str| Request {
        code: program(body).code.replace("solve", "run_packing"),
        entry_points: packing::ENTRY_POINTS.map(str::to_owned).to_vec(),
        score: packing::score,
        ..program("")
    };
    let mut pool = pool();
    let good = evaluate(&mut pool, packing(body));
    let score = good.score.unwrap();
    assert!((score - 26.0 / 12.0).abs() < 1e-9, "{good:?}");
    let too_large = evaluate(&mut pool, packing(&body.replace("1 / 12", "1 / 11")));
    assert_eq!(too_large.outcome, Outcome::Invalid);
    assert!(
        too_large.detail.contains("circle 0 leaves the unit square"),
        "{too_large:?}"
    );
}

#[test]
fn the_same_seed_gives_the_same_result_in_any_pool() {
    let body = "import random\nnames = {str(i) for i in range(50)}\n\
                return random.random() + int(''.join(names)[:9])";
    let seeded = |seed| Request {
        seed,
        ..program(body)
    };
    let (mut first, mut second) = (pool(), pool());
    let one = evaluate(&mut first, seeded(7));
    assert_eq!(one.outcome, Outcome::Ok, "{one:?}");
    assert_eq!(one.score, evaluate(&mut second, seeded(7)).score);
    assert_eq!(one.score, evaluate(&mut first, seeded(7)).score);
    assert_ne!(one.score, evaluate(&mut first, seeded(8)).score);
}

#[test]
fn programs_do_not_see_each_other() {
    let mut pool = pool();
    let change = "import math, random\nmath.pi = 3\nrandom.random = lambda: 0\nreturn math.pi";
    assert_eq!(evaluate(&mut pool, program(change)).score, Some(3.0));
    let after = evaluate(&mut pool, program("import math\nreturn math.pi"));
    assert_eq!(after.score, Some(std::f64::consts::PI));
}

#[test]
fn a_zygote_that_dies_is_replaced_and_its_work_done_again() {
    let mut pool = pool_of(1);
    let first = pool.zygote_pid();
    let id = pool.submit(program("import time\ntime.sleep(1)\nreturn 5"));
    wait_until("a child", || children_of(first).len() == 1);
    kill(first);
    let finished = collect(&mut pool).remove(&id).unwrap();
    assert_eq!(finished.score, Some(5.0), "{finished:?}");
    assert_eq!(finished.attempts, 2);
    assert_eq!(evaluate(&mut pool, program("return 6")).attempts, 1);
}

#[test]
fn an_evaluation_whose_zygote_dies_twice_is_nobodys_fault() {
    let mut pool = pool_of(1);
    let us = std::process::id();
    let mut zygote = pool.zygote_pid();
    let id = pool.submit(program("import time\ntime.sleep(1000)"));
    for _ in 0..2 {
        wait_until("a child", || children_of(zygote).len() == 1);
        let before: Vec<u32> = children_of(us);
        kill(zygote);
        if zygote == pool.zygote_pid() {
            wait_until("another zygote", || {
                let new = children_of(us)
                    .into_iter()
                    .find(|pid| !before.contains(pid) && children_of(*pid).len() == 1);
                new.is_some_and(|pid| {
                    zygote = pid;
                    true
                })
            });
        }
    }
    let finished = collect(&mut pool).remove(&id).unwrap();
    assert_eq!(finished.outcome, Outcome::InfraError, "{finished:?}");
    assert_eq!((finished.score, finished.attempts), (None, 2));
}

/// Not a test by itself: the process of the next one, in which no other test opens files.
#[test]
fn two_hundred_evaluations() {
    if std::env::var_os("FLOWBENCH_EVALUATE_ALONE").is_none() {
        return;
    }
    let mut pool = pool();
    let zygote = pool.zygote_pid();
    evaluate(&mut pool, program("return 1"));
    let descriptors = |pid: u32| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let own = std::process::id();
    let before = (descriptors(zygote), descriptors(own));
    for round in 0..10 {
        let bodies = ["return 1", "return [", "while True: pass", "os.fork()"];
        for body in bodies.iter().cycle().take(20) {
            pool.submit(within(5, body));
        }
        let all = collect(&mut pool);
        assert_eq!(all.len(), 20, "round {round}");
        for finished in all.values() {
            assert_eq!(finished.attempts, 1, "round {round}: {finished:?}");
            assert_ne!(finished.outcome, Outcome::InfraError, "{finished:?}");
        }
    }
    assert_eq!((descriptors(zygote), descriptors(own)), before);
    // Zombies count as children.
    assert_eq!(children_of(zygote), Vec::<u32>::new());
    println!("nothing grew");
}

#[test]
fn nothing_grows_over_200_evaluations() {
    let alone = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "two_hundred_evaluations", "--nocapture"])
        .env("FLOWBENCH_EVALUATE_ALONE", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&alone.stdout);
    assert!(said.contains("nothing grew"), "{said}");
}

#[test]
fn dropping_the_pool_kills_what_runs() {
    let mut pool = pool();
    let zygote = pool.zygote_pid();
    pool.submit(program("while True: pass"));
    wait_until("a child", || children_of(zygote).len() == 1);
    let child = children_of(zygote)[0];
    drop(pool);
    wait_until("their end", || !is_alive(zygote) && !is_alive(child));
}

/// Not a test by itself: the process that the next one kills.
#[test]
fn parent_that_is_killed() {
    if std::env::var_os("FLOWBENCH_EVALUATE_PARENT").is_none() {
        return;
    }
    let mut pool = pool();
    let zygote = pool.zygote_pid();
    pool.submit(program("while True: pass"));
    pool.submit(program("import time\ntime.sleep(1000)"));
    wait_until("children", || children_of(zygote).len() == 2);
    let children = children_of(zygote);
    println!("\npids {zygote} {} {}", children[0], children[1]);
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

#[test]
fn a_parent_that_is_killed_leaves_nothing() {
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "parent_that_is_killed", "--nocapture"])
        .env("FLOWBENCH_EVALUATE_PARENT", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    let pids: Vec<u32> = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("pids ").map(str::to_owned))
        .unwrap()
        .split(' ')
        .map(|pid| pid.parse().unwrap())
        .collect();
    assert!(pids.iter().all(|pid| is_alive(*pid)), "{pids:?}");
    parent.kill().unwrap();
    parent.wait().unwrap();
    wait_until("their end", || !pids.iter().any(|pid| is_alive(*pid)));
}

#[test]
fn a_missing_python_is_told_with_a_hint() {
    let error = Pool::start(settings("/nowhere/python3")).unwrap_err();
    assert_eq!(error.exit() as u8, 3);
    let chain = error.chain();
    assert!(chain.contains("'/nowhere/python3'"), "{chain}");
    assert!(error.hint_text().unwrap().contains("Python 3.9"));
}

#[test]
fn what_is_no_python_is_told() {
    let chain = Pool::start(settings("false")).unwrap_err().chain();
    assert!(chain.contains("it ended at once"), "{chain}");
}

/// One part of an evaluation's time.
type Part = fn(&Finished) -> Duration;

/// The figures of docs/evaluator.md. Python is `FLOWBENCH_EVALUATE_PYTHON`, or `python3`.
#[test]
#[ignore = "measures; run alone, in release, with --ignored --nocapture"]
fn what_an_evaluation_costs() {
    let python = std::env::var_os("FLOWBENCH_EVALUATE_PYTHON");
    let settings = Settings {
        parallel: 1,
        ..settings(python.unwrap_or_else(|| "python3".into()))
    };
    let from = Instant::now();
    let mut pool = Pool::start(settings).unwrap();
    println!(
        "\npool started in {:?}: {:?}",
        from.elapsed(),
        pool.python()
    );
    let circles = "centers = [((i % 6 + 0.5) / 6, (i // 6 + 0.5) / 6) for i in range(26)]\n\
                   return centers, [1 / 12] * 26, 1.0";
    let packing = Request {
        score: packing::score,
        ..program(circles)
    };
    let mut cases = vec![("trivial", program("return 1")), ("packing", packing)];
    if pool.python().loaded.contains_key("numpy") {
        let body = "import numpy as np\na = np.random.rand(200, 200)\n\
                    return float(np.linalg.norm(a @ a))";
        cases.push(("numpy", program(body)));
    }
    for (name, request) in cases {
        let all: Vec<Finished> = (0..200)
            .map(|_| evaluate(&mut pool, request.clone()))
            .collect();
        assert!(all.iter().all(|finished| finished.outcome == Outcome::Ok));
        println!("{name}, 200 times, p50 / p95 / max in ms");
        let parts: [(&str, Part); 5] = [
            ("start_up", |finished| finished.times.start_up),
            ("run", |finished| finished.times.run),
            ("stop", |finished| finished.times.stop),
            ("validate", |finished| finished.times.validate),
            ("overhead", |finished| finished.times.overhead()),
        ];
        for (part, of) in parts {
            println!("  {part:9} {}", percentiles(all.iter().map(of)));
        }
    }
    let killed: Vec<Finished> = (0..100)
        .map(|_| evaluate(&mut pool, within(20, "while True: pass")))
        .collect();
    let after = killed.iter().map(|finished| finished.killed_after.unwrap());
    println!(
        "gone after the deadline, 100 times\n  {}",
        percentiles(after)
    );
}

fn percentiles(durations: impl Iterator<Item = Duration>) -> String {
    let mut all: Vec<f64> = durations.map(|it| it.as_secs_f64() * 1e3).collect();
    all.sort_by(f64::total_cmp);
    let at = |share: f64| all[((all.len() - 1) as f64 * share).round() as usize];
    format!("{:7.3} {:7.3} {:7.3}", at(0.5), at(0.95), at(1.0))
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
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

fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

fn children_of(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|(_, of)| of == parent))
        .collect()
}

fn kill(pid: u32) {
    let status = Command::new("kill").args(["-9", &pid.to_string()]).status();
    assert!(status.unwrap().success());
}
