//! Samples of one prompt, and speculative decoding: neither changes a request's output.

use super::*;

/// A sampled request, long enough for full pages and a partial one.
fn sampled() -> Request {
    let mut request = ask(
        "Name three reasons to escalate a ticket to the second line.",
        12,
    );
    request.sampling.temperature = 0.9;
    request
}

/// Each sample computed alone.
fn alone(engine: &mut LocalEngine, seeds: &[u64]) -> Vec<Vec<u32>> {
    let of = |seed: &u64| {
        let mut request = sampled();
        request.sampling.seed = *seed;
        run(engine, &[request]).completions.remove(0).tokens
    };
    seeds.iter().map(of).collect()
}

/// Runs samples to completion: their results, and the peak of leased pages.
fn together(engine: &mut LocalEngine, seeds: &[u64]) -> (Vec<Completion>, usize) {
    let ids = engine.submit_samples(sampled(), seeds).unwrap();
    let mut ended = BTreeMap::new();
    let mut leased = 0;
    while ended.len() < ids.len() {
        for event in engine.poll().unwrap() {
            match event.kind {
                EventKind::Finished(completion) => {
                    ended.insert(event.id, completion);
                }
                EventKind::Started => {}
                EventKind::Failed(reason) => panic!("{reason}"),
                _ => {}
            }
        }
        leased = leased.max(engine.kv.as_ref().unwrap().stats().leased);
    }
    check_idle(engine);
    (ended.into_values().collect(), leased)
}

const SEEDS: [u64; 5] = [1, 2, 3, 4, 1];

#[test]
fn samples_compute_their_prompt_once_and_share_its_pages() {
    for_each_engine(|mut engine| {
        for reuse in [false, true] {
            restart(&mut engine, reuse, ROOMY);
            let expected = alone(&mut engine, &SEEDS);
            restart(&mut engine, reuse, ROOMY);
            let (completions, leased) = together(&mut engine, &SEEDS);
            let tokens: Vec<_> = completions.iter().map(|one| one.tokens.clone()).collect();
            assert_eq!(tokens, expected, "reuse: {reuse}");
            assert_eq!(tokens[0], tokens[4], "one seed, one text");

            let prompt = completions[0].prompt_tokens;
            assert_eq!(completions[0].prefill_tokens, prompt);
            assert!(
                completions[1..]
                    .iter()
                    .all(|one| one.reused_tokens == prompt)
            );
            assert!(completions[1..].iter().all(|one| one.prefill_tokens == 0));
            // The prompt's full pages once; for each sample the page where they diverge, and what
            // follows.
            let own = (prompt + 12).div_ceil(PAGE_TOKENS) - prompt / PAGE_TOKENS;
            assert!(
                leased <= prompt / PAGE_TOKENS + SEEDS.len() * own,
                "{leased}"
            );
        }
    });
}

#[test]
fn samples_without_memory_or_a_slot_wait_and_give_the_same_tokens() {
    for_each_engine(|mut engine| {
        restart(&mut engine, false, ROOMY);
        let expected = alone(&mut engine, &SEEDS);
        let prompt = prompt(&engine, &sampled()).len();
        let least = (prompt + 12).div_ceil(PAGE_TOKENS);
        for (pages, places) in [(least, 8), (least + 1, 8), (ROOMY, 1), (ROOMY, 2)] {
            restart(&mut engine, false, pages);
            engine.scheduler = Scheduler::new(places, PASS_TOKENS);
            let (completions, _) = together(&mut engine, &SEEDS);
            let tokens: Vec<_> = completions.iter().map(|one| one.tokens.clone()).collect();
            assert_eq!(tokens, expected, "{pages} pages, {places} places");
        }
    });
}

#[test]
fn the_others_go_on_when_the_first_sample_is_cancelled() {
    for_each_engine(|mut engine| {
        restart(&mut engine, false, ROOMY);
        let expected = alone(&mut engine, &SEEDS[1..3]);
        // Two passes for the prompt; the first one is done when the sample is cancelled.
        let budget = prompt(&engine, &sampled()).len() - 1;
        for polls in 0..2 {
            restart(&mut engine, false, ROOMY);
            engine.scheduler = Scheduler::new(8, budget);
            let ids = engine.submit_samples(sampled(), &SEEDS[..3]).unwrap();
            for _ in 0..polls {
                engine.poll().unwrap();
            }
            engine.cancel(ids[0]);
            let mut tokens = BTreeMap::new();
            while tokens.len() < 2 {
                for event in engine.poll().unwrap() {
                    if let EventKind::Finished(completion) = event.kind {
                        tokens.insert(event.id, completion.tokens);
                    }
                }
            }
            assert!(tokens.into_values().eq(expected.iter().cloned()), "{polls}");
            check_idle(&engine);
        }
    });
}

