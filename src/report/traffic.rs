//! Output lines and warnings about requests to a server.

use crate::record::remote::RemoteRecord;
use crate::units::plural;

/// `[REMOTE] requests=… attempts=… retries=… …`, with a count per kind of failure.
pub fn line(remote: &RemoteRecord) -> String {
    format!(
        "[REMOTE] requests={} attempts={} retries={} failed_requests={} backoff_ms={} \
         connect_failures={} timeouts={} rate_limited={} server_errors={} cut_off={} refused={} \
         malformed={} discarded_chunks={} without_usage={} checked={} usage_mismatches={}",
        remote.requests,
        remote.attempts,
        remote.retries,
        remote.failed_requests,
        remote.backoff_ms,
        remote.connect_failures,
        remote.timeouts,
        remote.rate_limited,
        remote.server_errors,
        remote.cut_off,
        remote.refused,
        remote.malformed,
        remote.discarded_chunks,
        remote.without_usage,
        remote.checked,
        remote.prompt_mismatches + remote.decode_mismatches,
    )
}

/// Warnings about unreliable token counts.
pub fn warnings(remote: &RemoteRecord) -> Vec<String> {
    let mut warnings = Vec::new();
    if remote.without_usage > 0 {
        warnings.push(format!(
            "The server sent no usage with {}, or usage without token counts: generated tokens are \
             counted as streamed chunks, prompt tokens by TOKENIZER if given, otherwise as 0",
            plural(remote.without_usage, "answer")
        ));
    }
    if let Some(first) = &remote.first_mismatch {
        warnings.push(format!(
            "The server's usage and the local tokenizer disagree: on the prompts of {} and \
             the answers of {} of {}; first in flow {}, step {}: {} {} tokens by usage, {} \
             by the tokenizer",
            remote.prompt_mismatches,
            remote.decode_mismatches,
            plural(remote.checked, "request"),
            first.flow,
            first.step,
            first.usage,
            first.tokens,
            first.tokenizer
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::remote::UsageMismatch;

    #[test]
    fn the_line_counts_every_kind_of_failure() {
        let remote = RemoteRecord {
            requests: 75,
            attempts: 78,
            retries: 3,
            rate_limited: 2,
            cut_off: 1,
            discarded_chunks: 9,
            ..RemoteRecord::default()
        };
        insta::assert_snapshot!(line(&remote), @"[REMOTE] requests=75 attempts=78 retries=3 failed_requests=0 backoff_ms=0.00 connect_failures=0 timeouts=0 rate_limited=2 server_errors=0 cut_off=1 refused=0 malformed=0 discarded_chunks=9 without_usage=0 checked=0 usage_mismatches=0");
        assert!(warnings(&remote).is_empty());
    }

    #[test]
    fn unreliable_counts_are_warned_about() {
        let remote = RemoteRecord {
            without_usage: 2,
            checked: 9,
            prompt_mismatches: 4,
            first_mismatch: Some(UsageMismatch {
                flow: 3,
                step: "planner".to_owned(),
                tokens: "prompt".to_owned(),
                usage: 753,
                tokenizer: 752,
            }),
            ..RemoteRecord::default()
        };
        insta::assert_snapshot!(warnings(&remote).join("\n"), @r"
        The server sent no usage with 2 answers, or usage without token counts: generated tokens are counted as streamed chunks, prompt tokens by TOKENIZER if given, otherwise as 0
        The server's usage and the local tokenizer disagree: on the prompts of 4 and the answers of 0 of 9 requests; first in flow 3, step planner: 753 prompt tokens by usage, 752 by the tokenizer
        ");
    }
}
