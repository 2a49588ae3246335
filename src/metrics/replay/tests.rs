//! A small engine writes the records of a run, as the real one would. What it takes for a pass is known, so that
//! predictions can be compared with what it does under other settings.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::metrics::compare::made;
use crate::record::{PlannedStep, TokenCounts, WorkflowRecord};
use crate::units::Millis;

const PASS_TOKENS: usize = 64;

/// The steps of every flow: a chain `a`, `b`, and beside it `c`; then `d` after both.
const STEPS: [(&str, &[&str]); 4] = [("a", &[]), ("b", &["a"]), ("c", &[]), ("d", &["b", "c"])];

/// A machine: 3 ms for reading the weights, a quarter of a millisecond a row, attention.
fn truth(decoding: usize, decode_context: usize, prompt: usize, prompt_context: f64) -> f64 {
    let rows = (decoding + prompt) as f64;
    3.0 + 0.25 * rows + 2e-4 * decode_context as f64 + 1e-4 * prompt_context
}

struct Asked {
    prompt: usize,
    reused: usize,
    decode: usize,
}

#[derive(Clone)]
struct Going {
    flow: usize,
    step: usize,
    submitted: f64,
    started: Option<f64>,
    missing: usize,
    times: Vec<f64>,
}

/// Runs flows and writes down what happened.
fn engine(
    asked: &dyn Fn(usize, usize) -> Asked,
    flows: usize,
    concurrency: usize,
    mode: &str,
) -> (RunRecord, Vec<StepRecord>) {
    let mut now = 100.0;
    let mut steps: Vec<StepRecord> = Vec::new();
    let mut workflows = Vec::new();
    let mut waiting: VecDeque<usize> = (0..flows).collect();
    let mut open: BTreeMap<usize, (f64, Vec<bool>, Vec<bool>)> = BTreeMap::new();
    let mut active: Vec<Going> = Vec::new();
    loop {
        while open.len() < concurrency {
            let Some(flow) = waiting.pop_front() else {
                break;
            };
            open.insert(flow, (now, vec![false; 4], vec![false; 4]));
        }
        if open.is_empty() {
            break;
        }
        for (flow, (_, begun, ended)) in &mut open {
            for (step, (_, needs)) in STEPS.iter().enumerate() {
                let has_ended = |need: &&str| {
                    let place = STEPS.iter().position(|(id, _)| id == need);
                    place.is_some_and(|place| ended[place])
                };
                if !begun[step] && needs.iter().all(has_ended) {
                    begun[step] = true;
                    let asked = asked(*flow, step);
                    active.push(Going {
                        flow: *flow,
                        step,
                        submitted: now,
                        started: None,
                        missing: asked.prompt - asked.reused,
                        times: Vec::new(),
                    });
                }
            }
        }
        // A pass: a token of every decoding sequence, then prompts in order.
        let decoding: Vec<usize> = (0..active.len())
            .filter(|at| active[*at].missing == 0)
            .collect();
        let mut room = PASS_TOKENS - decoding.len().min(PASS_TOKENS);
        let mut context = 0;
        for at in &decoding {
            let going = &active[*at];
            context += asked(going.flow, going.step).prompt + going.times.len();
        }
        let (mut prompt, mut prompt_context) = (0, 0.0);
        let mut cuts = vec![0; active.len()];
        for (at, going) in active.iter_mut().enumerate() {
            let cut = going.missing.min(room);
            if cut > 0 {
                let done = asked(going.flow, going.step).prompt - going.missing;
                prompt_context += cut as f64 * (done as f64 + cut as f64 / 2.0);
                going.started.get_or_insert(now);
                prompt += cut;
                room -= cut;
                cuts[at] = cut;
            }
        }
        now += truth(decoding.len(), context, prompt, prompt_context);
        let mut rest = Vec::new();
        for (at, mut going) in active.into_iter().enumerate() {
            let cut = cuts[at];
            let ends_prompt = cut > 0 && cut == going.missing;
            going.missing -= cut;
            if ends_prompt || decoding.contains(&at) {
                going.times.push(now);
            }
            let of = asked(going.flow, going.step);
            if going.times.len() < of.decode {
                rest.push(going);
                continue;
            }
            let (id, needs) = STEPS[going.step];
            let first = going.times[0];
            let count = going.times.len();
            steps.push(StepRecord {
                flow: going.flow + 1,
                row: format!("row-{}", going.flow),
                step: id.to_owned(),
                needs: needs.iter().map(|need| (*need).to_owned()).collect(),
                start_ms: Millis(going.submitted),
                queue_ms: going
                    .started
                    .map(|started| Millis(started - going.submitted)),
                ttft_ms: Some(Millis(first - going.submitted)),
                latency_ms: Millis(now - going.submitted),
                tpot_ms: (count > 1).then(|| Millis((now - first) / (count - 1) as f64)),
                gaps_ms: (going.times.windows(2))
                    .map(|pair| ((pair[1] - pair[0]) * 1e3).round() / 1e3)
                    .collect(),
                tokens: TokenCounts {
                    prompt: of.prompt,
                    prefill: of.prompt - of.reused,
                    reused: of.reused,
                    decode: count,
                    ..TokenCounts::default()
                },
                finish: "length".to_owned(),
                ..StepRecord::default()
            });
            let (began, _, ended) = open.get_mut(&going.flow).unwrap();
            ended[going.step] = true;
            if ended.iter().all(|ended| *ended) {
                workflows.push(WorkflowRecord {
                    flow: going.flow + 1,
                    workflow_ms: Millis(now - *began),
                    steps_done: 4,
                    steps: 4,
                    ..WorkflowRecord::default()
                });
                open.remove(&going.flow);
            }
        }
        active = rest;
    }
    let mut record = made::run("made", 1, |_, _| 1.0).record;
    record.workflows = workflows;
    record.expansion.num_flows = flows;
    record.totals.benchmark_total_ms = Some(Millis(now));
    record.engine = json!({"kind": "local", "pass_tokens": PASS_TOKENS, "max_sequences": 4096});
    record
        .settings
        .insert("concurrency".to_owned(), json!(concurrency));
    record.settings.insert("mode".to_owned(), json!(mode));
    (record, steps)
}

