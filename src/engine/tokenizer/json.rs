//! The tokenizer of a model folder: `tokenizer.json` and the small files beside it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::AddedToken;

use super::beside::Beside;
use super::merges::Model;
use super::{Pipeline, Tokenizer, control, oniguruma};
use crate::error::{Context, Error, Exit, Result};

pub(super) fn tokenizer(folder: &Path) -> Result<Tokenizer> {
    let path = folder.join("tokenizer.json");
    let bytes = std::fs::read(&path).or_exit(Exit::Preflight, || {
        format!("failed to read {}", path.display())
    })?;
    let file: File = serde_json::from_slice(&bytes).or_exit(Exit::Preflight, || {
        format!("failed to parse {}", path.display())
    })?;
    if let Some((number, second)) = file.model.bad_merge() {
        return Err(Error::preflight(format!(
            "failed to use {}: merge {number} (with `{second}`) makes no token of the vocabulary",
            path.display()
        ))
        .hint("download the model's tokenizer files again"));
    }
    let bytes = with_patterns(bytes, &file, &path)?;
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| {
        Error::preflight(format!("failed to parse {}", path.display())).caused_by(error)
    })?;
    let unusable = |error: tokenizers::Error| {
        Error::preflight(format!("failed to use {}", path.display())).caused_by(error)
    };
    // Some files still have the truncation and padding of a training run.
    tokenizer
        .with_padding(None)
        .with_truncation(None)
        .map_err(unusable)?;
    for token in &file.added_tokens {
        check_id(&tokenizer, &token.content, token.id, &path)?;
    }

    let beside = Beside::read(folder)?;
    let place = folder.join(beside.file);
    let is_new = |token: &AddedToken| {
        !token.content.is_empty() && tokenizer.token_to_id(&token.content).is_none()
    };
    let new: Vec<(u32, String)> = (beside.numbered.iter())
        .filter(|(_, token)| is_new(token))
        .map(|(id, token)| (*id, token.content.clone()))
        .collect();
    let tokens = beside.tokens(tokenizer.get_added_tokens_decoder());
    tokenizer.add_tokens(tokens).map_err(unusable)?;
    tokenizer.set_encode_special_tokens(beside.splits_special);
    for (id, text) in new {
        check_id(&tokenizer, &text, id, &place)?;
    }

    let token = |key: &str| beside.named.get(key).cloned();
    let (bos_token, eos_token) = (token("bos_token"), token("eos_token"));
    let mut ends: BTreeSet<u32> = eos_token
        .iter()
        .filter_map(|token| tokenizer.token_to_id(token))
        .collect();
    for file in ["generation_config.json", "config.json"] {
        if let Some(config) = read_json(folder, file)? {
            ends.extend(token_ids(&config["eos_token_id"]));
            // Multimodal models have it here.
            ends.extend(token_ids(&config["text_config"]["eos_token_id"]));
        }
    }
    let added = tokenizer.get_added_tokens_decoder();
    let texts: BTreeSet<&str> = added.values().map(|token| token.content.as_str()).collect();
    ends.extend(
        added
            .iter()
            .filter(|(_, token)| control::is_end(&token.content, |text| texts.contains(text)))
            .map(|(id, _)| id),
    );

    // Ids may have gaps, so the highest one counts.
    let vocabulary = tokenizer
        .get_vocab(true)
        .into_values()
        .max()
        .map_or(0, |id| id as usize + 1);
    let pipeline = Pipeline::Library(Box::new(tokenizer));
    Ok(Tokenizer {
        letters: super::letters_of(&pipeline),
        pipeline,
        expansions: Vec::new(),
        // Added by the file's post-processor.
        first: None,
        last: None,
        ends,
        vocabulary,
        bos_token,
        eos_token,
        notes: Vec::new(),
    })
}

/// The parts of a `tokenizer.json` that are used here.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

/// Rewrites the regular expressions of the file in fancy-regex's syntax.
fn with_patterns(bytes: Vec<u8>, file: &File, path: &Path) -> Result<Vec<u8>> {
    let mut parts = [&file.normalizer, &file.pre_tokenizer, &file.decoder].map(Value::clone);
    let mut differ = false;
    for part in &mut parts {
        differ |= translate_patterns(part);
    }
    if !differ {
        return Ok(bytes);
    }
    let context = || format!("failed to parse {}", path.display());
    let mut whole: Value = serde_json::from_slice(&bytes).or_exit(Exit::Preflight, context)?;
    let names = ["normalizer", "pre_tokenizer", "decoder"];
    for (name, part) in names.into_iter().zip(parts) {
        whole[name] = part;
    }
    serde_json::to_vec(&whole).or_exit(Exit::Preflight, context)
}

/// Translates each `{"Regex": …}` in a part of the file. Returns whether any changed.
fn translate_patterns(part: &mut Value) -> bool {
    match part {
        Value::Array(parts) => parts
            .iter_mut()
            .fold(false, |changed, part| translate_patterns(part) | changed),
        Value::Object(members) => {
            let mut changed = false;
            for (name, member) in members {
                match member {
                    Value::String(pattern) if name == "Regex" => {
                        if let Cow::Owned(translated) = oniguruma::translate(pattern) {
                            *pattern = translated;
                            changed = true;
                        }
                    }
                    member => changed |= translate_patterns(member),
                }
            }
            changed
        }
        _ => false,
    }
}

/// Fails if a token's id differs from the one in its file. The library numbers added tokens that
/// are not in the vocabulary consecutively, and ignores the ids in the file.
fn check_id(tokenizer: &tokenizers::Tokenizer, text: &str, id: u32, path: &Path) -> Result<()> {
    let free = tokenizer.token_to_id(text);
    if free == Some(id) {
        return Ok(());
    }
    Err(Error::preflight(format!(
        "failed to use {}: its added token `{text}` has the id {id}, but the library gives it {}",
        path.display(),
        free.map_or("none".to_owned(), |id| id.to_string()),
    )))
}

/// Reads a JSON file of the folder; `None` if it does not exist.
pub(in crate::engine) fn read_json(folder: &Path, file: &str) -> Result<Option<Value>> {
    crate::engine::load::json::read(&folder.join(file))
}

/// `eos_token_id` is one id or a list of them.
fn token_ids(value: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(ids) => ids.iter().filter_map(id).collect(),
        other => id(other).into_iter().collect(),
    }
}
