//! Maps how a child ended and what it wrote to an outcome.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use serde::Deserialize;
use serde_json::Value;

use super::evaluation::{Outcome, Score};

/// Maximum characters kept of a program's own text, which is displayed, recorded, and put into prompts.
const LONGEST_DETAIL: usize = 2000;

/// The outcome, with a score or an explanation.
#[derive(Debug, PartialEq)]
pub(super) struct ProgramVerdict {
    pub(super) outcome: Outcome,
    pub(super) score: Option<f64>,
    pub(super) detail: String,
}

impl ProgramVerdict {
    /// `detail` may contain arbitrarily long output of the program; it is truncated.
    pub(super) fn failed(outcome: Outcome, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        if let Some((end, _)) = detail.char_indices().nth(LONGEST_DETAIL) {
            detail.truncate(end);
        }
        Self {
            outcome,
            score: None,
            detail,
        }
    }
}

/// Why the pool killed a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Killed {
    /// It ran past its deadline.
    Deadline,
    /// It was cancelled.
    GivenUp,
    /// It wrote more than the longest result.
    Flood,
    /// It had too many threads.
    Threads,
}

/// What a child writes after its program has started. The program could have forged it, so every field is
/// validated and grants nothing that a return value would not.
#[derive(Debug, Deserialize)]
struct Reply {
    #[serde(default)]
    returned: Value,
    raised: Option<Raised>,
    #[serde(default)]
    message: String,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Raised {
    RuntimeError,
    Denied,
    Oom,
    BadOutput,
}

/// Judges a child whose program had started. `cpu_spent`: it used up its CPU time limit.
pub(super) fn of_ended(
    status: i32,
    cpu_spent: bool,
    output: &[u8],
    score: Score,
) -> ProgramVerdict {
    let status = ExitStatus::from_raw(status);
    let Some(signal) = status.signal() else {
        if output.is_empty() {
            let why = format!("exited before it returned ({status})");
            return ProgramVerdict::failed(Outcome::Crashed, why);
        }
        return of_output(output, score);
    };
    match signal {
        libc::SIGSYS => ProgramVerdict::failed(
            Outcome::Denied,
            "killed for a system call that the sandbox forbids (SIGSYS)",
        ),
        libc::SIGXCPU | libc::SIGKILL if cpu_spent => {
            ProgramVerdict::failed(Outcome::Timeout, "used up its CPU time")
        }
        // The pool did not send it, so it came from the kernel's out-of-memory killer.
        libc::SIGKILL => {
            ProgramVerdict::failed(Outcome::Oom, "killed by the kernel, out of memory")
        }
        _ => ProgramVerdict::failed(Outcome::Crashed, format!("ended by {status}")),
    }
}

/// Judges a program by its output.
pub(super) fn of_output(output: &[u8], score: Score) -> ProgramVerdict {
    let reply: Reply = match serde_json::from_slice(output) {
        Ok(reply) => reply,
        Err(error) => {
            return ProgramVerdict::failed(Outcome::BadOutput, format!("bad JSON: {error}"));
        }
    };
    let outcome = match reply.raised {
        None => return of_returned(&reply.returned, score),
        Some(Raised::RuntimeError) => Outcome::RuntimeError,
        Some(Raised::Denied) => Outcome::Denied,
        Some(Raised::Oom) => Outcome::Oom,
        Some(Raised::BadOutput) => Outcome::BadOutput,
    };
    ProgramVerdict::failed(outcome, reply.message)
}

fn of_returned(returned: &Value, score: Score) -> ProgramVerdict {
    match score(returned) {
        Ok(score) if score.is_finite() => ProgramVerdict {
            outcome: Outcome::Ok,
            score: Some(score),
            detail: String::new(),
        },
        Ok(score) => {
            ProgramVerdict::failed(Outcome::Invalid, format!("the score {score} is not finite"))
        }
        Err(why) => ProgramVerdict::failed(Outcome::Invalid, why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(returned: &Value) -> Result<f64, String> {
        returned.as_f64().ok_or_else(|| "no number".to_owned())
    }

    fn outcome(status: i32, output: &str) -> Outcome {
        of_ended(status, false, output.as_bytes(), number).outcome
    }

    #[test]
    fn an_exit_is_judged_by_the_output() {
        assert_eq!(outcome(0, r#"{"returned": 2.5}"#), Outcome::Ok);
        assert_eq!(outcome(0, r#"{"returned": "x"}"#), Outcome::Invalid);
        assert_eq!(outcome(0, r#"{"returned": 1e999}"#), Outcome::BadOutput);
        assert_eq!(outcome(0, r#"{"returned": NaN}"#), Outcome::BadOutput);
        assert_eq!(outcome(0, r#"{"retur"#), Outcome::BadOutput);
        assert_eq!(outcome(0, r#"{"raised": "oom"}"#), Outcome::Oom);
        assert_eq!(outcome(0, r#"{"raised": "ok"}"#), Outcome::BadOutput);
        assert_eq!(outcome(0, ""), Outcome::Crashed);
        assert_eq!(outcome(3 << 8, ""), Outcome::Crashed);
        // The child's marks are meaningless after the program has started.
        for written in ["Fno disk", "S\x01\0\0\0", "S"] {
            assert_eq!(outcome(1 << 8, written), Outcome::BadOutput);
        }
        let deep = format!("{{\"returned\": {}", "[".repeat(100_000));
        assert_eq!(outcome(0, &deep), Outcome::BadOutput);
    }

    #[test]
    fn a_fatal_signal_overrides_the_output() {
        let written = r#"{"returned": 2.5}"#;
        assert_eq!(outcome(libc::SIGSYS, written), Outcome::Denied);
        assert_eq!(outcome(libc::SIGSEGV, written), Outcome::Crashed);
        assert_eq!(outcome(libc::SIGKILL, written), Outcome::Oom);
        let spent = of_ended(libc::SIGXCPU, true, b"", number);
        assert_eq!(spent.outcome, Outcome::Timeout);
    }

    #[test]
    fn details_quoting_a_program_are_truncated() {
        let long = "ü".repeat(500_000);
        for output in [
            format!(r#"{{"raised": "runtime_error", "message": "{long}"}}"#),
            // The parser's own error message quotes unknown values.
            format!(r#"{{"raised": "{long}"}}"#),
            format!(r#"{{"returned": "{long}"}}"#),
        ] {
            let echo: Score = |returned| Err(returned.to_string());
            let detail = of_ended(0, false, output.as_bytes(), echo).detail;
            assert_eq!(detail.chars().count(), LONGEST_DETAIL);
        }
    }
}
