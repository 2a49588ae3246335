mod settings;

use serde_json::json;

use super::*;
use crate::record::PrefixRecord;
use crate::record::evaluation::EvaluationRecord;
use crate::record::profile::{DeviceKernel, DevicePhase, DeviceTimes, Profile, StageShare};
use crate::record::remote::RemoteRecord;
use crate::report::testing::run;
use crate::units::Millis;

fn ids(diagnosis: &Diagnosis) -> Vec<&str> {
    diagnosis.causes.iter().map(|cause| cause.id).collect()
}

#[test]
fn an_engine_for_each_workflow_is_the_cause() {
    let (mut record, steps) = run(25, 0.0, 200.0, 300.0);
    // 25 starts of 10 s: this replaces the original start of 200 ms.
    record.engine_starts = 25;
    record.engine_init_ms = Some(Millis(250_000.0));
    let total = record.totals.benchmark_total_ms.expect("set");
    record.totals.benchmark_total_ms = Some(total + Millis(250_000.0 - 200.0));
    let diagnosis = diagnose(&record, &steps);
    let cause = &diagnosis.causes[0];
    assert_eq!(cause.id, "engine_restarts");
    assert_eq!(cause.title, "An engine is started for each workflow");
    assert!(cause.advice.contains("one engine before the workflow loop"));
    assert!((cause.saves_s - 240.0).abs() < 1e-9, "all starts but one");
    let stage = &diagnosis.stages[0];
    assert_eq!(
        (stage.stage.as_str(), stage.verdict),
        ("engine_init", DiagnosisVerdict::Critical)
    );
    assert_eq!(stage.calls, 25);
}

#[test]
fn a_missing_expansion_cache_is_the_cause() {
    let (mut record, steps) = run(5, 0.0, 20.0, 30.0);
    record.expansion.cached = false;
    record.expansion.miss = Some("no cache".to_owned());
    record.expansion.flow_expansion_ms = Millis(60_000.0);
    let diagnosis = diagnose(&record, &steps);
    let cause = &diagnosis.causes[0];
    assert_eq!(cause.id, "no_expansion_cache");
    assert!(cause.evidence.contains("cache miss: no cache"));
    assert!(cause.advice.contains("flows/.expanded_cache.json"));
    assert_eq!(cause.saves_s, 60.0);

    // With the cache, the same time is not caused by a cache miss.
    record.expansion.cached = true;
    assert!(!ids(&diagnose(&record, &steps)).contains(&"no_expansion_cache"));
}

fn share(name: &str, calls: u64, seconds: f64) -> StageShare {
    StageShare {
        name: name.to_owned(),
        calls,
        union_s: seconds,
        exposed_s: seconds,
        split_s: seconds,
    }
}

#[test]
fn a_process_for_each_evaluation_is_the_cause() {
    let (mut record, steps) = run(25, 0.0, 20.0, 30.0);
    record.profile = Some(Profile {
        wall_s: 40.0,
        rows: Vec::new(),
        stages: vec![
            share("evaluate.start_up", 100, 30.0),
            share("evaluate.run", 100, 2.0),
            share("evaluate.validate", 100, 0.1),
            share("prefill", 75, 1.5),
            share("decode", 75, 2.3),
            share("verify", 0, 0.0),
        ],
        idle_s: 4.1,
        spans_dropped: 0,
        device: None,
    });
    let diagnosis = diagnose(&record, &steps);
    let cause = &diagnosis.causes[0];
    assert_eq!(cause.id, "evaluation_processes");
    assert!(
        cause.evidence.contains("100 starts of 300 ms each"),
        "{}",
        cause.evidence
    );
    assert!(cause.advice.contains("pool of workers"));
    assert!((cause.saves_s - 29.7).abs() < 1e-9);
    assert_eq!(diagnosis.source, Source::Profile);
    assert_eq!(
        diagnosis.stages.len(),
        5,
        "what was never called has no row"
    );
}

