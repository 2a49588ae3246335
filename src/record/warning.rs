//! What makes a run's figures prove less than they seem to.

use serde::{Deserialize, Serialize};

/// A warning. The run is still complete, and its exit code is 0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Warning {
    /// Names it for programs: `answers_empty`. The list is in `docs/report.md`.
    pub code: String,
    /// What it means, in a sentence without a full stop.
    pub text: String,
    /// The figures that say so: `3 of 25 answers`.
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
