//! Recorded answers, with the latencies that the script gives: no model. It stands behind the same
//! trait as the real engine, so that everything else runs and is tested without weights.
//!
//! # Scripts
//!
//! A script is JSON Lines, one answer a line:
//!
//! ```json
//! {"flow": 3, "row": "sla-clock", "step": "planner", "output": "text", "ttft_ms": 4.5, "latency_ms": 21}
//! ```
//!
//! `flow`, `row`, `step` and `sample` (of a step that has several: which, from 1) say whom the answer
//! is for; each may be left out. The line that names most of what the request is wins (flow and step,
//! then flow, then row and step, then row, then step, then a line that names nothing; among those
//! that name the same of these, one that names the sample), the first among equals. `queue_ms`, `ttft_ms` and
//! `latency_ms` (default 0; each counts from the submission) are waited for; `"fail": "reason"` in place of `output` makes the request fail.
//! Other keys are ignored, so that the `steps.jsonl` of a real run is a script.
//!
//! Tokens are words here: a run of white space and the word behind it; ids are hashes of them.

use std::cell::Cell;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::device::DeviceInfo;
use super::{
    Completion, Engine, EngineInfo, Event, EventKind, Finish, Origin, Request, RequestId,
    restart_refused,
};
use crate::error::{Error, Result};
use crate::profile::{self, Activity, Count, PassTokens, Span};
use crate::stopwatch::{Fence, Timer};
use crate::text_file;

/// How long a poll waits at most: whoever polls has other things to look at, too.
const LONGEST_WAIT: Duration = Duration::from_millis(20);

/// The answers of a script.
#[derive(Debug, Clone, Default)]
pub struct Script {
    answers: Vec<Answer>,
    by_key: HashMap<Key, usize>,
}

/// Whom an answer is for: flow, row, step, sample.
type Key = (Option<usize>, Option<String>, Option<String>, Option<usize>);

#[derive(Debug, Clone, Deserialize)]
struct Answer {
    flow: Option<usize>,
    row: Option<String>,
    step: Option<String>,
    sample: Option<usize>,
    output: Option<Arc<str>>,
    fail: Option<String>,
    #[serde(default)]
    queue_ms: Option<f64>,
    #[serde(default)]
    ttft_ms: Option<f64>,
    #[serde(default)]
    latency_ms: Option<f64>,
}

impl Script {
    /// Reads a script.
    ///
    /// # Errors
    /// Exit code 2 where the file cannot be read, a line is not JSON or lacks an answer.
    pub fn read(path: &Path) -> Result<Self> {
        let text = text_file::read_text(path).map_err(|source| {
            Error::usage(format!("failed to read the script {}", path.display()))
                .hint("SCRIPT names a JSON Lines file of recorded answers; the steps.jsonl of an earlier run is one")
                .caused_by(source)
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads a script from text; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`Script::read`].
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        let mut script = Self::default();
        for (index, line) in text.lines().enumerate() {
            let line = text_file::line_without_mark(line);
            if line.trim().is_empty() {
                continue;
            }
            let place = || format!("{name}:{}", index + 1);
            let answer: Answer = serde_json::from_str(line).map_err(|source| {
                Error::usage(format!("{}: not a line of a script", place()))
                    .hint("each line is one JSON object, such as {\"step\": \"planner\", \"output\": \"text\"}")
                    .caused_by(source)
            })?;
            if answer.output.is_none() && answer.fail.is_none() {
                return Err(Error::usage(format!(
                    "{}: the answer has neither `output` nor `fail`",
                    place()
                ))
                .hint("write {\"step\": \"planner\", \"output\": \"text\"}"));
            }
            for (key, value) in [
                ("queue_ms", answer.queue_ms),
                ("ttft_ms", answer.ttft_ms),
                ("latency_ms", answer.latency_ms),
            ] {
                // A day: longer is a wrong unit, not a latency.
                if value.is_some_and(|ms| !(0.0..=86_400_000.0).contains(&ms)) {
                    return Err(Error::usage(format!(
                        "{}: `{key}` is not a time between 0 and a day in milliseconds",
                        place()
                    )));
                }
            }
            let (row, step) = (answer.row.clone(), answer.step.clone());
            let key = (answer.flow, row, step, answer.sample);
            script.by_key.entry(key).or_insert(script.answers.len());
            script.answers.push(answer);
        }
        if script.answers.is_empty() {
            return Err(Error::usage(format!("{name}: the script holds no answer")));
        }
        Ok(script)
    }

    /// The text that the script has for a request, where it has one.
    pub fn text(&self, origin: &Origin) -> Option<&str> {
        self.find(origin)?.output.as_deref()
    }

    /// The answer for a request: the most exact line, the first among equals.
    fn find(&self, origin: &Origin) -> Option<&Answer> {
        // Bits: flow, row, step; more exact first, and a flow's number tells more than its row.
        [0b111, 0b101, 0b110, 0b100, 0b011, 0b010, 0b001, 0b000]
            .into_iter()
            .flat_map(|bits| [(bits, true), (bits, false)])
            .find_map(|(bits, sample)| {
                let key = (
                    (bits & 0b100 != 0).then_some(origin.flow),
                    (bits & 0b010 != 0).then(|| origin.row.clone()),
                    (bits & 0b001 != 0).then(|| origin.step.clone()),
                    sample.then_some(origin.sample),
                );
                self.by_key.get(&key)
            })
            .map(|index| &self.answers[*index])
    }
}

/// The engine that a [`Script`] answers for.
#[derive(Debug)]
pub struct ScriptedEngine {
    info: EngineInfo,
    script: Script,
    timed: bool,
    next_id: u64,
    active: Vec<Playing>,
    synchronizations: Cell<u64>,
}

/// A request whose answer is being given.
#[derive(Debug)]
struct Playing {
    id: RequestId,
    submitted: Timer,
    prompt_tokens: usize,
    pieces: Vec<Arc<str>>,
    given: usize,
    finish: Finish,
    fail: Option<String>,
    started: bool,
    queue: Duration,
    ttft: Duration,
    latency: Duration,
    phase: Activity,
}

impl Playing {
    /// When piece `index` is due, counted from the submission: the first at the time to first
    /// token, the last at the latency, the others evenly between.
    fn due(&self, index: usize) -> Duration {
        match self.pieces.len() {
            0 | 1 => self.latency,
            count => {
                let share = index as f64 / (count - 1) as f64;
                self.ttft + (self.latency - self.ttft).mul_f64(share)
            }
        }
    }

