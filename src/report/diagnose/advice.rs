//! What helps with a stage in general, as far as the run has it not.

use super::prefixes::LEAST_REUSE;
use super::present::Present;

/// What helps with a stage; empty where nothing is left to advise.
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
            say("Fetch the model before (`flowbench model fetch`); keep the cache.".to_owned());
        }
        "pool_init" => {
            say(format!(
                "More flows in one run spread it (NUM_FLOWS is {flows})."
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
                "More flows in one run spread it (NUM_FLOWS is {flows})."
            ));
        }
        "prompt_rendering" => say("Shorten the conversations that steps carry on.".to_owned()),
        "tokenise" => {
            say("Shorten the prompts; what is tokenised again is what steps append.".to_owned());
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
                    "Greedy steps are the cheapest (a temperature is {hottest}); top_k bounds what is \
                     sorted."
                ));
            }
        }
        "evaluate.start_up" if !present.has_pool() => {
            say("Keep workers that run many programs, in place of a process for each.".to_owned());
        }
        "evaluate.run" => {
            say("More processors; a shorter timeout_ms for programs that hang.".to_owned());
        }
        "evaluate.validate" => say("Simpler checks, or more processors.".to_owned()),
        "verify" => say("Simpler expected answers: numerals are compared at once.".to_owned()),
        "record_io" => {
            say(format!(
                "A folder on a faster disk ({}).",
                present.settings(&["OUT"])[0]
            ));
            if !present.is_quiet() {
                say("QUIET=1 where a terminal is slow (QUIET is 0).".to_owned());
            }
        }
        _ => {}
    }
    parts.join(" ")
}

fn queue_wait(present: &Present, say: &mut impl FnMut(String)) {
    if present.waited(&["evaluate"]) > present.waited(&["generate", "judge"]) {
        say("More processors: a program runs on each but one.".to_owned());
    } else if present.kind() == "local" && present.in_flight() > 1 {
        let [memory, flows] = &present.settings(&["KV_CACHE_MB", "CONCURRENCY"])[..] else {
            return;
        };
        say(format!(
            "More memory for keys and values ({memory}), or fewer flows in flight ({flows})."
        ));
    }
}

fn prefill(present: &Present, say: &mut impl FnMut(String)) {
    let could = |reach: f64, reused: f64| reach - reused >= LEAST_REUSE;
    if let Some(reuse) = present.reuse() {
        if could(reuse.reordered, reuse.possible.max(reuse.reused)) {
            say("The template's shared parts first.".to_owned());
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
