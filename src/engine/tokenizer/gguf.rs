//! The tokenizer out of a GGUF's metadata (`tokenizer.ggml.*`).
//!
//! Keys and their meaning: the GGUF specification and llama.cpp's `llama-vocab.cpp`, which wrote
//! most of the files that there are.

use std::collections::{BTreeSet, HashMap};

use candle_core::quantized::gguf_file::Value;
use tokenizers::AddedToken;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::Replace;
use tokenizers::tokenizer::TokenizerImpl;

use super::sentencepiece::{SPACE, SentencePiece};
use super::{Pipeline, Tokenizer, is_end_of_turn, pre};
use crate::error::{Error, Result};

/// What a token is for (`tokenizer.ggml.token_type`; llama.cpp's `llama_token_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl Kind {
    fn from_number(number: i64) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            // 0 is "undefined", which old converters wrote for all.
            _ => Self::Normal,
        }
    }
}

/// Builds the tokenizer.
pub(super) fn tokenizer(metadata: &HashMap<String, Value>) -> Result<Tokenizer> {
    let keys = Keys(metadata);
    let texts = keys.texts("tokenizer.ggml.tokens")?;
    let kinds = match keys.numbers("tokenizer.ggml.token_type")? {
        None => vec![Kind::Normal; texts.len()],
        Some(numbers) if numbers.len() == texts.len() => {
            numbers.into_iter().map(Kind::from_number).collect()
        }
        Some(numbers) => {
            return Err(damaged(format!(
                "{} token types for {} tokens",
                numbers.len(),
                texts.len()
            )));
        }
    };
    let model = keys.text("tokenizer.ggml.model")?;
    let (default_bos, default_eos, default_unknown) = match model {
        "llama" => (Some(1), Some(2), Some(0)),
        _ => (None, None, None),
    };
    let bos = keys
        .id("tokenizer.ggml.bos_token_id", texts.len())?
        .or(default_bos);
    let eos = keys
        .id("tokenizer.ggml.eos_token_id", texts.len())?
        .or(default_eos);
    let unknown = keys
        .id("tokenizer.ggml.unknown_token_id", texts.len())?
        .or(default_unknown);

    let mut ends: BTreeSet<u32> = eos.into_iter().collect();
    for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        ends.extend(keys.id(key, texts.len())?);
    }
    ends.extend(
        texts
            .iter()
            .zip(&kinds)
            .zip(0..)
            .filter_map(|((text, kind), id)| {
                let is_special = matches!(kind, Kind::Control | Kind::UserDefined);
                (is_special && is_end_of_turn(text, &texts)).then_some(id)
            }),
    );

    let strips_after = strips_space_after_special(keys);
    let added: Vec<AddedToken> = texts
        .iter()
        .zip(&kinds)
        .zip(0u32..)
        .filter(|((_, kind), _)| matches!(kind, Kind::Control | Kind::UserDefined | Kind::Unknown))
        .map(|((text, kind), id)| {
            // An end of turn is no part of the answer's text, whatever the file calls it.
            let special = *kind != Kind::UserDefined || ends.contains(&id);
            AddedToken::from(text.clone(), special)
                .normalized(false)
                .rstrip(strips_after && special && !KEEP_SPACE_AFTER.contains(&text.as_str()))
        })
        .collect();

    let token_of = |id: Option<u32>| id.and_then(|id| texts.get(id as usize)).cloned();
    let (bos_token, eos_token) = (token_of(bos), token_of(eos));
    let vocabulary = texts.len();

    let (pipeline, adds_bos) = match model {
        "gpt2" => byte_pairs(keys, texts, added)?,
        "llama" => (sentence_pieces(keys, texts, &kinds, unknown, added)?, true),
        other => {
            return Err(Error::preflight(format!(
                "unsupported kind of tokenizer `{other}` (tokenizer.ggml.model)"
            ))
            .hint("`gpt2` (byte-level BPE) and `llama` (SentencePiece) are read from a GGUF; a folder with the model's own tokenizer.json works with any"));
        }
    };

    let adds_bos = keys
        .flag("tokenizer.ggml.add_bos_token")?
        .unwrap_or(adds_bos);
    let adds_eos = keys.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let asked = |adds: bool, id: Option<u32>, name: &str| match (adds, id) {
        (false, _) => Ok(None),
        (true, Some(id)) => Ok(Some(id)),
        (true, None) => Err(damaged(format!(
            "it adds a {name} token and does not say which"
        ))),
    };
    Ok(Tokenizer {
        pipeline,
        first: asked(adds_bos, bos, "BOS")?,
        last: asked(adds_eos, eos, "EOS")?,
        ends,
        vocabulary,
        bos_token,
        eos_token,
    })
}

