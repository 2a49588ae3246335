//! Tokenizes and decodes text as the model was trained with, from GGUF metadata ([`gguf`]) or a
//! `tokenizer.json` ([`json`]).
//!
//! **Special tokens in the text.** The chat template renders a conversation to one text, which is
//! then encoded with special tokens recognized, as Hugging Face's `apply_chat_template` does: the
//! template's own `<|im_end|>` has to become one token. The same text inside a message does not:
//! see [`content`].

mod beside;
mod content;
mod control;
mod gguf;
mod json;
mod merges;
mod oniguruma;
mod pre;
mod sentencepiece;
mod stream;

pub(crate) use content::{AddedTokens, Encoded};
pub(super) use json::read_json;
pub(crate) use stream::TextStream;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use candle_core::quantized::gguf_file::Value;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::tokenizer::TokenizerImpl;

use self::sentencepiece::SentencePiece;
use crate::error::{Error, Exit, Result};

pub(crate) struct Tokenizer {
    pipeline: Pipeline,
    /// Added first and last when special tokens are requested. A `tokenizer.json` has its own
    /// post-processor for that.
    first: Option<u32>,
    last: Option<u32>,
    /// Tokens that end a turn.
    ends: BTreeSet<u32>,
    vocabulary: usize,
    /// The tokens behind each id from `vocabulary` on. Those ids are results of merges that are not
    /// tokens.
    expansions: Vec<Vec<u32>>,
    /// Added tokens that decode to their own text, where the decoder would mistake it for bytes.
    letters: HashMap<u32, String>,
    bos_token: Option<String>,
    eos_token: Option<String>,
    notes: Vec<String>,
}

/// Boxed because the library's tokenizer is a large value.
enum Pipeline {
    Library(Box<tokenizers::Tokenizer>),
    SentencePiece(
        Box<
            TokenizerImpl<
                SentencePiece,
                NormalizerWrapper,
                PreTokenizerWrapper,
                PostProcessorWrapper,
                DecoderWrapper,
            >,
        >,
    ),
}

impl Tokenizer {
    /// Reads the tokenizer from GGUF metadata.
    ///
    /// # Errors
    /// Keys that are missing or inconsistent, or an unsupported kind of tokenizer or pre-tokenizer.
    pub(crate) fn from_gguf(metadata: &HashMap<String, Value>) -> Result<Self> {
        gguf::tokenizer(metadata)
    }

    /// Reads a folder's `tokenizer.json`, and what `tokenizer_config.json`,
    /// `special_tokens_map.json`, `added_tokens.json`, `generation_config.json` and `config.json`
    /// say about special tokens, if they exist.
    ///
    /// # Errors
    /// A file cannot be read or parsed, or there is no `tokenizer.json`.
    pub(crate) fn from_folder(folder: &Path) -> Result<Self> {
        json::tokenizer(folder)
    }

