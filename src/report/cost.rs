//! What an edited template costs before any model runs: `[COST]` lines of `flowbench expand`.

use std::collections::HashMap;

use crate::flow::{Prompts, StepShare};
use crate::record::{RunRecord, Status, StepRecord};

/// What a run tells about the cost of prompts. Everything that is estimated with it is only as good as the run
/// is like the next one: its model, machine, and length of answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Rates {
    run_id: String,
    /// Prompt tokens per byte of the prompts' text. The answers that prompts contain are tokens and not in
    /// the bytes, so a template with the same text has the same tokens again.
    tokens_per_byte: f64,
    /// Computed prompt tokens per second in which a prefill was under way, on the clock: requests that are
    /// computed together share the time. `None` if the engine does not report queue and first token.
    prefill_tokens_per_s: Option<f64>,
    /// Whether a prefix cache was in use.
    reuse: bool,
}

impl Rates {
    /// Of a run.
    ///
    /// # Errors
    /// Why the run does not tell, as a fragment.
    pub fn of(run: &RunRecord, steps: &[StepRecord]) -> Result<Self, String> {
        let unfit = |why: &str| Err(format!("run {} {why}", run.run_id));
        if run.status != Status::Complete {
            return unfit("did not complete");
        }
        let Some(prefix) = run.expansion.prefix.filter(|_| run.shard.is_none()) else {
            return unfit("does not have the size of its prompts");
        };
        // Samples and rounds have the prompt of the first one.
        let first = |number: Option<usize>| number.is_none_or(|number| number == 1);
        let mode = steps.first().and_then(|step| step.mode.as_deref());
        let prompts = steps.iter().filter(|step| {
            step.kind.is_none()
                && first(step.sample)
                && first(step.round)
                && step.mode.as_deref() == mode
        });
        let tokens: usize = prompts.map(|step| step.tokens.prompt).sum();
        if tokens == 0 || prefix.prompt_bytes == 0 {
            return unfit("does not have the tokens of its prompts");
        }
        let mode = run.settings.get("mode").and_then(|mode| mode.as_str());
        Ok(Self {
            run_id: run.run_id.clone(),
            tokens_per_byte: tokens as f64 / prefix.prompt_bytes as f64,
            prefill_tokens_per_s: prefill_rate(steps),
            reuse: mode == Some("reuse") || run.totals.tokens.reused > 0,
        })
    }
}

/// Computed prompt tokens / length of the union of the times from the end of the queue to the first token.
fn prefill_rate(steps: &[StepRecord]) -> Option<f64> {
    let mut tokens = 0;
    let mut times: Vec<(f64, f64)> = Vec::new();
    for step in steps {
        if let (Some(queue), Some(first)) = (step.queue_ms, step.ttft_ms) {
            tokens += step.tokens.prefill;
            times.push(((step.start_ms + queue).0, (step.start_ms + first).0));
        }
    }
    times.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (mut length, mut covered) = (0.0, f64::NEG_INFINITY);
    for (start, end) in times {
        length += (end - start.max(covered)).max(0.0);
        covered = covered.max(end);
    }
    (tokens > 0 && length > 0.0).then(|| 1e3 * tokens as f64 / length)
}

/// A line per step, one for all of them, and one with tokens and seconds. Without `before`, the figures of the
/// earlier expansion are `null`; without rates, the last line says why.
pub fn lines(
    before: Option<&Prompts>,
    after: &Prompts,
    rates: Result<&Rates, &str>,
) -> Vec<String> {
    let changes = before
        .map(|before| after.changes_since(before))
        .unwrap_or_default();
    let old: HashMap<&str, &StepShare> = (before.iter())
        .flat_map(|before| &before.share.steps)
        .map(|step| (step.id.as_str(), step))
        .collect();
    let mut lines: Vec<String> = (after.share.steps.iter())
        .map(|step| {
            let was = old.get(step.id.as_str());
            let change = changes.get(&step.id).map_or_else(String::new, |change| {
                format!(
                    " changed_at={} message={}",
                    change.byte,
                    change.message.as_str()
                )
            });
            format!(
                "[COST] step={} {} {}{change}",
                step.id,
                both(
                    "prompt_bytes",
                    was.map(|step| step.prompt_bytes),
                    step.prompt_bytes
                ),
                both(
                    "reusable_bytes",
                    was.map(|step| step.reusable_bytes),
                    step.reusable_bytes
                )
            )
        })
        .collect();
    let kept: Vec<&str> = after
        .share
        .steps
        .iter()
        .map(|step| step.id.as_str())
        .collect();
    let gone = (before.iter())
        .flat_map(|before| &before.share.steps)
        .filter(|step| !kept.contains(&step.id.as_str()));
    lines.extend(gone.map(|step| {
        format!(
            "[COST] step={} prompt_bytes_before={} prompt_bytes_after=0 reusable_bytes_before={} \
             reusable_bytes_after=0",
            step.id, step.prompt_bytes, step.reusable_bytes
        )
    }));
    lines.push(total(before, after));
    lines.push(match rates {
        Ok(rates) => estimate(before, after, rates),
        Err(why) => format!("[COST] tokens=null ({why})"),
    });
    lines
}