/// A repetitive text, a sampled one, and a short one.
fn guessable() -> Vec<Request> {
    let mut sampled = ask("Write: yes no yes no yes no yes no.", 40);
    sampled.sampling.temperature = 0.3;
    sampled.sampling.seed = 5;
    vec![
        ask(
            "Write this ten times: the ticket is closed, the ticket is closed.",
            90,
        ),
        sampled,
        ask("What is a ticket?", 3),
    ]
}

#[test]
fn speculation_changes_no_token_and_saves_passes() {
    let Some(mut engine) = load() else { return };
    for reuse in [false, true] {
        let mut seen = Vec::new();
        for speculate in [false, true] {
            restart(&mut engine, reuse, ROOMY);
            engine.speculate = speculate;
            let completions: Vec<Completion> = guessable()
                .iter()
                .map(|request| {
                    run(&mut engine, std::slice::from_ref(request))
                        .completions
                        .remove(0)
                })
                .collect();
            for one in &completions {
                assert!(one.accepted_tokens <= one.drafted_tokens);
                assert!(one.accepted_tokens < one.tokens.len());
                assert!(speculate || one.drafted_tokens == 0);
            }
            if speculate {
                assert!(completions[0].accepted_tokens > 5, "{completions:?}");
            }
            seen.push(
                completions
                    .into_iter()
                    .map(|one| one.tokens)
                    .collect::<Vec<_>>(),
            );
        }
        assert_eq!(seen[0], seen[1], "reuse: {reuse}");
    }
}

#[test]
fn a_draft_respects_max_tokens_context_and_memory() {
    let Some(mut engine) = load() else { return };
    engine.speculate = true;
    let request = &guessable()[0];
    restart(&mut engine, false, ROOMY);
    let long = run(&mut engine, std::slice::from_ref(request))
        .completions
        .remove(0);
    assert!(long.drafted_tokens > 0);
    let pages = (long.prompt_tokens + 60).div_ceil(PAGE_TOKENS);
    for most in 50..60 {
        restart(&mut engine, false, pages);
        let request = Request {
            max_tokens: most,
            ..request.clone()
        };
        let short = run(&mut engine, &[request]).completions.remove(0);
        assert_eq!(short.tokens, long.tokens[..most]);
        assert_eq!(short.finish, Finish::Length);
    }
}

#[test]
fn an_end_token_inside_a_draft_ends_the_sequence() {
    let Some(mut engine) = load() else { return };
    for speculate in [false, true] {
        restart(&mut engine, false, ROOMY);
        engine.speculate = speculate;
        let mut request = ask("What is 2 + 2? Answer with one word.", 200);
        request.ignore_eos = false;
        let one = run(&mut engine, &[request]).completions.remove(0);
        assert_eq!(one.finish, Finish::Stop);
    }
}

/// A stop string ends an answer at the same token with drafts as without, and the text is what came before it.
#[test]
fn a_stop_string_ends_the_answer_whatever_is_drafted() {
    let Some(mut engine) = load() else { return };
    restart(&mut engine, false, ROOMY);
    let plain = &guessable()[0];
    let whole = run(&mut engine, std::slice::from_ref(plain))
        .completions
        .remove(0);
    let letters: Vec<(usize, char)> = whole.text.char_indices().collect();
    for at in (4..letters.len() - 6).step_by(7) {
        let stop = whole.text[letters[at].0..letters[at + 5].0].to_owned();
        let expected = &whole.text[..whole.text.find(&stop).unwrap()];
        let mut tokens = Vec::new();
        for speculate in [false, true] {
            restart(&mut engine, false, ROOMY);
            engine.speculate = speculate;
            let mut request = plain.clone();
            request.options.stop = [stop.clone()].into();
            request.options.stream_text = true;
            let stopped = run(&mut engine, &[request]).completions.remove(0);
            assert_eq!(stopped.text, expected);
            assert_eq!(stopped.finish, Finish::Stop);
            tokens.push(stopped.tokens);
        }
        assert_eq!(tokens[0], tokens[1]);
        assert!(whole.tokens.starts_with(&tokens[0]));
    }
}
