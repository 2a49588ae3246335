//! The request for an evaluation and its result.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Identifies an evaluation from its submission to its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EvaluationId(pub(crate) u64);

/// Converts the return value of a program to a score, or explains why it is not a solution.
pub type Score = fn(&Value) -> Result<f64, String>;

#[derive(Debug, Clone)]
pub struct Request {
    /// Python source code.
    pub code: String,
    /// Names of the function to call; the first one that the program defines is used.
    pub entry_points: Vec<String>,
    /// Arguments of the call, possibly none. They reach the program as JSON data.
    pub arguments: Vec<Value>,
    /// Seed of Python's and numpy's random number generators.
    pub seed: u64,
    /// Time limit of the program, from its first line to its return value.
    pub deadline: Duration,
    /// Scores the return value, for example [`super::packing::score`].
    pub score: Score,
}

/// How an evaluation ended. Only `Ok` has a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The program returned a solution.
    Ok,
    /// It returned data that is not a solution.
    Invalid,
    /// It raised an exception, did not compile, or defines no entry point.
    RuntimeError,
    /// It was killed at its deadline.
    Timeout,
    /// It exceeded its memory limit.
    Oom,
    /// It died from a signal, or exited without a result.
    Crashed,
    /// It attempted something that the sandbox forbids.
    Denied,
    /// Its return value is not plain data, not finite, or too long.
    BadOutput,
    /// The machinery failed, not the program. Must never count as a score of 0.
    InfraError,
}

impl Outcome {
    /// In display order.
    pub const ALL: [Self; 9] = [
        Self::Ok,
        Self::Invalid,
        Self::RuntimeError,
        Self::Timeout,
        Self::Oom,
        Self::Crashed,
        Self::Denied,
        Self::BadOutput,
        Self::InfraError,
    ];

    /// The name used in records, such as `runtime_error`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Invalid => "invalid",
            Self::RuntimeError => "runtime_error",
            Self::Timeout => "timeout",
            Self::Oom => "oom",
            Self::Crashed => "crashed",
            Self::Denied => "denied",
            Self::BadOutput => "bad_output",
            Self::InfraError => "infra_error",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

/// Where an evaluation's time went. Everything except `waited` and `run` is overhead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// From submission until a slot was free and the zygote was asked to fork.
    pub waited: Duration,
    /// From then until the program's first line: fork and sandbox.
    pub start_up: Duration,
    /// The program: from its first line until its result had arrived or it was killed.
    pub run: Duration,
    /// From then until the process had exited and been reaped.
    pub stop: Duration,
    /// Parsing and scoring of the return value.
    pub validate: Duration,
    /// CPU time of the child as counted by the kernel, including fork and sandbox.
    pub cpu: Duration,
}

impl Times {
    /// Everything the evaluation took beyond the program's own time.
    pub fn overhead(&self) -> Duration {
        self.start_up + self.stop + self.validate
    }
}

/// A finished evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    pub id: EvaluationId,
    pub outcome: Outcome,
    /// Present if the outcome is `Ok`; finite.
    pub score: Option<f64>,
    /// What went wrong, for people and for a model that is to improve its program; empty if the outcome is
    /// `Ok`. It may quote the program's own output.
    pub detail: String,
    /// Times of the last attempt.
    pub times: Times,
    /// How often it was started: 2 if the zygote died during the first attempt.
    pub attempts: u32,
    /// If it was killed at its deadline: how long after the deadline the process was gone.
    pub killed_after: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_have_the_same_name_in_display_and_in_records() {
        for outcome in Outcome::ALL {
            let name = Value::from(outcome.as_str());
            assert_eq!(serde_json::to_value(outcome).unwrap(), name);
            assert_eq!(serde_json::from_value::<Outcome>(name).unwrap(), outcome);
            assert_eq!(format!("{outcome:>13}").len(), 13);
        }
    }
}