/// `[COST] flows=… prompt_bytes_before=… prompt_bytes_after=… reusable_before=…% reusable_after=…%`, shares of
/// the prompts' bytes that a prefix cache can reuse.
pub fn total(before: Option<&Prompts>, after: &Prompts) -> String {
    let share = |prompts: &Prompts| {
        let share = &prompts.share;
        format!(
            "{:.1}%",
            100.0 * share.reusable_bytes as f64 / share.prompt_bytes.max(1) as f64
        )
    };
    let was = before.map(|before| before.share.prompt_bytes);
    let note = match before {
        Some(_) => "",
        None => " (flows/ has no earlier expansion of this template)",
    };
    format!(
        "[COST] {} {} {}{note}",
        both(
            "flows",
            before.map(|before| before.share.flows),
            after.share.flows
        ),
        both("prompt_bytes", was, after.share.prompt_bytes),
        both("reusable", before.map(share), share(after))
    )
}

fn estimate(before: Option<&Prompts>, after: &Prompts, rates: &Rates) -> String {
    let tokens = |prompts: &Prompts| {
        let share = &prompts.share;
        let reused = if rates.reuse { share.reusable_bytes } else { 0 };
        (share.prompt_bytes - reused) as f64 * rates.tokens_per_byte
    };
    let seconds = |prompts: &Prompts| {
        let rate = rates.prefill_tokens_per_s;
        rate.map_or_else(
            || "null".to_owned(),
            |rate| format!("{:.2}", tokens(prompts) / rate),
        )
    };
    let whole = |prompts: &Prompts| format!("{:.0}", tokens(prompts));
    let rate = rates.prefill_tokens_per_s;
    format!(
        "[COST] {} {} prefix_cache={} tokens_per_byte={:.4} prefill_tokens_per_s={} run={} (estimated)",
        both("prefill_tokens", before.map(whole), whole(after)),
        both("prefill_s", before.map(seconds), seconds(after)),
        if rates.reuse { "on" } else { "off" },
        rates.tokens_per_byte,
        rate.map_or_else(|| "null".to_owned(), |rate| format!("{rate:.1}")),
        rates.run_id
    )
}

/// `name_before=… name_after=…`.
fn both<T: ToString>(name: &str, before: Option<T>, after: T) -> String {
    let before = before.map_or_else(|| "null".to_owned(), |before| before.to_string());
    format!("{name}_before={before} {name}_after={}", after.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{PrefixRecord, TokenCounts};
    use crate::report::testing;
    use crate::units::Millis;

    fn run() -> (RunRecord, Vec<StepRecord>) {
        let (mut record, steps) = testing::run(2, 0.0, 100.0, 10.0);
        record.expansion.prefix = Some(PrefixRecord {
            prompt_bytes: 9600,
            reusable_bytes: 0,
            reusable_bytes_reordered: 0,
        });
        (record, steps)
    }

    #[test]
    fn rates_are_those_of_the_first_samples() {
        let (mut record, mut steps) = run();
        let rates = Rates::of(&record, &steps).expect("complete");
        // Six requests of 800 tokens.
        assert_eq!(rates.tokens_per_byte, 0.5);
        assert!(!rates.reuse);

        let second = steps.iter().cloned().map(|step| StepRecord {
            sample: Some(2),
            ..step
        });
        let second: Vec<StepRecord> = second.collect();
        steps.extend(second);
        assert_eq!(
            Rates::of(&record, &steps)
                .expect("complete")
                .tokens_per_byte,
            0.5
        );
        record.totals.tokens.reused = 1;
        assert!(Rates::of(&record, &steps).expect("complete").reuse);
    }

    #[test]
    fn prefills_side_by_side_share_the_time() {
        let step = |start: f64, queue: f64, first: f64| StepRecord {
            start_ms: Millis(start),
            queue_ms: Some(Millis(queue)),
            ttft_ms: Some(Millis(first)),
            tokens: TokenCounts {
                prefill: 100,
                ..TokenCounts::default()
            },
            ..StepRecord::default()
        };
        // 10..60, 40..90 and 40..50: 80 ms; 200..220.
        let mut steps = vec![
            step(0.0, 10.0, 60.0),
            step(30.0, 10.0, 60.0),
            step(30.0, 10.0, 20.0),
            step(200.0, 0.0, 20.0),
        ];
        assert_eq!(prefill_rate(&steps), Some(4000.0));
        steps.iter_mut().for_each(|step| step.queue_ms = None);
        assert_eq!(prefill_rate(&steps), None);
    }

    #[test]
    fn a_run_that_does_not_tell_says_why() {
        let (mut record, steps) = run();
        assert!(
            Rates::of(&record, &[]).is_err_and(|why| why.ends_with("the tokens of its prompts"))
        );
        record.status = Status::Failed;
        assert!(Rates::of(&record, &steps).is_err_and(|why| why.ends_with("did not complete")));
        record.status = Status::Complete;
        record.expansion.prefix = None;
        assert!(Rates::of(&record, &steps).is_err_and(|why| why.contains("size of its prompts")));
    }
}
