//! The text of an answer while it is generated, for requests that stop at strings or stream their text.

use crate::engine::RequestOptions;
use crate::engine::stops::{Matched, StopMatcher};
use crate::engine::tokenizer::{TextStream, Tokenizer};
use crate::error::Result;

#[derive(Debug)]
pub(super) struct AnswerText {
    decoder: TextStream,
    stops: StopMatcher,
    /// All text that the decoder gave.
    decoded: String,
    /// The answer so far.
    text: String,
    stopped: bool,
    /// Whether the text is reported.
    pub(super) streamed: bool,
}

impl AnswerText {
    /// `None` if the text is not needed before the answer is complete.
    pub(super) fn new(options: &RequestOptions) -> Option<Self> {
        let needed = options.stream_text || !options.stop.is_empty();
        needed.then(|| Self {
            decoder: TextStream::default(),
            stops: StopMatcher::new(options.stop.clone()),
            decoded: String::new(),
            text: String::new(),
            stopped: false,
            streamed: options.stream_text,
        })
    }

    /// Adds a token. Returns the text that it makes certain, and whether a stop string is complete.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub(super) fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<Matched> {
        let piece = self.decoder.push(tokenizer, token)?;
        self.decoded.push_str(&piece);
        Ok(self.matched(&piece))
    }

    /// Ends the answer, of which these are all tokens. Returns what is left of its text, and the whole.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub(super) fn finish(
        mut self,
        tokenizer: &Tokenizer,
        tokens: &[u32],
    ) -> Result<(Matched, String)> {
        let stopped = self.stopped;
        let mut rest = Matched {
            text: String::new(),
            stopped,
        };
        if !stopped {
            let whole = tokenizer.decode(tokens)?;
            let last = whole
                .strip_prefix(self.decoded.as_str())
                .unwrap_or_default();
            rest = self.matched(last);
            if !rest.stopped {
                let held = self.stops.flush();
                self.text.push_str(&held);
                rest.text.push_str(&held);
            }
        }
        Ok((rest, self.text))
    }

    fn matched(&mut self, piece: &str) -> Matched {
        let matched = self.stops.push(piece);
        self.text.push_str(&matched.text);
        self.stopped |= matched.stopped;
        matched
    }
}
