//! The figures of a run by the names that all formats use.

use std::borrow::Cow;

use crate::record::metrics::Distribution;
use crate::record::{RunRecord, TokenCounts};
use crate::statistics::distribution;

/// Which change of a figure is an improvement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Better {
    Smaller,
    Bigger,
    /// A count that says how much was done.
    Neither,
}

/// A quantity.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Metric {
    /// Ends in the unit where it has one.
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    pub(super) better: Better,
    pub(super) help: &'static str,
}

macro_rules! metrics {
    ($($id:ident $name:literal $unit:literal $better:ident $help:literal;)*) => {
        $(pub(super) const $id: &Metric = &Metric {
            name: $name,
            unit: $unit,
            better: Better::$better,
            help: $help,
        };)*
        /// All of them, in the order of the documentation.
        pub(super) const ALL: &[&Metric] = &[$($id),*];
    };
}

metrics! {
    WORKFLOW "workflow_ms" "ms" Smaller "Makespan of the workflows that ended well";
    TOTAL "benchmark_total_ms" "ms" Smaller "Engine start and all workflows";
    TTFT "ttft_ms" "ms" Smaller "Time from submission to the first token";
    TPOT "tpot_ms" "ms" Smaller "Time per output token after the first";
    LATENCY "latency_ms" "ms" Smaller "Time from submission to the last token";
    PREFILL_RATE "prefill_tokens_per_s" "tokens/s" Bigger "Prompt tokens computed per second";
    DECODE_RATE "decode_tokens_per_s" "tokens/s" Bigger "Generated tokens per second after the first";
    PROMPT "prompt_tokens" "tokens" Neither "Prompt tokens";
    PREFILL "prefill_tokens" "tokens" Smaller "Prompt tokens that were computed";
    REUSED "reused_tokens" "tokens" Bigger "Prompt tokens taken from the prefix cache";
    DECODE "decode_tokens" "tokens" Neither "Generated tokens";
    TOKENS "tokens" "tokens" Neither "Tokens that went through the model: prefill_tokens and decode_tokens";
    ENERGY "energy_joules" "J" Smaller "Energy of the run: the GPU's as measured, or else at the assumed power";
    REWARD "reward" "score" Bigger "Rewards of the judged workflows";
}

/// A figure of a run, or of its steps of one id.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Figure<'a> {
    pub(super) metric: &'static Metric,
    /// `MODE=both` only: the mode of the rounds.
    pub(super) mode: Option<&'a str>,
    /// The step's id; `None`: the whole run.
    pub(super) step: Option<&'a str>,
    pub(super) values: Values<'a>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Values<'a> {
    One(f64),
    Many(Cow<'a, Distribution>),
}

impl Figure<'_> {
    /// The median, or the mean of fewer than 3 values.
    pub(super) fn value(&self) -> f64 {
        match &self.values {
            Values::One(value) => *value,
            Values::Many(spread) => spread.median.unwrap_or(spread.mean),
        }
    }

    pub(super) fn spread(&self) -> Option<&Distribution> {
        match &self.values {
            Values::One(_) => None,
            Values::Many(spread) => Some(spread),
        }
    }

    /// The template, the mode in `MODE=both`, and the step: `three_step`, `three_step[reuse]/planner`.
    pub(super) fn subject(&self, template: &str) -> String {
        let mode = (self.mode).map_or_else(String::new, |mode| format!("[{mode}]"));
        let step = (self.step).map_or_else(String::new, |step| format!("/{step}"));
        format!("{template}{mode}{step}")
    }
}

