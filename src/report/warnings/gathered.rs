//! Statistics for the warnings, collected as steps end: a run may have more steps than fit in
//! memory.

use std::collections::BTreeMap;

use super::thoughts::{Content, content};
use super::warning;
use crate::record::validity::Taint;
use crate::record::warning::Warning;
use crate::record::{PlannedStep, StepRecord};
use crate::units::plural;

/// Counts over the steps that called the model.
#[derive(Debug, Clone, Default)]
pub struct Gathered {
    answers: usize,
    tokens: usize,
    /// Answers without text, or with reasoning only.
    empty: usize,
    /// Empty answers that ended at the token limit.
    empty_cut: usize,
    /// Empty answers with reasoning.
    empty_thought: usize,
    /// Empty answers with tokens that are unaccounted for.
    empty_tokens: usize,
    /// Answers that end inside their reasoning.
    within_thoughts: usize,
    /// Answers with text but a token count of 0.
    uncounted: usize,
    /// Streamed answers of at least two tokens.
    streamed: usize,
    /// Streamed answers that arrived all at once.
    bursts: usize,
    /// Streamed answers with too few chunks per token to time individual tokens.
    few_chunks: usize,
    /// Answers with tokens that were counted but not streamed, and the number of those tokens.
    hiding: usize,
    hidden: usize,
    /// By step ID, without generation numbers.
    steps: BTreeMap<String, OfStep>,
    first: BTreeMap<ColdStart, FirstRequests>,
    /// Steps that something disturbed, of any kind.
    steps_tainted: usize,
    tainted: BTreeMap<Taint, usize>,
}

/// Segment, mode and round: each begins with an empty cache. The segment is `None` in the first, mode and round
/// outside `MODE=both`.
type ColdStart = (Option<usize>, Option<String>, Option<usize>);

#[derive(Debug, Clone, Default)]
struct OfStep {
    answers: usize,
    /// Answers that ended at the token limit.
    cut: usize,
    /// Answers that follow reasoning which the prompt opened.
    behind_thoughts: usize,
    /// Answers without any reasoning marker that ended at the token limit.
    cut_unmarked: usize,
}

/// The requests that started before the first token of the run. One of them was computed first, so
/// if all of them reused cached tokens, the cache was already warm.
#[derive(Debug, Clone, Default)]
struct FirstRequests {
    /// Time of the first token of the run, in milliseconds.
    first_token: Option<f64>,
    requests: Vec<FirstRequest>,
}

#[derive(Debug, Clone, Copy)]
struct FirstRequest {
    start: f64,
    reused: usize,
    prompt: usize,
    /// An earlier attempt may have filled the cache.
    tried_before: bool,
}

impl FirstRequests {
    fn add(&mut self, step: &StepRecord) {
        let start = step.start_ms.0;
        let came = start + step.ttft_ms.unwrap_or(step.latency_ms).0;
        let earliest = self.first_token.map_or(came, |known| known.min(came));
        self.first_token = Some(earliest);
        if start < earliest {
            self.requests.push(FirstRequest {
                start,
                reused: step.tokens.reused,
                prompt: step.tokens.prompt,
                tried_before: step.attempts > Some(1),
            });
        }
    }

    /// The request with the least reuse, if all of them had some.
    fn warm(&self) -> Option<FirstRequest> {
        let earliest = self.first_token?;
        // Some were added before an earlier first token was known.
        let first = || {
            self.requests
                .iter()
                .filter(|request| request.start < earliest)
        };
        if first().any(|request| request.tried_before) {
            return None;
        }
        let least = first().min_by_key(|request| request.reused)?;
        (least.reused > 0).then_some(*least)
    }
}

impl Gathered {
    pub fn add(&mut self, step: &StepRecord) {
        self.steps_tainted += usize::from(!step.tainted.is_empty());
        for reason in &step.tainted {
            *self.tainted.entry(*reason).or_default() += 1;
        }
        if !step.asks_a_model() {
            return;
        }
        self.answers += 1;
        self.tokens += step.tokens.decode;
        let cut = step.finish == "length";
        let name = step.step.split('.').next().unwrap_or(&step.step);
        if !self.steps.contains_key(name) {
            self.steps.insert(name.to_owned(), OfStep::default());
        }
        let content = content(&step.output);
        if let Some(of_step) = self.steps.get_mut(name) {
            of_step.answers += 1;
            of_step.cut += usize::from(cut);
            match content {
                Content::AfterBegunThoughts => of_step.behind_thoughts += 1,
                Content::Answer if cut => of_step.cut_unmarked += 1,
                _ => {}
            }
        }
        match content {
            Content::Nothing | Content::ThoughtsOnly => {
                self.empty += 1;
                self.empty_cut += usize::from(cut);
                let thought = content == Content::ThoughtsOnly || step.reasoning_tokens > Some(0);
                self.empty_thought += usize::from(thought);
                self.empty_tokens += usize::from(!thought && step.tokens.decode > 0);
            }
            Content::WithinThoughts => self.within_thoughts += 1,
            Content::Answer | Content::AfterThoughts | Content::AfterBegunThoughts => {}
        }
        self.uncounted += usize::from(content != Content::Nothing && step.tokens.decode == 0);
        let hidden = step.hidden_tokens.unwrap_or(0);
        self.hiding += usize::from(hidden > 0);
        self.hidden += hidden;
        if step.attempts.is_some() && step.tokens.decode > 1 {
            self.streamed += 1;
            self.bursts += usize::from(step.burst);
            let untimed = step.tpot_ms.is_none() && !step.burst && hidden == 0;
            self.few_chunks += usize::from(untimed);
        }
        let round = (step.segment, step.mode.clone(), step.round);
        self.first.entry(round).or_default().add(step);
    }