/// Byte-level BPE: the merges are in the file, the pre-tokenizer is named there.
fn byte_pairs(keys: Keys, texts: Vec<String>, added: Vec<AddedToken>) -> Result<(Pipeline, bool)> {
    let Some(Value::String(name)) = keys.0.get("tokenizer.ggml.pre") else {
        return Err(Error::preflight(
            "the model file does not name its pre-tokenizer (tokenizer.ggml.pre)",
        )
        .hint("it was converted by an old version of llama.cpp; take a newer file of this model"));
    };
    let pre = pre::named(name)?;
    let merges = keys
        .texts("tokenizer.ggml.merges")?
        .into_iter()
        .map(|merge| {
            // From the second letter on: the first part may itself begin with a space.
            let split = merge
                .char_indices()
                .skip(1)
                .find(|(_, c)| *c == ' ')
                .map(|(at, _)| (merge[..at].to_owned(), merge[at + 1..].to_owned()));
            split.ok_or_else(|| damaged(format!("`{merge}` is not a merge")))
        })
        .collect::<Result<Vec<_>>>()?;
    let count = texts.len();
    let vocabulary: tokenizers::models::bpe::Vocab = texts.into_iter().zip(0..).collect();
    if vocabulary.len() != count {
        return Err(damaged("two tokens have the same text"));
    }
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .ignore_merges(pre.ignore_merges)
        .build()
        .map_err(|error| damaged("its merges do not fit its tokens").caused_by(error))?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer
        .with_normalizer(pre.normalizer)
        .and_then(|tokenizer| {
            tokenizer
                .with_pre_tokenizer(Some(pre.pre_tokenizer))
                .with_decoder(Some(ByteLevel::new(false, false, false)))
                .add_tokens(added)
        })
        .map_err(|error| damaged("its special tokens cannot be used").caused_by(error))?;
    Ok((Pipeline::Library(Box::new(tokenizer)), pre.adds_bos))
}

/// SentencePiece: pieces with scores.
fn sentence_pieces(
    keys: Keys,
    texts: Vec<String>,
    kinds: &[Kind],
    unknown: Option<u32>,
    added: Vec<AddedToken>,
) -> Result<Pipeline> {
    let scores = keys.scores("tokenizer.ggml.scores")?;
    if scores.len() != texts.len() {
        return Err(damaged(format!(
            "{} scores for {} tokens",
            scores.len(),
            texts.len()
        )));
    }
    let space_prefix = keys
        .flag("tokenizer.ggml.add_space_prefix")?
        .unwrap_or(true);
    let is_piece: Vec<bool> = kinds.iter().map(|kind| *kind == Kind::Normal).collect();
    let mut decoders: Vec<DecoderWrapper> = vec![
        Replace::new(SPACE.to_string(), " ")
            .map_err(|error| damaged("its spaces cannot be decoded").caused_by(error))?
            .into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if space_prefix {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    let mut tokenizer = TokenizerImpl::new(SentencePiece::new(
        texts,
        &scores,
        &is_piece,
        unknown,
        space_prefix,
    ));
    tokenizer
        .with_decoder(Some(Sequence::new(decoders)))
        .add_tokens(added)
        .map_err(|error| damaged("its special tokens cannot be used").caused_by(error))?;
    Ok(Pipeline::SentencePiece(Box::new(tokenizer)))
}

/// Phi-3's special tokens take the space after them along, which the file does not say; llama.cpp
/// goes by the model's name, too.
fn strips_space_after_special(keys: Keys) -> bool {
    let Some(Value::String(name)) = keys.0.get("general.name") else {
        return false;
    };
    let name = name.to_lowercase();
    name.contains("phi-3") || name.contains("phi3")
}

const KEEP_SPACE_AFTER: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];

/// The metadata, read with errors that name the key.
#[derive(Clone, Copy)]
struct Keys<'a>(&'a HashMap<String, Value>);

