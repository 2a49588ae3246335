//! Counters of requests, attempts and failures.

use std::collections::HashMap;
use std::time::Duration;

use super::failure::Cause;
use super::tokens::Counts;
use crate::engine::{Origin, RequestId};
use crate::record::remote::{RemoteRecord, UsageMismatch};
use crate::units::Millis;

/// The server's token counts of an answer, to be compared with the local tokenizer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    /// Tokens of the prompt.
    pub(super) prompt: Option<usize>,
    /// Tokens of the answer's text without thoughts; `None` if they cannot be separated.
    pub(super) answer: Option<usize>,
}

#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) record: RemoteRecord,
    /// Answers whose `usage` is to be compared with the tokenizer's counts, in the order in which
    /// they finished.
    usages: Vec<(RequestId, Origin, Usage)>,
}

impl Traffic {
    pub(super) fn new(start_attempts: usize) -> Self {
        Self {
            record: RemoteRecord {
                start_attempts,
                ..RemoteRecord::default()
            },
            usages: Vec::new(),
        }
    }

    /// Counts the start of an attempt. `number` is 1-based.
    pub(super) fn attempt(&mut self, number: usize) {
        self.record.attempts += 1;
        self.record.retries += usize::from(number > 1);
    }

    /// Counts a failed attempt that had received `chunks` chunks.
    pub(super) fn failed(&mut self, cause: Cause, chunks: usize) {
        *cause.counter(&mut self.record) += 1;
        self.record.discarded_chunks += chunks;
    }

    /// Counts the wait before a request's next attempt.
    pub(super) fn waits(&mut self, time: Duration) {
        self.record.backoff_ms = self.record.backoff_ms + Millis::from(time);
    }

    /// Keeps the server's counts until the tokenizer's are known.
    pub(super) fn compare_later(&mut self, id: RequestId, origin: Origin, usage: Usage) {
        self.usages.push((id, origin, usage));
    }

    /// Returns the counts so far and resets them.
    pub(super) fn take(&mut self, counts: HashMap<RequestId, Counts>) -> RemoteRecord {
        let mut record = std::mem::take(&mut self.record);
        for (id, origin, usage) in std::mem::take(&mut self.usages) {
            if let Some(counts) = counts.get(&id) {
                compare(&mut record, &origin, usage, *counts);
            }
        }
        record
    }
}

/// Compares the server's counts with the tokenizer's.
fn compare(record: &mut RemoteRecord, origin: &Origin, usage: Usage, counts: Counts) {
    record.checked += usize::from(counts.prompt.is_some() || counts.answer.is_some());
    let differing = |usage: Option<usize>, local: Option<usize>, most: usize| {
        let both = usage.zip(local);
        both.filter(|(usage, local)| local.abs_diff(*usage) > most)
    };
    let prompt = differing(usage.prompt, counts.prompt, 0);
    let decode = differing(usage.answer, counts.answer, 1);
    record.prompt_mismatches += usize::from(prompt.is_some());
    record.decode_mismatches += usize::from(decode.is_some());
    let first = |tokens: &str, (usage, local): (usize, usize)| UsageMismatch {
        flow: origin.flow,
        step: origin.step.clone(),
        tokens: tokens.to_owned(),
        usage,
        tokenizer: local,
    };
    if record.first_mismatch.is_none() {
        record.first_mismatch = (prompt.map(|both| first("prompt", both)))
            .or_else(|| decode.map(|both| first("decode", both)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attempt_but_the_first_is_a_retry() {
        let mut traffic = Traffic::new(1);
        for number in [1, 2, 3, 1] {
            traffic.attempt(number);
        }
        traffic.failed(Cause::CutOff, 5);
        traffic.failed(Cause::CutOff, 0);
        let record = traffic.take(HashMap::new());
        assert_eq!((record.attempts, record.retries), (4, 2));
        assert_eq!((record.cut_off, record.discarded_chunks), (2, 5));
        assert_eq!(record.start_attempts, 1);
        // Counts are returned only once.
        assert_eq!(traffic.take(HashMap::new()), RemoteRecord::default());
    }

    #[test]
    fn mismatched_counts_are_reported_with_both_numbers() {
        let usage = |prompt, answer| Usage {
            prompt: Some(prompt),
            answer: Some(answer),
        };
        let mut traffic = Traffic::new(1);
        let origin = |flow| Origin {
            flow,
            step: "s".to_owned(),
            ..Origin::default()
        };
        let counts = |prompt, answer| Counts {
            prompt: Some(prompt),
            answer: Some(answer),
        };
        let cases = [
            // One more decoded token is the one that ends the turn.
            (usage(10, 5), counts(10, 4)),
            (usage(10, 5), counts(10, 3)),
            (usage(10, 5), counts(11, 5)),
            (usage(10, 5), Counts::default()),
        ];
        let mut all = HashMap::new();
        for (number, (usage, counts)) in cases.into_iter().enumerate() {
            let id = RequestId(number as u64);
            traffic.compare_later(id, origin(number), usage);
            all.insert(id, counts);
        }
        let record = traffic.take(all);
        assert_eq!(record.checked, 3);
        assert_eq!((record.prompt_mismatches, record.decode_mismatches), (1, 1));
        let first = record.first_mismatch.expect("two");
        assert_eq!((first.flow, first.tokens.as_str()), (1, "decode"));
        assert_eq!((first.usage, first.tokenizer), (5, 3));
    }
}