/// An evaluation step with these times: wait, start-up, run, stop.
fn trial(start: f64, times: [f64; 4], outcome: &str) -> StepRecord {
    let [waited, start_up, run, stop] = times.map(Millis);
    StepRecord {
        flow: 1,
        step: "trial".to_owned(),
        kind: Some("evaluate".to_owned()),
        outcome: Some(outcome.to_owned()),
        start_ms: Millis(start),
        latency_ms: waited + start_up + run + stop,
        queue_ms: Some(waited),
        evaluation: Some(EvaluationRecord {
            waited_ms: waited,
            start_up_ms: start_up,
            run_ms: run,
            stop_ms: stop,
            ..EvaluationRecord::default()
        }),
        ..StepRecord::default()
    }
}

#[test]
fn slow_evaluation_starts_are_found_without_a_profile() {
    let (record, mut steps) = run(2, 0.0, 20.0, 30.0);
    let after = record.totals.benchmark_total_ms.expect("set").0;
    // Pairs of concurrent evaluations, for 12 s in total; each has its own start-up of 300 ms.
    for number in 0..80 {
        let start = after + 320.0 * f64::from(number / 2);
        steps.push(trial(start, [0.0, 300.0, 10.0, 10.0], "ok"));
    }
    let diagnosis = diagnose(&record, &steps);
    assert_eq!(diagnosis.source, Source::Records);
    let cause = &diagnosis.causes[0];
    assert_eq!(cause.id, "evaluation_processes");
    assert!(
        cause
            .evidence
            .starts_with("80 starts of 300 ms each, 93.8 %"),
        "{}",
        cause.evidence
    );
    assert!(
        (cause.saves_s - 12.0 * 79.0 / 80.0).abs() < 1e-6,
        "{}",
        cause.saves_s
    );
    let stage = |name: &str| {
        let stage = diagnosis.stages.iter().find(|stage| stage.stage == name);
        stage.unwrap_or_else(|| panic!("{name} is there"))
    };
    assert_eq!(
        (
            stage("evaluate.start_up").calls,
            stage("evaluate.run").calls
        ),
        (80, 80)
    );
    assert!((stage("evaluate.start_up").union_s - 12.0).abs() < 1e-6);
    assert_eq!(stage("decode").calls, 6, "what is evaluated is not decoded");

    // A pool that starts processes in 3 ms is not a cause.
    let fast = steps.iter().cloned().map(|step| match step.evaluation {
        Some(_) => trial(step.start_ms.0, [0.0, 3.0, 10.0, 1.0], "ok"),
        None => step,
    });
    let diagnosis = diagnose(&record, &fast.collect::<Vec<_>>());
    assert!(!ids(&diagnosis).contains(&"evaluation_processes"));
}

#[test]
fn timeouts_are_the_cause() {
    let (record, mut steps) = run(2, 0.0, 20.0, 30.0);
    let after = record.totals.benchmark_total_ms.expect("set").0;
    steps.push(trial(after, [0.0, 3.0, 2000.0, 1.0], "timeout"));
    steps.push(trial(after + 2004.0, [0.0, 3.0, 20.0, 1.0], "ok"));
    let diagnosis = diagnose(&record, &steps);
    let cause = &diagnosis.causes[0];
    assert_eq!(cause.id, "evaluation_timeouts");
    assert_eq!(
        cause.evidence,
        "1 of 2 programs were killed after 2.00 s each; the longest of the others took 20.0 ms"
    );
    assert!((cause.saves_s - 2.0).abs() < 1e-6, "{}", cause.saves_s);
    steps.pop();
    assert!(
        diagnose(&record, &steps).causes[0]
            .evidence
            .ends_with("2.00 s each")
    );
}

#[test]
fn retries_are_a_cause() {
    let (mut record, mut steps) = run(5, 0.0, 100.0, 100.0);
    record.engine["kind"] = json!("remote");
    record.settings.insert("concurrency".to_owned(), json!(5));
    record.totals.remote = Some(RemoteRecord {
        requests: 15,
        attempts: 17,
        retries: 2,
        rate_limited: 2,
        backoff_ms: Millis(900.0),
        ..RemoteRecord::default()
    });
    for step in &mut steps {
        step.attempts = Some(1);
    }
    steps[4].attempts = Some(3);
    steps[4].ttft_ms = Some(Millis(1100.0));
    steps[4].latency_ms = Millis(1200.0);
    let diagnosis = diagnose(&record, &steps);
    let cause = diagnosis.causes.iter().find(|cause| cause.id == "retries");
    let cause = cause.expect("named");
    assert_eq!(
        cause.evidence,
        "2 of 17 calls were retries (2 rate-limited (429)), with 900 ms of waiting in between"
    );
    assert!(cause.advice.contains("CONCURRENCY"));
    assert!(
        cause.saves_s > 0.1 && cause.saves_s < 1.1,
        "{}",
        cause.saves_s
    );
    record.totals.remote = None;
    assert!(!ids(&diagnose(&record, &steps)).contains(&"retries"));
}

