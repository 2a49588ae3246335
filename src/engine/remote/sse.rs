//! Server-sent events: bytes to events, however the bytes were cut on their way (HTML Standard,
//! §9.2.6 "Interpreting an event stream").

use std::fmt;

/// Longest event in bytes: no chunk of an answer comes near it, and a stream without an end of line
/// does not fill the memory.
const LONGEST: usize = 8 << 20;

/// Takes events out of a stream of bytes.
#[derive(Debug, Default)]
pub(super) struct EventParser {
    /// The line that is not whole yet.
    line: Vec<u8>,
    /// The event's data so far: its lines, joined by line feeds.
    data: Option<Vec<u8>>,
    /// The last byte was a carriage return, whose line feed may follow.
    after_return: bool,
    /// Something of the stream has been read.
    begun: bool,
}

/// An event that is longer than any chunk of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLong;

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an event of more than {} MiB", LONGEST >> 20)
    }
}

impl EventParser {
    /// The data of the events that end in these bytes, which follow those before. Names, ids and
    /// comments are passed over: completions use none.
    ///
    /// # Errors
    /// An event that is too long; the stream is then of no use any more.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, TooLong> {
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
            if self.line.len() + self.data.as_ref().map_or(0, Vec::len) > LONGEST {
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

    /// The stream has ended: what an event without its blank line holds. The standard drops it; there
    /// are servers that close behind their last line.
    pub(super) fn finish(mut self) -> Option<Vec<u8>> {
        if !self.line.is_empty() {
            self.line_ended();
        }
        self.data
    }

    /// A whole line has been read; a blank one ends the event.
    fn line_ended(&mut self) -> Option<Vec<u8>> {
        let line = std::mem::take(&mut self.line);
        let mut line = line.as_slice();
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line);
        }
        if line.is_empty() {
            return self.data.take();
        }
        let value = match line.strip_prefix(b"data") {
            Some(b"") => Some(&b""[..]),
            Some([b':', b' ', value @ ..] | [b':', value @ ..]) => Some(value),
            _ => None,
        };
        if let Some(value) = value {
            match &mut self.data {
                None => self.data = Some(value.to_vec()),
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All events of the pieces, the unfinished one last.
    fn events<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
        let mut parser = EventParser::default();
        let mut events = Vec::new();
        for piece in pieces {
            events.extend(parser.push(piece).expect("short"));
        }
        events.extend(parser.finish());
        (events.iter())
            .map(|data| String::from_utf8_lossy(data).into_owned())
            .collect()
    }

    #[test]
    fn the_standard_s_examples() {
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
    fn a_stream_may_end_behind_its_last_line() {
        assert_eq!(events([&b"data: [DONE]"[..]]), ["[DONE]"]);
        assert_eq!(events([&b"data: [DONE]\n"[..]]), ["[DONE]"]);
        assert_eq!(events([&b": only a comment"[..]]), [] as [String; 0]);
    }

    #[test]
    fn a_line_without_an_end_is_given_up() {
        let mut parser = EventParser::default();
        let piece = vec![b'x'; 1 << 20];
        let given_up = (0..9).find_map(|_| parser.push(&piece).err());
        assert_eq!(given_up, Some(TooLong));
        // One that is merely long is not.
        let long = "y".repeat(1 << 20);
        let text = format!("data: {long}\n\n");
        assert_eq!(events([text.as_bytes()]), [long]);
    }

    /// A stream of lines that mean something, and of bytes that mean nothing.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            Just(b"data: {\"a\": 1}".to_vec()),
            Just(b"data:".to_vec()),
            Just(b": ping".to_vec()),
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
        /// However a stream is cut, its events are the same.
        #[test]
        fn cuts_do_not_matter(
            stream in stream(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]]);
            let whole = events([stream.as_slice()]);
            prop_assert_eq!(events(pieces), whole.clone());
            prop_assert_eq!(events(stream.chunks(1)), whole);
        }
    }
}
