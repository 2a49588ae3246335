//! What is asked of an evaluation, and what comes of it.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Names an evaluation from its submission to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EvaluationId(pub(crate) u64);

/// Turns what a program returned into a score, or says why it is no solution.
pub type Score = fn(&Value) -> Result<f64, String>;

/// A program to be run and scored.
#[derive(Debug, Clone)]
pub struct Request {
    /// The program, in Python.
    pub code: String,
    /// The function to call: the first of these that the program defines.
    pub entry_points: Vec<String>,
    /// What it is called with; empty for no arguments. They reach the program as JSON data.
    pub arguments: Vec<Value>,
    /// What Python's and numpy's random numbers start from.
    pub seed: u64,
    /// How long the program may run, from its first line to what it returns.
    pub deadline: Duration,
    /// How what it returns is scored; such as [`super::packing::score`].
    pub score: Score,
}

/// How an evaluation ended. All but `Ok` come without a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The program returned a solution.
    Ok,
    /// It returned data which are no solution.
    Invalid,
    /// It raised an exception, did not compile, or defines no entry point.
    RuntimeError,
    /// It was killed at its deadline.
    Timeout,
    /// It asked for more memory than it may have.
    Oom,
    /// It was ended by a signal, or left without a word.
    Crashed,
    /// It tried what the sandbox forbids.
    Denied,
    /// What it returned is no plain data, not finite, or too long.
    BadOutput,
    /// The machinery failed, not the program; never to be counted as a score of 0.
    InfraError,
}

impl Outcome {
    /// All of them, in the order in which people are shown them.
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

    /// Its name in records, as `runtime_error`.
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

/// Where an evaluation's time went. All but `waited` and `run` is overhead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// From the submission until a place was free and the zygote was asked.
    pub waited: Duration,
    /// From then until the program's first line: fork and sandbox.
    pub start_up: Duration,
    /// The program: from its first line until its result had arrived, or until it was killed.
    pub run: Duration,
    /// From then until the process was gone and waited for.
    pub stop: Duration,
    /// Parsing and scoring of what it returned.
    pub validate: Duration,
    /// Processor time of the child, fork and sandbox included, as the kernel counted it.
    pub cpu: Duration,
}

impl Times {
    /// What the evaluation took above the program's own time.
    pub fn overhead(&self) -> Duration {
        self.start_up + self.stop + self.validate
    }
}

/// A finished evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// Which one.
    pub id: EvaluationId,
    /// How it ended.
    pub outcome: Outcome,
    /// The score, where the outcome is `Ok`; finite.
    pub score: Option<f64>,
    /// What went wrong, for people and for a model that is to do better; empty where the outcome is
    /// `Ok`. It may quote the program's own words.
    pub detail: String,
    /// Where the time went, in the last attempt.
    pub times: Times,
    /// How often it was started: 2 where the zygote died under the first.
    pub attempts: u32,
    /// Where it was killed at its deadline: how much later the process was gone.
    pub killed_after: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_have_one_name_for_people_and_records() {
        for outcome in Outcome::ALL {
            let name = Value::from(outcome.as_str());
            assert_eq!(serde_json::to_value(outcome).unwrap(), name);
            assert_eq!(serde_json::from_value::<Outcome>(name).unwrap(), outcome);
            assert_eq!(format!("{outcome:>13}").len(), 13);
        }
    }
}