    fn next_due(&self) -> Duration {
        if !self.started {
            self.queue
        } else if self.given < self.pieces.len() {
            self.due(self.given)
        } else {
            self.latency
        }
    }
}

impl ScriptedEngine {
    /// An engine that plays `script`; `timed` says whether its latencies are waited for.
    pub fn new(script: Script, timed: bool) -> Self {
        Self {
            info: EngineInfo {
                kind: "scripted".to_owned(),
                model: "none".to_owned(),
                model_path: None,
                model_sha256: None,
                architecture: None,
                backend: "scripted".to_owned(),
                weights: None,
                context_length: usize::MAX,
                device: DeviceInfo::none(),
                notes: Vec::new(),
            },
            script,
            timed,
            next_id: 0,
            active: Vec::new(),
            synchronizations: Cell::new(0),
        }
    }

    /// Whom the engine waits for: those without a token yet are in their prefill.
    fn pass(&self) -> PassTokens {
        let begun = |playing: &&Playing| playing.given > 0;
        let decoding = self.active.iter().filter(begun).count();
        let first = |playing: &&Playing| playing.started && playing.given == 0;
        let prefilling = self.active.iter().filter(first);
        PassTokens {
            sequences: self.active.len(),
            prefill_tokens: prefilling.map(|playing| playing.prompt_tokens.max(1)).sum(),
            decode_tokens: decoding,
        }
    }

    /// How often [`Fence::synchronize`] was called.
    pub fn synchronizations(&self) -> u64 {
        self.synchronizations.get()
    }
}

impl Fence for ScriptedEngine {
    fn synchronize(&self) -> Result<()> {
        self.synchronizations.set(self.synchronizations.get() + 1);
        Ok(())
    }
}

impl Engine for ScriptedEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn submit(&mut self, request: Request) -> Result<RequestId> {
        let answer = self.script.find(&request.origin).ok_or_else(|| {
            Error::flow(format!(
                "the script has no answer for flow {}, row {}, step {}",
                request.origin.flow, request.origin.row, request.origin.step
            ))
            .hint("add a line for it, or one without `flow` and `row` that serves every flow")
        })?;
        let output = answer.output.clone().unwrap_or_default();
        let mut pieces = split_words(&output);
        let finish = if pieces.len() > request.max_tokens {
            pieces.truncate(request.max_tokens);
            Finish::Length
        } else {
            Finish::Stop
        };
        let span = |ms: Option<f64>| {
            Duration::from_secs_f64(if self.timed {
                ms.unwrap_or(0.0) / 1e3
            } else {
                0.0
            })
        };
        let latency = span(answer.latency_ms);
        let queue = span(answer.queue_ms).min(latency);
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.active.push(Playing {
            id,
            submitted: Timer::start(),
            prompt_tokens: request
                .messages
                .iter()
                .map(|message| split_words(&message.content).len())
                .sum(),
            pieces,
            given: 0,
            finish,
            fail: answer.fail.clone(),
            started: false,
            queue,
            ttft: span(answer.ttft_ms).min(latency),
            latency,
            phase: Activity::in_scope(if queue.is_zero() {
                Span::Prefill
            } else {
                Span::QueueWait
            }),
        });
        Ok(id)
    }

