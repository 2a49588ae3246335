//! The causes that are known: what the figures look like when one is at work, what helps, and how
//! much it could save at most.

use super::stages::Shares;
use super::text::{percent, seconds};
use super::{Cause, START_S};
use crate::record::{RunRecord, StepRecord};

/// Least share of the wall time that a cause must be able to save to be named.
const LEAST_SHARE: f64 = 0.01;

/// Least part of the prompts by which reuse must fall short to be a cause.
const LEAST_REUSE: f64 = 0.2;

/// Those at work in a run, the one that could save most first.
pub(super) fn causes(run: &RunRecord, steps: &[StepRecord], shares: &Shares) -> Vec<Cause> {
    let mut causes: Vec<Cause> = [
        engine_restarts(run, shares),
        no_expansion_cache(run, shares),
        evaluation_processes(steps, shares),
        timeouts(steps, shares),
        retries(run, steps, shares),
        prefixes(run, steps, shares),
        slow_server(run, shares),
        one_at_a_time(run, shares),
        queue(shares),
    ]
    .into_iter()
    .flatten()
    .filter(|cause| cause.saves_s >= LEAST_SHARE * shares.wall_s && cause.saves_s > 0.0)
    .collect();
    causes.sort_by(|a, b| b.saves_s.total_cmp(&a.saves_s));
    causes
}

fn setting<'a>(run: &'a RunRecord, name: &str) -> &'a str {
    let value = run.settings.get(name).and_then(|value| value.as_str());
    value.unwrap_or_default()
}

fn engine_kind(run: &RunRecord) -> &str {
    let kind = run.engine.get("kind").and_then(|kind| kind.as_str());
    kind.unwrap_or_default()
}

fn in_flight(run: &RunRecord) -> u64 {
    let value = run
        .settings
        .get("concurrency")
        .and_then(|value| value.as_u64());
    value.unwrap_or(1)
}

fn engine_restarts(run: &RunRecord, shares: &Shares) -> Option<Cause> {
    let starts = run.engine_starts;
    let stage = shares.stage("engine_init")?;
    if starts < 2 {
        return None;
    }
    let each = stage.union_s / starts as f64;
    Some(Cause {
        id: "engine_restarts",
        title: if starts >= run.workflows.len() {
            "An engine is started for each workflow".to_owned()
        } else {
            "The engine is started more than once".to_owned()
        },
        stage: "engine_init",
        evidence: format!(
            "{starts} starts of {} each for {} workflows",
            seconds(each),
            run.workflows.len()
        ),
        advice:
            "Start one engine before the workflow loop and run all workflows on it: run without \
                 --engine-per-workflow."
                .to_owned(),
        saves_s: stage.exposed_s * (starts - 1) as f64 / starts as f64,
    })
}

fn no_expansion_cache(run: &RunRecord, shares: &Shares) -> Option<Cause> {
    let stage = shares.stage("flow_expansion")?;
    if run.expansion.cached && stage.calls < 2 {
        return None;
    }
    let why = run.expansion.miss.as_deref().unwrap_or("no cache was used");
    Some(Cause {
        id: "no_expansion_cache",
        title: "The flows are expanded anew".to_owned(),
        stage: "flow_expansion",
        evidence: format!(
            "{} expansions took {}; cache miss: {why}",
            stage.calls,
            seconds(stage.union_s)
        ),
        advice: "Keep flows/ and its cache (flows/.expanded_cache.json) between runs: a run whose \
                 template, fixture and NUM_FLOWS are the same then only verifies them."
            .to_owned(),
        saves_s: stage.exposed_s,
    })
}

fn evaluation_processes(steps: &[StepRecord], shares: &Shares) -> Option<Cause> {
    let start_up = shares.stage("evaluate.start_up")?;
    let union = |name: &&str| shares.stage(name).map_or(0.0, |stage| stage.union_s);
    let records = steps.iter().filter_map(|step| step.evaluation.as_ref());
    let times: Vec<(f64, f64)> = records
        .map(|times| {
            let all = times.start_up_ms + times.run_ms + times.stop_ms + times.validate_ms;
            (times.start_up_ms.seconds(), all.seconds())
        })
        .collect();
    // The evaluations' own times, where they were kept: at the same time they count in full.
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
    Some(Cause {
        id: "evaluation_processes",
        title: "A process is started for each evaluation".to_owned(),
        stage: "evaluate.start_up",
        evidence: format!(
            "{} starts of {} each, {} of the evaluations' time",
            start_up.calls,
            seconds(each),
            percent(starting / evaluation)
        ),
        advice: "Run the programs in a pool of workers that are started once, before the workflow \
                 loop, and live on from program to program."
            .to_owned(),
        saves_s: start_up.exposed_s * (start_up.calls - 1) as f64 / start_up.calls as f64,
    })
}

