//! The figures of docs/evaluator.md.

use std::time::{Duration, Instant};

use flowbench::evaluate::{Finished, Outcome, Pool, Request, Settings, packing};

use crate::support::{evaluate, program, python, settings, within};

/// One part of an evaluation's time.
type Part = fn(&Finished) -> Duration;

#[test]
#[ignore = "measures; run alone, in release, with --ignored --nocapture"]
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
