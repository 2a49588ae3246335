//! Length limits: contexts larger than any memory, `CONTEXT`, budgets smaller than a context, and
//! tokens that the model does not know.

use super::stable::{chat_file, vocabulary};
use super::*;
use crate::error::Exit;

/// A tiny model with this context.
fn tiny(architecture: &'static str, context_length: usize) -> Tiny {
    Tiny {
        context_length,
        vocabulary: vocabulary(),
        ..Tiny::new(architecture, true)
    }
    .filled(true)
}

fn open(
    path: &Path,
    backend: Backend,
    limits: (Option<usize>, Option<usize>),
) -> Result<LocalEngine> {
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
        context: limits.0,
        kv_bytes: limits.1,
        speculate: true,
    };
    LocalEngine::load(&file, &options)
}

/// A prompt of `letters` and two more tokens.
fn letters(count: usize, max_tokens: usize) -> Request {
    let text: String = ('a'..='z').cycle().take(count).collect();
    request(
        vec![message(Role::User, &text)],
        max_tokens,
        Sampling::default(),
    )
}

#[test]
fn a_context_larger_than_memory_loads() {
    let folder = tempfile::tempdir().unwrap();
    for (backend, context) in [
        (Backend::Native, 1 << 20),
        (Backend::Native, 1 << 27),
        (Backend::Candle, 1 << 27),
    ] {
        let path = chat_file(folder.path(), &tiny("qwen3", context), GgmlDType::F32);
        for kv_bytes in [None, Some(1 << 20), Some(1 << 44)] {
            let mut engine = open(&path, backend, (None, kv_bytes)).unwrap();
            assert_eq!(engine.info().context_length, context);
            let one = run(&mut engine, &[letters(40, 3)]).completions.remove(0);
            assert_eq!((one.prompt_tokens, one.tokens.len()), (42, 3));
        }
    }
}

#[test]
fn context_can_be_shortened_but_not_extended() {
    let folder = tempfile::tempdir().unwrap();
    let path = chat_file(folder.path(), &tiny("llama", 512), GgmlDType::F32);
    for backend in [Backend::Native, Backend::Candle] {
        let error = open(&path, backend, (Some(513), None)).err().unwrap();
        assert_eq!(error.exit(), Exit::Usage);
        let report = error.report();
        assert!(
            report.contains("a context of 513 tokens is more than the model's, 512 tokens"),
            "{report}"
        );
        assert!(
            report.contains("hint: set CONTEXT to at most 512"),
            "{report}"
        );

        let mut engine = open(&path, backend, (Some(50), None)).unwrap();
        assert_eq!(engine.info().context_length, 50);
        // The sequence ends where the context does.
        let one = run(&mut engine, &[letters(40, 30)]).completions.remove(0);
        assert_eq!((one.tokens.len(), one.finish), (8, Finish::Length));
        let error = engine.submit(letters(48, 1)).unwrap_err();
        assert_eq!(error.exit(), Exit::FlowFailed);
        assert!(
            error
                .report()
                .contains("the prompt of 50 tokens leaves no room in the context of 50 tokens"),
            "{}",
            error.report()
        );
        assert!(error.report().contains("the model has 512 tokens"));
        // It can be checked ahead as well.
        let error = engine.check(&letters(2000, 1)).unwrap_err();
        assert_eq!(error.exit(), Exit::Preflight);
        assert!(engine.check(&letters(20, 10_000)).is_ok());
        // No setting helps against the model's own context: only the flow fails.
        let mut engine = open(&path, backend, (None, None)).unwrap();
        assert!(engine.check(&letters(2000, 1)).is_ok());
        let error = engine.submit(letters(2000, 1)).unwrap_err();
        assert!(
            error
                .report()
                .contains("leaves no room in the model's context of 512 tokens"),
            "{}",
            error.report()
        );
    }
}

/// The warm-up must not need more positions than the model has.
#[test]
fn a_model_of_a_few_positions_loads_and_says_that_nothing_fits() {
    let folder = tempfile::tempdir().unwrap();
    for context in [1, 8, 15] {
        let path = chat_file(folder.path(), &tiny("llama", context), GgmlDType::F32);
        for backend in [Backend::Native, Backend::Candle] {
            let mut engine = open(&path, backend, (None, None)).unwrap();
            let report = engine.submit(letters(context, 1)).unwrap_err().report();
            let expected = format!("leaves no room in the model's context of {context} token");
            assert!(report.contains(&expected), "{report}");
            if context > 8 {
                let one = run(&mut engine, &[letters(2, 99)]).completions.remove(0);
                assert_eq!((one.tokens.len(), one.finish), (11, Finish::Length));
            }
        }
    }
}