    /// Disturbed steps, and their number by reason.
    pub(super) fn tainted(&self) -> (usize, &BTreeMap<Taint, usize>) {
        (self.steps_tainted, &self.tainted)
    }

    /// Warnings about missing answers.
    pub(super) fn answers(&self) -> Vec<Warning> {
        let mut all = Vec::new();
        let answers = plural(self.answers, "answer");
        if self.answers > 0 && self.tokens == 0 {
            all.push(warning(
                "no_tokens",
                "No tokens were counted: rates cannot be computed",
                format!("0 tokens in {answers}"),
            ));
        } else if self.empty > 0 {
            let mut evidence = format!("{} of {answers}", self.empty);
            if self.empty_cut > 0 {
                evidence.push_str(&format!("; {} ended at the token limit", self.empty_cut));
            }
            if self.empty_thought > 0 {
                evidence.push_str(&format!("; {} with reasoning only", self.empty_thought));
            }
            if self.empty_tokens > 0 {
                evidence.push_str(&format!(
                    "; {} with tokens that are not in the text",
                    self.empty_tokens
                ));
            }
            let text = match self.empty == self.answers {
                true => "All answers are empty",
                false => "Some answers are empty",
            };
            all.push(warning("answers_empty", text, evidence));
        }
        // If some answers of a step show that the prompt opens the reasoning, then an answer of
        // that step that was cut off before any marker was cut off inside it.
        let steps = self.steps.values();
        let unmarked = steps.filter(|step| step.behind_thoughts > 0);
        let within = self.within_thoughts + unmarked.map(|step| step.cut_unmarked).sum::<usize>();
        if within > 0 {
            let text = match within == self.answers {
                true => "All answers end within their reasoning, before the final answer",
                false => "Some answers end within their reasoning, before the final answer",
            };
            all.push(warning(
                "thoughts_cut",
                text,
                format!("{within} of {answers}"),
            ));
        }
        all
    }

    /// Warnings about judged steps whose answers were mostly cut off.
    pub(super) fn cut(&self, planned: &[PlannedStep], as_planned: bool) -> Vec<Warning> {
        let mut all = Vec::new();
        for step in planned.iter().filter(|step| step.judged && !as_planned) {
            let Some(of_step) = self.steps.get(&step.step) else {
                continue;
            };
            if 2 * of_step.cut > of_step.answers {
                all.push(warning(
                    "answers_cut",
                    format!(
                        "Most answers of step {} were cut by the token limit before they were judged: \
                         raise MAX_TOKENS, or the step's max_tokens",
                        step.step
                    ),
                    format!("{} of {}", of_step.cut, plural(of_step.answers, "answer")),
                ));
            }
        }
        all
    }

    /// Warnings about misleading counts and times.
    pub(super) fn counts(&self) -> Vec<Warning> {
        let mut all = Vec::new();
        if self.uncounted > 0 && self.tokens > 0 {
            all.push(warning(
                "tokens_not_counted",
                "Some answers have text but a token count of 0: their rates are missing",
                format!("{} of {}", self.uncounted, plural(self.answers, "answer")),
            ));
        }
        let of_streamed = |count: usize| {
            let streamed = plural(self.streamed, "answer");
            format!("{count} of {streamed} of at least two tokens")
        };
        if 2 * self.bursts > self.streamed {
            all.push(warning(
                "one_piece",
                "Most answers came in one piece: their time to first token is their full latency, \
                 and they have no time per token",
                of_streamed(self.bursts),
            ));
        }
        if 2 * self.few_chunks > self.streamed {
            all.push(warning(
                "few_chunks",
                "Most answers came in few chunks of many tokens: they have no time per token",
                of_streamed(self.few_chunks),
            ));
        }
        if self.hiding > 0 {
            all.push(warning(
                "hidden_tokens",
                "Some tokens were counted but not streamed, such as hidden reasoning: the time to \
                 first token includes them",
                format!(
                    "{} in {} of {}",
                    plural(self.hidden, "token"),
                    self.hiding,
                    plural(self.answers, "answer")
                ),
            ));
        }
        if let Some(first) = self.first.values().find_map(FirstRequests::warm) {
            all.push(warning(
                "cache_warm",
                "The prefix cache was warm before the first request: times to first tokens are not \
                 those of a cold start",
                format!(
                    "{} of its {} were reused",
                    first.reused,
                    plural(first.prompt, "prompt token")
                ),
            ));
        }
        all
    }
}
