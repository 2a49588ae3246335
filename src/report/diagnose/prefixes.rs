//! Shared prompt prefixes that are computed repeatedly, by the engine in this process or by a
//! server.

use super::Cause;
use super::present::Present;
use super::stages::Shares;
use super::text::percent;

/// Least part of the prompts by which reuse must fall short to be a cause.
pub(super) const LEAST_REUSE: f64 = 0.2;

/// The cause, if it applies and there is something to advise.
pub(super) fn prefixes(present: &Present, shares: &Shares) -> Option<Cause> {
    let reuse = present.reuse()?;
    let remote = present.kind() == "remote";
    // Recorded answers compute no prompts, and `both` has measured both modes.
    if !(remote || present.kind() == "local") || present.mode() == "both" {
        return None;
    }
    let in_reuse = present.mode() == "reuse";
    let evidence = format!(
        "{} of the prompt tokens were reused; {} of the prompt text could be in its present order, {} \
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
        // If `auto` chose this backend, it is the only one that supports the model.
        if !present.chose_backend() || reuse.possible - reuse.reused < LEAST_REUSE {
            return None;
        }
        return cause(
            "prefix_cache_off",
            "Shared prefixes are computed for each prompt",
            "Run with BACKEND=auto and MODE=reuse: the generic forward pass reuses nothing.",
            &["BACKEND", "MODE"],
            reuse.possible,
        );
    }
    if reuse.reordered - reuse.possible.max(reuse.reused) >= LEAST_REUSE {
        let order = "Move the parts that are the same in every flow (instructions, code) before the \
                     row's own text";
        let shows = "`flowbench expand` shows how much each order shares.";
        let title = "The template puts varying text before shared text";
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
            "The server reports little reuse of shared prefixes",
            "Enable the server's prefix cache if it has one; a server that does not report \
             `cached_tokens` may use one already.",
            &[],
            reuse.possible,
        );
    }
    if !in_reuse {
        return cause(
            "prefix_cache_off",
            "Shared prefixes are computed for each prompt",
            "Run with MODE=reuse, which computes a shared prefix once. (standalone does not, by design: \
             it measures each step on its own.)",
            &["MODE"],
            reuse.possible,
        );
    }
    let (advice, settings): (&str, &[&'static str]) = match present.in_flight() {
        1 => (
            "Give the KV cache more memory (KV_CACHE_MB): prefixes are evicted before they are needed \
             again.",
            &["KV_CACHE_MB"],
        ),
        _ => (
            "Give the KV cache more memory (KV_CACHE_MB), or keep fewer flows in flight \
             (CONCURRENCY): prefixes are evicted before they are needed again.",
            &["KV_CACHE_MB", "CONCURRENCY"],
        ),
    };
    cause(
        "prefixes_evicted",
        "Reusable prefixes are computed again",
        advice,
        settings,
        reuse.possible,
    )
}
