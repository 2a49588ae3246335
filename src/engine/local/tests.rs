//! The local engine on the default model: the same tokens in any batch, and counts that add up.

mod candle;
mod flows;
mod limits;
mod memory;
mod samples;
mod stable;
mod witness;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::quantized::GgmlDType;

use super::*;
use crate::config::GpuSettings;
use crate::engine::device::Device;
use crate::engine::kv::common_prefix;
use crate::engine::load::hub::{ModelFormat, ModelSource};
use crate::engine::model::testing::{Tiny, test_model};
use crate::engine::{Message, Origin, RequestOptions, Role, Sampling};

/// Tokens of a pass of the models here.
const PASS_TOKENS: usize = 256;

/// Pages of an ample memory.
const ROOMY: usize = 256;

fn load() -> Option<LocalEngine> {
    Some(load_file(&test_model()?))
}

fn load_file(path: &Path) -> LocalEngine {
    load_with(path, Backend::Native)
}

fn load_with(path: &Path, backend: Backend) -> LocalEngine {
    let file = ModelFile {
        path: path.to_owned(),
        source: ModelSource::Path,
        sha256: None,
        format: ModelFormat::Gguf,
    };
    let options = LocalOptions {
        device: DeviceChoice::Cpu,
        backend,
        gpu: GpuSettings::default(),
        max_sequences: 8,
        reuse: true,
        kv_bytes: None,
        context: None,
        speculate: false,
    };
    LocalEngine::load(&file, &options).unwrap()
}

/// The native path with the default model, and the candle path with a tiny random one, which has the
/// default model's tokenizer.
fn for_each_engine(check: fn(LocalEngine)) {
    let (Some(native), Some(mut candle)) = (load(), load()) else {
        return;
    };
    check(native);
    let folder = tempfile::tempdir().unwrap();
    candle.model = tiny_model(folder.path(), Backend::Candle);
    candle.info.context_length = candle.model.spec().context_length;
    candle.lengths = Lengths::new(candle.model.as_ref(), &Limits::default(), &Device::Cpu).unwrap();
    check(candle);
}

fn tiny_model(folder: &Path, backend: Backend) -> Box<dyn Model> {
    let tiny = Tiny {
        vocabulary: 49_152,
        ..Tiny::new("llama", true)
    };
    let path = tiny.filled(true).write_gguf(folder, GgmlDType::F32);
    model::load(&path, backend).unwrap().model
}

/// A freshly loaded engine with this many pages: fewer than a full context takes.
fn restart(engine: &mut LocalEngine, reuse: bool, pages: usize) {
    assert!(engine.sequences.is_empty());
    engine.model.set_pages(pages).unwrap();
    engine.kv = Some(KvCache::new(pages, PAGE_TOKENS, reuse));
    engine.scheduler = Scheduler::new(8, PASS_TOKENS);
}

fn message(role: Role, content: &str) -> Message {
    Message {
        role,
        content: content.to_owned(),
    }
}

fn request(messages: Vec<Message>, max_tokens: usize, sampling: Sampling) -> Request {
    Request {
        origin: Origin::default(),
        messages: messages.into(),
        max_tokens,
        ignore_eos: true,
        sampling,
        options: RequestOptions::default(),
    }
}

const SYSTEM: &str = "You answer questions about a help desk. Be brief, and say so when you do not \
                      know. Tickets have a priority from one to four.";

fn ask(question: &str, max_tokens: usize) -> Request {
    let messages = vec![message(Role::System, SYSTEM), message(Role::User, question)];
    request(messages, max_tokens, Sampling::default())
}

/// Eight requests whose questions begin differently; two of them use sampling.
fn requests() -> Vec<Request> {
    let questions = [
        "What is a ticket?",
        "How long may an answer take when its priority is one, and how long when it is four?",
        "Who closes it?",
        "Name three reasons to escalate a ticket to the second line, the most common one first.",
        "Again: what is a ticket?",
        "Please write a haiku.",
        "7 tickets are open and 4 are closed. How many were there?",
        "Is this a question?",
    ];
    questions
        .iter()
        .zip(0..)
        .map(|(question, seed)| {
            let mut request = ask(question, 30);
            if seed % 4 == 3 {
                request.sampling.temperature = 0.8;
                request.sampling.seed = seed;
            }
            request
        })
        .collect()
}

/// The results of some requests, and the number of preemptions.
struct Outcome {
    completions: Vec<Completion>,
    gave_way: usize,
}

