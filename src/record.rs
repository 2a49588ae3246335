//! The record of a run: plain structs, stored as `results/<run-id>/run.json` and `steps.jsonl`.
//! Reporters read them and do not recompute anything. Every field documents its unit. The doc
//! comments become the descriptions in `docs/*.schema.json`.

pub mod bench;
pub mod evaluation;
pub mod load;
pub mod metrics;
pub mod profile;
pub mod remote;
#[cfg(test)]
mod schema;
pub mod shard;
mod tokens;
pub mod warning;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::units::Millis;
use evaluation::{
    EvaluationRecord, EvaluatorRecord, RolloutRecord, ScoreRecord, UsageRecord, VerificationRecord,
};
use load::LoadRecord;
use metrics::{CriticalStep, Distribution, PositionRecord};
use remote::RemoteRecord;
use shard::{Shard, ShardRun};
use warning::Warning;

pub use tokens::TokenCounts;

/// Version of the layout of [`RunRecord`] and [`StepRecord`]; incremented when a field changes
/// meaning.
pub const RECORD_SCHEMA: u32 = 1;

/// `run.json`: the whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RunRecord {
    /// [`RECORD_SCHEMA`].
    pub schema: u32,
    /// Name of the run's folder: UTC start time, mode, and a suffix that makes it unique.
    pub run_id: String,
    /// UTC, RFC 3339.
    pub started_at: String,
    /// State of the run.
    pub status: Status,
    /// Why the run failed or ended early, on one line.
    pub error: Option<String>,
    /// The settings, merged from flags, environment and defaults.
    pub settings: BTreeMap<String, serde_json::Value>,
    /// Machine and build.
    pub environment: Environment,
    /// Expansion of the flows.
    pub expansion: ExpansionRecord,
    /// The engine (a serialized `EngineInfo`); `null` before it was loaded.
    pub engine: serde_json::Value,
    /// Time from the request for the engine until the device is idle with the model loaded. `null`
    /// before it was loaded. With one engine per workflow, the sum over all of them.
    pub engine_init_ms: Option<Millis>,
    /// Start-up time of the evaluation pool, which precedes the engine; absent without a pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_init_ms: Option<Millis>,
    /// Environment of the generated programs; absent if no step evaluates or verifies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluator: Option<EvaluatorRecord>,
    /// Number of engine starts: 1, except in the baseline measurement.
    pub engine_starts: usize,
    /// One entry per finished or failed workflow, in the order of the flows.
    pub workflows: Vec<WorkflowRecord>,
    /// Totals over all workflows.
    pub totals: Totals,
    /// Warnings about the validity of the results; empty while the run is in progress.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
    /// `MODE=both` only: the rounds, and the comparison of the two modes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
    /// `--output` only: summary of the rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollouts: Option<RolloutRecord>,
    /// `--profile` only: where the time went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<profile::Profile>,
    /// `--shard` only: the shard of the flows that was run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
    /// `flowbench merge` only: the merged runs, by shard. Times since the start of the benchmark
    /// refer to the start of each individual run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<ShardRun>,
}

/// State of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// In progress, or the process was killed: `steps.jsonl` holds the measurements so far.
    Running,
    /// All flows succeeded.
    Complete,
    /// All flows ended, but some failed, or the two modes of `both` produced different outputs.
    Failed,
    /// Stopped early (Ctrl-C, an engine error, an output that could not be written).
    Incomplete,
}

