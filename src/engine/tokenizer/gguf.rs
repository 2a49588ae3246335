//! Reads the tokenizer from GGUF metadata (`tokenizer.ggml.*`).
//!
//! The keys and their meaning are those of the GGUF specification and of llama.cpp
//! (`llama-vocab.cpp`), which wrote most existing files.

use std::collections::{BTreeSet, HashMap, HashSet};

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
use super::{Pipeline, Tokenizer, control, pre};
use crate::error::{Error, Result};

/// A token's type (`tokenizer.ggml.token_type`; llama.cpp's `llama_token_type`).
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
            // 0 is "undefined", which old converters wrote for every token.
            _ => Self::Normal,
        }
    }
}

pub(super) fn tokenizer(metadata: &HashMap<String, Value>) -> Result<Tokenizer> {
    let keys = Keys(metadata);
    let model = keys.text("tokenizer.ggml.model")?;
    let texts = texts(keys)?;
    let vocabulary = texts.len();
    let mut kinds = kinds(keys, vocabulary)?;
    let ids: HashMap<&str, u32> = texts.iter().map(String::as_str).zip(0..).collect();
    let mut ends = ends_by_name(keys, &ids, &mut kinds)?;

    // llama.cpp's defaults. Token 11 is Falcon's BOS and EOS, and an ordinary character elsewhere.
    let (default_bos, default_eos, default_unknown) = match model {
        "llama" => (Some(1), Some(2), Some(0)),
        _ => {
            let falcon = (kinds.get(11) == Some(&Kind::Control)).then_some(11);
            (falcon, falcon, None)
        }
    };
    let token = |key: &str, default: Option<u32>| {
        let given = keys.id(key, vocabulary)?;
        Ok::<_, Error>(given.or(default.filter(|id| (*id as usize) < vocabulary)))
    };
    let bos = token("tokenizer.ggml.bos_token_id", default_bos)?;
    let eos = token("tokenizer.ggml.eos_token_id", default_eos)?;
    let unknown = token("tokenizer.ggml.unknown_token_id", default_unknown)?;
    ends.extend(eos);
    for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        ends.extend(keys.id(key, vocabulary)?);
    }
    // If there are several EOS tokens, Ollama's converter writes the others here.
    let more = keys
        .numbers("tokenizer.ggml.eos_token_ids")?
        .unwrap_or_default();
    let is_token = |id: &u32| (*id as usize) < vocabulary;
    ends.extend(
        more.into_iter()
            .filter_map(|id| u32::try_from(id).ok())
            .filter(is_token),
    );

    let strips_after = strips_space_after_special(keys);
    let added: Vec<AddedToken> = texts
        .iter()
        .zip(&kinds)
        .zip(0u32..)
        .filter(|((_, kind), _)| matches!(kind, Kind::Control | Kind::UserDefined | Kind::Unknown))
        .map(|((text, kind), id)| {
            // An end-of-turn token is not part of the answer's text, whatever its type.
            let special = *kind != Kind::UserDefined || ends.contains(&id);
            AddedToken::from(text.clone(), special)
                .normalized(false)
                .rstrip(strips_after && special && !KEEP_SPACE_AFTER.contains(&text.as_str()))
        })
        .collect();

    let token_of = |id: Option<u32>| id.and_then(|id| texts.get(id as usize)).cloned();
    let (bos_token, eos_token) = (token_of(bos), token_of(eos));
    let mut notes = Vec::new();

    let mut expansions = Vec::new();
    let (pipeline, adds_bos) = match model {
        "gpt2" => {
            let pre = pre_tokenizer(keys, &mut notes)?;
            let adds_bos = pre.adds_bos;
            let pipeline = byte_pairs(keys, texts, added, pre, &mut expansions)?;
            (pipeline, adds_bos)
        }
        "llama" => {
            let scores = scores(keys, vocabulary, &mut notes)?;
            let pipeline = sentence_pieces(keys, texts, &scores, &kinds, unknown, added)?;
            (pipeline, true)
        }
        other => {
            return Err(Error::preflight(format!(
                "unsupported kind of tokenizer `{other}` (tokenizer.ggml.model)"
            ))
            .hint("a GGUF's tokenizer has to be `gpt2` (byte-level BPE) or `llama` (SentencePiece); a folder with the model's own tokenizer.json works with any kind"));
        }
    };

    let adds_bos = keys
        .flag("tokenizer.ggml.add_bos_token")?
        .unwrap_or(adds_bos);
    let adds_eos = keys.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    Ok(Tokenizer {
        letters: super::letters_of(&pipeline),
        pipeline,
        expansions,
        // None if the file wants one without naming it.
        first: bos.filter(|_| adds_bos),
        last: eos.filter(|_| adds_eos),
        ends,
        vocabulary,
        bos_token,
        eos_token,
        notes,
    })
}

