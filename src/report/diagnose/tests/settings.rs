//! Each cause under settings that leave something to advise, and under settings that do not.

use serde_json::{Value, json};

use super::*;
use crate::record::PlannedStep;

type Steps = Vec<StepRecord>;

/// Diagnoses a run of 6 flows, one in flight, dominated by prefill, with these settings. The key
/// `kind` selects the kind of engine.
fn with(settings: &Value, change: impl Fn(&mut RunRecord, &mut Steps)) -> Diagnosis {
    let (mut record, mut steps) = run(6, 50.0, 400.0, 400.0);
    let all = [
        ("kv_cache_bytes", json!(1u64 << 30)),
        ("engine_per_workflow", json!(false)),
        ("quiet", json!(false)),
        ("max_tokens", json!(null)),
        ("backend", json!("auto")),
        ("out", json!("results")),
    ];
    for (name, value) in all {
        record.settings.insert(name.to_owned(), value);
    }
    for (name, value) in settings.as_object().expect("an object") {
        match name.as_str() {
            "kind" => record.engine["kind"] = value.clone(),
            name => {
                record.settings.insert(name.to_owned(), value.clone());
            }
        }
    }
    change(&mut record, &mut steps);
    diagnose(&record, &steps)
}

fn shared(possible: u64, reordered: u64) -> impl Fn(&mut RunRecord, &mut Steps) {
    move |run, _| {
        run.expansion.prefix = Some(PrefixRecord {
            prompt_bytes: 100,
            reusable_bytes: possible,
            reusable_bytes_reordered: reordered,
        });
    }
}

fn reused(share: f64) -> impl Fn(&mut RunRecord, &mut Steps) {
    move |run, steps| {
        shared(90, 90)(run, steps);
        for step in steps {
            step.tokens.reused = (800.0 * share) as usize;
            step.tokens.prefill = 800 - step.tokens.reused;
        }
    }
}

fn unchanged(_: &mut RunRecord, _: &mut Steps) {}

/// Current settings of a cause; `None` if the cause is not reported.
fn now(diagnosis: &Diagnosis, id: &str) -> Option<String> {
    let cause = diagnosis.causes.iter().find(|cause| cause.id == id)?;
    assert!(cause.saves_s > 0.0 && !cause.advice.is_empty());
    Some(cause.now().trim().to_owned())
}

#[track_caller]
fn is(diagnosis: &Diagnosis, id: &str, expected: Option<&str>) {
    assert_eq!(
        now(diagnosis, id).as_deref(),
        expected,
        "{id}: {:?}",
        ids(diagnosis)
    );
}

#[test]
fn engine_restarts() {
    let restarted = |run: &mut RunRecord, _: &mut Steps| {
        run.engine_starts = 6;
        run.engine_init_ms = Some(Millis(60_000.0));
    };
    let given = with(&json!({"engine_per_workflow": true}), restarted);
    is(
        &given,
        "engine_restarts",
        Some("Now: --engine-per-workflow is on."),
    );
    is(&with(&json!({}), restarted), "engine_restarts", None);
    is(
        &with(&json!({"engine_per_workflow": true}), unchanged),
        "engine_restarts",
        None,
    );
}

#[test]
fn missed_expansion_caches() {
    let missed = |run: &mut RunRecord, _: &mut Steps| {
        run.expansion.cached = false;
        run.expansion.miss = Some("fixture changed".to_owned());
        run.expansion.flow_expansion_ms = Millis(5_000.0);
    };
    let id = "no_expansion_cache";
    is(
        &with(&json!({}), missed),
        id,
        Some("Now: the cache is missed (fixture changed)."),
    );
    let each = with(&json!({"engine_per_workflow": true}), missed);
    is(&each, id, Some("Now: --engine-per-workflow is on."));
    assert!(!markdown(&each).contains("Keep flows/"));
    is(&with(&json!({}), unchanged), id, None);
}