/// Measurements of the expansion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExpansionRecord {
    /// Name of the template.
    pub template: String,
    /// SHA-256 of the fixture (64 hex digits).
    pub fixture_hash: String,
    /// SHA-256 of the template, its suite, and the files they include (64 hex digits).
    pub template_hash: String,
    /// Size in bytes of the fixture data that the template uses.
    pub fixture_bytes: u64,
    /// Files (or rows) of the fixture.
    pub fixture_files: usize,
    /// Number of flows.
    pub num_flows: usize,
    /// Whether the flows came from the cache.
    pub cached: bool,
    /// Reason for a cache miss: `no cache`, `fixture changed`.
    pub miss: Option<String>,
    /// Duration of the whole expansion, verification included.
    pub flow_expansion_ms: Millis,
    /// How much of the prompts is shared; `null` while the run is in progress, and for more than
    /// 1,000 flows.
    #[serde(default)]
    pub prefix: Option<PrefixRecord>,
    /// Steps of the template that send prompts to the model. Steps in a loop are listed once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<PlannedStep>,
}

/// Generation parameters of a step.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlannedStep {
    /// Step ID, without a generation number.
    pub step: String,
    /// Number of samples per prompt.
    pub samples: usize,
    /// Temperature; 0 is greedy.
    pub temperature: f64,
    /// Token limit per answer, from the template (`MAX_TOKENS` is in the settings).
    pub max_tokens: usize,
    /// Whether an `evaluate`, `verify`, `judge` or `select` step consumes its answers.
    pub judged: bool,
}

/// Upper bound on prefix reuse across requests, in bytes of the text that is known at expansion.
/// Shares of bytes approximate shares of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PrefixRecord {
    /// Size of the prompts of all requests.
    pub prompt_bytes: u64,
    /// Reusable bytes with the template parts in their present order.
    pub reusable_bytes: u64,
    /// Reusable bytes if the parts shared by all flows preceded those that differ.
    pub reusable_bytes_reordered: u64,
}

