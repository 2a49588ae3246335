//! What judging what a model wrote leaves behind: times of an evaluation, trials and generations of
//! an evolution, counts and scores of a run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::metrics::Distribution;
use crate::units::Millis;

/// Where the time of one run of a generated program went.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EvaluationRecord {
    /// Submission until a place was free.
    pub waited_ms: Millis,
    /// From then until the program's first line: fork and sandbox.
    pub start_up_ms: Millis,
    /// The program itself, until its result was there or it was killed.
    pub run_ms: Millis,
    /// From then until its process was gone.
    pub stop_ms: Millis,
    /// Parsing and scoring of what it returned.
    pub validate_ms: Millis,
    /// Processor time of its process.
    pub cpu_ms: Millis,
    /// How long, between submission and end, the engine was computing: the two disturb each other.
    pub overlap_ms: Millis,
    /// How often it was started; 2 where the machinery failed under the first.
    pub attempts: u32,
}

/// What generated programs are run on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EvaluatorRecord {
    /// Version of Python; `null` where no step evaluates programs.
    pub python: Option<String>,
    /// Modules that it has loaded for them, with their versions.
    pub modules: BTreeMap<String, String>,
    /// Modules that prompts name, or steps of kind `verify` use, and that it lacks.
    pub missing: Vec<String>,
    /// Whether a program finds the same addresses in every run (no randomisation). Where a container
    /// forbids that, what depends on them, such as the order of a set of objects, may differ. `null`
    /// where no step evaluates programs.
    pub fixed_addresses: Option<bool>,
    /// Whether they run in the sandbox; not so with `--unsafe-eval` on a machine that has none. `null`
    /// where no step evaluates programs.
    pub sandboxed: Option<bool>,
}

/// A generated program and what came of it: `evolution/flow_NNNNN/trials/NNNNN.json`.
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
    /// The trial whose program its prompt went on from.
    pub parent: Option<usize>,
    /// How it ended: `ok`, `invalid`, `runtime_error`, `timeout`, `oom`, `crashed`, `denied`,
    /// `bad_output`, `infra_error`.
    pub outcome: String,
    /// Its score, where the outcome is `ok`.
    pub score: Option<f64>,
    /// What was wrong.
    pub detail: String,
    /// Submission, counted from the start of the benchmark.
    pub start_ms: Millis,
    /// Submission to end.
    pub latency_ms: Millis,
    /// Where that time went; absent where there was no program to run.
    pub evaluation: Option<EvaluationRecord>,
    /// The program; `null` where the answer holds none.
    pub code: Option<String>,
}

/// A generation of a loop: `evolution/flow_NNNNN/generations/NNNNN.json`, of a second loop
/// `2-NNNNN.json`.
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
    /// The trial that the next generation goes on from, of this generation or of one before.
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
    /// `valid` / (`trials` less those that the machinery failed); `null` with none.
    pub validity_rate: Option<f64>,
    /// How they ended, by outcome.
    pub outcomes: BTreeMap<String, usize>,
    /// The best score.
    pub best_score: Option<f64>,
    /// The trial that has it: the first among equals.
    pub best_trial: Option<usize>,
    /// The generations that have ended.
    pub generations: Vec<GenerationRecord>,
    /// Each trial with the one that it goes back to.
    pub lineage: Vec<LineageRecord>,
}

/// A trial's place in the lineage.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LineageRecord {
    /// The trial.
    pub trial: usize,
    /// The one whose program its prompt went on from.
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

/// What the judged steps of one name came to, over all flows.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ScoreRecord {
    /// The step's id, without a generation.
    pub step: String,
    /// `evaluate`, `verify` or `judge`.
    pub kind: String,
    /// How many were judged.
    pub count: usize,
    /// How they ended, by outcome.
    pub outcomes: BTreeMap<String, usize>,
    /// Of `evaluate` only: why programs failed, the most frequent reasons first, three at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<FailureRecord>,
    /// Of the scores, where there are any.
    pub score: Option<Distribution>,
    /// Of `evaluate` only: Σ start-up + stop + validation, which is what the machinery took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overhead_ms: Option<Distribution>,
    /// Of `evaluate` only: the programs' own times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_ms: Option<Distribution>,
    /// Of `evaluate` only: Σ of `overlap_ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap_ms: Option<Millis>,
}

/// Why programs failed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FailureRecord {
    /// Their outcome.
    pub outcome: String,
    /// The first line of what is said about the first of them.
    pub detail: String,
    /// How many failed so, whatever the line of the program.
    pub count: usize,
}

/// How answers were checked; each check is in one of the three counts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct VerificationRecord {
    /// The library that was asked about what exact arithmetic leaves open, with its version.
    pub library: Option<String>,
    /// Why there was none; what arithmetic leaves open then stays undecided.
    pub no_library: Option<String>,
    /// Checks that were decided, or given up, in this process.
    pub in_process: u64,
    /// Checks that the library was asked about.
    pub by_library: u64,
    /// Checks whose verdict was known from before.
    pub cached: u64,
}

/// What was asked of one model for one kind of step.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct UsageRecord {
    /// The model's name.
    pub model: String,
    /// `generate` or `judge`.
    pub kind: String,
    /// Requests that have ended.
    pub requests: u64,
    /// Tokens of their prompts.
    pub prompt_tokens: u64,
    /// Those of them that were taken from the prefix cache.
    pub reused_tokens: u64,
    /// Generated tokens.
    pub decode_tokens: u64,
    /// (`prompt_tokens` − `reused_tokens`) × price of the prompt + `reused_tokens` × price of what is
    /// cached + `decode_tokens` × price of what is generated, all a million tokens; `null` without
    /// prices.
    pub cost: Option<f64>,
}

/// What the rows of an input came to, those that earlier runs had done included.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RolloutRecord {
    /// The output file.
    pub output: String,
    /// Rows of the input, as far as they are taken.
    pub rows: usize,
    /// Flows for each.
    pub repeats: usize,
    /// Lines that were there before the run.
    pub resumed: usize,
    /// Lines that are there after it.
    pub done: usize,
    /// Those of them whose flow failed.
    pub failed: usize,
    /// Those whose flow ended well, and whose response could not be judged.
    pub unjudged: usize,
    /// How the others were judged, by outcome.
    pub outcomes: BTreeMap<String, usize>,
    /// Of the rewards.
    pub reward: Option<Distribution>,
    /// Mean of the lines' `reward_floor`, which counts what is undecided as 0.
    #[serde(default)]
    pub mean_reward: Option<f64>,
}
