//! What verdicts are worth, by simulation, and that causes add up.

use proptest::prelude::*;

use super::effects::{Effects, Shape};
use super::made::{STEPS, run};
use super::noise::{Knowledge, Sides};
use super::*;
use crate::record::compare::{MeasuredStep, Verdict};
use crate::record::metrics::CriticalStep;
use crate::units::Millis;

/// Simulated jobs of each kind.
const JOBS: usize = 2000;

/// A job that is measured `base` and then `new` times, after `earlier` runs.
#[derive(Debug, Clone, Copy)]
struct Design {
    base: usize,
    new: usize,
    earlier: usize,
}

/// What came of the simulated jobs, as shares.
#[derive(Debug)]
struct Simulated {
    covered: f64,
    false_alarms: f64,
    found: f64,
}

fn simulate(design: Design, shape: Shape, correlation: f64, seed: u64) -> Simulated {
    let mut effects = Effects::new(seed, shape);
    let threshold = 0.03f64.ln_1p();
    let mut counts = [0usize; 3];
    for job in 0..JOBS {
        // Run effects of 1 to 4 %.
        let deviation = 0.01 + 0.03 * job as f64 / JOBS as f64;
        let Design { base, new, earlier } = design;
        let series = effects.series(earlier + base + new, correlation);
        let series: Vec<f64> = series.iter().map(|effect| effect * deviation).collect();
        let mut places = (0..).zip(&series[earlier..]).map(|(place, m)| (place, *m));
        let sides = Sides {
            base: places.by_ref().take(base).collect(),
            new: places.collect(),
        };
        let means = series[..earlier].to_vec();
        let known = Knowledge::Measured(if earlier > 1 {
            vec![Earlier {
                means,
                drifting: true,
            }]
        } else {
            Vec::new()
        });
        let uncertainty = sides.uncertainty(&known);
        let visible = uncertainty.as_ref().map_or(f64::INFINITY, |known| {
            known.smallest_visible(decide::COVERAGE, threshold)
        });
        let tested = |by: f64| Tested {
            sides: Sides {
                new: (sides.new.iter())
                    .map(|(place, m)| (*place, m + by))
                    .collect(),
                ..sides.clone()
            },
            uncertainty: uncertainty.clone(),
            more_is_better: false,
        };
        let decision = decide(&[tested(0.0)], threshold)[0];
        let width = decision.half_width.expect("the noise is known");
        counts[0] += usize::from(sides.difference().abs() <= width);
        counts[1] += usize::from(decision.verdict == Verdict::Regressed);
        let slower = decide(&[tested(visible)], threshold)[0];
        counts[2] += usize::from(slower.verdict == Verdict::Regressed);
    }
    let share = |count: usize| count as f64 / JOBS as f64;
    Simulated {
        covered: share(counts[0]),
        false_alarms: share(counts[1]),
        found: share(counts[2]),
    }
}

const DESIGNS: [Design; 6] = [
    Design {
        base: 5,
        new: 1,
        earlier: 0,
    },
    Design {
        base: 10,
        new: 1,
        earlier: 0,
    },
    Design {
        base: 5,
        new: 3,
        earlier: 0,
    },
    Design {
        base: 8,
        new: 8,
        earlier: 0,
    },
    Design {
        base: 5,
        new: 1,
        earlier: 20,
    },
    Design {
        base: 1,
        new: 1,
        earlier: 20,
    },
];

/// The table: false alarms ≤ 5 %, intervals that cover ≥ 93 %, the smallest visible change found
/// ≥ 80 %, of 2,000 jobs each.
#[test]
fn verdicts_keep_their_word() {
    for (number, design) in (0..).zip(DESIGNS) {
        for shape in [Shape::Normal, Shape::HeavyTails, Shape::Outliers] {
            for correlation in [0.0, 0.5] {
                let came = simulate(design, shape, correlation, number);
                let what = format!("{design:?} {shape:?} {correlation} {came:?}");
                println!("{what}");
                assert!(came.false_alarms <= 0.05, "{what}");
                assert!(came.covered >= 0.93, "{what}");
                assert!(came.found >= 0.80, "{what}");
            }
        }
    }
}