/// Runs these concurrently.
fn run(engine: &mut LocalEngine, requests: &[Request]) -> Outcome {
    let ids: Vec<RequestId> = requests
        .iter()
        .map(|request| engine.submit(request.clone()).unwrap())
        .collect();
    let mut streamed: BTreeMap<RequestId, Vec<u32>> = BTreeMap::new();
    let mut said: BTreeMap<RequestId, String> = BTreeMap::new();
    let mut started = BTreeSet::new();
    let mut ended = BTreeMap::new();
    let mut gave_way = 0;
    while ended.len() < ids.len() {
        let waiting = |engine: &LocalEngine| -> Vec<RequestId> {
            let admitted_before = |id: &RequestId| engine.sequences[id].reused.is_some();
            engine.scheduler.waiting().filter(admitted_before).collect()
        };
        let before = waiting(engine);
        let events = engine.poll().unwrap();
        let now = waiting(engine);
        gave_way += now.iter().filter(|id| !before.contains(id)).count();
        for Event { id, kind } in events {
            match kind {
                EventKind::Started => assert!(started.insert(id), "told twice"),
                EventKind::Restarted => panic!("{id:?} began again"),
                EventKind::Text(text) => said.entry(id).or_default().push_str(&text),
                EventKind::Token(token) => streamed.entry(id).or_default().push(token),
                EventKind::Finished(completion) => {
                    if let Some(said) = said.get(&id) {
                        assert_eq!(*said, completion.text);
                    }
                    assert!(ended.insert(id, completion).is_none());
                }
                EventKind::Failed(reason) => panic!("{reason}"),
            }
        }
    }
    for (id, completion) in &ended {
        // A request whose first token ends it streams nothing.
        let streamed = streamed.get(id).map_or(&[][..], Vec::as_slice);
        assert_eq!(completion.tokens, streamed);
        let parts = completion.prefill_tokens + completion.reused_tokens;
        assert_eq!(parts, completion.prompt_tokens);
        assert!(completion.prefill_tokens > 0);
    }
    check_idle(engine);
    Outcome {
        completions: ids.iter().map(|id| ended.remove(id).unwrap()).collect(),
        gave_way,
    }
}

/// Checks that no request holds memory.
fn check_idle(engine: &LocalEngine) {
    assert!(engine.sequences.is_empty());
    assert_eq!(engine.scheduler.active(), 0);
    let stats = engine.kv.as_ref().unwrap().stats();
    assert_eq!(stats.leased, 0);
    assert_eq!(stats.free + stats.cached, stats.capacity);
}

fn prompt(engine: &LocalEngine, request: &Request) -> Vec<u32> {
    let text = engine.chat.render(&request.messages).unwrap();
    engine.tokenizer.encode(&text.text, false).unwrap()
}

#[test]
fn tokens_do_not_depend_on_batch_reuse_or_memory() {
    for_each_engine(same_tokens_in_any_company);
}

fn same_tokens_in_any_company(mut engine: LocalEngine) {
    let mut requests = requests();
    if engine.model.backend() == "candle" {
        // Last bits can differ there, and a draw among the 49,152 almost equally likely tokens of a
        // random model depends on them. The default model's tests sample.
        for request in &mut requests {
            request.sampling = Sampling::default();
        }
    }
    restart(&mut engine, false, ROOMY);
    let alone: Vec<Completion> = requests
        .iter()
        .flat_map(|request| run(&mut engine, std::slice::from_ref(request)).completions)
        .collect();
    assert!(alone.iter().all(|completion| completion.reused_tokens == 0));
    assert!(alone.iter().all(|completion| completion.tokens.len() == 30));

    for reuse in [false, true] {
        let mut gave_way = 0;
        for pages in [ROOMY, 13, 11] {
            restart(&mut engine, reuse, pages);
            // With reuse, everything not evicted is known the second time.
            let rounds = if reuse { 2 } else { 1 };
            for round in 0..rounds {
                let outcome = run(&mut engine, &requests);
                for (index, (together, alone)) in outcome.completions.iter().zip(&alone).enumerate()
                {
                    assert_eq!(
                        together.tokens, alone.tokens,
                        "{reuse} {pages} {round} {index}"
                    );
                    assert_eq!(together.text, alone.text);
                    assert_eq!(together.prompt_tokens, alone.prompt_tokens);
                    assert!(reuse || together.reused_tokens == 0);
                }
                if pages != ROOMY {
                    gave_way += outcome.gave_way;
                    continue;
                }
                assert_eq!(outcome.gave_way, 0);
                let mut completions = outcome.completions.iter();
                assert!(round == 0 || completions.all(|one| one.prefill_tokens == 1));
            }
        }
        assert!(gave_way > 0, "memory was not short");
    }
}

#[test]
fn reuse_is_exactly_the_common_prefix() {
    for_each_engine(reuses_what_prompts_have_in_common);
}

