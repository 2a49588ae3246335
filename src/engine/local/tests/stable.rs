//! Bit-stability of the whole engine: with random batches, order of arrival, chunks, memory, reuse and
//! thread counts, requests have the same logits, to the last bit, and the same tokens as alone.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;

use super::witness::{Seen, witnessed};
use super::*;
use crate::engine::model::testing::{Random, Tiny, native, write_gguf};
use crate::engine::tokenizer::test_metadata;
use crate::thorough::cases;

/// The outcome of a mix.
struct Outcome {
    /// Each request's index and result; some occur twice.
    completions: Vec<(usize, Completion)>,
    gave_way: bool,
    cancelled: bool,
}

fn one_of<T: Copy>(random: &mut Random, of: &[T]) -> T {
    of[random.below(of.len() as u32) as usize]
}

/// Runs the requests on an engine with random settings. Some are cancelled midway and resubmitted.
fn run_mix(
    engine: &mut LocalEngine,
    requests: &[Request],
    pages: usize,
    random: &mut Random,
) -> Outcome {
    let reuse = random.below(3) > 0;
    restart(engine, reuse, pages);
    let budget = one_of(random, &[1, 5, 16, 17, 40, 100, PASS_TOKENS]);
    engine.scheduler = Scheduler::new(1 + random.below(8) as usize, budget);
    let mut coming: Vec<usize> = (0..requests.len()).chain(0..2).collect();
    let mut flying: Vec<(RequestId, usize)> = Vec::new();
    let mut outcome = Outcome {
        completions: Vec::new(),
        gave_way: false,
        cancelled: false,
    };
    let cancels = random.below(2) == 0;
    while !(coming.is_empty() && flying.is_empty()) {
        for _ in 0..random.below(4) {
            if coming.is_empty() {
                break;
            }
            let at = random.below(coming.len() as u32) as usize;
            let index = coming.swap_remove(at);
            let id = engine.submit(requests[index].clone()).unwrap();
            flying.push((id, index));
        }
        if cancels && !flying.is_empty() && random.below(20) == 0 {
            let at = random.below(flying.len() as u32) as usize;
            let (id, index) = flying.swap_remove(at);
            engine.cancel(id);
            coming.push(index);
            outcome.cancelled = true;
        }
        for Event { id, kind } in engine.poll().unwrap() {
            match kind {
                EventKind::Started | EventKind::Token(_) | EventKind::Text(_) => {}
                EventKind::Restarted => panic!("began again"),
                EventKind::Finished(completion) => {
                    let at = flying.iter().position(|(other, _)| *other == id).unwrap();
                    let (_, index) = flying.swap_remove(at);
                    outcome.completions.push((index, completion));
                }
                EventKind::Failed(reason) => panic!("{reason}"),
            }
        }
        let back = |id| engine.sequences[&id].reused.is_some();
        outcome.gave_way |= engine.scheduler.waiting().any(back);
    }
    check_idle(engine);
    outcome
}

/// Runs the requests alone, cold, in one chunk; then in mixes on all engines. Returns the number of
/// mixes that ran short of memory.
fn check_mixes(
    engines: &mut [LocalEngine],
    seen: &RefCell<Seen>,
    requests: &[Request],
    mixes: usize,
    seed: u64,
) -> usize {
    let alone: Vec<Completion> = requests
        .iter()
        .flat_map(|request| {
            restart(&mut engines[0], false, ROOMY);
            run(&mut engines[0], std::slice::from_ref(request)).completions
        })
        .collect();
    seen.borrow_mut().closed = true;
    seen.borrow_mut().most_pages = None;
    let longest = alone.iter().map(|one| one.prompt_tokens + one.tokens.len());
    let least = longest.max().unwrap_or(0).div_ceil(PAGE_TOKENS);
    let mut gave_way = 0;
    for engine in engines {
        let mut random = Random(seed);
        for mix in 0..mixes {
            // The first mixes are short of memory, whatever is sampled. Short from the start, or found short on
            // the way.
            let (mut pages, found) = match mix {
                0 => (least + 1, false),
                1 => (least + 1, true),
                _ => {
                    let pages = one_of(&mut random, &[ROOMY, least, least + 1, least + 4]);
                    (pages, random.below(2) == 0)
                }
            };
            seen.borrow_mut().most_pages = found.then_some(pages);
            if found {
                pages = ROOMY;
            }
            seen.borrow_mut().computed = 0;
            let before = seen.borrow().compared;
            let outcome = run_mix(engine, requests, pages, &mut random);
            let mut work = 0;
            let mut sampled = 0;
            for (index, completion) in &outcome.completions {
                let expected = &alone[*index];
                assert_eq!(completion.tokens, expected.tokens, "request {index}");
                assert_eq!(completion.text, expected.text);
                assert_eq!(completion.finish, expected.finish);
                let rows = completion.tokens.len() + usize::from(completion.finish == Finish::Stop);
                sampled += rows;
                work += completion.prefill_tokens + rows - 1;
            }
            assert_eq!(outcome.completions.len(), requests.len() + 2, "mix {mix}");
            assert!(seen.borrow().compared - before >= sampled);
            // The reported counts match what was computed.
            if !outcome.gave_way && !outcome.cancelled {
                assert_eq!(seen.borrow().computed, work, "mix {mix}");
            }
            gave_way += usize::from(outcome.gave_way);
        }
    }
    gave_way
}

