//! Records of judging: times of evaluations, trials and generations of evolutions, scores, usage, rollouts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::metrics::Distribution;
use crate::units::Millis;

/// Where the time of one run of a generated program went.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EvaluationRecord {
    /// From submission until a slot was free.
    pub waited_ms: Millis,
    /// From then until the program's first line: fork and sandbox.
    pub start_up_ms: Millis,
    /// The program itself, until its result arrived or it was killed.
    pub run_ms: Millis,
    /// From then until its process was gone.
    pub stop_ms: Millis,
    /// Parsing and scoring of what it returned.
    pub validate_ms: Millis,
    /// Processor time of its process.
    pub cpu_ms: Millis,
    /// How long the engine was computing between submission and end; the two slow each other down.
    pub overlap_ms: Millis,
    /// Number of starts; 2 if the evaluator failed during the first.
    pub attempts: u32,
}

/// What generated programs run on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EvaluatorRecord {
    /// Version of Python; `null` if no step evaluates programs.
    pub python: Option<String>,
    /// Preloaded modules and their versions.
    pub modules: BTreeMap<String, String>,
    /// Modules that prompts name, or `verify` steps use, but Python lacks.
    pub missing: Vec<String>,
    /// Whether address space layout randomization is off. If a container forbids that, what depends on
    /// addresses, such as the order of a set of objects, may differ between runs. `null` if no step evaluates
    /// programs.
    pub fixed_addresses: Option<bool>,
    /// Whether programs run in the sandbox; false with `--unsafe-eval` on a machine without one. `null` if no
    /// step evaluates programs.
    pub sandboxed: Option<bool>,
}

/// A generated program and its result: `evolution/flow_NNNNN/trials/NNNNN.json`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TrialRecord {
    /// Number of the flow, from 1.
    pub flow: usize,
    /// Number of the trial in its flow, from 1, in the order of the flow's steps.
    pub trial: usize,
    /// The loop, from 1 in the order of the template; 0 outside one.
    #[serde(default)]
    pub r#loop: usize,
    /// The generation, from 1; 0 outside a loop.
    pub generation: usize,
    /// The step that evaluated it.
    pub step: String,
    /// Which of the step's samples, from 1.
    pub sample: usize,
    /// The trial that it started from.
    pub parent: Option<usize>,
    /// How it ended: `ok`, `invalid`, `runtime_error`, `timeout`, `oom`, `crashed`, `denied`,
    /// `bad_output`, `infra_error`.
    pub outcome: String,
    /// Set if the outcome is `ok`.
    pub score: Option<f64>,
    /// What was wrong.
    pub detail: String,
    /// Submission, counted from the start of the benchmark.
    pub start_ms: Millis,
    /// Submission to end.
    pub latency_ms: Millis,
    /// Where the time went; absent if there was no program.
    pub evaluation: Option<EvaluationRecord>,
    /// `null` if the answer has no program.
    pub code: Option<String>,
}

/// A generation of a loop: `evolution/flow_NNNNN/generations/NNNNN.json`; `2-NNNNN.json` for a second loop.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GenerationRecord {
    /// Number of the flow, from 1.
    pub flow: usize,
    /// Number of the loop, from 1 in the order of the template.
    #[serde(default)]
    pub r#loop: usize,
    /// Number of the generation, from 1.
    pub generation: usize,
    /// Its trials.
    pub trials: usize,
    /// How they ended, by outcome.
    pub outcomes: BTreeMap<String, usize>,
    /// The best score among its trials.
    pub best_score: Option<f64>,
    /// Mean score of those that have one.
    pub mean_score: Option<f64>,
    /// The trial that the next generation starts from, from this generation or an earlier one.
    pub selected: Option<usize>,
    /// That trial's score.
    pub selected_score: Option<f64>,
    /// Its last step's end, counted from the start of the benchmark.
    pub end_ms: Millis,
}

