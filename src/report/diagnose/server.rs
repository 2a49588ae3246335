//! Causes that lie with a server.

use super::Cause;
use super::present::Present;
use super::stages::Shares;
use super::text::seconds;
use crate::units::plural;

/// Calls to a server failed and were made again.
pub(super) fn retries(present: &Present, shares: &Shares) -> Option<Cause> {
    let remote = present.run.totals.remote.as_ref();
    let remote = remote.filter(|remote| remote.retries > 0)?;
    let steps = present.steps;
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
    let (advice, settings): (&str, &[&'static str]) =
        match (remote.rate_limited > 0, present.in_flight()) {
            (true, 1) => (
                "Have the server's limit raised, or let the next attempt wait longer.",
                &["RETRY_DELAY"],
            ),
            (true, _) => (
                "Keep fewer flows in flight (CONCURRENCY), or have the server's limit raised.",
                &["CONCURRENCY"],
            ),
            (false, _) => (
                "Look at the server's log for these calls, and at the network between.",
                &[],
            ),
        };
    Some(Cause {
        id: "retries",
        title: "Calls to the server fail and are made again".to_owned(),
        stage: "prefill",
        evidence: format!(
            "{} of {} were made again ({}), with {} of waiting between",
            remote.retries,
            plural(remote.attempts, "call"),
            counts.join(", "),
            seconds(remote.backoff_ms.seconds())
        ),
        advice: advice.to_owned(),
        settings: present.settings(settings),
        saves_s: shares.exposed("prefill") * (lost / firsts.max(f64::MIN_POSITIVE)).min(1.0),
    })
}

/// The server could answer several requests at once, and gets one at a time.
pub(super) fn one_call_at_a_time(present: &Present, shares: &Shares) -> Option<Cause> {
    if present.kind() != "remote" || !present.may_batch() {
        return None;
    }
    let flows = present.flows() as f64;
    let waits = shares.exposed("prefill") + shares.exposed("decode");
    Some(Cause {
        id: "one_call_at_a_time",
        title: "The server gets one request at a time".to_owned(),
        stage: "decode",
        evidence: format!(
            "{} of waiting for answers, with one of {flows} flows in flight",
            seconds(waits)
        ),
        advice: "Keep several flows in flight (CONCURRENCY), which the server can batch."
            .to_owned(),
        settings: present.settings(&["CONCURRENCY"]),
        // As if all flows took as long as one.
        saves_s: waits * (1.0 - 1.0 / flows),
    })
}

/// The run waits for a server, whatever it waits for.
pub(super) fn slow_server(present: &Present, shares: &Shares) -> Option<Cause> {
    if present.kind() != "remote" {
        return None;
    }
    let (first, rest) = (shares.exposed("prefill"), shares.exposed("decode"));
    let calls = shares.stage("prefill").map_or(0, |stage| stage.calls);
    let in_flight = present.in_flight();
    let (advice, settings): (&str, &[&'static str]) = match (first >= rest, in_flight) {
        (true, 1) => (
            "Most of it is the wait for first tokens: look at the network between, and at the length \
             of the prompts.",
            &[],
        ),
        (true, _) => (
            "Most of it is the wait for first tokens: look at the server's queue (CONCURRENCY fills \
             it), and at the network between.",
            &["CONCURRENCY"],
        ),
        (false, _) => (
            "Most of it is generation: a smaller or quantised model, fewer tokens (MAX_TOKENS), or a \
             faster device on the server's side.",
            &["MAX_TOKENS"],
        ),
    };
    Some(Cause {
        id: "slow_server",
        title: "The run waits for the server's answers".to_owned(),
        stage: if first >= rest { "prefill" } else { "decode" },
        evidence: format!(
            "{}, {} until first tokens and {} for the others, {in_flight} in flight",
            plural(usize::try_from(calls).unwrap_or(usize::MAX), "call"),
            seconds(first),
            seconds(rest)
        ),
        advice: advice.to_owned(),
        settings: present.settings(settings),
        saves_s: first + rest,
    })
}
