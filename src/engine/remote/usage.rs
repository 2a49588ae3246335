//! Token counts in the formats that servers send. A malformed count never fails an answer: missing,
//! null and non-numeric values are ignored, and the last plausible count wins.

use serde_json::Value;

/// A larger count is an error: no request has that many tokens.
const MOST: f64 = 1e9;

/// The server's counts; `None` for those it does not report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Tokens of the prompt.
    pub(super) prompt: Option<usize>,
    /// Prompt tokens that came from a cache.
    pub(super) cached: Option<usize>,
    /// Generated tokens, including thoughts.
    pub(super) decode: Option<usize>,
    /// Generated tokens that were thoughts.
    pub(super) reasoning: Option<usize>,
}

impl Counts {
    /// The counts in an event: those of `usage` (Moonshot has it in the choice, Groq in `x_groq`),
    /// completed by llama.cpp's `timings`.
    pub(super) fn of(event: &Value) -> Self {
        let places = ["/usage", "/x_groq/usage", "/choices/0/usage"];
        let usages = places.into_iter().filter_map(|place| event.pointer(place));
        let mut counts = usages.fold(Self::default(), |counts, usage| {
            counts.or(Self::of_usage(usage))
        });
        if let Some(timings) = event.get("timings") {
            counts = counts.or(Self::of_timings(timings));
        }
        counts
    }

    fn of_usage(usage: &Value) -> Self {
        let first = |places: &[&str]| -> Option<usize> {
            let counts = places
                .iter()
                .filter_map(|place| count(usage.pointer(place)?));
            let mut zero = None;
            for count in counts {
                if count > 0 {
                    return Some(count);
                }
                zero = Some(0);
            }
            zero
        };
        let mut prompt = first(&["/prompt_tokens"]);
        let mut decode = first(&["/completion_tokens", "/output_tokens"]);
        let reasoning = first(&[
            "/completion_tokens_details/reasoning_tokens",
            "/output_tokens_details/reasoning_tokens",
            "/reasoning_tokens",
        ]);
        let read = first(&["/cache_read_input_tokens"]);
        let cached = first(&[
            "/prompt_tokens_details/cached_tokens",
            "/input_tokens_details/cached_tokens",
            "/prompt_cache_hit_tokens",
            "/cache_read_input_tokens",
            "/cached_tokens",
            "/num_cached_tokens",
        ]);
        if prompt.is_none() {
            // Anthropic's input tokens exclude those read from or written to the cache.
            let written = first(&["/cache_creation_input_tokens"]);
            let rest = read.unwrap_or(0) + written.unwrap_or(0);
            prompt = first(&["/input_tokens"]).map(|input| input + rest);
        }
        let total = first(&["/total_tokens"]).filter(|total| *total > 0);
        match (prompt, decode, total) {
            (Some(prompt), None, Some(total)) => decode = total.checked_sub(prompt),
            (None, Some(decode), Some(total)) => prompt = total.checked_sub(decode),
            _ => {}
        }
        // xAI counts reasoning in addition to the completion, others as part of it.
        if let (Some(answer), Some(thoughts)) = (decode, reasoning) {
            let sum = (prompt.unwrap_or(0) + answer).checked_add(thoughts);
            if thoughts > answer || (thoughts > 0 && prompt.is_some() && sum == total) {
                decode = Some(answer + thoughts);
            }
        }
        Self {
            prompt,
            cached,
            decode,
            reasoning,
        }
    }

    fn of_timings(timings: &Value) -> Self {
        let of = |name: &str| count(timings.get(name)?);
        // Prompt tokens that were processed, and those that came from the cache.
        let (computed, cached) = (of("prompt_n"), of("cache_n"));
        Self {
            prompt: computed.map(|computed| computed + cached.unwrap_or(0)),
            cached,
            decode: of("predicted_n"),
            reasoning: None,
        }
    }

    /// Replaces missing or zero counts with those of `others`.
    fn or(self, others: Self) -> Self {
        let pick = |own: Option<usize>, other: Option<usize>| match own {
            None | Some(0) => other.filter(|count| *count > 0).or(own).or(other),
            own => own,
        };
        Self {
            prompt: pick(self.prompt, others.prompt),
            cached: pick(self.cached, others.cached),
            decode: pick(self.decode, others.decode),
            reasoning: pick(self.reasoning, others.reasoning),
        }
    }

    pub(super) fn update(&mut self, later: Self) {
        *self = later.or(*self);
    }

    /// Keeps the plausible counts: a prompt has at least one token, so does an answer if anything
    /// was streamed (`any`), and a part is not larger than its whole.
    pub(super) fn believed(self, any: bool) -> Self {
        let some = |count: &usize| *count > 0;
        let prompt = self.prompt.filter(some);
        let decode = self.decode.filter(|count| *count > 0 || !any);
        let part = |part: Option<usize>, whole: Option<usize>| Some(part?.min(whole?));
        Self {
            prompt,
            cached: part(self.cached, prompt),
            decode,
            reasoning: part(self.reasoning.filter(some), decode),
        }
    }
}

