//! Calls to the server of `MODE=remote`: attempts, failures, and how far the server's token counts agree with
//! those of the local tokenizer.

use serde::{Deserialize, Serialize};

use crate::units::Millis;

/// Calls to the server over the whole run, including failures and retries.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RemoteRecord {
    /// Requests of steps.
    pub requests: usize,
    /// Calls made for them.
    pub attempts: usize,
    /// Attempts that were not the first of their request.
    pub retries: usize,
    /// Calls at the start of the engine (`GET /models`), including failures.
    pub start_attempts: usize,
    /// Requests that failed after their last attempt.
    pub failed_requests: usize,
    /// Total wait of requests between attempts.
    pub backoff_ms: Millis,
    /// Attempts that found no connection.
    pub connect_failures: usize,
    /// Attempts that timed out: connection, first token, next token, whole request.
    pub timeouts: usize,
    /// Attempts that were rate-limited (429).
    pub rate_limited: usize,
    /// Attempts with a server error: 408, 5xx, an error within the stream, or an unknown finish reason.
    pub server_errors: usize,
    /// Attempts whose connection or stream ended before the answer.
    pub cut_off: usize,
    /// Attempts with a permanent error (other 4xx, redirects).
    pub refused: usize,
    /// Attempts whose answer could not be parsed.
    pub malformed: usize,
    /// Streamed chunks of failed attempts that were retried: generated and discarded.
    pub discarded_chunks: usize,
    /// Answers without token counts in `usage`: generated tokens are counted as chunks, and prompt tokens by
    /// the local tokenizer or not at all (0).
    pub without_usage: usize,
    /// Answers whose `usage` was compared with the local tokenizer's counts.
    pub checked: usize,
    /// Compared answers with a different number of prompt tokens.
    pub prompt_mismatches: usize,
    /// Compared answers with a different number of generated tokens. A difference of one is ignored: servers
    /// may or may not count the token that ends the turn.
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
    /// The server's count.
    pub usage: usize,
    /// The local tokenizer's count.
    pub tokenizer: usize,
}

impl RemoteRecord {
    /// Adds the calls of another engine or machine.
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