/// Programs that never end are run until they are killed.
fn timeouts(steps: &[StepRecord], shares: &Shares) -> Option<Cause> {
    let run = shares.stage("evaluate.run")?;
    let times = |killed: bool| {
        let of_it = steps.iter().filter(move |step| {
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
    let longest = others.iter().copied().reduce(f64::max);
    let longest = longest.map_or_else(String::new, |longest| {
        format!("; the longest of the others took {}", seconds(longest))
    });
    Some(Cause {
        id: "evaluation_timeouts",
        title: "Programs that do not end are run until they are killed".to_owned(),
        stage: "evaluate.run",
        evidence: format!(
            "{} of {} programs were killed after {} each{longest}",
            killed.len(),
            killed.len() + others.len(),
            seconds(of_killed / killed.len() as f64)
        ),
        advice:
            "Lower the step's timeout_ms to a little more than what good programs take; tell the \
                 model of the limit in the prompt."
                .to_owned(),
        saves_s: run.exposed_s * of_killed / (of_killed + of_others),
    })
}

/// Calls to a server failed and were made again.
fn retries(run: &RunRecord, steps: &[StepRecord], shares: &Shares) -> Option<Cause> {
    let remote = run
        .totals
        .remote
        .as_ref()
        .filter(|remote| remote.retries > 0)?;
    // The waits and the failed calls are in the time to first tokens.
    let firsts = steps.iter().filter_map(|step| step.ttft_ms);
    let firsts: f64 = firsts.map(|first| first.seconds()).sum();
    let of_again = |again: bool| {
        let of_it = steps
            .iter()
            .filter(move |step| (step.attempts > Some(1)) == again);
        let firsts: Vec<f64> = of_it
            .filter_map(|step| Some(step.ttft_ms?.seconds()))
            .collect();
        firsts
    };
    let (again, once) = (of_again(true), of_again(false));
    // As if those had taken as long as the others, or had only not waited.
    let usual = crate::statistics::median(&once)
        .or_else(|| crate::statistics::distribution(&once).map(|spread| spread.mean));
    let lost: f64 = match usual {
        Some(usual) => again.iter().map(|first| (first - usual).max(0.0)).sum(),
        None => remote.backoff_ms.seconds(),
    };
    let counts = [
        (remote.rate_limited, "put off (429)"),
        (remote.server_errors, "errors of the server"),
        (remote.timeouts, "time-outs"),
        (remote.cut_off, "cut off"),
        (remote.connect_failures, "without a connection"),
        (remote.malformed, "not understood"),
    ];
    let counts = counts.iter().filter(|(count, _)| *count > 0);
    let counts: Vec<String> = counts
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    Some(Cause {
        id: "retries",
        title: "Calls to the server fail and are made again".to_owned(),
        stage: "prefill",
        evidence: format!(
            "{} of {} calls were made again ({}), with {} of waiting between",
            remote.retries,
            remote.attempts,
            counts.join(", "),
            seconds(remote.backoff_ms.seconds())
        ),
        advice: match remote.rate_limited > 0 {
            true => "Keep fewer flows in flight (CONCURRENCY), or have the server's limit raised.",
            false => "Look at the server's log for these calls, and at the network between.",
        }
        .to_owned(),
        saves_s: shares.exposed("prefill") * (lost / firsts.max(f64::MIN_POSITIVE)).min(1.0),
    })
}

/// Prompts share text, and what they share is computed again and again.
fn prefixes(run: &RunRecord, steps: &[StepRecord], shares: &Shares) -> Option<Cause> {
    let prefix = run
        .expansion
        .prefix
        .filter(|prefix| prefix.prompt_bytes > 0)?;
    let of_prompts = |bytes: u64| bytes as f64 / prefix.prompt_bytes as f64;
    let prompt: usize = steps.iter().map(|step| step.prompt_tokens).sum();
    let reused: usize = steps.iter().map(|step| step.reused_tokens).sum();
    if engine_kind(run) == "remote" || prompt == 0 {
        return None;
    }
    let reused = reused as f64 / prompt as f64;
    let possible = of_prompts(prefix.reusable_bytes);
    let reordered = of_prompts(prefix.reusable_bytes_reordered);
    // Computed: 1 − reused of the prompts. What could be reused more is saved of that time.
    let saves = |reach: f64| {
        let of_computed = (reach - reused) / (1.0 - reused).max(f64::EPSILON);
        shares.exposed("prefill") * of_computed.clamp(0.0, 1.0)
    };
    let evidence = format!(
        "{} of the prompt tokens were reused; {} of the prompts' text could be as it is ordered, {} \
         with the shared parts first",
        percent(reused),
        percent(possible),
        percent(reordered)
    );
    let cause = |id, title: &str, advice: &str, saves_s| {
        Some(Cause {
            id,
            title: title.to_owned(),
            stage: "prefill",
            evidence,
            advice: advice.to_owned(),
            saves_s,
        })
    };
    if reordered - possible >= LEAST_REUSE {
        return cause(
            "prefix_hostile_template",
            "The template puts what differs before what all prompts share",
            "Move the parts that are the same in every flow (instructions, code) before the row's \
             own text, and run with MODE=reuse; `flowbench expand` shows what each order shares.",
            saves(reordered),
        );
    }
    if possible - reused < LEAST_REUSE {
        return None;
    }
    if setting(run, "mode") == "reuse" {
        return cause(
            "prefixes_evicted",
            "Prefixes that could be reused are computed again",
            "Give keys and values more memory (KV_CACHE_MB), or keep fewer flows in flight: what was \
             computed is thrown out before it is needed. BACKEND=native and candle reuse; generic \
             does not.",
            saves(possible),
        );
    }
    cause(
        "prefix_cache_off",
        "What prompts share is computed for each of them",
        "Run with MODE=reuse, which computes a shared prefix once. (standalone does not on purpose: \
         it measures each step by itself.)",
        saves(possible),
    )
}

fn slow_server(run: &RunRecord, shares: &Shares) -> Option<Cause> {
    if engine_kind(run) != "remote" {
        return None;
    }
    let (first, rest) = (shares.exposed("prefill"), shares.exposed("decode"));
    let calls = shares.stage("prefill").map_or(0, |stage| stage.calls);
    let in_flight = in_flight(run);
    let mut advice = String::new();
    if in_flight == 1 {
        advice.push_str("Keep several flows in flight (CONCURRENCY), which the server can batch. ");
    }
    advice.push_str(if first >= rest {
        "Most of it is the wait for first tokens: turn the server's prefix cache on, look at its \
         queue and at the network between."
    } else {
        "Most of it is generation: a smaller or quantised model, fewer tokens (MAX_TOKENS), or a \
         faster device on the server's side."
    });
    Some(Cause {
        id: "slow_server",
        title: "The run waits for the server's answers".to_owned(),
        stage: if first >= rest { "prefill" } else { "decode" },
        evidence: format!(
            "{calls} calls, {} until first tokens and {} for the others, {in_flight} in flight",
            seconds(first),
            seconds(rest)
        ),
        advice,
        saves_s: first + rest,
    })
}

/// A sequence that decodes alone reads all weights for each token.
fn one_at_a_time(run: &RunRecord, shares: &Shares) -> Option<Cause> {
    if engine_kind(run) != "local" || in_flight(run) > 1 || run.workflows.len() < 2 {
        return None;
    }
    let decode = shares.stage("decode")?;
    let flows = run.workflows.len() as f64;
    Some(Cause {
        id: "one_at_a_time",
        title: "One sequence is decoded at a time".to_owned(),
        stage: "decode",
        evidence: format!(
            "{} of decoding, with one of {flows} flows in flight",
            seconds(decode.union_s)
        ),
        advice:
            "Keep several flows in flight (MODE=reuse, or CONCURRENCY): a pass reads the weights \
                 once for all of them. (standalone does not on purpose.)"
                .to_owned(),
        // As if a pass over all flows took as long as one over a single flow.
        saves_s: decode.exposed_s * (1.0 - 1.0 / flows),
    })
}

fn queue(shares: &Shares) -> Option<Cause> {
    let queue = shares.stage("queue_wait")?;
    Some(Cause {
        id: "queue",
        title: "Requests wait while nothing is computed".to_owned(),
        stage: "queue_wait",
        evidence: format!("{} in which requests only waited", seconds(queue.exposed_s)),
        advice: "Rendering and tokenising are in the queue wait: see these stages with PROFILE=1. \
                 Otherwise give keys and values more memory (KV_CACHE_MB)."
            .to_owned(),
        saves_s: queue.exposed_s,
    })
}
