//! Chat templates: a conversation to the one text that the model was trained on.
//!
//! Models bring their template along, in Jinja as Hugging Face's transformers renders it: blocks
//! trimmed, Python's string and dictionary methods, and a few functions of its own.

use std::collections::{BTreeMap, HashMap};
use std::error::Error as StdError;
use std::fmt;
use std::path::Path;

use candle_core::quantized::gguf_file::Value as GgufValue;
use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, Value, context};

use super::Message;
use super::tokenizer::{Tokenizer, read_json};
use crate::error::{Error, Result};

/// The date that templates are told when they ask for today's.
///
/// A prompt must not depend on the day it is run on: neither its tokens nor its cached prefix would
/// be the same tomorrow. It is the date that Llama 3.1's template falls back to by itself.
const TODAY: jiff::civil::Date = jiff::civil::date(2024, 7, 26);

/// The name that errors give the template.
const NAME: &str = "chat_template";

/// A model's chat template.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

impl ChatTemplate {
    /// The template of a GGUF (`tokenizer.chat_template`).
    ///
    /// # Errors
    /// No template, or one that is not Jinja as we know it.
    pub(crate) fn from_gguf(
        metadata: &HashMap<String, GgufValue>,
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        match metadata.get("tokenizer.chat_template") {
            Some(GgufValue::String(source)) => Self::new(source, tokenizer),
            _ => Err(no_template("tokenizer.chat_template")),
        }
    }

    /// The template of a folder: `chat_template.jinja`, or `chat_template` in
    /// `tokenizer_config.json`, which is a text or a list of named ones (`default` is taken).
    ///
    /// # Errors
    /// No template, or one that is not Jinja as we know it.
    pub(crate) fn from_folder(folder: &Path, tokenizer: &Tokenizer) -> Result<Self> {
        let path = folder.join("chat_template.jinja");
        match std::fs::read_to_string(&path) {
            Ok(source) => return Self::new(&source, tokenizer),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(
                    Error::preflight(format!("failed to read {}", path.display())).caused_by(error),
                );
            }
        }
        let config = read_json(folder, "tokenizer_config.json")?.unwrap_or_default();
        let template = &config["chat_template"];
        let named_default = || {
            let is_default = |entry: &&serde_json::Value| entry["name"] == "default";
            template.as_array()?.iter().find(is_default)?["template"].as_str()
        };
        match template.as_str().or_else(named_default) {
            Some(source) => Self::new(source, tokenizer),
            None => Err(no_template("tokenizer_config.json: chat_template")),
        }
    }

    fn new(source: &str, tokenizer: &Tokenizer) -> Result<Self> {
        Self::compile(source, tokenizer.bos_token(), tokenizer.eos_token())
    }

    fn compile(source: &str, bos_token: Option<&str>, eos_token: Option<&str>) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = minijinja::syntax::SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        let unusable = |error: minijinja::Error| {
            Error::preflight("the model's chat template cannot be used")
                .caused_by(error)
                .hint("take another file of this model, or another model")
        };
        environment.set_syntax(syntax.map_err(unusable)?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, without_generation_blocks(source))
            .map_err(unusable)?;
        Ok(Self {
            environment,
            bos_token: bos_token.map(str::to_owned),
            eos_token: eos_token.map(str::to_owned),
        })
    }

    /// The conversation as one text, up to where the model's answer begins. It holds the special
    /// tokens that it needs: encode it without adding any.
    ///
    /// # Errors
    /// A conversation that the template refuses (no `system` role, roles that do not alternate),
    /// with the template's own words.
    pub(crate) fn render(&self, messages: &[Message]) -> Result<String> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| {
                context! { role => message.role.as_str(), content => message.content.as_str() }
            })
            .collect();
        let none = Value::from(());
        let mut variables = BTreeMap::from([
            ("messages", Value::from(messages)),
            ("add_generation_prompt", Value::from(true)),
            // transformers defines them in each rendering; templates ask `is not none`.
            ("tools", none.clone()),
            ("documents", none),
        ]);
        for (name, token) in [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
        ] {
            if let Some(token) = token {
                variables.insert(name, Value::from(token.as_str()));
            }
        }
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render(Value::from(variables)))
            .map_err(|error| match refusal(&error) {
                Some(words) => Error::flow(format!(
                    "the model's chat template refuses the conversation: {words}"
                ))
                .hint("some models take no `system` message, or want user and assistant in turn"),
                None => Error::flow("failed to render the model's chat template").caused_by(error),
            })
    }
}

fn no_template(place: &str) -> Error {
    Error::preflight(format!("the model has no chat template ({place})"))
        .hint("take an instruction-tuned model: a base model has no way to hold a conversation")
}

/// What a template gave up with.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Refusal {}

fn raise_exception(words: &str) -> Result<Value, minijinja::Error> {
    Err(
        minijinja::Error::new(ErrorKind::InvalidOperation, words.to_owned())
            .with_source(Refusal(words.to_owned())),
    )
}

/// The refusal that an error of the renderer comes from, if it is one.
fn refusal(error: &minijinja::Error) -> Option<&str> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(Refusal(words)) = error.downcast_ref() {
            return Some(words);
        }
        cause = error.source();
    }
    None
}

fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(format, TODAY.at(0, 0, 0, 0)).map_err(|error| {
        minijinja::Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now does not know the format `{format}`"),
        )
        .with_source(error)
    })
}

/// `tojson` as transformers has it: the renderer's own escapes `<`, `>`, `&` and `'` for HTML.
fn to_json(value: &Value, indent: Option<Value>, args: Kwargs) -> Result<Value, minijinja::Error> {
    // Taken by transformers, and without a meaning here: nothing but UTF-8 is written.
    let _: Option<bool> = args.get("ensure_ascii")?;
    let json = minijinja::filters::tojson(value, indent, args)?;
    let mut text = String::new();
    let mut rest = json.as_str().unwrap_or_default();
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let escaped = [
            (r"\u003c", "<"),
            (r"\u003e", ">"),
            (r"\u0026", "&"),
            (r"\u0027", "'"),
        ]
        .into_iter()
        .find(|(escape, _)| rest[at..].starts_with(escape));
        let (length, plain) = match escaped {
            Some((escape, plain)) => (escape.len(), plain),
            // A backslash and what it escapes, which may be a backslash.
            None => (2, &rest[at..at + 2]),
        };
        text.push_str(plain);
        rest = &rest[at + length..];
    }
    text.push_str(rest);
    Ok(Value::from(text))
}

/// Takes out `{% generation %}`, which marks what a model is trained on and means nothing here: an
/// extension of transformers that the renderer does not know. An `if` in its place trims alike.
fn without_generation_blocks(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else {
            break;
        };
        let inside = &rest[start + 2..start + length];
        let replaced = match inside.trim_matches(['-', '+']).trim() {
            "generation" => inside.replace("generation", "if true"),
            "endgeneration" => inside.replace("endgeneration", "endif"),
            _ => inside.to_owned(),
        };
        text.push_str(&rest[..start + 2]);
        text.push_str(&replaced);
        rest = &rest[start + length..];
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
