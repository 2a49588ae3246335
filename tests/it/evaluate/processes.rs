//! Zygotes and their children: replaced when they die, gone when nobody needs them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use flowbench::evaluate::{Outcome, Pool};

use super::support::{
    children_of, collect, evaluate, is_alive, pool, pool_of, program, settings, wait_until, within,
};

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

/// Not a test by itself: the process of the next one, whose children are this test's zygotes only.
#[test]
fn two_deaths() {
    if std::env::var_os(ALONE).is_none() {
        return;
    }
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
    println!("nobody's fault");
}

#[test]
fn an_evaluation_whose_zygote_dies_twice_is_nobodys_fault() {
    let said = alone("evaluate::processes::two_deaths");
    assert!(said.contains("nobody's fault"), "{said}");
}

/// Set in a process that runs one test.
const ALONE: &str = "FLOWBENCH_EVALUATE_ALONE";

/// What a test prints in a process of its own.
fn alone(test: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Not a test by itself: the process of the next one, in which no other test opens files.
#[test]
fn two_hundred_evaluations() {
    if std::env::var_os(ALONE).is_none() {
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
    let said = alone("evaluate::processes::two_hundred_evaluations");
    assert!(said.contains("nothing grew"), "{said}");
}

#[test]
fn what_is_given_up_makes_room_and_is_not_told() {
    let mut pool = pool_of(1);
    let zygote = pool.zygote_pid();
    let hangs = || within(1_000_000, "import time\ntime.sleep(1000)");
    let (running, waiting) = (pool.submit(hangs()), pool.submit(hangs()));
    wait_until("a child", || children_of(zygote).len() == 1);
    pool.cancel(waiting);
    pool.cancel(running);
    assert_eq!(pool.open(), 0);
    assert_eq!(evaluate(&mut pool, program("return 7")).score, Some(7.0));
    wait_until("nobody", || children_of(zygote).is_empty());
    assert!(pool.poll(Duration::ZERO).is_empty());
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
        .args([
            "--exact",
            "evaluate::processes::parent_that_is_killed",
            "--nocapture",
        ])
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

/// Not a test by itself: the process that the next one stops for a while.
#[test]
fn parent_that_is_stopped() {
    if std::env::var_os("FLOWBENCH_EVALUATE_STOPPED").is_none() {
        return;
    }
    let mut pool = pool();
    let zygote = pool.zygote_pid();
    let late = pool.submit(within(2000, "import time\ntime.sleep(3)\nreturn 1"));
    let in_time = pool.submit(within(2000, "import time\ntime.sleep(0.5)\nreturn 2"));
    wait_until("children", || children_of(zygote).len() == 2);
    println!("\npid {}", std::process::id());
    let all = collect(&mut pool);
    println!("late {}", all[&late].outcome);
    let in_time = &all[&in_time];
    println!(
        "in time {} {}",
        in_time.outcome,
        in_time.times.run.as_millis()
    );
}

/// The kernel's stamps decide, not the moment at which the pool looks.
#[test]
fn a_pool_that_was_stopped_judges_as_one_that_was_not() {
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "evaluate::processes::parent_that_is_stopped",
            "--nocapture",
        ])
        .env("FLOWBENCH_EVALUATE_STOPPED", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(parent.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let mut after = |start: &str| {
        let line = lines.find_map(|line| line.strip_prefix(start).map(str::to_owned));
        line.unwrap_or_else(|| panic!("no line {start}"))
    };
    let pid = after("pid ");
    signal("-STOP", &pid);
    std::thread::sleep(Duration::from_secs(5));
    signal("-CONT", &pid);
    assert_eq!(after("late "), "timeout");
    let in_time = after("in time ");
    let run = in_time.strip_prefix("ok ").expect("in time");
    assert!((450..2000).contains(&run.parse::<u64>().unwrap()), "{run}");
    parent.wait().unwrap();
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

fn kill(pid: u32) {
    signal("-9", &pid.to_string());
}

fn signal(which: &str, pid: &str) {
    let status = Command::new("kill").args([which, pid]).status();
    assert!(status.unwrap().success());
}