/// All trials of one flow: `evolution/flow_NNNNN/summary.json`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct EvolutionRecord {
    /// [`super::RECORD_SCHEMA`].
    pub schema: u32,
    /// Number of the flow, from 1.
    pub flow: usize,
    /// Whether the flow has ended well.
    pub complete: bool,
    /// Trials that have ended.
    pub trials: usize,
    /// Those of them with a score.
    pub valid: usize,
    /// `valid` / (`trials` − infrastructure errors); `null` without any.
    pub validity_rate: Option<f64>,
    /// How they ended, by outcome.
    pub outcomes: BTreeMap<String, usize>,
    /// The best score.
    pub best_score: Option<f64>,
    /// The first trial with the best score.
    pub best_trial: Option<usize>,
    /// The generations that have ended.
    pub generations: Vec<GenerationRecord>,
    /// Each trial with its parent.
    pub lineage: Vec<LineageRecord>,
}

/// A trial's place in the lineage.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LineageRecord {
    /// The trial.
    pub trial: usize,
    /// The trial that it started from.
    pub parent: Option<usize>,
    /// The loop, from 1 in the order of the template; 0 outside one.
    #[serde(default)]
    pub r#loop: usize,
    /// The generation, from 1; 0 outside a loop.
    pub generation: usize,
    /// How it ended.
    pub outcome: String,
    /// Its score.
    pub score: Option<f64>,
}

/// Results of the judged steps of one name, over all flows.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ScoreRecord {
    /// The step's id, without a generation.
    pub step: String,
    /// `evaluate`, `verify` or `judge`.
    pub kind: String,
    /// Number of judged answers.
    pub count: usize,
    /// How they ended, by outcome.
    pub outcomes: BTreeMap<String, usize>,
    /// `evaluate` only: why programs failed, the three most frequent reasons first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<FailureRecord>,
    pub score: Option<Distribution>,
    /// `evaluate` only: start-up + stop + validation, the evaluator's overhead per program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overhead_ms: Option<Distribution>,
    /// `evaluate` only: the programs' own times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_ms: Option<Distribution>,
    /// `evaluate` only: sum of `overlap_ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap_ms: Option<Millis>,
}

/// Why programs failed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FailureRecord {
    pub outcome: String,
    /// First line of the first failure's detail.
    pub detail: String,
    /// Number of such failures, at whatever line of the program.
    pub count: usize,
}

/// How answers were checked; every check is in exactly one of the three counts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct VerificationRecord {
    /// The library for answers that exact arithmetic does not decide, with its version.
    pub library: Option<String>,
    /// Why there was no library; such answers stay undecided.
    pub no_library: Option<String>,
    /// Checks that ended in this process.
    pub in_process: u64,
    /// Checks by the library.
    pub by_library: u64,
    /// Checks whose verdict was cached.
    pub cached: u64,
}

impl VerificationRecord {
    /// Sums the counts; `None` without any record. A library that one of them has counts for all.
    pub fn sum(all: impl IntoIterator<Item = Self>) -> Option<Self> {
        all.into_iter().reduce(|sum, other| Self {
            library: sum.library.or(other.library),
            no_library: sum.no_library.or(other.no_library),
            in_process: sum.in_process + other.in_process,
            by_library: sum.by_library + other.by_library,
            cached: sum.cached + other.cached,
        })
    }
}

/// Usage of one model by one kind of step.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct UsageRecord {
    /// The model's name.
    pub model: String,
    /// `generate` or `judge`.
    pub kind: String,
    /// Requests that have ended.
    pub requests: u64,
    pub prompt_tokens: u64,
    /// Prompt tokens taken from the prefix cache.
    pub reused_tokens: u64,
    /// Generated tokens.
    pub decode_tokens: u64,
    /// (`prompt_tokens` − `reused_tokens`) × prompt price + `reused_tokens` × cached price + `decode_tokens` ×
    /// decode price, with prices per million tokens; `null` without prices.
    pub cost: Option<f64>,
}

/// Results of an input's rows, including those of earlier runs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RolloutRecord {
    pub output: String,
    /// Rows of the input, after `--limit`.
    pub rows: usize,
    /// Flows per row.
    pub repeats: usize,
    /// Lines before the run, or before its last segment.
    pub resumed: usize,
    /// Lines after the run.
    pub done: usize,
    /// Lines whose flow failed.
    pub failed: usize,
    /// Lines whose flow ended well but whose response could not be judged.
    pub unjudged: usize,
    /// The other lines by outcome.
    pub outcomes: BTreeMap<String, usize>,
    pub reward: Option<Distribution>,
    /// Mean of the lines' `reward_floor`, with 0 for undecided ones.
    #[serde(default)]
    pub mean_reward: Option<f64>,
}
