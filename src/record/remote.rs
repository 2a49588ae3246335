//! What went over the wire in `MODE=remote`: attempts, what went wrong with them, and how far the
//! server's token counts can be trusted.

use serde::{Deserialize, Serialize};

use crate::units::Millis;

/// Calls to the server, summed over the run, with all that failed and was made again.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RemoteRecord {
    /// Requests of steps.
    pub requests: usize,
    /// Calls that were made for them.
    pub attempts: usize,
    /// Those of them that were not the first of their request.
    pub retries: usize,
    /// Calls at the start of the engine (`GET /models`), those that failed included.
    pub start_attempts: usize,
    /// Requests that failed after their last attempt.
    pub failed_requests: usize,
    /// Time that requests waited before another attempt, summed.
    pub backoff_ms: Millis,
    /// Attempts that found no connection.
    pub connect_failures: usize,
    /// Attempts that ran into a time-out: connection, first token, next token, whole request.
    pub timeouts: usize,
    /// Attempts that the server put off (429).
    pub rate_limited: usize,
    /// Attempts that ended in an error of the server (408, 5xx, an error within the stream, an ending
    /// that is not known to be a good one).
    pub server_errors: usize,
    /// Attempts whose connection or stream ended before the answer did.
    pub cut_off: usize,
    /// Attempts that the server refused for good (other 4xx, redirects).
    pub refused: usize,
    /// Attempts whose answer could not be understood.
    pub malformed: usize,
    /// Streamed chunks of attempts that were cut off and made again: generated, and thrown away.
    pub discarded_chunks: usize,
    /// Answers without a `usage` that counts their tokens, or with one of zeros: they are counted as
    /// chunks, and those of their prompts by the local tokenizer, or not at all (0).
    pub without_usage: usize,
    /// Answers whose `usage` was compared with the local tokenizer's counts.
    pub checked: usize,
    /// Those of them with another number of prompt tokens.
    pub prompt_mismatches: usize,
    /// Those of them with another number of generated tokens. One more or less is none: servers count
    /// the token that ends the turn, or do not.
    pub decode_mismatches: usize,
    /// The first mismatch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_mismatch: Option<UsageMismatch>,
}

/// Two counts of the same tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct UsageMismatch {
    /// Number of the flow, from 1.
    pub flow: usize,
    /// The step's id.
    pub step: String,
    /// `prompt` or `decode`.
    pub tokens: String,
    /// What the server said.
    pub usage: usize,
    /// What the local tokenizer says.
    pub tokenizer: usize,
}

impl RemoteRecord {
    /// Adds the calls of another engine, or of another machine.
    pub fn add(&mut self, other: &Self) {
        let Self {
            requests,
            attempts,
            retries,
            start_attempts,
            failed_requests,
            backoff_ms,
            connect_failures,
            timeouts,
            rate_limited,
            server_errors,
            cut_off,
            refused,
            malformed,
            discarded_chunks,
            without_usage,
            checked,
            prompt_mismatches,
            decode_mismatches,
            first_mismatch,
        } = other;
        self.requests += requests;
        self.attempts += attempts;
        self.retries += retries;
        self.start_attempts += start_attempts;
        self.failed_requests += failed_requests;
        self.backoff_ms = self.backoff_ms + *backoff_ms;
        self.connect_failures += connect_failures;
        self.timeouts += timeouts;
        self.rate_limited += rate_limited;
        self.server_errors += server_errors;
        self.cut_off += cut_off;
        self.refused += refused;
        self.malformed += malformed;
        self.discarded_chunks += discarded_chunks;
        self.without_usage += without_usage;
        self.checked += checked;
        self.prompt_mismatches += prompt_mismatches;
        self.decode_mismatches += decode_mismatches;
        if self.first_mismatch.is_none() {
            self.first_mismatch.clone_from(first_mismatch);
        }
    }
}
