//! What ordinary programs come to.

use std::time::Duration;

use flowbench::evaluate::{Outcome, Request, packing};

use super::support::{PATIENCE, collect, evaluate, expect, pool, pool_of, program};

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
    for mark in [
        "b'S' + struct.pack('=I', os.getpid())",
        "b'S' + struct.pack('<Q', 0)",
        "b'F' + struct.pack('=I', os.getpid()) + b'the disk is broken'",
        "b'Fthe disk is broken'",
    ] {
        let body = format!(
            "import struct, time\ntime.sleep(0.05)\n\
             os.write(3, {mark} + b'{{\"returned\": 1}}')\nos._exit(0)"
        );
        let finished = evaluate(&mut pool(), program(&body));
        assert_eq!(finished.outcome, Outcome::BadOutput, "{mark}: {finished:?}");
        assert!(
            finished.times.run >= Duration::from_millis(50),
            "{finished:?}"
        );
        assert!(finished.times.run < PATIENCE, "{finished:?}");
    }
}

/// A program that could take back what its process said before it began would have no deadline, and could
/// speak for the machinery.
#[test]
fn what_precedes_a_program_cannot_be_read_back_by_it() {
    let steal = "import struct, time\n\
                 def steal(flags):\n    try: return os.read(os.open('/proc/self/fd/3', flags), 9)\n    \
                 except OSError: return b''\n\
                 stolen = steal(os.O_RDONLY | os.O_NONBLOCK) or steal(os.O_RDWR | os.O_NONBLOCK)\n";
    let code = |then: &str| Request {
        code: format!("import os\n{steal}{then}"),
        deadline: Duration::from_millis(200),
        ..program("")
    };
    let late = "def solve():\n    time.sleep(1)\n    return 1\n\
                if stolen:\n    os.write(3, b'S' + struct.pack('=I', os.getpid()))";
    let infra = "if stolen: os.write(3, b'F\\0\\0\\0\\0the disk is broken'); os._exit(0)\n\
                 def solve(): return len(stolen)";
    let mut pool = pool();
    for _ in 0..20 {
        let (late, infra) = (pool.submit(code(late)), pool.submit(code(infra)));
        let all = collect(&mut pool);
        assert_eq!(all[&late].outcome, Outcome::Timeout, "{:?}", all[&late]);
        assert_eq!(all[&infra].score, Some(0.0), "{:?}", all[&infra]);
    }
}

/// A result counts once it is complete, and what a program does then is its own affair, as long as it ends.
#[test]
fn a_result_that_was_in_time_is_kept_and_no_process_goes_on() {
    let mut pool = pool();
    let quiet = |then: &str| Request {
        deadline: Duration::from_millis(300),
        ..program(&format!(
            "import time\nos.write(3, b'{{\"returned\": 1}}')\n{then}"
        ))
    };
    let closed = evaluate(&mut pool, quiet("os.close(3)\nwhile True: pass"));
    assert_eq!(closed.score, Some(1.0), "{closed:?}");
    let after = closed.killed_after.unwrap();
    assert!(after < PATIENCE / 10, "{after:?}");
    // One that keeps the socket could still say more.
    let open = evaluate(&mut pool, quiet("time.sleep(60)"));
    assert_eq!(open.outcome, Outcome::Timeout, "{open:?}");
}

#[test]
fn programs_are_run_as_their_writers_expect() {
    let whole = |code: &str| Request {
        code: code.to_owned(),
        ..program("")
    };
    expect(&[
        (
            "postponed annotations of a dataclass",
            whole(
                "from __future__ import annotations\nfrom dataclasses import dataclass\n\
                 @dataclass\nclass K:\n    x: float = 2.0\ndef solve(): return K().x",
            ),
            Outcome::Ok,
            "",
        ),
        (
            "type hints, pickle and the source of a class",
            whole(
                "import inspect, pickle, typing\nclass K:\n    x: 'float'\n\
                 def f(): return 1\n\
                 def solve():\n    assert typing.get_type_hints(K) == {'x': float}\n    \
                 assert isinstance(pickle.loads(pickle.dumps(K())), K)\n    \
                 assert inspect.getsource(f) == 'def f(): return 1\\n'\n    return f()",
            ),
            Outcome::Ok,
            "",
        ),
        (
            "is not the main program",
            whole("def solve(): return 1\nif __name__ == '__main__': solve = None"),
            Outcome::Ok,
            "",
        ),
        (
            "parses its arguments",
            whole(
                "import argparse\ndef solve():\n    \
                 return len(vars(argparse.ArgumentParser().parse_args()))",
            ),
            Outcome::Ok,
            "",
        ),
        (
            "reads standard input",
            program("return len(sys.stdin.read())"),
            Outcome::Ok,
            "",
        ),
        (
            "asks for input",
            program("return input('how many? ')"),
            Outcome::RuntimeError,
            "EOFError",
        ),
        (
            "prints what no encoding has",
            program("print('\\u25ef' * 1000)\nreturn 1"),
            Outcome::Ok,
            "",
        ),
        (
            "an encoding, form feeds, tabs and other line ends",
            whole("# -*- coding: latin-1 -*-\r\n\x0cdef solve():\r\n\treturn len('ü')\r\n"),
            Outcome::Ok,
            "",
        ),
        (
            "quotes of a word processor",
            program("return \u{201c}x\u{201d}"),
            Outcome::RuntimeError,
            "SyntaxError",
        ),
        (
            "ends itself",
            program("os.abort()"),
            Outcome::Crashed,
            "signal: 6",
        ),
        (
            "raises a signal for its own handler",
            program(
                "import signal\nseen = []\nsignal.signal(signal.SIGUSR1, lambda *_: seen.append(1))\n\
                 signal.raise_signal(signal.SIGUSR1)\nreturn len(seen)",
            ),
            Outcome::Ok,
            "",
        ),
        (
            "words without end",
            program(
                "os.write(3, b'{\"raised\": \"runtime_error\", \"message\": \"' + b'no ' * 50000 + b'\"}')\nos._exit(0)",
            ),
            Outcome::RuntimeError,
            "no no no",
        ),
    ]);
}

#[test]
fn no_text_of_a_program_goes_on_for_ever() {
    let mut pool = pool();
    for body in [
        "os.write(3, b'{\"raised\": \"oom\", \"message\": \"' + '\u{fc}'.encode() * 60000 + b'\"}')\nos._exit(0)",
        "os.write(3, b'{\"raised\": \"' + b'x' * 100000 + b'\"}')\nos._exit(0)",
        "raise ValueError('\\udcff' * 100000)",
    ] {
        let finished = evaluate(&mut pool, program(body));
        assert_ne!(finished.outcome, Outcome::Ok);
        assert!(finished.detail.chars().count() <= 2000, "{body}");
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
            "bad JSON",
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
            "not plain data",
        ),
        (
            "not JSON",
            program("os.write(3, b'}')\nos._exit(0)"),
            Outcome::BadOutput,
            "bad JSON",
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