fn reuses_what_prompts_have_in_common(mut engine: LocalEngine) {
    restart(&mut engine, true, ROOMY);
    let first = ask("What is a ticket?", 5);
    let first_prompt = prompt(&engine, &first);
    let answer = run(&mut engine, std::slice::from_ref(&first))
        .completions
        .remove(0);
    assert_eq!(answer.reused_tokens, 0);
    assert_eq!(answer.prompt_tokens, first_prompt.len());
    // The last generated token was never computed.
    let mut known = first_prompt.clone();
    known.extend(&answer.tokens[..answer.tokens.len() - 1]);

    // The same again: all but the token whose logits are wanted.
    let again = run(&mut engine, std::slice::from_ref(&first))
        .completions
        .remove(0);
    assert_eq!(again.reused_tokens, first_prompt.len() - 1);
    assert_eq!(again.tokens, answer.tokens);

    // Another question, and the conversation's next turn.
    let other = ask("How many priorities are there?", 5);
    let mut turn = first.clone();
    let mut messages = turn.messages.to_vec();
    messages.push(message(Role::Assistant, &answer.text));
    messages.push(message(Role::User, "And then?"));
    turn.messages = messages.into();
    for request in [other, turn] {
        let tokens = prompt(&engine, &request);
        let common = common_prefix(&known, &tokens).min(tokens.len() - 1);
        assert!(common > PAGE_TOKENS && !common.is_multiple_of(PAGE_TOKENS));
        let completion = run(&mut engine, std::slice::from_ref(&request))
            .completions
            .remove(0);
        assert_eq!(completion.reused_tokens, common);
        assert_eq!(completion.prefill_tokens, tokens.len() - common);
    }
}

#[test]
fn concurrent_requests_compute_their_common_prefix_once() {
    for_each_engine(computes_a_common_prefix_once);
}

fn computes_a_common_prefix_once(mut engine: LocalEngine) {
    restart(&mut engine, true, ROOMY);
    let requests = requests();
    let prompts: Vec<Vec<u32>> = requests
        .iter()
        .map(|request| prompt(&engine, request))
        .collect();
    let outcome = run(&mut engine, &requests);
    assert_eq!(outcome.gave_way, 0);
    for (index, completion) in outcome.completions.iter().enumerate() {
        let expected = match index {
            0 => 0,
            _ => common_prefix(&prompts[0], &prompts[index]),
        };
        assert_eq!(completion.reused_tokens, expected, "request {index}");
    }
}

#[test]
fn a_cancelled_request_frees_its_memory_in_any_state() {
    for_each_engine(cancelling_frees_memory);
}

fn cancelling_frees_memory(mut engine: LocalEngine) {
    for (reuse, pages) in [(false, ROOMY), (true, ROOMY), (true, 12)] {
        restart(&mut engine, reuse, pages);
        let requests = requests();
        let expected = run(&mut engine, &requests[1..2]).completions.remove(0);
        for polls in [0, 1, 2, 7] {
            let ids: Vec<RequestId> = requests
                .iter()
                .map(|request| engine.submit(request.clone()).unwrap())
                .collect();
            for _ in 0..polls {
                engine.poll().unwrap();
            }
            for id in &ids {
                engine.cancel(*id);
                engine.cancel(*id);
            }
            assert_eq!(engine.poll().unwrap(), []);
            check_idle(&engine);
            let again = run(&mut engine, &requests[1..2]).completions.remove(0);
            assert_eq!(again.tokens, expected.tokens, "{reuse} {pages} {polls}");
        }
    }
}

#[test]
fn a_single_sequence_that_outgrows_memory_fails() {
    for_each_engine(outgrowing_the_memory_is_an_error);
}

fn outgrowing_the_memory_is_an_error(mut engine: LocalEngine) {
    restart(&mut engine, true, 5);
    let long = ask("What is a ticket?", 60);
    let pages = prompt(&engine, &long).len().div_ceil(PAGE_TOKENS);
    assert!(pages <= 5, "{pages}");
    let short = ask("Why?", 2);
    let (long, short) = (
        engine.submit(long).unwrap(),
        engine.submit(short.clone()).unwrap(),
    );
    // It fails with a reason, and the other goes on.
    let mut failed = None;
    let mut ended = false;
    while failed.is_none() || !ended {
        let events = engine.poll().unwrap();
        assert!(!events.is_empty());
        for Event { id, kind } in events {
            match kind {
                EventKind::Failed(reason) => failed = Some((id, reason)),
                EventKind::Finished(_) => ended = id == short,
                _ => {}
            }
        }
    }
    let (id, reason) = failed.unwrap();
    assert_eq!(id, long);
    assert!(reason.contains("81 tokens"), "{reason}");
    assert!(reason.contains("memory for those of 80"), "{reason}");
    check_idle(&engine);
}

#[test]
fn kv_memory_is_committed_only_when_needed() {
    let Some(engine) = load() else { return };
    let stats = engine.kv.as_ref().unwrap().stats();
    let page_bytes = engine.model.page_bytes().unwrap();
    assert_eq!(stats.capacity, (1 << 30) / page_bytes);
    assert_eq!(stats.leased, 0);
}
