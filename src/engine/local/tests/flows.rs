//! Flows of chained steps on the default model reuse exactly what their tokens allow.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use super::witness::{Seen, witnessed};
use super::*;
use crate::engine::kv::distinct_prefixes;

const STEPS: [&str; 3] = [
    "Plan what to do about it.",
    "Do the first part of that.",
    "Say in a word whether it is done.",
];

/// A submitted step of a flow.
struct Asked {
    flow: usize,
    step: usize,
    messages: Vec<Message>,
    prompt: Vec<u32>,
    /// Longest prefix shared with anything computed or submitted before it.
    allowed: usize,
}

/// Runs flows, at most `in_flight` at once, each step with the whole conversation before it. Returns
/// every token sequence that had to be computed, and the number of prefilled prompt tokens and of
/// decoded ones.
fn run_flows(
    engine: &mut LocalEngine,
    count: usize,
    in_flight: usize,
) -> (Vec<Vec<u32>>, usize, usize) {
    let mut flows = 0..count;
    let begin = |flow: usize| {
        let ticket = format!("Ticket {} is open for {flow} days.", 17 * flow + 3);
        let first = format!("{ticket} {}", STEPS[0]);
        let messages = vec![message(Role::System, SYSTEM), message(Role::User, &first)];
        (flow, 0, messages)
    };
    let mut next: VecDeque<_> = flows.by_ref().take(in_flight).map(begin).collect();
    let mut asked: BTreeMap<RequestId, Asked> = BTreeMap::new();
    let (mut prompts, mut computed): (Vec<Vec<u32>>, Vec<Vec<u32>>) = Default::default();
    let (mut prefilled, mut decoded) = (0, 0);
    loop {
        while let Some((flow, step, messages)) = next.pop_front() {
            let request = request(messages.clone(), 8, Sampling::default());
            let prompt = prompt(engine, &request);
            let before = prompts.iter().chain(&computed);
            let common = before.map(|other| common_prefix(other, &prompt)).max();
            let one = Asked {
                flow,
                step,
                messages,
                allowed: common.unwrap_or(0).min(prompt.len() - 1),
                prompt: prompt.clone(),
            };
            prompts.push(prompt);
            asked.insert(engine.submit(request).unwrap(), one);
        }
        if asked.is_empty() {
            break;
        }
        for Event { id, kind } in engine.poll().unwrap() {
            let EventKind::Finished(completion) = kind else {
                continue;
            };
            let one = asked.remove(&id).unwrap();
            let place = format!("flow {}, step {}", one.flow, one.step);
            assert_eq!(completion.reused_tokens, one.allowed, "{place}");
            assert_eq!(completion.prompt_tokens, one.prompt.len());
            prefilled += completion.prefill_tokens;
            decoded += completion.tokens.len() - 1;
            // The last generated token was not computed.
            let mut tokens = one.prompt;
            tokens.extend(&completion.tokens[..completion.tokens.len() - 1]);
            computed.push(tokens);
            if one.step + 1 < STEPS.len() {
                let mut messages = one.messages;
                messages.push(message(Role::Assistant, &completion.text));
                messages.push(message(Role::User, STEPS[one.step + 1]));
                next.push_back((one.flow, one.step + 1, messages));
            } else {
                next.extend(flows.next().map(begin));
            }
        }
    }
    check_idle(engine);
    (computed, prefilled, decoded)
}

#[test]
fn flows_compute_every_distinct_prefix_once() {
    let Some(path) = test_model() else { return };
    let seen = Rc::new(RefCell::new(Seen::default()));
    let mut engine = witnessed(load_file(&path), &seen);
    for in_flight in [6, 2, 1] {
        restart(&mut engine, true, ROOMY);
        seen.borrow_mut().computed = 0;
        let (computed, prefilled, decoded) = run_flows(&mut engine, 6, in_flight);
        let distinct = distinct_prefixes(&computed);
        let all: usize = computed.iter().map(Vec::len).sum();
        assert!(distinct * 2 < all, "{distinct} of {all}: nothing in common");
        assert_eq!(prefilled + decoded, distinct, "{in_flight} in flight");
        assert_eq!(seen.borrow().computed, distinct, "{in_flight} in flight");
    }
}
