//! Checks an answer against the expected one. Whatever can be decided exactly is decided here; for the
//! rest this module builds the question that [`super::Verifier`] puts to a library.
//!
//! A verdict requires that both texts were parsed completely. Numbers are compared as exact fractions,
//! words as words, and lists, sets, tuples and matrices element by element.

mod boxes;
mod compare;
mod expression;
mod normal;
mod numeral;
pub mod plain;
mod shape;
mod units;
mod words;

use serde::{Deserialize, Serialize};

pub use boxes::{given_answer, last_boxed};
pub(super) use compare::{Finding, examine};

/// The result of comparing two answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Both mean the same.
    Equal,
    /// They mean different things.
    Unequal,
    /// A side was not parsed completely, or is ambiguous. It takes a computer algebra system or a judge.
    Undecided,
}

/// The record name of an undecided outcome.
pub const UNDECIDED: &str = "undecided";

/// The longest text accepted as an answer (bytes). A longer one is wrong, unless the expected answer is
/// about as long.
pub const LONGEST_ANSWER: usize = 2000;

impl Verdict {
    /// Converts a judge's verdict.
    pub fn of(same: Option<bool>) -> Self {
        match same {
            Some(true) => Self::Equal,
            Some(false) => Self::Unequal,
            None => Self::Undecided,
        }
    }

    /// The verdict with this name in a record; undecided if it has none.
    pub fn named(name: Option<&str>) -> Self {
        match name {
            Some("equal") => Self::Equal,
            Some("unequal") => Self::Unequal,
            _ => Self::Undecided,
        }
    }

    /// The inverse of [`Self::of`].
    pub fn same(self) -> Option<bool> {
        match self {
            Self::Equal => Some(true),
            Self::Unequal => Some(false),
            Self::Undecided => None,
        }
    }

    /// The name used in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Unequal => "unequal",
            Self::Undecided => UNDECIDED,
        }
    }

    /// 1 for a right answer, 0 for a wrong one, `None` if undecided.
    pub fn score(self) -> Option<f64> {
        match self {
            Self::Equal => Some(1.0),
            Self::Unequal => Some(0.0),
            Self::Undecided => None,
        }
    }
}

/// Compares two answers without a library.
pub fn compare(answer: &str, expected: &str) -> Verdict {
    match examine(answer, expected) {
        Finding::Known(verdict, _) => verdict,
        Finding::Open(_) | Finding::Ask(_) => Verdict::Undecided,
    }
}

#[cfg(test)]
mod tests;
