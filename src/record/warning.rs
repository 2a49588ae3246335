//! Warnings: why a run's figures prove less than they seem to.

use serde::{Deserialize, Serialize};

/// A warning does not change the run's status or exit code.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Warning {
    /// Identifier for programs, such as `answers_empty`; `docs/report.md` lists them.
    pub code: String,
    /// A sentence without a full stop.
    pub text: String,
    /// The figures behind it: `3 of 25 answers`.
    pub evidence: String,
}

impl std::fmt::Display for Warning {
    /// `text (evidence)`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.evidence.is_empty() {
            true => f.write_str(&self.text),
            false => write!(f, "{} ({})", self.text, self.evidence),
        }
    }
}