/// All figures: those of the run, then those of each step id. What is unknown, and what is not a finite
/// number, is left out.
pub(super) fn of(run: &RunRecord) -> Vec<Figure<'_>> {
    let mut figures = Figures::default();
    let totals = &run.totals;
    figures.many(WORKFLOW, totals.workflow_ms.as_ref());
    if run.comparison.is_some() {
        figures.workflows_by_mode(run);
    }
    figures.one(TOTAL, totals.benchmark_total_ms.map(|ms| ms.0));
    figures.many(TTFT, totals.ttft_ms.as_ref());
    figures.tokens(totals.tokens);
    figures.one(ENERGY, energy(run).map(|(joules, _)| joules));
    figures.many(REWARD, totals.reward.as_ref());
    for position in &totals.positions {
        figures.mode = position.mode.as_deref();
        figures.step = Some(&position.step);
        figures.many(LATENCY, position.latency_ms.as_ref());
        figures.many(TTFT, position.ttft_ms.as_ref());
        figures.many(TPOT, position.tpot_ms.as_ref());
        figures.many(PREFILL_RATE, position.prefill_tokens_per_s.as_ref());
        figures.many(DECODE_RATE, position.decode_tokens_per_s.as_ref());
        // Steps that evaluate or verify have none.
        if position.tokens != TokenCounts::default() {
            figures.tokens(position.tokens);
        }
    }
    figures.all
}

/// Joules of the run, and whether they were `measured` or `assumed`.
pub(super) fn energy(run: &RunRecord) -> Option<(f64, &'static str)> {
    let measured = run.gpu.as_ref().and_then(|gpu| gpu.energy_joules);
    let of_totals = || {
        let energy = run.totals.energy.as_ref()?;
        let how = match energy.source.as_str() {
            "assumed" => "assumed",
            _ => "measured",
        };
        Some((energy.joules, how))
    };
    measured
        .map(|joules| (joules, "measured"))
        .or_else(of_totals)
}

/// The settings' mode: `standalone`, `reuse`, `both`, `scripted`, `remote`.
pub(super) fn mode(run: &RunRecord) -> &str {
    let mode = run.settings.get("mode").and_then(|mode| mode.as_str());
    mode.unwrap_or_default()
}

/// The model's name; empty if the run has none.
pub(super) fn model(run: &RunRecord) -> &str {
    let model = run.engine.get("model").and_then(|model| model.as_str());
    model.unwrap_or_default()
}

#[derive(Default)]
struct Figures<'a> {
    all: Vec<Figure<'a>>,
    mode: Option<&'a str>,
    step: Option<&'a str>,
}

impl<'a> Figures<'a> {
    fn add(&mut self, metric: &'static Metric, values: Values<'a>) {
        let figure = Figure {
            metric,
            mode: self.mode,
            step: self.step,
            values,
        };
        if figure.value().is_finite() {
            self.all.push(figure);
        }
    }

    fn one(&mut self, metric: &'static Metric, value: Option<f64>) {
        if let Some(value) = value {
            self.add(metric, Values::One(value));
        }
    }

    fn many(&mut self, metric: &'static Metric, spread: Option<&'a Distribution>) {
        if let Some(spread) = spread {
            self.add(metric, Values::Many(Cow::Borrowed(spread)));
        }
    }

    fn tokens(&mut self, tokens: TokenCounts) {
        for (metric, count) in [
            (PROMPT, tokens.prompt),
            (PREFILL, tokens.prefill),
            (REUSED, tokens.reused),
            (DECODE, tokens.decode),
            (TOKENS, tokens.processed()),
        ] {
            self.one(metric, Some(count as f64));
        }
    }

    /// The totals of `MODE=both` have no distribution, since its workflows are of two kinds.
    fn workflows_by_mode(&mut self, run: &'a RunRecord) {
        for mode in crate::metrics::ARMS {
            let ended = (run.workflows.iter())
                .filter(|flow| flow.error.is_none() && flow.mode.as_deref() == Some(mode));
            let times: Vec<f64> = ended.map(|flow| flow.workflow_ms.0).collect();
            self.mode = Some(mode);
            if let Some(spread) = distribution(&times) {
                self.add(WORKFLOW, Values::Many(Cow::Owned(spread)));
            }
        }
        self.mode = None;
    }
}