#[test]
fn a_budget_may_be_smaller_than_a_context() {
    let folder = tempfile::tempdir().unwrap();
    let path = chat_file(folder.path(), &tiny("llama", 1 << 20), GgmlDType::F32);
    // Two layers of two heads of 64: 1,056 bytes a token, so 992 tokens in whole pages.
    let mut engine = open(&path, Backend::Native, (None, Some(1 << 20))).unwrap();
    assert_eq!(engine.lengths.tokens(), 992);
    assert!(engine.check(&letters(900, 10)).is_ok());
    assert!(engine.check(&letters(100, 800)).is_ok());

    let error = engine.check(&letters(100, 4000)).unwrap_err();
    assert_eq!(error.exit(), Exit::Preflight);
    let report = error.report();
    for part in [
        "a prompt of 102 tokens and 4000 to generate need 4.1 MiB for keys and values (1.0 KiB a token)",
        "KV_CACHE_MB gives 1.0 MiB, which holds 992 tokens; the weights take",
        "hint: set KV_CACHE_MB=5 or more, or generate less (MAX_TOKENS), or end sequences at 992 \
         tokens (CONTEXT=992)",
    ] {
        assert!(report.contains(part), "{report}");
    }
    // As the hint says.
    let cut = open(&path, Backend::Native, (Some(992), Some(1 << 20))).unwrap();
    assert!(cut.check(&letters(100, 4000)).is_ok());
    let more = open(&path, Backend::Native, (None, Some(5 << 20))).unwrap();
    assert!(more.check(&letters(100, 4000)).is_ok());

    let error = engine.submit(letters(2000, 1)).unwrap_err();
    assert_eq!(error.exit(), Exit::FlowFailed);
    assert!(error.report().contains("hint: set KV_CACHE_MB=3 or more"));
    // A request that may only turn out too long is started, and fails on the way.
    let long = engine.submit(letters(960, 2000)).unwrap();
    let mut failed = None;
    while failed.is_none() {
        for event in engine.poll().unwrap() {
            if let EventKind::Failed(reason) = event.kind {
                assert_eq!(event.id, long);
                failed = Some(reason);
            }
        }
    }
    let reason = failed.unwrap();
    assert!(reason.contains("KV_CACHE_MB gives 1.0 MiB"), "{reason}");
    check_idle(&engine);
}

#[test]
fn a_budget_below_one_page_is_refused_with_the_minimum() {
    let folder = tempfile::tempdir().unwrap();
    let path = chat_file(folder.path(), &tiny("llama", 512), GgmlDType::F32);
    for backend in [Backend::Native, Backend::Candle] {
        let error = open(&path, backend, (None, Some(1000))).err().unwrap();
        assert_eq!(error.exit(), Exit::Preflight);
        let report = error.report();
        assert!(report.contains("KV_CACHE_MB gives 1000 B"), "{report}");
        assert!(
            report.contains("hint: set KV_CACHE_MB=1 or more"),
            "{report}"
        );
    }
}

#[test]
fn a_refused_address_reservation_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = chat_file(folder.path(), &tiny("llama", 512), GgmlDType::F32);
    let error = open(&path, Backend::Native, (None, Some(1 << 60))).err();
    // All addressable pages take less than the address space here.
    if let Some(error) = error {
        assert_eq!(error.exit(), Exit::Preflight);
        assert!(error.report().contains("hint: set a smaller KV_CACHE_MB"));
    }
}

#[test]
fn an_unknown_token_fails_only_its_prompt() {
    let folder = tempfile::tempdir().unwrap();
    // All but the last token of the tokenizer, ` h`.
    let few = Tiny {
        vocabulary: vocabulary() - 1,
        ..tiny("llama", 512)
    };
    let path = chat_file(folder.path(), &few.filled(true), GgmlDType::F32);
    let mut engine = open(&path, Backend::Native, (None, None)).unwrap();
    run(&mut engine, &[letters(20, 3)]);
    let say = |text| request(vec![message(Role::User, text)], 3, Sampling::default());
    let error = engine.submit(say("a hat")).unwrap_err();
    assert_eq!(error.exit(), Exit::FlowFailed);
    let report = error.report();
    let last = vocabulary() - 1;
    assert!(
        report.contains(&format!("the prompt holds the token `Ġh`, number {last}")),
        "{report}"
    );
    assert!(
        report.contains(&format!("it knows {last} tokens")),
        "{report}"
    );
    assert!(engine.submit_samples(say("a hat"), &[1, 2]).is_err());
    run(&mut engine, &[say("a cat")]);

    // A tokenizer that is plainly another model's.
    let other = Tiny {
        vocabulary: 10,
        ..tiny("llama", 512)
    };
    let path = chat_file(folder.path(), &other.filled(true), GgmlDType::F32);
    let error = open(&path, Backend::Native, (None, None)).err().unwrap();
    assert_eq!(error.exit(), Exit::Preflight);
    assert!(error.report().contains("seem to be mixed"));
}

#[test]
fn running_out_of_memory_fails_one_sequence_only() {
    use super::witness::{Seen, witnessed};
    use std::cell::RefCell;
    use std::rc::Rc;

    let folder = tempfile::tempdir().unwrap();
    let path = chat_file(folder.path(), &tiny("llama", 1 << 20), GgmlDType::F32);
    let seen = Rc::new(RefCell::new(Seen::default()));
    let mut engine = witnessed(open(&path, Backend::Native, (None, None)).unwrap(), &seen);
    restart(&mut engine, false, 1000);
    seen.borrow_mut().most_pages = Some(4);
    // A prompt within the budget but without memory, a text that grows too long, and one that fits.
    let too_long = engine.submit(letters(70, 1)).unwrap();
    let grows = engine.submit(letters(40, 40)).unwrap();
    let fits = engine.submit(letters(10, 4)).unwrap();
    let mut failed = Vec::new();
    let mut ended = Vec::new();
    while failed.len() + ended.len() < 3 {
        let events = engine.poll().unwrap();
        assert!(!events.is_empty());
        for Event { id, kind } in events {
            match kind {
                EventKind::Failed(reason) => {
                    assert!(reason.contains("memory for those of 64"), "{reason}");
                    failed.push(id);
                }
                EventKind::Finished(_) => ended.push(id),
                _ => {}
            }
        }
    }
    assert_eq!((failed, ended), (vec![too_long, grows], vec![fits]));
    check_idle(&engine);
}
