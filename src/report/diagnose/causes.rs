//! Known causes of long runs: how each shows in the measurements, what helps, and how much it could
//! save at most. Nothing is advised that the run does already.

use super::prefixes::prefixes;
use super::present::{Present, Setting};
use super::server::{one_call_at_a_time, retries, slow_server};
use super::stages::Shares;
use super::text::{percent, seconds};
use super::{Cause, START_S};
use crate::units::plural;

/// A cause is reported if it could save at least this share of the wall time.
const LEAST_SHARE: f64 = 0.01;

/// The causes in a run, largest possible saving first.
pub(super) fn causes(present: &Present, shares: &Shares) -> Vec<Cause> {
    let mut causes: Vec<Cause> = [
        engine_restarts(present, shares),
        no_expansion_cache(present, shares),
        evaluation_processes(present, shares),
        timeouts(present, shares),
        retries(present, shares),
        prefixes(present, shares),
        one_call_at_a_time(present, shares),
        slow_server(present, shares),
        one_at_a_time(present, shares),
        queue(present, shares),
    ]
    .into_iter()
    .flatten()
    .filter(|cause| cause.saves_s >= LEAST_SHARE * shares.wall_s && cause.saves_s > 0.0)
    .collect();
    causes.sort_by(|a, b| b.saves_s.total_cmp(&a.saves_s));
    causes
}

fn engine_restarts(present: &Present, shares: &Shares) -> Option<Cause> {
    let starts = present.run.engine_starts;
    let stage = shares.stage("engine_init")?;
    if starts < 2 || present.engine_per_workflow() == Some(false) {
        return None;
    }
    let each = stage.union_s / starts as f64;
    Some(Cause {
        id: "engine_restarts",
        title: if starts >= present.flows() {
            "An engine is started for each workflow".to_owned()
        } else {
            "The engine is started more than once".to_owned()
        },
        stage: "engine_init",
        evidence: format!(
            "{starts} starts of {} each for {}",
            seconds(each),
            plural(present.flows(), "workflow")
        ),
        advice:
            "Start one engine before the workflow loop and run all workflows on it: run without \
                 --engine-per-workflow."
                .to_owned(),
        settings: present.settings(&["--engine-per-workflow"]),
        saves_s: stage.exposed_s * (starts - 1) as f64 / starts as f64,
    })
}

fn no_expansion_cache(present: &Present, shares: &Shares) -> Option<Cause> {
    let stage = shares.stage("flow_expansion")?;
    let expansion = &present.run.expansion;
    if expansion.cached && stage.calls < 2 {
        return None;
    }
    let expansions = plural(
        usize::try_from(stage.calls).unwrap_or(usize::MAX),
        "expansion",
    );
    let why = expansion.miss.as_deref().unwrap_or("no cache was used");
    let (advice, settings) = match present.engine_per_workflow() {
        Some(true) => (
            "Run without --engine-per-workflow, which expands the flows for each workflow and uses no \
             cache.",
            present.settings(&["--engine-per-workflow"]),
        ),
        _ => (
            "Keep flows/ and its cache (flows/.expanded_cache.json) between runs: a run whose \
             template, fixture and NUM_FLOWS are the same then only verifies them.",
            vec![Setting {
                name: "the cache",
                present: format!("missed ({why})"),
            }],
        ),
    };
    Some(Cause {
        id: "no_expansion_cache",
        title: "The flows are expanded again".to_owned(),
        stage: "flow_expansion",
        evidence: format!(
            "{expansions} took {}; cache miss: {why}",
            seconds(stage.union_s)
        ),
        advice: advice.to_owned(),
        settings,
        saves_s: stage.exposed_s,
    })
}

fn evaluation_processes(present: &Present, shares: &Shares) -> Option<Cause> {
    let start_up = shares.stage("evaluate.start_up")?;
    let union = |name: &&str| shares.stage(name).map_or(0.0, |stage| stage.union_s);
    let records = (present.steps.iter()).filter_map(|step| step.evaluation.as_ref());
    let times: Vec<(f64, f64)> = records
        .map(|times| {
            let all = times.start_up_ms + times.run_ms + times.stop_ms + times.validate_ms;
            (times.start_up_ms.seconds(), all.seconds())
        })
        .collect();
    // Prefer the durations of the evaluations themselves: concurrent ones then count in full.
    let (starting, evaluation) = match times.is_empty() {
        false => (
            times.iter().map(|(start_up, _)| start_up).sum(),
            times.iter().map(|(_, all)| all).sum(),
        ),
        true => (
            start_up.union_s,
            ["evaluate.start_up", "evaluate.run", "evaluate.validate"]
                .iter()
                .map(union)
                .sum::<f64>(),
        ),
    };
    let each: f64 = starting / start_up.calls.max(1) as f64;
    if start_up.calls < 2 || each < START_S || starting < 0.5 * evaluation {
        return None;
    }
    let (title, advice, settings) = match (present.has_pool(), present.in_flight()) {
        (false, _) => (
            "A process is started for each evaluation",
            "Run the programs in a pool of workers that is started once, before the workflow loop, \
             and reused for all programs.",
            Vec::new(),
        ),
        // A start in the pool is a fork plus the sandbox: a few milliseconds on an idle processor.
        (true, 1) => (
            "Programs start slowly despite the pool",
            "Stop other work on the machine: a start in the pool takes a few milliseconds on an \
             idle processor.",
            Vec::new(),
        ),
        (true, _) => (
            "Programs start slowly despite the pool",
            "Keep fewer flows in flight (CONCURRENCY), or stop other work on the machine: a start in \
             the pool takes a few milliseconds on an idle processor.",
            present.settings(&["CONCURRENCY"]),
        ),
    };
    Some(Cause {
        id: "evaluation_processes",
        title: title.to_owned(),
        stage: "evaluate.start_up",
        evidence: format!(
            "{} starts of {} each, {} of the evaluations' time",
            start_up.calls,
            seconds(each),
            percent(starting / evaluation)
        ),
        advice: advice.to_owned(),
        settings,
        saves_s: start_up.exposed_s * (start_up.calls - 1) as f64 / start_up.calls as f64,
    })
}

