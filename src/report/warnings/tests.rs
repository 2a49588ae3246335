use serde_json::json;

use super::*;
use crate::record::gpu::GpuRecord;
use crate::record::remote::RemoteRecord;
use crate::record::shard::{Shard, ShardRun};
use crate::record::validity::Taint;
use crate::report::testing::run;
use crate::units::Millis;

fn found(run: &RunRecord, steps: &[StepRecord]) -> Vec<Warning> {
    let mut gathered = Gathered::default();
    for step in steps {
        gathered.add(step);
    }
    warnings(run, &gathered)
}

fn codes(run: &RunRecord, steps: &[StepRecord]) -> Vec<String> {
    let all = found(run, steps).into_iter();
    all.map(|warning| warning.code).collect()
}

/// Warnings of a changed run: 6 flows of three steps, the last of which is judged.
#[track_caller]
fn changed(change: impl Fn(&mut RunRecord, &mut [StepRecord])) -> Vec<Warning> {
    let (mut record, mut steps) = run(6, 1.0, 20.0, 50.0);
    record.expansion.steps = ["planner", "executor", "verifier"]
        .map(|step| PlannedStep {
            step: step.to_owned(),
            samples: 1,
            temperature: 0.0,
            max_tokens: 48,
            judged: step == "verifier",
            ..PlannedStep::default()
        })
        .to_vec();
    // The default job runs to its token limits by design.
    for step in steps.iter_mut().filter(|step| step.step == "verifier") {
        step.finish = "stop".to_owned();
    }
    assert_eq!(found(&record, &steps), [], "nothing to warn of");
    change(&mut record, &mut steps);
    found(&record, &steps)
}

/// Code and evidence of the only warning.
#[track_caller]
fn one(change: impl Fn(&mut RunRecord, &mut [StepRecord])) -> (String, String) {
    let all = changed(change);
    let [warning] = &all[..] else {
        panic!("{all:?}");
    };
    (warning.code.clone(), warning.evidence.clone())
}

fn pair(code: &str, evidence: &str) -> (String, String) {
    (code.to_owned(), evidence.to_owned())
}

#[test]
fn empty_answers() {
    let empty = one(|_, steps| {
        for step in steps {
            step.output = " \n".to_owned();
            step.tokens.decode = 48;
        }
    });
    let evidence = "18 of 18 answers; 12 ended at the token limit; 18 with tokens that are not in the \
                    text";
    assert_eq!(empty, pair("answers_empty", evidence));

    let some = changed(|_, steps| {
        steps[2].output = "<think>done</think>".to_owned();
        steps[5].output = String::new();
        steps[5].reasoning_tokens = Some(48);
        steps[8].output = String::new();
        steps[8].tokens.decode = 0;
    });
    assert_eq!(some[0].text, "Some answers are empty");
    assert!(
        some[0]
            .evidence
            .starts_with("3 of 18 answers; 2 with reasoning"),
        "{some:?}"
    );

    let none = one(|_, steps| {
        for step in steps {
            step.output = String::new();
            step.tokens.decode = 0;
        }
    });
    assert_eq!(none, pair("no_tokens", "0 tokens in 18 answers"));
}

#[test]
fn unclosed_reasoning() {
    let cut = one(|_, steps| steps[0].output = "<think>First, I".to_owned());
    assert_eq!(cut, pair("thoughts_cut", "1 of 18 answers"));

    // The prompt opens the reasoning, as the complete answer of the step shows.
    let cut = one(|_, steps| {
        steps[0].output = "I see.</think>42".to_owned();
        steps[3].output = "I see, and".to_owned();
        steps[6].output = "I see, and".to_owned();
        steps[6].finish = "stop".to_owned();
    });
    // All planners were cut off, except the complete one and the one that stopped on its own.
    assert_eq!(cut, pair("thoughts_cut", "4 of 18 answers"));

    let all = changed(|_, steps| {
        for step in steps {
            step.output = "<think>hm".to_owned();
        }
    });
    assert!(all[0].text.starts_with("All answers end within"), "{all:?}");
}