    fn poll(&mut self) -> Result<Vec<Event>> {
        let wait = self
            .active
            .iter()
            .map(|playing| {
                playing
                    .next_due()
                    .saturating_sub(playing.submitted.elapsed())
            })
            .min();
        match wait {
            None => return Ok(Vec::new()),
            Some(wait) if !wait.is_zero() => {
                let _pass = profile::pass(Span::Wait, || self.pass());
                std::thread::sleep(wait.min(LONGEST_WAIT));
            }
            Some(_) => {}
        }
        let mut events = Vec::new();
        for playing in &mut self.active {
            if !playing.started && playing.submitted.elapsed() >= playing.queue {
                playing.started = true;
                if !playing.queue.is_zero() {
                    playing.phase.next(Span::Prefill);
                }
                let (id, kind) = (playing.id, EventKind::Started);
                events.push(Event { id, kind });
            }
        }
        if !events.is_empty() {
            return Ok(events);
        }
        self.active.retain_mut(|playing| {
            let elapsed = playing.submitted.elapsed();
            let id = playing.id;
            if let Some(reason) = &playing.fail {
                if elapsed < playing.latency {
                    return true;
                }
                let kind = EventKind::Failed(reason.clone());
                events.push(Event { id, kind });
                return false;
            }
            while playing.given < playing.pieces.len() && elapsed >= playing.due(playing.given) {
                let kind = EventKind::Token(token_id(&playing.pieces[playing.given]));
                events.push(Event { id, kind });
                if playing.given == 0 {
                    playing.phase.next(Span::Decode);
                }
                playing.given += 1;
            }
            if playing.given < playing.pieces.len() || elapsed < playing.latency {
                return true;
            }
            profile::count(Count::Prefilled, playing.prompt_tokens);
            let kind = EventKind::Finished(Completion {
                text: playing.pieces.concat(),
                tokens: playing.pieces.iter().map(|piece| token_id(piece)).collect(),
                prompt_tokens: playing.prompt_tokens,
                prefill_tokens: playing.prompt_tokens,
                reused_tokens: 0,
                drafted_tokens: 0,
                accepted_tokens: 0,
                finish: playing.finish,
                served: None,
            });
            events.push(Event { id, kind });
            false
        });
        Ok(events)
    }

    fn cancel(&mut self, id: RequestId) {
        self.active.retain(|playing| playing.id != id);
    }

    /// There is no cache to empty.
    fn restart(&mut self, _reuse: bool) -> Result<()> {
        if self.active.is_empty() {
            Ok(())
        } else {
            Err(restart_refused(self.active.len()))
        }
    }
}

/// Splits text into words, each with the white space before it; joined they are the text.
fn split_words(text: &str) -> Vec<Arc<str>> {
    let mut pieces = Vec::new();
    let mut start = 0;
    let mut in_word = false;
    for (index, character) in text.char_indices() {
        if character.is_whitespace() {
            if in_word {
                pieces.push(Arc::from(&text[start..index]));
                start = index;
            }
            in_word = false;
        } else {
            in_word = true;
        }
    }
    if start < text.len() {
        pieces.push(Arc::from(&text[start..]));
    }
    pieces
}

/// The tokens of a text whose real ones are not known: a hash of each word.
pub(super) fn word_ids(text: &str) -> Vec<u32> {
    split_words(text)
        .iter()
        .map(|word| token_id(word))
        .collect()
}

