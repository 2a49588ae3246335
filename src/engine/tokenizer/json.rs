//! The tokenizer out of a model's folder: `tokenizer.json` and the small files beside it.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{Pipeline, Tokenizer, is_end_of_turn};
use crate::error::{Context, Error, Exit, Result};

/// Builds the tokenizer.
pub(super) fn tokenizer(folder: &Path) -> Result<Tokenizer> {
    let path = folder.join("tokenizer.json");
    let bytes = std::fs::read(&path).or_exit(Exit::Preflight, || {
        format!("failed to read {}", path.display())
    })?;
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| {
        Error::preflight(format!("failed to understand {}", path.display())).caused_by(error)
    })?;
    // Some files are saved with the settings of a training run; nothing here may cut or pad.
    tokenizer
        .with_padding(None)
        .with_truncation(None)
        .map_err(|error| {
            Error::preflight(format!("failed to use {}", path.display())).caused_by(error)
        })?;

    check_added_ids(&bytes, &tokenizer, &path)?;

    let config = read_json(folder, "tokenizer_config.json")?;
    let token = |key: &str| config.as_ref().and_then(|config| token_text(&config[key]));
    let (bos_token, eos_token) = (token("bos_token"), token("eos_token"));

    let mut ends: BTreeSet<u32> = eos_token
        .iter()
        .filter_map(|token| tokenizer.token_to_id(token))
        .collect();
    for file in ["generation_config.json", "config.json"] {
        if let Some(config) = read_json(folder, file)? {
            ends.extend(token_ids(&config["eos_token_id"]));
        }
    }
    let added: Vec<(u32, String)> = tokenizer
        .get_added_tokens_decoder()
        .into_iter()
        .map(|(id, token)| (id, token.content))
        .collect();
    let texts: Vec<String> = added.iter().map(|(_, text)| text.clone()).collect();
    ends.extend(
        added
            .iter()
            .filter(|(_, text)| is_end_of_turn(text, &texts))
            .map(|(id, _)| id),
    );

    // Ids may have holes, so that the highest one counts.
    let vocabulary = tokenizer
        .get_vocab(true)
        .into_values()
        .max()
        .map_or(0, |id| id as usize + 1);
    Ok(Tokenizer {
        pipeline: Pipeline::Library(Box::new(tokenizer)),
        // The file's post-processor adds them.
        first: None,
        last: None,
        ends,
        vocabulary,
        bos_token,
        eos_token,
    })
}

/// The library numbers added tokens that are not in the vocabulary by itself, one after another,
/// and goes by the file only as long as the file does so, too.
fn check_added_ids(bytes: &[u8], tokenizer: &tokenizers::Tokenizer, path: &Path) -> Result<()> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        added_tokens: Vec<Added>,
    }
    #[derive(Deserialize)]
    struct Added {
        id: u32,
        content: String,
    }
    let file: File = serde_json::from_slice(bytes).or_exit(Exit::Preflight, || {
        format!("failed to understand {}", path.display())
    })?;
    for token in file.added_tokens {
        let id = tokenizer.token_to_id(&token.content);
        if id != Some(token.id) {
            return Err(Error::preflight(format!(
                "failed to use {}: its added token `{}` has the id {}, where {} is free",
                path.display(),
                token.content,
                token.id,
                id.map_or("none".to_owned(), |id| id.to_string()),
            )));
        }
    }
    Ok(())
}

/// A JSON file of the folder, if it is there.
pub(in crate::engine) fn read_json(folder: &Path, file: &str) -> Result<Option<Value>> {
    crate::engine::load::json::read(&folder.join(file))
}

/// A token is written as its text, or as an object that has it as `content`.
fn token_text(value: &Value) -> Option<String> {
    value
        .as_str()
        .or_else(|| value["content"].as_str())
        .map(str::to_owned)
}

/// `eos_token_id` is one id or a list of them.
fn token_ids(value: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(ids) => ids.iter().filter_map(id).collect(),
        other => id(other).into_iter().collect(),
    }
}