fn question<'a>(base: &'a [MeasuredRun], new: &'a [MeasuredRun], metric: &str) -> Question<'a> {
    let (name, step) = metric.split_once(':').unwrap_or((metric, ""));
    Question {
        base,
        new,
        differences: &[],
        outputs_may_differ: false,
        metrics: vec![Metric {
            quantity: name.parse().expect("a metric"),
            steps: match step {
                "" => Steps::All,
                "*" => Steps::Each,
                step => Steps::One(step.to_owned()),
            },
        }],
        threshold: 0.01,
        assumed_noise: None,
        earlier: &|_| Vec::new(),
    }
}

/// Runs with a noise of 2 % in each step, and one step slowed by `slowed`.
fn noisy(side: &str, runs: u64, slowed: f64) -> Vec<MeasuredRun> {
    let of_run = |number: u64| {
        let mut effects = Effects::new(number * 7 + side.len() as u64, Shape::Normal);
        let factors: Vec<f64> = (0..20).map(|_| 1.0 + 0.02 * effects.normal()).collect();
        run(&format!("{side}{number}"), 10, |flow, step| {
            let slower = if STEPS[step] == "executor" {
                slowed
            } else {
                1.0
            };
            factors[flow * 2 + step] * slower
        })
    };
    (0..runs).map(of_run).collect()
}

#[test]
fn a_step_that_is_slower_by_five_percent_is_found_and_named() {
    let (base, new) = (noisy("base", 8, 1.0), noisy("new", 8, 1.05));
    let answer = compare(&question(&base, &new, "latency_ms:*")).expect("comparable");
    let verdict = |step: &str| {
        let of_step = |metric: &&MetricVerdict| metric.step.as_deref() == Some(step);
        answer.metrics.iter().find(of_step).expect("measured")
    };
    assert_eq!(
        verdict("executor").verdict,
        Verdict::Regressed,
        "{answer:?}"
    );
    assert_ne!(verdict("planner").verdict, Verdict::Regressed, "{answer:?}");
    let whole = compare(&question(&base, &new, "workflow_ms")).expect("comparable");
    let cause = &whole.metrics[0].causes[0];
    assert_eq!(
        (cause.step.as_str(), cause.term.as_str()),
        ("executor", "decode_ms_per_token")
    );
    assert_eq!(whole.verdict, Verdict::Regressed);
}

#[test]
fn one_run_against_one_is_no_verdict() {
    let (base, new) = (noisy("base", 1, 1.0), noisy("new", 1, 1.5));
    let answer = compare(&question(&base, &new, "workflow_ms")).expect("comparable");
    let metric = &answer.metrics[0];
    assert_eq!(
        (metric.verdict, metric.interval),
        (Verdict::NoVerdict, None)
    );
    assert_eq!(metric.noise.source, "unknown");
    let assumed = Question {
        assumed_noise: Some(0.03),
        ..question(&base, &new, "workflow_ms")
    };
    let answer = compare(&assumed).expect("comparable");
    assert_eq!(answer.verdict, Verdict::Regressed);
}

#[test]
fn a_faster_run_improves_and_an_equal_one_passes() {
    let base = noisy("base", 6, 1.0);
    let answer = |new: &[MeasuredRun]| {
        compare(&question(&base, new, "workflow_ms")).map(|answer| answer.verdict)
    };
    assert_eq!(answer(&noisy("new", 6, 0.8)), Ok(Verdict::Improved));
    let wide = Question {
        threshold: 0.05,
        ..question(&base, &base, "workflow_ms")
    };
    assert_eq!(
        compare(&wide).map(|answer| answer.verdict),
        Ok(Verdict::Pass)
    );
}