/// The tokens' texts, without duplicates.
fn texts(keys: Keys) -> Result<Vec<String>> {
    let mut texts = keys.texts("tokenizer.ggml.tokens")?;
    if texts.is_empty() {
        return Err(damaged("`tokenizer.ggml.tokens` is empty"));
    }
    for (id, text) in texts.iter_mut().enumerate() {
        // As in llama.cpp. Converters write several empty texts if a vocabulary has gaps.
        if text.is_empty() {
            *text = format!("[EMPTY_{id}]");
        }
    }
    let mut seen = HashMap::with_capacity(texts.len());
    for (id, text) in texts.iter().enumerate() {
        if let Some(first) = seen.insert(text.as_str(), id) {
            return Err(damaged(format!(
                "the tokens {first} and {id} have the same text, `{}`",
                text.escape_debug()
            )));
        }
    }
    drop(seen);
    Ok(texts)
}

/// Each token's type. Without a list all are normal.
fn kinds(keys: Keys, vocabulary: usize) -> Result<Vec<Kind>> {
    let Some(numbers) = keys.numbers("tokenizer.ggml.token_type")? else {
        return Ok(vec![Kind::Normal; vocabulary]);
    };
    if numbers.len() < vocabulary {
        return Err(damaged(format!(
            "{} token types for {vocabulary} tokens",
            numbers.len()
        )));
    }
    let numbers = numbers.into_iter().take(vocabulary);
    Ok(numbers.map(Kind::from_number).collect())
}

/// Finds the tokens that end an answer by their texts. Tokens with known texts become control
/// tokens, whatever their type.
fn ends_by_name(keys: Keys, ids: &HashMap<&str, u32>, kinds: &mut [Kind]) -> Result<BTreeSet<u32>> {
    let mut ends = BTreeSet::new();
    let has = |text: &str| ids.contains_key(text);
    for (text, id) in ids {
        if control::is_control(text) {
            set_control(kinds, *id);
        }
        if control::is_end(text, has) {
            ends.insert(*id);
        }
    }
    for fill in &control::FILLS {
        let mut given = None;
        for key in fill.keys {
            given = keys
                .id(&format!("tokenizer.ggml.{key}"), kinds.len())?
                .or(given);
        }
        let id = given.or_else(|| {
            let named = fill.names.iter().filter_map(|name| ids.get(name)).min();
            if let Some(id) = named {
                set_control(kinds, *id);
            }
            named.copied()
        });
        ends.extend(id.filter(|_| fill.is_end));
    }
    Ok(ends)
}

fn set_control(kinds: &mut [Kind], id: u32) {
    if let Some(kind) = kinds.get_mut(id as usize) {
        *kind = Kind::Control;
    }
}

/// Files that predate `tokenizer.ggml.pre` are read as llama.cpp reads them, which is not how their
/// models were trained.
fn pre_tokenizer(keys: Keys, notes: &mut Vec<String>) -> Result<pre::Pre> {
    let name = match keys.0.get("tokenizer.ggml.pre") {
        None => "",
        Some(Value::String(name)) => name,
        Some(_) => return Err(damaged("`tokenizer.ggml.pre` is not a string")),
    };
    if name.is_empty() {
        notes.push(
            "the model file does not name its pre-tokenizer (tokenizer.ggml.pre): `default` is used, as in llama.cpp, and answers may be worse than the model can give; a newer file of this model has the name"
                .to_owned(),
        );
        return pre::named("default");
    }
    pre::named(name)
}

/// Each piece's score; 0 if the file has none.
fn scores(keys: Keys, vocabulary: usize, notes: &mut Vec<String>) -> Result<Vec<f32>> {
    let Some(mut scores) = keys.scores("tokenizer.ggml.scores")? else {
        notes.push(
            "the model file has no scores for its tokens (tokenizer.ggml.scores): all scores are taken as equal, as in llama.cpp, and prompts may be split into other tokens than the model was trained on"
                .to_owned(),
        );
        return Ok(vec![0.0; vocabulary]);
    };
    if scores.len() < vocabulary {
        return Err(damaged(format!(
            "{} scores for {vocabulary} tokens",
            scores.len()
        )));
    }
    scores.truncate(vocabulary);
    Ok(scores)
}

