//! Jinja as transformers configures it for chat templates: sandboxed, without file access, with
//! immutable lists and dictionaries, and with Python's values and methods.
//!
//! It exists for one property that no Jinja library offers: **for every character of the result it
//! is known whether it is message content** ([`text`]). That survives everything a template does
//! with a message: trimming, slicing, splitting at `</think>`, replacing, formatting. It is what
//! keeps message content from becoming a special token. llama.cpp has its own interpreter for the
//! same reason.
//!
//! Differences from Jinja2: integers have 64 bits; tags that load other templates are missing, as
//! are the filters `random`, `urlize`, `xmlattr`, `striptags` and `filesizeformat`.

mod arguments;
mod ast;
mod checks;
mod evaluate;
mod expression;
mod filters;
mod format;
mod functions;
mod lexer;
mod methods;
mod operators;
mod parser;
mod print;
mod render;
mod sequences;
mod strings;
mod text;
mod value;

#[cfg(test)]
mod tests;

use std::rc::Rc;

pub(super) use text::Text;

use value::Value;

type Outcome<T> = Result<T, Failure>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    message: String,
    /// 1-based; 0 if not known yet.
    line: usize,
    pub(super) kind: FailureKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailureKind {
    Syntax,
    Runtime,
    /// The template called `raise_exception`.
    Refusal,
}

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            line: 0,
            kind: FailureKind::Runtime,
        }
    }

    fn syntax(line: usize, message: impl Into<String>) -> Self {
        Self {
            line,
            kind: FailureKind::Syntax,
            ..Self::new(message)
        }
    }

    fn refusal(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Refusal,
            ..Self::new(message)
        }
    }

    fn too_much() -> Self {
        Self::new("the template produces too much text or takes too many steps")
    }

    fn at(mut self, line: usize) -> Self {
        if self.line == 0 {
            self.line = line;
        }
        self
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        match self.line {
            0 => Ok(()),
            line => write!(f, " (chat_template:{line})"),
        }
    }
}

impl std::error::Error for Failure {}

/// A parsed template.
#[derive(Debug)]
pub(super) struct Template {
    body: ast::Body,
}

/// A message as the template sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn<'a> {
    pub(super) role: &'a str,
    pub(super) content: &'a str,
}

impl Template {
    pub(super) fn parse(source: &str) -> Result<Self, Failure> {
        let body = parser::parse(source)?;
        Ok(Self { body })
    }

    /// Renders a conversation up to the point where the model's answer begins.
    pub(super) fn render(
        &self,
        turns: &[Turn<'_>],
        special: &[(&str, &str)],
    ) -> Result<Text, Failure> {
        let bytes = turns.iter().map(|turn| turn.content.len());
        text::refill_budget(bytes.sum());
        let message = |turn: &Turn<'_>| {
            Value::dict(vec![
                (Value::plain("role"), Value::plain(turn.role)),
                (
                    Value::plain("content"),
                    Value::text(Text::content(turn.content)),
                ),
            ])
        };
        let messages = turns.iter().map(message).collect::<Outcome<Vec<_>>>()?;
        let globals = render::Frame::root();
        globals.set("messages", Value::list(messages)?);
        globals.set("add_generation_prompt", Value::Bool(true));
        // transformers always defines these; templates test them with `is not none`.
        globals.set("tools", Value::None);
        globals.set("documents", Value::None);
        for (name, token) in special {
            globals.set(name, Value::plain(*token));
        }
        render::run(&self.body, &Rc::new(globals))
    }
}

/// Python's `str.isspace`.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}