/// Parses a count in any notation: `10`, `10.0`, `"10"`.
fn count(value: &Value) -> Option<usize> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    number
        .filter(|number| (0.0..=MOST).contains(number) && number.fract() == 0.0)
        .map(|number| number as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn usage(value: Value) -> (Option<usize>, Option<usize>, Option<usize>, Option<usize>) {
        let counts = Counts::of(&json!({"usage": value})).believed(true);
        (
            counts.prompt,
            counts.cached,
            counts.decode,
            counts.reasoning,
        )
    }

    #[test]
    fn counts_of_many_servers() {
        let ten = (Some(10), Some(8), Some(3), None);
        for value in [
            // vLLM, SGLang, OpenAI; floats and strings; DeepSeek; LiteLLM; Moonshot.
            json!({"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13,
                "prompt_tokens_details": {"cached_tokens": 8}}),
            json!({"prompt_tokens": 10.0, "completion_tokens": "3",
                "prompt_tokens_details": {"cached_tokens": 8.0}}),
            json!({"prompt_tokens": 10, "completion_tokens": 3, "prompt_cache_hit_tokens": 8,
                "prompt_cache_miss_tokens": 2}),
            json!({"prompt_tokens": 10, "completion_tokens": 3, "cache_read_input_tokens": 8,
                "prompt_tokens_details": {"cached_tokens": 0}}),
            json!({"prompt_tokens": 10, "completion_tokens": 3, "cached_tokens": 8}),
            // One count is missing and follows from the total.
            json!({"prompt_tokens": 10, "total_tokens": 13, "prompt_cache_hit_tokens": 8}),
            json!({"completion_tokens": 3, "total_tokens": 13, "prompt_cache_hit_tokens": 8}),
            // Names in OpenAI's Responses API and in Anthropic's API.
            json!({"input_tokens": 10, "output_tokens": 3,
                "input_tokens_details": {"cached_tokens": 8}}),
            json!({"input_tokens": 1, "output_tokens": 3, "cache_read_input_tokens": 8,
                "cache_creation_input_tokens": 1}),
        ] {
            assert_eq!(usage(value.clone()), ten, "{value}");
        }
        for (event, cached) in [
            (
                json!({"choices": [{"usage": {"prompt_tokens": 10, "completion_tokens": 3}}]}),
                None,
            ),
            (
                json!({"x_groq": {"usage": {"prompt_tokens": 10, "completion_tokens": 3}}}),
                None,
            ),
            (
                json!({"timings": {"cache_n": 8, "prompt_n": 2, "predicted_n": 3}}),
                Some(8),
            ),
            (
                json!({"usage": {"prompt_tokens": 10, "completion_tokens": 3},
                    "timings": {"cache_n": 8, "prompt_n": 2, "predicted_n": 3}}),
                Some(8),
            ),
        ] {
            let counts = Counts::of(&event);
            assert_eq!(
                (counts.prompt, counts.cached, counts.decode),
                (Some(10), cached, Some(3)),
                "{event}"
            );
        }
    }

    #[test]
    fn thoughts_are_part_of_the_decode_count() {
        let thoughts = (Some(10), None, Some(505), Some(500));
        for value in [
            json!({"prompt_tokens": 10, "completion_tokens": 505,
                "completion_tokens_details": {"reasoning_tokens": 500}}),
            json!({"prompt_tokens": 10, "completion_tokens": 505, "reasoning_tokens": 500}),
            // xAI.
            json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 515,
                "completion_tokens_details": {"reasoning_tokens": 500}}),
        ] {
            assert_eq!(usage(value.clone()), thoughts, "{value}");
        }
        let few = json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 18,
            "reasoning_tokens": 3});
        assert_eq!(usage(few), (Some(10), None, Some(8), Some(3)));
        let none = json!({"prompt_tokens": 10, "completion_tokens": 5, "reasoning_tokens": 0});
        assert_eq!(usage(none), (Some(10), None, Some(5), None));
    }

    #[test]
    fn malformed_counts_are_ignored() {
        for value in [
            json!(null),
            json!({}),
            json!([]),
            json!("usage"),
            json!({"prompt_tokens": null, "completion_tokens": null}),
            json!({"prompt_tokens": -1, "completion_tokens": 1e300}),
            json!({"prompt_tokens": "many", "completion_tokens": 1.5}),
            json!({"prompt_tokens": u64::MAX}),
            json!({"prompt_tokens_details": {"cached_tokens": 0}}),
            json!({"prompt_tokens_details": null, "completion_tokens_details": 3}),
            json!({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}),
        ] {
            assert_eq!(usage(value.clone()), (None, None, None, None), "{value}");
        }
        // More cached tokens than prompt tokens would make the computed count negative.
        let cached = json!({"prompt_tokens": 2, "prompt_tokens_details": {"cached_tokens": 8}});
        assert_eq!(usage(cached), (Some(2), Some(2), None, None));
    }

    #[test]
    fn the_last_plausible_count_wins() {
        let mut counts = Counts::default();
        for value in [
            json!({}),
            json!({"prompt_tokens": 10, "completion_tokens": 1}),
            json!({"prompt_tokens": 10, "completion_tokens": 3}),
            json!({"prompt_tokens": 0, "completion_tokens": 0}),
            json!({"prompt_tokens": 10}),
            json!(null),
        ] {
            counts.update(Counts::of(&json!({"usage": value})));
        }
        assert_eq!((counts.prompt, counts.decode), (Some(10), Some(3)));
        // An answer without text may have no tokens.
        let mut empty = Counts::default();
        empty.update(Counts::of(
            &json!({"usage": {"prompt_tokens": 4, "completion_tokens": 0}}),
        ));
        assert_eq!(empty.believed(false).decode, Some(0));
        assert_eq!(empty.believed(true).decode, None);
    }

    proptest! {
        #[test]
        fn no_count_panics(
            prompt in any::<f64>(), decode in any::<u64>(), rest in any::<i64>(), any in any::<bool>(),
        ) {
            let counts = Counts::of(&json!({"usage": {
                "prompt_tokens": prompt, "completion_tokens": decode, "total_tokens": rest,
                "reasoning_tokens": rest, "cache_read_input_tokens": decode, "input_tokens": rest,
            }}));
            let counts = counts.believed(any);
            prop_assert!(counts.cached <= counts.prompt);
            prop_assert!(counts.reasoning <= counts.decode);
        }
    }
}
