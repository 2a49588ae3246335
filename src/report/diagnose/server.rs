//! Causes on the side of a server.

use super::Cause;
use super::present::Present;
use super::stages::Shares;
use super::text::seconds;
use crate::units::plural;

/// Calls to a server failed and were retried.
pub(super) fn retries(present: &Present, shares: &Shares) -> Option<Cause> {
    let remote = present.run.totals.remote.as_ref();
    let remote = remote.filter(|remote| remote.retries > 0)?;
    let steps = present.steps;
    // The TTFT includes the failed attempts and the waits between them.
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
    // Assume that retried calls had been as fast as the others, or, if there are no others, that
    // the waits had not happened.
    let usual = crate::statistics::median(&once)
        .or_else(|| crate::statistics::distribution(&once).map(|spread| spread.mean));
    let lost: f64 = match usual {
        Some(usual) => again.iter().map(|first| (first - usual).max(0.0)).sum(),
        None => remote.backoff_ms.seconds(),
    };
    let counts = [
        (remote.rate_limited, "rate-limited (429)"),
        (remote.server_errors, "server errors"),
        (remote.timeouts, "timeouts"),
        (remote.cut_off, "interrupted"),
        (remote.connect_failures, "without a connection"),
        (remote.malformed, "malformed"),
    ];
    let counts = counts.iter().filter(|(count, _)| *count > 0);
    let counts: Vec<String> = counts
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    let (advice, settings): (&str, &[&'static str]) =
        match (remote.rate_limited > 0, present.in_flight()) {
            (true, 1) => (
                "Raise the server's rate limit, or wait longer before a retry.",
                &["RETRY_DELAY"],
            ),
            (true, _) => (
                "Keep fewer flows in flight (CONCURRENCY), or raise the server's rate limit.",
                &["CONCURRENCY"],
            ),
            (false, _) => (
                "Check the server's log for these calls, and the network in between.",
                &[],
            ),
        };
    Some(Cause {
        id: "retries",
        title: "Calls to the server fail and are retried".to_owned(),
        stage: "prefill",
        evidence: format!(
            "{} of {} were retries ({}), with {} of waiting in between",
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

/// The server could batch requests, but receives one at a time.
pub(super) fn one_call_at_a_time(present: &Present, shares: &Shares) -> Option<Cause> {
    if present.kind() != "remote" || !present.may_batch() {
        return None;
    }
    let flows = present.flows() as f64;
    let waits = shares.exposed("prefill") + shares.exposed("decode");
    Some(Cause {
        id: "one_call_at_a_time",
        title: "The server receives one request at a time".to_owned(),
        stage: "decode",
        evidence: format!(
            "{} of waiting for answers, with one of {flows} flows in flight",
            seconds(waits)
        ),
        advice: "Keep several flows in flight (CONCURRENCY), so that the server can batch them."
            .to_owned(),
        settings: present.settings(&["CONCURRENCY"]),
        // Assumes that all flows together take as long as one.
        saves_s: waits * (1.0 - 1.0 / flows),
    })
}

/// The run waits for the server.
pub(super) fn slow_server(present: &Present, shares: &Shares) -> Option<Cause> {
    if present.kind() != "remote" {
        return None;
    }
    let (first, rest) = (shares.exposed("prefill"), shares.exposed("decode"));
    let calls = shares.stage("prefill").map_or(0, |stage| stage.calls);
    let in_flight = present.in_flight();
    let (advice, settings): (&str, &[&'static str]) = match (first >= rest, in_flight) {
        (true, 1) => (
            "Most of it is the wait for first tokens: check the network, and the length of the \
             prompts.",
            &[],
        ),
        (true, _) => (
            "Most of it is the wait for first tokens: check the server's queue (CONCURRENCY fills \
             it), and the network.",
            &["CONCURRENCY"],
        ),
        (false, _) => (
            "Most of it is generation: use a smaller or quantized model, fewer tokens (MAX_TOKENS), \
             or a faster device on the server.",
            &["MAX_TOKENS"],
        ),
    };
    Some(Cause {
        id: "slow_server",
        title: "The run waits for the server's answers".to_owned(),
        stage: if first >= rest { "prefill" } else { "decode" },
        evidence: format!(
            "{}: {} until first tokens and {} for further tokens, {in_flight} in flight",
            plural(usize::try_from(calls).unwrap_or(usize::MAX), "call"),
            seconds(first),
            seconds(rest)
        ),
        advice: advice.to_owned(),
        settings: present.settings(settings),
        saves_s: first + rest,
    })
}