/// FNV-1a, 32 bits: any stable hash would do, since no vocabulary stands behind it.
pub(super) fn token_id(piece: &str) -> u32 {
    piece.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Message, Role, Sampling};
    use proptest::prelude::*;

    fn request(flow: usize, row: &str, step: &str, max_tokens: usize) -> Request {
        Request {
            origin: Origin {
                flow,
                row: row.to_owned(),
                step: step.to_owned(),
                sample: 1,
            },
            messages: vec![Message {
                role: Role::User,
                content: "three short words".to_owned(),
            }]
            .into(),
            max_tokens,
            ignore_eos: false,
            sampling: Sampling::default(),
        }
    }

    fn finish(engine: &mut ScriptedEngine) -> Vec<EventKind> {
        let mut kinds = Vec::new();
        loop {
            let events = engine.poll().expect("a script cannot break");
            if events.is_empty() && engine.active.is_empty() {
                assert_eq!(kinds.first(), Some(&EventKind::Started));
                kinds.remove(0);
                return kinds;
            }
            kinds.extend(events.into_iter().map(|event| event.kind));
        }
    }

    fn text_for(script: &str, request: Request) -> String {
        let mut engine = ScriptedEngine::new(Script::parse(script, "s").expect("valid"), true);
        engine.submit(request).expect("an answer");
        match finish(&mut engine).pop() {
            Some(EventKind::Finished(completion)) => completion.text,
            other => panic!("no completion: {other:?}"),
        }
    }

    #[test]
    fn the_most_exact_line_wins() {
        let script = r#"{"output": "any"}
{"step": "planner", "output": "step"}
{"row": "a", "step": "planner", "output": "row"}
{"flow": 2, "step": "planner", "output": "flow"}
{"flow": 2, "step": "planner", "output": "second among equals"}"#;
        assert_eq!(text_for(script, request(2, "a", "planner", 9)), "flow");
        assert_eq!(text_for(script, request(1, "a", "planner", 9)), "row");
        assert_eq!(text_for(script, request(1, "b", "planner", 9)), "step");
        assert_eq!(text_for(script, request(1, "b", "verifier", 9)), "any");
    }

    #[test]
    fn samples_have_lines_of_their_own() {
        let script = r#"{"step": "child", "sample": 2, "output": "second"}
{"step": "child", "output": "any"}
{"flow": 7, "output": "flow"}"#;
        let script = Script::parse(script, "s").expect("valid");
        let text = |flow, sample| {
            let origin = Origin {
                sample,
                ..request(flow, "r", "child", 9).origin
            };
            script.text(&origin).map(str::to_owned)
        };
        assert_eq!(text(1, 2).as_deref(), Some("second"));
        assert_eq!(text(1, 1).as_deref(), Some("any"));
        assert_eq!(text(7, 2).as_deref(), Some("flow"));
    }

    #[test]
    fn answers_are_cut_at_max_tokens() {
        let mut engine = ScriptedEngine::new(
            Script::parse(r#"{"output": "one two three"}"#, "s").expect("valid"),
            true,
        );
        engine.submit(request(1, "a", "s", 2)).expect("an answer");
        let kinds = finish(&mut engine);
        assert_eq!(kinds.len(), 3, "two tokens and the end: {kinds:?}");
        let Some(EventKind::Finished(completion)) = kinds.last() else {
            panic!("no completion");
        };
        assert_eq!(completion.text, "one two");
        assert_eq!(completion.finish, Finish::Length);
        assert_eq!(completion.prompt_tokens, 3);
    }

    #[test]
    fn latencies_are_waited_for_unless_switched_off() {
        let script = r#"{"output": "a b c", "ttft_ms": 10, "latency_ms": 30}"#;
        let parsed = || Script::parse(script, "s").expect("valid");
        let pace = Timer::start();
        let mut engine = ScriptedEngine::new(parsed(), true);
        engine.submit(request(1, "a", "s", 9)).expect("an answer");
        assert_eq!(engine.poll().expect("start")[0].kind, EventKind::Started);
        let first = engine.poll().expect("first token");
        assert!(matches!(first[0].kind, EventKind::Token(_)));
        while !engine.poll().expect("goes on").is_empty() {}
        assert!(pace.elapsed() >= Duration::from_millis(30));

        let mut engine = ScriptedEngine::new(parsed(), false);
        engine.submit(request(1, "a", "s", 9)).expect("an answer");
        assert_eq!(engine.poll().expect("start").len(), 1);
        assert_eq!(engine.poll().expect("all at once").len(), 4);
    }

    #[test]
    fn failures_and_cancelled_requests() {
        let mut engine = ScriptedEngine::new(
            Script::parse(r#"{"fail": "out of memory"}"#, "s").expect("valid"),
            true,
        );
        engine.submit(request(1, "a", "s", 9)).expect("an answer");
        assert_eq!(
            finish(&mut engine),
            [EventKind::Failed("out of memory".to_owned())]
        );
        let id = engine.submit(request(1, "a", "s", 9)).expect("an answer");
        engine.cancel(id);
        assert!(engine.poll().expect("nothing to do").is_empty());
    }

    #[test]
    fn broken_scripts_name_the_line() {
        let error = |text: &str| Script::parse(text, "a.jsonl").expect_err("broken").report();
        assert!(error("{\"output\": \"x\"}\n{oops").contains("a.jsonl:2: not a line of a script"));
        assert!(error("{\"step\": \"x\"}").contains("neither `output` nor `fail`"));
        assert!(error("\n").contains("holds no answer"));
        assert!(error(r#"{"output": "x", "latency_ms": -1}"#).contains("`latency_ms`"));
        assert!(error(r#"{"output": "x", "ttft_ms": 1e300}"#).contains("`ttft_ms`"));
    }

    proptest! {
        #[test]
        fn words_join_to_the_text(text in "(?s).{0,60}") {
            let pieces = split_words(&text);
            prop_assert_eq!(pieces.concat(), text);
            prop_assert!(pieces.iter().all(|piece| !piece.is_empty()));
        }
    }
}
