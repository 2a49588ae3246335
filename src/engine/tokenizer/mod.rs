//! Text to tokens and back, as the model was trained with: out of a GGUF's metadata ([`gguf`]) or
//! of a `tokenizer.json` ([`json`]).
//!
//! **Special tokens in the text.** A conversation is rendered to one text by its chat template and
//! then encoded with special tokens recognised, as Hugging Face's `apply_chat_template` does: the
//! template's own `<|im_end|>` has to become one token. One that stands in a message's content does
//! not: see [`content`].

mod content;
mod gguf;
mod json;
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
    bos_token: Option<String>,
    eos_token: Option<String>,
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
    /// `generation_config.json` and `config.json` say of its special tokens, as far as they exist.
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
        let ids = encoding.get_ids();
        if !add_special {
            return Ok(ids.to_vec());
        }
        Ok(self
            .first
            .into_iter()
            .chain(ids.iter().copied())
            .chain(self.last)
            .collect())
    }

    /// The text of these tokens, special ones left out and nothing cleaned up. Bytes that are no
    /// UTF-8 become `U+FFFD`; ids that no token has are left out (a model's output can have more
    /// rows than its vocabulary).
    ///
    /// # Errors
    /// What the tokenizers library refuses; no sequence is known that it does.
    pub(crate) fn decode(&self, ids: &[u32]) -> Result<String> {
        match &self.pipeline {
            Pipeline::Library(tokenizer) => tokenizer.decode(ids, true),
            Pipeline::SentencePiece(tokenizer) => tokenizer.decode(ids, true),
        }
        .map_err(|error| {
            Error::new(Exit::FlowFailed, "failed to turn tokens into text").caused_by(error)
        })
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

    /// Text of the beginning-of-sequence token, for chat templates.
    pub(crate) fn bos_token(&self) -> Option<&str> {
        self.bos_token.as_deref()
    }

    /// Text of the end-of-sequence token, for chat templates.
    pub(crate) fn eos_token(&self) -> Option<&str> {
        self.eos_token.as_deref()
    }
}

/// Special tokens that end a turn whatever the file says of them, by their text: models are
/// published whose EOS token is not the one that their chats end with. The list is llama.cpp's
/// (`special_eog_ids`), without the tokens that only end a code completion.
fn is_end_of_turn(text: &str, vocabulary: &[String]) -> bool {
    match text {
        "<|im_end|>"
        | "<|eot_id|>"
        | "<|eom_id|>"
        | "<|endoftext|>"
        | "<|end_of_text|>"
        | "<end_of_turn>"
        | "<end_of_utterance>"
        | "<EOT>"
        | "[EOT]"
        | "<eos>"
        | "</s>"
        | "<｜end▁of▁sentence｜>"
        | "<|return|>" => true,
        // In OpenAI's harmony format it ends a part of a turn, and `<|return|>` the turn.
        "<|end|>" => !vocabulary.iter().any(|token| token == "<|return|>"),
        _ => false,
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(super) use tests::metadata as test_metadata;
