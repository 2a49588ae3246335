//! Texts and names as a template's file has them.

use std::ops::Range;

use toml::Spanned;

use super::place::SourceFile;
use super::split::{Literal, Piece, Unclosed, split};
use crate::error::Result;

/// A text of the template, split at each `${ … }`.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) pieces: Vec<Piece>,
    /// Byte range of the TOML string in the file.
    span: Range<usize>,
}

impl Text {
    pub(super) fn new(file: &SourceFile, string: &Spanned<String>) -> Result<Self> {
        let span = string.span();
        if string.get_ref().trim().is_empty() {
            return Err(file
                .error(span.start, "the text is empty")
                .hint("say what the model is to do"));
        }
        let pieces = split(string.get_ref()).map_err(|Unclosed(at)| {
            file.error(file.in_string(&span, at), "unclosed `${`")
                .hint("close the expression; write `$${` for the text `${`")
        })?;
        Ok(Self { pieces, span })
    }

    pub(super) fn literals(&self) -> impl Iterator<Item = &Literal> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Literal(literal) => Some(literal),
            Piece::Expr { .. } => None,
        })
    }

    /// Maps byte `offset` of the text's source to a byte offset in the file.
    pub(super) fn in_file(&self, file: &SourceFile, offset: usize) -> usize {
        file.in_string(&self.span, offset)
    }
}

/// Checks a name, which may occur in records, file names and `key=value` lines.
pub(super) fn check_name(file: &SourceFile, name: &Spanned<String>, key: &str) -> Result<()> {
    let text = name.get_ref();
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    if text.starts_with(first) && text.chars().all(allowed) && text.len() <= 64 {
        return Ok(());
    }
    let what = format!("`{}` cannot be a {key}", text.escape_debug());
    Err(file.error(name.span().start, what).hint(
        "use letters, digits, `_` and `-`, starting with a letter or `_`; at most 64 characters",
    ))
}