/// Programs that do not terminate run until they are killed.
fn timeouts(present: &Present, shares: &Shares) -> Option<Cause> {
    let run = shares.stage("evaluate.run")?;
    let times = |killed: bool| {
        let of_it = present.steps.iter().filter(move |step| {
            (step.kind() == "evaluate") && (step.outcome.as_deref() == Some("timeout")) == killed
        });
        let times = of_it.filter_map(|step| step.evaluation.as_ref());
        times
            .map(|times| times.run_ms.seconds())
            .collect::<Vec<f64>>()
    };
    let (killed, others) = (times(true), times(false));
    let (of_killed, of_others): (f64, f64) = (killed.iter().sum(), others.iter().sum());
    if killed.is_empty() || of_killed < 0.5 * (of_killed + of_others) {
        return None;
    }
    let limit = of_killed / killed.len() as f64;
    let longest = others.iter().copied().reduce(f64::max);
    let told = longest.map_or_else(String::new, |longest| {
        format!("; the longest of the others took {}", seconds(longest))
    });
    // If valid programs need the limit, it cannot be lowered.
    let advice = match longest.is_none_or(|longest| longest < 0.5 * limit) {
        true => {
            "Lower the step's timeout_ms to slightly more than valid programs need, and state the limit \
             in the prompt."
        }
        false => "State the limit in the prompt: valid programs need the current timeout_ms.",
    };
    Some(Cause {
        id: "evaluation_timeouts",
        title: "Programs that do not terminate run until they are killed".to_owned(),
        stage: "evaluate.run",
        evidence: format!(
            "{} of {} were killed after {} each{told}",
            killed.len(),
            plural(killed.len() + others.len(), "program"),
            seconds(limit)
        ),
        advice: advice.to_owned(),
        settings: vec![Setting {
            name: "timeout_ms",
            present: format!("about {:.0}", 1e3 * limit),
        }],
        saves_s: run.exposed_s * of_killed / (of_killed + of_others),
    })
}

/// Decoding a single sequence reads all weights for each token.
fn one_at_a_time(present: &Present, shares: &Shares) -> Option<Cause> {
    if present.kind() != "local" || !present.may_batch() {
        return None;
    }
    let decode = shares.stage("decode")?;
    let flows = present.flows() as f64;
    let (advice, settings): (&str, &[&'static str]) = match present.mode() {
        "reuse" => (
            "Keep several flows in flight (CONCURRENCY): one pass then reads the weights for all of them.",
            &["CONCURRENCY"],
        ),
        _ => (
            "Keep several flows in flight (MODE=reuse, or CONCURRENCY): one pass then reads the \
             weights for all of them. (standalone runs one flow at a time by design.)",
            &["MODE", "CONCURRENCY"],
        ),
    };
    Some(Cause {
        id: "one_at_a_time",
        title: "Sequences are decoded one at a time".to_owned(),
        stage: "decode",
        evidence: format!(
            "{} of decoding, with one of {flows} flows in flight",
            seconds(decode.union_s)
        ),
        advice: advice.to_owned(),
        settings: present.settings(settings),
        // As if a pass over all flows took as long as one over a single flow.
        saves_s: decode.exposed_s * (1.0 - 1.0 / flows),
    })
}

fn queue(present: &Present, shares: &Shares) -> Option<Cause> {
    let queue = shares.stage("queue_wait")?;
    let cause = |title: &str, advice: &str, settings: &[&'static str]| {
        Some(Cause {
            id: "queue",
            title: title.to_owned(),
            stage: "queue_wait",
            evidence: format!("{} in which requests only waited", seconds(queue.exposed_s)),
            advice: advice.to_owned(),
            settings: present.settings(settings),
            saves_s: queue.exposed_s,
        })
    };
    if present.waited(&["evaluate"]) > present.waited(&["generate", "judge"]) {
        return cause(
            "Programs wait for a free slot while nothing is computed",
            "Use more processors: programs run on all but one of them.",
            &[],
        );
    }
    if present.kind() != "local" {
        return None;
    }
    let title = "Requests wait while nothing is computed";
    let profile =
        "The queue wait includes rendering and tokenizing: PROFILE=1 measures them separately.";
    let memory = "Give the KV cache more memory (KV_CACHE_MB), or keep fewer flows in flight \
                  (CONCURRENCY).";
    match (present.profiled, present.in_flight()) {
        (false, 1) => cause(title, profile, &["PROFILE"]),
        (false, _) => cause(
            title,
            &format!("{profile} Otherwise: {memory}"),
            &["PROFILE", "KV_CACHE_MB", "CONCURRENCY"],
        ),
        (true, 1) => None,
        (true, _) => cause(title, memory, &["KV_CACHE_MB", "CONCURRENCY"]),
    }
}