impl<'a> Keys<'a> {
    fn required(self, key: &str) -> Result<&'a Value> {
        self.0
            .get(key)
            .ok_or_else(|| damaged(format!("`{key}` is missing")))
    }

    fn text(self, key: &str) -> Result<&'a str> {
        match self.required(key)? {
            Value::String(text) => Ok(text),
            _ => Err(damaged(format!("`{key}` is not a text"))),
        }
    }

    fn array(self, key: &str) -> Result<&'a [Value]> {
        match self.required(key)? {
            Value::Array(values) => Ok(values),
            _ => Err(damaged(format!("`{key}` is not an array"))),
        }
    }

    fn texts(self, key: &str) -> Result<Vec<String>> {
        let text = |value: &Value| match value {
            Value::String(text) => Ok(text.clone()),
            _ => Err(damaged(format!("`{key}` holds something that is no text"))),
        };
        self.array(key)?.iter().map(text).collect()
    }

    fn scores(self, key: &str) -> Result<Vec<f32>> {
        let score = |value: &Value| match value {
            Value::F32(score) => Ok(*score),
            Value::I32(score) => Ok(*score as f32),
            _ => Err(damaged(format!(
                "`{key}` holds something that is no number"
            ))),
        };
        self.array(key)?.iter().map(score).collect()
    }

    fn numbers(self, key: &str) -> Result<Option<Vec<i64>>> {
        if !self.0.contains_key(key) {
            return Ok(None);
        }
        let number = |value: &Value| {
            integer(value)
                .ok_or_else(|| damaged(format!("`{key}` holds something that is no number")))
        };
        self.array(key)?
            .iter()
            .map(number)
            .collect::<Result<_>>()
            .map(Some)
    }

    /// A token's id, if the file gives one that is in the vocabulary. Converters write -1 (as
    /// 4294967295) for "none".
    fn id(self, key: &str, vocabulary: usize) -> Result<Option<u32>> {
        let Some(value) = self.0.get(key) else {
            return Ok(None);
        };
        let number =
            integer(value).ok_or_else(|| damaged(format!("`{key}` is not a token's number")))?;
        Ok(u32::try_from(number)
            .ok()
            .filter(|id| (*id as usize) < vocabulary))
    }

    fn flag(self, key: &str) -> Result<Option<bool>> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(damaged(format!("`{key}` is neither true nor false"))),
        }
    }
}

fn integer(value: &Value) -> Option<i64> {
    Some(match value {
        Value::U8(number) => i64::from(*number),
        Value::I8(number) => i64::from(*number),
        Value::U16(number) => i64::from(*number),
        Value::I16(number) => i64::from(*number),
        Value::U32(number) => i64::from(*number),
        Value::I32(number) => i64::from(*number),
        Value::I64(number) => *number,
        Value::U64(number) => i64::try_from(*number).ok()?,
        _ => return None,
    })
}

fn damaged(what: impl std::fmt::Display) -> Error {
    Error::preflight(format!("the model file's tokenizer cannot be read: {what}"))
}
