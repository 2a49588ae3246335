//! Prompts share text, and what they share is computed again and again: by the engine in this process,
//! or by a server.

use super::Cause;
use super::present::Present;
use super::stages::Shares;
use super::text::percent;

/// Least part of the prompts by which reuse must fall short to be a cause.
pub(super) const LEAST_REUSE: f64 = 0.2;

/// The cause, if it is at work and something is left to be done about it.
pub(super) fn prefixes(present: &Present, shares: &Shares) -> Option<Cause> {
    let reuse = present.reuse()?;
    let remote = present.kind() == "remote";
    // Recorded answers compute no prompt, and `both` has measured both ways.
    if !(remote || present.kind() == "local") || present.mode() == "both" {
        return None;
    }
    let in_reuse = present.mode() == "reuse";
    let evidence = format!(
        "{} of the prompt tokens were reused; {} of the prompts' text could be as it is ordered, {} \
         with the shared parts first",
        percent(reuse.reused),
        percent(reuse.possible),
        percent(reuse.reordered)
    );
    let cause = |id, title: &str, advice: &str, settings: &[&'static str], reach: f64| {
        Some(Cause {
            id,
            title: title.to_owned(),
            stage: "prefill",
            evidence: evidence.clone(),
            advice: advice.to_owned(),
            settings: present.settings(settings),
            saves_s: shares.exposed("prefill") * reuse.spared(reach),
        })
    };
    if !remote && !present.batches() {
        // Chosen by `auto`, it is the only one that knows the model.
        if !present.chose_backend() || reuse.possible - reuse.reused < LEAST_REUSE {
            return None;
        }
        return cause(
            "prefix_cache_off",
            "What prompts share is computed for each of them",
            "Run with BACKEND=auto and MODE=reuse: the generic forward pass reuses nothing.",
            &["BACKEND", "MODE"],
            reuse.possible,
        );
    }
    if reuse.reordered - reuse.possible.max(reuse.reused) >= LEAST_REUSE {
        let order = "Move the parts that are the same in every flow (instructions, code) before the \
                     row's own text";
        let shows = "`flowbench expand` shows what each order shares.";
        let title = "The template puts what differs before what all prompts share";
        return match remote || in_reuse {
            true => cause(
                "prefix_hostile_template",
                title,
                &format!("{order}; {shows}"),
                &["TEMPLATE"],
                reuse.reordered,
            ),
            false => cause(
                "prefix_hostile_template",
                title,
                &format!("{order}, and run with MODE=reuse; {shows}"),
                &["TEMPLATE", "MODE"],
                reuse.reordered,
            ),
        };
    }
    if reuse.possible - reuse.reused < LEAST_REUSE {
        return None;
    }
    if remote {
        return cause(
            "server_prefix_cache",
            "The server reports little reuse of what prompts share",
            "Turn the server's prefix cache on, if it has one and it is off; a server that does not \
             report `cached_tokens` may do it already.",
            &[],
            reuse.possible,
        );
    }
    if !in_reuse {
        return cause(
            "prefix_cache_off",
            "What prompts share is computed for each of them",
            "Run with MODE=reuse, which computes a shared prefix once. (standalone does not on purpose: \
             it measures each step by itself.)",
            &["MODE"],
            reuse.possible,
        );
    }
    let (advice, settings): (&str, &[&'static str]) = match present.in_flight() {
        1 => (
            "Give keys and values more memory (KV_CACHE_MB): what was computed is thrown out before it \
             is needed.",
            &["KV_CACHE_MB"],
        ),
        _ => (
            "Give keys and values more memory (KV_CACHE_MB), or keep fewer flows in flight \
             (CONCURRENCY): what was computed is thrown out before it is needed.",
            &["KV_CACHE_MB", "CONCURRENCY"],
        ),
    };
    cause(
        "prefixes_evicted",
        "Prefixes that could be reused are computed again",
        advice,
        settings,
        reuse.possible,
    )
}
