//! The text of tokens as they are generated.

use super::Tokenizer;
use crate::error::Result;

/// What a decoder writes for bytes that are not UTF-8, or not yet.
const REPLACEMENT: char = '\u{FFFD}';

/// Decodes tokens one by one. A character is returned once all of its bytes are there, so the pieces
/// concatenate to a prefix of the decoded whole.
#[derive(Debug, Clone, Default)]
pub(crate) struct TextStream {
    /// The latest tokens. A decoder may treat the first token of a text differently (SentencePiece drops its
    /// space), so one token whose text was returned stays in front.
    window: Vec<u32>,
    /// The part of the window's text that was returned.
    given: String,
}

impl TextStream {
    /// Adds a token, and returns the text that is certain now.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String> {
        // The decoder skips it before anything else: bytes before and after it are one run.
        if tokenizer.is_skipped(token) {
            return Ok(String::new());
        }
        self.window.push(token);
        // The decoder takes a run of these together: one that is invalid changes the ones before.
        if tokenizer
            .token_text(token)
            .is_some_and(|text| is_byte(&text))
        {
            return Ok(String::new());
        }
        let now = tokenizer.decode(&self.window)?;
        // Of an incomplete character at the end, further bytes may make another one.
        let certain = now.strip_suffix(REPLACEMENT).unwrap_or(&now);
        let Some(new) = certain.strip_prefix(self.given.as_str()) else {
            return Ok(String::new());
        };
        let new = new.to_owned();
        if certain.len() < now.len() {
            self.given = certain.to_owned();
        } else if !new.is_empty() {
            self.window = vec![token];
            self.given = tokenizer.decode(&self.window)?;
        }
        Ok(new)
    }
}

/// Whether a token of the vocabulary is a single byte (`<0x0A>`), as in vocabularies with byte fallback.
fn is_byte(text: &str) -> bool {
    let digits = text
        .strip_prefix("<0x")
        .and_then(|text| text.strip_suffix('>'));
    digits.is_some_and(|digits| {
        digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    })
}