#[test]
fn unused_prefix_reuse() {
    let id = "prefix_cache_off";
    let off = with(&json!({}), shared(90, 90));
    is(&off, id, Some("Now: MODE is standalone."));
    let reuse = json!({"mode": "reuse", "concurrency": 6});
    is(&with(&reuse, shared(90, 90)), id, None);
    let evicted = with(&reuse, shared(90, 90));
    is(
        &evicted,
        "prefixes_evicted",
        Some("Now: KV_CACHE_MB is 1024, CONCURRENCY is 6."),
    );
    let alone = with(&json!({"mode": "reuse"}), shared(90, 90));
    is(
        &alone,
        "prefixes_evicted",
        Some("Now: KV_CACHE_MB is 1024."),
    );
    // Everything reusable is reused already.
    for mode in ["standalone", "reuse"] {
        let done = with(&json!({"mode": mode}), reused(0.85));
        assert!(
            ids(&done).iter().all(|id| !id.starts_with("prefix")),
            "{:?}",
            ids(&done)
        );
    }
    // No advice: other modes, or the only backend that supports the model.
    for (settings, backend) in [
        (json!({"mode": "both", "concurrency": 6}), "native"),
        (json!({"mode": "scripted", "kind": "scripted"}), "scripted"),
        (json!({}), "generic"),
    ] {
        let none = with(&settings, |run, steps| {
            shared(90, 90)(run, steps);
            run.engine["backend"] = json!(backend);
        });
        assert!(
            ids(&none).iter().all(|id| !id.starts_with("prefix")),
            "{settings}"
        );
        assert!(!markdown(&none).contains("MODE=reuse"), "{settings}");
    }
    let chosen = with(&json!({"backend": "generic"}), |run, steps| {
        shared(90, 90)(run, steps);
        run.engine["backend"] = json!("generic");
    });
    is(
        &chosen,
        id,
        Some("Now: BACKEND is generic, MODE is standalone."),
    );
}

#[test]
fn templates_with_late_shared_parts() {
    let id = "prefix_hostile_template";
    let off = with(&json!({}), shared(5, 90));
    is(
        &off,
        id,
        Some("Now: TEMPLATE is three_step, MODE is standalone."),
    );
    for settings in [
        json!({"mode": "reuse", "concurrency": 6}),
        json!({"mode": "remote", "kind": "remote", "concurrency": 6}),
    ] {
        let on = with(&settings, shared(5, 90));
        is(&on, id, Some("Now: TEMPLATE is three_step."));
        assert!(!markdown(&on).contains("MODE=reuse"), "{settings}");
    }
    is(&with(&json!({}), shared(90, 95)), id, None);
}

#[test]
fn a_reuse_run_is_not_told_to_reuse() {
    let settings = json!({"mode": "reuse", "concurrency": 6});
    let text = markdown(&with(&settings, reused(0.85)));
    assert!(!text.contains("MODE=reuse"), "{text}");
    assert!(!text.contains("Several flows in flight"), "{text}");
    let standalone = markdown(&with(&json!({}), shared(90, 90)));
    assert!(standalone.contains("Reuse prefixes with MODE=reuse (MODE is standalone)"));
}

#[test]
fn slow_servers_and_their_prefix_caches() {
    let remote = |concurrency: usize| json!({"mode": "remote", "kind": "remote", "concurrency": concurrency});
    // The prefix cache works: it must not be advised.
    let warm = with(&remote(6), reused(0.99));
    assert_eq!(ids(&warm), ["slow_server"]);
    assert!(
        !markdown(&warm).contains("prefix cache"),
        "{}",
        markdown(&warm)
    );
    is(&warm, "slow_server", Some("Now: CONCURRENCY is 6."));
    let cold = with(&remote(6), reused(0.0));
    is(&cold, "server_prefix_cache", Some(""));
    assert!(now(&cold, "slow_server").is_some());
    is(&with(&remote(6), unchanged), "server_prefix_cache", None);

    let id = "one_call_at_a_time";
    is(
        &with(&remote(1), reused(0.99)),
        id,
        Some("Now: CONCURRENCY is 1."),
    );
    is(&with(&remote(2), reused(0.99)), id, None);
    let decoding = with(&remote(6), |_, steps| {
        for step in steps {
            step.queue_ms = None;
            step.ttft_ms = Some(Millis(10.0));
        }
    });
    is(
        &decoding,
        "slow_server",
        Some("Now: MAX_TOKENS is the template's."),
    );
    is(&with(&json!({}), unchanged), "slow_server", None);
}