#[test]
fn longer_answers_are_work_and_other_outputs_are_told() {
    let base = noisy("base", 4, 1.0);
    let mut new = noisy("new", 4, 1.0);
    for run in &mut new {
        for step in run.steps.iter_mut().filter(|step| step.step == "planner") {
            // Twice the tokens in twice the time.
            step.tokens.decode *= 2;
            step.latency_ms.0 += 50.0;
            step.out_hash.push('x');
        }
        for workflow in &mut run.record.workflows {
            workflow.workflow_ms.0 += 50.0;
            workflow.critical_path[0].ms.0 += 50.0;
        }
    }
    // Nothing explains other outputs: judged at equal numbers of tokens.
    let equal = compare(&question(&base, &new, "workflow_ms")).expect("comparable");
    let metric = &equal.metrics[0];
    assert!(
        metric.at_equal_tokens && metric.change.abs() < 0.02,
        "{metric:?}"
    );
    assert_eq!(equal.outputs[0].step, "planner");
    assert_eq!(
        (equal.outputs[0].differing, equal.outputs[0].compared),
        (10, 10)
    );
    // A changed template explains them: the whole time counts.
    let differences = [Difference {
        name: "template".to_owned(),
        base: "a".to_owned(),
        new: "b".to_owned(),
    }];
    let whole = Question {
        differences: &differences,
        outputs_may_differ: true,
        ..question(&base, &new, "workflow_ms")
    };
    let whole = compare(&whole).expect("comparable");
    let metric = &whole.metrics[0];
    assert!(!metric.at_equal_tokens && metric.change > 0.2, "{metric:?}");
    let cause = &metric.causes[0];
    assert_eq!(
        (cause.step.as_str(), cause.term.as_str()),
        ("planner", "decode_tokens")
    );
    assert_eq!((cause.from, cause.to), (20.0, 40.0));
    assert_eq!(cause.why, "answers longer in 10 of 10 flows");
}

#[test]
fn a_lost_prefix_names_the_byte_where_the_template_changed() {
    let base = noisy("base", 3, 1.0);
    let mut new = noisy("new", 3, 1.0);
    let template = |system: &str| {
        Some(format!(
            "system = \"{system}\"\n[[step]]\nid = \"planner\"\n"
        ))
    };
    let base: Vec<MeasuredRun> = base
        .into_iter()
        .map(|mut run| {
            run.record.expansion.template_text = template("Review it.");
            run.steps.iter_mut().for_each(|step| {
                step.tokens.prompt = 300;
                step.tokens.reused = 200;
            });
            run
        })
        .collect();
    for run in &mut new {
        run.record.expansion.template_text = template("Review {{ row.id }} now.");
        for step in run.steps.iter_mut() {
            step.tokens.prompt = 300;
            step.tokens.prefill = 300;
            step.latency_ms.0 += 80.0;
            step.ttft_ms = step.ttft_ms.map(|ttft| Millis(ttft.0 + 80.0));
        }
        for workflow in &mut run.record.workflows {
            workflow.workflow_ms.0 += 160.0;
            workflow
                .critical_path
                .iter_mut()
                .for_each(|step| step.ms.0 += 80.0);
        }
    }
    let differences = [Difference {
        name: "template".to_owned(),
        base: "a".to_owned(),
        new: "b".to_owned(),
    }];
    let asked = Question {
        differences: &differences,
        outputs_may_differ: true,
        ..question(&base, &new, "workflow_ms")
    };
    let answer = compare(&asked).expect("comparable");
    let cause = &answer.metrics[0].causes[0];
    assert_eq!(cause.term, "prefill_tokens");
    assert_eq!(
        cause.why,
        "200 tokens no longer reused: the template changed at byte 7 of the system message"
    );
}

#[test]
fn flows_that_failed_are_left_out_on_both_sides() {
    let base = noisy("base", 3, 1.0);
    let mut new = noisy("new", 3, 1.0);
    new[1].record.workflows[4].error = Some("broken".to_owned());
    let answer = compare(&question(&base, &new, "workflow_ms")).expect("comparable");
    assert_eq!((answer.flows, answer.flows_left_out), (9, 1));
    for workflow in &mut new[1].record.workflows {
        workflow.error = Some("broken".to_owned());
    }
    let none = compare(&question(&base, &new, "workflow_ms"));
    assert_eq!(none.map(|_| ()), Err(Unanswerable::NoFlows));
    let absent = compare(&question(&base, &base, "energy_joules"));
    assert_eq!(
        absent.map(|_| ()),
        Err(Unanswerable::NoValues("energy_joules".to_owned()))
    );
}