#[test]
fn repeated_start_ups_are_moderate_even_with_a_small_share() {
    let (mut record, steps) = run(5, 0.0, 20.0, 30.0);
    record.profile = Some(Profile {
        wall_s: 4000.0,
        stages: vec![
            share("evaluate.start_up", 10, 3.0),
            share("verify", 10, 3.0),
        ],
        ..Profile::default()
    });
    let diagnosis = diagnose(&record, &steps);
    let verdict = |name: &str| {
        let stage = diagnosis.stages.iter().find(|stage| stage.stage == name);
        stage.expect("called").verdict
    };
    assert_eq!(verdict("evaluate.start_up"), DiagnosisVerdict::Moderate);
    assert_eq!(verdict("verify"), DiagnosisVerdict::NotABottleneck);
}

#[test]
fn device_times_are_shown_by_kernel() {
    let (mut record, steps) = run(5, 0.0, 20.0, 30.0);
    let kernel = |name: &str, ncall, ttot_s, share| DeviceKernel {
        name: name.to_owned(),
        ncall,
        ttot_s,
        tavg_s: ttot_s / ncall as f64,
        share,
    };
    record.profile = Some(Profile {
        wall_s: 40.0,
        stages: vec![share("prefill", 15, 2.0), share("decode", 15, 20.0)],
        device: Some(DeviceTimes {
            name: "Simulated GPU".to_owned(),
            phases: vec![
                DevicePhase {
                    phase: "prefill".to_owned(),
                    passes: 15,
                    total_s: 1.5,
                    timed_passes: 15,
                    timed_s: 1.5,
                    kernels: vec![kernel("attention", 450, 1.0, 0.7)],
                },
                DevicePhase {
                    phase: "decode".to_owned(),
                    passes: 1000,
                    total_s: 15.0,
                    timed_passes: 63,
                    timed_s: 1.0,
                    kernels: vec![
                        kernel("linear", 5670, 0.6, 0.625),
                        kernel("gate", 1890, 0.36, 0.375),
                    ],
                },
            ],
        }),
        ..Profile::default()
    });
    let text = markdown(&diagnose(&record, &steps));
    let start = text.find("## Device time").expect("a section");
    let section = text[start..].split("\n## ").next();
    insta::assert_snapshot!(section.expect("text"));
}

#[test]
fn a_prefix_hostile_template_is_the_cause() {
    let (mut record, mut steps) = run(25, 0.0, 400.0, 100.0);
    record.settings.insert("mode".to_owned(), json!("reuse"));
    record.settings.insert("concurrency".to_owned(), json!(25));
    record
        .settings
        .insert("kv_cache_bytes".to_owned(), json!(512u64 << 20));
    record.expansion.prefix = Some(PrefixRecord {
        prompt_bytes: 100_000,
        reusable_bytes: 2_000,
        reusable_bytes_reordered: 90_000,
    });
    for step in &mut steps {
        step.tokens.reused = 16;
        step.tokens.prefill -= 16;
    }
    let diagnosis = diagnose(&record, &steps);
    let cause = &diagnosis.causes[0];
    assert_eq!(cause.id, "prefix_hostile_template");
    assert!(cause.advice.contains("before the row's own text"));
    assert!(
        cause
            .evidence
            .starts_with("2.0 % of the prompt tokens were reused")
    );
    let prefill = diagnosis
        .stages
        .iter()
        .find(|stage| stage.stage == "prefill");
    let prefill = prefill.expect("there");
    assert!((cause.saves_s - prefill.exposed_s * 0.88 / 0.98).abs() < 1e-6);

    // A template in a good order, in a run without reuse.
    record.expansion.prefix = Some(PrefixRecord {
        prompt_bytes: 100_000,
        reusable_bytes: 90_000,
        reusable_bytes_reordered: 90_000,
    });
    assert_eq!(ids(&diagnose(&record, &steps))[0], "prefixes_evicted");
    record
        .settings
        .insert("mode".to_owned(), json!("standalone"));
    assert_eq!(ids(&diagnose(&record, &steps))[0], "prefix_cache_off");
    for step in &mut steps {
        step.tokens.reused = 720;
    }
    assert!(
        !ids(&diagnose(&record, &steps))
            .iter()
            .any(|id| id.starts_with("prefix"))
    );
}