fn total(prediction: &Prediction) -> f64 {
    let mut quantities = prediction.quantities.iter();
    let total = quantities.find(|one| one.quantity == "benchmark_total_ms");
    total.unwrap().predicted
}

fn value(prediction: &Prediction, quantity: &str, step: Option<&str>) -> f64 {
    let mut quantities = prediction.quantities.iter();
    let found = quantities.find(|one| one.quantity == quantity && one.step.as_deref() == step);
    found.unwrap().predicted
}

/// Prompts of 30 to 90 tokens, answers of 4 to 19.
fn varied(flow: usize, step: usize) -> Asked {
    Asked {
        prompt: 30 + (flow * 37 + step * 23) % 61,
        reused: 0,
        decode: 4 + (flow * 7 + step * 5) % 16,
    }
}

#[test]
fn other_concurrencies_are_predicted() {
    for recorded in [1, 3, 8] {
        let (record, steps) = engine(&varied, 16, recorded, "standalone");
        let replayer = Replayer::of(&record, &steps).unwrap();
        let error = replayer.replay_error();
        assert!(error.abs() < 0.04, "{recorded}: {error}");
        for asked in [1, 2, 4, 8, 16] {
            let (other, _) = engine(&varied, 16, asked, "standalone");
            let changes = changes_between(&record, &other).unwrap_or_default();
            let prediction = replayer.predict(&changes).unwrap();
            let measured = other.totals.benchmark_total_ms.unwrap().0;
            let error = total(&prediction) / measured - 1.0;
            assert!(error.abs() < 0.08, "{recorded} to {asked}: {error}");
            let flows: Vec<f64> = other
                .workflows
                .iter()
                .map(|flow| flow.workflow_ms.0)
                .collect();
            let error = value(&prediction, "workflow_ms", None) / mean(&flows).unwrap() - 1.0;
            assert!(
                error.abs() < 0.08,
                "{recorded} to {asked}: workflows {error}"
            );
        }
    }
}

#[test]
fn a_cache_is_predicted_from_what_prompts_share() {
    let cached = |flow: usize, step: usize| {
        let asked = varied(flow, step);
        let reused = if flow == 0 { 0 } else { 25 };
        Asked { reused, ..asked }
    };
    let (with, with_steps) = engine(&cached, 16, 4, "reuse");
    let (mut without, without_steps) = engine(&varied, 16, 4, "standalone");
    without.expansion.steps = (STEPS.iter().enumerate())
        .map(|(step, (id, _))| {
            let prompts = (0..16).map(|flow| varied(flow, step).prompt as u64);
            PlannedStep {
                step: (*id).to_owned(),
                samples: 1,
                // Four bytes a token.
                prompt_bytes: 4 * prompts.sum::<u64>(),
                reusable_bytes: 4 * 25 * 15,
                ..PlannedStep::default()
            }
        })
        .collect();
    for (one, steps, other) in [
        (&with, &with_steps, &without),
        (&without, &without_steps, &with),
    ] {
        let replayer = Replayer::of(one, steps).unwrap();
        let changes = changes_between(one, other).unwrap();
        let predicted = total(&replayer.predict(&changes).unwrap());
        let measured = other.totals.benchmark_total_ms.unwrap().0;
        let error = predicted / measured - 1.0;
        assert!(error.abs() < 0.1, "{changes}: {error}");
    }
    without.expansion.steps.clear();
    let replayer = Replayer::of(&without, &without_steps).unwrap();
    let told = replayer
        .predict(&"prefix_cache=on".parse().unwrap())
        .unwrap_err();
    assert!(
        told.to_string().contains("how much its prompts share"),
        "{told}"
    );
}

