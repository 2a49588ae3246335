//! What ordinary programs come to.

use std::time::Duration;

use flowbench::evaluate::{Outcome, Request, packing};

use crate::support::{PATIENCE, collect, evaluate, expect, pool, pool_of, program};

/// A program's time is measured from its own first line, however late the pool's thread is woken.
#[test]
fn a_program_that_sleeps_has_run_as_long() {
    let mut pool = pool_of(4);
    let body = "import time\ntime.sleep(0.05)\nreturn 1";
    // A busy machine is what this is about, and some programs at once make one.
    let ids: Vec<_> = (0..12).map(|_| pool.submit(program(body))).collect();
    let all = collect(&mut pool);
    for id in ids {
        let finished = &all[&id];
        assert_eq!(finished.score, Some(1.0), "{finished:?}");
        assert!(
            finished.times.run >= Duration::from_millis(50),
            "{finished:?}"
        );
    }
}

/// What a program writes itself stands behind what was written for it.
#[test]
fn a_program_cannot_say_when_it_began() {
    for stamp in ["0", "2**64 - 1", "time.monotonic_ns() + 10**9"] {
        let body = format!(
            "import struct, time\ntime.sleep(0.05)\n\
             os.write(3, b'S' + struct.pack('<Q', {stamp}) + b'{{\"returned\": 1}}')\nos._exit(0)"
        );
        let finished = evaluate(&mut pool(), program(&body));
        assert_eq!(
            finished.outcome,
            Outcome::BadOutput,
            "{stamp}: {finished:?}"
        );
        assert!(
            finished.times.run >= Duration::from_millis(50),
            "{finished:?}"
        );
        assert!(finished.times.run < PATIENCE, "{finished:?}");
    }
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
            "raises half a surrogate pair",
            program("raise ValueError('half: \\udcff')"),
            Outcome::RuntimeError,
            r"ValueError: half: \udcff (line 3)",
        ),
        (
            "returns half a surrogate pair",
            program("return '\\udcff'"),
            Outcome::BadOutput,
            "no JSON",
        ),
        (
            "has itself interrupted",
            program(
                "import signal\ndef ring(*_): raise RuntimeError('it rang')\n\
                 signal.signal(signal.SIGALRM, ring)\n\
                 signal.setitimer(signal.ITIMER_REAL, 0.01)\nwhile True: pass",
            ),
            Outcome::RuntimeError,
            "it rang",
        ),
        (
            "takes its alarm back",
            program("import signal\nsignal.alarm(60)\nreturn signal.alarm(0)"),
            Outcome::Ok,
            "",
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
fn programs_do_not_see_each_other() {
    let mut pool = pool();
    let change = "import math, random\nmath.pi = 3\nrandom.random = lambda: 0\nreturn math.pi";
    assert_eq!(evaluate(&mut pool, program(change)).score, Some(3.0));
    let after = evaluate(&mut pool, program("import math\nreturn math.pi"));
    assert_eq!(after.score, Some(std::f64::consts::PI));
}

#[test]
fn a_program_can_look_up_its_limits() {
    let mut pool = pool();
    for look_up in [
        "getrlimit(resource.RLIMIT_AS)",
        "prlimit(0, resource.RLIMIT_AS)",
    ] {
        let body = format!("import resource\nreturn resource.{look_up}[0]");
        let finished = evaluate(&mut pool, program(&body));
        assert_eq!(finished.score, Some(f64::from(1_u32 << 31)), "{finished:?}");
    }
}