#[test]
fn retried_calls() {
    let again = |rate_limited: usize| {
        move |run: &mut RunRecord, steps: &mut Steps| {
            run.totals.remote = Some(RemoteRecord {
                attempts: 19,
                retries: 1,
                rate_limited,
                server_errors: 1 - rate_limited,
                ..RemoteRecord::default()
            });
            for step in steps.iter_mut() {
                step.attempts = Some(1);
            }
            steps[4].attempts = Some(2);
            steps[4].ttft_ms = Some(Millis(3000.0));
            steps[4].latency_ms = Millis(3400.0);
        }
    };
    let remote = |concurrency: usize| json!({"kind": "remote", "concurrency": concurrency, "remote": {"retry_delay_s": 0.5}});
    is(
        &with(&remote(6), again(1)),
        "retries",
        Some("Now: CONCURRENCY is 6."),
    );
    is(
        &with(&remote(1), again(1)),
        "retries",
        Some("Now: RETRY_DELAY is 0.5."),
    );
    is(&with(&remote(6), again(0)), "retries", Some(""));
}

#[test]
fn one_sequence_at_a_time() {
    let id = "one_at_a_time";
    is(
        &with(&json!({}), unchanged),
        id,
        Some("Now: MODE is standalone, CONCURRENCY is 1."),
    );
    let reuse = with(&json!({"mode": "reuse"}), unchanged);
    is(&reuse, id, Some("Now: CONCURRENCY is 1."));
    for settings in [
        json!({"concurrency": 2}),
        json!({"mode": "both"}),
        json!({"engine_per_workflow": true}),
        json!({"mode": "scripted", "kind": "scripted"}),
    ] {
        let none = with(&settings, unchanged);
        is(&none, id, None);
        assert!(
            !markdown(&none).contains("Several flows in flight"),
            "{settings}"
        );
    }
    let generic = with(&json!({}), |run, _| {
        run.engine["backend"] = json!("generic")
    });
    is(&generic, id, None);
}

#[test]
fn queue_waits() {
    let waits = |_: &mut RunRecord, steps: &mut Steps| {
        for step in steps {
            step.queue_ms = Some(Millis(400.0));
        }
    };
    is(
        &with(&json!({"profile": false}), waits),
        "queue",
        Some("Now: PROFILE is off."),
    );
    let several = with(&json!({"concurrency": 6, "profile": false}), waits);
    let all = "Now: PROFILE is off, KV_CACHE_MB is 1024, CONCURRENCY is 6.";
    is(&several, "queue", Some(all));
    is(&with(&json!({"kind": "scripted"}), waits), "queue", None);
    let profiled = |concurrency: usize| {
        with(&json!({"concurrency": concurrency}), |run, steps| {
            waits(run, steps);
            run.profile = Some(Profile {
                wall_s: 10.0,
                stages: vec![share("queue_wait", 18, 5.0)],
                ..Profile::default()
            });
        })
    };
    is(&profiled(1), "queue", None);
    is(
        &profiled(6),
        "queue",
        Some("Now: KV_CACHE_MB is 1024, CONCURRENCY is 6."),
    );
    // KV cache memory does not help programs that wait for a processor.
    let programs = with(&json!({"concurrency": 6}), |run, steps| {
        let end = run.totals.benchmark_total_ms.expect("set").0;
        steps.push(trial(end, [5000.0, 1.0, 1.0, 1.0], "ok"));
    });
    is(&programs, "queue", Some(""));
    assert!(
        !markdown(&programs).contains("KV_CACHE_MB"),
        "{}",
        markdown(&programs)
    );
}