#[test]
fn speeds_and_limits_change_their_own_part() {
    let (record, steps) = engine(&varied, 8, 1, "standalone");
    let replayer = Replayer::of(&record, &steps).unwrap();
    let predict = |text: &str| replayer.predict(&text.parse().unwrap()).unwrap();
    let as_it_was = predict("concurrency=1");
    assert!(
        as_it_was
            .quantities
            .iter()
            .all(|one| one.change.abs() < 1e-9)
    );

    let fast = predict("decode_speed=2");
    let halved = value(&fast, "tpot_ms", None) / value(&as_it_was, "tpot_ms", None);
    // `c` computes its prompt beside the first tokens of `a`.
    assert!((0.5..0.75).contains(&halved), "{halved}");
    let both = predict("decode_speed=2,prefill_speed=2");
    let outside = record.totals.benchmark_total_ms.unwrap().0 - replayer.measured.span;
    let half = (total(&both) - outside) / replayer.measured.span;
    assert!((half - 0.5).abs() < 1e-9, "{half}");

    let short = predict("max_tokens=1");
    assert!(total(&short) < total(&as_it_was));
    // Without a second token there is no time for one.
    assert!(short.quantities.iter().all(|one| one.quantity != "tpot_ms"));
    assert_eq!(total(&predict("max_tokens=1000")), total(&as_it_was));
}

#[test]
fn runs_of_several_processes_or_modes_are_refused() {
    let (record, steps) = engine(&varied, 2, 1, "standalone");
    let refused = |change: &dyn Fn(&mut RunRecord)| {
        let mut record = record.clone();
        change(&mut record);
        Replayer::of(&record, &steps).unwrap_err().chain()
    };
    let told = refused(&|record| record.workflows[0].mode = Some("reuse".to_owned()));
    assert!(told.contains("rounds of two modes"), "{told}");
    let told = refused(&|record| {
        record
            .workflows
            .iter_mut()
            .for_each(|flow| flow.steps_done = 0)
    });
    assert!(told.contains("no workflow of it succeeded"), "{told}");
    let told = refused(&|record| record.workflows[1].rerun = true);
    assert!(told.contains("run again"), "{told}");
    let told = refused(&|record| {
        record
            .settings
            .insert("engine_per_workflow".to_owned(), json!(true));
    });
    assert!(told.contains("an engine for each workflow"), "{told}");
}

#[test]
fn a_flow_that_failed_is_left_out() {
    let (mut record, steps) = engine(&varied, 4, 1, "standalone");
    record.workflows[3].error = Some("no".to_owned());
    let replayer = Replayer::of(&record, &steps).unwrap();
    assert_eq!(replayer.recording.flows.len(), 3);
    let prediction = replayer.predict(&"concurrency=2".parse().unwrap()).unwrap();
    assert!(prediction.notes[0].starts_with("1 of 4 workflows did not succeed"));
}

#[test]
fn a_server_is_predicted_from_its_streams() {
    for (recorded, asked) in [(2, 8), (8, 2), (4, 16)] {
        let (mut record, steps) = engine(&varied, 32, recorded, "remote");
        record.engine = json!({"kind": "remote"});
        let steps: Vec<StepRecord> = steps
            .into_iter()
            .map(|step| StepRecord {
                queue_ms: None,
                ..step
            })
            .collect();
        let replayer = Replayer::of(&record, &steps).unwrap();
        let (other, _) = engine(&varied, 32, asked, "remote");
        let changes = WhatIf {
            concurrency: Some(asked),
            ..WhatIf::default()
        };
        let predicted = total(&replayer.predict(&changes).unwrap());
        let error = predicted / other.totals.benchmark_total_ms.unwrap().0 - 1.0;
        assert!(error.abs() < 0.25, "{recorded} to {asked}: {error}");
    }
    let (mut record, mut steps) = engine(&varied, 2, 1, "remote");
    record.engine = json!({"kind": "remote"});
    steps.iter_mut().for_each(|step| step.gaps_ms.clear());
    let told = Replayer::of(&record, &steps).unwrap_err().to_string();
    assert!(told.contains("in one piece"), "{told}");
}