#[test]
fn judged_answers_cut_at_the_token_limit() {
    let cut = |count: usize| {
        move |_: &mut RunRecord, steps: &mut [StepRecord]| {
            let judged = steps.iter_mut().filter(|step| step.step == "verifier");
            for step in judged.take(count) {
                step.finish = "length".to_owned();
            }
        }
    };
    assert_eq!(one(cut(4)), pair("answers_cut", "4 of 6 answers"));
    assert_eq!(changed(cut(3)), [], "half is not most");
    let planned = changed(|run, steps| {
        cut(6)(run, steps);
        run.settings.insert("ignore_eos".to_owned(), json!(true));
    });
    assert_eq!(planned, [], "the limit is the plan");
    // The generations of a loop count as one step.
    let generations = one(|_, steps| {
        for (number, step) in steps.iter_mut().enumerate() {
            if step.step == "verifier" {
                step.step = format!("verifier.{number}");
                step.finish = "length".to_owned();
            }
        }
    });
    assert_eq!(generations, pair("answers_cut", "6 of 6 answers"));
}

#[test]
fn uncounted_tokens() {
    let uncounted = one(|_, steps| steps[4].tokens.decode = 0);
    assert_eq!(uncounted, pair("tokens_not_counted", "1 of 18 answers"));
    let chunks = changed(|run, _| {
        run.totals.remote = Some(RemoteRecord {
            without_usage: 1,
            ..RemoteRecord::default()
        });
    });
    assert_eq!(chunks[0].code, "token_counts");
    assert!(
        chunks[0].to_string().contains("with 1 answer,"),
        "{chunks:?}"
    );
}

/// Marks all answers as streamed and changes the first `count` steps.
fn streamed(
    count: usize,
    change: impl Fn(&mut StepRecord),
) -> impl Fn(&mut RunRecord, &mut [StepRecord]) {
    move |_, steps| {
        for step in steps.iter_mut() {
            step.attempts = Some(1);
        }
        steps.iter_mut().take(count).for_each(&change);
    }
}

#[test]
fn bursts() {
    let burst = |tokens: usize| {
        move |step: &mut StepRecord| {
            step.burst = true;
            step.tpot_ms = None;
            step.tokens.decode = tokens;
        }
    };
    let evidence = "10 of 18 answers of at least two tokens";
    assert_eq!(one(streamed(10, burst(48))), pair("one_piece", evidence));
    assert_eq!(changed(streamed(9, burst(48))), [], "half is not most");
    assert_eq!(
        changed(streamed(10, burst(1))),
        [],
        "one token is one piece"
    );
}

#[test]
fn answers_in_few_chunks() {
    let coarse = |step: &mut StepRecord| step.tpot_ms = None;
    let evidence = "10 of 18 answers of at least two tokens";
    assert_eq!(one(streamed(10, coarse)), pair("few_chunks", evidence));
    assert_eq!(changed(streamed(9, coarse)), []);
}

#[test]
fn hidden_tokens() {
    let hidden = one(streamed(2, |step| {
        step.hidden_tokens = Some(500);
        step.tpot_ms = None;
    }));
    assert_eq!(
        hidden,
        pair("hidden_tokens", "1000 tokens in 2 of 18 answers")
    );
}