#[test]
fn a_family_is_judged_by_holm() {
    let tested = |difference: f64| {
        let side = |place: usize, mean: f64| {
            vec![
                (place, mean),
                (place + 1, mean + 0.01),
                (place + 2, mean - 0.01),
            ]
        };
        let sides = Sides {
            base: side(0, 0.0),
            new: side(3, difference),
        };
        Tested {
            uncertainty: sides.uncertainty(&Knowledge::Measured(Vec::new())),
            sides,
            more_is_better: false,
        }
    };
    let family = [tested(0.0), tested(0.5), tested(0.06)];
    let coverages: Vec<f64> = decide(&family, 0.01)
        .iter()
        .map(|decision| decision.coverage)
        .collect();
    // The clearest one is tested at 5/3 %, the next at 5/2 %, and the last at 5 %.
    for (coverage, expected) in coverages.iter().zip([0.95, 1.0 - 0.05 / 3.0, 0.975]) {
        assert!((coverage - expected).abs() < 1e-12, "{coverages:?}");
    }
}

proptest! {
    /// Whatever changes, the causes add up to the change.
    #[test]
    fn causes_add_up(
        factors in prop::collection::vec(0.2f64..5.0, 24),
        tokens in prop::collection::vec(0usize..50, 24),
        runs in 1usize..3,
        metric in prop::sample::select(vec![
            "workflow_ms", "latency_ms", "ttft_ms", "tpot_ms", "benchmark_total_ms", "tokens",
            "latency_ms:planner",
        ]),
        may_differ in any::<bool>(),
    ) {
        let made = |side: usize, number: usize| {
            let at = |flow: usize, step: usize| (side * 12 + number * 6 + flow * 2 + step) % 24;
            let mut run = run(&format!("{side}-{number}"), 3, |flow, step| factors[at(flow, step)]);
            for (index, step) in run.steps.iter_mut().enumerate() {
                step.tokens.decode = 1 + tokens[at(index / 2, index % 2)];
                step.tokens.prefill = tokens[(at(index / 2, index % 2) + 5) % 24];
                step.out_hash = format!("{}", step.tokens.decode);
            }
            run
        };
        let side = |side: usize| (0..runs).map(|run| made(side, run)).collect::<Vec<_>>();
        let (base, new) = (side(0), side(1));
        let question = Question { outputs_may_differ: may_differ, ..question(&base, &new, metric) };
        let answer = compare(&question).expect("comparable");
        let metric = &answer.metrics[0];
        let sum: f64 = metric.causes.iter().map(|cause| cause.part).sum();
        prop_assert!(
            (sum - metric.change).abs() <= 1e-9 * metric.change.abs().max(1.0),
            "{} and {sum}: {:?}", metric.change, metric.causes
        );
    }
}

/// Looking every step up among all steps would take hours here.
#[test]
fn every_step_of_a_long_flow_has_its_metrics() {
    const LENGTH: usize = 30_000;
    let mut long = run("long", 1, |_, _| 1.0);
    let of_kind = |kind: usize, number: usize| {
        let mut step = long.steps[kind].clone();
        // A chain of its own ids, then the generations of a loop.
        step.step = format!("{}.{number}", ["chain", "child"][kind]);
        step.generation = (kind == 1).then_some(number);
        step.latency_ms = Millis((number + 1) as f64);
        step
    };
    let steps = (0..2).flat_map(|kind| (0..LENGTH).map(move |number| (kind, number)));
    let steps: Vec<MeasuredStep> = steps.map(|(kind, number)| of_kind(kind, number)).collect();
    let on_path = |step: &MeasuredStep| CriticalStep {
        step: step.step.clone(),
        ms: step.latency_ms,
    };
    long.record.workflows[0].critical_path = steps.iter().map(on_path).collect();
    long.steps = steps;

    let metrics = of_run(&long);
    let latency = |step: Option<&str>| {
        let wanted = |metric: &&RunMetric| {
            metric.selected.quantity == Quantity::LatencyMs
                && metric.selected.step.as_deref() == step
        };
        let metric = metrics.iter().find(wanted).expect("measured");
        (metric.median * 1000.0).round() / 1000.0
    };
    assert_eq!(latency(Some("chain.0")), 1.0);
    assert_eq!(latency(Some("chain.29999")), 30_000.0);
    assert_eq!(latency(Some("child")), 15_000.5);
    let answer = compare(&question(
        std::slice::from_ref(&long),
        std::slice::from_ref(&long),
        "latency_ms:child.7",
    ))
    .expect("comparable");
    assert_eq!(answer.metrics[0].compared, 1, "one generation");
    assert_eq!((answer.metrics[0].base * 1000.0).round(), 8_000.0);
}
