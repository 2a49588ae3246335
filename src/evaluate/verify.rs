//! Checking an answer against the known one: what can be decided exactly is decided here, and for the
//! rest it is worked out what a library has to be asked. [`super::Verifier`] asks it.
//!
//! A verdict is only given where the whole text of both sides was read. Numbers are compared as exact
//! fractions, words as words, lists, sets, tuples and matrices part by part.

mod boxes;
mod compare;
mod expression;
mod normal;
mod numeral;
mod shape;
mod units;
mod words;

use serde::{Deserialize, Serialize};

pub use boxes::{given_answer, last_boxed};
pub(super) use compare::{Finding, examine};

/// What came of comparing two answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Both say the same.
    Equal,
    /// They say different things.
    Unequal,
    /// Not decided: a side was not understood as a whole, or can be read in several ways. It needs a checker
    /// that knows mathematics, or a judge.
    Undecided,
}

/// The outcome of what is not decided, as records name it.
pub const UNDECIDED: &str = "undecided";

/// The longest text that may be an answer (bytes). What is longer is wrong, unless the expected answer is
/// about as long.
pub const LONGEST_ANSWER: usize = 2000;

impl Verdict {
    /// What a judge has said.
    pub fn of(same: Option<bool>) -> Self {
        match same {
            Some(true) => Self::Equal,
            Some(false) => Self::Unequal,
            None => Self::Undecided,
        }
    }

    /// Its name in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Unequal => "unequal",
            Self::Undecided => UNDECIDED,
        }
    }

    /// 1 for a right answer, 0 for a wrong one; none where that is not known.
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
