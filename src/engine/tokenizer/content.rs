//! Tokenizes rendered conversations so that message content never becomes a control token.
//!
//! The text is encoded as one string, with the library's own steps: added tokens are cut out, and
//! the text between them is normalized, split and merged. Only the first step differs: a **control
//! token** is not matched where its text touches content. That text is merged like any other. If no
//! match is suppressed this way, the tokens are those of [`Tokenizer::encode`].
//!
//! A control token is an added token that the model's files call special, that ends a turn, or that
//! looks like a turn marker: several models (DeepSeek, Gemma, Command R) have `<｜User｜>`,
//! `<start_of_turn>` or `<|START_OF_TURN_TOKEN|>` as ordinary added tokens. Other added tokens are
//! text that happens to be one token (`<think>`, runs of spaces). They are matched everywhere, also
//! in content.

use std::cell::Cell;
use std::ops::Range;

use aho_corasick::AhoCorasick;
use tokenizers::tokenizer::{
    Decoder, Model, NormalizedString, Normalizer, OffsetType, PostProcessor, PreTokenizedString,
    PreTokenizer, Result as LibraryResult, Token, TokenizerImpl,
};
use tokenizers::{AddedToken, tokenizer::normalizer::Range as Place};

use super::{Pipeline, Tokenizer};
use crate::error::{Error, Exit, Result};

/// Finds a tokenizer's added tokens in rendered text.
pub(crate) struct AddedTokens {
    /// Matched before normalization.
    plain: Matcher,
    /// Matched in normalized text.
    normalized: Matcher,
    /// Sorted ids of the control tokens.
    controls: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Encoded {
    pub(crate) ids: Vec<u32>,
    /// Number of control-token matches that were suppressed because they touch content.
    pub(crate) held: usize,
}

#[derive(Default)]
struct Matcher {
    /// `None` if there are no tokens.
    texts: Option<AhoCorasick>,
    tokens: Vec<Added>,
}

struct Added {
    id: u32,
    token: AddedToken,
    is_control: bool,
}

struct Match<'t> {
    range: Range<usize>,
    added: &'t Added,
}

impl AddedTokens {
    /// Collects the added tokens of a tokenizer.
    ///
    /// # Errors
    /// Exit code 3 if there are too many tokens for one automaton (billions of characters).
    pub(crate) fn of(tokenizer: &Tokenizer) -> Result<Self> {
        match &tokenizer.pipeline {
            Pipeline::Library(library) => Self::read(tokenizer, library),
            Pipeline::SentencePiece(library) => Self::read(tokenizer, library),
        }
    }

    fn read<M, N, P, O, D>(
        tokenizer: &Tokenizer,
        library: &TokenizerImpl<M, N, P, O, D>,
    ) -> Result<Self>
    where
        M: Model,
        N: Normalizer,
        P: PreTokenizer,
        O: PostProcessor,
        D: Decoder,
    {
        let (mut plain, mut normalized) = (Vec::new(), Vec::new());
        for (id, token) in library.get_added_vocabulary().get_added_tokens_decoder() {
            let (id, token) = (*id, token.clone());
            let is_control =
                token.special || tokenizer.is_end(id) || looks_like_control(&token.content);
            let mut text = NormalizedString::from(token.content.as_str());
            let added = Added {
                id,
                is_control,
                token,
            };
            if added.token.normalized {
                if let Some(normalizer) = library.get_normalizer() {
                    // Like the library, keep a text that cannot be normalized.
                    let _ = normalizer.normalize(&mut text);
                }
                normalized.push((text.get().to_owned(), added));
            } else {
                plain.push((text.get().to_owned(), added));
            }
        }
        let all = plain.iter().chain(&normalized);
        let controls = all.filter(|(_, added)| added.is_control);
        let mut controls: Vec<u32> = controls.map(|(_, added)| added.id).collect();
        controls.sort_unstable();
        Ok(Self {
            plain: Matcher::new(plain)?,
            normalized: Matcher::new(normalized)?,
            controls,
        })
    }
}

/// Recognizes turn markers by their spelling.
fn looks_like_control(text: &str) -> bool {
    let framed = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    framed("<|", "|>")
        || framed("<｜", "｜>")
        || matches!(
            text,
            "<start_of_turn>" | "<end_of_turn>" | "[INST]" | "[/INST]" | "<s>" | "</s>"
        )
}