/// One workflow.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WorkflowRecord {
    /// Flow number, from 1.
    pub flow: usize,
    /// ID of the suite row.
    pub row: String,
    /// Submission of its first step, since the start of the benchmark.
    #[serde(default)]
    pub start_ms: Millis,
    /// Makespan: from the submission of its first step to the end of its last step.
    pub workflow_ms: Millis,
    /// With one engine per workflow only: start-up time of that engine, not included in
    /// `workflow_ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_init_ms: Option<Millis>,
    /// Number of steps that succeeded.
    pub steps_done: usize,
    /// Number of steps.
    pub steps: usize,
    /// Cause of the failure.
    pub error: Option<String>,
    /// Mean score of the answers of its last judging step; absent if there is no such step, or if
    /// an answer could not be judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward: Option<f64>,
    /// Like `reward`, but an undecided answer or a failed program counts as 0; absent if nothing is
    /// judged, or if the evaluation infrastructure failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_floor: Option<f64>,
    #[serde(flatten, with = "tokens::without_drafts")]
    #[cfg_attr(test, schemars(with = "tokens::without_drafts::Layout"))]
    pub tokens: TokenCounts,
    /// Steps on the critical path, in order; empty if the flow failed.
    #[serde(default)]
    pub critical_path: Vec<CriticalStep>,
    /// Slack per step: how much later it could have ended without delaying the end of the flow, all
    /// other durations unchanged. Slack = latest end − actual end. The latest end is the end of the
    /// flow for a step without dependents; otherwise it is the minimum, over the dependents, of
    /// their slack + their end − their duration since their last dependency ended. 0 on the
    /// critical path. Empty if the flow failed.
    #[serde(default)]
    pub slack_ms: BTreeMap<String, Millis>,
    /// `MODE=both` only: round number, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<usize>,
    /// `MODE=both` only: mode of the round, `standalone` or `reuse`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// A line of `steps.jsonl`: one finished step, or one sample of a step with several samples.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StepRecord {
    /// [`RECORD_SCHEMA`].
    pub schema: u32,
    /// Flow number, from 1.
    pub flow: usize,
    /// ID of the suite row.
    pub row: String,
    /// Step ID; in a loop, followed by `.` and the generation number.
    pub step: String,
    /// `evaluate`, `verify` or `judge`; absent for a step that generates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Sample number, from 1, for a step with several samples. For a judge: its requests, two per
    /// answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<usize>,
    /// Generation number in a loop, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<usize>,
    /// Dependencies of the step.
    #[serde(default)]
    pub needs: Vec<String>,
    /// Submission, since the start of the benchmark.
    pub start_ms: Millis,
    /// Queue wait: from the submission to the start of the first forward pass that computed one of
    /// its tokens. Includes rendering and tokenizing the conversation. `null` if the engine cannot
    /// tell.
    #[serde(default)]
    pub queue_ms: Option<Millis>,
    /// End-to-end latency (E2EL): from the submission to the last token; in `MODE=remote`, to the
    /// end of the answer.
    pub latency_ms: Millis,
    /// Time to first token (TTFT), from the submission; `null` if there was no token.
    pub ttft_ms: Option<Millis>,
    /// Time per output token after the first (TPOT): (E2EL − TTFT) / (n − 1); `null` below two
    /// tokens. In `MODE=remote`: (last chunk − first chunk) / (n − 1), where n is the number of
    /// tokens in the chunks; also `null` if the answer came in one burst, if n is unknown, or if
    /// fewer than 10 chunks carry more than 2 tokens each.
    pub tpot_ms: Option<Millis>,
    /// Distribution of `gaps_ms` (inter-token latency, ITL); `null` below two tokens.
    #[serde(default)]
    pub itl_ms: Option<Distribution>,
    /// The n − 1 times between successive tokens, to a microsecond. 0 between tokens of the same
    /// pass. `gaps_between` gives the unit that is timed.
    #[serde(default)]
    pub gaps_ms: Vec<f64>,
    /// The unit that `gaps_ms` and `itl_ms` time: in `MODE=remote`, `chunks` of the stream, each of
    /// which may carry several counted tokens or none; otherwise absent, meaning tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gaps_between: Option<String>,
    /// Prefill rate: `prefill_tokens` / (TTFT − queue wait); `null` if either time is unknown.
    #[serde(default)]
    pub prefill_tokens_per_s: Option<f64>,
    /// Decode rate after the first token: 1000 / TPOT; `null` below two tokens.
    #[serde(default)]
    pub decode_tokens_per_s: Option<f64>,
    #[serde(flatten)]
    pub tokens: TokenCounts,
    /// `stop` (the model ended its turn), `length`, or, from a server, `tool_calls`; for a step
    /// that evaluates or verifies, its outcome.
    pub finish: String,
    /// First 16 hex digits of the SHA-256 of the generated token IDs (little-endian u32).
    pub out_hash: String,
    /// Generated text.
    pub output: String,
    /// Whether later steps received a recorded text in place of this one (`--pin-outputs`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// How a program ended (`ok`, `invalid`, `runtime_error`, `timeout`, `oom`, `crashed`,
    /// `denied`, `bad_output`, `infra_error`), or the verdict on an answer (`equal`, `unequal`,
    /// `undecided`, `no_answer`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Score of a program; for an answer, 1 if it is correct and 0 if not. For the two requests of
    /// a judge, their combined score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// Description of the problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Answer extracted from the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// `evaluate` only: breakdown of the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<EvaluationRecord>,
    /// `MODE=remote` only: number of attempts, of which the last one succeeded. Times count from
    /// the submission and therefore include all attempts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<usize>,
    /// `MODE=remote` only: source of the token counts. `usage`: the server. `chunks`: the server
    /// sent no counts, so each streamed chunk counts as one token and the prompt as 0.
    /// `chunks+tokenizer`: the same, with the prompt counted by the local tokenizer.
    /// `chunks+usage`: the server counted only the prompt. `usage+tokenizer`: the server counted
    /// only the generated tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_by: Option<String>,
    /// `MODE=remote` only: reasoning tokens within `decode_tokens`, by the count of the server, or
    /// else the number of streamed reasoning chunks. Absent if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_tokens: Option<usize>,
    /// `MODE=remote` only: tokens within `decode_tokens` that were not streamed, such as reasoning
    /// that the server does not reveal. If the server does not report the number, this is the lower
    /// bound that follows from one byte or more per streamed token. Absent if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_tokens: Option<usize>,
    /// `MODE=remote` only: the answer arrived all at once, or faster than any engine generates, so
    /// something on the way buffered it. TTFT then equals the latency, and TPOT is `null`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub burst: bool,
    /// `MODE=both` only: round number, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<usize>,
    /// `MODE=both` only: mode of the round, `standalone` or `reuse`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

