//! Parses server-sent events, however the bytes were split (HTML Standard, §9.2.6 "Interpreting an
//! event stream").
//!
//! Unlike in the standard, comments and lines that are not fields are kept: a failing server may
//! give its reason in a comment, or send a plain JSON error instead of the announced stream.

use std::fmt;

/// Maximum size of an event in bytes. No chunk of an answer comes near it. It keeps a stream
/// without line endings from filling the memory.
const LONGEST: usize = 8 << 20;

#[derive(Debug, Default)]
pub(super) struct EventParser {
    /// The incomplete line.
    line: Vec<u8>,
    event: Event,
    /// The last byte was a carriage return; a line feed may follow.
    after_return: bool,
    /// A line has been read.
    begun: bool,
}

/// The lines between two blank lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Event {
    /// The `event:` field; used for errors and heartbeats.
    pub(super) name: String,
    /// The `data:` lines, joined by line feeds.
    pub(super) data: Option<Vec<u8>>,
    /// Comments, joined by line feeds.
    pub(super) comment: Vec<u8>,
    /// Lines that are not fields, joined by line feeds.
    pub(super) stray: Vec<u8>,
}

impl Event {
    fn len(&self) -> usize {
        self.data.as_ref().map_or(0, Vec::len) + self.comment.len() + self.stray.len()
    }

    fn is_empty(&self) -> bool {
        self.name.is_empty() && self.data.is_none() && self.len() == 0
    }
}

/// An event longer than any chunk of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLong;

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an event of more than {} MiB", LONGEST >> 20)
    }
}

impl EventParser {
    /// Parses the next bytes of the stream and returns the events that they complete.
    ///
    /// # Errors
    /// An event is too long. The parser cannot be used after that.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        let mut rest = bytes;
        while let Some(&first) = rest.first() {
            if std::mem::take(&mut self.after_return) && first == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let end = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            self.line
                .extend_from_slice(&rest[..end.unwrap_or(rest.len())]);
            if self.line.len() + self.event.len() > LONGEST {
                return Err(TooLong);
            }
            let Some(end) = end else {
                break;
            };
            self.after_return = rest[end] == b'\r';
            rest = &rest[end + 1..];
            events.extend(self.line_ended());
        }
        Ok(events)
    }

    /// Ends the stream and returns an event without its blank line. The standard discards it, but
    /// some servers close right after their last line.
    pub(super) fn finish(mut self) -> Option<Event> {
        if !self.line.is_empty() {
            self.line_ended();
        }
        Some(self.event).filter(|event| !event.is_empty())
    }

    /// Handles a complete line; a blank one ends the event.
    fn line_ended(&mut self) -> Option<Event> {
        let line = std::mem::take(&mut self.line);
        let mut line = line.as_slice();
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line);
        }
        if line.is_empty() {
            return Some(std::mem::take(&mut self.event)).filter(|event| !event.is_empty());
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (field, value) = match colon {
            None => (line, &b""[..]),
            Some(colon) => {
                let value = &line[colon + 1..];
                (&line[..colon], value.strip_prefix(b" ").unwrap_or(value))
            }
        };
        match field {
            b"data" => match &mut self.event.data {
                None => self.event.data = Some(value.to_vec()),
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
            },
            b"event" => self.event.name = String::from_utf8_lossy(value).trim().to_owned(),
            b"id" | b"retry" => {}
            b"" if colon.is_some() => join(&mut self.event.comment, value),
            // Older llama.cpp servers send errors in a field of this name.
            b"error" if colon.is_some() => {
                self.event.name = "error".to_owned();
                join(&mut self.event.stray, value);
            }
            _ => join(&mut self.event.stray, line),
        }
        None
    }
}