impl Tokenizer {
    /// Tokenizes a rendered text. The byte ranges `content` are message content, from which no
    /// control token is made. Otherwise like [`Self::encode`].
    ///
    /// # Errors
    /// See [`Self::encode`].
    pub(crate) fn encode_rendered(
        &self,
        added: &AddedTokens,
        (text, content): (&str, &[Range<usize>]),
        add_special: bool,
    ) -> Result<Encoded> {
        let (matches, held) = added.plain.find(text, |range| touches(content, range));
        let controls = matches
            .iter()
            .filter(|found| found.added.is_control)
            .count();
        let has_others = (added.normalized.tokens.iter()).any(|added| added.is_control);
        if held == 0 && !has_others {
            let ids = self.encode(text, add_special)?;
            // The model itself may also produce a control token, from a word in its vocabulary.
            let is_control = |id: &&u32| added.controls.binary_search(id).is_ok();
            if add_special || ids.iter().filter(is_control).count() == controls {
                return Ok(Encoded { ids, held });
            }
        }
        let encoded = match &self.pipeline {
            Pipeline::Library(library) => added.encode(library, text, content, add_special),
            Pipeline::SentencePiece(library) => added.encode(library, text, content, add_special),
        };
        let (ids, held) = encoded.map_err(|error| {
            Error::new(Exit::FlowFailed, "failed to tokenize the prompt").caused_by(error)
        })?;
        let (first, last) = match add_special {
            true => (self.first, self.last),
            false => (None, None),
        };
        let ids = self.expanded(&ids);
        let ids = first.into_iter().chain(ids).chain(last).collect();
        Ok(Encoded { ids, held })
    }
}

impl AddedTokens {
    /// The library's `encode`, without the matches that touch content. Also returns their number.
    fn encode<M, N, P, O, D>(
        &self,
        library: &TokenizerImpl<M, N, P, O, D>,
        text: &str,
        content: &[Range<usize>],
        add_special: bool,
    ) -> LibraryResult<(Vec<u32>, usize)>
    where
        M: Model,
        N: Normalizer,
        P: PreTokenizer,
        O: PostProcessor,
        D: Decoder,
    {
        let mut held = 0;
        let mut pieces = PreTokenizedString::from(text);
        pieces.split(|_, piece| {
            let (pieces, count) = self.plain.split(&piece, content)?;
            held += count;
            Ok(pieces)
        })?;
        pieces.split(|_, mut piece| {
            if let Some(normalizer) = library.get_normalizer() {
                let _ = normalizer.normalize(&mut piece);
            }
            let (pieces, count) = self.normalized.split(&piece, content)?;
            held += count;
            Ok(pieces)
        })?;
        if let Some(pre_tokenizer) = library.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        let model = library.get_model();
        // `tokenize` takes a closure that cannot change what it captures.
        let words_held = Cell::new(0);
        pieces.tokenize(|piece| {
            let tokens = model.tokenize(piece.get())?;
            let (start, end) = piece.offsets_original();
            if !touches(content, &(start..end)) || !self.spells(piece.get(), &tokens) {
                return Ok(tokens);
            }
            // The model's vocabulary has the control token as a word. Tokenizing each character by
            // itself avoids it.
            words_held.set(words_held.get() + 1);
            let mut letters = Vec::new();
            for (at, c) in piece.get().char_indices() {
                letters.extend(model.tokenize(&piece.get()[at..at + c.len_utf8()])?);
            }
            Ok(letters)
        })?;
        held += words_held.get();
        let encoding = pieces.into_encoding(None, 0, OffsetType::None)?;
        let encoding = library.post_process(encoding, None, add_special)?;
        Ok((encoding.get_ids().to_vec(), held))
    }

    /// Whether the model turned `text` into a control token.
    fn spells(&self, text: &str, tokens: &[Token]) -> bool {
        let matchers = [&self.plain, &self.normalized];
        tokens.iter().any(|token| {
            (matchers.iter().flat_map(|matcher| &matcher.tokens)).any(|added| {
                added.is_control && added.id == token.id && text.contains(&added.token.content)
            })
        })
    }
}

/// Whether any of the sorted `ranges` overlaps `range`.
fn touches(ranges: &[Range<usize>], range: &Range<usize>) -> bool {
    let first = ranges.partition_point(|content| content.end <= range.start);
    ranges
        .get(first)
        .is_some_and(|content| content.start < range.end)
}

impl Matcher {
    fn new(tokens: Vec<(String, Added)>) -> Result<Self> {
        let tokens = tokens.into_iter().filter(|(text, _)| !text.is_empty());
        let (texts, tokens): (Vec<String>, Vec<Added>) = tokens.unzip();
        if tokens.is_empty() {
            return Ok(Self::default());
        }
        let texts = AhoCorasick::new(texts).map_err(|error| {
            Error::preflight("the tokenizer's added tokens cannot be used").caused_by(error)
        })?;
        Ok(Self {
            texts: Some(texts),
            tokens,
        })
    }

