//! Assembles an answer from the events of its stream: text, ending, counts, and the error if it
//! does not end well. Does no I/O, so that tests can feed it arbitrary bytes.

use serde_json::Value;

use super::failure::{Cause, Failure, excerpt};
use super::json::{self, Joiner};
use super::sse::{Event, EventParser};
use super::usage::Counts;
use super::{reason, wire};
use crate::engine::Finish;

/// Maximum number of bytes kept from a stray line or comment, for an error message.
const KEPT: usize = 1 << 10;

/// Hardly any token is longer than this, in bytes.
const LONG_TOKEN: usize = 32;

/// Tokens without text that an answer may have: end of turn, markers around thoughts.
const MARKS: usize = 8;

/// How many more chunks than tokens an answer may have.
const UNCOUNTED: usize = 2;

/// Names of events that only keep the connection alive.
const HEARTBEATS: [&str; 4] = ["ping", "heartbeat", "keep-alive", "keepalive"];

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Part {
    /// Empty for thoughts, tool calls and half of a surrogate pair.
    pub(super) text: String,
    pub(super) thought: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    pub(super) finish: Finish,
    pub(super) counts: Counts,
    /// U+FFFD if the answer ended with half of a surrogate pair.
    pub(super) tail: &'static str,
    /// Number of parts with a thought and no text.
    pub(super) thoughts: usize,
    /// Bytes of text and thoughts; `None` if there were tokens without text (tool calls).
    pub(super) bytes: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Streamed {
    /// Tokens that were counted but not streamed: exact if the server counts thoughts, otherwise a
    /// lower bound.
    pub(super) hidden: Option<usize>,
    /// Tokens in the chunks, if known.
    pub(super) tokens: Option<usize>,
    /// Whether the answer was a single chunk of several tokens.
    pub(super) one_piece: bool,
}

impl End {
    /// Tokens of the answer's text by the server's count; `None` if they cannot be separated from
    /// thoughts.
    pub(super) fn answer_tokens(&self) -> Option<usize> {
        match self.counts.reasoning {
            None if self.thoughts > 0 => None,
            reasoning => Some(self.counts.decode? - reasoning.unwrap_or(0)),
        }
    }

    /// Compares the server's count with what was streamed in `chunks` chunks.
    pub(super) fn streamed(&self, chunks: usize) -> Streamed {
        let long = self.bytes.is_some_and(|bytes| bytes > LONG_TOKEN);
        let one_piece = |tokens: usize| chunks == 1 && (tokens > 2 || long);
        let Some(decode) = self.counts.decode else {
            return Streamed {
                hidden: None,
                tokens: Some(chunks),
                one_piece: one_piece(chunks),
            };
        };
        // Thoughts that were counted but not streamed, neither as thoughts nor as text.
        let visible = decode - self.counts.reasoning.unwrap_or(0);
        let thoughts =
            (self.counts.reasoning).filter(|_| self.thoughts == 0 && chunks <= visible + UNCOUNTED);
        if let Some(hidden) = thoughts {
            return Streamed {
                hidden: Some(hidden),
                tokens: Some(visible),
                one_piece: one_piece(visible),
            };
        }
        // A token with text has at least one byte.
        let most = self.bytes.map(|bytes| bytes + MARKS);
        let hidden = most.filter(|most| decode > *most);
        Streamed {
            hidden: hidden.map(|_| decode - self.bytes.unwrap_or(0)),
            tokens: Some(decode).filter(|_| hidden.is_none()),
            one_piece: one_piece(decode),
        }
    }
}

/// The answer so far.
#[derive(Debug, Default)]
pub(super) struct Answer {
    parser: EventParser,
    /// With the index of its choice.
    finish: Option<(i64, Finish)>,
    counts: Counts,
    joiner: Joiner,
    text: String,
    /// Index of the choice that is followed: the first one with text.
    index: Option<i64>,
    /// Some event had `choices`, possibly empty.
    any_choices: bool,
    /// Some event was not a chunk of a completion.
    foreign: bool,
    /// Some text came in a `delta`.
    deltas: bool,
    parts: usize,
    thoughts: usize,
    thought_bytes: usize,
    tools: bool,
    /// The stream announced its end.
    done: bool,
    /// The last line or event that was not part of the answer.
    aside: Option<Vec<u8>>,
    comment: Option<Vec<u8>>,
}

impl Answer {
    /// Handles the next bytes of the stream and passes their parts to `tell`. Returns whether the
    /// stream announced its end.
    ///
    /// # Errors
    /// An error reported by the server, a bad ending, or data that is not a completion's stream.
    pub(super) fn push(
        &mut self,
        bytes: &[u8],
        tell: &mut impl FnMut(Part),
    ) -> Result<bool, Failure> {
        let events = self.parser.push(bytes).map_err(|too_long| {
            Failure::new(Cause::Malformed, format!("{too_long} in the stream"))
        })?;
        for event in events {
            self.take(event, tell)?;
            if self.done {
                break;
            }
        }
        Ok(self.done)
    }

    /// Ends the stream, whether it announced its end ([`Self::push`]) or not.
    ///
    /// # Errors
    /// See [`Self::push`]; also an answer without an ending.
    pub(super) fn finish(&mut self, tell: &mut impl FnMut(Part)) -> Result<End, Failure> {
        let last = std::mem::take(&mut self.parser).finish();
        if let Some(event) = last.filter(|_| !self.done) {
            self.take(event, tell)?;
        }
        let Some(finish) = self.ending() else {
            return Err(self.without_end());
        };
        Ok(End {
            finish,
            counts: self.counts.believed(self.parts > 0),
            tail: self.joiner.finish(),
            thoughts: self.thoughts,
            bytes: (!self.tools).then_some(self.text.len() + self.thought_bytes),
        })
    }

    /// Whether only the end of the stream is missing.
    pub(super) fn is_whole(&self) -> bool {
        self.ending().is_some() && self.counts.decode.is_some()
    }

    /// A failure to read the stream, with what the server had sent before.
    pub(super) fn broken(&mut self, failure: Failure) -> Failure {
        let last = std::mem::take(&mut self.parser).finish();
        match last.map(|event| self.take(event, &mut |_| {})) {
            Some(Err(reported)) if reported.cause != Cause::Malformed => reported,
            _ => self.with_aside(failure),
        }
    }

    fn without_end(&self) -> Failure {
        let how = match self.done {
            true => "the server ended its stream (data: [DONE])",
            false => "the stream was cut off",
        };
        let message = format!("{how} before its end: no finish_reason came");
        match &self.aside {
            Some(aside) if self.foreign && !self.any_choices => Failure::new(
                Cause::Malformed,
                format!("no completion chunk in the stream: {}", excerpt(aside)),
            ),
            _ => self.with_aside(Failure::new(Cause::CutOff, message)),
        }
    }

    fn with_aside(&self, mut failure: Failure) -> Failure {
        failure.message.push_str(&self.beside());
        failure
    }

    /// What the server last sent besides the answer, as the end of an error message.
    pub(super) fn beside(&self) -> String {
        let mut line = String::new();
        for (what, said) in [("said", &self.aside), ("commented", &self.comment)] {
            if let Some(said) = said {
                line.push_str(&format!("; the server {what}: {}", excerpt(said)));
            }
        }
        line
    }

    fn take(&mut self, event: Event, tell: &mut impl FnMut(Part)) -> Result<(), Failure> {
        let name = event.name.to_ascii_lowercase();
        let data = event
            .data
            .as_deref()
            .map(<[u8]>::trim_ascii)
            .unwrap_or_default();
        if name == "error" {
            let said = [data, &event.stray].join(&b'\n');
            let comment = String::from_utf8_lossy(&event.comment);
            return Err(reason::named(
                String::from_utf8_lossy(&said).trim(),
                &comment,
            ));
        }
        if !event.comment.is_empty() {
            self.comment = Some(kept(&event.comment));
        }
        if is_heartbeat(&name) {
            return Ok(());
        }
        if !event.stray.is_empty() {
            // Possibly the body of an error, sent as if it were a stream.
            let text = String::from_utf8_lossy(&event.stray);
            let value = json::parse(&text).map(|parsed| parsed.value);
            if let Some(failure) = value.as_ref().and_then(reason::reported) {
                return Err(failure);
            }
            self.aside = Some(kept(&event.stray));
        }
        match data {
            b"" => Ok(()),
            data if is_heartbeat(&String::from_utf8_lossy(data)) => Ok(()),
            data if data.eq_ignore_ascii_case(b"[DONE]") => {
                self.done = true;
                Ok(())
            }
            data => self.chunk(data, tell),
        }
    }

    /// Handles the data of an event.
    fn chunk(&mut self, data: &[u8], tell: &mut impl FnMut(Part)) -> Result<(), Failure> {
        let malformed = |what: &str| {
            let message = format!("{what} in the stream: {}", excerpt(data));
            Failure::new(Cause::Malformed, message)
        };
        // The standard requires invalid UTF-8 to be replaced.
        let text = String::from_utf8_lossy(data);
        let Some(parsed) = json::parse(&text) else {
            if text
                .get(..5)
                .is_some_and(|word| word.eq_ignore_ascii_case("error"))
            {
                return Err(reason::named(&text, ""));
            }
            if self.finish.is_some() {
                // The answer is complete.
                self.aside = Some(kept(data));
                return Ok(());
            }
            return Err(malformed(match std::str::from_utf8(data) {
                Ok(_) => "invalid JSON",
                Err(_) => "invalid UTF-8",
            }));
        };
        let value = &parsed.value;
        if let Some(failure) = reason::reported(value) {
            return Err(failure);
        }
        match value {
            Value::Null => return Ok(()),
            Value::Object(members) if members.is_empty() => return Ok(()),
            Value::Array(items) if items.is_empty() => return Ok(()),
            Value::Object(_) => {}
            _ => return Err(malformed("no completion chunk")),
        }
        self.counts.update(Counts::of(value));
        let Some(choices) = value.get("choices") else {
            if !is_known(value) {
                self.foreign = true;
                self.aside = Some(kept(data));
            }
            return Ok(());
        };
        self.any_choices = true;
        let pieces = wire::pieces(choices);
        let mut pieces = pieces.map_err(|_| malformed("no completion chunk"))?;
        // If an event has several choices, the lowest index comes first.
        pieces.sort_by_key(|piece| piece.index);
        for piece in pieces {
            self.piece(piece, parsed.halves, tell)?;
        }
        Ok(())
    }

    fn piece(
        &mut self,
        piece: wire::Piece,
        halves: bool,
        tell: &mut impl FnMut(Part),
    ) -> Result<(), Failure> {
        if self.index.is_some_and(|index| index != piece.index) {
            return Ok(());
        }
        let is_delta = !piece.text.is_empty();
        let any = is_delta || !piece.message.is_empty();
        let text = match is_delta {
            true => self.joiner.join(piece.text, halves),
            false => {
                let message = self.joiner.join(piece.message, halves);
                self.rest_of(&message, piece.finish.is_some()).to_owned()
            }
        };
        if any {
            self.index = Some(piece.index);
        }
        self.deltas |= is_delta;
        // Half of a surrogate pair counts as a chunk, although it adds no text yet.
        let is_text = !text.is_empty() || (any && halves);
        if is_text || piece.tool || !piece.thought.is_empty() {
            self.parts += 1;
            self.thoughts += usize::from(!is_text && !piece.tool);
            self.thought_bytes += piece.thought.len();
            self.tools |= piece.tool;
            self.text.push_str(&text);
            tell(Part {
                text,
                thought: piece.thought,
            });
        }
        match piece.finish {
            None => Ok(()),
            Some(Ok(finish)) => {
                self.finish = Some((piece.index, finish));
                Ok(())
            }
            Some(Err(failure)) => Err(self.with_aside(failure)),
        }
    }

    /// The new part of a `message`. After deltas, or in the last chunk, it repeats the whole
    /// answer. In a stream without deltas it is the next piece, or the answer so far.
    fn rest_of<'a>(&self, message: &'a str, ends: bool) -> &'a str {
        let is_whole = self.deltas || (ends && self.parts > 1);
        match message.strip_prefix(self.text.as_str()) {
            Some(rest) if is_whole || !rest.is_empty() => rest,
            _ if is_whole && message.trim() == self.text.trim() => "",
            _ => message,
        }
    }

    /// Why the followed choice ended.
    fn ending(&self) -> Option<Finish> {
        let (index, finish) = self.finish?;
        (self.index.is_none_or(|own| own == index)).then_some(finish)
    }
}

/// Whether an event's name or data marks it as a heartbeat.
fn is_heartbeat(text: &str) -> bool {
    let word = text.trim_matches(['[', ']', ' ']);
    HEARTBEATS
        .iter()
        .any(|name| word.eq_ignore_ascii_case(name))
}

/// Whether an event without `choices` still belongs to a completion's stream.
fn is_known(value: &Value) -> bool {
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    ["usage", "timings", "x_groq"]
        .iter()
        .any(|name| value.get(*name).is_some())
        || text("object").is_some_and(|object| object.contains("completion"))
        || ["type", "event"]
            .iter()
            .any(|name| text(name).is_some_and(is_heartbeat))
}

/// The beginning of a line or event, for an error message.
fn kept(said: &[u8]) -> Vec<u8> {
    said[..said.len().min(KEPT)].to_vec()
}

#[cfg(test)]
mod tests;
