//! The engine on the candle path: it reuses what the native path reuses, and the default model's text
//! does not depend on the reuse.

use super::*;

/// A conversation of three turns: for each, the reused tokens and the prompt's tokens.
fn turns(engine: &mut LocalEngine, questions: &[&str]) -> Vec<(usize, usize)> {
    let mut messages = vec![message(Role::System, SYSTEM)];
    let mut counts = Vec::new();
    for question in questions {
        messages.push(message(Role::User, question));
        let next = request(messages.clone(), 7, Sampling::default());
        let completion = run(engine, &[next]).completions.remove(0);
        counts.push((completion.reused_tokens, completion.prompt_tokens));
        // Not the model's own answers, in which the paths may differ.
        messages.push(message(Role::Assistant, "It depends on the ticket."));
    }
    counts
}

#[test]
fn the_same_tokens_are_reused_as_on_the_native_path() {
    let Some(mut engine) = load() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    for backend in [Backend::Native, Backend::Candle] {
        engine.model = tiny_model(folder.path(), backend);
        assert!(engine.model.page_bytes().is_some());
        let mut counts = Vec::new();
        for reuse in [true, false] {
            restart(&mut engine, reuse, ROOMY);
            let completions = run(&mut engine, &requests()).completions;
            counts.extend(
                completions
                    .iter()
                    .map(|one| (one.reused_tokens, one.prompt_tokens)),
            );
            let questions = ["What is a ticket?", "Why?", "Who says so, and where?"];
            counts.extend(turns(&mut engine, &questions));
            let reused: usize = counts.iter().map(|(reused, _)| *reused).sum();
            assert!(reused > 300, "{counts:?}");
        }
        let without = &counts[counts.len() / 2..];
        assert!(without.iter().all(|(reused, _)| *reused == 0));
        seen.push(counts);
    }
    assert_eq!(seen[0], seen[1]);
}

#[test]
fn the_default_model_gives_the_same_text_alone_batched_cached_and_preempted() {
    let Some(path) = test_model() else { return };
    let mut engine = load_with(&path, Backend::Candle);
    let requests: Vec<Request> = requests()
        .into_iter()
        .take(4)
        .map(|mut request| {
            request.max_tokens = 24;
            request
        })
        .collect();
    let prompts: Vec<Vec<u32>> = requests
        .iter()
        .map(|request| prompt(&engine, request))
        .collect();
    restart(&mut engine, false, ROOMY);
    let alone: Vec<Completion> = requests
        .iter()
        .flat_map(|request| run(&mut engine, std::slice::from_ref(request)).completions)
        .collect();
    let longest = prompts.iter().map(Vec::len).max().unwrap() + 24;
    let scarce = longest.div_ceil(PAGE_TOKENS) + 2;
    for (pages, rounds) in [(ROOMY, 2), (scarce, 1)] {
        restart(&mut engine, true, pages);
        for round in 0..rounds {
            let outcome = run(&mut engine, &requests);
            assert_eq!(outcome.gave_way > 0, pages == scarce);
            for (index, together) in outcome.completions.iter().enumerate() {
                assert_eq!(
                    together.tokens, alone[index].tokens,
                    "{pages} {round} {index}"
                );
                let expected = match (round, index) {
                    (0, 0) => 0,
                    (0, _) => common_prefix(&prompts[0], &prompts[index]),
                    _ => prompts[index].len() - 1,
                };
                if pages == ROOMY {
                    assert_eq!(together.reused_tokens, expected, "request {index}");
                }
            }
        }
    }
}