#[test]
fn a_cache_that_was_warm_before_the_first_request() {
    let warm = one(|_, steps| {
        for step in steps {
            step.tokens.reused = 700;
        }
    });
    assert_eq!(
        warm,
        pair("cache_warm", "700 of its 800 prompt tokens were reused")
    );
    let later = changed(|_, steps| {
        for step in &mut steps[1..] {
            step.tokens.reused = 700;
        }
    });
    assert_eq!(later, [], "the first has filled it");

    // Concurrent requests: any of them may have been computed first.
    let at_once = |cold: Option<usize>, attempts| {
        move |_: &mut RunRecord, steps: &mut [StepRecord]| {
            for (number, step) in steps.iter_mut().enumerate() {
                step.start_ms = Millis(200.0 + if number < 6 { 0.1 * number as f64 } else { 1e4 });
                step.attempts = Some(attempts);
                step.tokens.reused = if Some(number) == cold { 0 } else { 16 };
            }
        }
    };
    assert_eq!(changed(at_once(Some(3), 1)), []);
    assert_eq!(one(at_once(None, 1)).0, "cache_warm");
    assert_eq!(
        changed(at_once(None, 2)),
        [],
        "an attempt before may have filled it"
    );
    assert_eq!(
        one(at_once(Some(17), 1)).0,
        "cache_warm",
        "long after the first token"
    );

    // Each round of `MODE=both` is checked on its own.
    let round = one(|_, steps| {
        for (number, step) in steps.iter_mut().enumerate() {
            step.round = Some(1 + number / 9);
            step.mode = Some("reuse".to_owned());
            step.tokens.reused = if number < 9 { 0 } else { 16 };
        }
    });
    assert_eq!(round.0, "cache_warm");
}

#[test]
fn repeats_and_samples_of_greedy_steps() {
    let repeats = |run: &mut RunRecord, repeats: usize| {
        let rollouts = json!({"repeats": repeats});
        run.settings.insert("rollouts".to_owned(), rollouts);
    };
    let found = one(|run, _| repeats(run, 4));
    assert_eq!(found, pair("identical_repeats", "--repeats 4"));
    assert_eq!(changed(|run, _| repeats(run, 1)), []);
    let sampled = changed(|run, _| {
        repeats(run, 4);
        run.expansion.steps[1].temperature = 0.7;
    });
    assert_eq!(sampled, []);
    let told = changed(|run, _| {
        repeats(run, 4);
        let remote = json!({"endpoint_extra": {"temperature": 0.7}});
        run.settings.insert("remote".to_owned(), remote);
    });
    assert_eq!(told, [], "the server is told another temperature");
    let samples = one(|run, _| run.expansion.steps[0].samples = 8);
    assert_eq!(samples, pair("identical_samples", "8 samples"));
}

fn load(others: f64, steal: f64, seconds: f64) -> LoadRecord {
    LoadRecord {
        seconds,
        processors: 8,
        load_average_start: Some(0.5),
        load_average_end: Some(3.25),
        own_share: Some(0.2),
        others_share: Some(others),
        steal_share: Some(steal),
    }
}

fn shard(index: usize, others: f64, gpu: Option<GpuRecord>) -> ShardRun {
    ShardRun {
        shard: Shard { index, of: 2 },
        run_id: String::new(),
        started_at: String::new(),
        status: Status::Complete,
        environment: crate::record::Environment {
            load: Some(load(others, 0.0, 60.0)),
            ..crate::record::Environment::default()
        },
        engine: json!(null),
        gpu,
        engine_init_ms: None,
        benchmark_total_ms: None,
        segments: Vec::new(),
    }
}

#[test]
fn disturbed_steps() {
    let steal = [(Taint::Steal, 2), (Taint::SwThermal, 1)];
    let expected = pair("tainted", "2 of 18 steps: steal 2, sw_thermal 1");
    let by_totals = one(|run, _| {
        run.totals.steps_tainted = 2;
        run.totals.tainted = steal.into();
    });
    assert_eq!(by_totals, expected);
    // A killed run has no totals of it.
    let by_steps = one(|_, steps| {
        steps[1].tainted = vec![Taint::Steal];
        steps[4].tainted = vec![Taint::Steal, Taint::SwThermal];
    });
    assert_eq!(by_steps, expected);
    let lost = changed(|_, steps| steps[0].tainted = vec![Taint::GpuLost]);
    assert!(lost[0].text.starts_with("The GPU was lost"));
}