/// An engine on this file with this many threads.
fn load_native(path: &Path, threads: usize, seen: &Rc<RefCell<Seen>>) -> LocalEngine {
    let engine = LocalEngine {
        model: native(path, threads),
        ..load_file(path)
    };
    witnessed(engine, seen)
}

/// A tiny model's file with the tests' tokenizer and a chat template.
fn tiny_file(folder: &Path, architecture: &'static str, dtype: GgmlDType) -> std::path::PathBuf {
    let tiny = Tiny {
        vocabulary: vocabulary(),
        ..Tiny::new(architecture, true)
    };
    chat_file(folder, &tiny.filled(true), dtype)
}

/// Tokens of the tests' tokenizer.
pub(super) fn vocabulary() -> usize {
    match &test_metadata()["tokenizer.ggml.tokens"] {
        Value::Array(texts) => texts.len(),
        _ => panic!("an array"),
    }
}

/// The same with a model of any sizes.
pub(super) fn chat_file(folder: &Path, tiny: &Tiny, dtype: GgmlDType) -> std::path::PathBuf {
    let architecture = tiny.architecture;
    let tokenizer = test_metadata();
    let template = "{% for message in messages %}<s>{{ message.content }}{% endfor %}<tool>";
    let mut metadata = tiny.metadata();
    metadata.extend(tokenizer);
    metadata.push((
        "tokenizer.chat_template".into(),
        Value::String(template.into()),
    ));
    let path = folder.join(format!("{architecture}.{dtype:?}.chat.gguf"));
    write_gguf(&path, &metadata, &tiny.stored(|_| dtype));
    path
}

/// Conversations of random letters with common prefixes of various lengths.
fn conversations(random: &mut Random) -> Vec<Request> {
    fn letters(random: &mut Random, count: u32) -> String {
        let letter = |_| match random.below(30) {
            letter @ 0..26 => char::from(b'a' + letter as u8),
            _ => ' ',
        };
        (0..count).map(letter).collect()
    }
    let base = letters(random, 150);
    (0..8)
        .map(|seed| {
            let common = one_of(random, &[0, 40, 150, 1 + seed as usize * 15]);
            let count = 1 + random.below(60);
            let mut messages = vec![
                message(Role::System, &base[..common]),
                message(Role::User, &letters(random, count)),
            ];
            if random.below(3) == 0 {
                messages.push(message(Role::Assistant, &letters(random, 20)));
                messages.push(message(Role::User, &letters(random, 20)));
            }
            let mut sampling = Sampling::default();
            if seed % 3 == 2 {
                sampling.temperature = 1.0;
                sampling.seed = seed;
            }
            let mut request = request(messages, 1 + random.below(24) as usize, sampling);
            request.ignore_eos = random.below(2) == 0;
            request
        })
        .collect()
}

#[test]
fn tiny_models_are_bit_stable_in_any_mix() {
    let folder = tempfile::tempdir().unwrap();
    let models = [
        ("llama", GgmlDType::Q4_1),
        ("qwen2", GgmlDType::Q4K),
        ("qwen3", GgmlDType::Q8_0),
        ("llama", GgmlDType::BF16),
    ];
    let mut gave_way = 0;
    for (seed, (architecture, dtype)) in (31..).zip(models) {
        let path = tiny_file(folder.path(), architecture, dtype);
        let seen = Rc::new(RefCell::new(Seen::default()));
        let mut engines = [1, 2].map(|threads| load_native(&path, threads, &seen));
        let requests = conversations(&mut Random(seed));
        gave_way += check_mixes(&mut engines, &seen, &requests, cases(3, 10), seed);
    }
    assert!(gave_way > 0, "memory was never short");
}

#[test]
fn the_default_model_is_bit_stable_in_any_mix() {
    let Some(path) = test_model() else { return };
    let seen = Rc::new(RefCell::new(Seen::default()));
    let mut engines = [1, 2].map(|threads| load_native(&path, threads, &seen));
    let mut requests = requests();
    for request in &mut requests {
        request.max_tokens = 12;
    }
    check_mixes(&mut engines, &seen, &requests, 4, 5);
}