/// Byte-level BPE with the merges of the file.
///
/// Some files have merges whose parts or result are not tokens. As in llama.cpp, such merges are
/// applied, and a result that is not a token is split into characters again at the end. These texts
/// get ids beyond the vocabulary, and `expansions` holds the characters' tokens.
fn byte_pairs(
    keys: Keys,
    texts: Vec<String>,
    added: Vec<AddedToken>,
    pre: pre::Pre,
    expansions: &mut Vec<Vec<u32>>,
) -> Result<Pipeline> {
    let merges = keys.texts("tokenizer.ggml.merges")?;
    let mut seen = HashSet::with_capacity(merges.len());
    let merges: Vec<(String, String)> = merges
        .iter()
        // Of two equal merges the first applies; one without two parts never does.
        .filter(|merge| seen.insert(merge.as_str()))
        .filter_map(|merge| split_merge(merge))
        .collect();
    let mut vocabulary: tokenizers::models::bpe::Vocab = texts.into_iter().zip(0..).collect();
    let mut missing = Vec::new();
    let mut union = String::new();
    for (left, right) in &merges {
        union.clear();
        union.push_str(left);
        union.push_str(right);
        for text in [left, right, &union] {
            let next = vocabulary.len() as u32;
            if !vocabulary.contains_key(text.as_str()) {
                vocabulary.insert(text.clone(), next);
                missing.push(text.clone());
            }
        }
    }
    let first_missing = (vocabulary.len() - missing.len()) as u32;
    let letters = |text: &String| {
        let letters = text.chars().filter_map(|c| vocabulary.get(&c.to_string()));
        letters.copied().filter(|id| *id < first_missing).collect()
    };
    *expansions = missing.iter().map(letters).collect();
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .ignore_merges(pre.ignore_merges)
        .build()
        .map_err(|error| damaged("its merges do not match its tokens").caused_by(error))?;
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
    Ok(Pipeline::Library(Box::new(tokenizer)))
}

/// Splits a merge into its two parts. Skips the first character: the first part may start with a
/// space.
fn split_merge(merge: &str) -> Option<(String, String)> {
    let (at, _) = merge.char_indices().skip(1).find(|(_, c)| *c == ' ')?;
    Some((merge[..at].to_owned(), merge[at + 1..].to_owned()))
}

/// A SentencePiece model: pieces with scores.
fn sentence_pieces(
    keys: Keys,
    texts: Vec<String>,
    scores: &[f32],
    kinds: &[Kind],
    unknown: Option<u32>,
    added: Vec<AddedToken>,
) -> Result<Pipeline> {
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
        scores,
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

/// Phi-3's special tokens swallow the whitespace after them. The file does not say so; llama.cpp
/// goes by the model's name, too.
fn strips_space_after_special(keys: Keys) -> bool {
    let Some(Value::String(name)) = keys.0.get("general.name") else {
        return false;
    };
    let name = name.to_lowercase();
    name.contains("phi-3") || name.contains("phi3")
}

const KEEP_SPACE_AFTER: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];

/// Typed access to the metadata; errors name the key.
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
            _ => Err(damaged(format!("`{key}` is not a string"))),
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
            _ => Err(damaged(format!(
                "`{key}` holds a value that is not a string"
            ))),
        };
        self.array(key)?.iter().map(text).collect()
    }

    fn scores(self, key: &str) -> Result<Option<Vec<f32>>> {
        if !self.0.contains_key(key) {
            return Ok(None);
        }
        let score = |value: &Value| match value {
            Value::F32(score) => Ok(*score),
            Value::I32(score) => Ok(*score as f32),
            _ => Err(damaged(format!(
                "`{key}` holds a value that is not a number"
            ))),
        };
        self.array(key)?
            .iter()
            .map(score)
            .collect::<Result<_>>()
            .map(Some)
    }

    fn numbers(self, key: &str) -> Result<Option<Vec<i64>>> {
        if !self.0.contains_key(key) {
            return Ok(None);
        }
        let number = |value: &Value| {
            integer(value)
                .ok_or_else(|| damaged(format!("`{key}` holds a value that is not a number")))
        };
        self.array(key)?
            .iter()
            .map(number)
            .collect::<Result<_>>()
            .map(Some)
    }

    /// A token id, if the file has one within the vocabulary. Converters write -1 (as 4294967295)
    /// for none.
    fn id(self, key: &str, vocabulary: usize) -> Result<Option<u32>> {
        let Some(value) = self.0.get(key) else {
            return Ok(None);
        };
        let number = integer(value).ok_or_else(|| damaged(format!("`{key}` is not a token id")))?;
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
