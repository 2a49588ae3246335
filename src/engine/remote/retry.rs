//! When a request is retried.

use std::time::Duration;

use super::failure::Failure;
use crate::config::RetryPolicy;

/// Upper bound of the exponential backoff.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// What to do after a failed attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RetryDecision {
    /// Retry after this time.
    Again(Duration),
    /// Do not retry, for this reason.
    GiveUp(String),
}

/// Decides whether to retry after attempt `attempts` (from 1) failed, `elapsed` after the first one started.
/// `seed` gives requests that failed together different waits.
pub(super) fn decide(
    policy: &RetryPolicy,
    failure: &Failure,
    attempts: usize,
    elapsed: Duration,
    seed: u64,
) -> RetryDecision {
    let message = failure.line();
    if !failure.cause.is_transient() {
        return RetryDecision::GiveUp(message);
    }
    let max_attempts = policy.max_attempts;
    if attempts >= max_attempts {
        return RetryDecision::GiveUp(match max_attempts {
            1 => message,
            _ => format!("{message}; that was attempt {attempts} of {max_attempts}"),
        });
    }
    let wait =
        delay(policy.retry_delay(), attempts, seed).max(failure.retry_after.unwrap_or_default());
    if elapsed.saturating_add(wait) >= policy.request() {
        return RetryDecision::GiveUp(format!(
            "{message}; attempt {} would start after the limit of {} s for a request \
             (REQUEST_TIMEOUT)",
            attempts + 1,
            policy.request_timeout_s
        ));
    }
    RetryDecision::Again(wait)
}

/// Doubles the delay with each attempt; the seed picks a value between half and all of it ("equal
/// jitter", M. Brooker, *Exponential Backoff and Jitter*, 2015).
fn delay(first: Duration, attempts: usize, seed: u64) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1).min(16)).unwrap_or(16);
    let full = first
        .saturating_mul(1 << doublings)
        .min(MAX_BACKOFF.max(first));
    let unit = (mix(seed ^ attempts as u64) >> 11) as f64 / (1u64 << 53) as f64;
    full.mul_f64(0.5 + 0.5 * unit)
}

/// SplitMix64's output function (G. L. Steele and others, *Fast splittable pseudorandom number
/// generators*, 2014).
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::super::failure::Cause;
    use super::*;
    use proptest::prelude::*;

    fn failure(cause: Cause) -> Failure {
        Failure::new(cause, "broke")
    }

    #[test]
    fn only_transient_failures_are_retried_and_not_forever() {
        let policy = RetryPolicy::default();
        let decide =
            |cause, attempts| decide(&policy, &failure(cause), attempts, Duration::ZERO, 7);
        for cause in [
            Cause::Connect,
            Cause::Timeout,
            Cause::RateLimited,
            Cause::Server,
            Cause::CutOff,
        ] {
            assert!(
                matches!(decide(cause, 1), RetryDecision::Again(_)),
                "{cause:?}"
            );
            let RetryDecision::GiveUp(why) = decide(cause, 4) else {
                panic!("{cause:?} is retried forever");
            };
            assert_eq!(why, "broke; that was attempt 4 of 4");
        }
        for cause in [Cause::Refused, Cause::Malformed, Cause::Certificate] {
            assert_eq!(decide(cause, 1), RetryDecision::GiveUp("broke".to_owned()));
        }
    }

    #[test]
    fn retry_after_is_respected() {
        let mut limited = failure(Cause::RateLimited);
        limited.retry_after = Some(Duration::from_secs(9));
        let policy = RetryPolicy::default();
        assert_eq!(
            decide(&policy, &limited, 1, Duration::ZERO, 0),
            RetryDecision::Again(Duration::from_secs(9))
        );
        limited.retry_after = Some(Duration::MAX);
        let RetryDecision::GiveUp(why) = decide(&policy, &limited, 1, Duration::ZERO, 0) else {
            panic!("waits forever");
        };
        assert!(why.contains("REQUEST_TIMEOUT"), "{why}");
    }

    proptest! {
        #[test]
        fn waits_double_up_to_a_limit_and_are_deterministic(
            attempts in 1usize..100,
            seed in any::<u64>(),
            first_ms in 0u64..100_000,
        ) {
            let first = Duration::from_millis(first_ms);
            let wait = delay(first, attempts, seed);
            prop_assert_eq!(wait, delay(first, attempts, seed));
            let full = first.saturating_mul(1 << (attempts - 1).min(16)).min(MAX_BACKOFF.max(first));
            prop_assert!(wait >= full / 2 && wait <= full);
        }
    }
}
