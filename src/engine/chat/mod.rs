//! Chat templates: render a conversation into the prompt that the model was trained on.
//!
//! Models ship their own template, in Jinja as Hugging Face transformers renders it ([`jinja`]).
//! The rendered text records which parts the template wrote, special tokens included, and which
//! parts are message content. Content never becomes a special token
//! ([`Tokenizer::encode_rendered`]).

#[cfg(any(test, fuzzing))]
pub(in crate::engine) mod fuzzing;
mod jinja;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use candle_core::quantized::gguf_file::Value as GgufValue;

use self::jinja::{Failure, FailureKind, Template, Turn};
use super::tokenizer::{Tokenizer, read_json};
use super::{Conversation, Message};
use crate::error::{Error, Result};

/// The hint if a template cannot be used.
const ANOTHER_FILE: &str = "use another file of this model, or another model";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rendered {
    pub(crate) text: String,
    /// Byte ranges of `text` that are message content, in order.
    pub(crate) content: Vec<Range<usize>>,
}

pub(crate) struct ChatTemplate {
    template: Template,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

impl ChatTemplate {
    /// Reads `tokenizer.chat_template` from GGUF metadata.
    ///
    /// # Errors
    /// The template is missing or does not parse.
    pub(crate) fn from_gguf(
        metadata: &HashMap<String, GgufValue>,
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        let found = Self::find_in_gguf(metadata, tokenizer)?;
        found.ok_or_else(|| no_template("tokenizer.chat_template"))
    }

    /// Like [`Self::from_gguf`], but a missing template is not an error.
    ///
    /// # Errors
    /// The template does not parse.
    pub(crate) fn find_in_gguf(
        metadata: &HashMap<String, GgufValue>,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Self>> {
        match metadata.get("tokenizer.chat_template") {
            Some(GgufValue::String(source)) => Self::new(source, tokenizer).map(Some),
            _ => Ok(None),
        }
    }

    /// Reads `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`: a string, or a
    /// list of named templates of which `default` is used.
    ///
    /// # Errors
    /// The template is missing or does not parse.
    pub(crate) fn from_folder(folder: &Path, tokenizer: &Tokenizer) -> Result<Self> {
        let found = Self::find_in_folder(folder, tokenizer)?;
        found.ok_or_else(|| no_template("tokenizer_config.json: chat_template"))
    }

    /// Like [`Self::from_folder`], but a missing template is not an error.
    ///
    /// # Errors
    /// A file cannot be read, or the template does not parse.
    pub(crate) fn find_in_folder(folder: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let path = folder.join("chat_template.jinja");
        match std::fs::read_to_string(&path) {
            Ok(source) => return Self::new(&source, tokenizer).map(Some),
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
        let source = template.as_str().or_else(named_default);
        source
            .map(|source| Self::new(source, tokenizer))
            .transpose()
    }

    fn new(source: &str, tokenizer: &Tokenizer) -> Result<Self> {
        Self::compile(source, tokenizer.bos_token(), tokenizer.eos_token())
    }

    fn compile(source: &str, bos_token: Option<&str>, eos_token: Option<&str>) -> Result<Self> {
        let template = Template::parse(source).map_err(|error| {
            Error::preflight("the model's chat template cannot be used")
                .caused_by(error)
                .hint(ANOTHER_FILE)
        })?;
        Ok(Self {
            template,
            bos_token: bos_token.map(str::to_owned),
            eos_token: eos_token.map(str::to_owned),
        })
    }

    /// Renders the conversation up to the point where the model's answer begins. The text already
    /// contains the special tokens it needs, so encode it without adding any.
    ///
    /// # Errors
    /// The template rejects the conversation (no `system` role, roles that do not alternate). The
    /// error carries the template's own message.
    pub(crate) fn render(&self, messages: &[Message]) -> Result<Rendered> {
        let turns = messages.iter();
        self.render_turns(turns.map(|message| (message.role.as_str(), message.content.as_str())))
            .map_err(|failure| unrendered(Error::flow, failure))
    }

    fn render_turns<'a>(
        &self,
        turns: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> std::result::Result<Rendered, Failure> {
        let turns: Vec<Turn<'_>> = turns
            .map(|(role, content)| Turn { role, content })
            .collect();
        let tokens = [
            ("bos_token", self.bos_token.as_deref()),
            ("eos_token", self.eos_token.as_deref()),
        ];
        let tokens: Vec<(&str, &str)> = tokens
            .into_iter()
            .filter_map(|(name, token)| Some((name, token?)))
            .collect();
        let (text, content) = self.template.render(&turns, &tokens)?.into_parts();
        Ok(Rendered { text, content })
    }

    /// Renders one sample conversation of each shape, so that a template that cannot handle them
    /// fails before the run starts.
    ///
    /// # Errors
    /// Exit code 3 with the template's error.
    pub(crate) fn try_out(&self, conversations: &[Conversation]) -> Result<()> {
        for conversation in conversations {
            let roles = conversation.roles();
            self.render_turns(roles.map(|role| (role.as_str(), "Hello.")))
                .map_err(|failure| unrendered(Error::preflight, failure).hint(ANOTHER_FILE))?;
        }
        Ok(())
    }
}

fn unrendered(error: fn(String) -> Error, failure: Failure) -> Error {
    if failure.kind == FailureKind::Refusal {
        let words = failure.message();
        return error(format!(
            "the model's chat template refuses the conversation: {words}"
        ))
        .hint("some models accept no `system` message, or need alternating roles");
    }
    error("failed to render the model's chat template".to_owned()).caused_by(failure)
}

fn no_template(place: &str) -> Error {
    Error::preflight(format!("the model has no chat template ({place})"))
        .hint("use an instruction-tuned model: base models come without a chat template")
}