fn join(lines: &mut Vec<u8>, line: &[u8]) {
    if !lines.is_empty() {
        lines.push(b'\n');
    }
    lines.extend_from_slice(line);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Event> {
        let mut parser = EventParser::default();
        let mut events = Vec::new();
        for piece in pieces {
            events.extend(parser.push(piece).expect("short"));
        }
        events.extend(parser.finish());
        events
    }

    /// The data of all events, including an unfinished last one.
    fn events<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
        (parsed(pieces).into_iter())
            .filter_map(|event| event.data)
            .map(|data| String::from_utf8_lossy(&data).into_owned())
            .collect()
    }

    #[test]
    fn names_comments_and_stray_lines_are_kept() {
        let text = "event: error\n: out of memory\n: sorry\n\n\
                    {\"error\":\n  {\"code\": 400}}\n\n\
                    error: {\"code\": 500}\n\n\
                    retry: 10\nid: 3\n\n\
                    : ping\n\n";
        let event = |name: &str, comment: &str, stray: &str| Event {
            name: name.to_owned(),
            data: None,
            comment: comment.as_bytes().to_vec(),
            stray: stray.as_bytes().to_vec(),
        };
        assert_eq!(
            parsed([text.as_bytes()]),
            [
                event("error", "out of memory\nsorry", ""),
                event("", "", "{\"error\":\n  {\"code\": 400}}"),
                event("error", "", "{\"code\": 500}"),
                event("", "ping", ""),
            ]
        );
        // A name applies to one event only.
        let named = parsed([&b"event: a\ndata: 1\n\ndata: 2\n\n"[..]]);
        assert_eq!((named[0].name.as_str(), named[1].name.as_str()), ("a", ""));
    }

    #[test]
    fn examples_from_the_standard() {
        let text = ": a comment\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n";
        assert_eq!(
            events([text.as_bytes()]),
            ["first event", "second event", " third event"]
        );
        assert_eq!(
            events([&b"data\n\ndata\ndata\n\ndata:"[..]]),
            ["", "\n", ""]
        );
        assert_eq!(
            events([&b"data: YHOO\r\ndata: +2\rdata: 10\n\n"[..]]),
            ["YHOO\n+2\n10"]
        );
        assert_eq!(
            events(["\u{feff}data: a\n\nevent: x\ndatas: b\n\n".as_bytes()]),
            ["a"]
        );
    }

    #[test]
    fn a_stream_may_end_without_a_blank_line() {
        assert_eq!(events([&b"data: [DONE]"[..]]), ["[DONE]"]);
        assert_eq!(events([&b"data: [DONE]\n"[..]]), ["[DONE]"]);
        assert_eq!(events([&b": only a comment"[..]]), [] as [String; 0]);
    }

    #[test]
    fn an_endless_line_is_an_error() {
        let mut parser = EventParser::default();
        let piece = vec![b'x'; 1 << 20];
        let given_up = (0..9).find_map(|_| parser.push(&piece).err());
        assert_eq!(given_up, Some(TooLong));
        // A long line with an end is fine.
        let long = "y".repeat(1 << 20);
        let text = format!("data: {long}\n\n");
        assert_eq!(events([text.as_bytes()]), [long]);
    }

    /// Random streams of valid lines and arbitrary bytes.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            Just(b"data: {\"a\": 1}".to_vec()),
            Just(b"data:".to_vec()),
            Just(b": ping".to_vec()),
            Just(b"event: error".to_vec()),
            Just(b"{\"error\": 1}".to_vec()),
            Just("data: gr\u{fc}n \u{1f600}".as_bytes().to_vec()),
            Just(Vec::new()),
            prop::collection::vec(any::<u8>(), 0..12),
        ];
        let end = prop_oneof![
            Just(b"\n".to_vec()),
            Just(b"\r".to_vec()),
            Just(b"\r\n".to_vec())
        ];
        prop::collection::vec((line, end), 0..12).prop_map(|lines| {
            lines
                .into_iter()
                .flat_map(|(line, end)| [line, end].concat())
                .collect()
        })
    }

    proptest! {
        /// The events do not depend on how the stream is split.
        #[test]
        fn cuts_do_not_matter(
            stream in stream(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]]);
            let whole = parsed([stream.as_slice()]);
            prop_assert_eq!(parsed(pieces), whole.clone());
            prop_assert_eq!(parsed(stream.chunks(1)), whole);
        }
    }
}