/// Samples of a step, each judged as soon as it is there, and a selection without a record between generations.
#[test]
fn samples_are_judged_one_by_one_and_selections_join_them() {
    let step =
        |id: &str, kind: Option<&str>, sample, start: f64, latency, needs: &[&str]| StepRecord {
            flow: 1,
            step: id.to_owned(),
            kind: kind.map(str::to_owned),
            sample: Some(sample),
            generation: Some(1),
            needs: needs.iter().map(|need| (*need).to_owned()).collect(),
            start_ms: Millis(start),
            latency_ms: Millis(latency),
            ttft_ms: kind.is_none().then_some(Millis(1.0)),
            finish: "length".to_owned(),
            ..StepRecord::default()
        };
    let steps = vec![
        step("child.1", None, 1, 0.0, 10.0, &[]),
        step("child.1", None, 2, 0.0, 30.0, &[]),
        step("score.1", Some("evaluate"), 1, 10.0, 5.0, &["child.1"]),
        step("score.1", Some("evaluate"), 2, 30.0, 5.0, &["child.1"]),
        step("child.2", None, 1, 35.0, 10.0, &["select.1"]),
    ];
    let recording = Recording::of(&steps);
    let item = |id: &str, sample| {
        let of = |source: &Option<usize>| {
            source
                .is_some_and(|index| steps[index].step == id && steps[index].sample == Some(sample))
        };
        recording.sources.iter().position(of).unwrap()
    };
    assert_eq!(recording.names, ["child", "score"]);
    assert!(
        recording.items[item("child.1", 1)]
            .dependents
            .contains(&item("score.1", 1))
    );
    assert!(
        !recording.items[item("child.1", 1)]
            .dependents
            .contains(&item("score.1", 2))
    );
    // Both joins, of the answers and of their scores.
    assert_eq!(recording.items[item("child.2", 1)].needs, 2);

    let (mut record, _) = engine(&varied, 1, 1, "scripted");
    record.engine = json!({"kind": "scripted"});
    record.workflows[0].steps = 5;
    record.workflows[0].steps_done = 5;
    record.totals.benchmark_total_ms = Some(Millis(45.0));
    let replayer = Replayer::of(&record, &steps).unwrap();
    assert!(
        replayer.replay_error().abs() < 1e-9,
        "{}",
        replayer.replay_error()
    );
    let faster = replayer
        .predict(&"evaluation_speed=5".parse().unwrap())
        .unwrap();
    assert!((total(&faster) - 41.0).abs() < 1e-9);
    let told = replayer
        .predict(&"prefix_cache=on".parse().unwrap())
        .unwrap_err();
    assert!(told.to_string().contains("a script computes nothing"));
}

proptest! {
    /// Whatever is in the steps of a run: a replay ends, and is a number.
    #[test]
    fn every_record_can_be_replayed(
        steps in prop::collection::vec(
            (1usize..4, 0usize..4, 0.0f64..50.0, 0.0f64..50.0, 0usize..200, 0usize..12, prop::bool::ANY),
            1..40,
        ),
        concurrency in 1usize..5,
    ) {
        let records: Vec<StepRecord> = (steps.iter())
            .map(|(flow, step, start, latency, prompt, decode, stopped)| StepRecord {
                flow: *flow,
                step: STEPS[*step].0.to_owned(),
                needs: STEPS[*step].1.iter().map(|need| (*need).to_owned()).collect(),
                start_ms: Millis(*start),
                latency_ms: Millis(*latency),
                ttft_ms: Some(Millis(latency / 2.0)),
                queue_ms: Some(Millis(latency / 4.0)),
                gaps_ms: vec![latency / 20.0; decode.saturating_sub(1)],
                finish: if *stopped { "stop" } else { "length" }.to_owned(),
                tokens: TokenCounts { prompt: *prompt, reused: prompt / 3, decode: *decode, ..TokenCounts::default() },
                ..StepRecord::default()
            })
            .collect();
        let (mut record, _) = engine(&varied, 3, 1, "standalone");
        record.settings.insert("speculate".to_owned(), json!(true));
        let replayer = Replayer::of(&record, &records).unwrap();
        let changes = WhatIf { concurrency: Some(concurrency), ..WhatIf::default() };
        let prediction = replayer.predict(&changes).unwrap();
        for one in &prediction.quantities {
            prop_assert!(one.predicted.is_finite() && one.predicted >= 0.0, "{one:?}");
        }
        // Every item ended.
        let ended: usize = replayer.base.latency.iter().map(Vec::len).sum();
        prop_assert_eq!(ended, records.len());
    }
}
