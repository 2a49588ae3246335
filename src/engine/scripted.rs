//! Plays back recorded answers, with the latencies given in the script and without a model.
//! Implements the same trait as the real engine, so that everything else runs and is tested without
//! weights.
//!
//! # Scripts
//!
//! A script is JSON Lines, one answer per line:
//!
//! ```json
//! {"flow": 3, "row": "sla-clock", "step": "planner", "output": "text", "ttft_ms": 4.5, "latency_ms": 21}
//! ```
//!
//! `flow`, `row`, `step` and `sample` (the sample's number, from 1) select the requests that a line
//! answers; each is optional. The most specific matching line wins, in this order: flow, row and
//! step; flow and step; flow and row; flow; row and step; row; step; none of them. Among lines with
//! the same keys, one with `sample` goes first, then the earliest. `queue_ms`, `ttft_ms` and
//! `latency_ms` (default 0) are waited for, each counted from the submission. `"fail": "reason"` in
//! place of `output` makes the request fail. Other keys are ignored, so the `steps.jsonl` of a real
//! run can be used as a script.
//!
//! A token is a word with the whitespace before it. Its id is a hash of that text.

use std::cell::Cell;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::device::DeviceInfo;
use super::stops::{Matched, StopMatcher};
use super::{
    Completion, Engine, EngineInfo, Event, EventKind, Finish, Occupancy, Origin, Request,
    RequestId, restart_refused,
};
use crate::error::{Error, Result};
use crate::profile::{self, Activity, Count, PassTokens, Span};
use crate::stopwatch::{Fence, Timer};
use crate::text_file;

/// Upper bound on the wait in a poll, since the caller has other work as well.
const LONGEST_WAIT: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Default)]
pub struct Script {
    answers: Vec<Answer>,
    by_key: HashMap<Key, usize>,
}

/// Flow, row, step and sample that an answer is for.
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
    /// In the steps of a run: another line has replaced this one.
    #[serde(default)]
    discarded: bool,
}

