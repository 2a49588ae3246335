//! From how a child ended and what it wrote to an outcome.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use serde::Deserialize;
use serde_json::Value;

use super::evaluation::{Outcome, Score};
use super::protocol;

/// The outcome with its score or with what went wrong.
#[derive(Debug, PartialEq)]
pub(super) struct Verdict {
    pub(super) outcome: Outcome,
    pub(super) score: Option<f64>,
    pub(super) detail: String,
}

impl Verdict {
    pub(super) fn failed(outcome: Outcome, detail: impl Into<String>) -> Self {
        Self {
            outcome,
            score: None,
            detail: detail.into(),
        }
    }
}

/// Why the pool killed a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Killed {
    /// It ran past its deadline.
    Deadline,
    /// It did not get as far as its program.
    StartUp,
    /// Nobody waits for it any more.
    GivenUp,
    /// It wrote more than a result may have.
    Flood,
}

/// What a child writes after the time of its start. A program could write it itself: it says nothing that is not
/// checked, and claims no more than the program may return.
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

/// How a child ended. `cpu_spent`: it used up the processor time that it may have.
pub(super) fn of_ended(status: i32, cpu_spent: bool, output: &[u8], score: Score) -> Verdict {
    let status = ExitStatus::from_raw(status);
    let Some(signal) = status.signal() else {
        return of_output(status, output, score);
    };
    match signal {
        libc::SIGSYS => Verdict::failed(
            Outcome::Denied,
            "ended at a system call that the sandbox forbids (SIGSYS)",
        ),
        libc::SIGXCPU | libc::SIGKILL if cpu_spent => {
            Verdict::failed(Outcome::Timeout, "used up its processor time")
        }
        // Nobody here sends it then; the kernel does when memory runs out.
        libc::SIGKILL => Verdict::failed(Outcome::Oom, "killed by the kernel, out of memory"),
        _ => Verdict::failed(Outcome::Crashed, format!("ended by {status}")),
    }
}

fn of_output(status: ExitStatus, output: &[u8], score: Score) -> Verdict {
    let Some((_, reply)) = protocol::begun(output) else {
        // `F` and what failed.
        let said = String::from_utf8_lossy(output.get(1..).unwrap_or_default());
        let why = format!("the program was not started: {said}");
        return Verdict::failed(Outcome::InfraError, why);
    };
    if reply.is_empty() {
        let why = format!("left before it returned ({status})");
        return Verdict::failed(Outcome::Crashed, why);
    }
    let reply: Reply = match serde_json::from_slice(reply) {
        Ok(reply) => reply,
        Err(error) => return Verdict::failed(Outcome::BadOutput, format!("no JSON: {error}")),
    };
    let outcome = match reply.raised {
        None => return of_returned(&reply.returned, score),
        Some(Raised::RuntimeError) => Outcome::RuntimeError,
        Some(Raised::Denied) => Outcome::Denied,
        Some(Raised::Oom) => Outcome::Oom,
        Some(Raised::BadOutput) => Outcome::BadOutput,
    };
    Verdict::failed(outcome, reply.message)
}

fn of_returned(returned: &Value, score: Score) -> Verdict {
    match score(returned) {
        Ok(score) if score.is_finite() => Verdict {
            outcome: Outcome::Ok,
            score: Some(score),
            detail: String::new(),
        },
        Ok(score) => Verdict::failed(Outcome::Invalid, format!("a score of {score}")),
        Err(why) => Verdict::failed(Outcome::Invalid, why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(returned: &Value) -> Result<f64, String> {
        returned.as_f64().ok_or_else(|| "no number".to_owned())
    }

    fn outcome(status: i32, output: &str) -> Outcome {
        let output = output.replacen('S', "S12345678", 1);
        of_ended(status, false, output.as_bytes(), number).outcome
    }

    #[test]
    fn exits_are_told_by_what_was_written() {
        assert_eq!(outcome(0, r#"S{"returned": 2.5}"#), Outcome::Ok);
        assert_eq!(outcome(0, r#"S{"returned": "x"}"#), Outcome::Invalid);
        assert_eq!(outcome(0, r#"S{"returned": 1e999}"#), Outcome::BadOutput);
        assert_eq!(outcome(0, r#"S{"returned": NaN}"#), Outcome::BadOutput);
        assert_eq!(outcome(0, r#"S{"retur"#), Outcome::BadOutput);
        assert_eq!(outcome(0, r#"S{"raised": "oom"}"#), Outcome::Oom);
        assert_eq!(outcome(0, r#"S{"raised": "ok"}"#), Outcome::BadOutput);
        assert_eq!(outcome(0, "S"), Outcome::Crashed);
        assert_eq!(outcome(3 << 8, "S"), Outcome::Crashed);
        assert_eq!(outcome(1 << 8, ""), Outcome::InfraError);
        for written in [&b"FSystemError: x"[..], b"S", b"S1234567"] {
            let verdict = of_ended(1 << 8, false, written, number);
            assert_eq!(verdict.outcome, Outcome::InfraError, "{verdict:?}");
        }
        let deep = format!("S{{\"returned\": {}", "[".repeat(100_000));
        assert_eq!(outcome(0, &deep), Outcome::BadOutput);
    }

    #[test]
    fn signals_are_told_whatever_was_written() {
        let written = r#"S{"returned": 2.5}"#;
        assert_eq!(outcome(libc::SIGSYS, written), Outcome::Denied);
        assert_eq!(outcome(libc::SIGSEGV, written), Outcome::Crashed);
        assert_eq!(outcome(libc::SIGKILL, written), Outcome::Oom);
        let spent = of_ended(libc::SIGXCPU, true, b"S", number);
        assert_eq!(spent.outcome, Outcome::Timeout);
    }
}
