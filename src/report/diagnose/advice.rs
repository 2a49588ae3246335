//! General advice per stage, limited to what the run does not do already.

use super::prefixes::LEAST_REUSE;
use super::present::Present;

/// Advice for a stage; empty if there is none.
pub(super) fn advice(stage: &str, present: &Present) -> String {
    let flows = present.run.expansion.num_flows;
    let in_flight = present.in_flight();
    let mut parts: Vec<String> = Vec::new();
    let mut say = |part: String| parts.push(part);
    match stage {
        "flow_expansion" => {
            if !present.run.expansion.cached && present.engine_per_workflow() != Some(true) {
                say("Keep flows/ and its cache between runs.".to_owned());
            }
            say("Include fewer fixture files.".to_owned());
        }
        "locate_model" if present.kind() == "local" => {
            say("Fetch the model first (`flowbench model fetch`); keep the cache.".to_owned());
        }
        "pool_init" => {
            say(format!(
                "More flows per run amortize it (NUM_FLOWS is {flows})."
            ));
            say("math-verify takes longer to load than Python itself.".to_owned());
        }
        "engine_init" => {
            if present.run.engine_starts > 1 {
                say(format!(
                    "Start one engine for the whole run ({} were started).",
                    present.run.engine_starts
                ));
            }
            say(format!(
                "More flows per run amortize it (NUM_FLOWS is {flows})."
            ));
        }
        "prompt_rendering" => say("Shorten the conversations that steps continue.".to_owned()),
        "tokenise" => {
            say("Shorten the prompts; only text that steps append is tokenized again.".to_owned());
        }
        "queue_wait" => queue_wait(present, &mut say),
        "prefill" => prefill(present, &mut say),
        "decode" => {
            if present.may_batch() {
                say("Several flows in flight (CONCURRENCY is 1).".to_owned());
            }
            say(format!(
                "Fewer tokens ({}).",
                present.settings(&["MAX_TOKENS"])[0]
            ));
        }
        "schedule" if in_flight > 1 => {
            say(format!(
                "Fewer sequences in flight (CONCURRENCY is {in_flight})."
            ));
        }
        "sample" => {
            let steps = &present.run.expansion.steps;
            if steps.iter().any(|step| step.temperature > 0.0) {
                let hottest = steps
                    .iter()
                    .map(|step| step.temperature)
                    .fold(0.0, f64::max);
                say(format!(
                    "Greedy steps are the cheapest (the highest temperature is {hottest}); top_k limits \
                     the sorting."
                ));
            }
        }
        "evaluate.start_up" if !present.has_pool() => {
            say("Reuse workers for many programs, not a new process for each.".to_owned());
        }
        "evaluate.run" => {
            say("More processors; a shorter timeout_ms for programs that hang.".to_owned());
        }
        "evaluate.validate" => say("Simpler checks, or more processors.".to_owned()),
        "verify" => say("Simpler expected answers: numbers are compared directly.".to_owned()),
        "record_io" => {
            say(format!(
                "A folder on a faster disk ({}).",
                present.settings(&["OUT"])[0]
            ));
            if !present.is_quiet() {
                say("QUIET=1 if the terminal is slow (QUIET is 0).".to_owned());
            }
        }
        _ => {}
    }
    parts.join(" ")
}

fn queue_wait(present: &Present, say: &mut impl FnMut(String)) {
    if present.waited(&["evaluate"]) > present.waited(&["generate", "judge"]) {
        say("More processors: programs run on all but one of them.".to_owned());
    } else if present.kind() == "local" && present.in_flight() > 1 {
        let [memory, flows] = &present.settings(&["KV_CACHE_MB", "CONCURRENCY"])[..] else {
            return;
        };
        say(format!(
            "More KV cache memory ({memory}), or fewer flows in flight ({flows})."
        ));
    }
}

fn prefill(present: &Present, say: &mut impl FnMut(String)) {
    let could = |reach: f64, reused: f64| reach - reused >= LEAST_REUSE;
    if let Some(reuse) = present.reuse() {
        if could(reuse.reordered, reuse.possible.max(reuse.reused)) {
            say("Put the template's shared parts first.".to_owned());
        }
        if could(reuse.possible, reuse.reused)
            && present.kind() == "local"
            && present.mode() == "standalone"
            && present.batches()
        {
            say("Reuse prefixes with MODE=reuse (MODE is standalone).".to_owned());
        }
    }
    say("Shorter prompts.".to_owned());
}