#[test]
fn slow_remote_calls_are_the_cause() {
    let (mut record, mut steps) = run(25, 0.0, 900.0, 100.0);
    record.engine["kind"] = json!("remote");
    for step in &mut steps {
        step.queue_ms = None;
    }
    let diagnosis = diagnose(&record, &steps);
    assert_eq!(ids(&diagnosis), ["slow_server", "one_call_at_a_time"]);
    let cause = &diagnosis.causes[0];
    assert!(cause.advice.contains("first tokens"), "{}", cause.advice);
    assert!(cause.evidence.contains("75 calls"), "{}", cause.evidence);
    assert!(diagnosis.causes[1].advice.contains("CONCURRENCY"));
    assert!(
        diagnosis
            .notes
            .iter()
            .any(|note| note.contains("queue wait"))
    );
}

#[test]
fn derived_stages_and_idle_add_up_to_the_wall_time() {
    let (mut record, mut steps) = run(4, 3.0, 50.0, 70.0);
    // Two overlapping flows, and a pause at the end.
    for step in steps.iter_mut().filter(|step| step.flow == 2) {
        step.start_ms = Millis(step.start_ms.0 - 100.0);
    }
    let total = record.totals.benchmark_total_ms.expect("set");
    record.totals.benchmark_total_ms = Some(total + Millis(500.0));
    let diagnosis = diagnose(&record, &steps);
    let split: f64 = diagnosis.stages.iter().map(|stage| stage.split_s).sum();
    assert!((split + diagnosis.idle_s - diagnosis.wall_s).abs() < 1e-9);
    assert!(diagnosis.idle_s >= 0.5);
    for stage in &diagnosis.stages {
        assert!(stage.exposed_s <= stage.split_s + 1e-9, "{stage:?}");
        assert!(stage.split_s <= stage.union_s + 1e-9, "{stage:?}");
    }
    let decode = diagnosis
        .stages
        .iter()
        .find(|stage| stage.stage == "decode");
    let decode = decode.expect("there");
    assert!(
        decode.exposed_s < decode.union_s,
        "some of it was beside a prefill"
    );
}

#[test]
fn what_people_read() {
    let (mut record, steps) = run(25, 1.0, 260.0, 195.0);
    record.expansion.prefix = Some(PrefixRecord {
        prompt_bytes: 250_000,
        reusable_bytes: 230_000,
        reusable_bytes_reordered: 231_000,
    });
    insta::assert_snapshot!(markdown(&diagnose(&record, &steps)));
}

#[test]
fn a_run_without_steps_has_no_causes() {
    let (mut record, _) = run(0, 0.0, 0.0, 0.0);
    record.totals.benchmark_total_ms = None;
    record.engine_init_ms = None;
    record.expansion.flow_expansion_ms = Millis(0.0);
    let diagnosis = diagnose(&record, &[]);
    assert!(diagnosis.causes.is_empty() && diagnosis.wall_s == 0.0);
    assert!(markdown(&diagnosis).contains("No known cause"));
}

#[test]
fn times_have_three_significant_digits() {
    let shown: Vec<String> = [
        1234.0, 99.96, 35.92, 9.996, 1.4277, 0.9996, 0.2279, 0.0277, 0.0012, 0.000_041,
    ]
    .into_iter()
    .map(seconds)
    .collect();
    let expected = [
        "1234 s", "100 s", "35.9 s", "10.0 s", "1.43 s", "1.00 s", "228 ms", "27.7 ms", "1.20 ms",
        "41.0 µs",
    ];
    assert_eq!(shown, expected);
}