impl Script {
    /// Reads a script from a file.
    ///
    /// # Errors
    /// Exit code 2 if the file cannot be read, or a line is not JSON or has no answer.
    pub fn read(path: &Path) -> Result<Self> {
        let text = text_file::read_text(path).map_err(|source| {
            Error::usage(format!("failed to read the script {}", path.display()))
                .hint("SCRIPT names a JSON Lines file of recorded answers; the steps.jsonl of an earlier run is one")
                .caused_by(source)
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Parses a script. `name` is used in error messages.
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
            if answer.discarded {
                continue;
            }
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
                // More than a day means a wrong unit, not a latency.
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
            return Err(Error::usage(format!("{name}: the script has no answers")));
        }
        Ok(script)
    }

    /// The script's text for a request, if any.
    pub fn text(&self, origin: &Origin) -> Option<&str> {
        self.find(origin)?.output.as_deref()
    }

    /// The answer for a request: the most specific line, and the first among equals.
    fn find(&self, origin: &Origin) -> Option<&Answer> {
        // Bits: flow, row, step. Most specific first; a flow number is more specific than a row.
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

/// Answers requests from a [`Script`].
#[derive(Debug)]
pub struct ScriptedEngine {
    info: EngineInfo,
    script: Script,
    timed: bool,
    next_id: u64,
    active: Vec<Playing>,
    synchronizations: Cell<u64>,
}

/// A request whose answer is being played.
#[derive(Debug)]
struct Playing {
    id: RequestId,
    submitted: Timer,
    prompt_tokens: usize,
    pieces: Vec<Arc<str>>,
    /// Text to report after each piece, and after the last one; empty if it is not streamed.
    texts: Vec<String>,
    /// The whole answer.
    text: String,
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
    /// When piece `index` is due, counted from the submission: the first piece at the time to first
    /// token, the last at the latency, the others evenly in between.
    fn due(&self, index: usize) -> Duration {
        match self.pieces.len() {
            0 | 1 => self.latency,
            count => {
                let share = index as f64 / (count - 1) as f64;
                self.ttft + (self.latency - self.ttft).mul_f64(share)
            }
        }
    }

    /// Reports the text after piece `index`, if there is any.
    fn tell(&mut self, index: usize, events: &mut Vec<Event>) {
        if let Some(text) = self.texts.get_mut(index).map(std::mem::take)
            && !text.is_empty()
        {
            let (id, kind) = (self.id, EventKind::Text(text));
            events.push(Event { id, kind });
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
    /// An engine that plays `script`. If `timed` is false, it ignores the script's latencies.
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
                pass_tokens: None,
                max_sequences: None,
                jit_ms: None,
                notes: Vec::new(),
            },
            script,
            timed,
            next_id: 0,
            active: Vec::new(),
            synchronizations: Cell::new(0),
        }
    }

    /// Composition of the simulated batch. A started request without a token counts as prefill.
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

    /// Number of calls of [`Fence::synchronize`].
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
            .hint("add a line for it, or one without `flow` and `row` that matches every flow")
        })?;
        let output = answer.output.clone().unwrap_or_default();
        let mut pieces = split_words(&output);
        let mut finish = Finish::Stop;
        if pieces.len() > request.max_tokens {
            pieces.truncate(request.max_tokens);
            finish = Finish::Length;
        }
        let mut stops = StopMatcher::new(request.options.stop.clone());
        let mut texts = Vec::with_capacity(pieces.len() + 1);
        for piece in &pieces {
            let Matched { text, stopped } = stops.push(piece);
            texts.push(text);
            if stopped {
                finish = Finish::Stop;
                break;
            }
        }
        pieces.truncate(texts.len());
        texts.push(stops.flush());
        let text = texts.concat();
        if !request.options.stream_text {
            texts.clear();
        }
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
            texts,
            text,
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
                playing.tell(playing.given, &mut events);
                if playing.given == 0 {
                    playing.phase.next(Span::Decode);
                }
                playing.given += 1;
            }
            if playing.given < playing.pieces.len() || elapsed < playing.latency {
                return true;
            }
            profile::count(Count::Prefilled, playing.prompt_tokens);
            playing.tell(playing.pieces.len(), &mut events);
            let kind = EventKind::Finished(Completion {
                text: std::mem::take(&mut playing.text),
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

    fn takes_text(&self) -> bool {
        true
    }

    fn occupancy(&self) -> Occupancy {
        let waiting = self.active.iter().filter(|playing| !playing.started);
        Occupancy {
            requests: self.active.len(),
            waiting: waiting.count(),
            ..Occupancy::default()
        }
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

/// Splits text into words, each with the whitespace before it. The pieces concatenate to the text.
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

/// Token ids for a text whose real ids are unknown: a hash of each word.
pub(super) fn word_ids(text: &str) -> Vec<u32> {
    split_words(text)
        .iter()
        .map(|word| token_id(word))
        .collect()
}

/// FNV-1a, 32 bits. Any stable hash would do, since there is no vocabulary.
pub(super) fn token_id(piece: &str) -> u32 {
    piece.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Message, RequestOptions, Role, Sampling};
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
            options: RequestOptions::default(),
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
    fn the_most_specific_line_wins() {
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
    fn a_line_can_select_one_sample() {
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
    fn texts_are_told_up_to_a_stop_string() {
        let script = || Script::parse(r#"{"output": "a b STOP c"}"#, "s").expect("valid");
        for (stop, expected) in [("ST", "a b "), (" STOP c", "a b"), ("zz", "a b STOP c")] {
            let mut engine = ScriptedEngine::new(script(), false);
            let mut request = request(1, "a", "s", 9);
            request.options.stop = [stop.to_owned()].into();
            request.options.stream_text = true;
            engine.submit(request).expect("an answer");
            let mut texts = String::new();
            loop {
                for event in engine.poll().expect("goes on") {
                    match event.kind {
                        EventKind::Text(text) => texts.push_str(&text),
                        EventKind::Finished(completion) => {
                            assert_eq!(completion.text, expected);
                            assert_eq!(completion.finish, Finish::Stop);
                        }
                        _ => {}
                    }
                }
                if engine.occupancy().requests == 0 {
                    break;
                }
            }
            assert_eq!(texts, expected);
        }
    }

    #[test]
    fn broken_scripts_name_the_line() {
        let error = |text: &str| Script::parse(text, "a.jsonl").expect_err("broken").report();
        assert!(error("{\"output\": \"x\"}\n{oops").contains("a.jsonl:2: not a line of a script"));
        assert!(error("{\"step\": \"x\"}").contains("neither `output` nor `fail`"));
        assert!(error("\n").contains("has no answers"));
        assert!(error(r#"{"output": "x", "latency_ms": -1}"#).contains("`latency_ms`"));
        assert!(error(r#"{"output": "x", "ttft_ms": 1e300}"#).contains("`ttft_ms`"));
    }

    proptest! {
        #[test]
        fn words_concatenate_to_the_text(text in "(?s).{0,60}") {
            let pieces = split_words(&text);
            prop_assert_eq!(pieces.concat(), text);
            prop_assert!(pieces.iter().all(|piece| !piece.is_empty()));
        }
    }
}
