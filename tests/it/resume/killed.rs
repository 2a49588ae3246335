//! Runs that are killed at random moments: `.ci/nightly` kills 200 of each kind, and 50
//! evolutions, which take longest.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::Value;

#[cfg(target_os = "linux")]
use super::jobs::evolution;
use super::jobs::{both, chain, judged, local, remote, rows};
use super::{Job, evolutions, outcome};
use crate::thorough::cases;

/// When the processes of a run are killed: after so many lines, and so many microseconds.
fn kills() -> impl Strategy<Value = Vec<(usize, u64)>> {
    prop::collection::vec((0usize..24, 0u64..4000), 1..4)
}

/// The lines of steps that had ended. A judge's request without the one in the other order is still in flight.
fn ended(lines: &str) -> Vec<&str> {
    let answer = |line: &str| {
        let step: Value = serde_json::from_str(line).expect("JSON");
        let judged = step["kind"] == "judge";
        let sample = step["sample"].as_u64().unwrap_or(1);
        judged.then(|| (step["flow"].as_u64(), (sample - 1) / 2))
    };
    let judged: Vec<_> = lines.lines().filter_map(answer).collect();
    let has_ended = |line: &&str| {
        answer(line).is_none_or(|of| judged.iter().filter(|other| **other == of).count() == 2)
    };
    lines.lines().filter(has_ended).collect()
}

/// Kills and resumes `job` and compares it with the outcome of an undisturbed one. Where `appends`, no line of a
/// step that had ended is ever changed or removed.
fn survives(
    job: &Job,
    undisturbed: &BTreeMap<String, Value>,
    kills: &[(usize, u64)],
    code: i32,
    appends: bool,
) {
    for (lines, delay) in kills {
        job.kill_after(*lines, Duration::from_micros(*delay));
        let before = job.lines();
        if appends && job.has_run() {
            job.kill_after(before.lines().count() + 1, Duration::ZERO);
            let after = job.lines();
            for line in ended(&before) {
                assert!(
                    after.lines().any(|kept| kept == line),
                    "{line}\n---\n{after}"
                );
            }
        }
    }
    job.complete(code);
    let resumed = outcome(&job.workspace);
    for (name, expected) in undisturbed {
        assert_eq!(resumed.get(name), Some(expected), "{name}");
    }
    assert_eq!(resumed.len(), undisturbed.len());
}

pub(super) fn config(few: usize, all: usize) -> ProptestConfig {
    ProptestConfig {
        cases: u32::try_from(cases(few, all)).expect("few"),
        max_shrink_iters: 0,
        // The moment of a kill cannot be repeated.
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(3, 200))]

    #[test]
    fn killed_at_any_moment(kills in kills(), concurrent in any::<bool>()) {
        let settings: &[(&str, &str)] = if concurrent { &[("CONCURRENCY", "3")] } else { &[] };
        let undisturbed = chain(settings);
        undisturbed.complete(100);
        survives(&chain(settings), &outcome(&undisturbed.workspace), &kills, 100, true);
    }

    #[test]
    fn killed_among_samples_verdicts_and_selections(kills in kills()) {
        let undisturbed = judged();
        undisturbed.complete(0);
        survives(&judged(), &outcome(&undisturbed.workspace), &kills, 0, true);
    }

    #[test]
    fn killed_on_a_model(kills in kills(), reuse in any::<bool>()) {
        let mode = if reuse { "reuse" } else { "standalone" };
        let undisturbed = local(mode);
        undisturbed.complete(0);
        survives(&local(mode), &outcome(&undisturbed.workspace), &kills, 0, true);
    }

    #[test]
    fn killed_among_rounds(kills in kills()) {
        let undisturbed = both();
        undisturbed.complete(100);
        survives(&both(), &outcome(&undisturbed.workspace), &kills, 100, false);
    }

    #[test]
    fn killed_while_a_server_answers(kills in kills()) {
        let (undisturbed, _server) = remote();
        undisturbed.complete(0);
        let (job, _server) = remote();
        survives(&job, &outcome(&undisturbed.workspace), &kills, 0, true);
    }

    #[test]
    fn killed_among_rows(kills in kills()) {
        let undisturbed = rows();
        undisturbed.complete(100);
        let job = rows();
        survives(&job, &outcome(&undisturbed.workspace), &kills, 100, true);
        let read = |job: &Job| job.workspace.read("out.jsonl");
        prop_assert_eq!(read(&job), read(&undisturbed));
        // The recording, too, is that of all steps.
        let count = |job: &Job| {
            let text = fs::read_to_string(job.workspace.file("recorded.jsonl")).expect("kept");
            text.lines().count()
        };
        prop_assert_eq!(count(&job), count(&undisturbed));
    }
}

#[cfg(target_os = "linux")]
proptest! {
    #![proptest_config(config(2, 50))]

    #[test]
    fn killed_in_an_evolution(kills in kills()) {
        let undisturbed = evolution();
        undisturbed.complete(0);
        let job = evolution();
        survives(&job, &outcome(&undisturbed.workspace), &kills, 0, true);
        prop_assert_eq!(evolutions(&job.workspace), evolutions(&undisturbed.workspace));
    }
}
