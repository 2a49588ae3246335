//! What is compared, and the terms that it is the sum of.

use std::fmt;
use std::str::FromStr;

use super::table::{FlowView, plain_id};
use crate::record::compare::MeasuredStep;

/// A metric of `--metric`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Quantity {
    WorkflowMs,
    BenchmarkTotalMs,
    TtftMs,
    TpotMs,
    LatencyMs,
    PrefillTokens,
    DecodeTokens,
    Tokens,
    EnergyJoules,
    Reward,
}

/// What a value of a quantity belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Run,
    Flow,
    Step,
}

impl Quantity {
    pub const ALL: [Self; 10] = [
        Self::WorkflowMs,
        Self::BenchmarkTotalMs,
        Self::TtftMs,
        Self::TpotMs,
        Self::LatencyMs,
        Self::PrefillTokens,
        Self::DecodeTokens,
        Self::Tokens,
        Self::EnergyJoules,
        Self::Reward,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::WorkflowMs => "workflow_ms",
            Self::BenchmarkTotalMs => "benchmark_total_ms",
            Self::TtftMs => "ttft_ms",
            Self::TpotMs => "tpot_ms",
            Self::LatencyMs => "latency_ms",
            Self::PrefillTokens => "prefill_tokens",
            Self::DecodeTokens => "decode_tokens",
            Self::Tokens => "tokens",
            Self::EnergyJoules => "energy_joules",
            Self::Reward => "reward",
        }
    }

    pub fn level(self) -> Level {
        match self {
            Self::WorkflowMs => Level::Flow,
            Self::TtftMs | Self::TpotMs | Self::LatencyMs => Level::Step,
            Self::BenchmarkTotalMs
            | Self::PrefillTokens
            | Self::DecodeTokens
            | Self::Tokens
            | Self::EnergyJoules
            | Self::Reward => Level::Run,
        }
    }

    pub fn more_is_better(self) -> bool {
        self == Self::Reward
    }

    /// Whether it can be had of one step.
    pub fn has_steps(self) -> bool {
        self.level() == Level::Step || self.counts_tokens()
    }

    pub fn counts_tokens(self) -> bool {
        matches!(
            self,
            Self::PrefillTokens | Self::DecodeTokens | Self::Tokens
        )
    }

    /// Whether it is a time, so that tokens cost it.
    pub fn is_time(self) -> bool {
        self.name().ends_with("_ms")
    }

    /// The value of a step; `None` if the step has none.
    pub fn of_step(self, step: &MeasuredStep) -> Option<f64> {
        let value = match self {
            Self::LatencyMs => Some(step.latency_ms),
            Self::TtftMs => step.ttft_ms,
            Self::TpotMs => step.tpot_ms,
            _ => None,
        };
        value.map(|ms| ms.0).filter(|ms| *ms > 0.0)
    }

    /// The tokens of a step that it counts.
    pub fn tokens(self, step: &MeasuredStep) -> usize {
        match self {
            Self::PrefillTokens => step.tokens.prefill,
            Self::DecodeTokens => step.tokens.decode,
            _ => step.tokens.processed(),
        }
    }

    /// The terms of a step's value, which add up to it.
    pub fn terms(self, step: &MeasuredStep) -> Vec<TermValue<'_>> {
        let all = terms(step);
        match self {
            Self::TtftMs => {
                let until_first = |value: &TermValue| value.term != Term::Decode;
                all.into_iter().filter(until_first).collect()
            }
            // Per token as it is.
            Self::TpotMs => vec![TermValue {
                step: plain_id(step),
                term: Term::Decode,
                work: 1.0,
                time: step.tpot_ms.unwrap_or_default().0,
            }],
            _ => all,
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Quantity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL
            .into_iter()
            .find(|quantity| quantity.name() == text);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("no metric is called {text:?}; there are {names}")
        })
    }
}

/// The kinds of terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Term {
    /// Waiting to be admitted, with rendering and tokenisation.
    Queue,
    /// Tokens of the prompt × time per token.
    Prefill,
    /// Generated tokens × time per token.
    Decode,
    /// A program or an answer was checked.
    Evaluation,
    /// A request whose parts are not known.
    Request,
    /// Between the end of a step and the start of the next one on the path.
    Idle,
    EngineInit,
    /// The critical path runs through other steps.
    Path,
}

impl Term {
    /// Whether it is a product of work and cost.
    pub fn has_work(self) -> bool {
        matches!(self, Self::Prefill | Self::Decode)
    }
}

/// A term of a value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TermValue<'a> {
    /// The step's id without its generation.
    pub step: &'a str,
    pub term: Term,
    /// Tokens; 0 for a term without work.
    pub work: f64,
    /// Milliseconds, or what the quantity counts.
    pub time: f64,
}

impl TermValue<'_> {
    pub fn scaled(self, factor: f64) -> Self {
        Self {
            time: self.time * factor,
            ..self
        }
    }
}

/// The terms of a step's latency.
fn terms(step: &MeasuredStep) -> Vec<TermValue<'_>> {
    let latency = step.latency_ms.0;
    let queue = step.queue_ms.map_or(0.0, |ms| ms.0.clamp(0.0, latency));
    let value = |term: Term, work: usize, time: f64| TermValue {
        step: plain_id(step),
        term,
        work: work as f64,
        time: time.max(0.0),
    };
    let mut terms = vec![value(Term::Queue, 0, queue)];
    match step.ttft_ms {
        _ if !step.generates() => terms.push(value(Term::Evaluation, 0, latency - queue)),
        None => terms.push(value(Term::Request, 0, latency - queue)),
        Some(first) => {
            let first = first.0.clamp(queue, latency);
            terms.push(value(Term::Prefill, step.tokens.prefill, first - queue));
            terms.push(value(Term::Decode, step.tokens.decode, latency - first));
        }
    }
    terms.retain(|value| value.time > 0.0 || value.work > 0.0);
    terms
}

/// The terms of a workflow's time: along its critical path.
pub(super) fn path_terms<'a>(flow: &FlowView<'a>) -> Vec<TermValue<'a>> {
    let mut all = Vec::new();
    for critical in &flow.workflow.critical_path {
        // Of several samples, the last one to end.
        let samples = flow.named(Some(&critical.step)).into_iter();
        let end = |step: &MeasuredStep| step.start_ms.0 + step.latency_ms.0;
        let last = samples.max_by(|a, b| end(a).total_cmp(&end(b)));
        let ms = critical.ms.0;
        let Some(step) = last else {
            all.push(TermValue {
                step: &critical.step,
                term: Term::Request,
                work: 0.0,
                time: ms,
            });
            continue;
        };
        let latency = step.latency_ms.0;
        // Rounding may make a step longer than its place on the path.
        let fit = if latency > ms { ms / latency } else { 1.0 };
        let fitted = terms(step).into_iter().map(|value| value.scaled(fit));
        all.extend(fitted);
        if ms > latency {
            all.push(TermValue {
                step: plain_id(step),
                term: Term::Idle,
                work: 0.0,
                time: ms - latency,
            });
        }
    }
    all
}
