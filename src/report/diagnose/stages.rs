//! Stage times: from the profile, or derived from the times of expansion, engine and steps.

use super::Source;
use crate::record::{RunRecord, StepRecord};
use crate::report::segments::on_one_axis;

/// Times of a stage in seconds; the terms are those of the profile.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Stage {
    pub(super) name: String,
    pub(super) calls: u64,
    pub(super) union_s: f64,
    pub(super) exposed_s: f64,
    pub(super) split_s: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shares {
    pub(super) source: Source,
    pub(super) wall_s: f64,
    pub(super) idle_s: f64,
    pub(super) stages: Vec<Stage>,
}

impl Shares {
    pub(super) fn stage(&self, name: &str) -> Option<&Stage> {
        self.stages.iter().find(|stage| stage.name == name)
    }

    /// Time in which only this stage was active; 0 if the stage did not occur.
    pub(super) fn exposed(&self, name: &str) -> f64 {
        self.stage(name).map_or(0.0, |stage| stage.exposed_s)
    }
}

pub(super) fn shares(run: &RunRecord, steps: &[StepRecord]) -> Shares {
    let Some(profile) = &run.profile else {
        return derived(run, &on_one_axis(run, steps));
    };
    let stage = |share: &crate::record::profile::StageShare| Stage {
        name: share.name.clone(),
        calls: share.calls,
        union_s: share.union_s,
        exposed_s: share.exposed_s,
        split_s: share.split_s,
    };
    Shares {
        source: Source::Profile,
        wall_s: profile.wall_s,
        idle_s: profile.idle_s,
        stages: profile.stages.iter().map(stage).collect(),
    }
}

const NAMES: [&str; 7] = [
    "queue_wait",
    "prefill",
    "decode",
    "evaluate.start_up",
    "evaluate.run",
    "evaluate.validate",
    "verify",
];
const QUEUE: usize = 0;
const PREFILL: usize = 1;
const DECODE: usize = 2;
const START_UP: usize = 3;
const RUN: usize = 4;
const VALIDATE: usize = 5;
const VERIFY: usize = 6;

/// Stages of a step: index, start, end, in milliseconds since the start of the step.
fn parts(step: &StepRecord) -> Vec<(usize, f64, f64)> {
    let end = step.latency_ms.0;
    let at = |time: f64| time.min(end);
    match (step.kind(), &step.evaluation) {
        ("evaluate", Some(times)) => {
            let asked = at(times.waited_ms.0);
            let begun = at(asked + times.start_up_ms.0);
            let over = at(begun + times.run_ms.0);
            let gone = at(over + times.stop_ms.0 + times.validate_ms.0);
            vec![
                (QUEUE, 0.0, asked),
                (START_UP, asked, begun),
                (RUN, begun, over),
                (VALIDATE, over, gone),
            ]
        }
        // There was no program to run.
        ("evaluate", None) => Vec::new(),
        ("verify", _) => vec![(VERIFY, 0.0, end)],
        _ => {
            let first = step.ttft_ms.map_or(end, |ms| ms.0);
            let begun = step.queue_ms.map_or(0.0, |ms| ms.0).min(first);
            vec![
                (QUEUE, 0.0, begun),
                (PREFILL, begun, first),
                (DECODE, first, end),
            ]
        }
    }
}

/// Opening or closing of a stage, at a time in milliseconds.
struct Edge {
    at: f64,
    stage: usize,
    opens: bool,
}

fn derived(run: &RunRecord, steps: &[StepRecord]) -> Shares {
    let mut edges = Vec::new();
    let mut calls = [0; NAMES.len()];
    for step in steps {
        for (stage, from, to) in parts(step) {
            if to > from {
                calls[stage] += 1;
                for (at, opens) in [(from, true), (to, false)] {
                    let at = step.start_ms.0 + at;
                    edges.push(Edge { at, stage, opens });
                }
            }
        }
    }
    // The order of simultaneous edges does not matter: no time lies between them.
    edges.sort_by(|a, b| a.at.total_cmp(&b.at));
    let mut stages: Vec<Stage> = (NAMES.iter().zip(calls))
        .map(|(name, calls)| Stage {
            name: (*name).to_owned(),
            calls,
            ..Stage::default()
        })
        .collect();
    sweep(&edges, &mut stages);

    let expansion_s = run.expansion.flow_expansion_ms.seconds();
    let init_s = run.engine_init_ms.map_or(0.0, |ms| ms.seconds());
    let pool_s = run.pool_init_ms.map_or(0.0, |ms| ms.seconds());
    // Nothing runs concurrently with these.
    for (name, calls, time) in [
        ("flow_expansion", 1, expansion_s),
        ("pool_init", run.pool_init_ms.is_some().into(), pool_s),
        ("engine_init", run.engine_starts as u64, init_s),
    ] {
        stages.push(Stage {
            name: name.to_owned(),
            calls,
            union_s: time,
            exposed_s: time,
            split_s: time,
        });
    }
    let last_ms = edges.last().map_or(0.0, |edge| edge.at);
    let total_s = run.totals.benchmark_total_ms.map_or(0.0, |ms| ms.seconds());
    let wall_s = expansion_s + pool_s + total_s.max(last_ms / 1e3).max(init_s);
    let split: f64 = stages.iter().map(|stage| stage.split_s).sum();
    Shares {
        source: Source::Records,
        wall_s,
        idle_s: (wall_s - split).max(0.0),
        stages,
    }
}

/// Attributes the time between edges to the open stages. Queue wait is not work: it has a share
/// only while nothing else is open.
fn sweep(edges: &[Edge], stages: &mut [Stage]) {
    let mut open = [0usize; NAMES.len()];
    let mut last = 0.0;
    for edge in edges {
        let seconds = (edge.at - last) / 1e3;
        let is_open = |stage: &usize| open[*stage] > 0;
        let working: Vec<usize> = (0..NAMES.len())
            .filter(|stage| *stage != QUEUE && is_open(stage))
            .collect();
        for stage in (0..NAMES.len()).filter(is_open) {
            stages[stage].union_s += seconds;
        }
        let sharing = if working.is_empty() && open[QUEUE] > 0 {
            vec![QUEUE]
        } else {
            working
        };
        if let [alone] = sharing[..] {
            stages[alone].exposed_s += seconds;
        }
        for stage in &sharing {
            stages[*stage].split_s += seconds / sharing.len() as f64;
        }
        if edge.opens {
            open[edge.stage] += 1;
        } else {
            open[edge.stage] -= 1;
        }
        last = edge.at;
    }
}