    /// Finds the added tokens in a text: leftmost first, and the longest at each position. Skips
    /// control tokens in `banned` ranges, and returns how many were skipped.
    fn find(&self, text: &str, banned: impl Fn(&Range<usize>) -> bool) -> (Vec<Match<'_>>, usize) {
        let Some(texts) = &self.texts else {
            return (Vec::new(), 0);
        };
        let mut held = 0;
        let mut found: Vec<Match<'_>> = Vec::new();
        for place in texts.find_overlapping_iter(text) {
            let added = &self.tokens[place.pattern().as_usize()];
            let range = place.range();
            if added.is_control && banned(&range) {
                held += 1;
            } else {
                found.push(Match { range, added });
            }
        }
        found.sort_by_key(|found| (found.range.start, std::cmp::Reverse(found.range.end)));
        let mut end = 0;
        found.retain(|found| {
            let is_free = found.range.start >= end;
            if is_free {
                end = found.range.end;
            }
            is_free
        });
        (found, held)
    }

    /// Splits a piece of the text at its added tokens, as the library does.
    #[expect(clippy::type_complexity, reason = "the library defines the type")]
    fn split(
        &self,
        piece: &NormalizedString,
        content: &[Range<usize>],
    ) -> LibraryResult<(Vec<(NormalizedString, Option<Vec<Token>>)>, usize)> {
        let text = piece.get();
        let start_of_piece = piece.offsets_original().0;
        let banned = |range: &Range<usize>| {
            let original = piece.convert_offsets(Place::Normalized(range.clone()));
            // A match that cannot be mapped to the original text counts as content.
            original.is_none_or(|original| {
                let range = start_of_piece + original.start..start_of_piece + original.end;
                range.is_empty() || touches(content, &range)
            })
        };
        let (found, held) = self.find(text, banned);
        let slice = |range: Range<usize>| {
            let slice = piece.slice(Place::Normalized(range));
            slice.ok_or("an added token ends inside a character")
        };
        let mut pieces = Vec::new();
        let mut end = 0;
        for Match { range, added } in found {
            let (before, after) = (&text[..range.start], &text[range.end..]);
            let token = &added.token;
            let in_word = before.ends_with(is_word) || after.starts_with(is_word);
            if range.start < end || token.single_word && in_word {
                continue;
            }
            let (mut from, mut to) = (range.start, range.end);
            if token.lstrip {
                from = before.trim_end().len().max(end);
            }
            if token.rstrip {
                to = text.len() - after.trim_start().len();
            }
            if end < from {
                pieces.push((slice(end..from)?, None));
            }
            let slice = slice(from..to)?;
            let value = slice.get().to_owned();
            let length = value.len();
            let token = Token::new(added.id, value, (0, length));
            pieces.push((slice, Some(vec![token])));
            end = to;
        }
        if end < text.len() || text.is_empty() {
            pieces.push((slice(end..text.len())?, None));
        }
        Ok((pieces, held))
    }
}

