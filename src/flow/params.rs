//! The parameters of a template (`[params]`): numbers and texts that a run may override.

use std::collections::BTreeMap;

use minijinja::Value;
use serde::Deserialize;
use toml::Spanned;

use crate::error::{Error, Result};
use crate::hash::PartsHasher;

use super::place::{SourceFile, choice};

/// The table in the template.
pub(super) type ParamKeys = BTreeMap<Spanned<String>, Spanned<toml::Value>>;

/// A whole number, or the name of a parameter that holds one.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "expected a whole number or a parameter's name")]
pub(super) enum Count {
    Number(i64),
    Param(String),
}

/// The parameters, with the overrides of the run.
#[derive(Debug, Default)]
pub(super) struct Params {
    values: BTreeMap<String, toml::Value>,
    /// The overrides, by name.
    set: BTreeMap<String, String>,
}

impl Params {
    /// Takes the values of the template, with the overrides in `set`.
    pub(super) fn new(
        file: &SourceFile,
        keys: Option<ParamKeys>,
        set: &[(String, String)],
    ) -> Result<Self> {
        let mut params = Self::default();
        for (name, value) in keys.unwrap_or_default() {
            if matches!(
                value.get_ref(),
                toml::Value::Array(_) | toml::Value::Table(_) | toml::Value::Datetime(_)
            ) {
                let what = format!("the parameter `{}` is not a plain value", name.get_ref());
                return Err(file
                    .error(value.span().start, what)
                    .hint("a parameter is a number, a text in quotes, true or false"));
            }
            params.values.insert(name.into_inner(), value.into_inner());
        }
        for (name, text) in set {
            params.set(file, name, text)?;
        }
        Ok(params)
    }

    fn set(&mut self, file: &SourceFile, name: &str, text: &str) -> Result<()> {
        let path = super::place::shown(file.path()).to_string();
        let Some(value) = self.values.get_mut(name) else {
            let known: Vec<&String> = self.values.keys().collect();
            return Err(
                Error::usage(format!("{path} has no parameter `{name}` to set")).hint(choice(
                    name,
                    "parameters",
                    &known,
                )),
            );
        };
        let (parsed, kind) = match value {
            toml::Value::Integer(_) => (
                text.parse().ok().map(toml::Value::Integer),
                "a whole number",
            ),
            toml::Value::Float(_) => (text.parse().ok().map(toml::Value::Float), "a number"),
            toml::Value::Boolean(_) => {
                (text.parse().ok().map(toml::Value::Boolean), "true or false")
            }
            _ => (Some(toml::Value::String(text.to_owned())), "a text"),
        };
        *value = parsed.ok_or_else(|| {
            Error::usage(format!("the parameter `{name}` cannot be `{text}`"))
                .hint(format!("it is {kind}, such as {value}"))
        })?;
        self.set.insert(name.to_owned(), text.to_owned());
        Ok(())
    }

    /// A number given directly by a key of the template, or as the name of a parameter.
    pub(super) fn count(
        &self,
        file: &SourceFile,
        given: Option<&Spanned<Count>>,
        key: &str,
        default: usize,
        most: usize,
    ) -> Result<usize> {
        let Some(given) = given else {
            return Ok(default);
        };
        let at = given.span().start;
        let number = match given.get_ref() {
            Count::Number(number) => *number,
            Count::Param(name) => match self.values.get(name) {
                Some(toml::Value::Integer(number)) => *number,
                Some(_) => {
                    let what = format!("the parameter `{name}` is not a whole number");
                    return Err(file.error(at, what).hint(format!("`{key}` needs one")));
                }
                None => {
                    let known: Vec<&String> = self.values.keys().collect();
                    let what = format!("unknown parameter `{name}` in `{key}`");
                    let choice = choice(name, "parameters of [params]", &known);
                    return Err(file.error(at, what).hint(format!(
                        "`{key}` is a whole number, or the name of a parameter; {choice}"
                    )));
                }
            },
        };
        match usize::try_from(number) {
            Ok(count) if (1..=most).contains(&count) => Ok(count),
            _ => Err(file
                .error(at, format!("`{key}` cannot be {number}"))
                .hint(format!(
                    "`{key}` is a whole number from 1 to {most}, or the name of such a parameter"
                ))),
        }
    }

    /// The value of `{{ params }}`.
    pub(super) fn value(&self) -> Value {
        let pairs = self.values.iter();
        Value::from_pairs(pairs.map(|(name, value)| (name.clone(), plain(value))))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// Adds the overrides to the template's hash. Without overrides the hash is unchanged.
    pub(super) fn hash(&self, hasher: &mut PartsHasher) {
        for (name, text) in &self.set {
            hasher.part(name.as_bytes());
            hasher.part(text.as_bytes());
        }
    }
}

/// Converts a plain TOML value for templates.
fn plain(value: &toml::Value) -> Value {
    match value {
        toml::Value::Integer(number) => Value::from(*number),
        toml::Value::Float(number) => Value::from(*number),
        toml::Value::Boolean(truth) => Value::from(*truth),
        toml::Value::String(text) => Value::from(text.as_str()),
        // `Params::new` rejects all other types.
        other => Value::from(other.to_string()),
    }
}