impl StepRecord {
    /// Kind of the step, as in a template.
    pub fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or("generate")
    }

    /// Step ID with the sample number, if any.
    pub fn label(&self) -> String {
        match self.sample {
            Some(sample) => format!("{} sample {sample}", self.step),
            None => self.step.clone(),
        }
    }
}

/// Totals over the workflows.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Totals {
    /// Workflows that succeeded.
    pub workflows_done: usize,
    /// Workflows that failed.
    pub workflows_failed: usize,
    /// Steps that succeeded.
    pub steps_done: usize,
    #[serde(flatten)]
    pub tokens: TokenCounts,
    /// Engine init and all workflows, without the expansion. `null` while the run is in progress.
    pub benchmark_total_ms: Option<Millis>,
    /// Mean over the workflows that succeeded; `null` if none did, and in `MODE=both`, where
    /// [`Comparison`] has a mean per mode.
    pub avg_workflow_ms: Option<Millis>,
    /// Distribution over the workflows that succeeded; `null` in the same cases as
    /// `avg_workflow_ms`.
    #[serde(default)]
    pub workflow_ms: Option<Distribution>,
    /// Distribution of `ttft_ms` over all steps. `null` while the run is in progress, and in
    /// `MODE=both`.
    #[serde(default)]
    pub ttft_ms: Option<Distribution>,
    /// One entry per step ID, in the order in which the first step of each ended. Empty while the
    /// run is in progress.
    #[serde(default)]
    pub positions: Vec<PositionRecord>,
    /// Model usage per kind of step.
    #[serde(default)]
    pub usage: Vec<UsageRecord>,
    /// Scores of the judged steps, in the order in which the first step of each ended. Empty while
    /// the run is in progress.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<ScoreRecord>,
    /// Distribution of the workflows' rewards; absent if nothing was judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward: Option<Distribution>,
    /// Judged workflows without a reward, because an answer was undecided or a program failed.
    #[serde(default)]
    pub undecided: usize,
    /// Mean of the workflows' `reward_floor`, which counts undecided answers as 0. Unlike the mean
    /// of `reward`, it cannot rise when a model gives unreadable answers. Absent if nothing was
    /// judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_reward: Option<f64>,
    /// Statistics of answer checking; absent if no answers were checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationRecord>,
    /// Energy, if the power was given (`GPU_POWER`) or measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<Energy>,
    /// `MODE=remote` only: requests, retries and failures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<RemoteRecord>,
}

/// Energy of the benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Energy {
    /// `assumed`: a constant power given by the user.
    pub source: String,
    /// Watts.
    pub watts: f64,
    /// Joules: watts × `benchmark_total_ms` / 1000.
    pub joules: f64,
}

/// `MODE=both`: the rounds of both modes and their comparison.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Comparison {
    /// The rounds in execution order, including an interrupted one.
    pub rounds: Vec<RoundRecord>,
    /// One entry per quantity, in the order of the table; complete rounds only.
    pub metrics: Vec<Metric>,
    /// Probability that the range of the rounds covers the true median, for any distribution: 1 −
    /// 2^(1 − n), where n is the smaller number of rounds of the two modes; `null` below 3 rounds.
    pub range_coverage: Option<f64>,
    /// Whether the rounds generated the same tokens.
    pub outputs: OutputComparison,
}