#[test]
fn slow_program_starts() {
    let trials = |pool: bool| {
        move |run: &mut RunRecord, steps: &mut Steps| {
            run.pool_init_ms = pool.then_some(Millis(50.0));
            let end = run.totals.benchmark_total_ms.expect("set").0;
            for number in 0..10 {
                let start = end + 420.0 * f64::from(number);
                steps.push(trial(start, [0.0, 400.0, 10.0, 10.0], "ok"));
            }
        }
    };
    let id = "evaluation_processes";
    let none = with(&json!({}), trials(false));
    assert!(markdown(&none).contains("in a pool of workers"));
    for (concurrency, expected) in [(1, ""), (6, "Now: CONCURRENCY is 6.")] {
        let pool = with(&json!({"concurrency": concurrency}), trials(true));
        is(&pool, id, Some(expected));
        let text = markdown(&pool);
        assert!(
            !text.contains("pool of workers") && !text.contains("Reuse workers"),
            "{text}"
        );
    }
}

#[test]
fn timeouts_that_valid_programs_need() {
    let trials = |longest: f64| {
        move |run: &mut RunRecord, steps: &mut Steps| {
            let end = run.totals.benchmark_total_ms.expect("set").0;
            steps.push(trial(end, [0.0, 3.0, 5000.0, 1.0], "timeout"));
            steps.push(trial(end + 5004.0, [0.0, 3.0, longest, 1.0], "ok"));
        }
    };
    let id = "evaluation_timeouts";
    for (longest, lower) in [(20.0, true), (4000.0, false)] {
        let diagnosis = with(&json!({}), trials(longest));
        is(&diagnosis, id, Some("Now: timeout_ms is about 5000."));
        assert_eq!(
            markdown(&diagnosis).contains("Lower the step's timeout_ms"),
            lower
        );
    }
}

#[test]
fn stage_advice_depends_on_the_settings() {
    let stages = [
        "flow_expansion",
        "engine_init",
        "schedule",
        "sample",
        "record_io",
        "decode",
        "locate_model",
    ];
    let advised = |settings: &Value, temperature: f64, cached: bool| {
        let diagnosis = with(settings, |run, _| {
            run.expansion.cached = cached;
            run.expansion.steps = vec![PlannedStep {
                temperature,
                ..PlannedStep::default()
            }];
            run.profile = Some(Profile {
                wall_s: 10.0,
                stages: stages.map(|name| share(name, 2, 1.0)).to_vec(),
                ..Profile::default()
            });
        });
        let advice = diagnosis.stages.iter().map(|stage| stage.advice.as_str());
        advice.collect::<Vec<_>>().join("\n")
    };
    let much = advised(&json!({"concurrency": 4}), 0.7, false);
    for part in [
        "Keep flows/",
        "CONCURRENCY is 4",
        "temperature is 0.7",
        "QUIET is 0",
        "OUT is results",
        "MAX_TOKENS is the template's",
    ] {
        assert!(much.contains(part), "{part}: {much}");
    }
    let little = advised(
        &json!({"quiet": true, "max_tokens": 64, "mode": "reuse"}),
        0.0,
        true,
    );
    for part in [
        "Keep flows/",
        "Fewer sequences",
        "Greedy",
        "QUIET",
        "Start one engine",
        "MODE=reuse",
    ] {
        assert!(!little.contains(part), "{part}: {little}");
    }
    assert!(little.contains("MAX_TOKENS is 64") && little.contains("CONCURRENCY is 1"));
}