    /// Tokenizes a text, recognizing special tokens in it. `add_special` adds those that the model
    /// expects around plain text (BOS, EOS); a rendered chat already has them.
    ///
    /// A byte without a token in the vocabulary is dropped, as every implementation does. In
    /// SmolLM2's vocabulary these are six control characters and the unassigned planes of Unicode.
    ///
    /// # Errors
    /// An error of the tokenizers library; no text is known to cause one.
    pub(crate) fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = match &self.pipeline {
            Pipeline::Library(tokenizer) => tokenizer.encode_fast(text, add_special),
            Pipeline::SentencePiece(tokenizer) => tokenizer.encode_fast(text, add_special),
        }
        .map_err(|error| {
            Error::new(Exit::FlowFailed, "failed to tokenize the prompt").caused_by(error)
        })?;
        let ids = self.expanded(encoding.get_ids());
        if !add_special {
            return Ok(ids);
        }
        Ok(self.first.into_iter().chain(ids).chain(self.last).collect())
    }

    /// Replaces ids beyond the vocabulary by their tokens.
    fn expanded(&self, ids: &[u32]) -> Vec<u32> {
        if self.expansions.is_empty() {
            return ids.to_vec();
        }
        let mut expanded = Vec::with_capacity(ids.len());
        for id in ids {
            let beyond = (*id as usize).checked_sub(self.vocabulary);
            match beyond.and_then(|index| self.expansions.get(index)) {
                Some(tokens) => expanded.extend_from_slice(tokens),
                None => expanded.push(*id),
            }
        }
        expanded
    }

    /// Whether decoding leaves the token out: it is special, or there is no such token.
    pub(crate) fn is_skipped(&self, id: u32) -> bool {
        let added = match &self.pipeline {
            Pipeline::Library(tokenizer) => tokenizer.get_added_vocabulary(),
            Pipeline::SentencePiece(tokenizer) => tokenizer.get_added_vocabulary(),
        };
        let text = self.token_text(id);
        id as usize >= self.vocabulary || text.is_none_or(|text| added.is_special_token(&text))
    }

    /// Decodes tokens, without special tokens and without any cleanup. Invalid UTF-8 becomes
    /// `U+FFFD`. Ids outside the vocabulary are skipped: a model's output can have more rows than
    /// its vocabulary.
    ///
    /// # Errors
    /// An error of the tokenizers library; no tokens are known to cause one.
    pub(crate) fn decode(&self, ids: &[u32]) -> Result<String> {
        let ids: Vec<u32> = ids
            .iter()
            .copied()
            .filter(|id| (*id as usize) < self.vocabulary)
            .collect();
        if self.letters.is_empty() {
            return self.decoded(&ids);
        }
        // Decoding in parts is equivalent: a byte-level decoder concatenates bytes, and the first
        // byte of a character ends any incomplete character before it.
        let mut text = String::new();
        let mut rest = ids.as_slice();
        while let Some(at) = rest.iter().position(|id| self.letters.contains_key(id)) {
            text.push_str(&self.decoded(&rest[..at])?);
            text.push_str(&self.letters[&rest[at]]);
            rest = &rest[at + 1..];
        }
        text.push_str(&self.decoded(rest)?);
        Ok(text)
    }

    fn decoded(&self, ids: &[u32]) -> Result<String> {
        match &self.pipeline {
            Pipeline::Library(tokenizer) => tokenizer.decode(ids, true),
            Pipeline::SentencePiece(tokenizer) => tokenizer.decode(ids, true),
        }
        .map_err(|error| {
            Error::new(Exit::FlowFailed, "failed to decode tokens into text").caused_by(error)
        })
    }

    /// A token's text in the vocabulary, for messages.
    pub(crate) fn token_text(&self, id: u32) -> Option<String> {
        match &self.pipeline {
            Pipeline::Library(tokenizer) => tokenizer.id_to_token(id),
            Pipeline::SentencePiece(tokenizer) => tokenizer.id_to_token(id),
        }
    }

    /// Whether the model ends its turn with this token: the end-of-sequence tokens that its files
    /// name, and the known end-of-turn tokens among its special ones.
    pub(crate) fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// Token ids are below this.
    pub(crate) fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Assumptions made where the file is silent, to be shown to the user.
    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Text of the BOS token, for chat templates.
    pub(crate) fn bos_token(&self) -> Option<&str> {
        self.bos_token.as_deref()
    }

    /// Text of the EOS token, for chat templates.
    pub(crate) fn eos_token(&self) -> Option<&str> {
        self.eos_token.as_deref()
    }
}

/// Added tokens that a byte-level decoder would mistake for bytes: those with characters such as
/// `ü`, which the byte-level alphabet uses for the byte `0xFC`. They match their literal text, so
/// they have to decode to it.
fn letters_of(pipeline: &Pipeline) -> HashMap<u32, String> {
    let Pipeline::Library(tokenizer) = pipeline else {
        return HashMap::new();
    };
    let is_byte_level = match tokenizer.get_decoder() {
        Some(DecoderWrapper::ByteLevel(_)) => true,
        Some(DecoderWrapper::Sequence(decoders)) => {
            matches!(decoders.get_decoders(), [DecoderWrapper::ByteLevel(_)])
        }
        _ => false,
    };
    if !is_byte_level {
        return HashMap::new();
    }
    tokenizer
        .get_added_tokens_decoder()
        .into_iter()
        .filter(|(_, token)| !token.special && !token.content.is_ascii())
        .map(|(id, token)| (id, token.content))
        .collect()
}

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(super) use tests::metadata as test_metadata;
