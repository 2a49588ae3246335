//! The small files beside a `tokenizer.json`: `tokenizer_config.json`, `special_tokens_map.json`
//! and `added_tokens.json`, applied as transformers 5 applies them (`_from_pretrained` and
//! `TokenizersBackend.__init__`).
//!
//! - If the configuration has `added_tokens_decoder`, the other two files are not read. Otherwise
//!   `special_tokens_map.json` overrides the configuration, and `added_tokens.json` adds tokens.
//! - All these tokens are added to the tokenizer in the order of their ids, followed by the special
//!   tokens that it still lacks. A token already in the vocabulary keeps its id; a new one gets the
//!   next id.
//! - `add_bos_token` and `add_eos_token` are ignored: `tokenizer.json` decides what is added.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::read_json;
use crate::error::{Error, Result};

/// Special tokens with a standard name.
const NAMES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

const CONFIG: &str = "tokenizer_config.json";
const ADDED_TOKENS: &str = "added_tokens.json";

#[derive(Debug)]
pub(super) struct Beside {
    /// The tokens to add, by the id that the files give them.
    pub(super) numbered: BTreeMap<u32, AddedToken>,
    /// The file that `numbered` was read from.
    pub(super) file: &'static str,
    /// Special tokens, to be added if the tokenizer lacks them.
    pub(super) special: Vec<AddedToken>,
    /// The texts of named special tokens, by names such as `bos_token`.
    pub(super) named: BTreeMap<String, String>,
    /// Whether special tokens in a text are split like other text (`split_special_tokens`).
    pub(super) splits_special: bool,
}

impl Beside {
    /// Reads those files of a folder that exist.
    ///
    /// # Errors
    /// Exit code 3 if one cannot be read or parsed.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let mut config = object(folder, CONFIG)?.unwrap_or_default();
        if !is_given(config.get("extra_special_tokens"))
            && let Some(tokens) = config.remove("additional_special_tokens")
        {
            config.insert("extra_special_tokens".to_owned(), tokens);
        }
        let place = |file: &str| folder.join(file).display().to_string();

        let mut numbered = BTreeMap::new();
        let mut file = ADDED_TOKENS;
        if let Some(decoder) = config.get("added_tokens_decoder") {
            file = CONFIG;
            let place = format!("{}: added_tokens_decoder", place(CONFIG));
            let tokens = decoder.as_object().ok_or_else(|| unusable(&place))?;
            for (id, token) in tokens {
                let id = id.parse::<u32>().ok();
                let token = added_token(token, false).filter(|_| token.is_object());
                let (Some(id), Some(token)) = (id, token) else {
                    return Err(unusable(&place));
                };
                numbered.insert(id, token);
            }
        } else {
            if let Some(map) = object(folder, "special_tokens_map.json")? {
                overlay(&mut config, map);
            }
            if let Some(tokens) = object(folder, ADDED_TOKENS)? {
                let special = texts(&config);
                for (text, id) in tokens {
                    let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
                    let id = id.ok_or_else(|| unusable(&place(ADDED_TOKENS)))?;
                    let is_special = special.contains(&text);
                    numbered.insert(id, AddedToken::from(text, is_special));
                }
            }
        }
        let (special, named) = special(&config);
        Ok(Self {
            numbered,
            file,
            special,
            named,
            splits_special: config.get("split_special_tokens") == Some(&Value::Bool(true)),
        })
    }

    /// The tokens to add, in order, to a tokenizer that already has the tokens `own`.
    pub(super) fn tokens(
        &self,
        own: impl IntoIterator<Item = (u32, AddedToken)>,
    ) -> Vec<AddedToken> {
        let own: Vec<(u32, AddedToken)> = own.into_iter().collect();
        let mut seen: BTreeSet<String> =
            own.iter().map(|(_, token)| token.content.clone()).collect();
        let mut numbered = self.numbered.clone();
        if self.file != CONFIG {
            numbered.extend(own);
        }
        let is_named = |token: &AddedToken| self.named.values().any(|text| *text == token.content);
        let mut tokens: Vec<AddedToken> = numbered
            .into_values()
            .map(|token| {
                let special = token.special || is_named(&token);
                token.special(special)
            })
            .collect();
        seen.extend(tokens.iter().map(|token| token.content.clone()));
        for token in &self.special {
            if seen.insert(token.content.clone()) {
                tokens.push(token.clone());
            }
        }
        tokens
    }
}

/// `None` if the file does not exist.
fn object(folder: &Path, file: &str) -> Result<Option<Map<String, Value>>> {
    match read_json(folder, file)? {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(_) => Err(unusable(&folder.join(file).display().to_string())),
    }
}

fn unusable(place: &str) -> Error {
    Error::preflight(format!("failed to parse {place}: unexpected structure"))
        .hint("download the model's tokenizer files again")
}

/// Whether a setting is present and not empty; Python's truth value for the types that occur.
fn is_given(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::Array(values)) => !values.is_empty(),
        Some(Value::Object(values)) => !values.is_empty(),
        Some(_) => true,
    }
}

/// Overrides the configuration with `special_tokens_map.json`.
fn overlay(config: &mut Map<String, Value>, map: Map<String, Value>) {
    for (key, value) in map {
        match (key.as_str(), value) {
            ("additional_special_tokens", value) => {
                // The older name only counts if the newer one is not set.
                if !is_given(config.get("extra_special_tokens")) {
                    config.insert("extra_special_tokens".to_owned(), value);
                }
            }
            ("extra_special_tokens", Value::Array(more)) => {
                let tokens = config
                    .entry(key)
                    .or_insert_with(|| Value::Array(Vec::new()));
                match tokens {
                    Value::Array(tokens) => tokens.extend(more),
                    other => *other = Value::Array(more),
                }
            }
            (_, value) => {
                config.insert(key, value);
            }
        }
    }
}

/// The special tokens of a configuration in the order in which they are added, and those with a
/// name: the standard names, and the model's own such as `image_token`.
fn special(config: &Map<String, Value>) -> (Vec<AddedToken>, BTreeMap<String, String>) {
    let mut special = Vec::new();
    let mut named = BTreeMap::new();
    let own = config
        .iter()
        .filter(|(key, _)| key.ends_with("_token") && !NAMES.contains(&key.as_str()));
    let common = NAMES.iter().filter_map(|name| config.get_key_value(*name));
    let extra = config.get("extra_special_tokens");
    let extra_named = extra.and_then(Value::as_object).into_iter().flatten();
    for (key, value) in common.chain(own).chain(extra_named) {
        if let Some(token) = added_token(value, true) {
            named.insert(key.clone(), token.content.clone());
            special.push(token);
        }
    }
    let extra = extra.and_then(Value::as_array).into_iter().flatten();
    special.extend(extra.filter_map(|value| added_token(value, true)));
    (special, named)
}

fn texts(config: &Map<String, Value>) -> BTreeSet<String> {
    let (special, _) = special(config);
    special.into_iter().map(|token| token.content).collect()
}

/// A token is either a string or an object with `content`.
fn added_token(value: &Value, is_special: bool) -> Option<AddedToken> {
    if let Some(text) = value.as_str() {
        return Some(AddedToken::from(text, is_special));
    }
    let text = value["content"].as_str()?;
    let flag = |key: &str| value[key].as_bool();
    let special = is_special || flag("special").unwrap_or(false);
    // By default, special tokens are matched before the text is normalized.
    Some(
        AddedToken::from(text, special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special)),
    )
}
