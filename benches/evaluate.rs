//! What an evaluation and a check of a mathematical answer cost: the figures of docs/evaluator.md.
//!
//! `cargo bench --bench evaluate`, on an idle machine. `FLOWBENCH_TEST_PYTHON` selects the Python; without
//! numpy or math-verify, their part is skipped.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and may panic"
)]

use std::time::{Duration, Instant};

use flowbench::evaluate::verify::Verdict;
use flowbench::evaluate::{
    Finished, Library, Outcome, Pool, Request, Settings, Times, Verifier, VerifierSettings, packing,
};

#[expect(dead_code, reason = "the tests use the rest")]
#[path = "../tests/it/evaluate/support.rs"]
mod support;

use support::{evaluate, program, python, settings, within};

fn main() {
    what_an_evaluation_costs();
    what_a_math_check_costs();
}

/// One part of an evaluation's time.
type Part = fn(&Times) -> Duration;

fn what_an_evaluation_costs() {
    let settings = Settings {
        parallel: 1,
        ..settings(python())
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
        let times: Vec<Times> = all.iter().map(|finished| finished.times).collect();
        print(name, &times);
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

fn what_a_math_check_costs() {
    let settings = VerifierSettings {
        library: Library::Needed,
        ..VerifierSettings::new(settings(python()))
    };
    let from = Instant::now();
    let mut verifier = match Verifier::start(settings) {
        Ok(verifier) => verifier,
        Err(error) => return println!("skipped: {error}"),
    };
    println!(
        "\nverifier started in {:?}: {:?}",
        from.elapsed(),
        verifier.library()
    );
    let cases = [
        ("surds", r"\sqrt{12}", r"2\sqrt{3}"),
        ("polynomials", "-10+3x+x^2", "x^2+3x-10"),
        ("intervals", r"\left(1, 2\right]", "(1, 2]"),
    ];
    for (name, answer, expected) in cases {
        let times: Vec<Times> = (0..100)
            .map(|round| {
                verifier.submit(&format!("{round}"), answer, expected);
                let verified = verifier.poll(Duration::from_secs(60)).remove(0);
                assert_eq!(verified.verdict, Verdict::Equal);
                verified.times
            })
            .collect();
        print(name, &times);
    }
}

fn print(name: &str, times: &[Times]) {
    println!("{name}, {} times, p50 / p95 / max in ms", times.len());
    let parts: [(&str, Part); 5] = [
        ("start_up", |times| times.start_up),
        ("run", |times| times.run),
        ("stop", |times| times.stop),
        ("validate", |times| times.validate),
        ("overhead", Times::overhead),
    ];
    for (part, of) in parts {
        println!("  {part:9} {}", percentiles(times.iter().map(of)));
    }
}

fn percentiles(durations: impl Iterator<Item = Duration>) -> String {
    let mut all: Vec<f64> = durations.map(|it| it.as_secs_f64() * 1e3).collect();
    all.sort_by(f64::total_cmp);
    let at = |share: f64| all[((all.len() - 1) as f64 * share).round() as usize];
    format!("{:7.3} {:7.3} {:7.3}", at(0.5), at(0.95), at(1.0))
}