/// A word character in the sense of the library's `single_word`.
fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::quantized::gguf_file::Value;
    use proptest::prelude::*;

    use super::*;
    use crate::engine::tokenizer::test_metadata;

    fn sentencepiece() -> Tokenizer {
        let mut metadata: HashMap<String, Value> = test_metadata();
        let mut count = 0;
        if let Some(Value::Array(texts)) = metadata.get_mut("tokenizer.ggml.tokens") {
            count = texts.len();
            for text in texts {
                if let Value::String(text) = text {
                    *text = text.replace('Ġ', "▁").replace('Ċ', "<0x0A>");
                }
            }
        }
        let scores = (0..count).map(|id| Value::F32(id as f32)).collect();
        metadata.insert("tokenizer.ggml.scores".to_owned(), Value::Array(scores));
        let model = Value::String("llama".to_owned());
        metadata.insert("tokenizer.ggml.model".to_owned(), model);
        Tokenizer::from_gguf(&metadata).unwrap()
    }

    /// A tokenizer whose added tokens are also words of the vocabulary, with settings found in real
    /// files.
    fn folder(normalizer: &str, pre_tokenizer: &str, special: &str) -> Tokenizer {
        let letters = "abcdefgh<>/s▁ <s>".chars().chain(['\u{1}', '\n']);
        let mut vocab: HashMap<String, usize> = HashMap::new();
        for letter in letters {
            let id = vocab.len();
            vocab.entry(letter.to_string()).or_insert(id);
        }
        for (text, id) in [("<s>", 40), ("▁<s>", 41), ("<tool>", 42)] {
            vocab.insert(text.to_owned(), id);
        }
        let vocab = serde_json::to_string(&vocab).unwrap();
        let text = format!(
            r#"{{"version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [
                {{"id": 40, "content": "<s>", "special": true, {special}}},
                {{"id": 42, "content": "<tool>", "special": false, "normalized": false,
                  "lstrip": false, "rstrip": false, "single_word": false}}],
            "normalizer": {normalizer}, "pre_tokenizer": {pre_tokenizer},
            "post_processor": null, "decoder": null,
            "model": {{"type": "BPE", "vocab": {vocab}, "merges": [], "ignore_merges": true}}}}"#
        );
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), text).unwrap();
        Tokenizer::from_folder(folder.path()).unwrap()
    }

    fn tokenizers() -> Vec<Tokenizer> {
        let plain =
            r#""normalized": false, "lstrip": false, "rstrip": false, "single_word": false"#;
        let normalized = plain.replace("\"normalized\": false", "\"normalized\": true");
        let strips = plain.replace("strip\": false", "strip\": true");
        let word = plain.replace("single_word\": false", "single_word\": true");
        let prepend = r#"{"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}"#;
        let first = r#"{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true}"#;
        vec![
            Tokenizer::from_gguf(&test_metadata()).unwrap(),
            sentencepiece(),
            folder("null", "null", plain),
            folder("null", first, plain),
            folder(prepend, "null", plain),
            folder(prepend, "null", &normalized),
            folder("null", first, &normalized),
            folder("null", "null", &strips),
            folder("null", "null", &word),
        ]
    }

    fn slowly(tokenizer: &Tokenizer, text: &str, content: &[Range<usize>]) -> Vec<u32> {
        let added = AddedTokens::of(tokenizer).unwrap();
        let encoded = match &tokenizer.pipeline {
            Pipeline::Library(library) => added.encode(library, text, content, false),
            Pipeline::SentencePiece(library) => added.encode(library, text, content, false),
        };
        encoded.unwrap().0
    }

    /// If nothing is suppressed, the tokens are the library's. Otherwise, no control token comes
    /// from content.
    #[test]
    fn only_control_tokens_from_content_are_suppressed() {
        let tokenizers = tokenizers();
        let added: Vec<AddedTokens> = (tokenizers.iter())
            .map(|tokenizer| AddedTokens::of(tokenizer).unwrap())
            .collect();
        let words = [
            "<s>", "</s>", "<tool>", " ", "he", "llo", "hello", "<", "s>", "\n", "a", "é",
        ];
        let parts = proptest::collection::vec(
            (proptest::sample::select(words.to_vec()), any::<bool>()),
            0..12,
        );
        proptest!(ProptestConfig::with_cases(300), |(parts in parts)| {
            let mut text = String::new();
            let mut content: Vec<Range<usize>> = Vec::new();
            for (part, is_content) in parts {
                let start = text.len();
                text.push_str(part);
                match content.last_mut() {
                    Some(last) if is_content && last.end == start => last.end = text.len(),
                    _ if is_content => content.push(start..text.len()),
                    _ => {}
                }
            }
            for (tokenizer, added) in tokenizers.iter().zip(&added) {
                let library = tokenizer.encode(&text, false).unwrap();
                prop_assert_eq!(slowly(tokenizer, &text, &[]), library.clone());
                let whole = (text.as_str(), content.as_slice());
                let encoded = tokenizer.encode_rendered(added, whole, false).unwrap();
                prop_assert_eq!(&encoded.ids, &slowly(tokenizer, &text, &content));
                let all = vec![0..text.len(); 1];
                let held = tokenizer.encode_rendered(added, (&text, &all), false).unwrap();
                // `<unk>` is special, too, and replaces characters without a token.
                let all_added = added.plain.tokens.iter().chain(&added.normalized.tokens);
                for added in all_added.filter(|added| added.token.content != "<unk>") {
                    prop_assert!(!added.is_control || !held.ids.contains(&added.id));
                }
                if encoded.held == 0 {
                    prop_assert_eq!(encoded.ids, library);
                }
            }
        });
    }

    #[test]
    fn a_control_token_in_content_is_text() {
        let tokenizer = folder(
            "null",
            "null",
            r#""normalized": false, "lstrip": false, "rstrip": false, "single_word": false"#,
        );
        let added = AddedTokens::of(&tokenizer).unwrap();
        let encode = |text: &str, content: &[Range<usize>]| {
            let encoded = tokenizer.encode_rendered(&added, (text, content), false);
            encoded.unwrap()
        };
        let letters = |text: &str| -> Vec<u32> {
            text.chars()
                .flat_map(|c| tokenizer.encode(&c.to_string(), false).unwrap())
                .collect()
        };
        let content = |range: Range<usize>| vec![range];
        let Encoded { ids, held } = encode("<s>a<s>b<tool>", &content(3..14));
        assert_eq!(held, 1);
        let expected = [&[40], letters("a<s>b").as_slice(), &[42]].concat();
        assert_eq!(ids, expected);
        // It is enough that part of the match is content.
        for range in [0..1, 1..2, 2..3] {
            assert_eq!(encode("<s>", &content(range)).ids, letters("<s>"));
        }
        // The vocabulary also has the token as a word.
        assert_eq!(encode("<s>", &content(0..3)).ids, letters("<s>"));
        assert_eq!(encode("<s>", &[]).ids, [40]);
    }
}