/// A round: all flows once, in one mode, starting with an empty prefix cache.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RoundRecord {
    /// Round number, from 1; each mode has one round per number.
    pub round: usize,
    /// `standalone` or `reuse`.
    pub mode: String,
    /// Whether all flows succeeded; incomplete rounds are not compared.
    pub complete: bool,
    /// From the start of its first workflow until the device is idle after its last. The cache is
    /// emptied beforehand.
    pub total_ms: Millis,
    /// Workflows that succeeded.
    pub workflows_done: usize,
    /// Mean over the workflows that succeeded; `null` if none did.
    pub mean_workflow_ms: Option<Millis>,
    /// Prompt tokens that were computed.
    pub prefill_tokens: usize,
    /// Prompt tokens served from the prefix cache.
    pub reused_tokens: usize,
    /// Generated tokens.
    pub decode_tokens: usize,
    /// `decode_tokens` per second of `total_ms`.
    pub decode_tokens_per_s: f64,
    /// Tokens processed by the model (`prefill_tokens` + `decode_tokens`) per second of `total_ms`.
    pub processed_tokens_per_s: f64,
    /// Joules: assumed watts × `total_ms` / 1000; `null` without `GPU_POWER`.
    pub energy_joules: Option<f64>,
}

/// A quantity, measured per round in both modes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Metric {
    /// Field of [`RoundRecord`]; the name ends in the unit.
    pub name: String,
    /// Values of the `standalone` rounds.
    pub standalone: Sample,
    /// Values of the `reuse` rounds.
    pub reuse: Sample,
    /// `reuse` / `standalone`, one value per round number for which both rounds are complete; none
    /// where `standalone` is 0.
    pub ratio: Sample,
}

/// A small sample, with only the statistics that its size supports.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Sample {
    /// Values in the order of the round numbers.
    pub values: Vec<f64>,
    /// Median; `null` below 3 values.
    pub median: Option<f64>,
    /// Minimum; `null` below 3 values.
    pub min: Option<f64>,
    /// Maximum; `null` below 3 values.
    pub max: Option<f64>,
}

/// Whether all rounds of both modes generated the same tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OutputComparison {
    /// Steps, over all flows, that ended in rounds of both modes.
    pub compared: usize,
    /// Steps whose `out_hash` differs between rounds.
    pub differing: usize,
    /// The first such step, by flow and then in step order.
    pub first: Option<OutputDifference>,
}

/// A step that generated different tokens in two rounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OutputDifference {
    /// Flow number, from 1.
    pub flow: usize,
    /// Step ID.
    pub step: String,
    /// The earlier output.
    pub one: OutputOf,
    /// The later output, which differs.
    pub other: OutputOf,
}

/// The output of a step in one round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OutputOf {
    /// `standalone` or `reuse`.
    pub mode: String,
    /// Round number, from 1.
    pub round: usize,
    /// As in [`StepRecord`].
    pub out_hash: String,
}

/// Environment of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Environment {
    /// Version of flowbench.
    pub flowbench: String,
    /// Git revision of the repository that holds the root, with the suffix `-dirty` if it has changes; `null`
    /// if there is none.
    pub git_revision: Option<String>,
    /// Operating system and kernel.
    pub os: String,
    /// Processor model name.
    pub cpu: String,
    /// Logical processors available to the process.
    pub cpu_threads: usize,
    /// Vector extensions of the processor that the engine can use.
    pub cpu_features: Vec<String>,
    /// Memory of the machine in bytes.
    pub memory_bytes: u64,
    /// Build features: `cpu`, or `cpu+cuda`.
    pub build: String,
    /// First 16 hex digits of a SHA-256 of the host name: distinguishes machines without naming
    /// them. Anyone who guesses the name can verify it. `null` if the host has no name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname_hash: Option<String>,
    /// Load of the machine during the run; absent while the run is in progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadRecord>,
}
