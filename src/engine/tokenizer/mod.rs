//! Text to tokens and back, as the model was trained with: out of a GGUF's metadata ([`gguf`]) or
//! of a `tokenizer.json` ([`json`]).
//!
//! **Special tokens in the text.** A conversation is rendered to one text by its chat template and
//! then encoded with special tokens recognised, as Hugging Face's `apply_chat_template` does: the
//! template's own `<|im_end|>` has to become one token. One that stands in a message's content does
//! not: see [`content`].

mod beside;
mod content;
mod control;
mod gguf;
mod json;
mod oniguruma;
mod pre;
mod sentencepiece;

pub(crate) use content::{AddedTokens, Encoded};
pub(super) use json::read_json;

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

/// A model's tokenizer.
pub(crate) struct Tokenizer {
    pipeline: Pipeline,
    /// Put first and last where special tokens are asked for (a `tokenizer.json` has its own way).
    first: Option<u32>,
    last: Option<u32>,
    /// Tokens that end a turn.
    ends: BTreeSet<u32>,
    vocabulary: usize,
    /// What the numbers from `vocabulary` on stand for: texts that merges make and that are no
    /// tokens, in tokens.
    expansions: Vec<Vec<u32>>,
    /// Added tokens that decode to their text, where the decoder would take it for bytes.
    letters: HashMap<u32, String>,
    bos_token: Option<String>,
    eos_token: Option<String>,
    notes: Vec<String>,
}

/// Boxed, since the library's tokenizer is a large value.
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
    /// The tokenizer of a GGUF, from its metadata.
    ///
    /// # Errors
    /// Keys that are missing or do not fit together, and a kind of tokenizer or a pre-tokenizer
    /// that is not known.
    pub(crate) fn from_gguf(metadata: &HashMap<String, Value>) -> Result<Self> {
        gguf::tokenizer(metadata)
    }

    /// The tokenizer of a folder: `tokenizer.json`, with what `tokenizer_config.json`,
    /// `special_tokens_map.json`, `added_tokens.json`, `generation_config.json` and `config.json`
    /// say of its special tokens, as far as they exist.
    ///
    /// # Errors
    /// A file that cannot be read or understood; no `tokenizer.json`.
    pub(crate) fn from_folder(folder: &Path) -> Result<Self> {
        json::tokenizer(folder)
    }

    /// The tokens of a text. Special tokens in it are recognised. `add_special` puts those around
    /// it that the model wants around a plain text (BOS, EOS); a rendered chat has its own.
    ///
    /// A byte that the vocabulary has no token for is left out, as every implementation does: in
    /// SmolLM2's these are six control characters and the unassigned planes of Unicode.
    ///
    /// # Errors
    /// What the tokenizers library refuses; no text is known that it does.
    pub(crate) fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = match &self.pipeline {
            Pipeline::Library(tokenizer) => tokenizer.encode_fast(text, add_special),
            Pipeline::SentencePiece(tokenizer) => tokenizer.encode_fast(text, add_special),
        }
        .map_err(|error| {
            Error::new(Exit::FlowFailed, "failed to turn the prompt into tokens").caused_by(error)
        })?;
        let ids = self.expanded(encoding.get_ids());
        if !add_special {
            return Ok(ids);
        }
        Ok(self.first.into_iter().chain(ids).chain(self.last).collect())
    }

    /// The tokens behind the library's numbers.
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

    /// The text of these tokens, special ones left out and nothing cleaned up. Bytes that are no
    /// UTF-8 become `U+FFFD`; ids that no token has are left out (a model's output can have more
    /// rows than its vocabulary).
    ///
    /// # Errors
    /// What the tokenizers library refuses; no sequence is known that it does.
    pub(crate) fn decode(&self, ids: &[u32]) -> Result<String> {
        let ids: Vec<u32> = ids
            .iter()
            .copied()
            .filter(|id| (*id as usize) < self.vocabulary)
            .collect();
        if self.letters.is_empty() {
            return self.decoded(&ids);
        }
        // A byte-level decoder looks at nothing but the bytes, and the first byte of a letter ends
        // any letter that is not whole: the parts decode as they do together.
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
            Error::new(Exit::FlowFailed, "failed to turn tokens into text").caused_by(error)
        })
    }

    /// How the tokenizer writes a token, for messages.
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

    /// How many tokens there are; ids are below it.
    pub(crate) fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// What had to be assumed of a file that does not say it, for the user to know.
    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Text of the beginning-of-sequence token, for chat templates.
    pub(crate) fn bos_token(&self) -> Option<&str> {
        self.bos_token.as_deref()
    }

    /// Text of the end-of-sequence token, for chat templates.
    pub(crate) fn eos_token(&self) -> Option<&str> {
        self.eos_token.as_deref()
    }
}

/// The added tokens that a byte-level decoder would take for bytes: those of letters such as `ü`,
/// which it writes the byte `0xFC` with. They are matched as they stand, so that this is what they
/// decode to.
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