#[test]
fn a_busy_machine() {
    let with = |load: LoadRecord| {
        move |run: &mut RunRecord, _: &mut [StepRecord]| {
            run.environment.load = Some(load.clone());
        }
    };
    assert_eq!(changed(with(load(0.09, 0.09, 60.0))), []);
    assert_eq!(changed(with(load(0.9, 0.9, 0.5))), [], "too short to tell");
    let evidence = "other processes used 34 % of 8 processors; load average 0.5 to 3.2";
    assert_eq!(
        one(with(load(0.34, 0.0, 60.0))),
        pair("busy_machine", evidence)
    );
    let (_, evidence) = one(with(load(0.34, 0.1, 60.0)));
    assert!(
        evidence.contains("and other virtual machines took 10 % (steal)"),
        "{evidence}"
    );

    // A server on this machine is one of the other processes.
    for (endpoint, here) in [
        ("http://127.0.0.1:8000/v1", true),
        ("http://localhost/v1", true),
        ("https://[::1]:8443/v1", true),
        ("http://0.0.0.0:8000", true),
        ("http://10.0.0.7:8000/v1", false),
        ("https://localhost.example.org/v1", false),
        ("https://[2001:db8::1]/v1", false),
    ] {
        let all = changed(|run, steps| {
            with(load(0.5, 0.0, 60.0))(run, steps);
            let remote = json!({"endpoint": endpoint});
            run.settings.insert("remote".to_owned(), remote);
        });
        assert_eq!(all.is_empty(), here, "{endpoint}");
    }

    // The machine of each shard is checked.
    let (code, evidence) = one(|run, _| {
        run.shards = vec![shard(1, 0.0, None), shard(2, 0.7, None)];
    });
    assert_eq!(code, "busy_machine");
    assert!(
        evidence.starts_with("other processes used 70 %"),
        "{evidence}"
    );
}

#[test]
fn a_gpu_that_was_throttled_or_shared() {
    let with = |change: fn(&mut GpuRecord)| {
        changed(|run, _| {
            let mut gpu = crate::report::testing::gpu();
            change(&mut gpu);
            run.gpu = Some(gpu);
        })
        .into_iter()
        .map(|warning| format!("{}: {}", warning.code, warning.evidence))
        .collect::<Vec<_>>()
    };
    assert_eq!(
        with(|_| ()),
        [
            "gpu_throttled: sw_power_cap",
            "gpu_shared: process 4242 (1.0 GiB)"
        ]
    );
    let undisturbed = |gpu: &mut GpuRecord| {
        gpu.throttle.pop();
        gpu.other_processes.clear();
    };
    assert_eq!(with(undisturbed), [""; 0], "clocks that the user has set");
    let unknown = with(|gpu| {
        *gpu = GpuRecord::default();
        let reason = "no such file".to_owned();
        gpu.missing.insert("nvml".to_owned(), reason);
    });
    assert_eq!(unknown, ["gpu_unknown: no such file"]);
    // The card of each shard is checked.
    let gpu = crate::report::testing::gpu;
    let of_shards = changed(|run, _| {
        run.shards = vec![shard(1, 0.0, None), shard(2, 0.0, Some(gpu()))];
    });
    assert_eq!(of_shards.len(), 2);
    assert_eq!(of_shards[0].code, "gpu_throttled");
}

#[test]
fn warnings_of_a_killed_run_come_from_its_steps() {
    let (mut record, mut steps) = run(2, 0.0, 3.0, 2.0);
    steps.iter_mut().for_each(|step| step.output.clear());
    assert_eq!(
        of(&record, &steps).len(),
        0,
        "what a run has ended with is kept"
    );
    record.status = Status::Running;
    assert_eq!(of(&record, &steps)[0].code, "answers_empty");
    assert_eq!(codes(&record, &[]), [""; 0], "a run without steps");
}
